"""MajorityVote: up to `k` samples of one judgement, combined.

"majority" stops as soon as no further vote could change the outcome, and its outcome equals that of all `k`: for one
candidate the most common score (the mean of the most common ones on a draw), for several the set of best candidates,
scored 1 and 0 (all 0 where an option format called every candidate bad). "mean" draws all votes and takes the mean
score. Failed votes do not count; if all fail, the judgement fails. Vote number n is sampled with seed + n, so a larger
`k` reuses the first votes from a cache. Votes need a temperature above 0 to differ. Counters: `votes`, and
`votes_saved` (not drawn, because the outcome was settled).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean, multimode

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.base import UNIT, Format, Wrapper, mean, merge, spread_of, winners
from flexjudge_reward.formats.rounds import Ask, gather
from flexjudge_reward.types import Example, Verdict

Ballot = tuple[float, ...]  # what one vote says: the score of one candidate, or the best ones of several, by index


class MajorityVote(Wrapper):
    """Votes of the inner format."""

    def __init__(self, inner: Format, k: int, by: str = "majority") -> None:
        """At most `k` votes, 1 or more, combined by "majority" or "mean"."""
        super().__init__(inner)
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ConfigError(f"k must be a whole number of at least 1, found {k!r}")
        if by not in ("majority", "mean"):
            raise ConfigError(f"votes are counted by 'majority' or 'mean', found {by!r}")
        self.k, self.by, self.measures_spread = k, by, k > 1 or inner.measures_spread

    async def judge(self, example: Example, ask: Ask) -> Verdict:
        """The fewest votes that could settle it, then as few more at a time."""
        votes: list[Verdict] = []
        while missing := self._missing(votes):
            seeds = [ask.sampling.seed + len(votes) + n for n in range(missing)]
            votes += await gather(*(self.inner.judge(example, ask.changed(seed=seed)) for seed in seeds))
        return self._counted(votes)

    def _missing(self, votes: Sequence[Verdict]) -> int:
        if self.by == "mean":
            return self.k - len(votes)
        return votes_needed(Counter(self._ballots(votes)), self.k, len(votes))

    def _counted(self, votes: Sequence[Verdict]) -> Verdict:
        drawn = {"votes": len(votes), "votes_saved": self.k - len(votes)}
        scores = [vote.scores for vote in votes if vote.scores is not None]
        if not scores:
            return merge(votes, None, drawn)
        spread = spread_of(scores, [vote.spread for vote in votes if vote.spread])
        if self.by == "mean":
            return merge(votes, [mean(column) for column in zip(*scores, strict=True)], drawn, spread=spread)
        ballots, members = self._ballots(votes), range(len(scores[0]))
        leading = multimode(ballots)
        if len(members) == 1:
            return merge(votes, [mean([score for (score,) in leading])], drawn, spread=spread)
        shares = [fmean(candidate in ballot for ballot in leading) for candidate in members]
        spread = spread_of([[float(candidate in ballot) for candidate in members] for ballot in ballots])
        return merge(votes, shares, drawn, UNIT, spread)

    def _ballots(self, votes: Sequence[Verdict]) -> list[Ballot]:
        return [self._ballot(vote.scores) for vote in votes if vote.scores is not None]

    def _ballot(self, scores: tuple[float, ...]) -> Ballot:
        if len(scores) == 1:
            return scores
        # Zeros of an option format name no winner: every candidate was called bad.
        return () if self.answers == "option" and not any(scores) else winners(scores)


def votes_needed(ballots: Counter[Ballot], k: int, drawn: int) -> int:
    """The fewest further votes after which the outcome could be settled; 0 if it is settled or all are drawn.

    Settled: the leader is ahead of every other ballot, unseen ones included, by more than the votes left.
    """
    left = k - drawn
    first, second, *_ = [*(count for _, count in ballots.most_common(2)), 0, 0]
    lead = first - second
    return 0 if lead > left else min(left, (left - lead) // 2 + 1)
