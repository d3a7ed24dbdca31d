"""PositionSwap: two or more candidates judged in both orders; a winner counts only if both orders name it.

Where the orders agree, the scores are the mean of both. Where they do not, it is a tie: every candidate gets the mean
of all. Position bias then makes ties, never a winner (Flex-Judge 1.7, MJ-Bench). Counters: `swaps`, and `swaps_agreed`
(the same winners in both orders).
"""

from __future__ import annotations

from collections.abc import Sequence

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.base import Format, Wrapper, mean, merge, spread_of, winners
from flexjudge_reward.formats.rounds import Ask, gather
from flexjudge_reward.types import Example, Verdict


class PositionSwap(Wrapper):
    """The inner format in both orders of the candidates."""

    def __init__(self, inner: Format, margin: float | None = None) -> None:
        """Swaps only if the two best first scores differ by at most `margin`, on the format's scale; None: always."""
        super().__init__(inner)
        if margin is not None and not margin >= 0:
            raise ConfigError(f"margin must be None or at least 0, found {margin!r}")
        if inner.max_candidates < 2:
            raise ConfigError(f"position swap needs a format for two or more candidates, found {inner.described()}")
        self.min_candidates, self.margin, self.measures_spread = max(2, inner.min_candidates), margin, True

    async def judge(self, example: Example, ask: Ask) -> Verdict:
        """Both orders in one round; with a margin, the second only where it is needed."""
        swapped = example.with_candidates(example.candidates[::-1])
        if self.margin is None:
            return _combined(await gather(self.inner.judge(example, ask), self.inner.judge(swapped, ask)))
        first = await self.inner.judge(example, ask)
        if first.scores is None:
            return first
        best, second = sorted(first.scores, reverse=True)[:2]
        if best - second > self.margin:
            return first
        return _combined([first, await self.inner.judge(swapped, ask)])


def _combined(orders: Sequence[Verdict]) -> Verdict:
    original, mirrored = (verdict.scores for verdict in orders)
    if original is None or mirrored is None:
        return merge(orders, None)
    mirrored = mirrored[::-1]
    first, second = orders
    own = [first.spread, second.spread[::-1]] if first.spread and second.spread else []
    spread = spread_of([original, mirrored], own)
    agreed = winners(original) == winners(mirrored)
    scores = [mean(both) for both in zip(original, mirrored, strict=True)]
    if not agreed:
        scores = [mean(scores)] * len(scores)
    return merge(orders, scores, {"swaps": 1, "swaps_agreed": int(agreed)}, spread=spread)
