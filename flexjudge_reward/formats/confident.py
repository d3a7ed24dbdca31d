"""MinConfidence: a score that the judge is not sure of becomes an `uncertain` failure, so that it trains nothing.

How sure a judge is shows where it gives more than one answer: over votes, over both orders of a pair, or in the
probabilities of its answer. `Verdict.confidence` says it for a whole judgement, by its least sure score: 1 less the
standard deviation as a share of half the scale, which is the largest that there can be.

An uncertain judgement is no trouble of the judge: it counts for no alarm and does not stop a run.
"""

from __future__ import annotations

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.base import Format, Wrapper
from flexjudge_reward.formats.rounds import Ask
from flexjudge_reward.types import Example, Failure, Verdict


class MinConfidence(Wrapper):
    """The inner format's verdicts that the judge is sure enough about."""

    def __init__(self, inner: Format, least: float) -> None:
        """`least` is the lowest confidence that counts, 0 to 1; the inner format measures it, else ConfigError."""
        if isinstance(least, bool) or not 0 <= least <= 1:
            raise ConfigError(f"the least confidence must be from 0 to 1, found {least!r}")
        if not inner.measures_spread:
            raise ConfigError(f"{inner.described()} does not say how sure it is: use votes or expected scores inside")
        super().__init__(inner)
        self.least = least

    async def judge(self, example: Example, ask: Ask) -> Verdict:
        """The inner verdict, or that it is uncertain."""
        verdict = await self.inner.judge(example, ask)
        if verdict.scores is None or not verdict.is_unsure(self.least):
            return verdict
        found = "unknown after failures" if verdict.confidence is None else f"{verdict.confidence:.2f}"
        detail = f"the confidence is {found}, min_confidence={self.least:g}"
        return verdict.without_scores(Failure("uncertain", detail))
