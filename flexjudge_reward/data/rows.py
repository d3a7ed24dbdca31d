"""The rows of a file or data set, as examples: the one reader of `score`, `rerank` and `annotate`.

    answers.jsonl, answers.csv   a file of rows, plain, .gz or .zst (`lines.py`)
    answers.parquet              a file of `datasets`, pandas and so on
    answers/                     a folder as `Dataset.save_to_disk` leaves it, or that `load_dataset` reads
    org/name                     a data set of the Hub, streamed: it is never downloaded as a whole

A row, whatever it is read from:

    {"id": 7, "question": "What is top left?", "answer": "a cat", "images": ["pics/7.png"], "reference": "a dog"}

`answer` is one candidate, `candidates` a list of them. A question or candidate is a text, a number, a list of parts or
a conversation (`content.py`); candidates that are whole conversations share their beginning with the question, or are
all of it (`conversations.py`). What is judged of a candidate is said in `completion.py`. `reference` is one right
answer or a list of them. The media of `image`, `images`, `video`, `videos`, `audio` and `audios` fill the places in the
question that have no source, or go before it; one may stand for a list of one, and under `audio` a list for several.
They are paths relative to the media root, which they may not leave, or data URIs. `rubric` is a built-in name, criteria
in words, or an object with criteria, low, high and decimals. Other entries are ignored.

A data set may hold the files themselves, wherever a path may be; they are read undecoded, and a damaged one fails its
row only. Its rows need no id: the default is the row's index, from 0.

A row that cannot be used is a `BadRow` in its place, and the next one comes; `strict` makes it the end.

Promised: a row is data. No URL in it is fetched, no file outside the media root is opened, no code of a data set is
run. Files and folders are checked whole before anything is judged, of a Hub data set the columns and the first rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict, Unpack, get_args

from flexjudge_reward.data.cells import MEDIA_COLUMNS, columns_of, held_media, source_media, with_media
from flexjudge_reward.data.completion import Completion, open_thought, thought_of
from flexjudge_reward.data.content import completion_of, content_of, options_of, reference_of, rubric
from flexjudge_reward.data.conversations import MISSING, split, with_roles
from flexjudge_reward.data.lines import Lines
from flexjudge_reward.data.tables import Table, fingerprint
from flexjudge_reward.errors import ConfigError, MissingExtra
from flexjudge_reward.media.base import Media
from flexjudge_reward.types import Example

_MEDIA = tuple(name for kind in MEDIA_COLUMNS for name in (kind, f"{kind}s"))
ENTRIES = ("id", "question", "answer", "candidates", *_MEDIA, "reference", "rubric")
"""What is read of a row."""
_FIRST = 64  # rows of a Hub stream; at least one of them must be usable
_log = logging.getLogger("flexjudge_reward")


class RowOptions(TypedDict, total=False):
    """How a file or data set is read; None means "not given"."""

    media_root: Path | None  # the folder below which media files may be read
    split: str | None  # of a data set; needed if it has several; or a part, such as train[:1000]
    config_name: str | None  # of a data set; needed if it has several configurations
    columns: Mapping[str, Sequence[str]] | None
    """The names that entries have here. Several columns are one list: {"candidates": ["jpg_0", "jpg_1"]}; an empty list
    ignores an entry that has another meaning here: {"id": []}."""
    limit: int | None  # the most rows, after shuffling
    shuffle_seed: int | None  # for a random order; without one the rows come as they are
    completion: Completion | None  # which part of a candidate is judged: "answer" (the default) or "all"
    strict: bool | None  # a row that cannot be used ends the run
    ignored_columns: str | None  # names, separated by commas, of columns with media that the judge does not see


@dataclass(frozen=True)
class Row:
    """One example, with what names it in the output."""

    number: int  # the line of a file, from 1; the index in a data set, from 0
    id: object
    example: Example
    entry: Mapping[str, Any]  # the row as given, by the names above; an image that is not a path is a `Media`


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    number: int
    id: object
    why: str
    example: None = None


class Rows:
    """The rows of one source; each pass reads it anew."""

    def __init__(self, source: str | Path, **options: Unpack[RowOptions]) -> None:
        """Raises ConfigError: no such source, or it cannot be read or lacks a column; and MissingExtra."""
        self.name = str(source)
        root = options.get("media_root")
        self._roots = () if root is None else (root,)
        self._columns = dict(options.get("columns") or {})
        if wrong := set(self._columns) - set(ENTRIES):
            raise ConfigError(f"there is no entry {sorted(wrong)[0]!r} to name; there are {', '.join(ENTRIES)}")
        self._split, self._config_name = options.get("split"), options.get("config_name")
        self._completion: Completion = options.get("completion") or "answer"
        if self._completion not in get_args(Completion):
            raise ConfigError(f"completion is one of {', '.join(get_args(Completion))}, found {self._completion!r}")
        self._ignored = {name.strip() for name in (options.get("ignored_columns") or "").split(",")}
        self._limit, self._seed, self._strict = options.get("limit"), options.get("shuffle_seed"), options.get("strict")
        if self._limit is not None and self._limit < 1:
            raise ConfigError(f"limit must be at least 1, found {self._limit!r}")
        self._source = self._open(Path(source))
        self.unit = self._source.unit  # what a row's number counts
        self.first_bad: BadRow | None = None  # of the passes so far

    def _open(self, source: Path) -> Table | Lines:
        if source.is_file() and source.suffix != ".parquet":
            if self._split or self._config_name:
                hint = "--limit N takes its first rows"
                raise ConfigError(f"{self.name} is a file of lines, which has no splits or configurations; {hint}")
            return Lines(source)
        table = Table.open(self.name, self._split, self._config_name, self._seed)
        self._check_columns(table)
        return table

    def __str__(self) -> str:
        """The source without its folder, or with its commit on the Hub, and how it is read."""
        name = Path(self.name).name
        if isinstance(self._source, Table) and not self._source.local:
            name = self._source.version
        how = [value for value in (self._config_name, self._split) if value]
        how += [f"{entry}={column}" for entry, columns in self._columns.items() for column in columns]
        parts = {"limit": self._limit, "shuffle seed": self._seed}
        how += [f"{name} {value}" for name, value in parts.items() if value is not None]
        return f"{name} ({', '.join(how)})" if how else name

    def verify(self, check: Callable[[Row], None], unique: bool = False) -> int | None:
        """The number of rows, if it is known; nothing is generated and no media is opened.

        Reads every row of a file or folder, and the first ones of a Hub data set, up to one that can be used. `check`
        raises ConfigError for a row that cannot; with `unique`, every row needs an id of its own.

        Raises ConfigError: no rows, none that can be used, or under `strict` one that cannot, named by its number.
        """
        local, count, usable = self._source.local, 0, False
        for row in self.read(check, unique):
            count += 1
            usable = usable or isinstance(row, Row)
            if not local and (usable or count == _FIRST):
                break
        if not count:
            raise ConfigError(f"{self.name} has no rows")
        if not usable and self.first_bad is not None:
            others = f" (and none of {count} rows can be used)" if count > 1 else ""
            raise ConfigError(f"{self._named(self.first_bad.number)}: {self.first_bad.why}{others}")
        if local:
            return count
        total = self._source.total
        return total if total is None or self._limit is None else min(total, self._limit)

    def read(self, check: Callable[[Row], None], unique: bool = False) -> Iterator[Row | BadRow]:
        """The rows, one at a time; blank lines are skipped. Arguments and errors as for `verify`."""
        seen: dict[str, int] = {}
        for number, raw in islice(self._source.numbered(self._seed), self._limit):
            try:
                if isinstance(raw, ConfigError):
                    raise raw
                row = self._row(number, self._entry(raw))
                check(row)
                if unique:
                    self._check_id(row, seen)
            except MissingExtra:
                raise
            except (ValueError, RecursionError) as error:  # a ConfigError is a ValueError
                if self._strict:
                    raise ConfigError(f"{self._named(number)}: {error}") from None
                bad = BadRow(number, self._id(number, raw), str(error))
                self.first_bad = self.first_bad or bad
                yield bad
                continue
            yield row

    def report(self, skipped: int, total: int) -> None:
        """Logs how many rows could not be used, and why the first could not."""
        if skipped and self.first_bad is not None:
            first = f"{self.unit} {self.first_bad.number}: {self.first_bad.why}"
            _log.warning("%s: %d of %d rows cannot be used and were skipped; %s", self.name, skipped, total, first)

    def fingerprint(self) -> str:
        """A hash in hex of all that the rows are made of: the content of files, the commit of a Hub data set."""
        content = self._source.version if isinstance(self._source, Table) else fingerprint(self._source.path)
        part = [self._split, self._config_name, self._limit, self._seed, self._completion]
        how = json.dumps([part, self._columns], sort_keys=True, default=list)
        return hashlib.sha256(f"{content}\n{how}".encode("utf-8", "surrogatepass")).hexdigest()

    def check_output_path(self, output: Path) -> None:
        """Raises ConfigError if `output` would overwrite the source, or become part of it."""
        source = Path(self.name)
        if source.exists() and output.resolve().is_relative_to(source.resolve()):
            raise ConfigError(f"the output {str(output)!r} would change the input {self.name!r}; give another place")

    def _named(self, number: int) -> str:
        return f"{self.name}, {self.unit} {number}"

    def _id(self, number: int, given: Any) -> object:
        """The id of a row that may be damaged otherwise."""
        columns = self._columns.get("id", ["id"])
        named = given.get(columns[0]) if isinstance(given, dict) and len(columns) == 1 else None
        return number if named is None and isinstance(self._source, Table) else named

    def _entry(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A row by the names of this module, with its media in lists by the plural of their kinds."""
        for name, value in given.items():
            if name not in self._seen and (kind := held_media(value)):
                raise ConfigError(self._unseen(name, kind))
        entry = {name: value for name, value in given.items() if name not in self._replaced}
        for name, columns in self._columns.items():
            if missing := [column for column in columns if column not in given]:
                raise ConfigError(f"the entry {missing[0]!r} is missing; there are {', '.join(map(str, given))}")
            if columns:
                entry[name] = [given[column] for column in columns] if len(columns) > 1 else given[columns[0]]
        for kind in MEDIA_COLUMNS:
            if kind in entry or f"{kind}s" in entry:
                entry[f"{kind}s"] = [with_media(one, kind) for one in columns_of(kind, entry)]
                entry.pop(kind, None)
        named = "answer" if "answer" in entry else "candidates"
        given_candidates = [entry["answer"]] if named == "answer" else entry.get(named)
        if isinstance(given_candidates, list):
            asked = with_roles(entry.get("question", MISSING))
            question, candidates = split(asked, list(map(with_roles, given_candidates)))
            entry[named] = candidates[0] if named == "answer" else candidates
            if question is not MISSING:
                entry["question"] = question
        for name in {"question", "answer", "reference"} & entry.keys():
            entry[name] = _lone_content(with_media(entry[name]))
        if isinstance(entry.get("candidates"), list):
            entry["candidates"] = [_lone_content(with_media(candidate)) for candidate in entry["candidates"]]
        return entry

    @cached_property
    def _seen(self) -> set[str]:
        """The columns that are read, and those that the user says the judge need not see."""
        return {*ENTRIES, *self._ignored, *(column for columns in self._columns.values() for column in columns)}

    def _unseen(self, column: str, kind: str) -> str:
        named = f"--column {kind}s={column} shows them, --ignored-columns {column} leaves them out"
        return f"{column!r} holds {kind}s, which the judge would not see: {named}"

    @cached_property
    def _replaced(self) -> set[str]:
        """The entries that mean something else in this source."""
        replaced = set(self._columns)
        if not replaced.isdisjoint(("answer", "candidates")):  # a named one replaces both: many sets have a true answer
            replaced |= {"answer", "candidates"}
        for kind in MEDIA_COLUMNS:
            if not replaced.isdisjoint((kind, f"{kind}s")):
                replaced |= {kind, f"{kind}s"}
        # An image that is named as a candidate is not shown with the question, too.
        return replaced | {column for columns in self._columns.values() for column in columns if column in _MEDIA}

    def _row(self, number: int, entry: dict[str, Any]) -> Row:
        table = isinstance(self._source, Table)
        name = entry.get("id", number if table or self.unit == "row" else None)
        if table and not isinstance(name, str | int | None):
            raise ConfigError(f"an id is a text or a whole number, found {name!r:.80}; name another column")
        return Row(number, name, self._example(entry), entry)

    def _example(self, entry: Mapping[str, Any]) -> Example:
        if "question" not in entry:
            there = f"{', '.join(map(str, entry)):.200}"
            raise ConfigError(f"the entry 'question' is missing; there are {there}: --column question=NAME names it")
        if ("answer" in entry) == ("candidates" in entry):
            raise ConfigError("give either 'answer' or 'candidates'; under another name: --column answer=NAME")
        candidates = [entry["answer"]] if "answer" in entry else entry["candidates"]
        if not isinstance(candidates, list):
            raise ConfigError(f"'candidates' must be a list, found {type(candidates).__name__}")
        if not candidates:
            raise ConfigError("'candidates' is empty")
        make = partial(_media, self._roots)
        shown = [kind for kind in MEDIA_COLUMNS if f"{kind}s" in entry]
        media = [(kind, [make(kind, one, {}) for one in entry[f"{kind}s"]]) for kind in shown]
        question, opened = entry["question"], open_thought(entry["question"])
        return Example(
            content_of(question, "question", make, media),
            [completion_of(candidate, "candidate", make, self._completion, opened) for candidate in candidates],
            reference_of(entry.get("reference"), make),
            rubric(entry.get("rubric")),
        )

    def _check_id(self, row: Row, seen: dict[str, int]) -> None:
        if row.id is None:
            raise ConfigError("the entry 'id' is missing")
        first = seen.setdefault(json.dumps(row.id, sort_keys=True), row.number)
        if first != row.number:
            numbered = "; --column id= numbers the rows instead" if isinstance(self._source, Table) else ""
            raise ConfigError(f"the id {row.id!r} is that of {self.unit} {first}, too{numbered}")

    def _check_columns(self, table: Table) -> None:
        named = [column for columns in self._columns.values() for column in columns]
        known = {*table.columns, *self._columns}
        judged = not known.isdisjoint(("answer", "candidates"))  # whole conversations have their question in them
        wanted = [*named, *(() if judged or "question" in known else ["question"])]
        if not judged:
            wanted.append("candidates")
        if lacking := [column for column in wanted if column not in table.columns]:
            raise ConfigError(
                f"{self.name} has no column {lacking[0]!r}; it has {', '.join(table.columns)}."
                f" Say which it is: --column {'NAME' if lacking[0] in named else lacking[0]}=COLUMN"
            )
        for column, kind in table.media_columns.items():
            if column not in self._seen:
                raise ConfigError(f"{self.name}: {self._unseen(column, kind)}")


def _lone_content(value: Any) -> Any:
    """The content of a lone chat message that has nothing beside it; everything else as it is."""
    match value:
        case [{"role": str(), "content": content, **more} as message]:
            kept = any(more.get(name) for name in ("tool_calls", "function_call", "refusal"))
            return value if kept or thought_of(message) else content
    return value


def _media(roots: Sequence[Path], kind: str, source: Any, part: Mapping[str, Any]) -> Media:
    return source_media(kind, source, roots, options_of(kind, part))
