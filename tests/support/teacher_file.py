"""A teacher file in the form of JudgeLM-100K with planted faults of known kinds, and a scripted judge of its rows.

Every row says what becomes of it: the reply that must be kept, or why none is. `wrong` counts the rows for which the
files of a run say something else.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexjudge_reward import Generation, Request, Untrusted
from support.late import late

datasets = late("datasets")

SEEDS = (13, 79)
COLUMNS = {"id": ["question_id"], "question": ["question_body"], "candidates": ["answer1_body", "answer2_body"]}
_NUMBER = re.compile(r"row (\d+)")


@dataclass(frozen=True)
class Planted:
    """One row of the file."""

    line: str
    replies: dict[int, Generation]
    """By seed."""
    kept: str | None
    """The reply that becomes the trace."""
    why: str = ""
    """Else: why there is none."""


def reply(number: int, scores: tuple[object, ...], length: int = 20, tail: str = "") -> str:
    """A judgement of Assistant 1, then of Assistant 2."""
    thought = f"Row {number}. Assistant 1 is fine. " + "It is so. " * length + "Assistant 2 is not."
    return f"<think>{thought}</think>" + "".join(f"<answer>{score}</answer>" for score in scores) + tail


def generation(text: str, **fields: Any) -> Generation:
    return Generation(text, **{"completion_tokens": len(text.split()), **fields})


def _row(number: int, scores: object, **fields: object) -> str:
    row = {
        "question_id": number,
        "question_body": f"row {number}: what is it?",
        "answer1_body": f"a thing of {number}",
        "answer2_body": "no idea",
        "score": scores,
    }
    return json.dumps({name: value for name, value in (row | fields).items() if value is not None})


def planted(number: int, kind: str, rng: random.Random) -> Planted:
    """A row with a fault of the kind; see `KINDS`."""
    first, second = rng.sample(range(1, 11), 2)
    right, other = (first, second), (first % 10 + 1, second)
    good = generation(reply(number, right, rng.randint(5, 30)))
    bad = generation(reply(number, other, 60))  # longer, and wrong
    same = dict.fromkeys(SEEDS, good)
    replies: dict[str, dict[int, Generation]] = {
        "one seed disagrees": {13: bad, 79: good},
        "other seed disagrees": {13: good, 79: bad},
        "longer later": {13: generation(reply(number, right, 3)), 79: good},
        "longer first": {13: good, 79: generation(reply(number, right, 3))},
        "equal length": {13: good, 79: generation(reply(number, right).replace("fine", "good"), completion_tokens=1)},
        "first score only": dict.fromkeys(SEEDS, generation(reply(number, (first, second % 10 + 1)))),
        "second score only": dict.fromkeys(SEEDS, bad),
        "swapped": dict.fromkeys(SEEDS, generation(reply(number, (second, first)))),
        "one point off": dict.fromkeys(SEEDS, generation(reply(number, (first, second - 1 or 2)))),
        "quoted verdict": dict.fromkeys(SEEDS, generation("<think>" + reply(number, right) + bad.text[7:])),
        "no tags": dict.fromkeys(SEEDS, generation(f"Both are fine: {first} and {second}.")),
        "no reasoning": dict.fromkeys(SEEDS, generation(reply(number, right).rpartition("</think>")[2])),
        "words after": dict.fromkeys(SEEDS, generation(reply(number, right, tail=" I am sure."))),
        "one score": dict.fromkeys(SEEDS, generation(reply(number, (first,)))),
        "three scores": dict.fromkeys(SEEDS, generation(reply(number, (*right, 1)))),
        "eleven": dict.fromkeys(SEEDS, generation(reply(number, (11, second)))),
        "cut": dict.fromkeys(SEEDS, generation(reply(number, right), finish_reason="length")),
        "failed": dict.fromkeys(SEEDS, Generation.failed("engine", "no memory")),
        "cut, then good": {13: generation(good.text, finish_reason="length"), 79: good},
    }
    lines: dict[str, str] = {
        "no teacher scores": _row(number, None),
        "teacher could not be read": _row(number, [-1, -1]),
        "teacher off the scale": _row(number, [first, 11]),
        "teacher with decimals": _row(number, [first + 0.5, second]),
        "teacher with one score": _row(number, [first]),
        "teacher as text": _row(number, f"{first} {second}"),
        "no second answer": _row(number, list(right), answer2_body=None),
        "no question": _row(number, list(right), question_body=None),
        "broken line": _row(number, list(right))[:-5],
        "no object": "[1, 2]",
    }
    line = lines.get(kind, _row(number, [float(one) for one in right] if kind == "float scores" else list(right)))
    why = "row" if kind in lines else FAULTS.get(kind, "")
    return Planted(line, replies.get(kind, same), None if why else good.text, why)


FAULTS = {
    **dict.fromkeys(("first score only", "second score only", "swapped", "one point off"), "disagrees"),
    **{"quoted verdict": "disagrees", "no tags": "malformed", "no reasoning": "malformed", "words after": "malformed"},
    **{"one score": "wrong_count", "three scores": "wrong_count", "eleven": "out_of_range", "cut": "truncated"},
    "failed": "engine",
}
BAD_ROWS = (
    *("no teacher scores", "teacher could not be read", "teacher off the scale", "teacher with decimals"),
    *("teacher with one score", "teacher as text", "no second answer", "no question", "broken line", "no object"),
)
GOOD = ("plain", "float scores", "one seed disagrees", "other seed disagrees", "longer later", "longer first")
GOOD += ("equal length", "cut, then good")
KINDS = (*GOOD, *FAULTS, *BAD_ROWS)


def rows(count: int, seed: int = 0) -> list[Planted]:
    """Every kind as often as any other, in random order; the last hundredth repeats rows that have a trace."""
    rng = random.Random(seed)
    kinds = [KINDS[index % len(KINDS)] for index in range(count - count // 100)]
    rng.shuffle(kinds)
    made = [planted(number, kind, rng) for number, kind in enumerate(kinds)]
    again = rng.sample([one for one in made if one.kept], count // 100)
    return made + [Planted(one.line, one.replies, None, "duplicate") for one in again]


class Teacher:
    """What a `ScriptedEngine` answers: the reply that was planted for the row and the seed."""

    def __init__(self, made: list[Planted]) -> None:
        self.replies = {number: one.replies for number, one in enumerate(made)}

    def __call__(self, request: Request) -> Generation:
        question = next(p.text for p in request.prompt.messages[1].parts if isinstance(p, Untrusted))
        found = _NUMBER.search(question)
        assert found is not None
        return self.replies[int(found[1])][request.sampling.seed]


def wrong(made: list[Planted], traces: Path) -> list[str]:
    """What a run did with each row, where that is not what it should have done."""
    folder = str(traces.parent / "prepared")
    kept = {
        row["id"]: row
        for row in datasets.load_dataset("parquet", data_files=str(traces), cache_dir=folder)["train"].to_list()
    }
    lines = traces.with_suffix(".skipped.jsonl").read_text().splitlines()
    skipped = {entry["line"]: entry["why"] for entry in map(json.loads, lines)}
    found = []
    for number, one in enumerate(made):
        shown = f"row {number}: {one.line[:60]}"
        if one.kept is None and skipped.pop(number + 1, None) != one.why:
            found.append(f"{shown} should have been left out: {one.why}")
        if one.kept is not None and kept.pop(str(number), {}).get("reply") != one.kept:
            found.append(f"{shown} should have had another trace")
    return found + [f"row {name} should not be kept" for name in kept] + [f"line {line} said twice" for line in skipped]
