"""Groups of candidates of any size, by formats that judge a few at a time: tournaments, chunked lists, knockouts.

    Tournament   two at a time, by a schedule; win rates or a Bradley-Terry fit     Pair, Relation
    Chunked      lists that share one candidate                                     Listwise
    Knockout     the best of a few, then the best of those                          Choice

`whole_groups` picks the one that fits a format. Identical candidates are judged once and share their score. Orders,
sides and chunks are drawn by a seed together with the content of the group, so that they differ from group to group and
a run can be repeated.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from flexjudge_reward.errors import ConfigError, MediaError
from flexjudge_reward.formats.adaptive import added, merged, replace_candidates, winners
from flexjudge_reward.formats.builtin import Choice, Listwise, group_size, innermost, steps, together
from flexjudge_reward.formats.pairings import (
    Comparison,
    Pairing,
    Schedule,
    bradley_terry,
    check_budget,
    fixed_pairs,
    swiss_budget,
    swiss_pairs,
    win_rates,
)
from flexjudge_reward.media.base import Media
from flexjudge_reward.rubric import Scale
from flexjudge_reward.types import AnyFormat, Content, Example, Steps, Verdict

_UNIT = Scale(0.0, 1.0, decimals=True)


class Tournament:
    """A group of candidates of any size, by comparing two at a time; scores in [0, 1], 0.5 is average.

    A comparison that failed is left out; if that leaves a member without any, the group has no verdict.
    """

    fewest, most = 2, math.inf

    def __init__(
        self,
        format: AnyFormat,
        schedule: Schedule = "all",
        budget: int | None = None,
        score: str = "bradley-terry",
        seed: int = 0,
    ) -> None:
        """
        Args:
            format: judges two candidates: `Pair()`, `Swapped(Pair())`, `Choice()` and so on.
            budget: the most comparisons per group; None for the schedule's own number.
            score: "bradley-terry" or "win-rate"; the first is fair to members that met strong opponents.
        """
        check_budget(schedule, 2, None)
        if score not in ("bradley-terry", "win-rate"):
            raise ConfigError(f"score must be 'bradley-terry' or 'win-rate', found {score!r}")
        if budget is not None and budget < 1:
            raise ConfigError(f"the comparison budget must be at least 1, found {budget!r}")
        self.format, self.schedule, self.budget, self.score, self.seed = format, schedule, budget, score, seed

    def steps(self, example: Example) -> Steps:
        """One round; several for a Swiss tournament."""
        unique = list(dict.fromkeys(example.candidates))
        if len(unique) == 1:
            return _alike(example)
        check_budget(self.schedule, len(unique), self.budget)
        seed = drawn_for(example, self.seed)
        judged: list[Verdict] = []
        played: list[Comparison] = []
        met: list[Pairing] = []
        while pairs := self._round(len(unique), met, played, seed):
            met += pairs
            runs = [steps(self.format, replace_candidates(example, [unique[a], unique[b]])) for a, b in pairs]
            verdicts = yield from together(runs)
            judged += verdicts
            played += [
                Comparison(a, b, result(verdict.scores))
                for (a, b), verdict in zip(pairs, verdicts, strict=True)
                if verdict.scores is not None
            ]
        return self._scored(example, unique, played, judged)

    def _round(self, members: int, met: Sequence[Pairing], played: Sequence[Comparison], seed: str) -> list[Pairing]:
        if self.schedule != "swiss":
            return [] if met else fixed_pairs(self.schedule, members, self.budget, seed)
        left = (swiss_budget(members) if self.budget is None else self.budget) - len(met)
        failed = [Comparison(a, b, 0.5) for a, b in met if not any({a, b} == {p.first, p.second} for p in played)]
        return swiss_pairs(members, [*played, *failed], left, seed) if left > 0 else []

    def _scored(
        self, example: Example, unique: Sequence[object], played: Sequence[Comparison], judged: Sequence[Verdict]
    ) -> Verdict:
        rate = bradley_terry if self.score == "bradley-terry" else win_rates
        scores = dict(zip(unique, rate(len(unique), played), strict=True))
        kept = merged(judged[0], judged)
        kept = replace(kept, scale=_UNIT, notes=added(kept.notes, {"comparisons": len(played)}))
        found = [scores[candidate] for candidate in example.candidates]
        if any(score is None for score in found):
            failure = next(verdict.failure for verdict in judged if verdict.failure is not None)
            return replace(kept, scores=None, failure=failure)
        return replace(kept, scores=tuple(score for score in found if score is not None), failure=None)


class Chunked:
    """A list format over groups larger than it judges well: chunks that share one anchor candidate.

    The anchor stands in every chunk, and each chunk's scores are moved so that the anchor scores the same everywhere,
    then kept on the scale. Chunk sizes differ by one at most.
    """

    fewest, most = 2, math.inf

    def __init__(self, format: AnyFormat, size: int = 8, seed: int = 0) -> None:
        """
        Args:
            size: the most candidates of one list.
        """
        most = group_size(format)[1]
        if not 2 <= size <= most:
            raise ConfigError(f"a chunk needs at least two candidates, and a list holds {most:g}; found {size!r}")
        self.format, self.size, self.seed = format, size, seed

    def steps(self, example: Example) -> Steps:
        """One round: all chunks."""
        unique = list(dict.fromkeys(example.candidates))
        if len(unique) == 1:
            # A list needs two: the twin of a lone candidate stands beside it, and both have its score.
            unique = [unique[0], unique[0]]
        chunks = _chunks(len(unique), self.size, random.Random(drawn_for(example, self.seed)))
        runs = [steps(self.format, replace_candidates(example, [unique[i] for i in chunk])) for chunk in chunks]
        verdicts = yield from together(runs)
        kept = merged(verdicts[0], verdicts)
        failed = next((verdict.failure for verdict in verdicts if verdict.failure is not None), None)
        if failed is not None:
            return replace(kept, scores=None, failure=failed)
        member = _aligned(chunks, verdicts)
        scores = {candidate: member[i] for i, candidate in enumerate(unique)}
        return replace(kept, scores=tuple(scores[candidate] for candidate in example.candidates))


def _chunks(members: int, size: int, rng: random.Random) -> list[list[int]]:
    """Members in chunks of at most `size`, member 0 in each of them."""
    if members <= size:
        return [rng.sample(range(members), members)]
    others = rng.sample(range(1, members), members - 1)
    count = math.ceil(len(others) / (size - 1))
    parts = [[0, *others[start::count]] for start in range(count)]
    return [rng.sample(part, len(part)) for part in parts]


def _aligned(chunks: Sequence[Sequence[int]], verdicts: Sequence[Verdict]) -> dict[int, float]:
    scores = [dict(zip(chunk, one.scores or (), strict=True)) for chunk, one in zip(chunks, verdicts, strict=True)]
    scale = verdicts[0].scale
    anchor = math.fsum(chunk[0] for chunk in scores) / len(scores)
    moved = {member: score + anchor - chunk[0] for chunk in scores for member, score in chunk.items()}
    return {member: min(max(score, scale.low), scale.high) for member, score in moved.items()}


class Knockout:
    """The best of a group of any size, by a format that names the best of a few; winners meet in the next round.

    A candidate scores one for every round it survived and what the format said in its last one, as a share of the
    rounds. A tie sends all its members on; the rounds end when nobody drops out. A choice that failed fails the group.
    """

    fewest, most = 2, math.inf

    def __init__(self, format: AnyFormat, size: int = 8, seed: int = 0) -> None:
        """
        Args:
            size: the most candidates of one choice.
        """
        if size < 3:  # rounds of two would leave one over
            raise ConfigError(f"a knockout needs choices of at least three candidates, found size={size!r}")
        self.format, self.size, self.seed = format, size, seed

    def steps(self, example: Example) -> Steps:
        """Round by round, until one choice is among all that are left."""
        unique = list(dict.fromkeys(example.candidates))
        if len(unique) == 1:
            return _alike(example)
        rng = random.Random(drawn_for(example, self.seed))
        judged: list[Verdict] = []
        said: dict[int, list[float]] = {member: [] for member in range(len(unique))}
        left, before, parts = list(said), 0, 2
        while parts > 1 and len(left) not in (1, before):
            before, drawn = len(left), list(_parts(rng.sample(left, len(left)), self.size))
            runs = [steps(self.format, replace_candidates(example, [unique[i] for i in part])) for part in drawn]
            verdicts = yield from together(runs)
            judged, parts, left = [*judged, *verdicts], len(drawn), []
            for part, one in zip(drawn, verdicts, strict=True):
                if one.scores is None:
                    return replace(merged(one, judged), failure=one.failure)
                left += [part[best] for best in winners(one.scores)]
                # Parts differ in size, and so would the scores of a tie: beside others the best of each has all.
                most = max(one.scores) if parts > 1 else 1.0
                for member, score in zip(part, one.scores, strict=True):
                    said[member].append(score / (most or 1.0))
        rounds = max(map(len, said.values()))
        score_of = {one: (len(said[i]) - 1 + said[i][-1]) / rounds for i, one in enumerate(unique)}
        scores = tuple(score_of[candidate] for candidate in example.candidates)
        return replace(merged(judged[0], judged), scores=scores, scale=_UNIT)


def _parts(members: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """As few parts of at most `size` as hold all, none of a lone member."""
    count = math.ceil(len(members) / size)
    while members:
        take = math.ceil(len(members) / count)
        yield members[:take]
        members, count = members[take:], count - 1


def whole_groups(
    format: AnyFormat, schedule: Schedule = "all", budget: int | None = None, size: int = 8, seed: int = 0
) -> AnyFormat:
    """`format` for groups of any size: a tournament of comparisons, lists in chunks of `size`, a knockout of choices.

    A format for one candidate, and one that takes any number already, stay as they are.
    """
    fewest, most = group_size(format)
    if fewest == most == 2:
        return Tournament(format, schedule, budget, seed=seed)
    inner = innermost(format)
    if most == math.inf:
        return format
    if isinstance(inner, Choice):
        return Knockout(format, int(most), seed)
    return Chunked(format, size, seed) if isinstance(inner, Listwise) else format


def _alike(example: Example) -> Verdict:
    """The verdict on candidates that are all the same: nobody is asked, and nobody is better."""
    return Verdict((0.5,) * len(example.candidates), scale=_UNIT)


def result(scores: Sequence[float]) -> float:
    """1 if the first of two is better, 0 if the second is, 0.5 for a tie."""
    first, second = scores
    return 0.5 if first == second else float(first > second)


def drawn_for(example: Example, seed: int) -> str:
    """A seed of the group's own: from `seed` and the contents of its question and candidates."""
    return lot((*example.question, *(part for candidate in example.candidates for part in candidate)), seed)


def lot(content: Content, seed: int) -> str:
    """A number drawn for some content, in hexadecimal digits; the same wherever it stands."""
    parts = [repr(part) if isinstance(part, str) else _named(part) for part in content]
    return hashlib.sha256("\x00".join([str(seed), *parts]).encode("utf-8", "surrogatepass")).hexdigest()


def _named(media: Media) -> str:
    try:
        return media.digest
    except MediaError:
        return media.kind
