"""A data set of the package `datasets`, wherever it lies, as rows of plain values.

Promised: rows are streamed and nothing in them is decoded: an image stays the bytes of its file, or its path. What a
column means is decided in `rows.py`. A split may be cut and joined as `datasets` writes it: train[:1000],
train[10%:20%], train+test. A local set is shuffled as a whole, one of the Hub through the buffer of its stream.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from flexjudge_reward.data.lines import permutation
from flexjudge_reward.errors import ConfigError, MissingExtra

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = (".jsonl", ".json", ".parquet")  # not valid Hub ids
_PART = re.compile(r"\s*([\w.-]+)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*")
_BUFFER = 10_000  # rows of a Hub stream among which the next one is drawn
_SAVED = ("state.json", "dataset_dict.json")  # one of them lies where `save_to_disk` wrote


@dataclass(frozen=True)
class Table:
    """One split of a data set."""

    name: str
    columns: tuple[str, ...]
    media_columns: Mapping[str, str]  # their kinds by their names
    total: int | None  # how many rows, where that is known without reading them
    local: bool
    version: str  # the content of a file or folder, or the commit of a Hub data set
    stream: Any  # the rows, undecoded: an `IterableDataset`
    numbers: Sequence[int] | None = None  # of the rows, where they are not counted from 0
    unit = "row"

    @classmethod
    def open(
        cls,
        source: str | Path,
        split: str | None = None,
        config_name: str | None = None,
        seed: int | None = None,
        revision: str | None = None,
    ) -> Table:
        """What is known without its rows: the splits and the columns. Raises ConfigError and MissingExtra.

        `revision` is a commit, tag or branch of a data set of the Hub.
        """
        name, path = str(source), Path(source)
        if not name:  # as a path it is this folder
            raise ConfigError("the source is an empty text: name a file, a folder or org/name")
        local = path.exists()
        if not local and (not _HUB_NAME.fullmatch(name) or path.suffix in _FILES):
            raise ConfigError(f"no file or folder {name!r}, and a data set of the Hub is named as org/name")
        try:
            import datasets
        except ImportError:
            raise MissingExtra("datasets", "datasets") from None
        _name_sounds(datasets)
        try:
            parts, version = _splits(
                datasets, path if local else name, config_name, local and seed is not None, revision
            )
            stream, total, numbers = _chosen(datasets, name, parts, split, local)
            if seed is not None and hasattr(stream, "select"):
                order = permutation(len(stream), seed)
                stream, numbers = stream.select(order), [(numbers or range(len(order)))[index] for index in order]
            elif seed is not None:
                stream, numbers = stream.shuffle(seed, buffer_size=_BUFFER), None
            stream = (stream.to_iterable_dataset() if hasattr(stream, "select") else stream).decode(False)
            features = stream.features or dict.fromkeys(next(iter(stream), {}))
        except ConfigError:
            raise
        except Exception as error:  # of `datasets`, Arrow, the Hub's client and the network: they have no common base
            where = "" if local else f"there is no file or folder {name!r}; as a data set of the Hub: "
            raise ConfigError(f"{where}{name!r} cannot be read: {_message(error)}") from None
        kinds = {column: _kind_of(datasets, feature) for column, feature in features.items()}
        media_columns = {column: kind for column, kind in kinds.items() if kind}
        return cls(name, tuple(features), media_columns, total, local, version, stream, numbers)

    def numbered(self, seed: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows with their numbers. A seed was given to `open`. Raises as `rows`."""
        return zip(self.numbers or range(sys.maxsize), self.rows(), strict=False)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows from the first on. Raises ConfigError where they cannot be read further."""
        count = 0
        try:
            for row in self.stream:
                yield {column: plain(value) for column, value in row.items()}
                count += 1
        except Exception as error:  # as above
            raise ConfigError(f"{self.name} cannot be read after {count} rows: {_message(error)}") from None


def plain(value: Any) -> Any:
    """A value as a line of a file has it; the encoded files in it stay bytes, or {"bytes", "path"}."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if not isinstance(value, dict) or (value and value.keys() <= {"bytes", "path"}):
        return value
    # A struct has every field of its kind: of a part, those of the other kinds are null.
    return {name: plain(one) for name, one in value.items() if one is not None}


