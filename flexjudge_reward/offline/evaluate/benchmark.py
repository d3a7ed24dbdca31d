"""A benchmark as data: one TOML file in `benchmarks/`, or one of the user's own of the same form.

title, task            task: pair, score, list (an order of several) or best (one or more right ones among several)
source, split, config  a data set of the Hub; `get` says instead where a file comes from that is not there
revision, schema       the commit of the data set where it is known, and what the columns were read from
format, rubric         how a judge is asked; `formats` lists the only ones that can answer the question
scale                  100 where published figures are percentages
balance                the counts of the label in the whole data set; swapped ones show a reversed direction
[columns]              each column that is read, with its type (`rows.py`); "?" marks one that may be missing
[example] [label]      how a row becomes an example, and its label a number per candidate (`rows.py`)
[groups.NAME]          how a row's group is found, for means over groups
[[part]]               a configuration, split or kind of row of its own; it overrides what stands above
[[metric]]             a reading of the stored verdicts (`metrics.py`)
[[published]]          figures to compare with: `columns` are metrics, `rows` judges
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.offline.evaluate.metrics import Metric

FOLDER = Path(__file__).with_name("benchmarks")
_READ = ("map", "ranks", "order", "number", "numbers", "right")
_TASKS = ("pair", "score", "list", "best")


@dataclass(frozen=True)
class Part:
    """Rows of one form: how they are found, read and judged."""

    columns: Mapping[str, str]
    example: Mapping[str, Any]
    label: Mapping[str, Any]
    name: str = ""
    split: str | None = None
    config: str | None = None
    format: str = "pairwise"
    rubric: str = "helpfulness"
    where: Mapping[str, Sequence[Any]] | None = None
    """The rows whose columns have one of these values."""
    balance: Mapping[str, int] | None = None
    json: str | None = None
    """The entry of a JSON file that holds the rows."""
    header: Sequence[str] | None = None
    """The names of the fields of a text file without names."""


@dataclass(frozen=True)
class Published:
    """Figures of others: per judge one per metric, on the benchmark's `scale`; nan where none is known."""

    origin: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Benchmark:
    """What is measured, on which rows."""

    name: str
    title: str
    task: str
    parts: tuple[Part, ...]
    metrics: tuple[Metric, ...]
    groups: Mapping[str, Mapping[str, Any]]
    published: tuple[Published, ...] = ()
    source: str = ""
    get: str = ""
    revision: str = ""
    schema: str = ""
    licence: str = ""
    note: str = ""
    scale: float = 1.0
    formats: Sequence[str] = ()
    folder: Path = FOLDER

    @property
    def kinds(self) -> frozenset[str]:
        """The modalities that its examples show a judge."""
        return frozenset(_kinds([part.example for part in self.parts]))

    @classmethod
    def load(cls, name: str | Path) -> Benchmark:
        """A built-in benchmark by its name, or a TOML file.

        Raises ConfigError: there is none, or an entry is missing, unknown or wrong.
        """
        path = FOLDER / f"{name}.toml" if str(name) in benchmark_names() else Path(name)
        if not path.is_file():
            raise ConfigError(f"no benchmark {str(name)!r}: give a TOML file or one of {', '.join(benchmark_names())}")
        try:
            return cls.of(tomllib.loads(path.read_text("utf-8")), path)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise ConfigError(f"the benchmark {str(path)!r} cannot be read: {error}") from None

    @classmethod
    def of(cls, entries: Mapping[str, Any], path: Path) -> Benchmark:
        """A benchmark from the entries of its file. Raises ConfigError."""
        shared = {name: value for name, value in entries.items() if name in _names(Part)}
        own = {name: value for name, value in entries.items() if name not in shared}
        parts, *others = (_tables(own, name, path.name) for name in ("part", "metric", "published"))
        listed = [_made(Part, {**shared, **part}, f"{path.name}, part") for part in parts or [{}]]
        metrics = [_made(Metric, metric, f"{path.name}, metric") for metric in others[0]]
        published = [_made(Published, one, f"{path.name}, published") for one in others[1]]
        made = {"parts": tuple(listed), "metrics": tuple(metrics), "published": tuple(published)}
        own = {"name": path.stem, "folder": path.parent, "groups": {}, **own, **made}
        benchmark: Benchmark = _made(cls, own, path.name)
        benchmark._check()
        return benchmark

    def _check(self) -> None:
        if self.task not in _TASKS:
            raise ConfigError(f"{self.name}: the task is one of {', '.join(_TASKS)}, found {self.task!r}")
        known: set[str] = set()
        for metric in self.metrics:
            self._check_metric(metric, known)
            known.add(metric.name)
        for one in self.published:
            wrong = [column for column in one.columns if column.split("/")[0] not in known]
            uneven = [judge for judge, values in one.rows.items() if len(values) != len(one.columns)]
            if wrong or uneven:
                raise ConfigError(
                    f"{self.name}: published {one.origin!r} does not fit its metrics: {[*wrong, *uneven]}"
                )
        for part in self.parts:
            if lacking := [name for name in ("question", "candidates") if name not in part.example]:
                raise ConfigError(f"{self.name}: [example] needs {lacking[0]!r}")
            if (read := part.label.get("read")) not in _READ or (read != "right" and "column" not in part.label):
                raise ConfigError(f"{self.name}: [label] needs a column, and read: one of {', '.join(_READ)}")
            if read == "map" and not isinstance(part.label.get("map"), Mapping):
                raise ConfigError(f"{self.name}: [label] is read as a map, and has none")

    def _check_metric(self, metric: Metric, known: Collection[str]) -> None:
        """Raises ConfigError; `known` are the metrics above it."""
        wrong = ""
        if metric.name in known:
            wrong = "is there twice"
        elif metric.by and metric.by not in self.groups:
            wrong = f"is by {metric.by!r}, and no group has that name"
        elif lost := set(metric.parts or ()) - {part.name for part in self.parts}:
            wrong = f"is of the parts {sorted(lost)}, and no part has that name"
        elif metric.of == "average" and not (metric.over and set(metric.over) <= set(known)):
            wrong = f"is an average over {list(metric.over)}: name metrics that are above it"
        elif metric.weights and (len(metric.weights) != len(metric.over) or not sum(metric.weights)):
            wrong = "needs a weight for each of `over`, and a sum that is not 0"
        if wrong:
            raise ConfigError(f"{self.name}: metric {metric.name!r} {wrong}")


