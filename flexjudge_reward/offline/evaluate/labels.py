"""A user's labelled file: rows as `score` reads them (`data/rows.py`), with a `label` in every row.

A label is a number for one candidate; for several a number each, the letter of the best ("B"), or "tie". A number is a
number: a text that holds one is refused, but in a CSV file, where every cell is a text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flexjudge_reward.data.cells import is_empty, is_number
from flexjudge_reward.data.lines import is_csv
from flexjudge_reward.data.rows import BadRow, RowOptions, Rows
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.offline.evaluate.benchmark import Part
from flexjudge_reward.offline.evaluate.rows import Labelled


def user_rows(source: str | Path, **options: Any) -> tuple[Rows, list[Labelled], list[BadRow]]:
    """A labelled file or data set: its reader, the rows with a label, and those that cannot be used.

    Raises ConfigError as `data/rows.py`; and if no row has a label that can be used, with the first reason.
    """
    given = RowOptions(**options)  # type: ignore[typeddict-item]
    rows = Rows(source, **given)
    part, texts, good, bad = Part({}, {}, {}), is_csv(Path(source)), [], []
    for row in rows.read(lambda row: None):
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        try:
            label = row.entry.get("label")
            merits = user_label(_of_cell(label) if texts else label, len(row.example.candidates))
        except ConfigError as error:
            bad.append(BadRow(row.number, row.id, str(error)))
            continue
        good.append(Labelled(row.number, row.number if row.id is None else row.id, part, merits, {}, row.example))
    if not good:
        first = f": {rows.unit} {bad[0].number}: {bad[0].why}" if bad else ""
        raise ConfigError(f"{rows.name} has no row with a label that can be used{first}")
    rows.first_bad = bad[0] if bad else None
    rows.report(len(bad), len(good) + len(bad))
    return rows, good, bad


def user_label(label: Any, count: int) -> tuple[float, ...]:
    """What a `label` says of `count` candidates. Raises ConfigError."""
    form = "a number" if count == 1 else f"a list of {count} numbers, a letter from A to {chr(64 + count)}, or 'tie'"
    if is_empty(label):
        raise ConfigError(f"the entry 'label' is missing: {form}")
    if count == 1 and is_number(label):
        return (float(label),)
    if count > 1 and isinstance(label, str) and label.strip().lower() == "tie":
        return (0.0,) * count
    if count > 1 and isinstance(label, str) and label.strip() in [chr(65 + index) for index in range(count)]:
        return tuple(float(index == ord(label.strip()) - 65) for index in range(count))
    if isinstance(label, list) and len(label) == count and all(map(is_number, label)):
        return tuple(map(float, label))
    raise ConfigError(f"'label' is {form}, where higher is better; found {label!r:.80}")


def _of_cell(label: Any) -> Any:
    """The label in a cell of a CSV file, which is always a text: "4" is a number there, and "[3, 1]" a list."""
    try:
        return json.loads(label)
    except (ValueError, TypeError, RecursionError):  # a letter, "tie", or nothing
        return label
