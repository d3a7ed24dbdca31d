"""The rows of a benchmark as examples with what their labels say; those of a user's own file are in `labels.py`.

The `[example]` of a benchmark:

    id          the column of the row's id; without one it is the row's number
    question    a list of parts {KIND = COLUMN}: text, image, video, audio, molecule; or {words = TEXT}. A column
                that is a list gives several parts, an empty cell none; "answer1.answer" is an entry of an object
    candidates  one such list per candidate; or {each = COLUMNS, field = ENTRY}: the entries of these lists
    criteria    the column of the row's own criteria
    strip       the beginning of a path that not all files have, such as "image/"

The `[label]` has a `column` and how it is read, as numbers, where higher is better:

    map        {"A>B" = [1, 0], ...}; a value that is mapped to [] leaves the row out
    ranks      a list, 0 is the best
    order      letters, the best first: "CDAB"
    number     the score of the one candidate, with `round` to so many decimals
    numbers    a list with a score per candidate
    right      the candidates of the first of `each` are right

A type of `[columns]` is text, number, "number or text" (a number as text is read), texts, numbers, list or any.

Promised: what a benchmark's label or column holds that it should not is a ConfigError that names the column, the row
and the revision, before anything is judged where the source is local.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from flexjudge_reward.data.cells import is_empty, is_number, source_media, with_media
from flexjudge_reward.data.content import content_of, options_of, rubric
from flexjudge_reward.data.lines import Lines, permutation
from flexjudge_reward.data.tables import Table, fingerprint
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.media.base import KINDS, Media
from flexjudge_reward.offline.evaluate.benchmark import Benchmark, Part
from flexjudge_reward.types import Content, Example

_FIRST = 64  # rows of a stream that are looked at before anything is judged


@dataclass(frozen=True)
class Labelled:
    """A row with a label."""

    number: int
    id: object
    part: Part
    merits: tuple[float, ...]
    """A number per candidate, higher is better."""
    groups: Mapping[str, str]
    example: Example


@dataclass(frozen=True)
class Source:
    """Where the rows of one part are."""

    name: str
    version: str
    rows: Any  # numbered rows: `Table` or `Lines`, or a list
    local: bool = True

    def numbered(self, seed: int) -> Iterator[tuple[int, Any]]:
        """The rows as they are, with their numbers, in random order; a table has that from its opening."""
        if isinstance(self.rows, list):
            return (self.rows[index] for index in permutation(len(self.rows), seed))
        return iter(self.rows.numbered(seed))


class BenchmarkRows:
    """The rows of a benchmark from the Hub, or from a file, or a folder with a file or folder per part."""

    def __init__(
        self,
        benchmark: Benchmark,
        data: Path | None = None,
        media_root: Path | None = None,
        revision: str | None = None,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        """The rows in random order; `limit` is the most of each part.

        Without a limit a stream of the Hub keeps its order, because shuffling would hold all of it in memory. Raises
        ConfigError: there is no such data, or it cannot be read.
        """
        self.benchmark, self._roots = benchmark, () if media_root is None else (media_root,)
        self._wanted, self._seed, self._limit = revision or benchmark.revision or None, seed, limit
        if limit is not None and limit < 1:
            raise ConfigError(f"limit must be at least 1, found {limit}")
        self.sources = [self._source(part, data) for part in benchmark.parts]

    @property
    def version(self) -> str:
        """What the rows are: commits on the Hub, content of files."""
        return ", ".join(dict.fromkeys(source.version for source in self.sources))

    def check(self) -> None:
        """Reads all rows, or the first of a stream of the Hub, and compares the balance of labels.

        Raises ConfigError: as the module says; or the labels have the counts of the other direction.
        """
        for part, source in zip(self.benchmark.parts, self.sources, strict=True):
            counts: Counter[str] = Counter()
            most = None if source.local else _FIRST
            for number, raw in islice(self._chosen(part, source), most):
                self._labelled(part, source, number, raw)
                counts[_shown(_cell(raw, part.label["column"])) if "column" in part.label else ""] += 1
            if not counts:
                raise ConfigError(f"{source.name} has no rows for {self.benchmark.title} {part.name}".rstrip())
            if most is None:
                self._check_balance(part, source, counts)

    def read(self) -> Iterator[Labelled]:
        """The rows that have a label. Raises as `check`."""
        for part, source in zip(self.benchmark.parts, self.sources, strict=True):
            rows = (self._labelled(part, source, *row) for row in self._chosen(part, source))
            yield from islice((row for row in rows if row is not None), self._limit)

    def _source(self, part: Part, data: Path | None) -> Source:
        beside = self.benchmark.folder / self.benchmark.get
        where = data or (beside if beside.is_file() else None)
        if where is None and not self.benchmark.source:
            raise ConfigError(f"{self.benchmark.title} is not on the Hub: {self.benchmark.get}; then give it as --data")
        if where is None:
            seed = None if self._limit is None else self._seed
            table = Table.open(self.benchmark.source, part.split, part.config, seed, self._wanted)
            name = f"{self.benchmark.source} at revision {table.version.split('@')[-1]}"
            return Source(name, table.version, table, local=False)
        if where.is_dir() and part.name:
            found = [path for path in sorted(where.iterdir()) if path.name.split(".")[0] == part.name]
            where = found[0] if found else where
        if not where.exists():
            raise ConfigError(f"there is no file or folder {str(where)!r} for {self.benchmark.title}")
        version = fingerprint(where)
        return Source(f"{where.name} (content {version[:12]})", version, self._opened(where, part))

    def _opened(self, path: Path, part: Part) -> Any:
        if path.suffix == ".json":
            return _json_rows(path, part.json)
        if part.header and path.suffix in (".txt", ".csv"):
            try:
                whole = [line.strip() for line in path.read_text("utf-8").splitlines()]
            except ValueError as error:
                raise ConfigError(f"{path} cannot be read as text: {error}") from None
            lines = [re.split(r"[,\s]+", line) for line in whole if line]
            kept = lines[1:] if lines and lines[0] == list(part.header) else lines
            return [(number, dict(zip(part.header, fields, strict=False))) for number, fields in enumerate(kept)]
        if path.is_dir() or path.suffix == ".parquet":
            return Table.open(path, part.split, seed=self._seed)
        return Lines(path)

    def _chosen(self, part: Part, source: Source) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The rows of a part, with their columns checked."""
        for number, raw in source.numbered(self._seed):
            if not isinstance(raw, Mapping):
                raise ConfigError(f"{source.name}, row {number}: expected an object with columns, found {raw!r:.80}")
            for name in part.where or {}:
                if name not in raw:
                    raise ConfigError(f"{source.name}: column {name!r} is missing; it has {', '.join(map(str, raw))}")
            if all(raw[name] in values for name, values in (part.where or {}).items()):
                yield number, self._checked(part, source, number, raw)

    def _checked(self, part: Part, source: Source, number: int, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        found = dict(raw)
        for name, kind in part.columns.items():
            names, wanted = name.split("|"), kind.removesuffix("?")
            held = next((one for one in names if one in raw), None)
            if held is None and not kind.endswith("?"):
                raise ConfigError(
                    f"{source.name}: column {' or '.join(map(repr, names))} is missing; it has"
                    f" {', '.join(map(str, raw))}. Was the schema changed? It was read from: {self.benchmark.schema}"
                )
            value = found[names[0]] = None if held is None else raw[held]
            if not _fits(value, wanted, kind.endswith("?")):
                raise ConfigError(
                    f"{source.name}, row {number}: column {held!r} holds {_shown(value)}, and {wanted} is expected"
                )
            if wanted == "number or text" and isinstance(value, str):
                found[names[0]] = float(value)
        return found

    def _labelled(self, part: Part, source: Source, number: int, raw: Mapping[str, Any]) -> Labelled | None:
        """The row with its label; None for one that the benchmark leaves out."""
        spec = part.example
        try:
            candidates = _candidates(spec, raw)
            merits = _merits(part.label, raw, spec, len(candidates))
            if not merits:
                return None
            if len(merits) != len(candidates):
                raise ConfigError(f"the label is about {len(merits)} candidates, and there are {len(candidates)}")
            example = self._example(spec, raw, candidates)
            name = _cell(raw, spec["id"]) if "id" in spec else number
            groups = {group: _group(rule, raw, part) for group, rule in self.benchmark.groups.items()}
        except (LookupError, TypeError, ValueError, AttributeError, re.error) as error:  # of a file of the user's own
            why = error if isinstance(error, ConfigError) else f"{self.benchmark.name} cannot read it: {error!r:.200}"
            raise ConfigError(f"{source.name}, row {number}: {why}") from None
        return Labelled(number, name, part, merits, groups, example)

    def _example(self, spec: Mapping[str, Any], raw: Mapping[str, Any], candidates: Sequence[Any]) -> Example:
        question = self._content(_parts(spec["question"], raw, spec), "question")
        shown = [self._content(one, "candidate") for one in candidates]
        criteria = rubric(_cell(raw, spec["criteria"])) if "criteria" in spec else None
        return Example(question, shown, rubric=criteria)

    def _content(self, parts: Any, what: str) -> Content:
        def make(kind: str, source: Any, part: Mapping[str, Any]) -> Media:
            return source_media(kind, source, self._roots, options_of(kind, part))

        return content_of(parts or "", what, make)

    def _check_balance(self, part: Part, source: Source, counts: Counter[str]) -> None:
        """Labels that occur as often as their opposites should: the direction was reversed under the same name."""
        wanted = part.balance or {}
        found = {value: counts[value] for value in wanted}
        if wanted and found != wanted and sorted(found.values()) == sorted(wanted.values()):
            raise ConfigError(
                f"{source.name}: the direction of column {part.label['column']!r} is reversed: {found} where {wanted}"
                " is known. Correct the map of its label in a copy of the benchmark's file, or pin --data-revision"
            )


def _json_rows(path: Path, entry: str | None) -> list[tuple[int, Any]]:
    """The rows of one JSON list, or of the list in an entry. Raises ConfigError."""
    try:
        found = json.loads(path.read_text("utf-8"))
        rows = found[entry] if entry else found
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as JSON rows: {type(error).__name__}: {error}") from None
    if not isinstance(rows, list):
        raise ConfigError(f"{path} holds {type(rows).__name__}, and a list of rows is expected")
    return list(enumerate(rows))


# ------------------------------------------------------------------------------------------ cells


def _cell(raw: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of an entry of the object in it."""
    value: Any = raw
    for name in [column] if column in raw else column.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise ConfigError(f"column {column!r} is missing")
        value = value[name]
    return value


def _parts(spec: Sequence[Mapping[str, str]], raw: Mapping[str, Any], example: Mapping[str, Any]) -> list[Any]:
    parts: list[Any] = []
    for one in spec:
        ((kind, column),) = one.items()
        if kind == "words":
            parts.append(column)
            continue
        value = _cell(raw, column)
        values = value if isinstance(value, list) and not (kind == "video" and value) else [value]
        for single in (single for single in values if not is_empty(single)):
            parts.append(str(single) if kind == "text" else {kind: _media(single, kind, example)})
    return parts


def _media(value: Any, kind: str, example: Mapping[str, Any]) -> Any:
    if isinstance(value, str) and KINDS[kind].is_file:
        return value.removeprefix(example.get("strip", ""))
    return with_media(value, kind)


def _candidates(spec: Mapping[str, Any], raw: Mapping[str, Any]) -> list[Any]:
    wanted = spec["candidates"]
    if not isinstance(wanted, Mapping):
        return [_parts(one, raw, spec) for one in wanted]
    found = []
    for column in wanted["each"]:
        values = _cell(raw, column)
        if not isinstance(values, list):
            raise ConfigError(f"column {column!r} holds {_shown(values)}, and a list is expected")
        found += [_cell(one, wanted["field"]) if "field" in wanted else one for one in values]
    return found


def _merits(label: Mapping[str, Any], raw: Mapping[str, Any], spec: Mapping[str, Any], count: int) -> tuple[float, ...]:
    if label["read"] == "right":
        first = len(_cell(raw, spec["candidates"]["each"][0]))
        return tuple(float(index < first) for index in range(count))
    column = label["column"]
    value = _cell(raw, column)
    wrong = ConfigError(f"column {column!r} holds {_shown(value)}, which is no label of the kind {label['read']!r}")
    if label["read"] == "map":
        if _shown(value) not in label["map"]:
            raise ConfigError(f"column {column!r} holds {_shown(value)}; known are {', '.join(label['map'])}")
        return tuple(map(float, label["map"][_shown(value)]))
    if label["read"] == "number":
        if not is_number(value):
            raise wrong
        return (round(float(value), label.get("round", 9)),)
    if label["read"] == "numbers":
        if not (isinstance(value, list) and all(map(is_number, value))):
            raise wrong
        return tuple(map(float, value))
    if label["read"] == "ranks":
        if not isinstance(value, list) or sorted(value) != list(range(count)):
            raise ConfigError(f"column {column!r} holds {_shown(value)}, and the ranks 0 to {count - 1} are expected")
        return tuple(-float(rank) for rank in value)
    letters = [chr(65 + index) for index in range(count)]
    if not isinstance(value, str) or sorted(value) != letters:
        raise wrong
    return tuple(float(count - value.index(letter)) for letter in letters)


def _group(rule: Mapping[str, Any], raw: Mapping[str, Any], part: Part) -> str:
    """The group of a row: its part, a cell, or what the beginning of a cell says; "" where the column is missing."""
    if "column" not in rule:
        return str(part.name)
    if rule["column"] not in raw:
        return ""
    value = str(raw[rule["column"]])
    if "pattern" in rule:
        match = re.match(rule["pattern"], value)
        return match[1] if match else ""
    for group, prefixes in rule.get("prefixes", {}).items():
        if value.startswith(tuple(prefixes)):
            return str(group)
    other = rule.get("other", value)
    if "other_column" in rule:
        other = str(raw.get(rule["other_column"], ""))
    return str(rule.get("names", {}).get(other, other))


def _fits(value: Any, kind: str, optional: bool) -> bool:
    if value is None:
        return optional or kind == "any"
    if kind == "number or text":
        return is_number(value) or (isinstance(value, str) and re.fullmatch(r"\s*-?\d+(\.\d+)?\s*", value) is not None)
    checks = {"text": isinstance(value, str), "number": is_number(value), "list": isinstance(value, list)}
    if kind in ("texts", "numbers"):
        test = is_number if kind == "numbers" else lambda one: isinstance(one, str)
        return isinstance(value, list) and all(map(test, value))
    if kind not in (*checks, "any"):
        raise ConfigError(f"a column is text, number, 'number or text', texts, numbers, list or any, found {kind!r}")
    return checks.get(kind, True)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and len(value) < 40 else f"{value!r:.80}"
