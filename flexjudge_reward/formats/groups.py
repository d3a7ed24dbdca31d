"""Groups of candidates of any size, by formats that judge a few at a time.

    Tournament      two at a time, by a schedule; win rates or a Bradley-Terry fit    Pairwise, PairwiseVerdict
    AnchoredChunks  lists that share one candidate                                    Listwise
    Knockout        the best of a few, then the best of those                         MultipleChoice

`for_group_size` picks the one that fits a format. Identical candidates are judged once and share their score. Orders,
sides and chunks are drawn by a seed and the content of the group, so that they differ from group to group and a run can
be repeated. Counters: `comparisons` (pairs that were judged).
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats import pairings
from flexjudge_reward.formats.base import UNIT, Format, Wrapper, merge, winners
from flexjudge_reward.formats.pairings import Comparison, Pairing, Schedule, check_budget
from flexjudge_reward.formats.rounds import Ask, gather
from flexjudge_reward.types import Example, PairVerdict, Verdict

ALONE = Verdict((0.5,), scale=UNIT)  # identical candidates tie without a judge call


class GroupFormat(Wrapper, ABC):
    """Judges two or more candidates, however many, by an inner format for a few."""

    smallest_size, size_rule = 2, ""

    def __init__(self, inner: Format, size: int = 8, seed: int = 0) -> None:
        """One inner judgement gets 2 to `size` candidates; `seed` draws orders, sides and who is judged together."""
        super().__init__(inner)
        if size < self.smallest_size:
            raise ConfigError(f"{self.size_rule}, found size={size!r}")
        if not inner.min_candidates <= 2 <= size <= inner.max_candidates:
            raise ConfigError(
                f"{type(self).__name__} gives its format 2 to {size} candidates at a time,"
                f" and {inner.described()} takes {inner.min_candidates:g} to {inner.max_candidates:g}"
            )
        self.min_candidates, self.max_candidates, self.size, self.seed = 2, math.inf, size, seed
        self.measures_spread = False

    async def judge(self, example: Example, ask: Ask) -> Verdict:
        """The verdict on the distinct candidates; identical ones share their score."""
        unique = list(dict.fromkeys(example.candidates))
        verdict = await self.judge_distinct(example.with_candidates(unique), ask)
        first, scores = [example.candidates.index(candidate) for candidate in unique], verdict.scores
        return replace(
            verdict,
            scores=None if scores is None else tuple(scores[unique.index(one)] for one in example.candidates),
            comparisons=tuple(PairVerdict(first[c.first], first[c.second], c.verdict) for c in verdict.comparisons),
        )

    @abstractmethod
    async def judge_distinct(self, example: Example, ask: Ask) -> Verdict:
        """The verdict on candidates that are all different, maybe on a single one."""

    async def judge_members(self, example: Example, groups: Sequence[Sequence[int]], ask: Ask) -> list[Verdict]:
        """The inner verdicts on several groups of the candidates, by their indices, in one round."""
        subgroups = [example.with_candidates([example.candidates[i] for i in group]) for group in groups]
        return await gather(*(self.inner.judge(subgroup, ask) for subgroup in subgroups))


class Tournament(GroupFormat):
    """Compares two candidates at a time; scores in [0, 1], 0.5 is average.

    A comparison that failed is left out. If that leaves a member without any, the group has no verdict.
    """

    def __init__(
        self,
        inner: Format,
        schedule: Schedule = "all",
        budget: int | None = None,
        score: str = "bradley-terry",
        seed: int = 0,
    ) -> None:
        """
        Args:
            inner: judges two candidates: `Pairwise()`, `PositionSwap(Pairwise())`, `MultipleChoice()` and so on.
            budget: the most comparisons per group; None for the schedule's own number.
            score: "bradley-terry" or "win-rate"; the first is fair to members that had strong opponents.
        """
        super().__init__(inner, 2, seed)
        check_budget(schedule, 2, budget)
        if score not in ("bradley-terry", "win-rate"):
            raise ConfigError(f"score must be 'bradley-terry' or 'win-rate', found {score!r}")
        self.schedule, self.budget, self.score = schedule, budget, score

    async def judge_distinct(self, example: Example, ask: Ask) -> Verdict:
        """One round; several for a Swiss tournament."""
        members = len(example.candidates)
        if members == 1:
            return ALONE
        check_budget(self.schedule, members, self.budget)
        seed = example.digest(self.seed)
        verdicts: dict[Pairing, Verdict] = {}
        while pairs := self._next_pairs(members, verdicts, seed):
            verdicts.update(zip(pairs, await self.judge_members(example, pairs, ask), strict=True))
        compared = [Comparison(*pair, _result(verdict)) for pair, verdict in verdicts.items() if verdict.scores]
        rate = pairings.bradley_terry if self.score == "bradley-terry" else pairings.win_rates
        scores = [score for score in rate(members, compared) if score is not None]
        whole = scores if len(scores) == members else None
        merged = merge(list(verdicts.values()), whole, {"comparisons": len(compared)}, UNIT)
        return replace(merged, comparisons=tuple(PairVerdict(*pair, verdict) for pair, verdict in verdicts.items()))

    def _next_pairs(self, members: int, verdicts: Mapping[Pairing, Verdict], seed: str) -> list[Pairing]:
        if self.schedule == "all":
            return [] if verdicts else pairings.all_pairs(members, self.budget, seed)
        most = pairings.swiss_budget(members) if self.budget is None else self.budget
        compared = [Comparison(*pair, _result(verdict)) for pair, verdict in verdicts.items()]
        return pairings.swiss_pairs(members, compared, most - len(compared), seed)


def _result(verdict: Verdict) -> float:
    """1 if the first of two is better, 0 if the second is, 0.5 for a tie and for a comparison that failed."""
    first, second = verdict.scores or (0.0, 0.0)
    return 0.5 if first == second else float(first > second)


class AnchoredChunks(GroupFormat):
    """A list format for groups larger than it judges well: chunks that share one anchor candidate.

    The anchor is in every chunk. Each chunk's scores are shifted so that the anchor scores the same everywhere, then
    clamped to the scale. Chunk sizes differ by one at most.
    """

    size_rule = "a chunk holds at least two candidates"

    async def judge_distinct(self, example: Example, ask: Ask) -> Verdict:
        """One round: all chunks."""
        rng = random.Random(example.digest(self.seed))
        if len(example.candidates) == 1:
            example = example.with_candidates(example.candidates * 2)  # a list needs two: beside its copy
        chunks = _chunks(len(example.candidates), self.size, rng)
        verdicts = await self.judge_members(example, chunks, ask)
        scored = [verdict.scores for verdict in verdicts if verdict.scores is not None]
        if len(scored) < len(chunks):
            return merge(verdicts, None)
        anchors = [scores[chunk.index(0)] for chunk, scores in zip(chunks, scored, strict=True)]
        common, scale = fmean(anchors), verdicts[0].scale
        aligned = [common] * len(example.candidates)
        for chunk, scores, anchor in zip(chunks, scored, anchors, strict=True):
            for member, score in zip(chunk, scores, strict=True):
                aligned[member] = min(max(score + common - anchor, scale.low), scale.high)
        return merge(verdicts, aligned)


def _chunks(members: int, size: int, rng: random.Random) -> list[list[int]]:
    """Members in chunks of at most `size`, member 0 in each of them."""
    if members <= size:
        return [rng.sample(range(members), members)]
    others = rng.sample(range(1, members), members - 1)
    count = math.ceil(len(others) / (size - 1))
    chunks = [[0, *others[start::count]] for start in range(count)]
    return [rng.sample(chunk, len(chunk)) for chunk in chunks]


class Knockout(GroupFormat):
    """The best of a group by a format that names the best of a few; the best of each heat advance to the next round.

    A candidate's score is its number of survived rounds plus what the format gave it in its last one, as a share of
    the rounds. A tie advances all its members; the rounds end when no candidate drops out. A failed heat fails the
    group.
    """

    # Heats of two would leave one candidate over.
    smallest_size, size_rule = 3, "a knockout needs heats of at least three candidates"

    async def judge_distinct(self, example: Example, ask: Ask) -> Verdict:
        """Round by round, until one heat holds all survivors."""
        survivors = list(range(len(example.candidates)))
        if len(survivors) == 1:
            return ALONE
        rng, rounds = random.Random(example.digest(self.seed)), 0
        verdicts: list[Verdict] = []
        points = [0.0] * len(survivors)
        while True:
            count = math.ceil(len(survivors) / self.size)
            drawn = rng.sample(survivors, len(survivors))
            heats = [drawn[start::count] for start in range(count)]  # none of them of one member
            judged = await self.judge_members(example, heats, ask)
            verdicts += judged
            scored = [verdict.scores for verdict in judged if verdict.scores is not None]
            if len(scored) < count:
                return merge(verdicts, None)
            advanced = []
            for heat, scores in zip(heats, scored, strict=True):
                advanced += [heat[index] for index in winners(scores)]
                # Heats differ in size, and so would the scores of a tie: among several heats the best of each gets 1.
                best = (max(scores) or 1.0) if count > 1 else 1.0
                for member, score in zip(heat, scores, strict=True):
                    points[member] = rounds + score / best
            rounds += 1
            if count == 1 or len(advanced) in (1, len(survivors)):
                return merge(verdicts, [own / rounds for own in points], scale=UNIT)
            survivors = advanced


def for_group_size(
    format: Format, schedule: Schedule = "all", budget: int | None = None, chunk: int = 8, seed: int = 0
) -> Format:
    """`format` for groups of any size: a tournament of pairs, lists in chunks of `chunk`, a knockout of choices.

    A format for one candidate, one that takes any number already, and one that needs more than two stay as they are.
    """
    if format.max_candidates in (1, math.inf) or format.min_candidates > 2:
        return format
    if format.max_candidates == 2:
        return Tournament(format, schedule, budget, seed=seed)
    if format.innermost().answers == "letter":
        return Knockout(format, int(format.max_candidates), seed)
    return AnchoredChunks(format, min(chunk, int(format.max_candidates)), seed)
