"""How to ask a judge, and how to read what it answers: Score, Pair, Listwise, Choice and Relation.

The two halves of one agreement stand together: the instruction (a file in `prompts/`) and the grammar of the answer.
All formats end in a `Verdict` with one number per candidate, so nothing after this file asks which one ran:

    format    candidates  answer                              scores
    Score     1           <answer>7</answer>                  on the rubric's scale
    Pair      2           one tag per candidate, in order     on the rubric's scale
    Listwise  2 to 8      one tag per candidate, in order     on the rubric's scale
    Choice    2 to 8      <answer>B</answer>                  1 for the chosen, 0 for the others (MR. Judge)
    Relation  2           <answer>[[A>B]]</answer> and so on  1 or 0 each (the four options of GenAI-Bench)

Shared parts come first (system text, question with its media), so that a group's prompts share a prefix. Formats hold
no model and no engine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.reply import Reply, read_reply, reasoning_of
from flexjudge_reward.prompts.quoting import fence
from flexjudge_reward.prompts.template import Template, fill
from flexjudge_reward.rubric import Rubric, Scale
from flexjudge_reward.types import (
    AnyFormat,
    Example,
    Failure,
    Generation,
    Message,
    Part,
    Prompt,
    Rounds,
    Steps,
    Verdict,
)

LETTERS = "ABCDEFGH"
_NUMBER = re.compile(r"-?[0-9]{1,6}(\.[0-9]{1,6})?")
_RELATIONS = {
    "[[A>B]]": (1.0, 0.0),
    "[[B>A]]": (0.0, 1.0),
    "[[A=B=Good]]": (1.0, 1.0),
    "[[A=B=Bad]]": (0.0, 0.0),
}


def steps(format: AnyFormat, example: Example) -> Steps:
    """The judgement of `example` in rounds: the format's own `steps`, or its `render` and `read` as the only round."""
    if isinstance(format, Rounds):
        return (yield from format.steps(example))
    replies = yield format.render(example)
    return format.read(example, replies)


def group_size(format: AnyFormat) -> tuple[float, float]:
    """The fewest and the most candidates a format judges at a time; 1 and infinity where it does not say."""
    return getattr(format, "fewest", 1), getattr(format, "most", math.inf)


def innermost(format: AnyFormat) -> AnyFormat:
    """The plain format inside all wrappers."""
    while hasattr(format, "format"):
        format = format.format
    return format


def together(runs: Sequence[Steps]) -> Generator[list[Prompt], list[Generation], list[Verdict]]:
    """All `runs` side by side: yields the prompts of a round of all that still ask; returns the verdicts, in order."""
    verdicts: dict[int, Verdict] = {}
    asked: dict[int, list[Prompt]] = {}

    def advance(index: int, replies: list[Generation] | None) -> None:
        try:
            asked[index] = runs[index].send(replies) if replies is not None else next(runs[index])
        except StopIteration as stop:
            asked.pop(index, None)
            verdicts[index] = stop.value

    for index in range(len(runs)):
        advance(index, None)
    while asked:
        replies = iter((yield [prompt for prompts in asked.values() for prompt in prompts]))
        for index, prompts in list(asked.items()):
            advance(index, [next(replies) for _ in prompts])
    return [verdicts[index] for index in range(len(runs))]


