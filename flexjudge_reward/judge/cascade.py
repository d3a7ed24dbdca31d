"""Cascade: a small judge judges everything, a large one only what the small one is not sure of.

    judge = Cascade(Judge.load(votes=4, temperature=1.0), Judge.load(base_url="http://HOST:8001/v1"), unsure=0.8)
    FlexJudgeReward(judge)

The large judge is asked where the small one's confidence (`Verdict.confidence`) is below `unsure`, or where its reply
cannot be used; its verdict then counts. Each judge has its own format, rubric and sampling. Counter: `asked_large`.
A judge that is surely wrong is not asked about: how much a cascade gains depends on how well the small judge's
confidence tells its errors, which `benchmarks/uncertainty.py` measures for the embedded one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.base import Format, add_counters
from flexjudge_reward.judge.groups import after
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.types import NOT_SHOWN, Example, Sampling, Verdict


class Cascade(Judge):
    """Two judges as one."""

    def __init__(self, small: Judge, large: Judge, unsure: float) -> None:
        """
        Args:
            small: asked about everything. Its format says how sure it is: votes, expected scores or, for pairs outside
                of a trainer's groups, position swap.
            large: asked where the confidence of `small` is below `unsure`, 0 to 1. Judges as many candidates at a time.

        Raises ConfigError: the format of `small` does not say how sure it is, as a tournament or chunks of lists; or
        that of `large` cannot judge the same numbers of candidates.
        """
        if isinstance(unsure, bool) or not 0 <= unsure <= 1:
            raise ConfigError(f"unsure must be a confidence from 0 to 1, found {unsure!r}")
        if not small.format.measures_spread:
            name = small.format.described()
            raise ConfigError(f"the small judge's {name} does not say how sure it is: use votes or expected scores")
        if large.engine.needs_window:
            raise ConfigError("the large judge of a cascade cannot be colocated: only the small one sleeps and wakes")
        super().__init__(small.format, small.engine, small.sampling, small.record)
        self.large, self.unsure = large.for_group_size(), unsure
        first, second = small.format, self.large.format
        if first.min_candidates < second.min_candidates or first.max_candidates > second.max_candidates:
            names = f"the large judge's {second.described()} cannot judge all that the small one's {first.described()}"
            raise ConfigError(f"{names} can: both must judge one candidate at a time, or both groups")

    def __call__(
        self, examples: Sequence[Example], labels: Sequence[Mapping[str, object]] | None = None
    ) -> list[Verdict]:
        """One verdict per example, in order. Raises as a `Judge`."""
        verdicts, labels = super().__call__(examples, labels), labels or [{}] * len(examples)
        asked = [index for index, verdict in enumerate(verdicts) if self._is_unsure(verdict)]
        if asked:
            second = self.large([examples[index] for index in asked], [labels[index] for index in asked])
            for index, verdict in zip(asked, second, strict=True):
                both = after([verdicts[index]], verdict)
                verdicts[index] = replace(both, counters=add_counters(both.counters, {"asked_large": 1}))
        return verdicts

    def with_format(self, format: Format) -> Cascade:
        """The same with another format of the small judge."""
        return Cascade(super().with_format(format), self.large, self.unsure)

    def with_sampling(self, sampling: Sampling) -> Cascade:
        """The same with another way of sampling of the small judge."""
        return Cascade(super().with_sampling(sampling), self.large, self.unsure)

    def described(self) -> dict[str, object]:
        """Who judges: the small judge, and the large one under its own name."""
        return {**super().described(), "unsure": self.unsure, "large": self.large.described()}

    def check_kinds(self, kinds: Collection[str]) -> None:
        """Raises as a `Judge`, of either."""
        super().check_kinds(kinds)
        self.large.check_kinds(kinds)

    def close(self) -> None:
        """Closes both."""
        super().close()
        self.large.close()

    def _is_unsure(self, verdict: Verdict) -> bool:
        if verdict.failure is not None:
            return verdict.failure.kind not in NOT_SHOWN
        return verdict.is_unsure(self.unsure)
