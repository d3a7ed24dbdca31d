"""Media: one picture, clip, sound or molecule, given in any form and seen in one.

A `Media` is a value. It is cheap to build and read once, at first use; what it holds is then 8-bit RGB frames, of a
molecule RDKit's own text about it, and two are equal when these are. Whatever is wrong with it is a `MediaError` from
`load()` (or from what needs the content), never from building one, so that a bad row fails alone.

Promised: no URL is fetched, no file outside the given roots is opened, and size in bytes, pixels and frames is checked
before anything is decoded; of a molecule's text nothing is shown that RDKit did not write (`molecule.py`). Not known
here: how a model wants its pictures (`engines/`). Sounds have an identity and cannot be judged yet.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

from flexjudge_reward.errors import ConfigError, MediaError
from flexjudge_reward.media import files, image
from flexjudge_reward.media.files import Roots

if TYPE_CHECKING:
    from PIL.Image import Image

MediaKind = Literal["image", "video", "audio", "molecule"]

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{0,31}://")
_NO_SPACE = str.maketrans("", "", " \t\r\n")
_SHOWN = 80  # characters of a path that a message shows
_DATA_URI = re.compile(r"data:([a-z0-9.+/-]*)(;[a-z0-9=._-]+)*;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What one media item may cost. A clip may have four times as many pixels over all the frames that are kept."""

    bytes: int = 32_000_000
    """Of the encoded file."""
    pixels: int = 16_000_000
    """Of a picture."""
    frames: int = 16
    """A longer clip is sampled to this number, evenly."""
    seconds: int = 20
    """For decoding one clip."""


