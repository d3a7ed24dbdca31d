"""A file of rows, plain or compressed: a JSON object per line, or CSV with names in its first row.

    answers.jsonl  answers.jsonl.gz  answers.jsonl.zst  answers.csv  answers.csv.gz

Promised: rows are read one at a time. A row that cannot be read is a ConfigError in its place, and the next one comes;
a file that ends early, or is damaged, ends with a ConfigError. The cells of CSV are texts.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import shutil
import sys
import tempfile
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from flexjudge_reward.errors import ConfigError

Raw = dict[str, Any] | ConfigError
_COMPRESSED = (".gz", ".zst")
_NOT_UTF8 = "the text is not UTF-8: save the file as UTF-8, as in iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
_PACKED = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"PK\x03\x04": ".zip"}
"""How packed files begin. A spreadsheet is a .zip, too."""


class Lines:
    """The rows of one file; each pass reads it anew."""

    local, total = True, None

    def __init__(self, path: Path) -> None:
        """Raises ConfigError: it may not be read, or the package that reads its compression is missing."""
        self.path = path
        self.is_csv = is_csv(path)
        self.unit = "row" if self.is_csv else "line"
        try:
            self._opened().close()
            with path.open("rb") as file:
                begin = file.read(8)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        packed = next((ending for mark, ending in _PACKED.items() if begin.startswith(mark)), "")
        if packed not in (*_COMPRESSED, "") or packed not in (path.suffix, ""):
            advice = "give its name this ending" if packed in _COMPRESSED else "unpack it, or save it as CSV"
            raise ConfigError(f"{path} is a {packed} file: {advice}")
        if path.suffix.lower() == ".tsv":
            raise ConfigError(f"{path} has cells separated by tabs: save it as CSV, with commas")

    def numbered(self, seed: int | None = None) -> Iterator[tuple[int, Raw]]:
        """The rows with their numbers: lines from 1, or rows of CSV from 0; with a seed, all in random order.

        Raises ConfigError: the file is damaged.
        """
        rows = self._csv(seed) if self.is_csv else self._json(seed)
        number = None
        try:
            for number, row in rows:
                yield number, row
        except (OSError, EOFError, zlib.error) as error:
            after = "" if number is None else f" after {self.unit} {number}"
            raise ConfigError(f"{self.path} cannot be read{after}: {error}") from None
        except ConfigError as error:  # of all rows
            raise ConfigError(f"{self.path}: {error}") from None

    def _opened(self) -> IO[bytes]:
        if self.path.suffix == ".gz":
            return gzip.open(self.path, "rb")  # type: ignore[return-value]
        if self.path.suffix != ".zst":
            return self.path.open("rb")
        try:
            import zstandard
        except ImportError:
            raise ConfigError(
                f"{self.path} needs the package zstandard: pip install zstandard, or unpack the file first"
            ) from None
        return io.BufferedReader(_Unpacked(self.path, zstandard))

    def _json(self, seed: int | None) -> Iterator[tuple[int, Raw]]:
        with self._opened() as lines:
            if seed is None:
                yield from ((number, json_object(line)) for number, line in numbered_lines(lines))
                return
            with tempfile.TemporaryFile() if self.path.suffix in _COMPRESSED else self.path.open("rb") as plain:
                if self.path.suffix in _COMPRESSED:  # where a line begins can only be found again in the plain text
                    shutil.copyfileobj(lines, plain)
                    plain.seek(0)
                yield from _shuffled(plain, seed)

    def _csv(self, seed: int | None) -> Iterator[tuple[int, Raw]]:
        with csv_text(self._opened()) as text:
            rows = enumerate(cells(text))
            yield from rows if seed is None else _permuted(list(rows), seed)


def is_csv(path: Path) -> bool:
    """Whether a file has cells; else it has JSON lines."""
    return (Path(path.stem) if path.suffix in _COMPRESSED else path).suffix.lower() == ".csv"


class _Unpacked(io.RawIOBase):
    """A .zst file as it was. The package's own reader takes a file that was cut for a shorter one."""

    def __init__(self, path: Path, zstandard: Any) -> None:
        self._file, self._zstandard = path.open("rb"), zstandard
        self._frame: Any = None  # that is being read
        self._packed, self._plain = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            packed = self._packed or self._file.read(8192)
            if not packed and self._frame is not None:
                raise EOFError("it ends inside its compressed data")
            if not packed:
                return 0
            self._frame = self._frame or self._zstandard.ZstdDecompressor().decompressobj()
            try:
                self._plain = memoryview(self._frame.decompress(packed))
            except self._zstandard.ZstdError as error:
                raise OSError(f"it is no zstd file, or damaged: {error}") from None
            self._packed = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        count = min(len(buffer), len(self._plain))
        buffer[:count], self._plain = self._plain[:count], self._plain[count:]
        return count


