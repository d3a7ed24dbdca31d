"""Single cells of a row: media that a column or a data set holds, references, numbers, empty cells.

Promised: no URL is fetched and no file outside the roots is opened. What is wrong with one image fails its row when it
is judged; what is no image at all is a ConfigError here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.media.base import KINDS, Media
from flexjudge_reward.media.source import is_path, kind_of

MEDIA_COLUMNS = tuple(name for name, modality in KINDS.items() if modality.channel)
"""The modalities that a data set holds in columns of their names, singular or plural."""


@dataclass(frozen=True)
class Clip:
    """A video or audio file that a data set itself holds: what is judged, and the bytes that a job may write again."""

    media: Media
    data: bytes
    ending: str

    @property
    def name(self) -> str:
        """A file name by its content."""
        return f"{hashlib.sha256(self.data).hexdigest()}{self.ending}"


def columns_of(kind: str, cells: Mapping[str, Any]) -> list[Any]:
    """The media of one kind that the columns of a row hold, singular or plural; one may stand for a list of one."""
    several, one = (_listed(cells.get(name)) for name in (f"{kind}s", kind))
    if several is None:
        several = one if _are_several(kind, one) else [] if one is None else [one]
    listed = several if isinstance(several, list | tuple) else [several]
    given = [one[kind] if isinstance(one, Mapping) and one.keys() == {kind} else one for one in listed]
    return [one for one in given if one is not None and not (isinstance(one, str) and not one.strip())]


def _are_several(kind: str, cell: Any) -> bool:
    """Whether a cell under the name of one item holds several; a list under "video" is the frames of one."""
    if not isinstance(cell, list | tuple) or kind == "video":
        return False
    return kind != "audio" or len(cell) != 2 or not is_number(cell[1])  # else an array and its rate


def _listed(cell: Any) -> Any:
    """Rows of a parquet file that pandas has read have arrays of objects in the place of lists."""
    return cell.tolist() if str(getattr(cell, "dtype", "")) == "object" else cell


def with_media(value: Any, kind: str | None = None) -> Any:
    """A value of a data set with its encoded files as media, of the kind that their place or their bytes say.

    A file that is there by its path only is {kind: path}, or in the place of a kind its path.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return _media(value, None, kind)
    if isinstance(value, list):
        return value if kind == "video" else [with_media(one, kind) for one in value]  # the frames of a video
    if not isinstance(value, dict):
        return value
    if value and value.keys() <= {"bytes", "path"}:
        data, path = value.get("bytes"), value.get("path")
        if data is None and isinstance(path, str):
            return path if kind else {kind_of(b"", path): path}
        return _media(data, path, kind)
    if {"array", "sampling_rate"} <= value.keys():  # a sound that was decoded
        return Media.of("audio", value)
    if "role" in value:  # a message; the arguments of a call and the result of a tool are no media of ours
        content = value.get("content")
        own = content if value["role"] == "tool" and not _has_parts(content) else with_media(content)
        return {**value, "content": own} if "content" in value else value
    return {name: with_media(one, name) if name in KINDS else one for name, one in value.items()}


def source_media(kind: str, source: Any, roots: Sequence[Path], options: Mapping[str, Any]) -> Media:
    """A media item from its source in a row of a file: a path below a root, a data URI, or what `with_media` made.

    An address is never fetched: it fails its row when judged. Raises ConfigError: another source; a path but no root.
    """
    if isinstance(source, Clip):
        source = source.media
    if isinstance(source, Media):
        if source.kind != kind:
            raise ConfigError(f"a {kind} is expected, found a {source.kind}")
        return source
    if not KINDS[kind].is_file:
        return Media.of(kind, source, **options)
    if isinstance(source, list) and kind == "video":  # frames
        return Media.of(kind, source, roots, **options)
    if isinstance(source, Mapping) and source.keys() <= {"bytes", "path"} and source.get("bytes") is None:
        source = source.get("path")
    if not isinstance(source, str) or not source:
        raise ConfigError(f"the {kind} is given by its path or as a data URI, found {source!r:.80}")
    if not is_path(source):
        return Media.of(kind, source, **options)
    if not roots:
        raise ConfigError(f"{kind} {source!r:.200} needs a folder that files may be read from: give --media-root DIR")
    return Media.of(kind, Path(source), roots, **options)  # a relative path starts at the root


def held_media(cell: Any) -> str:
    """The kind of media that a cell evidently holds, "" for none: no path and no list of numbers is evident.

    It knows what `datasets` gives decoded or not: images, files in bytes, sound as an array, torchcodec's decoders.
    """
    if isinstance(cell, list | tuple):
        return next(filter(None, map(held_media, cell[:8])), "")
    if isinstance(cell, Media | Clip):
        return (cell.media if isinstance(cell, Clip) else cell).kind
    if isinstance(cell, Mapping):
        if isinstance(cell.get("bytes"), bytes) and cell.keys() <= {"bytes", "path"}:
            return kind_of(cell["bytes"], cell.get("path"))
        return "audio" if {"array", "sampling_rate"} <= cell.keys() else ""
    if isinstance(cell, str):
        return next((kind for kind in MEDIA_COLUMNS if cell.startswith(f"data:{kind}/")), "")
    names = [f"{base.__module__}.{base.__name__}" for base in type(cell).__mro__]
    decoders = {"PIL.Image.Image": "image", "VideoDecoder": "video", "AudioDecoder": "audio"}
    return next((kind for end, kind in decoders.items() for name in names if name.endswith(end)), "")


def is_empty(cell: Any) -> bool:
    """Whether a cell holds nothing: null, the NaN that pandas writes for it, a blank text, an empty list."""
    nan = isinstance(cell, float) and math.isnan(cell)
    return cell is None or nan or (isinstance(cell, str) and not cell.strip()) or cell == []


def plain_text(value: Any, what: str) -> str:
    """A text or a number as text. Raises ConfigError."""
    if is_number(value) or isinstance(value, str):
        return str(value)
    raise ConfigError(f"{what} must hold texts or numbers, found {value!r:.80}")


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    try:
        return isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value)
    except (OverflowError, ValueError):  # a whole number beyond every float, or a decimal that signals
        return False


def _has_parts(content: Any) -> bool:
    return isinstance(content, list) and any(isinstance(part, dict) and part.get("type") in KINDS for part in content)


def _media(data: Any, path: Any, kind: str | None) -> Media | Clip:
    kind = kind or kind_of(data if isinstance(data, bytes) else b"", path if isinstance(path, str) else None)
    media = Media.of(kind, data if data is not None else {"bytes": None, "path": path})
    if kind == "image" or not isinstance(data, bytes):
        return media
    ending = Path(path).suffix if isinstance(path, str) else ""
    known = ending[1:].isascii() and ending[1:].isalnum() and len(ending) < 8
    return Clip(media, data, ending.lower() if known else ".mp4" if kind == "video" else ".wav")