def benchmark_names() -> tuple[str, ...]:
    """The names of the built-in benchmarks, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def _names(owner: type) -> set[str]:
    return {field.name for field in fields(owner)}


def _made(owner: Any, entries: Mapping[str, Any], where: str) -> Any:
    if unknown := sorted(set(entries) - _names(owner)):
        raise ConfigError(f"{where}: unknown entry {unknown[0]!r}; known are {', '.join(sorted(_names(owner)))}")
    hints, written = get_type_hints(owner), {field.name: field.type for field in fields(owner)}
    for name, value in entries.items():
        if not _is_of(value, hints[name]):
            raise ConfigError(f"{where}: {name!r} must be of the type {written[name]}, found {value!r:.80}")
    try:
        return owner(**entries)
    except TypeError as error:  # an entry without a default is missing
        raise ConfigError(f"{where}: {str(error).split('()', 1)[-1].strip()}") from None


def _tables(own: dict[str, Any], name: str, where: str) -> list[Mapping[str, Any]]:
    found = own.pop(name, [])
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise ConfigError(f"{where}: {name!r} must be tables, [[{name}]], found {found!r:.80}")
    return found


def _is_of(value: Any, hint: Any) -> bool:
    """Whether what TOML holds is of an annotated type; `Literal` is left to the class."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Any, Literal):
        return True
    if kind is UnionType:
        return any(_is_of(value, one) for one in inner)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is Sequence:
        return isinstance(value, list | tuple) and all(_is_of(one, inner[0]) for one in value)
    if kind is Mapping:
        return isinstance(value, Mapping) and all(_is_of(one, inner[1]) for one in value.values())
    return isinstance(value, kind)


def _kinds(value: Any) -> set[str]:
    """The keys of the parts of examples, whatever lists and tables they are in."""
    if isinstance(value, Mapping):
        own = {"image", "video", "audio", "molecule"} & value.keys()
        return own | {kind for one in value.values() for kind in _kinds(one)}
    return {kind for one in value for kind in _kinds(one)} if isinstance(value, list | tuple) else set()
