"""The built-in formats: Pointwise, Pairwise, Listwise, MultipleChoice, PairwiseVerdict and Checklist.

All formats end in a `Verdict` with one number per candidate, so no later code asks which one ran:

    format            candidates  answer                              scores
    Pointwise         1           <answer>7</answer>                  on the rubric's scale
    Pairwise          2           one tag per candidate, in order     on the rubric's scale
    Listwise          2 to 8      one tag per candidate, in order     on the rubric's scale
    MultipleChoice    2 to 8      <answer>B</answer>                  1 for the chosen, 0 for the others (MR. Judge)
    PairwiseVerdict   2           <answer>[[A>B]]</answer> and so on  1 or 0 each (the four options of GenAI-Bench)
    Checklist         1           <answer>yes</answer> per criterion  weighted share of the criteria (`checklist.py`)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from flexjudge_reward.formats.checklist import Checklist
from flexjudge_reward.formats.onecall import LETTERS, OneCall
from flexjudge_reward.types import Example, Failure, FailureKind

_BRACKETED = re.compile(r"^\(([A-H])\)$")  # (C) is the letter C
_OPTIONS = {
    "[[A>B]]": (1.0, 0.0),
    "[[B>A]]": (0.0, 1.0),
    "[[A=B=Good]]": (1.0, 1.0),
    "[[A=B=Bad]]": (0.0, 0.0),
}


class Pointwise(OneCall):
    """One candidate, one score: the format for trainers that see one completion at a time."""

    name, min_candidates, max_candidates = "pointwise", 1, 1


class Pairwise(OneCall):
    """Two candidates, a score each; equal scores are a tie."""

    name, min_candidates, max_candidates = "pairwise", 2, 2


class Listwise(OneCall):
    """A group of candidates in one call, a score each."""

    name, min_candidates, max_candidates = "listwise", 2, len(LETTERS)


class MultipleChoice(OneCall):
    """The best of two to eight, by its letter (MR. Judge)."""

    name, min_candidates, max_candidates, answers = "multiple_choice", 2, len(LETTERS), "letter"

    def _scores(self, example: Example, answers: Sequence[str]) -> tuple[float, ...] | Failure:
        letters = LETTERS[: len(example.candidates)]
        return _option({letter: tuple(float(other == letter) for other in letters) for letter in letters}, answers)


class PairwiseVerdict(OneCall):
    """Two candidates, four options: A better, B better, both good, both bad (GenAI-Bench)."""

    name, min_candidates, max_candidates, answers = "pairwise_verdict", 2, 2, "option"

    def _scores(self, example: Example, answers: Sequence[str]) -> tuple[float, ...] | Failure:
        return _option(_OPTIONS, answers)


def _option(options: Mapping[str, tuple[float, ...]], answers: Sequence[str]) -> tuple[float, ...] | Failure:
    """The scores that the only answer stands for."""
    if len(answers) != 1:
        return Failure("wrong_count", f"expected one answer, found {len(answers)}")
    answer = _BRACKETED.sub(r"\1", answers[0])
    kind: FailureKind = "out_of_range" if "A" in options and re.fullmatch("[A-Z]", answer) else "malformed"
    return options.get(answer) or Failure(kind, f"expected one of {', '.join(options)}, found {answer!r}")


FORMATS: dict[str, type[OneCall]] = {
    format.name: format for format in (Pointwise, Pairwise, Listwise, MultipleChoice, PairwiseVerdict, Checklist)
}
"""The built-in formats by the names that settings use."""