def fingerprint(source: Path) -> str:
    """A hash in hex over a file, or the names and content of the files of a folder. Raises ConfigError."""
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        name = path.relative_to(source) if path != source else ""
        whole.update(f"{name}\n{content}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def _name_sounds(datasets: Any) -> None:
    """Lets a folder or an archive of sounds be read without torchcodec.

    `datasets` (4.5 to 5.2) imports it before it looks at a sound, also where it only notes a path or bytes. Where it is
    installed, nothing is changed.
    """
    encode = datasets.Audio.encode_example
    if hasattr(encode, "__wrapped__") or find_spec("torchcodec"):
        return

    @wraps(encode)
    def named(self: Any, value: Any) -> Any:
        if isinstance(value, str):
            return {"bytes": None, "path": value}
        if isinstance(value, bytes | bytearray):
            return {"bytes": bytes(value), "path": None}
        if isinstance(value, dict) and "array" not in value and isinstance(value.get("bytes"), bytes):
            return {"bytes": value["bytes"], "path": value.get("path")}
        return encode(self, value)

    datasets.Audio.encode_example = named


class _Part(NamedTuple):
    """A split or a part of one: a `Dataset` or an `IterableDataset`, how many rows it has, and their numbers."""

    rows: Any
    size: int | None
    numbers: Sequence[int] | None = None

    def cut(self, begin: str | None, end: str | None, local: bool) -> _Part:
        """The rows from `begin` to before `end`, as in `datasets`: 100, -100 or 10%. Raises ConfigError."""
        size = self.size
        if size is None and any(bound and (bound[0] == "-" or bound[-1] == "%") for bound in (begin, end)):
            if not local:
                raise ConfigError("its number of rows is not known: cut it with whole numbers, such as train[:1000]")
            size = sum(1 for _ in self.rows)
        first, last = _bound(begin, size) or 0, _bound(end, size)
        last = size if last is None else last if size is None else min(last, size)
        if last is not None and first >= last:
            raise ConfigError(f"the part from {first} to {last} has no rows")
        if hasattr(self.rows, "select"):
            return _Part(self.rows.select(range(first, last or 0)), (last or 0) - first, range(first, last or 0))
        rows = self.rows.skip(first) if first else self.rows
        rows = rows if last is None or end is None else rows.take(last - first)
        return _Part(rows, None if size is None or last is None else last - first, range(first, sys.maxsize))


def _bound(text: str | None, size: int | None) -> int | None:
    if text is None:
        return None
    value = round(int(text[:-1]) * (size or 0) / 100) if text.endswith("%") else int(text)
    return max(0, value + (size or 0)) if value < 0 else value


def _splits(
    datasets: Any, source: str | Path, config: str | None, whole: bool, revision: str | None = None
) -> tuple[dict[str, _Part], str]:
    """The splits of a data set, and the version of its content; with `whole`, of a kind whose rows can be reordered."""
    if isinstance(source, Path) and source.is_dir() and any((source / name).is_file() for name in _SAVED):
        saved = datasets.load_from_disk(str(source))
        tables = saved if isinstance(saved, dict) else {"train": saved}
        return {name: _Part(table, len(table)) for name, table in tables.items()}, fingerprint(source)
    if isinstance(source, Path) and source.is_file():
        builder = datasets.load_dataset_builder("parquet", data_files=[str(source.absolute())])
    else:
        where = str(source.absolute()) if isinstance(source, Path) else source
        builder = datasets.load_dataset_builder(where, config, revision=revision)
    version = fingerprint(source) if isinstance(source, Path) else f"{source}@{builder.hash}"
    if whole:
        builder.download_and_prepare()
        return {name: _Part(table, len(table)) for name, table in builder.as_dataset().items()}, version
    sizes = {name: part.num_examples for name, part in (builder.info.splits or {}).items()}
    return {name: _Part(rows, sizes.get(name)) for name, rows in builder.as_streaming_dataset().items()}, version


def _chosen(datasets: Any, name: str, parts: dict[str, _Part], split: str | None, local: bool) -> _Part:
    """The rows of a split as the user writes it. Raises ConfigError: no such split, or part of one."""
    if split is None and len(parts) == 1:
        split = next(iter(parts))
    found = [_PART.fullmatch(one) for one in (split or "").split("+")]
    if any(one is None or one[1] not in parts for one in found):
        hint = "say which: --split NAME" if split is None else f"not {split!r}"
        part = f"{next(iter(parts))}[:1000]"
        raise ConfigError(f"{name} has the splits {', '.join(parts)}; {hint}, or a part such as {part}")
    cut = [parts[one[1]].cut(one[2], one[3], local) for one in found if one is not None]
    if len(cut) == 1:
        return cut[0]
    sizes = [one.size for one in cut if one.size is not None]
    total = sum(sizes) if len(sizes) == len(cut) else None
    rows = datasets.concatenate_datasets([one.rows for one in cut])
    return _Part(rows, total, None if total is None else range(total))


def _kind_of(datasets: Any, feature: Any) -> str:
    """The kind of media in a column, or in its lists; "" for none."""
    inner = getattr(feature, "feature", feature)
    return next(
        (kind for kind in ("image", "video", "audio") if isinstance(inner, getattr(datasets, kind.title()))), ""
    )


def _message(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
