"""Formats around formats: both orders, votes, whole tournaments, expected scores, thoughts that are cut short.

A plain format asks once. These look at the replies before they ask more, so instead of `render` and `read` they have
one method, `steps(example)`: a generator that yields the prompts of a round, gets their replies, and returns the
verdict. They nest: `Tournament(Swapped(Votes(Pair(), 3)))`.

A round of a whole batch is one call to the engine (`formats.together`). What a wrapper did is counted in
`Verdict.notes`:

    votes, votes_saved          samples drawn, and not drawn because the outcome was settled
    swaps, swaps_agreed         pairs judged in both orders, and those with the same winner
    forced                      thoughts that were closed for the judge
    comparisons                 pairs that were judged
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from flexjudge_reward.answers import THINK_CLOSE, said_so_far
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats import Listwise, group_size, steps, together
from flexjudge_reward.rubric import Scale
from flexjudge_reward.tournament import (
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
from flexjudge_reward.types import AnyFormat, Example, Generation, Message, Prompt, Steps, Verdict


class Swapped:
    """Judges two or more candidates in both orders; a winner counts only if both orders name it.

    Where they agree the scores are the mean of both. Where they do not, it is a tie: every candidate gets the mean of
    all. Position bias then makes ties, never a winner (papers: Flex-Judge 1.7, MJ-Bench).
    """

    def __init__(self, format: AnyFormat, margin: float | None = None) -> None:
        """
        Args:
            margin: swap only where the two best scores of the first order differ by at most this, on the format's
                scale; None swaps always.
        """
        if margin is not None and not margin >= 0:
            raise ConfigError(f"margin must be None or at least 0, found {margin!r}")
        self.format, self.margin = format, margin
        self.fewest, self.most = group_size(format)

    def steps(self, example: Example) -> Steps:
        """The second order waits for the first only if a margin decides whether it is needed."""
        back = replace_candidates(example, example.candidates[::-1])
        if self.margin is None:
            first, second = yield from together([steps(self.format, example), steps(self.format, back)])
        else:
            first = yield from steps(self.format, example)
            if first.scores is None or _lead(first.scores) > self.margin:
                return first
            second = yield from steps(self.format, back)
        return _agreed(first, second)


def _agreed(first: Verdict, second: Verdict) -> Verdict:
    kept = _kept(first, [first, second])
    if first.scores is None or second.scores is None:
        return kept if first.scores is None else replace(kept, scores=None, failure=second.failure)
    mirrored = second.scores[::-1]
    agreed = winners(first.scores) == winners(mirrored)
    scores = tuple((one + two) / 2 for one, two in zip(first.scores, mirrored, strict=True))
    if not agreed:
        scores = (math.fsum(scores) / len(scores),) * len(scores)
    return replace(kept, scores=scores, notes=added(kept.notes, {"swaps": 1, "swaps_agreed": int(agreed)}))


class Votes:
    """Up to `k` samples of one judgement.

    "majority" stops as soon as no further vote could change the outcome, and its outcome is the same as that of all
    `k`: for one candidate the most common score (the mean of the most common ones on a draw), for several the set of
    best candidates, scored 1 and 0. "mean" draws all and takes the mean score. Votes that failed do not count; if all
    failed, so did the judgement. Each vote is a sample of its own number, so a larger `k` reuses the first ones from
    a cache. Needs a temperature above 0 to be more than repetition.
    """

    def __init__(self, format: AnyFormat, k: int, by: str = "majority") -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ConfigError(f"k must be a whole number of at least 1, found {k!r}")
        if by not in ("majority", "mean"):
            raise ConfigError(f"votes are counted by 'majority' or 'mean', found {by!r}")
        self.format, self.k, self.by = format, k, by
        self.fewest, self.most = group_size(format)

    def steps(self, example: Example) -> Steps:
        """The fewest votes that could settle it, then as few more at a time."""
        drawn: list[Verdict] = []
        while need := (self.k - len(drawn) if self.by == "mean" else votes_needed(_ballots(drawn), self.k, len(drawn))):
            more = range(len(drawn), len(drawn) + need)
            drawn += yield from together([as_sample(steps(self.format, example), number) for number in more])
        return self._counted(drawn)

    def _counted(self, drawn: Sequence[Verdict]) -> Verdict:
        read = [verdict for verdict in drawn if verdict.scores is not None]
        kept = _kept(read[0] if read else drawn[0], drawn)
        kept = replace(kept, notes=added(kept.notes, {"votes": len(drawn), "votes_saved": self.k - len(drawn)}))
        if not read:
            return kept
        if self.by == "mean":
            columns = zip(*(verdict.scores for verdict in read if verdict.scores), strict=True)
            return replace(kept, scores=tuple(math.fsum(column) / len(read) for column in columns))
        most = leaders(_ballots(drawn))
        if len(read[0].scores or ()) == 1:
            return replace(kept, scores=(math.fsum(score for (score,) in most) / len(most),))
        count = len(read[0].scores or ())
        best = [sum(candidate in ballot for ballot in most) / len(most) for candidate in range(count)]
        return replace(kept, scores=tuple(best), scale=Scale(0.0, 1.0, decimals=True))


Ballot = tuple[float, ...]


def _ballots(drawn: Sequence[Verdict]) -> Counter[Ballot]:
    """What each readable vote says: the score of one candidate, or which of several are best."""
    found: Counter[Ballot] = Counter()
    for verdict in drawn:
        if verdict.scores is not None:
            found[verdict.scores if len(verdict.scores) == 1 else winners(verdict.scores)] += 1
    return found


def leaders(ballots: Mapping[Ballot, int]) -> list[Ballot]:
    """The most common ballots, sorted."""
    most = max(ballots.values())
    return sorted(ballot for ballot, count in ballots.items() if count == most)


def votes_needed(ballots: Mapping[Ballot, int], k: int, drawn: int) -> int:
    """The fewest further votes after which the outcome could be settled; 0 if it is settled or all are drawn.

    Settled: the leader is ahead of every other ballot, one not seen yet included, by more than the votes left.
    """
    left = k - drawn
    first, second = ([*sorted(ballots.values(), reverse=True), 0, 0])[:2]
    lead = first - second
    return 0 if lead > left else min(left, (left - lead) // 2 + 1)


def as_sample(run: Steps, number: int) -> Steps:
    """`run` with every prompt drawn as sample `number`."""
    prompts = next(run)
    while True:
        replies = yield [replace(prompt, sample=prompt.sample + number) for prompt in prompts]
        try:
            prompts = run.send(replies)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


class Forced:
    """Closes a thought that is unfinished at the token limit and asks for the answer in a short continuation.

    The judge sees its own thought again, which a prefix cache has paid for, and goes on after the closing tag. What it
    then says is read like any other reply; `forced` is counted in the notes. Needs an engine that can continue a reply.
    """

    def __init__(self, format: AnyFormat, tokens: int = 64) -> None:
        """
        Args:
            tokens: the most tokens of the continuation.
        """
        if tokens < 1:
            raise ConfigError(f"tokens must be at least 1, found {tokens!r}")
        self.format, self.tokens = format, tokens
        self.fewest, self.most = group_size(format)

    def steps(self, example: Example) -> Steps:
        """Every round of the format inside, followed by one for the thoughts that were cut in it."""
        run, forced = steps(self.format, example), 0
        prompts = next(run)
        while True:
            replies = yield prompts
            cut = [index for index, reply in enumerate(replies) if is_cut(reply)]
            if cut:
                closed = yield [self._continued(prompts[index], replies[index]) for index in cut]
                for index, reply in zip(cut, closed, strict=True):
                    replies[index] = _joined(replies[index], reply)
                forced += len(cut)
            try:
                prompts = run.send(replies)
            except StopIteration as stop:
                verdict: Verdict = stop.value
                return replace(verdict, notes=added(verdict.notes, {"forced": forced}))

    def _continued(self, prompt: Prompt, reply: Generation) -> Prompt:
        said = Message("assistant", said_so_far(reply.text + THINK_CLOSE))
        return replace(prompt, messages=(*prompt.messages, said), changes=(("max_tokens", self.tokens),))


def is_cut(reply: Generation) -> bool:
    """Whether the reply stopped at the token limit inside its reasoning."""
    return reply.finish_reason == "length" and THINK_CLOSE not in reply.text


def _joined(thought: Generation, closed: Generation) -> Generation:
    if closed.failure is not None:
        return closed
    return replace(
        closed,
        text=thought.text + THINK_CLOSE + closed.text,
        prompt_tokens=thought.prompt_tokens,
        completion_tokens=thought.completion_tokens + closed.completion_tokens,
        cached=thought.cached and closed.cached,
    )


class Tournament:
    """A group of candidates of any size, by comparing two at a time; scores in [0, 1], 0.5 is average.

    Identical candidates are one member and share its score. A comparison that failed is left out; if that leaves a
    member without any, the group has no verdict.
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
            return Verdict((0.5,) * len(example.candidates), scale=Scale(0.0, 1.0, decimals=True))
        check_budget(self.schedule, len(unique), self.budget)
        judged: list[Verdict] = []
        played: list[Comparison] = []
        met: list[Pairing] = []
        while pairs := self._round(len(unique), met, played):
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

    def _round(self, members: int, met: Sequence[Pairing], played: Sequence[Comparison]) -> list[Pairing]:
        if self.schedule != "swiss":
            return [] if met else fixed_pairs(self.schedule, members, self.budget, self.seed)
        left = (swiss_budget(members) if self.budget is None else self.budget) - len(met)
        failed = [Comparison(a, b, 0.5) for a, b in met if not any({a, b} == {p.first, p.second} for p in played)]
        return swiss_pairs(members, [*played, *failed], left, self.seed) if left > 0 else []

    def _scored(
        self, example: Example, unique: Sequence[object], played: Sequence[Comparison], judged: Sequence[Verdict]
    ) -> Verdict:
        rate = bradley_terry if self.score == "bradley-terry" else win_rates
        scores = dict(zip(unique, rate(len(unique), played), strict=True))
        kept = _kept(judged[0], judged)
        kept = replace(
            kept, scale=Scale(0.0, 1.0, decimals=True), notes=added(kept.notes, {"comparisons": len(played)})
        )
        found = [scores[candidate] for candidate in example.candidates]
        if any(score is None for score in found):
            failure = next(verdict.failure for verdict in judged if verdict.failure is not None)
            return replace(kept, scores=None, failure=failure)
        return replace(kept, scores=tuple(score for score in found if score is not None), failure=None)


