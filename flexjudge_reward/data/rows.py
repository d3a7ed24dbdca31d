"""The rows of a file or data set, as examples: the one reader of `score`, `rerank` and `annotate`.

    answers.jsonl                a JSON object per line
    answers.parquet              a file of `datasets`, pandas and so on
    answers/                     a folder as `Dataset.save_to_disk` leaves it, or that `load_dataset` reads
    org/name                     a data set of the Hub, streamed: it is never downloaded as a whole

A row, whatever it is read from:

    {"id": 7, "question": "What is top left?", "answer": "a cat", "images": ["pics/7.png"], "reference": "a dog"}

`answer` is one candidate, `candidates` a list of them. A question, candidate or reference is a text, a list of parts or
a conversation (`content.py`). The media of `images` and `videos` fill the places in the question that have no source,
or go before it. Paths are relative to the media root and may not leave it. `rubric` is a built-in name, criteria in
words, or an object with criteria, low, high and decimals. Other entries are ignored.

A data set may hold images themselves, wherever a path may be; they are read undecoded, and a damaged one fails its row
only. One image may replace a list of one. Its rows need no id: the default is the row's index, from 0.

Promised: a row is data. No URL in it is fetched, no file outside the media root is opened, no code of a data set is
run. Files and folders are checked whole before anything is judged, of a Hub data set the columns and the first row.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

from flexjudge_reward.data.content import content_of, options_of, rubric
from flexjudge_reward.data.tables import Table, fingerprint
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.media.base import KINDS, Media
from flexjudge_reward.types import Example

ENTRIES = ("id", "question", "answer", "candidates", "images", "videos", "reference", "rubric")
"""What is read of a row."""
_log = logging.getLogger("flexjudge_reward")


class RowOptions(TypedDict, total=False):
    """How a file or data set is read; None means "not given"."""

    media_root: Path | None  # the folder below which media files may be read
    split: str | None  # of a data set; needed if it has several
    config_name: str | None  # of a data set; needed if it has several configurations
    columns: Mapping[str, Sequence[str]] | None
    """The names that entries have here. Several columns are one list: {"candidates": ["jpg_0", "jpg_1"]}; an empty list
    ignores an entry that has another meaning here: {"id": []}."""


@dataclass(frozen=True)
class Row:
    """One example, with what names it in the output."""

    number: int  # the line of a file, from 1; the index in a data set, from 0
    id: object
    example: Example
    entry: Mapping[str, Any]  # the row as given, by the names above; an image that is not a path is a `Media`


class Rows:
    """The rows of one source; each pass reads it anew."""

    def __init__(self, source: str | Path, **options: Unpack[RowOptions]) -> None:
        """Raises ConfigError: no such source, or it cannot be read or lacks a column; and MissingExtra."""
        self.name = str(source)
        self._root = options.get("media_root")
        self._columns = dict(options.get("columns") or {})
        if wrong := set(self._columns) - set(ENTRIES):
            raise ConfigError(f"there is no entry {sorted(wrong)[0]!r} to name; there are {', '.join(ENTRIES)}")
        self._split, self._config_name = options.get("split"), options.get("config_name")
        self._table: Table | None = None
        if Path(source).is_file() and Path(source).suffix != ".parquet":
            if self._split or self._config_name:
                raise ConfigError(f"{self.name} is a file of lines, which has no splits or configurations")
        else:
            self._table = Table.open(source, self._split, self._config_name)
            self._check_columns(self._table)
        self.unit = "line" if self._table is None else "row"  # what a row's number counts

    def __str__(self) -> str:
        """The source without its folder, or with its commit on the Hub, and how it is read."""
        name = Path(self.name).name
        if self._table is not None and not self._table.local:
            name = self._table.version
        how = [value for value in (self._config_name, self._split) if value]
        how += [f"{entry}={column}" for entry, columns in self._columns.items() for column in columns]
        return f"{name} ({', '.join(how)})" if how else name

    def verify(self, check: Callable[[Row], None], unique: bool = False) -> int | None:
        """The number of rows, if it is known; nothing is generated and no media is opened.

        Reads every row of a file or folder, and the first of a Hub data set. `check` raises ConfigError for a row that
        cannot be used; with `unique`, every row needs an id of its own.

        Raises ConfigError: no rows, or one that is wrong, named by its number.
        """
        rows = self.read(check, unique)
        if next(rows, None) is None:
            raise ConfigError(f"{self.name} has no rows")
        if self._table is not None and not self._table.local:
            return self._table.total
        return 1 + sum(1 for _ in rows)

    def read(self, check: Callable[[Row], None], unique: bool = False) -> Iterator[Row]:
        """The rows, one at a time; blank lines are skipped. Arguments and errors as for `verify`."""
        seen: dict[str, int] = {}
        for number, raw in self._raw():
            try:
                row = self._row(number, self._entry(raw))
                check(row)
                if unique:
                    self._check_id(row, seen)
            except (ValueError, RecursionError) as error:  # ConfigError and JSON and UTF-8 errors are all ValueErrors
                raise ConfigError(f"{self.name}, {self.unit} {number}: {error}") from None
            yield row

    def fingerprint(self) -> str:
        """A hash in hex of all that the rows are made of: the content of files, the commit of a Hub data set."""
        content = fingerprint(Path(self.name)) if self._table is None else self._table.version
        how = json.dumps([self._split, self._config_name, self._columns], sort_keys=True, default=list)
        return hashlib.sha256(f"{content}\n{how}".encode("utf-8", "surrogatepass")).hexdigest()

    def check_output_path(self, output: Path) -> None:
        """Raises ConfigError if `output` would overwrite the source, or become part of it."""
        source = Path(self.name)
        if source.exists() and output.resolve().is_relative_to(source.resolve()):
            raise ConfigError(f"the output {str(output)!r} would change the input {self.name!r}; give another place")

    def _raw(self) -> Iterator[tuple[int, Any]]:
        if self._table is not None:
            yield from enumerate(self._table.rows())
            return
        with open(self.name, "rb") as lines:
            yield from ((number, line) for number, line in enumerate(lines, start=1) if line.strip())

    def _entry(self, raw: Any) -> dict[str, Any]:
        """A row by the names of this module."""
        given = json.loads(raw) if self._table is None else raw
        if not isinstance(given, dict):
            raise ConfigError(f"expected a JSON object, found {type(given).__name__}")
        replaced = set(self._columns)
        if not replaced.isdisjoint(("answer", "candidates")):  # a named one replaces both: many sets have a true answer
            replaced |= {"answer", "candidates"}
        entry = {name: value for name, value in given.items() if name not in replaced}
        for name, columns in self._columns.items():
            if missing := [column for column in columns if column not in given]:
                raise ConfigError(f"the entry {missing[0]!r} is missing; there are {', '.join(given)}")
            if columns:
                entry[name] = [given[column] for column in columns] if len(columns) > 1 else given[columns[0]]
        for name in {"question", "answer", "reference"} & entry.keys():
            entry[name] = _lone_content(entry[name])
        if isinstance(entry.get("candidates"), list):
            entry["candidates"] = [_lone_content(candidate) for candidate in entry["candidates"]]
        for name in sorted({"images", "videos"} & entry.keys()):
            if self._table is not None or name in self._columns:
                entry[name] = _listed(entry[name])
            if not isinstance(entry[name], list):
                raise ConfigError(f"{name!r} must be a list of paths, found {type(entry[name]).__name__}")
        return entry

    def _row(self, number: int, entry: dict[str, Any]) -> Row:
        name = entry.get("id", None if self._table is None else number)
        if self._table is not None and not isinstance(name, str | int | None):
            raise ConfigError(f"an id is a text or a whole number, found {name!r:.80}; name another column")
        return Row(number, name, _example(entry, self._root), entry)

    def _check_id(self, row: Row, seen: dict[str, int]) -> None:
        if row.id is None:
            raise ConfigError("the entry 'id' is missing")
        first = seen.setdefault(json.dumps(row.id, sort_keys=True), row.number)
        if first != row.number:
            numbered = "" if self._table is None else "; --column id= numbers the rows instead"
            raise ConfigError(f"the id {row.id!r} is that of {self.unit} {first}, too{numbered}")

    def _check_columns(self, table: Table) -> None:
        named = [column for columns in self._columns.values() for column in columns]
        known = {*table.columns, *self._columns}
        wanted = [*named, *(() if "question" in known else ["question"])]
        if known.isdisjoint(("answer", "candidates")):
            wanted.append("candidates")
        if lacking := [column for column in wanted if column not in table.columns]:
            raise ConfigError(
                f"{self.name} has no column {lacking[0]!r}; it has {', '.join(table.columns)}."
                f" Say which it is: --column {'NAME' if lacking[0] in named else lacking[0]}=COLUMN"
            )
        for column in table.image_columns:
            if column not in (*named, *ENTRIES):
                shows = f"--column images={column} shows them to the judge"
                _log.warning("%s: the images in %r are not used; %s", self.name, column, shows)


def _lone_content(value: Any) -> Any:
    """The content of a lone chat message without tool calls; everything else as it is."""
    match value:
        case [{"role": str(), "content": content, **more}] if not more.get("tool_calls"):
            return content
    return value


def _listed(value: Any) -> list[Any]:
    """Images or videos of a data set's row, as a list of paths and `Media`."""
    values = [] if value is None else value if isinstance(value, list) else [value]
    return [one["image"] if isinstance(one, dict) and one.keys() == {"image"} else one for one in values]


