"""Blocks of rows: what one member of a pool of judges does on Ray Data. A table comes in, a table of results goes out.

A table of rows is a part of a .parquet file, or of a file of lines (columns LINE and WHY_NOT). In both the column
`file_row` names the row by its file and its number there: "part-3.jsonl:000000017". These texts are unique, they sort
as the rows do, and every row of the output has that of the row that it is about.

Columns of the output of `score` and `rerank`: those of `score.py` without the row's number. Of `annotate`: those of a
data set of pairs (`dataset.py`), and `kept`, `pair`, `why`, `detail`, which say of every other pair, and of every row
that cannot be used, why it was skipped. What may be of any kind, such as a question, is a column of JSON.

Promised: the entries are those of a run on one machine, by the same functions. A row that cannot be used is a row of
the output. All rows about one row of the input are in one table. An id may be missing or repeated; a row of a data set
without one has its `file_row` as id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from flexjudge_reward.data.cells import Clip, source_media
from flexjudge_reward.data.lines import Raw, is_csv, json_object
from flexjudge_reward.data.rows import BadRow, Row, RowOptions, Rows
from flexjudge_reward.data.tables import Table
from flexjudge_reward.errors import ConfigError, EngineError
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.summary import RunSummary
from flexjudge_reward.media.base import Media
from flexjudge_reward.offline.annotate import check_answered, check_row, compare
from flexjudge_reward.offline.dataset import Shape, text_of
from flexjudge_reward.offline.journal import kept_bytes, kept_name
from flexjudge_reward.offline.pairs import Pair, PairWriter, Which, select
from flexjudge_reward.offline.score import check_row as check_scored
from flexjudge_reward.offline.score import judged_batch, rank_entries, score_entries

FILE_ROW, LINE, WHY_NOT = "file_row", "flexjudge_line", "flexjudge_why_not"
_JSON = ("id", "question", "candidates", "reference", "rubric")
CHUNK_BYTES = 32 << 20  # of one table of pairs: Ray splits a table of 192 MiB between any two rows of it


class BlockRows(Rows):
    """The rows of one table. A row's number is its `file_row`."""

    def __init__(self, name: str, table: Any, options: RowOptions) -> None:
        """Raises ConfigError: a column is missing."""
        self._table = table
        super().__init__(name, **options)

    def _open(self, source: Path) -> Any:
        if {FILE_ROW, LINE, WHY_NOT} == set(self._table.column_names):
            return _Lines(self._table)
        columns = [name for name in self._table.column_names if name != FILE_ROW]
        places, rows = self._table[FILE_ROW].to_pylist(), self._table.select(columns).to_pylist()
        table = Table(self.name, tuple(columns), {}, len(rows), True, "", rows, places)
        self._check_columns(table)
        return table

    def _named(self, number: Any) -> str:
        return str(number)


class _Lines:
    """Rows of files of lines, read when they are wanted."""

    local, total = True, None

    def __init__(self, table: Any) -> None:
        self._table = table
        first = next(iter(table[FILE_ROW].to_pylist()), "")
        self.unit = "row" if is_csv(Path(first.rpartition(":")[0])) else "line"  # of CSV, which numbers its rows

    def numbered(self, seed: int | None = None) -> Iterator[tuple[Any, Raw]]:
        """The rows by their places, or why they cannot be read."""
        for place, line, why in zip(
            *(self._table[name].to_pylist() for name in (FILE_ROW, LINE, WHY_NOT)), strict=True
        ):
            yield place, json_object(line) if why is None else ConfigError(why)


