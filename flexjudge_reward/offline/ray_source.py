"""Files as Ray Data reads them here: undecoded rows, each with its file and number. Imports Ray: import it late.

Promised: what a row means is decided where it is judged (`blocks.py`), so that one bad row never ends a file. Files are
read wherever pyarrow reads them: a local or shared folder, s3://, gs://, hdfs://.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from ray.data.datasource import FileBasedDatasource

from flexjudge_reward.data.lines import cells, csv_text, is_csv, numbered_lines
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.offline.blocks import FILE_ROW, LINE, WHY_NOT

_ROWS = 1024  # of one table


class FileRows(FileBasedDatasource):  # type: ignore[misc]
    """The rows of many files of one kind, by the names that they have below their folder."""

    def __init__(self, paths: list[str], folder: str, filesystem: Any) -> None:
        super().__init__(paths, filesystem=filesystem)
        self._folder = folder

    def _open_input_source(self, filesystem: Any, path: str, **arguments: Any) -> Any:
        if Path(path).suffix == ".parquet":  # which is read from its end
            return filesystem.open_input_file(path)
        return super()._open_input_source(filesystem, path, **arguments)

    def _read_stream(self, f: Any, path: str) -> Iterator[pa.Table]:
        name = path.removeprefix(self._folder).lstrip("/") or path.rpartition("/")[2]
        if Path(path).suffix == ".parquet":
            yield from _parquet(f, name)
        else:
            yield from _lines(f, name)


def _parquet(file: Any, name: str) -> Iterator[pa.Table]:
    first = 0
    for batch in parquet.ParquetFile(file).iter_batches(_ROWS):
        table = pa.Table.from_batches([batch])
        if FILE_ROW in table.column_names:
            table = table.drop_columns(FILE_ROW)
        yield table.append_column(FILE_ROW, pa.array(_places(name, range(first, first + table.num_rows))))
        first += table.num_rows


def _lines(file: Any, name: str) -> Iterator[pa.Table]:
    """JSON lines as they are, and the cells of CSV as JSON lines."""
    opened = io.BufferedReader(file)
    if not is_csv(Path(name)):
        yield from _tables(numbered_lines(opened), name)
        return
    with csv_text(opened) as text:
        rows = enumerate(cells(text))
        yield from _tables(((n, json.dumps(row).encode() if isinstance(row, dict) else row) for n, row in rows), name)


def _tables(rows: Iterator[tuple[int, bytes | ConfigError]], name: str) -> Iterator[pa.Table]:
    while batch := list(islice(rows, _ROWS)):
        lines = [None if isinstance(row, ConfigError) else row for _, row in batch]
        errors = [str(row) if isinstance(row, ConfigError) else None for _, row in batch]
        columns = [_places(name, (number for number, _ in batch)), lines, errors]
        yield pa.table(columns, pa.schema([(FILE_ROW, pa.string()), (LINE, pa.binary()), (WHY_NOT, pa.string())]))


def _places(name: str, numbers: Any) -> list[str]:
    return [f"{name}:{number:09}" for number in numbers]
