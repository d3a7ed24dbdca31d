"""OneCall: a format with one prompt and one reply per example, in answer tags. The base of the built-in formats.

The two halves of one agreement are in one class: the instruction (a file of a prompt set) and the grammar of the
answer. Shared parts come first (system text, question with its media), so that a group's prompts share a prefix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.base import Format
from flexjudge_reward.formats.reply import read_reply, reasoning
from flexjudge_reward.media.base import KINDS, Media
from flexjudge_reward.prompts.quoting import fence
from flexjudge_reward.prompts.template import Template, fill
from flexjudge_reward.rubric import Rubric, Scale
from flexjudge_reward.types import Example, Failure, Generation, Message, Part, Prompt, Untrusted, Verdict

LETTERS = "ABCDEFGH"
_NUMBER = re.compile(r"-?[0-9]{1,6}(?:\.[0-9]{1,6})?")


class Labels:
    """Names the images and videos of a prompt by their order, since a server may show them all before the text."""

    def __init__(self, text: str) -> None:
        self.text, self.counts = text, dict[str, int]()

    def of(self, owner: str) -> Callable[[Media], str]:
        """Names the media of one part of the prompt."""

        def label(media: Media) -> str:
            if not (self.text and KINDS[media.kind].channel):
                return ""
            self.counts[media.kind] = self.counts.get(media.kind, 0) + 1
            values = {"kind": media.kind, "index": str(self.counts[media.kind]), "owner": owner}
            return "".join(map(str, fill(self.text, values)))

        return label


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
        scale, count = self._rubric_scale(example), len(example.candidates)
        # An example's own rubric is data, such as a row's.
        own: str | Untrusted = Untrusted(criteria) if example.rubric else criteria
        system, closing = _frame(self.template, scale, own, count, asked)
        label = Labels(self.template.media)
        user = list(fill(self.template.question, {"question": fence(example.question, label.of("the question"))}))
        if example.reference is not None:
            reference = fence(example.reference, label.of("the reference answer"))
            user += fill(self.template.reference, {"reference": reference})
        for index, candidate in enumerate(example.candidates):
            number, letter = str(index + 1), LETTERS[index % len(LETTERS)]
            name = letter if "{letter}" in self.template.candidate else number
            shown = fence(candidate, label.of("the answer" if count == 1 else f"answer {name}"))
            user += fill(self.template.candidate, {"number": number, "letter": letter, "candidate": shown})
        return Prompt((system, Message("user", (*user, *closing))))

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
        fault = next(filter(None, (_fault(answer, scale) for answer in answers)), None)
        return fault or tuple(float(answer) for answer in answers)


@lru_cache(maxsize=256)
def _frame(
    template: Template, scale: Scale, criteria: str | Untrusted, count: int, asked: int
) -> tuple[Message, tuple[Part, ...]]:
    """The system message and the closing text, which most prompts of a run share: the same objects for equal ones."""
    values: dict[str, str | tuple[Part, ...]] = {
        "low": f"{scale.low:g}",
        "high": f"{scale.high:g}",
        "criteria": criteria if isinstance(criteria, str) else (criteria,),
        "count": str(asked),
        "letters": ", ".join(LETTERS[:count]),
    }
    return Message("system", fill(template.system, values)), fill(template.closing, values)


def _fault(answer: str, scale: Scale) -> Failure | None:
    """Why an answer is no score on the scale."""
    match = _NUMBER.fullmatch(answer)
    if match is None or not (scale.decimals or float(answer).is_integer()):  # 8.0 is a whole number, too
        expected = "a number" if scale.decimals else "a whole number"
        return Failure("malformed", f"expected {expected} of plain digits, found {answer!r}")
    if not scale.low <= float(answer) <= scale.high:
        return Failure("out_of_range", f"expected {scale.low:g} to {scale.high:g}, found {answer}")
    return None
