"""The figures of all judges of a folder as JSON, as one Markdown table beside published ones, and as a plot."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexjudge_reward.errors import printable
from flexjudge_reward.judge.record import json_line
from flexjudge_reward.offline.journal import replaced

if TYPE_CHECKING:
    from flexjudge_reward.offline.evaluate.benchmark import Benchmark
    from flexjudge_reward.offline.evaluate.job import Evaluation

_WRITTEN = {"name", "data", "metrics", "always", "warnings"}
_ALWAYS = ("rows", "failed", "ties", "swap_consistent", "first_place", "forced", "tokens")


def write(found: Evaluation, folder: Path) -> None:
    """The JSON of one judge, then the table and the plot of all judges of the folder."""
    benchmark = found.benchmark
    readings = {metric.name: metric.reading for metric in benchmark.metrics}
    figures = {name: {**one.as_dict(), "reading": readings[name.split("/")[0]]} for name, one in found.metrics.items()}
    entry = {
        **{"benchmark": benchmark.name, "title": benchmark.title, "name": found.name},
        **{"judge": found.judge, "data": found.data, "schema": benchmark.schema, "warnings": found.warnings},
        **{"metrics": figures, "always": found.always},
    }
    replaced(found.files[0].with_suffix(".json"), json_line(entry).encode())
    judges = [read for path in sorted(folder.glob(f"{benchmark.name}.*.json")) if (read := _read(path))]
    for judge in judges:
        if judge.get("data") != found.data:
            judge["warnings"] = [*judge["warnings"], f"it judged other rows than {found.name}: do not compare them"]
    replaced(folder / f"{benchmark.name}.md", markdown(benchmark, judges).encode())
    _plot(benchmark, judges, folder / f"{benchmark.name}.png")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        entry = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return entry if isinstance(entry, dict) and entry.keys() >= _WRITTEN else None


def markdown(benchmark: Benchmark, judges: Sequence[Mapping[str, Any]]) -> str:
    """Judges in rows, metrics in columns with their 95 % intervals; published figures below."""
    names = list(dict.fromkeys(name for judge in judges for name in judge["metrics"]))
    lines = [
        f"# {_cell(benchmark.title)}",
        "",
        f"Data: {benchmark.source or benchmark.get or benchmark.title}."
        f" Schema read from: {benchmark.schema or 'the file'}."
        f" Figures times {benchmark.scale:g}; in brackets the 95 % interval of a bootstrap over rows.",
        *([benchmark.note] if benchmark.note else []),
        "",
        "| judge | " + " | ".join([*map(_cell, names), *_ALWAYS]) + " |",
        "|---|" + "---|" * (len(names) + len(_ALWAYS)),
    ]
    for judge in judges:
        figures = [_figure(judge["metrics"].get(name), benchmark.scale) for name in names]
        beside = [_plain(judge["always"].get(name), name) for name in _ALWAYS]
        lines.append(f"| {_cell(judge['name'])} | " + " | ".join([*figures, *beside]) + " |")
    for published in benchmark.published:
        for name, values in published.rows.items():
            known = {
                column: value for column, value in zip(published.columns, values, strict=True) if not math.isnan(value)
            }
            cells = [f"{known[column]:g}" if column in known else "-" for column in names]
            lines.append(
                f"| {_cell(f'{name} ({published.origin})')} | " + " | ".join([*cells, *["-"] * len(_ALWAYS)]) + " |"
            )
    lines += ["", *(f"* `{metric.name}`: {metric.reading or metric.of}" for metric in benchmark.metrics)]
    lines += [f"* **Warning**, {_cell(judge['name'])}: {_cell(one)}" for judge in judges for one in judge["warnings"]]
    return "\n".join(lines) + "\n"


def _figure(one: Mapping[str, Any] | None, scale: float) -> str:
    if one is None or one["value"] is None:
        return "-"
    digits = 1 if scale > 1 else 3
    interval = "" if one["low"] is None else f" [{one['low'] * scale:.{digits}f}, {one['high'] * scale:.{digits}f}]"
    return f"{one['value'] * scale:.{digits}f}{interval}"


def _plain(value: float | None, name: str) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.0f}" if name in ("rows", "tokens") else f"{value:.1%}"


def _cell(text: object) -> str:
    """Text of data on a Markdown page: no column, HTML, link or code."""
    return re.sub(r"[<>&\[\]`]", lambda found: f"&#{ord(found[0])};", printable(text).replace("|", "/"))


def _plot(benchmark: Benchmark, judges: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The first metric of every judge with its interval, and published figures; nothing without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    first, scale = benchmark.metrics[0].name, benchmark.scale
    own = [(judge["name"], judge["metrics"][first]) for judge in judges if first in judge["metrics"]]
    bars = [(name, one["value"] * scale, one["low"], one["high"]) for name, one in own if one["value"] is not None]
    for published in benchmark.published:
        if first in published.columns:
            at = list(published.columns).index(first)
            bars += [
                (name, values[at], None, None) for name, values in published.rows.items() if not math.isnan(values[at])
            ]
    figure = Figure(figsize=(7, 1.2 + 0.32 * max(1, len(bars))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, (name, value, low, high) in enumerate(reversed(bars)):
        ours = low is not None
        axes.barh(place, value, color="#3a6ea5" if ours else "#b9bec5")
        if ours:
            error = [[value - low * scale], [high * scale - value]]
            axes.errorbar(value, place, xerr=[[max(0.0, one[0])] for one in error], color="black", capsize=3)
        shown, color = f" {printable(name)}", "white" if ours else "black"
        axes.text(0, place, shown, va="center", fontsize=8, color=color, parse_math=False)
    axes.set_yticks([])
    axes.set_title(printable(f"{benchmark.title}: {first} (grey: published)"), fontsize=10, parse_math=False)
    fresh = path.with_name(path.name + ".new")
    figure.savefig(fresh, dpi=120, format="png")
    fresh.replace(path)
