"""Numbers to the shapes of inline SVG: lines over steps, and bars. The template draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, BOTTOM = 320, 150, 40, 20  # of a chart, and of the room for its axes' labels
_RIGHT, _TOP = 8, 8
_MOST_POINTS, _MOST_DOTS = 500, 60  # of a line, and beyond which they are not marked


@dataclass(frozen=True)
class Line:
    """One line: its points as the `d` of a path, and what marks them, as (x, y, title)."""

    name: str
    path: str
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """Lines or bars with labelled axes; a label is (position, text)."""

    title: str
    lines: list[Line]
    bars: list[tuple[float, float, float, float, str]]  # x, y, width, height, title
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]


def lines(title: str, values: Mapping[str, Mapping[int, float | None]], top: float | None = None) -> Chart | None:
    """Lines by name over the steps, from 0 to `top` or to the largest value; None where there is nothing to draw."""
    points = {name: {x: y for x, y in sorted(line.items()) if y is not None} for name, line in values.items()}
    points = {name: _thinned(line) for name, line in points.items() if line}
    steps = [x for line in points.values() for x in line]
    if not steps:
        return None
    low, high = min(steps), max(steps)
    ceiling = top or _round(max(y for line in points.values() for y in line.values()))

    def place(x: int, y: float) -> tuple[float, float]:
        return _across((x - low) / (high - low) if high > low else 0.5), _up(y / ceiling)

    drawn = []
    for name, line in points.items():
        placed = [(*place(x, y), f"{name}, step {x}: {y:.4g}") for x, y in line.items()]
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y, _ in placed)
        drawn.append(Line(name, path, placed if len(placed) <= _MOST_DOTS else []))
    ends = [(_across(0.0), f"step {low}"), (_across(1.0), f"{high}")][: 1 + (high > low)]
    return Chart(title, drawn, [], ends, _labels(ceiling))


def _thinned(line: dict[int, float]) -> dict[int, float]:
    """At most `_MOST_POINTS` of them: means over as many steps as that takes."""
    size = math.ceil(len(line) / _MOST_POINTS)
    steps, values = list(line), list(line.values())
    parts = [slice(first, first + size) for first in range(0, len(line), size)]
    return {steps[part][-1]: sum(values[part]) / len(values[part]) for part in parts}


def bars(title: str, counts: Sequence[int], low: float, high: float) -> Chart:
    """A histogram of equal bins from `low` to `high`."""
    ceiling, step = _round(max(counts)), (high - low) / len(counts)
    shapes = []
    for index, count in enumerate(counts):
        x, y, wide = _across(index / len(counts)), _up(count / ceiling), _across(1 / len(counts)) - _across(0.0) - 1
        span = f"{low + index * step:.3g} to {low + (index + 1) * step:.3g}: {count:,}"
        shapes.append((x, y, round(wide, 2), round(_up(0.0) - y, 2), span))
    return Chart(title, [], shapes, [(_across(0.0), f"{low:.3g}"), (_across(1.0), f"{high:.3g}")], _labels(ceiling))


def histogram(values: Sequence[float], count: int) -> tuple[list[int], float, float]:
    """Counts of equal bins over the values, from 0 where none is below, and the ends of these bins."""
    low, high = min(0.0, min(values)), max(values)
    high = high if high > low else low + 1
    counts = [0] * count
    for value in values:
        counts[min(count - 1, int((value - low) / (high - low) * count))] += 1
    return counts, low, high


def _across(share: float) -> float:
    return round(LEFT + share * (WIDTH - LEFT - _RIGHT), 2)


def _up(share: float) -> float:
    return round(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - _TOP), 2)


def _round(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... for the end of an axis."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(unit * digit for digit in (1, 2, 5, 10, 20) if unit * digit >= value)


def _labels(ceiling: float) -> list[tuple[float, str]]:
    return [(_up(share), f"{share * ceiling:g}") for share in (0.0, 0.5, 1.0)]