@dataclass
class ScoreJob:
    """`score`, or with a seed for ties `rerank`: one row for each row."""

    name: str
    judge: Judge
    options: RowOptions
    seed: int | None = None
    strict: bool = False

    partition: ClassVar[list[str]] = []

    def check(self, row: Row) -> None:
        """Raises ConfigError for a row that cannot be judged."""
        check_scored(self.judge, self.seed is not None, row)

    def begin(self, rows: Sequence[Row | BadRow]) -> None:
        """Looks at the first rows of the source; they decide nothing here."""

    def settings(self) -> tuple[object, ...]:
        """What decides the output, beside the rows and the judge."""
        return ("score" if self.seed is None else "rerank", self.seed)

    def __call__(self, table: Any) -> Iterator[Any]:
        """The table of results, of this schema also if it has no rows."""
        import pyarrow

        rows = list(_strict(self, BlockRows(self.name, table, self.options).read(self.check)))
        entries = score_entries if self.seed is None else partial(rank_entries, self.seed)
        found = list(judged_batch(rows, self.judge, entries, RunSummary())) if rows else []
        _check_replied(found)
        lines = [{FILE_ROW: row.number, "id": row.id, **entry} for row, entry in zip(rows, found, strict=True)]
        yield pyarrow.Table.from_pylist([_encoded(line) for line in lines], self.schema())

    def schema(self) -> Any:
        """The columns of the output."""
        import pyarrow as pa

        asked = [(name, pa.json_()) for name in _JSON]
        numbers, failure = pa.list_(pa.float64()), pa.struct([("kind", pa.string()), ("detail", pa.string())])
        ranks = [] if self.seed is None else [("order", pa.list_(pa.int64())), ("best", pa.int64())]
        judged = [("scores", numbers), ("failures", pa.list_(failure)), ("scale", numbers)]
        said = [("reasoning", pa.list_(pa.string())), *([("cached", pa.bool_())] if self.seed is None else [])]
        return pa.schema([(FILE_ROW, pa.string()), *asked, *ranks, *judged, *said, ("error", pa.string())])


@dataclass
class PairJob:
    """`annotate`: a row for each pair, kept or skipped, and for each row that cannot be used."""

    name: str
    judge: Judge  # with `pairs.pair_format`
    options: RowOptions
    which: Which
    margin: float
    strict: bool = False
    shape: Shape | None = None
    form: dict[str, str] = field(default_factory=dict)  # that of the first usable row, which all share
    _judged: bool = False  # whether a block was judged here

    partition: ClassVar[list[str]] = ["kept"]  # in folders of their own, since a trainer wants the kept ones only

    def check(self, row: Row) -> None:
        """Raises ConfigError for a row that cannot be judged, or is of another form than the first rows."""
        check_row(self.judge, self.which, self.form, row)
        if self.shape is not None and not _fits(self.shape, Shape.of([self._any_pair(row)])):
            raise ConfigError("its texts, messages or images are of another form than those of the first rows")

    def begin(self, rows: Sequence[Row | BadRow]) -> None:
        """Takes the columns from the first rows of the source."""
        self.shape = Shape.of(self._any_pair(row) for row in rows if isinstance(row, Row))

    def settings(self) -> tuple[object, ...]:
        """What decides the output, beside the rows and the judge."""
        return "annotate", self.which, self.margin

    def _any_pair(self, row: Row) -> dict[str, Any]:
        """The line of a pair of all candidates' kinds, with paths in place of its images."""
        return PairWriter(lambda media: "-").row(row, Pair(0, 1, (1.0, 0.0)))

    def __call__(self, table: Any) -> Iterator[Any]:
        """Tables of results. Raises EngineError: the judge answered nothing."""
        import pyarrow

        rows = list(_strict(self, BlockRows(self.name, table, self.options).read(self.check)))
        good = [row for row in rows if isinstance(row, Row)]
        judged = compare(good, self.judge)
        check_answered(judged, first=not self._judged)
        self._judged = self._judged or bool(judged)
        pairs, size = iter(judged), 0
        lines: list[dict[str, Any]] = []
        for row in rows:
            found = [self._skipped(row)] if isinstance(row, BadRow) else list(self._lines(row, next(pairs)))
            more = sum(map(_size, found))
            if more > 2 * CHUNK_BYTES:
                why = f"the images of its pairs take {more >> 20} MiB, and a row has at most {2 * CHUNK_BYTES >> 20}"
                found, more = [self._skipped(BadRow(row.number, row.id, why))], 0
            if size + more > CHUNK_BYTES and lines:
                yield pyarrow.Table.from_pylist(lines, self.schema())
                lines, size = [], 0
            lines, size = lines + found, size + more
        yield pyarrow.Table.from_pylist(lines, self.schema())

    def schema(self) -> Any:
        """The columns of the output, with what `datasets` has to know of them."""
        from datasets import Features, List, Value

        assert self.shape is not None
        features = self.shape.features()
        why = {name: Value("string") for name in (FILE_ROW, "why", "detail")}
        more = {"pair": List(Value("int64")), "kept": Value("bool"), **why}
        return Features({**features, **more}).arrow_schema

    def _lines(self, row: Row, pairs: Sequence[Pair]) -> Iterator[dict[str, Any]]:
        assert self.shape is not None
        root, files = self.options.get("media_root"), {}
        read = partial(source_media, roots=() if root is None else (root,), options={})

        def store(media: Media | Clip) -> str:
            name = kept_name(media)
            files[name] = kept_bytes(media)
            return name

        writer = PairWriter(store, read)
        for pair in select(pairs, self.which, self.margin):
            line = writer.row(row, pair)
            if pair.why:
                yield self._line(row, False, pair=line["pair"], why=pair.why, detail=text_of(pair.detail))
            else:
                yield self._line(row, True, pair=line["pair"], **self.shape.row(line, files.__getitem__))

    def _skipped(self, row: BadRow) -> dict[str, Any]:
        return self._line(row, False, why="row", detail=text_of(row.why))

    def _line(self, row: Row | BadRow, kept: bool, **entries: Any) -> dict[str, Any]:
        assert self.shape is not None
        whole = isinstance(row.id, int) and -(2**63) <= row.id < 2**63
        named = None if row.id is None or (self.shape.whole_ids and not whole) else row.id
        own = named if self.shape.whole_ids or named is None else text_of(named)
        return {FILE_ROW: row.number, "id": own, "kept": kept, **entries}