def _example(entry: Mapping[str, Any], root: Path | None) -> Example:
    if "question" not in entry:
        raise ConfigError("the entry 'question' is missing")
    if ("answer" in entry) == ("candidates" in entry):
        raise ConfigError("give either 'answer' or 'candidates'")
    candidates = [entry["answer"]] if "answer" in entry else entry["candidates"]
    if not isinstance(candidates, list):
        raise ConfigError(f"'candidates' must be a list, found {type(candidates).__name__}")
    if not candidates:
        raise ConfigError("'candidates' is empty")
    make = partial(_media, root)
    media = [(kind, [make(kind, one, {}) for one in entry.get(f"{kind}s", [])]) for kind in ("image", "video")]
    reference = entry.get("reference")
    return Example(
        content_of(entry["question"], "question", make, media),
        [content_of(candidate, "candidate", make) for candidate in candidates],
        None if reference is None else content_of(reference, "reference", make),
        rubric(entry.get("rubric")),
    )


def _media(root: Path | None, kind: str, source: Any, part: Mapping[str, Any]) -> Media:
    """A media item of a row, from a file below `root` only."""
    if isinstance(source, Media) and source.kind == kind:
        return source
    options = options_of(kind, part)
    if not KINDS[kind].is_file:
        return Media.of(kind, source, **options)
    if not isinstance(source, str):
        raise ConfigError(f"the {kind} is given by its path, found {source!r:.80}")
    if root is None:
        raise ConfigError(f"{kind} {source!r:.200} needs a folder that files may be read from: give --media-root DIR")
    return Media.of(kind, Path(source), [root], **options)  # a relative path starts at the root
