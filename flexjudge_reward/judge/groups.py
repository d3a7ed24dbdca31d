"""A group of candidates, judged whatever the format: one outcome per candidate. The only place that judges groups.

Trainers, `score`, `rerank`, `annotate` and best-of-N all call `judge_groups`. A format for one candidate judges each of
them alone, all others the group. A candidate that cannot be shown, since its media cannot be used or its answer never
came, fails alone; the others are judged without it.

With `again`, as trainers call it, a reply that cannot be read does not count at once, since judges err now and then:

    a candidate alone     it is judged once more, with another seed; if that fails, too, the candidate caused it
    a group               it, or those of its comparisons or lists that failed, once more; if one fails again, every
                          candidate is judged beside its own copy, once more if that fails, and the group without those
                          that failed here: they caused it

Beside its copy, because a group format compares two or more; and each alone, because of a group without one member
each, no group can be read where two of its members break the judge. A format that cannot judge two candidates tells
nothing about one: its group fails as a whole. So does a group with one candidate left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

from flexjudge_reward.errors import MediaError
from flexjudge_reward.formats.base import Format, Wrapper, add_counters
from flexjudge_reward.formats.groups import GroupFormat
from flexjudge_reward.formats.rounds import Ask
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.rewards import Outcome, cause_of, unit_score
from flexjudge_reward.media.base import Media
from flexjudge_reward.types import Cause, Example, Failure, Unfinished, Verdict

_OTHER_SEED = 1_000_003  # farther away than the seeds of any number of votes


@dataclass(frozen=True)
class GroupResult:
    """The candidates of one example, judged."""

    outcomes: tuple[Outcome, ...]
    """Per candidate, in the example's order: its score in [0, 1], or why it has none."""
    verdicts: tuple[Verdict, ...]
    """One per candidate, or one for the group."""
    left_out: frozenset[int] = frozenset()
    """Candidates that failed alone, so that the verdict on their group has no score for them."""

    @classmethod
    def failed(cls, example: Example, failure: Failure) -> GroupResult:
        """The result of an example that was not judged."""
        return cls((failure,) * len(example.candidates), (Verdict.failed(failure),))

    def verdict_of(self, candidate: int) -> Verdict:
        """The verdict that a candidate's outcome comes from."""
        return self.verdicts[candidate] if len(self.verdicts) > 1 else self.verdicts[0]

    def raw_score(self, candidate: int) -> float | None:
        """A candidate's score as the judge gave it, on the scale of its verdict; None for one without a score."""
        if isinstance(self.outcomes[candidate], Failure):
            return None
        return (self.verdict_of(candidate).scores or ())[self._place(candidate)]

    def spread(self, candidate: int) -> float:
        """How unsure the judge is of a candidate's score in [0, 1]: a standard deviation, 0 where unknown.

        0.5, the largest that there is, where failures, as of votes, left an answer that does not tell.
        """
        verdict = self.verdict_of(candidate)
        if isinstance(self.outcomes[candidate], Failure) or not verdict.spread:
            return 0.5 * any(verdict.outcomes)
        return verdict.spread[self._place(candidate)] / (verdict.scale.high - verdict.scale.low)

    def _place(self, candidate: int) -> int:
        """Where a candidate is in the verdict on its group."""
        return candidate - sum(other < candidate for other in self.left_out) if len(self.verdicts) == 1 else 0


class OnceMore(Wrapper):
    """The inner format, and where its reply cannot be read once more with another seed: then the candidates cause it.

    Both judgements count: the verdict has the replies, outcomes and counters of both.
    """

    async def judge(self, example: Example, ask: Ask) -> Verdict:
        """The first verdict that can be read, of at most two."""
        first = await self.inner.judge(example, ask)
        if not _is_unclear(first):
            return first
        second = await self.inner.judge(example, ask.changed(seed=ask.sampling.seed + _OTHER_SEED))
        if second.failure is not None and _is_unclear(second):
            cause: Cause = "candidate" if second.failure.cause is None else "ours"  # without them (`commit.py`)
            second = second.without_scores(replace(second.failure, cause=cause))
        return after([first], second)


def judge_groups(
    judge: Judge,
    examples: Sequence[Example],
    labels: Sequence[Mapping[str, object]] | None = None,
    again: bool = False,
) -> list[GroupResult]:
    """One result per example, all judged in one batch. Takes `labels` and raises as a call of the judge.

    With `again`, what cannot be read is judged once more before it counts as a candidate's failure; see above.
    """
    labels = labels or [{}] * len(examples)
    if again:
        judge = judge.with_format(_asking_again(judge.format))
    if judge.format.max_candidates == 1:
        return _judge_each(judge, examples, labels)
    broken = [_broken(example) for example in examples]
    verdicts = _judge_left(judge, examples, labels, broken)
    suspects = [index for index, verdict in verdicts.items() if _has_caused(verdict)] if again else []
    if suspects:
        _judge_alone(judge, examples, labels, suspects, broken, verdicts)
    return [
        _group_result(
            len(example.candidates), broken[index], verdicts.get(index) or Verdict.failed(_too_few(broken[index]))
        )
        for index, example in enumerate(examples)
    ]


def _judge_left(
    judge: Judge,
    examples: Sequence[Example],
    labels: Sequence[Mapping[str, object]],
    failed: Sequence[Mapping[int, Failure]],
) -> dict[int, Verdict]:
    """The verdicts on those groups with two candidates left, or all."""
    left = [
        example.with_candidates([one for index, one in enumerate(example.candidates) if index not in failures])
        for example, failures in zip(examples, failed, strict=True)
    ]
    asked = [index for index, example in enumerate(left) if len(example.candidates) > 1 or not failed[index]]
    verdicts = judge([left[index] for index in asked], [labels[index] for index in asked]) if asked else []
    return dict(zip(asked, verdicts, strict=True))


