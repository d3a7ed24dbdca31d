"""A labelled set without labels: the user's own answers, and worse ones made from them by planted faults.

Of each row come up to five candidates whose order is known (MR. Judge's reverse candidates: the original need not be
perfect, only better than what was done to it):

    3  the row's own answer: its reference, or else its first candidate
    2  one fault: the second half of its words is missing, or an answer to another question follows it
    1  two faults: what is left is out of order, too
    0  the answer to another question

Only texts get faults; a row whose answer is an image or a video is left out, and so is a fault that changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from flexjudge_reward.data.rows import BadRow, RowOptions, Rows
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.offline.evaluate.benchmark import Part
from flexjudge_reward.offline.evaluate.rows import Labelled
from flexjudge_reward.types import Content, Example


def planted_rows(source: str, seed: int = 0, **options: Any) -> list[Labelled]:
    """The rows of a file or data set with candidates of known order.

    Raises ConfigError: as `data/rows.py`; or no row has an answer in words.
    """
    given = RowOptions(**options)  # type: ignore[typeddict-item]
    rows = [row for row in Rows(source, **given).read(lambda row: None) if not isinstance(row, BadRow)]
    answers = [_answer(row.example) for row in rows]
    made = []
    for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        if answer is not None and (candidates := _worse(answer, _other(answers, index), seed + index)):
            example = Example(row.example.question, list(candidates), None, row.example.rubric)
            name = row.number if row.id is None else row.id
            made.append(Labelled(row.number, name, Part({}, {}, {}), tuple(candidates.values()), {}, example))
    if not made:
        why = "and no row has one that they would change: give 'reference'"
        raise ConfigError(f"{source}: faults are planted in answers in words, {why}")
    return made


def _answer(example: Example) -> str | None:
    answer: Content = example.reference or example.candidates[0]
    texts = [part for part in answer if isinstance(part, str)]
    return "".join(texts).strip() or None if len(texts) == len(answer) else None


def _other(answers: Sequence[str | None], index: int) -> str | None:
    """The answer of the next row that has another one."""
    others = [*answers[index + 1 :], *answers[:index]]
    return next((one for one in others if one and one != answers[index]), None)


def _worse(answer: str, other: str | None, seed: int) -> dict[str, float]:
    """Candidates with what each is worth; fewer than five where a fault changes nothing."""
    words = answer.split()
    kept = words[: max(1, (len(words) + 1) // 2)]
    mixed = random.Random(seed).sample(kept, len(kept))
    if mixed == kept:
        mixed = kept[::-1]
    found = {answer: 3.0}
    run_on = None if other is None else f"{answer} {other}"
    for text, worth in ((" ".join(kept), 2.0), (run_on, 2.0), (" ".join(mixed), 1.0), (other, 0.0)):
        if text is not None:
            found.setdefault(text, worth)
    return found if len(found) > 1 else {}
