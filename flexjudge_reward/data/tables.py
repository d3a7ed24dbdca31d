"""A data set of the package `datasets`, wherever it lies, as rows of plain values.

Promised: rows are streamed and nothing in them is decoded: an image becomes a `Media` of its own bytes, or the path in
its place; neither is opened here. What a column means is decided in `rows.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexjudge_reward.errors import ConfigError, MissingExtra
from flexjudge_reward.media.base import Media

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = (".jsonl", ".json", ".parquet")  # not valid Hub ids
_SAVED = ("state.json", "dataset_dict.json")  # one of them lies where `save_to_disk` wrote


@dataclass(frozen=True)
class Table:
    """One split of a data set."""

    name: str
    columns: tuple[str, ...]
    image_columns: tuple[str, ...]
    total: int | None  # how many rows, where that is known without reading them
    local: bool
    version: str  # the content of a file or folder, or the commit of a Hub data set
    stream: Any  # the rows, undecoded: an `IterableDataset`

    @classmethod
    def open(cls, source: str | Path, split: str | None = None, config_name: str | None = None) -> Table:
        """What is known without its rows: the splits and the columns. Raises ConfigError and MissingExtra."""
        name, path = str(source), Path(source)
        local = path.exists()
        if not local and (not _HUB_NAME.fullmatch(name) or path.suffix in _FILES):
            raise ConfigError(f"no file or folder {name!r}, and a data set of the Hub is named as org/name")
        try:
            import datasets
        except ImportError:
            raise MissingExtra("datasets", "datasets") from None
        try:
            parts, version, sizes = _splits(datasets, path if local else name, config_name)
            chosen = _chosen(name, parts, split)
            stream = parts[chosen].decode(False)
            features = stream.features or dict.fromkeys(next(iter(stream), {}))
        except ConfigError:
            raise
        except Exception as error:  # of `datasets`, Arrow, the Hub's client and the network: they have no common base
            where = "" if local else f"there is no file or folder {name!r}; as a data set of the Hub: "
            raise ConfigError(f"{where}{name!r} cannot be read: {_message(error)}") from None
        image_columns = tuple(column for column, feature in features.items() if _holds_images(datasets, feature))
        return cls(name, tuple(features), image_columns, sizes.get(chosen), local, version, stream)

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
    """A value as a line of a file has it; an image is a `Media`, or {"image": path} if only its path is there."""
    if isinstance(value, bytes):
        return Media.image(value)
    if isinstance(value, list):
        return [plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value and value.keys() <= {"bytes", "path"}:
        data, path = value.get("bytes"), value.get("path")
        return {"image": path} if data is None and isinstance(path, str) else Media.image(value)
    # A struct has every field of its kind: of a part, those of the other kinds are null.
    found = {name: plain(one) for name, one in value.items() if one is not None}
    if isinstance(found.get("image"), dict):
        found["image"] = found["image"].get("image")
    return found


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


def _splits(datasets: Any, source: str | Path, config_name: str | None) -> tuple[dict[str, Any], str, dict[str, int]]:
    """The splits of a data set as streams, the version of its content, and the number of rows of each, where known."""
    if isinstance(source, Path) and source.is_dir() and any((source / name).is_file() for name in _SAVED):
        saved = datasets.load_from_disk(str(source))
        tables = saved if isinstance(saved, dict) else {"train": saved}
        streams = {name: table.to_iterable_dataset() for name, table in tables.items()}
        return streams, fingerprint(source), {name: len(table) for name, table in tables.items()}
    if isinstance(source, Path) and source.is_file():
        builder = datasets.load_dataset_builder("parquet", data_files=[str(source.absolute())])
    else:
        where = str(source.absolute()) if isinstance(source, Path) else source
        builder = datasets.load_dataset_builder(where, config_name)
    version = fingerprint(source) if isinstance(source, Path) else f"{source}@{builder.hash}"
    sizes = {name: part.num_examples for name, part in (builder.info.splits or {}).items()}
    return dict(builder.as_streaming_dataset()), version, sizes


def _chosen(name: str, parts: dict[str, Any], split: str | None) -> str:
    if split is None and len(parts) == 1:
        return next(iter(parts))
    if split not in parts:
        hint = "say which: --split NAME" if split is None else f"not {split!r}"
        raise ConfigError(f"{name} has the splits {', '.join(parts)}; {hint}")
    return split


def _holds_images(datasets: Any, feature: Any) -> bool:
    return isinstance(feature, datasets.Image) or isinstance(getattr(feature, "feature", None), datasets.Image)


def _message(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