def _judge_alone(
    judge: Judge,
    examples: Sequence[Example],
    labels: Sequence[Mapping[str, object]],
    suspects: Sequence[int],
    failed: list[dict[int, Failure]],
    verdicts: dict[int, Verdict],
) -> None:
    """Finds the candidates that make their groups fail, and judges the groups without them: changes the last two."""
    format = judge.format.inner if isinstance(judge.format, GroupFormat) else judge.format
    probes = [(i, n) for i in suspects for n in range(len(examples[i].candidates)) if n not in failed[i]]
    alone: dict[int, list[Verdict]] = {index: [] for index in suspects}
    if format is not None and format.min_candidates <= 2:
        copies = [examples[i].with_candidates([examples[i].candidates[n]] * 2) for i, n in probes]
        replies = judge.with_format(format)(copies, [{**labels[i], "candidate": n} for i, n in probes])
        for (index, candidate), verdict in zip(probes, replies, strict=True):
            alone[index].append(verdict)
            if verdict.failure is not None and _is_caused(verdict):
                failed[index][candidate] = verdict.failure
    found = [index for index in suspects if any(map(_is_caused, alone[index]))]
    whose = ([examples[i] for i in found], [labels[i] for i in found], [failed[i] for i in found])
    rest = _judge_left(judge, *whose)
    for index in suspects:
        first = verdicts[index]
        if index in found:
            last = rest.get(found.index(index)) or Verdict.failed(_too_few(failed[index]))
            last = after([first, *alone[index]], last)
        else:
            last = after(alone[index], first)
        if last.failure is not None:  # no candidate that is left is known to have caused it
            last = last.without_scores(replace(last.failure, cause="ours"))
        verdicts[index] = last


def _asking_again(format: Format) -> Format:
    """The format that asks once more: of a group format, each of its judgements for itself."""
    if not isinstance(format, GroupFormat):
        return OnceMore(format)
    asking = copy(format)
    asking.inner = OnceMore(format.inner)
    return asking


def _is_unclear(verdict: Verdict) -> bool:
    return verdict.failure is not None and cause_of(verdict.failure) == "unclear"


def _is_caused(verdict: Verdict) -> bool:
    return verdict.failure is not None and cause_of(verdict.failure) == "candidate"


def _has_caused(verdict: Verdict) -> bool:
    """Whether a group failed, or one of its comparisons."""
    return _is_caused(verdict) or any(_is_caused(one.verdict) for one in verdict.comparisons)


def after(earlier: Sequence[Verdict], last: Verdict) -> Verdict:
    """The last verdict, with what the earlier ones cost."""
    both = [*earlier, last]
    return replace(
        last,
        generations=tuple(generation for one in both for generation in one.generations),
        counters=add_counters(*(one.counters for one in both)),
        outcomes=tuple(outcome for one in both for outcome in one.outcomes),
    )


def check_fits(judge: Judge, example: Example) -> None:
    """Raises ConfigError if the judge cannot be shown the media of an example, or its format cannot judge it."""
    judge.check_media(example)
    check_format(judge.format, example)


def check_format(format: Format, example: Example) -> None:
    """Raises ConfigError if a format cannot judge an example: one by one if it judges each candidate alone."""
    alone = format.max_candidates == 1 and len(example.candidates) != 1
    for shown in [example.with_candidates([one]) for one in example.candidates] if alone else [example]:
        format.check(shown)


def _judge_each(judge: Judge, examples: Sequence[Example], labels: Sequence[Mapping[str, object]]) -> list[GroupResult]:
    alone: list[Example] = []
    marks: list[Mapping[str, object]] = []
    for example, label in zip(examples, labels, strict=True):
        if len(example.candidates) == 1:
            alone.append(example)
            marks.append(label)
            continue
        for index, candidate in enumerate(example.candidates):
            alone.append(example.with_candidates([candidate]))
            marks.append({**label, "candidate": index})
    verdicts = iter(judge(alone, marks))
    groups = [tuple(next(verdicts) for _ in example.candidates) for example in examples]
    return [GroupResult(tuple(unit_score(verdict) for verdict in group), group) for group in groups]


def _group_result(count: int, broken: Mapping[int, Failure], verdict: Verdict) -> GroupResult:
    """The outcomes of all candidates, and the verdict's comparisons by their indices."""
    kept = [index for index in range(count) if index not in broken]
    position = {candidate: place for place, candidate in enumerate(kept)}
    outcomes = tuple(broken[i] if i in broken else unit_score(verdict, position[i]) for i in range(count))
    comparisons = tuple(replace(c, first=kept[c.first], second=kept[c.second]) for c in verdict.comparisons)
    return GroupResult(outcomes, (replace(verdict, comparisons=comparisons),), frozenset(broken))


def _broken(example: Example) -> dict[int, Failure]:
    """The candidates that cannot be shown, and why."""
    broken = {}
    for index, candidate in enumerate(example.candidates):
        try:
            for part in candidate:
                if isinstance(part, Media):
                    part.check()
                elif isinstance(part, Unfinished):
                    broken[index] = part.failure
        except MediaError as error:
            broken[index] = Failure("media", str(error), "candidate")
    return broken


def _too_few(failed: Mapping[int, Failure]) -> Failure:
    """Why a group with fewer than two candidates left is not judged."""
    reasons = "; ".join(f"candidate {index}: {failure.detail}" for index, failure in failed.items())
    kind = next(iter(failed.values())).kind
    return Failure(kind, f"fewer than two candidates of the group can be used ({reasons})", "ours")
