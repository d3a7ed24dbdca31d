"""Pairs as a data set that travels: a folder that `load_dataset` reads from anywhere, and that the Hub takes as it is.

    FOLDER/README.md                  the card (`card.py`)
    FOLDER/data/                      train-00000-of-00001.parquet: the pairs, with their images inside. By this name
                                      `load_dataset` knows it, and reads no other file
    FOLDER/pairs.jsonl and so on      the files of `annotate.py`, which are not pushed

Columns: `id`; `prompt`, `chosen` and `rejected`, messages as TRL has them, all contents texts or all of them blocks;
`images`, those of the prompt in order, which is how DPOTrainer reads them; `chosen_images` and `rejected_images` where
answers have some; `score_chosen` and `score_rejected`; `reasoning`, the judge's, of chosen and rejected, or one text of
a comparison. Where the candidates are images, `chosen` and `rejected` are images, and a prompt without media is a text.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from flexjudge_reward.errors import ConfigError, EngineError, MissingExtra

SHARD_BYTES = 500_000_000  # of images in one file; what the Hub recommends
_SIDES = ("prompt", "chosen", "rejected")


def check_installed() -> None:
    """Raises MissingExtra."""
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise MissingExtra("datasets", "datasets") from None


def reserve(name: str) -> None:
    """Makes the data set `name` of the Hub, private, unless it exists: before hours of judging.

    Raises ConfigError: the name, the login or the network.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(name, repo_type="dataset", private=True, exist_ok=True)
    except Exception as error:  # the client's own kinds, and those of its transport
        why = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"the data set {name!r} of the Hub cannot be written: {why} (log in with `hf auth login`)"
        ) from None


def push(folder: Path, name: str, pairs: int) -> None:
    """Uploads the card and the pairs. Raises EngineError: there are none, or it failed; all is kept in `folder`."""
    from huggingface_hub import HfApi

    if not pairs:
        raise EngineError(f"nothing was pushed to {name}: no pair was kept; why is counted in {folder / 'README.md'}")
    kept = ["README.md", "data/*.parquet"]
    try:
        HfApi().upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=kept,
            delete_patterns="data/*",
            commit_message="Preference pairs",
        )
    except Exception as error:
        again = f"`hf upload {name} {folder} --repo-type dataset --include README.md 'data/*'`"
        raise EngineError(
            f"the push to {name} failed ({error}); the data set is complete in {folder}: {again}"
        ) from None


def write(lines: Callable[[], Iterable[Mapping[str, Any]]], folder: Path) -> None:
    """Writes `data/` from the lines of kept pairs, of one form (`pairs.form_of`), whose media are below `folder`."""
    from datasets.arrow_writer import ParquetWriter

    fresh = folder / "data.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    shape = Shape.of(lines())
    parts = _shards(shape.row(line, lambda path: (folder / path).read_bytes()) for line in lines())
    shards = 0
    for shard in chain([next(parts, iter(()))], parts):  # without a file there, `load_dataset` reads the skipped pairs
        with ParquetWriter(path=str(fresh / f"{shards}"), features=shape.features()) as writer:
            for row in shard:
                writer.write(row, writer_batch_size=100)
            writer.finalize()
        shards += 1
    for number in range(shards):
        Path(fresh, f"{number}").replace(fresh / f"train-{number:05}-of-{shards:05}.parquet")
    shutil.rmtree(folder / "data", ignore_errors=True)
    fresh.replace(folder / "data")


def _shards(rows: Iterable[dict[str, Any]]) -> Iterator[Iterator[dict[str, Any]]]:
    """The rows in parts of so many bytes of images."""
    total = 0

    def shard(row: dict[str, Any]) -> int:
        nonlocal total
        total += sum(len(image["bytes"]) for value in row.values() for image in _images(value))
        return total // SHARD_BYTES

    for _, part in groupby(rows, shard):
        yield part


def _images(value: Any) -> list[dict[str, Any]]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, dict) and "bytes" in one]