class Chunked:
    """A list format over groups larger than it judges well: chunks that share one anchor candidate.

    The anchor stands in every chunk, and each chunk's scores are moved so that the anchor scores the same everywhere,
    then kept on the scale. Chunk sizes differ by one at most; the order inside a chunk is drawn by `seed`. Identical
    candidates are judged once.
    """

    fewest, most = 2, math.inf

    def __init__(self, format: AnyFormat, size: int = 4, seed: int = 0) -> None:
        if size < 2:
            raise ConfigError(f"a chunk needs at least two candidates, found size={size!r}")
        self.format, self.size, self.seed = format, size, seed

    def steps(self, example: Example) -> Steps:
        """One round: all chunks."""
        unique = list(dict.fromkeys(example.candidates))
        if len(unique) == 1:
            # A list needs two: the twin of a lone candidate stands beside it, and both have its score.
            unique = [unique[0], unique[0]]
        chunks = _chunks(len(unique), self.size, random.Random(f"{self.seed} {len(unique)}"))
        runs = [steps(self.format, replace_candidates(example, [unique[i] for i in chunk])) for chunk in chunks]
        verdicts = yield from together(runs)
        kept = _kept(verdicts[0], verdicts)
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


def whole_groups(format: AnyFormat, schedule: Schedule = "all", budget: int | None = None, size: int = 4) -> AnyFormat:
    """`format` for groups of any size: comparisons become a tournament, lists come in chunks of `size`.

    A format for one candidate, one that takes any number already, and a choice stay as they are.
    """
    fewest, most = group_size(format)
    if fewest == most == 2:
        return Tournament(format, schedule, budget)
    inner: object = format
    while hasattr(inner, "format"):
        inner = inner.format
    return Chunked(format, size) if isinstance(inner, Listwise) and most < math.inf else format