def _shuffled(plain: IO[bytes], seed: int) -> Iterator[tuple[int, Raw]]:
    begins, numbers, begin = array("Q"), array("Q"), 0
    for number, line in enumerate(plain, start=1):
        if line.strip():
            begins.append(begin)
            numbers.append(number)
        begin += len(line)
    for index in permutation(len(begins), seed):
        plain.seek(begins[index])
        yield numbers[index], json_object(plain.readline())


def permutation(count: int, seed: int) -> list[int]:
    """The numbers below `count` in a random order that only the seed decides."""
    return random.Random(seed).sample(range(count), count)


def _permuted(rows: list[tuple[int, Raw]], seed: int) -> Iterator[tuple[int, Raw]]:
    return (rows[index] for index in permutation(len(rows), seed))


def numbered_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines of an open file that are not blank, with their numbers from 1."""
    return ((number, line) for number, line in enumerate(file, start=1) if line.strip())


def json_object(line: bytes) -> Raw:
    """The row that a line holds, or why it holds none."""
    try:
        given = json.loads(line)
    except UnicodeError:
        return ConfigError(_NOT_UTF8)
    except ValueError as error:
        return ConfigError(f"no JSON: {error}")
    except RecursionError:
        return ConfigError("no JSON: it is nested too deeply")
    if isinstance(given, list):
        return ConfigError("expected a JSON object, found list: write one object a line, as in jq -c '.[]' OLD > NEW")
    return given if isinstance(given, dict) else ConfigError(f"expected a JSON object, found {type(given).__name__}")


def csv_text(file: IO[bytes]) -> io.TextIOWrapper:
    """An open CSV file as text. A damaged character stays in its cell, where the row is refused."""
    return io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")


def cells(text: IO[str]) -> Iterator[Raw]:
    """The rows of an open CSV file. Raises ConfigError: its first row does not name its columns."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # else an answer of 130,000 characters is an error
    rows = csv.DictReader(text, strict=True)
    _check_names(rows)
    while True:
        try:
            row = next(rows)
            "".join(cell for cells in row.values() for cell in cells or ()).encode()
            yield ConfigError("there are more cells than columns") if None in row else row
        except StopIteration:
            return
        except UnicodeEncodeError:
            yield ConfigError(_NOT_UTF8)
        except csv.Error as error:
            yield ConfigError(str(error))


def _check_names(rows: csv.DictReader[str]) -> None:
    try:
        names = list(rows.fieldnames or ())
    except csv.Error as error:
        raise ConfigError(f"the names of the columns cannot be read: {error}") from None
    if any("\0" in name for name in names):
        raise ConfigError(_NOT_UTF8.replace("WINDOWS-1252", "UTF-16"))
    # Spreadsheets write columns without names behind the last one.
    if twice := next((name for name in names if name.strip() and names.count(name) > 1), None):
        raise ConfigError(f"two columns are named {twice!r}, and one would hide the other: rename one of them")
    if len(names) == 1 and (found := re.search(r"[;\t|]", names[0])):
        raise ConfigError(f"the cells are separated by {found[0]!r}: save the file with commas")
