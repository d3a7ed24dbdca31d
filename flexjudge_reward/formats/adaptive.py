"""Formats around formats: both orders, votes, thoughts that are cut short. Groups of any size are in `grouping.py`.

A plain format asks once. These look at the replies before they ask more, so instead of `render` and `read` they have
one method, `steps(example)`: a generator that yields the prompts of a round, gets their replies, and returns the
verdict. They nest: `Swapped(Votes(Forced(Pair()), 3))`.

A round of a whole batch is one call to the engine (`formats.together`). What a wrapper did is counted in
`Verdict.notes`:

    votes, votes_saved          samples drawn, and not drawn because the outcome was settled
    swaps, swaps_agreed         pairs judged in both orders, and those with the same winner
    thoughts, forced            thoughts that could have been cut, and those that were closed for the judge
    comparisons                 pairs that were judged (`grouping.py`)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.builtin import group_size, steps, together
from flexjudge_reward.formats.reply import THINK_CLOSE, THINK_OPEN, said_so_far
from flexjudge_reward.rubric import Scale
from flexjudge_reward.types import AnyFormat, Example, Generation, Message, Prompt, Steps, TokenLogprob, Verdict


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
        if self.most < 2:
            raise ConfigError(
                "only formats for two or more candidates can be swapped: pair, listwise, choice, relation"
            )

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
    kept = merged(first, [first, second])
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
    best candidates, scored 1 and 0 (nobody's is 1 where both were called bad). "mean" draws all and takes the mean
    score. Votes that failed do not count; if all failed, so did the judgement. Each vote is a sample of its own number,
    so a larger `k` reuses the first ones from a cache. Needs a temperature above 0 to be more than repetition.
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
        kept = merged(read[0] if read else drawn[0], drawn)
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
            found[verdict.scores if len(verdict.scores) == 1 else _best(verdict)] += 1
    return found


def _best(verdict: Verdict) -> Ballot:
    """The best candidates; nobody where options were asked for and none was taken (`Relation`: both are bad)."""
    scores = verdict.scores or ()
    return () if verdict.scale == Scale(0.0, 1.0) and not any(scores) else winners(scores)


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
    try:
        prompts = next(run)
        while True:
            replies = yield [replace(prompt, sample=prompt.sample + number) for prompt in prompts]
            prompts = run.send(replies)
    except StopIteration as stop:  # maybe at once: a group of equals asks nobody
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
        run, notes = steps(self.format, example), {"forced": 0.0, "thoughts": 0.0}
        try:
            prompts = next(run)
            while True:
                replies = yield prompts
                # What goes on from the judge's own words is short on purpose, and no thought.
                thoughts = [i for i, prompt in enumerate(prompts) if prompt.messages[-1].role != "assistant"]
                cut = [index for index in thoughts if is_cut(replies[index])]
                if cut:
                    closed = yield [self._continued(prompts[index], replies[index]) for index in cut]
                    for index, reply in zip(cut, closed, strict=True):
                        replies[index] = _joined(replies[index], reply)
                notes = added(notes, {"forced": len(cut), "thoughts": len(thoughts)})
                prompts = run.send(replies)
        except StopIteration as stop:  # maybe at once: a group of equals asks nobody
            verdict: Verdict = stop.value
            return replace(verdict, notes=added(verdict.notes, notes))

    def _continued(self, prompt: Prompt, reply: Generation) -> Prompt:
        said = Message("assistant", said_so_far(reply.text + THINK_CLOSE))
        changes = (*prompt.changes, ("max_tokens", self.tokens))
        return replace(prompt, messages=(*prompt.messages, said), changes=changes)


def is_cut(reply: Generation) -> bool:
    """Whether the reply stopped at the token limit inside its reasoning."""
    return reply.finish_reason == "length" and THINK_CLOSE not in reply.text


def _joined(thought: Generation, closed: Generation) -> Generation:
    if closed.failure is not None:
        return closed
    said = closed.text
    if said.startswith(THINK_OPEN) and said.endswith(THINK_CLOSE):
        # A server that splits off reasoning took all of it for that, because the closing tag was in the prompt.
        said = said.removeprefix(THINK_OPEN).removesuffix(THINK_CLOSE)
    return replace(
        closed,
        text=thought.text + THINK_CLOSE + said,
        prompt_tokens=thought.prompt_tokens,
        completion_tokens=thought.completion_tokens + closed.completion_tokens,
        # The closing tag was nobody's choice, so it is certain.
        logprobs=closed.logprobs and (*(thought.logprobs or ()), TokenLogprob(THINK_CLOSE, 0.0), *closed.logprobs),
        cached=thought.cached and closed.cached,
    )


def winners(scores: Sequence[float]) -> tuple[int, ...]:
    """The candidates with the highest score."""
    return tuple(index for index, score in enumerate(scores) if score == max(scores))


def replace_candidates(example: Example, candidates: Sequence[Sequence[object]]) -> Example:
    """The same question with other candidates."""
    return Example(example.question, candidates, example.reference, example.rubric)  # type: ignore[arg-type]


def added(notes: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Both, equal names summed."""
    return {name: notes.get(name, 0) + more.get(name, 0) for name in (*notes, *(n for n in more if n not in notes))}


def _lead(scores: Sequence[float]) -> float:
    first, second = sorted(scores, reverse=True)[:2]
    return first - second


def merged(base: Verdict, verdicts: Sequence[Verdict]) -> Verdict:
    """`base` with what all `verdicts` cost and came to, and their notes summed."""
    notes: Mapping[str, float] = {}
    for verdict in verdicts:
        notes = added(notes, verdict.notes)
    told = "\n\n".join(verdict.reasoning for verdict in verdicts if verdict.reasoning)
    return replace(
        base,
        reasoning=told,
        notes=notes,
        generations=tuple(g for verdict in verdicts for g in verdict.generations),
        parts=tuple(part for verdict in verdicts for part in verdict.judgements),
    )
