"""Format diversity (Flex-Judge, section 2.2): one kind of trace becomes several formats and scales.

All is made of traces of pairs, so every reply stays what one judge wrote, but for what is cut or halved:

    pairwise         the trace as it is
    listwise         the same, asked as a list of two
    multiple_choice  the letter of the better answer as the verdict; ties are left out
    pointwise        the first answer alone, with the longest stretch of the reasoning that is about it alone

The scale of a random half of the scored traces is turned from 1-10 to 1-5: scores are halved and rounded up (7 is 4),
also where the reasoning names one in a form of `NAMED`. A trace stays as it is where another number of its reasoning
can be a score, too: it is from 6 to 10, or equal to a score of the verdict.

The paper says neither how odd scores are rounded, nor where it cuts, nor what becomes of scores in the reasoning:
these are choices of this recipe.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flexjudge_reward import ConfigError
from flexjudge_reward.data.cells import is_number
from flexjudge_reward.formats.builtin import LETTERS
from flexjudge_reward.formats.reply import THINK_CLOSE, THINK_OPEN, reasoning

Row = dict[str, Any]
FIRST = r"\b(?:assistant|answer|response|candidate)(?:'s answer)? (?:1|one)\b|\bfirst (?:assistant|answer|response)\b"
SECOND = (
    r"(?:^|(?<=[.!?\n]))[^.!?\n]*(?:\b(?:assistant|answer|response|candidate)(?:'s answer)? (?:2|two|b)\b"
    r"|\b(?:second|both|other|latter|two) (?:\w+ )?(?:assistant|answer|response|candidate)s?\b)[^.!?\n]*[.!?]?"
)
"""A sentence about the second answer, or about both. What is between two of them can be about the first."""
_LABEL = r"(?:assistant|answer|response|candidate)s?(?:'s answer)? \d+"
_SCORE = r"(?<![\d.])(?:10|[1-9])(?![\d.]*\d)"
_SCORES = rf"{_SCORE}(?:(?:, and|,| and| or| to| vs\.?| ?[-\u2013]) ?{_SCORE})*"
NAMED = re.compile(
    rf"(?P<before>\b(?:scores?|rat(?:e|es|ed|ing)|(?P<verb>gets?|deserves?))\b(?: (?:{_LABEL}|[a-z']+)){{0,3}}?:? )"
    r"(?<!assistant )(?<!answer )(?<!response )(?<!candidate )"
    rf"(?P<scores>{_SCORES})(?P<of> ?/ ?10\b| out of 10\b)?(?! of\b)"
    r"(?(verb)(?= (?:and|but|for|while|because|since|as|points?)\b|[^\w ]|$))"  # not "gets 3 facts right"
    rf"|(?P<part>{_SCORE})(?P<whole> ?/ ?10\b| out of 10\b)",
    re.IGNORECASE,
)
"""A score in the reasoning: "a score of 8", "rates Assistant 2 an 8", "scores: 8 and 6", "8/10", "8 out of 10"."""
_OTHER = re.compile(
    rf"{_LABEL}\b|(?P<number>(?<![\d.])\d+(?:\.\d+)?)|\b(?P<word>six|seven|eight|nine|ten)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Diversity:
    """What the mix is made of."""

    size: int = 1000
    mix: Mapping[str, float] = field(default_factory=lambda: {"pairwise": 0.5, "pointwise": 0.5})
    """The share of each format; together 1."""
    pair_tokens: int = 750
    """A pair has more tokens than this."""
    single_tokens: int = 375
    """The reasoning on the first answer has more tokens than this."""
    halved: float = 0.5
    """The share of the scored traces that get the scale 1-5."""
    first: str = FIRST
    second: str = SECOND
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.mix, Mapping) or not self.mix:
            raise ConfigError(f"mix is a share of each format, found {self.mix!r}")
        numbers = {name: getattr(self, name) for name in ("size", "pair_tokens", "single_tokens", "halved", "seed")}
        if odd := {name: one for name, one in (numbers | dict(self.mix)).items() if not is_number(one)}:
            raise ConfigError(f"the mix has {next(iter(odd))}={next(iter(odd.values()))!r}, which is no number")
        for pattern in (self.first, self.second):
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise ConfigError(f"{pattern!r} is no regular expression: {error}") from None
        if unknown := set(self.mix) - set(_KINDS):
            raise ConfigError(f"mix names {min(unknown)!r}; the formats made of pairs are {', '.join(_KINDS)}")
        if abs(sum(self.mix.values()) - 1) > 1e-6 or min(self.mix.values()) < 0 or self.size < 1:
            raise ConfigError(f"mix has shares that add up to 1, and size is at least 1: found {self.mix}, {self.size}")

    def __call__(self, traces: Sequence[Row], tokens: Callable[[str], int]) -> tuple[list[Row], Counter[str]]:
        """The mix, in random order, and its counts.

        The longest traces come first, in the formats of the whole trace; single scores are cut from what is left, so
        that no trace is used twice.

        Args:
            tokens: the length of a text in tokens, for the cut reasoning; that of a whole trace is in its row.
        """
        rng, counts = random.Random(self.seed), Counter[str]()
        left = sorted((row for row in traces if row["format"] == "pairwise"), key=lambda row: -row["tokens"])
        counts["traces of pairs"] = len(left)
        size, chosen = min(self.size, len(left)), list[Row]()  # fewer traces keep the shares of the mix
        for name in sorted(self.mix, key=list(_KINDS).index):
            wanted = round(self.mix[name] * size)
            made, left = self._taken(name, wanted, left, tokens)
            counts[f"{name}, of {wanted} wanted"] = len(made)
            chosen += made
        for row in chosen:
            if row["format"] != "multiple_choice" and rng.random() < self.halved:
                counts["on the scale 1-5"] += halve(row)
        rng.shuffle(chosen)
        return chosen, counts

    def _taken(
        self, name: str, wanted: int, rows: Sequence[Row], tokens: Callable[[str], int]
    ) -> tuple[list[Row], list[Row]]:
        """The best `wanted` rows in the format `name`, and those that are left for others."""
        made = [(index, _KINDS[name](dict(row), (self.first, self.second))) for index, row in enumerate(rows)]
        usable = [(index, row) for index, row in made if row is not None]
        if name == "pointwise":
            for _, row in usable:
                row["tokens"] = tokens(reasoning(row["reply"]))
            usable.sort(key=lambda one: -one[1]["tokens"])
        least = self.single_tokens if name == "pointwise" else self.pair_tokens
        taken = [(index, row) for index, row in usable if row["tokens"] > least][:wanted]
        gone = {index for index, _ in taken}
        return [row for _, row in taken], [row for index, row in enumerate(rows) if index not in gone]


def single(row: Row, patterns: tuple[str, str]) -> Row | None:
    """The score of the first answer alone, with the longest stretch of reasoning on it; None if there is none."""
    first, second = patterns
    stretches = re.split(second, reasoning(row["reply"]), flags=re.IGNORECASE)
    own = [stretch.strip() for stretch in stretches if re.search(first, stretch, re.IGNORECASE)]
    if len(stretches) == 1 or not own:
        return None
    score = row["scores"][0]
    return row | {
        "format": "pointwise",
        "candidates": row["candidates"][:1],
        "scores": [score],
        "reply": _reply(max(own, key=len), [f"{score:g}"]),
    }


def choice(row: Row, patterns: tuple[str, str]) -> Row | None:
    """The letter of the better answer; None for a tie."""
    first, other = row["scores"]
    if first == other:
        return None
    best = int(other > first)
    reply = _reply(reasoning(row["reply"]), [LETTERS[best]])
    return row | {"format": "multiple_choice", "scores": [float(not best), float(best)], "reply": reply}


def halve(row: Row) -> bool:
    """Turns the scale 1-10 into 1-5, in the verdict and in the scores that the reasoning names; whether it did.

    Other scales stay, and so does a trace with a number that can be a score of the old scale and is none of `NAMED`.
    """
    thought = reasoning(row["reply"])
    if (row["low"], row["high"]) != (1, 10) or _left(NAMED.sub("", thought), row["scores"]):
        return False
    row["low"], row["high"] = 1.0, 5.0
    row["scores"] = [float(_half(score)) for score in row["scores"]]
    row["reply"] = _reply(NAMED.sub(_named, thought), [f"{score:g}" for score in row["scores"]])
    return True


def _left(text: str, scores: Sequence[float]) -> bool:
    found = [match for match in _OTHER.finditer(text) if match["number"] or match["word"]]
    return any(
        match["word"] or 6 <= float(match["number"]) <= 10 or float(match["number"]) in scores for match in found
    )


def _half(score: float) -> int:
    return int(score + 1) // 2


def _named(match: re.Match[str]) -> str:
    named = re.sub(r"\d+", lambda score: str(_half(int(score[0]))), match["scores"] or match["part"])
    of = match["of"] or match["whole"] or ""
    before = re.sub(r"\ban $", "a ", match["before"] or "")  # "an 8"
    return f"{before}{named}{of.replace('10', '5')}"


def _reply(thought: str, answers: Sequence[str]) -> str:
    return f"{THINK_OPEN}{thought}{THINK_CLOSE}" + "".join(f"<answer>{answer}</answer>" for answer in answers)


_KINDS: dict[str, Callable[[Row, tuple[str, str]], Row | None]] = {
    "pairwise": lambda row, patterns: row,
    "listwise": lambda row, patterns: row | {"format": "listwise"},
    "multiple_choice": choice,
    "pointwise": single,
}
