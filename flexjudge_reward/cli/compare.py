"""`flexjudge compare ONE OTHER`: where the verdicts of two files of `score`, `rerank`, `rejudge` or `--record` differ.

Rows are matched by their id, or by their line, and scores are compared as they are written, each on its own scale.
Printed are how many scores agree, the mean difference, Spearman's rank correlation over all candidates, how often the
best candidate is the same, and the rows that differ most.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import correlation
from typing import Any

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.offline.recorded import is_record, recorded

Verdicts = dict[str, list[float | None]]


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    command = commands.add_parser("compare", help="show where the verdicts of two files differ")
    command.add_argument(
        "one", type=Path, metavar="ONE", help="a file of flexjudge score, rerank or rejudge, or a record"
    )
    command.add_argument("other", type=Path, metavar="OTHER", help="another judge's verdicts on the same rows")
    command.add_argument("--most", type=int, default=10, metavar="N", help="how many rows to show (default: 10)")
    command.add_argument("--json", action="store_true", help="the figures as one JSON object")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the comparison; 1 if a score differs."""
    one, other = read(arguments.one), read(arguments.other)
    figures, rows = compared(one, other)
    if arguments.json:
        print(json.dumps(figures))
        return int(figures["equal"] != figures["compared"])
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):24} {value if isinstance(value, int) else f'{value:.3f}'}")
    for row, difference in rows[: max(0, arguments.most)]:
        print(f"{row}: {_shown(one[row])} against {_shown(other[row])}, {difference:g} apart")
    return int(figures["equal"] != figures["compared"])


def read(path: Path) -> Verdicts:
    """The scores of every row, by id or line. Raises ConfigError for a file of another kind, naming the line."""
    if not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r}: give two files of flexjudge score, rerank or rejudge")
    if is_record(path):
        rows = recorded(path)
        return _named((str(number if row.id is None else row.id), [*row.scores.values()]) for number, row in rows)
    found: list[tuple[str, list[float | None]]] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                name, scores = row.get("id"), row["scores"]
                name = row.get("line", row.get("row", number)) if name is None else name
                found.append((str(name), [None if score is None else float(score) for score in scores]))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise ConfigError(f"{path}, line {number}: no row of `flexjudge score` or `rerank`") from None
    if not found:
        raise ConfigError(f"{path} has no rows")
    return _named(found)


def _named(rows: Iterable[tuple[str, list[float | None]]]) -> Verdicts:
    """The rows by their names; the second row of one name is "name (2)", since jobs that share a record repeat ids."""
    found, counts = Verdicts(), Counter[str]()
    for name, scores in rows:
        counts[name] += 1
        found[name if counts[name] == 1 else f"{name} ({counts[name]})"] = scores
    return found


def compared(one: Verdicts, other: Verdicts) -> tuple[dict[str, float | int], list[tuple[str, float]]]:
    """The figures, and the rows that differ with their largest difference, the largest first."""
    common = [name for name in one if name in other and len(one[name]) == len(other[name])]
    pairs = [(a, b) for name in common for a, b in zip(one[name], other[name], strict=True)]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not both:
        raise ConfigError("the files have no row with a score in both: are they verdicts on the same rows?")
    groups = [name for name in common if len(one[name]) > 1 and None not in (*one[name], *other[name])]
    figures: dict[str, float | int] = {
        "rows_in_both": len(common),
        "rows_in_one_only": len(one) + len(other) - 2 * len(common),
        "failed_in_one": sum(a is None for a, _ in pairs),
        "failed_in_other": sum(b is None for _, b in pairs),
        "compared": len(both),
        "equal": sum(a == b for a, b in both),
        "mean_difference": math.fsum(b - a for a, b in both) / len(both),
        "mean_distance": math.fsum(abs(b - a) for a, b in both) / len(both),
        "rank_correlation": _correlation(_ranks([a for a, _ in both]), _ranks([b for _, b in both])),
    }
    if groups:
        figures["same_best"] = sum(_best(one[name]) == _best(other[name]) for name in groups) / len(groups)
    distances = {name: max(map(_distance, one[name], other[name]), default=0.0) for name in common}
    return figures, sorted(((n, d) for n, d in distances.items() if d > 0), key=lambda row: -row[1])


def _distance(a: float | None, b: float | None) -> float:
    return 0.0 if a is None or b is None else abs(a - b)


def _best(scores: list[float | None]) -> int:
    return max(range(len(scores)), key=lambda index: scores[index] or 0.0)


def _ranks(values: list[float]) -> list[float]:
    """Ranks from 0; equal values share the mean of theirs."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    places: dict[float, list[int]] = {}
    for place, index in enumerate(order):
        places.setdefault(values[index], []).append(place)
    return [sum(places[value]) / len(places[value]) for value in values]


def _correlation(one: list[float], other: list[float]) -> float:
    """Pearson's, 0 where one side is constant."""
    return correlation(one, other) if len(set(one)) > 1 and len(set(other)) > 1 else 0.0


def _shown(scores: list[float | None]) -> str:
    return "[" + ", ".join("failed" if score is None else f"{score:g}" for score in scores) + "]"