class Media:
    """One media item; equal to another when kind and decoded content are equal.

    It may be shared by threads and processes: it pickles as lossless pictures, never as a path or an open file.
    """

    __slots__ = (
        "_digest",
        "_drawn",
        "_fps",
        "_frames",
        "_limits",
        "_lock",
        "_name",
        "_problem",
        "_roots",
        "_source",
        "_text",
        "kind",
    )

    def __init__(self, kind: MediaKind, source: object, fps: float, roots: Roots, limits: Limits) -> None:
        """Use `image`, `video`, `audio` and `molecule`, or `as_media`."""
        if isinstance(roots, str | os.PathLike):
            raise ConfigError(f"roots must be a list of folders, found {roots!r}; write [{str(roots)!r}]")
        self.kind: MediaKind = kind
        self._source: Any = source
        self._fps = fps
        self._roots = tuple(roots)
        self._limits = limits
        self._name = _described(source)
        self._drawn = False
        self._text = ""  # of a molecule that was loaded
        self._frames: tuple[Image, ...] | None = None
        self._problem: str | None = None
        self._digest: str | None = None
        self._lock = threading.Lock()

    @classmethod
    def image(cls, source: object, roots: Roots = (), limits: Limits = Limits()) -> Media:
        """One picture; of an animated one, the first frame.

        Args:
            source: a PIL picture, an array (see `image.from_array`), the bytes of a file, a base64 data URI, a path
                below one of `roots`, or a dict with `bytes` or `path` as `datasets` has it. Pictures and arrays are
                read at first use: do not change them before.
            roots: the folders below which files may be read; none means no file.
        """
        return cls("image", source, 0.0, roots, limits)

    @classmethod
    def video(cls, source: object, fps: float = 1.0, roots: Roots = (), limits: Limits = Limits()) -> Media:
        """One clip, sampled evenly to at most `limits.frames` frames.

        Args:
            source: a list of frames (each as for `image`, all of one size), an array with the frames first, or an
                encoded clip as bytes, data URI, path or dict; decoding needs `pip install 'flexjudge-reward[video]'`.
            fps: frames per second of a list or array; an encoded clip has its own.
        """
        return cls("video", source, fps, roots, limits)

    @classmethod
    def audio(cls, data: bytes) -> Media:
        """One sound, as the bytes of its file. It has an identity and cannot be judged yet."""
        return cls("audio", data, 0.0, (), Limits())

    @classmethod
    def molecule(cls, smiles: str, drawn: bool = False) -> Media:
        """One molecule. A judge sees RDKit's canonical SMILES of it and descriptors: weight, logP, rings and so on.

        Needs `pip install 'flexjudge-reward[molecules]'`.

        Args:
            smiles: at most 500 characters, and 150 atoms that are not hydrogen; no name, extension or reaction.
            drawn: a drawing of the structure goes before the text, for a judge that sees.
        """
        media = cls("molecule", smiles, 0.0, (), Limits())
        media._drawn = drawn
        return media

    def load(self) -> None:
        """Reads and decodes, at the first call; later calls do nothing, or raise the same error.

        Raises:
            MediaError: missing, damaged, too large, not allowed, or of a kind that cannot be judged.
        """
        with self._lock:
            if self._problem is None and self._frames is None:
                try:
                    self._frames, self._fps = self._decoded()
                except MediaError as error:
                    self._problem = f"{self.kind} ({self._name}): {error}"
                if self.kind in ("image", "video"):
                    self._source = None
            if self._problem is not None:
                raise MediaError(self._problem)

    def shown(self) -> tuple[str | Media, ...]:
        """What a judge is given: itself; of a molecule its text, after its drawing if drawn. Raises MediaError."""
        if self.kind != "molecule":
            return (self,)
        return (*map(Media.image, self.images()), self._text)

    def images(self) -> tuple[Image, ...]:
        """The RGB frames: one for a picture or a drawn molecule. They are shared: copy before drawing on them.

        Raises MediaError.
        """
        self.load()
        assert self._frames is not None
        return self._frames

    @property
    def fps(self) -> float:
        """Frames per second of `images()`; 0 for a picture. Raises MediaError."""
        self.load()
        return self._fps

    @property
    def digest(self) -> str:
        """SHA-256 over kind, frame rate, and number, mode, size and pixels of the frames, in hex. Raises MediaError.

        Of a molecule also over the text that a judge sees.

        The sizes stand before the pixels: 30 x 150 and 150 x 30 of the same bytes differ.
        """
        if self._digest is None:
            hashed = hashlib.sha256(f"{self.kind}\n".encode())
            if self.kind != "audio":
                frames = self.images()
                hashed.update(f"{self._text}{self._fps!r} {len(frames)}\n".encode())
                for frame in frames:
                    hashed.update(f"{frame.mode} {frame.width} {frame.height}\n".encode() + frame.tobytes())
            else:
                hashed.update(_raw(self._source))
            self._digest = hashed.hexdigest()
        return self._digest

    def data_uri(self) -> str:
        """The content as a data URI for a server: PNG, lossless; a clip as PNG frames, joined by commas.

        The clip's type is `video/jpeg`, which is how vLLM's server knows a list of frames, whatever their encoding.
        Raises MediaError.
        """
        encoded = ",".join(base64.b64encode(image.encode(frame)).decode() for frame in self.images())
        return f"data:{'image/png' if self.kind == 'image' else 'video/jpeg'};base64,{encoded}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Media):
            return NotImplemented
        return self is other or (self.kind == other.kind and self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<Media {self.kind} ({self._name})>"

    def __copy__(self) -> Media:
        return self

    def __deepcopy__(self, memo: object) -> Media:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        problem, source = None, self._source
        if self.kind in ("image", "video"):
            try:
                frames = tuple(image.encode(frame) for frame in self.images())
                source = frames if self.kind == "video" else frames[0]
            except MediaError as error:
                problem = str(error)
        return _restored, (self.kind, source, self._fps, self._limits, self._name, problem, self._drawn)

    def _decoded(self) -> tuple[tuple[Image, ...], float]:
        if self.kind == "image":
            return (_picture(self._source, self._roots, self._limits),), 0.0
        if self.kind == "video":
            return _clip(self._source, self._fps, self._roots, self._limits)
        if self.kind == "molecule":
            from flexjudge_reward.media import molecule

            self._text = molecule.describe(self._source)
            return ((molecule.draw(self._source),) if self._drawn else ()), 0.0
        raise MediaError("this kind cannot be judged yet; image, video and molecule can")


def as_media(value: object, roots: Roots = (), limits: Limits = Limits()) -> Media:
    """What a row of a data set holds, as a picture or a clip. Never raises: what is wrong shows in `load()`.

    A clip is a list of frames, an array with four axes, a data URI that says so, bytes that begin like one, or a path
    with a suffix in `VIDEO_SUFFIXES`. Everything else is a picture.

    Args:
        value: `Media` (returned as it is), or what `Media.image` and `Media.video` take.
        roots: the folders below which files may be read; none means no file.
    """
    if isinstance(value, Media):
        return value
    build = Media.video if _is_clip(value) else Media.image
    return build(value, roots=roots, limits=limits)


def _is_clip(value: object) -> bool:
    if isinstance(value, Mapping):
        return _is_clip(value["bytes"] if value.get("bytes") is not None else value.get("path"))
    if isinstance(value, bytes | bytearray | memoryview):
        head = bytes(value[:12])
        return head[4:8] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3" or (head[:4] == b"RIFF" and head[8:] == b"AVI ")
    if isinstance(value, str | os.PathLike):
        name = str(value)
        start, end = name[:11].lower(), name[-8:].lower()
        return start == "data:video/" if start.startswith("data:") else end.endswith(VIDEO_SUFFIXES)
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 4


def _picture(source: object, roots: Roots, limits: Limits) -> Image:
    import PIL.Image

    if isinstance(source, PIL.Image.Image):
        return image.upright_rgb(source, limits.pixels)
    if hasattr(source, "__array__"):
        return image.from_array(_numbers(source), limits.pixels)
    return image.decode(_encoded(source, roots, limits), limits.pixels)


def _clip(source: object, fps: float, roots: Roots, limits: Limits) -> tuple[tuple[Image, ...], float]:
    if hasattr(source, "__array__"):
        source = list(_numbers(source))
    if not isinstance(source, list | tuple):
        from flexjudge_reward.media import video

        rate, frames = video.decode(_encoded(source, roots, limits), 4 * limits.pixels, limits.frames, limits.seconds)
        return frames, rate
    if not source:
        raise MediaError("the list of frames is empty")
    if not (isinstance(fps, Real) and math.isfinite(fps) and fps > 0):
        raise MediaError(f"fps must be a positive number of frames per second, found {fps!r}")
    kept = min(len(source), limits.frames)
    pick = [round(i * (len(source) - 1) / max(1, kept - 1)) for i in range(kept)]
    each = replace(limits, pixels=min(limits.pixels, 4 * limits.pixels // kept))
    frames = tuple(_picture(source[i], roots, each) for i in pick)
    if len({frame.size for frame in frames}) > 1:
        raise MediaError("the frames differ in size")
    return frames, float(fps) * (kept - 1) / (len(source) - 1) if kept < len(source) and kept > 1 else float(fps)


def _numbers(source: object) -> Any:
    import numpy as np

    try:
        return np.asarray(source)
    except Exception as error:  # whatever the foreign type raises; a tensor on a GPU, TypeError
        raise MediaError(f"{type(source).__name__} gives no array: {str(error)[:200]}") from None


def _encoded(source: object, roots: Roots, limits: Limits) -> bytes:
    """The bytes of an encoded picture or clip."""
    if isinstance(source, Mapping):
        if source.get("bytes") is not None:
            return _encoded(source["bytes"], (), limits)
        if source.get("path") is None:
            raise MediaError("a dict needs the bytes of a file in 'bytes' or its name in 'path'")
        source = source["path"]
    if isinstance(source, bytes | bytearray | memoryview):
        _check_bytes(memoryview(source).nbytes, limits)
        return bytes(source)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _from_data_uri(source, limits)
    if isinstance(source, str) and _URL.match(source):
        raise MediaError("URLs are not fetched; load it yourself and pass the bytes, a PIL picture or a path")
    if isinstance(source, str | os.PathLike):
        return files.read(source, roots, limits.bytes)
    raise MediaError(f"expected a PIL picture, array, bytes, data URI, path or dict, found {type(source).__name__}")


def _from_data_uri(uri: str, limits: Limits) -> bytes:
    match = _DATA_URI.match(uri)
    if match is None:
        raise MediaError("only data URIs of the form data:image/png;base64,... are read")
    _check_bytes(max(1, (len(uri) - match.end()) * 3 // 4 - 2), limits)
    try:
        data = base64.b64decode(uri[match.end() :].translate(_NO_SPACE), validate=True)
    except (binascii.Error, ValueError):
        raise MediaError("the data URI is damaged: not base64") from None
    _check_bytes(len(data), limits)
    return data


def _check_bytes(size: int, limits: Limits) -> None:
    if size > limits.bytes:
        raise MediaError(f"{size:,} bytes are more than the {limits.bytes:,} allowed")
    if size == 0:
        raise MediaError("the file is empty")


def _raw(source: object) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    raise MediaError(f"expected bytes, found {type(source).__name__}")


def _described(source: object) -> str:
    """A short name of a source for messages. Never its content: it may be large or private."""
    if isinstance(source, Mapping):
        return _described(source["bytes"] if source.get("bytes") is not None else source.get("path"))
    if isinstance(source, str) and source[:5].lower() == "data:":
        return "data URI"
    if isinstance(source, str | os.PathLike):
        name = str(source)
        return repr(name if len(name) <= _SHOWN else "..." + name[-_SHOWN:])
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{len(source):,} bytes"
    if isinstance(source, list | tuple):
        return f"{len(source)} frames"
    return type(source).__name__


def _restored(
    kind: MediaKind, source: object, fps: float, limits: Limits, name: str, problem: str | None, drawn: bool
) -> Media:
    media = Media(kind, source, fps, (), limits)
    media._name, media._problem, media._drawn = name, problem, drawn
    return media