def _check_replied(found: Sequence[Mapping[str, Any]]) -> None:
    """Raises EngineError if no row got any reply: what is written is final, and the next block would be the same."""
    failures = [failure for entry in found for failure in entry["failures"]]
    kinds = {failure["kind"] if failure else "" for failure in failures}
    if len(found) > 1 and failures and kinds <= {"transport", "timeout"}:
        raise EngineError(f"the judge answered nothing of {len(found)} rows: {failures[0]['detail']}")


def _strict(job: ScoreJob | PairJob, rows: Iterator[Row | BadRow]) -> Iterator[Row | BadRow]:
    """The rows. Raises ConfigError at one that cannot be used, if the job is strict."""
    for row in rows:
        if job.strict and isinstance(row, BadRow):
            raise ConfigError(f"{row.number}: {row.why}")
        yield row


def _fits(shape: Shape, own: Shape) -> bool:
    """Whether a row can be written in the columns of the first rows."""
    same = own.drawn == shape.drawn and own.plain_prompt == shape.plain_prompt
    ids = own.whole_ids or not shape.whole_ids
    return same and ids and own.blocks <= shape.blocks and own.more <= shape.more and own.columns <= shape.columns


def _size(line: Mapping[str, Any]) -> int:
    """The bytes of the images of an output row."""
    values = [one for value in line.values() for one in (value if isinstance(value, list) else [value])]
    return sum(len(one["bytes"]) for one in values if isinstance(one, dict) and "bytes" in one)


def _encoded(line: Mapping[str, Any]) -> dict[str, Any]:
    """A row of results as a table holds it: what may be of any kind is JSON."""
    asked = {name: json.dumps(line[name], default=str) for name in _JSON if line.get(name) is not None}
    failures = [one and {name: text_of(text) for name, text in one.items()} for one in line["failures"]]
    texts = {name: text_of(line[name]) for name in ("error",) if name in line}
    said = [text_of(one) for one in line.get("reasoning", ())] or None
    return {**line, **asked, **texts, "failures": failures, "reasoning": said}