def winners(scores: Sequence[float]) -> tuple[int, ...]:
    """The candidates with the highest score."""
    return tuple(index for index, score in enumerate(scores) if score == max(scores))


def result(scores: Sequence[float]) -> float:
    """1 if the first of two is better, 0 if the second is, 0.5 for a tie."""
    first, second = scores
    return 0.5 if first == second else float(first > second)


def replace_candidates(example: Example, candidates: Sequence[Sequence[object]]) -> Example:
    """The same question with other candidates."""
    return Example(example.question, candidates, example.reference, example.rubric)  # type: ignore[arg-type]


def added(notes: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Both, equal names summed."""
    return {name: notes.get(name, 0) + more.get(name, 0) for name in (*notes, *(n for n in more if n not in notes))}


def _lead(scores: Sequence[float]) -> float:
    first, second = sorted(scores, reverse=True)[:2]
    return first - second


def _kept(base: Verdict, verdicts: Sequence[Verdict]) -> Verdict:
    """`base` with what all `verdicts` cost, and their notes summed."""
    notes: Mapping[str, float] = {}
    for verdict in verdicts:
        notes = added(notes, verdict.notes)
    told = "\n\n".join(verdict.reasoning for verdict in verdicts if verdict.reasoning)
    return replace(
        base, reasoning=told, notes=notes, generations=tuple(g for verdict in verdicts for g in verdict.generations)
    )
