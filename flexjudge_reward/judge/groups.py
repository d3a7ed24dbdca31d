"""A group of candidates, judged whatever the format: one outcome per candidate. The only place that judges groups.

Trainers, `score`, `rerank`, `annotate` and best-of-N all call `judge_groups`. A format for one candidate judges each of
them alone, all others the group. A candidate whose media cannot be used fails alone; the others are judged without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flexjudge_reward.errors import MediaError
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.rewards import Outcome, unit_score
from flexjudge_reward.media.base import Media
from flexjudge_reward.types import Example, Failure, Verdict


@dataclass(frozen=True)
class GroupResult:
    """The candidates of one example, judged."""

    outcomes: tuple[Outcome, ...]
    """Per candidate, in the example's order: its score in [0, 1], or why it has none."""
    verdicts: tuple[Verdict, ...]
    """One per candidate, or one for the group."""

    def verdict_of(self, candidate: int) -> Verdict:
        """The verdict that a candidate's outcome comes from."""
        return self.verdicts[candidate] if len(self.verdicts) > 1 else self.verdicts[0]

    def raw_score(self, candidate: int) -> float | None:
        """A candidate's score as the judge gave it, on the scale of its verdict; None for one without a score."""
        if isinstance(self.outcomes[candidate], Failure):
            return None
        # A group's verdict has no scores for candidates whose media cannot be used; one on a lone candidate has one.
        earlier = self.outcomes[:candidate] if len(self.verdicts) == 1 else ()
        usable = [outcome for outcome in earlier if not (isinstance(outcome, Failure) and outcome.kind == "media")]
        return (self.verdict_of(candidate).scores or ())[len(usable)]


def judge_groups(
    judge: Judge, examples: Sequence[Example], labels: Sequence[Mapping[str, object]] | None = None
) -> list[GroupResult]:
    """One result per example, all judged in one batch. Takes `labels` and raises as a call of the judge."""
    labels = labels or [{}] * len(examples)
    if judge.format.max_candidates == 1:
        return _judge_each(judge, examples, labels)
    broken = [_broken(example) for example in examples]
    usable = [
        example.with_candidates([one for index, one in enumerate(example.candidates) if index not in failures])
        for example, failures in zip(examples, broken, strict=True)
    ]
    asked = [index for index, example in enumerate(usable) if len(example.candidates) > 1 or not broken[index]]
    verdicts = judge([usable[index] for index in asked], [labels[index] for index in asked]) if asked else []
    judged = dict(zip(asked, verdicts, strict=True))
    return [
        _group_result(len(example.candidates), broken[index], judged.get(index) or _left_alone(broken[index]))
        for index, example in enumerate(examples)
    ]


def _judge_each(judge: Judge, examples: Sequence[Example], labels: Sequence[Mapping[str, object]]) -> list[GroupResult]:
    alone: list[Example] = []
    marks: list[Mapping[str, object]] = []
    for example, label in zip(examples, labels, strict=True):
        for index, candidate in enumerate(example.candidates):
            alone.append(example.with_candidates([candidate]))
            marks.append({**label, "candidate": index} if len(example.candidates) > 1 else label)
    verdicts = iter(judge(alone, marks))
    groups = [tuple(next(verdicts) for _ in example.candidates) for example in examples]
    return [GroupResult(tuple(unit_score(verdict) for verdict in group), group) for group in groups]


def _group_result(count: int, broken: Mapping[int, Failure], verdict: Verdict) -> GroupResult:
    """The outcomes of all candidates, and the verdict's comparisons by their indices."""
    kept = [index for index in range(count) if index not in broken]
    position = {candidate: place for place, candidate in enumerate(kept)}
    outcomes = tuple(broken[i] if i in broken else unit_score(verdict, position[i]) for i in range(count))
    comparisons = tuple(replace(c, first=kept[c.first], second=kept[c.second]) for c in verdict.comparisons)
    return GroupResult(outcomes, (replace(verdict, comparisons=comparisons),))


def _broken(example: Example) -> dict[int, Failure]:
    """The candidates whose media cannot be used, and why."""
    broken = {}
    for index, candidate in enumerate(example.candidates):
        try:
            for part in candidate:
                if isinstance(part, Media):
                    part.load()
        except MediaError as error:
            broken[index] = Failure("media", str(error))
    return broken


def _left_alone(broken: Mapping[int, Failure]) -> Verdict:
    """The verdict on a group with fewer than two usable candidates."""
    reasons = "; ".join(f"candidate {index}: {failure.detail}" for index, failure in broken.items())
    return Verdict.failed(Failure("media", f"fewer than two candidates of the group can be used ({reasons})"))
