"""The files of an annotation, safe from a kill.

Rows are appended to `.partial` files; after every batch `OUTPUT.progress` holds their sizes. A run that finds one cuts
the files there and continues, so that it leaves the files of an unbroken run. Media are named by their content and
appear whole; writing one again changes nothing.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flexjudge_reward.data.cells import Clip
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.judge.record import json_line, read_lines
from flexjudge_reward.media import image as images
from flexjudge_reward.media.audio import wav
from flexjudge_reward.media.base import Media


class Journal:
    """The files of a run, and how much of them is complete: `OUTPUT.progress`, replaced after every batch."""

    def __init__(self, output: Path, run: str) -> None:
        """Kept rows go to `output`, the others to `OUTPUT.skipped.jsonl`, one per line.

        An unfinished run is continued if its `run` is equal.
        """
        self.output, self._run = output, run
        self._images = output.with_suffix(".media")
        self._finals = (output, output.with_suffix(".skipped.jsonl"))
        self._partials = tuple(path.with_name(path.name + ".partial") for path in self._finals)
        self._state = output.with_name(output.name + ".progress")
        self.counts: Counter[str] = Counter()  # `rows`, `pairs`, and each reason for which pairs were skipped

    def __enter__(self) -> Journal:
        """Continues what an unfinished run left. Raises ConfigError if that was another run, or is damaged."""
        state = self._read()
        for partial, final, size in zip(self._partials, self._finals, state["sizes"], strict=True):
            if self._state.exists() and not partial.exists() and final.exists():
                final.replace(partial)  # killed between renaming the one and the other
            with partial.open("ab") as file:
                if file.tell() < size:
                    raise ConfigError(f"{partial} is damaged; remove {self._state} to begin again")
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
            same = state["run"] == self._run
        except FileNotFoundError:
            return {"sizes": [0, 0], "counts": {}}
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{self._state} is damaged; remove it to begin again") from None
        if not same:
            raise ConfigError(
                f"{self._state} belongs to an unfinished run of other rows or settings:"
                " finish that one, remove the file to begin again, or give another output"
            )
        return state

    def add(self, row: dict[str, Any], reason: str = "") -> None:
        """Adds a kept row, or, with a reason, a skipped one."""
        self._files[bool(reason)].write(json_line(row).encode())
        self.counts[reason or "pairs"] += 1

    def keep(self, media: Media | Clip) -> str:
        """Stores a media item (`kept_bytes`); its path from the output. Raises MediaError."""
        path = self._images / kept_name(media)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            replaced(path, kept_bytes(media))
        return f"{path.parent.name}/{path.name}"

    def kept(self) -> Iterator[dict[str, Any]]:
        """The kept rows of a run whose rows are all committed."""
        return read_lines(self._partials[0])

    def commit(self, rows: int) -> None:
        """Makes what was added safe from a kill and from a power cut."""
        self.counts["rows"] += rows
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        sizes = [file.tell() for file in self._files]
        replaced(self._state, json.dumps({"run": self._run, "sizes": sizes, "counts": self.counts}).encode())

    def finish(self, card_file: Path, card: str) -> None:
        """The files under their names, the card first; the progress file is removed last."""
        replaced(card_file, card.encode("utf-8", "backslashreplace"))
        for partial, final in zip(self._partials, self._finals, strict=True):
            partial.replace(final)
        self._state.unlink(missing_ok=True)


def kept_name(media: Media | Clip) -> str:
    """The name of the file that keeps a media item, by its content. Raises MediaError."""
    if isinstance(media, Clip):
        return media.name
    return f"{media.digest}.{'wav' if media.kind == 'audio' else 'jpg' if media.load().lossy else 'png'}"


def kept_bytes(media: Media | Clip) -> bytes:
    """The content of that file: a JPEG file or a clip as it is, another image as PNG, samples as WAV.

    Raises MediaError.
    """
    if isinstance(media, Clip):
        return media.data
    if media.kind == "audio":
        return wav(media.samples())
    return media.file() if media.load().lossy else images.encode(media.images()[0])


def replaced(path: Path, content: bytes) -> None:
    """Writes a file so that it exists whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    try:
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