@dataclass(frozen=True)
class Shape:
    """What the columns are made of, which is the same in all rows."""

    whole_ids: bool
    blocks: bool  # contents are lists of blocks; else texts
    drawn: bool  # the candidates are images
    plain_prompt: bool  # the prompt is a text
    more: frozenset[str]  # what messages have beside role and content
    columns: frozenset[str]  # those with images

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]]) -> Shape:
        """The shape that fits all lines."""
        whole, blocks, drawn, plain, more, columns = True, False, False, False, set(), set()
        for line in lines:
            whole = whole and type(line["id"]) is int and -(2**63) <= line["id"] < 2**63
            drawn, plain = isinstance(line["chosen"], str), isinstance(line["prompt"], str)
            columns |= {"images"} if "images" in line else set()
            for side in _SIDES:
                for message in line[side] if isinstance(line[side], list) else []:
                    more |= {name for name in message.keys() - {"role", "content"} if name == text_of(name)}
                    content = _content(message)
                    blocks = blocks or not isinstance(content, str)
                    if not isinstance(content, str) and any(block["type"] == "image" for block in content):
                        columns.add(_column(side))
        return cls(whole, blocks, drawn, plain, frozenset(more), frozenset(columns))

    def features(self) -> Any:
        """As `datasets` has them."""
        import datasets
        from datasets import Features, Image, List, Value

        text = Value("string")
        content = List({"type": text, "text": text}) if self.blocks else text
        more = {name: datasets.Json() for name in sorted(self.more)}  # newer than the oldest `datasets` that works
        messages = List({"role": text, "content": content, **more})
        side = Image() if self.drawn else messages
        return Features(
            {"id": Value("int64") if self.whole_ids else text}
            | {"prompt": text if self.plain_prompt else messages, "chosen": side, "rejected": side}
            | {column: List(Image()) for column in sorted(self.columns)}
            | {"score_chosen": Value("float64"), "score_rejected": Value("float64"), "reasoning": List(text)}
        )

    def row(self, line: Mapping[str, Any], read: Callable[[str], bytes]) -> dict[str, Any]:
        """One row, with the bytes of its images, which `read` gives by their paths."""
        row: dict[str, Any] = {"id": line["id"] if self.whole_ids else text_of(line["id"])}
        shown: dict[str, list[str]] = {column: [] for column in self.columns}
        for side in _SIDES:
            if isinstance(line[side], str):
                drawn = self.drawn and side != "prompt"
                row[side] = _file(read, line[side]) if drawn else text_of(line[side])
                continue
            row[side], found = self._messages(line[side], line.get("images", ()) if side == "prompt" else ())
            if found:
                shown[_column(side)] += found
        if isinstance(line["prompt"], str) and "images" in line:
            shown["images"] += line["images"]
        images = {column: [_file(read, path) for path in paths] for column, paths in shown.items()}
        chosen, rejected = line["scores"]
        thoughts = [text_of(one) for one in line.get("reasoning", ())]
        return {**row, **images, "score_chosen": chosen, "score_rejected": rejected, "reasoning": thoughts}

    def _messages(self, messages: list[dict[str, Any]], given: Iterable[str]) -> tuple[list[dict[str, Any]], list[str]]:
        """The messages with every image as a place, and the files of these places in order."""
        left, files, turns = list(given), [], []
        contents = [_content(message) for message in messages]
        places = sum(block == {"type": "image"} for one in contents if not isinstance(one, str) for block in one)
        first = next((n for n, message in enumerate(messages) if message["role"] == "user"), 0)
        for number, (message, content) in enumerate(zip(messages, contents, strict=True)):
            if self.blocks and isinstance(content, str):
                content = [{"type": "text", "text": content}] if content else []
            if self.blocks and number == first and left and not places:  # as `data/content.py` shows them to the judge
                content = [{"type": "image"} for _ in left] + content
            more = {name: json.loads(text_of(json.dumps(message.get(name), ensure_ascii=False))) for name in self.more}
            turns.append({"role": message["role"], "content": content, **more})
            if isinstance(content, str):
                turns[-1]["content"] = text_of(content)
                continue
            files += [block.get("image") or left.pop(0) for block in content if block["type"] == "image"]
            turns[-1]["content"] = [
                {"type": block["type"], "text": text_of(block["text"]) if "text" in block else None}
                for block in content
            ]
        return turns, files + left


def _column(side: str) -> str:
    return "images" if side == "prompt" else f"{side}_images"


def _content(message: Mapping[str, Any]) -> Any:
    """A text, or a list of blocks; what a tool gave back is a text of its JSON."""
    content = message.get("content")
    if isinstance(content, list) and not all(isinstance(one, dict) and "type" in one for one in content):
        return json.dumps(content, ensure_ascii=False)
    return "" if content is None else content


def _file(read: Callable[[str], bytes], path: str) -> dict[str, Any]:
    return {"bytes": read(path), "path": None}


def text_of(value: object) -> str:
    """Any value as text that a table can hold: half of a surrogate pair is replaced."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()
