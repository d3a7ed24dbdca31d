"""OneCall: a format with one prompt and one reply per example, in answer tags. The base of the built-in formats.

The two halves of one agreement are in one class: the instruction (a file of a prompt set) and the grammar of the
answer. Shared parts come first (system text, question with its media), so that a group's prompts share a prefix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.base import Format
from flexjudge_reward.formats.reply import read_reply, reasoning
from flexjudge_reward.media.base import KINDS, Media
from flexjudge_reward.prompts.quoting import fence
from flexjudge_reward.prompts.template import Template, append, fill
from flexjudge_reward.rubric import Rubric, Scale
from flexjudge_reward.types import Example, Failure, Generation, Message, Part, Prompt, Untrusted, Verdict

LETTERS = "ABCDEFGH"
_NUMBER = re.compile(r"-?[0-9]{1,6}(?:\.[0-9]{1,6})?")


class Labels:
    """Names the images and videos of a prompt by their order, since a server may show them all before the text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.counts: dict[str, int] = {}

    def of(self, owner: str) -> Callable[[Media], str]:
        """Names the media of one part of the prompt."""

        def label(media: Media) -> str:
            if not (self.text and KINDS[media.kind].channel):
                return ""
            self.counts[media.kind] = self.counts.get(media.kind, 0) + 1
            values = {"kind": media.kind, "index": str(self.counts[media.kind]), "owner": owner}
            return "".join(map(str, fill(self.text, values)))

        return label


@dataclass(frozen=True)
class _Place(Untrusted):
    """Where in the user's message a content goes, by its index."""

    index: int


class OneCall(Format):
    """One prompt and one reply per example."""

    def __init__(self, rubric: Rubric | str | Path = "helpfulness", prompt_set: str | Path = "flex") -> None:
        """
        Args:
            rubric: criteria and scale, or the name or file of one. An example's own rubric overrides it.
            prompt_set: `flex`, `nano`, or a folder or file of your own; see `prompts/template.py`.
        """
        self.rubric = rubric if isinstance(rubric, Rubric) else Rubric.load(rubric)
        self.template = Template.load(prompt_set, self.name)

    def scale(self, example: Example) -> Scale:
        """The scale of the scores of this example's verdict: 0 to 1 where the judge does not answer with numbers."""
        return self._rubric_scale(example) if self.answers == "numbers" else Scale(0.0, 1.0)

    def render(self, example: Example) -> list[Prompt]:
        """One prompt. Raises ConfigError for a rubric with checks, which only a checklist runs."""
        rubric = example.rubric or self.rubric
        if any(item.check for item in rubric.items):
            raise ConfigError(f"the rubric has a criterion with a check: format='checklist' runs it, {self.name!r} not")
        return [self._prompt(example, rubric.criteria, len(example.candidates))]

    def _prompt(self, example: Example, criteria: str, asked: int) -> Prompt:
        """The prompt with these criteria; `asked` is what {count} says."""
        scale, count, reference = self._rubric_scale(example), len(example.candidates), example.reference
        # An example's own rubric is data, such as a row's.
        own: str | Untrusted = Untrusted(criteria) if example.rubric else criteria
        system, layout, owners = _frame(self.template, scale, own, count, asked, reference is not None)
        contents = (example.question, *(() if reference is None else (reference,)), *example.candidates)
        label = Labels(self.template.media)
        fenced = [fence(content, label.of(owner)) for content, owner in zip(contents, owners, strict=True)]
        user: list[Part] = []
        for piece in layout:
            append(user, fenced[piece.index] if isinstance(piece, _Place) else (piece,))
        return Prompt((system, Message("user", tuple(user))))

    def read(self, example: Example, generations: Sequence[Generation]) -> Verdict:
        """The verdict of the one reply."""
        (generation,) = generations
        answers = read_reply(generation)
        found = answers if isinstance(answers, Failure) else self._scores(example, answers)
        scores, failure = (None, found) if isinstance(found, Failure) else (found, None)
        return Verdict(scores, failure, self.scale(example), reasoning(generation.text), (generation,))

    def _rubric_scale(self, example: Example) -> Scale:
        own = example.rubric.scale if example.rubric else None
        return own or self.rubric.scale or Scale()

    def _scores(self, example: Example, answers: Sequence[str]) -> tuple[float, ...] | Failure:
        """One number on the scale per answer tag."""
        expected, scale = len(example.candidates), self.scale(example)
        if len(answers) != expected:
            return Failure("wrong_count", f"expected {expected} scores, one per candidate, found {len(answers)}")
        scores: list[float] = []
        for answer in answers:
            score = _number(answer, scale)
            if isinstance(score, Failure):
                return score
            scores.append(score)
        return tuple(scores)


@lru_cache(maxsize=256)
def _frame(
    template: Template, scale: Scale, criteria: str | Untrusted, count: int, asked: int, referred: bool
) -> tuple[Message, tuple[Part, ...], tuple[str, ...]]:
    """What most prompts of a run share: the system message, the user's with places, and whose each place is.

    The places are those of the question, the reference answer if there is one, and the candidates.
    """
    values: dict[str, str | tuple[Part, ...]] = {
        "low": f"{scale.low:g}",
        "high": f"{scale.high:g}",
        "criteria": criteria if isinstance(criteria, str) else (criteria,),
        "count": str(asked),
        "letters": ", ".join(LETTERS[:count]),
    }
    user, owners = [*fill(template.question, {"question": (_Place("", 0),)})], ["the question"]
    if referred:
        append(user, fill(template.reference, {"reference": (_Place("", 1),)}))
        owners.append("the reference answer")
    for index in range(count):
        number, letter = str(index + 1), LETTERS[index % len(LETTERS)]
        name = letter if "{letter}" in template.candidate else number
        place = (_Place("", len(owners)),)
        append(user, fill(template.candidate, {"number": number, "letter": letter, "candidate": place}))
        owners.append("the answer" if count == 1 else f"answer {name}")
    append(user, fill(template.closing, values))
    return Message("system", fill(template.system, values)), tuple(user), tuple(owners)


def _number(answer: str, scale: Scale) -> float | Failure:
    """The number in an answer tag; or why it is no score on the scale."""
    value = float(answer) if _NUMBER.fullmatch(answer) else None
    if value is None or not (scale.decimals or value.is_integer()):  # 8.0 is a whole number, too
        expected = "a number" if scale.decimals else "a whole number"
        return Failure("malformed", f"expected {expected} of plain digits, found {answer!r}")
    if not scale.low <= value <= scale.high:
        return Failure("out_of_range", f"expected {scale.low:g} to {scale.high:g}, found {answer}")
    return value
