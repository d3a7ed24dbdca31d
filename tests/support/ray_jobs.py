"""Rows with everything that can go wrong, and a judge without a model, for the jobs on Ray."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from flexjudge_reward import Request, Untrusted
from support.images import noise, saved
from support.jsonl import write


def reply(request: Request) -> str:
    """A score by the text of the answer; of some answers a reply that is none."""
    answer = [part.text for part in request.prompt.messages[1].parts if isinstance(part, Untrusted)][-1]
    if answer.endswith("?"):
        return "<think>no idea</think>"
    score = zlib.crc32(answer.encode()) % 10 + 1
    return f"<think>{len(request.prompt.shown)} images</think><answer>{score}</answer>"


def text_rows(count: int) -> list[dict[str, Any]]:
    """Rows with two to four candidates: some equal, some without an answer, some that cannot be used."""
    rows: list[dict[str, Any]] = []
    for n in range(count):
        candidates = [f"{'a' * (n % 7)} {n} {k}{'?' * (n % 11 == 0 and k == 1)}" for k in range(2 + n % 3)]
        rows.append({"id": f"r{n}", "question": f"question {n} ü", "candidates": candidates})
        if n % 13 == 5:
            rows[-1]["candidates"] = ["same", "same"]
        if n % 17 == 9:
            del rows[-1]["question"]
        if n % 19 == 7:
            rows[-1]["reference"] = f"the answer {n}"
    return rows


def text_files(folder: Path, count: int, files: int = 3) -> Path:
    """The same rows as files of lines, with a line that is broken and one that is a list."""
    folder.mkdir()
    rows, each = text_rows(count), -(-count // files)
    for number in range(files):
        path = write(folder / f"part-{number}.jsonl", rows[number * each : (number + 1) * each])
        with path.open("a") as file:
            file.write('{"id": "broken\n[1]\n' if number == 0 else "")
    return folder


def image_files(folder: Path, count: int, files: int = 2) -> Path:
    """A data set of images in bytes, one of them damaged, whose candidates are messages or texts."""
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir()
    rows = []
    for n in range(count):
        encoded = saved(noise(8, 6, n), "JPEG" if n % 2 else "PNG")
        image = {"bytes": encoded if n != 3 else b"no image", "path": None}
        question = [{"role": "user", "content": f"what is in {n}?"}]
        candidates = [[{"role": "assistant", "content": "b" * (n % 5 + k * 2)}] for k in range(2)]
        rows.append({"id": n, "question": question, "candidates": candidates, "images": [image]})
    each = -(-count // files)
    for number in range(files):
        parquet.write_table(
            pa.Table.from_pylist(rows[number * each : (number + 1) * each]), folder / f"{number}.parquet"
        )
    return folder


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of either way to judge, in one order, without what names the row in its file."""
    names = ("line", "row", "file_row", "kept")
    kept = [{name: value for name, value in row.items() if name not in names and value is not None} for row in rows]
    return sorted(kept, key=lambda row: json.dumps(row, sort_keys=True, default=repr))


def written(folder: Path) -> list[dict[str, Any]]:
    """The rows that a job on Ray wrote, with what is JSON in them decoded."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = []
    for path in sorted(folder.rglob("*.parquet")):
        table = parquet.ParquetFile(path).read()
        decoded = {field.name for field in table.schema if field.type == pa.json_()}
        for row in table.to_pylist():
            rows.append(
                {name: json.loads(value) if value and name in decoded else value for name, value in row.items()}
            )
    return rows
