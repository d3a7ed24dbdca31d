"""Checklist: criteria that an answer must, should or must not meet, each answered yes or no; their weighted share.

The score is in [0, 1]: the weights of the met criteria, less those of the met "must not" ones, as a share of the
weights of all others, at least 0; and 0 where a "must" is not met. So HealthBench's negative points are a "must not",
and the explicit aggregation of Rubrics as Rewards is a checklist of "should". Their implicit aggregation, one overall
score from all criteria, is the same rubric with format="pointwise".

The judge sees the criteria after the candidate, without their weights and needs; one call answers all, or `per_call`
of them, and the calls on one candidate share everything before. A criterion with a check is not shown to it: the
check's no is a no, and what it raises is a `check` failure. Where a check says no to a "must", no judge is asked.
A rubric in words is one criterion.

Counters: `criteria_NAME` and `met_NAME`, by the need of a criterion and by its name, count answers and yeses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.base import UNIT, add_counters
from flexjudge_reward.formats.onecall import OneCall
from flexjudge_reward.formats.reply import read_reply, reasoning
from flexjudge_reward.formats.rounds import Ask
from flexjudge_reward.rubric import Criterion, Rubric, Scale
from flexjudge_reward.types import CriterionAnswer, Example, Failure, Generation, OwnAnswer, Prompt, Verdict

_OPTIONS = {"yes": True, "no": False}
Answers = dict[int, bool]  # by the number of the criterion, from 0


class Checklist(OneCall):
    """One candidate, a yes or no per criterion."""

    name, min_candidates, max_candidates, answers = "checklist", 1, 1, "option"

    def __init__(
        self,
        rubric: Rubric | str | Path = "helpfulness",
        prompt_set: str | Path = "flex",
        per_call: int | None = None,
    ) -> None:
        """
        Args:
            rubric: criteria, or the name or file of some. An example's own rubric overrides it.
            per_call: how many criteria one judge call answers, at least 1; None for all.
        """
        super().__init__(rubric, prompt_set)
        if per_call is not None and per_call < 1:
            raise ConfigError(f"per_call must be None or at least 1, found {per_call!r}")
        self.per_call = per_call

    def scale(self, example: Example) -> Scale:
        """0 to 1."""
        return UNIT

    def render(self, example: Example) -> list[Prompt]:
        """One prompt per call; none where checks decide everything."""
        return self._prompts(example, _checked(self._items(example), example))

    def read(self, example: Example, generations: Sequence[Generation]) -> Verdict:
        """The verdict of the replies and of the checks."""
        return self._verdict(example, _checked(self._items(example), example), generations)

    async def judge(self, example: Example, ask: Ask) -> Verdict:
        """One round."""
        checked = _checked(self._items(example), example)  # once: a check may be slow
        prompts = self._prompts(example, checked)
        return self._verdict(example, checked, await ask(prompts) if prompts else [])

    def _items(self, example: Example) -> tuple[Criterion, ...]:
        rubric = example.rubric or self.rubric
        return rubric.items or (Criterion(rubric.criteria, 1.0),)

    def _calls(self, example: Example, checked: Answers | Failure) -> list[list[int]]:
        """The numbers of the criteria that each judge call answers."""
        items = self._items(example)
        if isinstance(checked, Failure) or any(not met and items[n].need == "must" for n, met in checked.items()):
            return []
        left = [number for number in range(len(items)) if number not in checked]
        size = self.per_call or len(items)
        return [left[start : start + size] for start in range(0, len(left), size)]

    def _prompts(self, example: Example, checked: Answers | Failure) -> list[Prompt]:
        items = self._items(example)
        calls = self._calls(example, checked)
        listed = ["\n".join(f"{place}. {items[n].text}" for place, n in enumerate(call, 1)) for call in calls]
        return [self._prompt(example, text, len(call)) for text, call in zip(listed, calls, strict=True)]

    def _verdict(self, example: Example, checked: Answers | Failure, generations: Sequence[Generation]) -> Verdict:
        thoughts = "\n\n".join(reasoning(generation.text) for generation in generations)
        items, found = self._items(example), checked
        for call, generation in zip(self._calls(example, checked), generations, strict=True):
            read = _read(call, generation)
            found = {**found, **read} if isinstance(found, dict) and isinstance(read, dict) else _failure(found, read)
        if isinstance(found, Failure):
            return Verdict(None, found, UNIT, thoughts, tuple(generations))
        answers = tuple(CriterionAnswer(items[number], met) for number, met in sorted(found.items()))
        counters = add_counters(*map(_counted, answers))
        score = _score(items, found)
        return Verdict((score,), None, UNIT, thoughts, tuple(generations), counters, answers=answers)


def _checked(items: Sequence[Criterion], example: Example) -> Answers | Failure:
    """The answers of the criteria with a check, of the example as it was given."""
    found: Answers = {}
    if any(isinstance(part, OwnAnswer) for part in example.reference or ()):
        example = Example(example.question, example.candidates, rubric=example.rubric)
    for number, item in enumerate(items):
        if not callable(item.check):
            continue
        try:
            said = item.check(example)
            answer = {True: True, False: False}.get(said)  # type: ignore[call-overload]
        except Exception as error:  # the user's own code: its row fails, not the batch
            return Failure("check", f"criterion {number + 1}: its check raised {type(error).__name__}: {error}")
        if answer is None:
            return Failure("check", f"criterion {number + 1}: its check must return True or False, found {said!r:.80}")
        found[number] = answer
    return found


def _read(call: Sequence[int], generation: Generation) -> Answers | Failure:
    """What one reply says of the criteria with these numbers."""
    answers = read_reply(generation)
    if isinstance(answers, Failure):
        return answers
    if len(answers) != len(call):
        return Failure("wrong_count", f"expected {len(call)} answers, one per criterion, found {len(answers)}")
    for number, answer in zip(call, answers, strict=True):
        if answer.lower() not in _OPTIONS:
            return Failure("out_of_range", f"criterion {number + 1}: expected yes or no, found {answer!r}")
    return {number: _OPTIONS[answer.lower()] for number, answer in zip(call, answers, strict=True)}


def _failure(*found: Answers | Failure) -> Failure:
    return next(one for one in found if isinstance(one, Failure))


def _score(items: Sequence[Criterion], found: Mapping[int, bool]) -> float:
    if any(not met and items[number].need == "must" for number, met in found.items()):
        return 0.0
    signs = [-1 if item.need == "must not" else 1 for item in items]
    most = sum(item.weight for item, sign in zip(items, signs, strict=True) if sign > 0)
    gained = sum(signs[number] * items[number].weight for number, met in found.items() if met)
    return min(max(0.0, gained / most), 1.0)


def _counted(answer: CriterionAnswer) -> dict[str, float]:
    counted: dict[str, float] = {}
    names = (answer.criterion.need.replace(" ", "_"), answer.criterion.name)
    for name in filter(None, names):
        counted |= {f"criteria_{name}": 1.0, f"met_{name}": float(answer.met)}
    return counted
