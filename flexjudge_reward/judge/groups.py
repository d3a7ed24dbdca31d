"""The candidates of a question, judged whatever the format: one outcome per candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flexjudge_reward.errors import MediaError
from flexjudge_reward.formats.builtin import group_size
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.rewards import Outcome, outcome
from flexjudge_reward.media.base import Media
from flexjudge_reward.types import Example, Failure, Verdict


def judge_groups(examples: Sequence[Example], judge: Judge) -> list[tuple[tuple[Outcome, ...], tuple[Verdict, ...]]]:
    """Per example the outcome of every candidate, and the verdicts behind them, whatever the format.

    A format for one candidate judges each of them alone, all others the group. A candidate whose media cannot be used
    fails alone; its siblings are judged without it.
    """
    if group_size(judge.format)[1] == 1:
        return _judge_each(examples, judge)
    broken = [_broken(example) for example in examples]
    whole = [_without(example, bad) for example, bad in zip(examples, broken, strict=True)]
    found = iter(judge([example for example in whole if example is not None]) if any(whole) else ())
    results: list[tuple[tuple[Outcome, ...], tuple[Verdict, ...]]] = []
    for example, rest, bad in zip(examples, whole, broken, strict=True):
        if rest is None:
            lonely = Failure("media", "fewer than two candidates of the group can be used")
            verdict = Verdict.failed(lonely)
        else:
            verdict = next(found)
        places = iter(range(len(example.candidates)))
        outcomes = tuple(bad[i] if i in bad else outcome(verdict, next(places)) for i in range(len(example.candidates)))
        results.append((outcomes, (verdict,)))
    return results


def _judge_each(examples: Sequence[Example], judge: Judge) -> list[tuple[tuple[Outcome, ...], tuple[Verdict, ...]]]:
    alone = [
        Example(example.question, [candidate], example.reference, example.rubric)
        for example in examples
        for candidate in example.candidates
    ]
    found = iter(judge(alone))
    groups = [tuple(next(found) for _ in example.candidates) for example in examples]
    return [(tuple(outcome(verdict) for verdict in group), group) for group in groups]


def _broken(example: Example) -> dict[int, Failure]:
    """The candidates whose media cannot be used, and why."""
    found = {}
    for index, candidate in enumerate(example.candidates):
        try:
            for part in candidate:
                if isinstance(part, Media):
                    part.load()
        except MediaError as error:
            found[index] = Failure("media", str(error))
    return found


def _without(example: Example, broken: Mapping[int, Failure]) -> Example | None:
    """The example without its broken candidates; None if fewer than two are left."""
    left = [candidate for index, candidate in enumerate(example.candidates) if index not in broken]
    if not broken:
        return example
    return Example(example.question, left, example.reference, example.rubric) if len(left) > 1 else None
