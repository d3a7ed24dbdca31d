"""The files of an annotation that a kill cannot spoil.

Rows are appended to `.partial` files; after every batch `OUTPUT.progress` says how long these were. A run that finds
one cuts them there and goes on, so what it leaves are the files of an unbroken run. Pictures are named by their content
and appear whole; writing one again changes nothing. Not known here: what stands in a row.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.media import image
from flexjudge_reward.media.base import Media


class Journal:
    """The files of a run, and how far they are sound: `OUTPUT.progress`, replaced after every batch."""

    def __init__(self, output: Path, run: str) -> None:
        """
        Args:
            output: the file of what was kept; what was not goes to `OUTPUT.skipped.jsonl`, each a row per line.
            run: what must be equal for an unfinished run to go on.
        """
        self.output, self._run = output, run
        self._pictures = output.with_suffix(".media")
        self._finals = (output, output.with_suffix(".skipped.jsonl"))
        self._partials = tuple(path.with_name(path.name + ".partial") for path in self._finals)
        self._state = output.with_name(output.name + ".progress")
        self.counts: Counter[str] = Counter()
        """`rows`, `pairs`, and each reason for which pairs were skipped."""

    def __enter__(self) -> Journal:
        """Takes up what an unfinished run left. Raises ConfigError if that was another run, or is damaged."""
        state = self._read()
        for partial, final, size in zip(self._partials, self._finals, state["sizes"], strict=True):
            if self._state.exists() and not partial.exists() and final.exists():
                final.replace(partial)  # killed between renaming the one and the other
            with partial.open("ab") as file:
                file.truncate(size)
        self.counts.update(state["counts"])
        self._files = [partial.open("ab") for partial in self._partials]
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self._state.read_text())
        except FileNotFoundError:
            return {"sizes": [0, 0], "counts": {}}
        except ValueError:
            raise ConfigError(f"{self._state} is damaged; remove it to begin again") from None
        if state["run"] != self._run:
            raise ConfigError(
                f"{self._state} belongs to an unfinished run of other rows or settings:"
                " finish that one, remove the file to begin again, or give another output"
            )
        return state

    def add(self, row: dict[str, Any], why: str) -> None:
        """A row of what was kept, or with a reason of what was not."""
        self._files[bool(why)].write(line(row).encode())
        self.counts[why or "pairs"] += 1

    def picture(self, picture: Media) -> str:
        """Stores a picture by its content, as PNG, and returns its path, which starts where the output lies.

        Raises:
            MediaError: the picture cannot be read.
        """
        path = self._pictures / f"{picture.digest}.png"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            _replaced(path, image.encode(picture.images()[0]))
        return f"{path.parent.name}/{path.name}"

    def commit(self, rows: int) -> None:
        """What was added is now safe from a kill and from a power cut."""
        self.counts["rows"] += rows
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        sizes = [file.tell() for file in self._files]
        _replaced(self._state, json.dumps({"run": self._run, "sizes": sizes, "counts": self.counts}).encode())

    def finish(self, card: str) -> None:
        """The files under their names; what belonged to the run is removed last."""
        _replaced(self.output.with_suffix(".md"), card.encode("utf-8", "backslashreplace"))
        for partial, final in zip(self._partials, self._finals, strict=True):
            partial.replace(final)
        self._state.unlink(missing_ok=True)


def line(row: dict[str, Any]) -> str:
    """A row as a line of JSON that can be encoded."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can only hold escaped
        text = json.dumps(row)
    return text + "\n"


def _replaced(path: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