class _OneCall:
    """What the formats share: one prompt and one reply per example."""

    name: str
    fewest: int
    most: int

    def __init__(self, rubric: Rubric | str | Path = "helpfulness", prompts: str | Path = "flex") -> None:
        """
        Args:
            rubric: criteria and scale, or the name or file of one. An example's own rubric goes before it.
            prompts: a wording (`flex`, `nano`), or a folder or file of your own; see `prompts/__init__.py`.
        """
        self.rubric = rubric if isinstance(rubric, Rubric) else Rubric.load(rubric)
        self.template = Template.load(prompts, self.name)

    def scale(self, example: Example) -> Scale:
        """The scale of the scores of this example's verdict."""
        return (example.rubric or self.rubric).scale

    def render(self, example: Example) -> list[Prompt]:
        """One prompt. Raises ConfigError if the number of candidates does not fit."""
        count = len(example.candidates)
        if not self.fewest <= count <= self.most:
            wanted = f"{self.fewest}" if self.fewest == self.most else f"{self.fewest} to {self.most}"
            raise ConfigError(f"{type(self).__name__} judges {wanted} candidates at a time, this example has {count}")
        values = self._values(example)
        user = list(fill(self.template.question, {"question": fence(example.question)}))
        if example.reference is not None:
            user += fill(self.template.reference, {"reference": fence(example.reference)})
        for index, candidate in enumerate(example.candidates):
            place: dict[str, str | tuple[Part, ...]] = {
                "number": str(index + 1),
                "letter": LETTERS[index % len(LETTERS)],
                "candidate": fence(candidate),
            }
            user += fill(self.template.candidate, place)
        user += fill(self.template.closing, values)
        system = Message("system", fill(self.template.system, values))
        return [Prompt((system, Message("user", tuple(user))))]

    def read(self, example: Example, generations: Sequence[Generation]) -> Verdict:
        """The verdict of the one reply."""
        (generation,) = generations
        reply = read_reply(generation)
        scores = reply if isinstance(reply, Failure) else self._scores(example, reply)
        thought = reasoning_of(generation.text)
        if isinstance(scores, Failure):
            return replace(Verdict.failed(scores, generations, thought), scale=self.scale(example))
        return Verdict(scores, scale=self.scale(example), reasoning=thought, generations=tuple(generations))

    def _values(self, example: Example) -> dict[str, str | tuple[Part, ...]]:
        rubric, count = example.rubric or self.rubric, len(example.candidates)
        return {
            "low": f"{rubric.scale.low:g}",
            "high": f"{rubric.scale.high:g}",
            "criteria": rubric.criteria,
            "count": str(count),
            "letters": ", ".join(LETTERS[:count]),
        }

    def _scores(self, example: Example, reply: Reply) -> tuple[float, ...] | Failure:
        """One number on the scale per answer tag."""
        wanted, scale = len(example.candidates), self.scale(example)
        if len(reply.answers) != wanted:
            return Failure("wrong_count", f"expected {wanted} scores, one per candidate, found {len(reply.answers)}")
        scores = [_number(answer, scale) for answer in reply.answers]
        failed = next((score for score in scores if isinstance(score, Failure)), None)
        return failed or tuple(score for score in scores if isinstance(score, float))


class Score(_OneCall):
    """One candidate, one score: the format for trainers that see one completion at a time."""

    name, fewest, most = "score", 1, 1


class Pair(_OneCall):
    """Two candidates, a score each; equal scores are a tie."""

    name, fewest, most = "pair", 2, 2


class Listwise(_OneCall):
    """A group of candidates in one call, a score each."""

    name, fewest, most = "listwise", 2, len(LETTERS)


class _OneOption(_OneCall):
    """One tag that names an option; scores are 1 and 0."""

    def scale(self, example: Example) -> Scale:
        """Always 0 to 1: an option says which, not how good."""
        return Scale(0.0, 1.0)


class Choice(_OneOption):
    """The best of two to eight, by its letter (MR. Judge)."""

    name, fewest, most = "choice", 2, len(LETTERS)

    def _scores(self, example: Example, reply: Reply) -> tuple[float, ...] | Failure:
        answer, count = _only(reply), len(example.candidates)
        if isinstance(answer, Failure):
            return answer
        if len(answer) != 1 or not ("A" <= answer <= "Z"):
            return Failure("malformed", f"expected one of {', '.join(LETTERS[:count])}, found {answer!r}")
        if answer not in LETTERS[:count]:
            return Failure("out_of_range", f"expected one of {', '.join(LETTERS[:count])}, found {answer!r}")
        return tuple(float(letter == answer) for letter in LETTERS[:count])


class Relation(_OneOption):
    """Two candidates, four options: A better, B better, both good, both bad (GenAI-Bench)."""

    name, fewest, most = "relation", 2, 2

    def _scores(self, example: Example, reply: Reply) -> tuple[float, ...] | Failure:
        answer = _only(reply)
        if isinstance(answer, Failure):
            return answer
        known = ", ".join(_RELATIONS)
        return _RELATIONS.get(answer) or Failure("malformed", f"expected one of {known}, found {answer!r}")


def _only(reply: Reply) -> str | Failure:
    if len(reply.answers) != 1:
        return Failure("wrong_count", f"expected one answer, found {len(reply.answers)}")
    return reply.answers[0]


def _number(answer: str, scale: Scale) -> float | Failure:
    match = _NUMBER.fullmatch(answer)
    if match is None or (match.group(1) and not scale.decimals):
        wanted = "a number" if scale.decimals else "a whole number"
        return Failure("malformed", f"expected {wanted} of plain digits, found {answer!r}")
    score = float(answer)
    if not scale.low <= score <= scale.high:
        return Failure("out_of_range", f"expected {scale.low:g} to {scale.high:g}, found {answer}")
    return score
