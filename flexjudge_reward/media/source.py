"""The bytes behind a source of encoded media: bytes, base64 as a data URI or bare, a path below a root, or a dict.

Promised: no URL is fetched, no file outside the roots is opened, and the size in bytes is checked.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Hashable, Mapping
from contextlib import suppress
from typing import Any

from flexjudge_reward.errors import MediaError, need
from flexjudge_reward.media import files
from flexjudge_reward.media.modality import Limits, Roots

_URL = re.compile(r"\s*[a-zA-Z][a-zA-Z0-9+.-]{0,31}:[/\\]{2}")
# One slash is enough in messages: a `Path` of an address has one.
_ADDRESS = re.compile(r"\s*([a-zA-Z][a-zA-Z0-9+.-]{0,31}:[/\\]+|[/\\]{2,})")
_ENDS_HOST = re.compile(r"[/\\?#]")
_NO_SPACE = str.maketrans("", "", " \t\r\n")
_SHOWN = 80  # characters of a path in a message
_ENDINGS = {
    "video": "mp4 m4v mov mkv webm avi mpg mpeg ts flv wmv ogv".split(),
    "audio": "wav mp3 flac ogg oga m4a aac opus aif aiff au caf amr mka".split(),
}
_BRANDS = dict.fromkeys((b"avif", b"avis", b"heic", b"heix", b"mif1"), "image") | {b"M4A ": "audio"}
_BEGINNINGS = {
    **dict.fromkeys((b"\x1aE\xdf\xa3", b"\0\0\x01\xba", b"\0\0\x01\xb3", b"FLV\x01", b"0&\xb2u\x8ef\xcf\x11"), "video"),
    **dict.fromkeys((b"ID3", b"fLaC", b"OggS", b"RF64", b".snd", b"caff", b"#!AMR"), "audio"),
    **dict.fromkeys((b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2", b"\xff\xf1", b"\xff\xf9"), "audio"),
}
# Bare base64: a path of this length has a dot, and base64 has none. JPEG, PNG, GIF; WebP, WAV and AVI; FLAC, OGG, MP3
# with and without a tag, AAC; WebM and Matroska; MP4 and its relatives.
_BARE = re.compile(
    r"\s*(/9j/|iVBORw0KGgo|R0lGOD|UklGR|ZkxhQ|T2dnU|SUQz|//[E-Pk-v]|GkXfo|AAAA[A-Za-z0-9+/][GWm2]Z0eX)"
    r"[A-Za-z0-9+/=\s]{80,}\Z"
)
_SAMPLE = (16, 16)
_BYTES = ("L", "P", "RGB", "RGBA", "CMYK")  # modes whose pixels Pillow compares without copying them
_DATA_URI = re.compile(r"data:([a-z0-9.+/-]*)(;[a-z0-9=._,\"+-]+)*;base64,", re.IGNORECASE)


def encoded_bytes(source: object, roots: Roots, limits: Limits) -> bytes:
    """The bytes of an encoded file. Raises MediaError: of no known kind, not allowed, missing, empty or too large."""
    if isinstance(source, Mapping):
        if source.get("bytes") is not None:
            return encoded_bytes(source["bytes"], (), limits)
        if source.get("path") is None:
            raise MediaError("a dict needs the bytes of a file in 'bytes' or its name in 'path'")
        source = source["path"]
    if isinstance(source, bytes | bytearray | memoryview):
        _check_size(memoryview(source).nbytes, limits)
        return bytes(source)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _from_data_uri(source, limits)
    if isinstance(source, str) and _BARE.match(source):
        return _from_data_uri(f"data:;base64,{source}", limits)
    if isinstance(source, str) and _URL.match(source):
        raise MediaError("URLs are not fetched; load it yourself and pass the bytes, a PIL image or a path")
    if isinstance(source, str | os.PathLike):
        data = files.read(source, roots, limits.bytes)
        _check_size(len(data), limits)
        return data
    held = getattr(source, "_hf_encoded", None)  # what `datasets` gives for a sound or a clip has the file beside it
    if isinstance(held, Mapping) and held.get("bytes") is not None:
        return encoded_bytes(held["bytes"], (), limits)
    raise MediaError(f"expected a PIL image, array, bytes, data URI, path or dict, found {type(source).__name__}")


def same_as(source: object) -> Hashable:
    """A value that is equal for sources of equal content, where that is quickly seen; else the source's own id."""
    if isinstance(source, Mapping) and set(source) <= {"bytes", "path"}:
        data = source.get("bytes")
        return ("path", source.get("path")) if data is None else same_as(data)
    if isinstance(source, str | bytes):
        return source
    if hasattr(source, "getexif"):
        with suppress(Exception):  # what a damaged file raises; `load` says it
            return _Picture(source)
    return id(source)


def hash_of_pixels(source: object) -> str:
    """Of a PIL image, a hash of what decides its pixels as RGB, in hex; else empty."""
    if hasattr(source, "getexif"):
        with suppress(Exception):
            return _Picture(source).hash()
    return ""


class _Picture:
    """A PIL image, equal to others of the same pixels as RGB (`image.upright_rgb`), which are compared if need be."""

    def __init__(self, image: Any) -> None:
        self._image, palette = image, image.getpalette("RGBA") if image.mode in ("P", "PA") else None
        turned, clear = image.getexif().get(0x0112), image.info.get("transparency")
        self._notes = repr([image.mode, image.size, turned, clear, palette])
        self._some = image.resize(_SAMPLE, 0).tobytes()  # of its pixels, as they are

    def hash(self) -> str:
        """In hex."""
        return hashlib.sha256(self._notes.encode() + self._image.tobytes()).hexdigest()

    def __hash__(self) -> int:
        return hash((self._notes, self._some))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Picture) or (self._notes, self._some) != (other._notes, other._some):
            return False
        if self._image.mode not in _BYTES:
            return bool(self._image.tobytes() == other._image.tobytes())
        from PIL import ImageChops

        return ImageChops.difference(self._image, other._image).getbbox(alpha_only=False) is None


def is_path(text: str) -> bool:
    """Whether a text where an encoded file is expected is a path: no data URI, no bare base64 and no address."""
    return not (text[:5].lower() == "data:" or _URL.match(text) or _BARE.match(text))


def kind_of(data: bytes, path: str | None = None) -> str:
    """What the bytes or, without any, the name of a file say it is: "image", "video" or "audio"; image in doubt."""
    if not data:
        ending = (path or "").rpartition(".")[2].lower()
        return next((kind for kind, endings in _ENDINGS.items() if ending in endings), "image")
    if data[4:8] == b"ftyp":  # MP4 and its relatives
        return _BRANDS.get(bytes(data[8:12]), "video")
    if data[:4] in (b"RIFF", b"FORM"):
        return {b"AVI ": "video", b"WAVE": "audio", b"AIFF": "audio", b"AIFC": "audio"}.get(bytes(data[8:12]), "image")
    return next((kind for begin, kind in _BEGINNINGS.items() if data.startswith(begin)), "image")


def numbers(source: object) -> Any:
    """An array-like source as a numpy array. Raises MediaError; and MissingExtra: lists of numbers, without numpy."""
    need("numpy", "datasets")
    import numpy as np

    try:
        return np.asarray(source)
    except Exception as error:  # whatever the foreign type raises; a tensor on a GPU, TypeError
        raise MediaError(f"{type(source).__name__} gives no array: {str(error)[:200]}") from None


def described(source: object) -> str:
    """A short name of a source for messages. Never its content: it may be large or private."""
    if isinstance(source, Mapping):
        if source.get("array") is not None:
            return "an array"
        return described(source["bytes"] if source.get("bytes") is not None else source.get("path"))
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{memoryview(source).nbytes:,} bytes"
    if isinstance(source, list | tuple):
        return f"{len(source)} frames" if not _is_sound(source) else "an array"
    if not isinstance(source, str | os.PathLike):
        return type(source).__name__
    name = os.fsdecode(source)
    if name[:5].lower() == "data:":
        return "data URI"
    if _BARE.match(name):
        return "base64"
    name = _without_secrets(name)
    return repr(name if len(name) <= _SHOWN else "..." + name[-_SHOWN:])


def _is_sound(source: list[Any] | tuple[Any, ...]) -> bool:
    """Whether it is the pair (array, samples per second)."""
    return len(source) == 2 and isinstance(source[1], int | float)


def _without_secrets(name: str) -> str:
    """An address without login, query and fragment, which may be keys; a path without what looks like them."""
    found = _ADDRESS.match(name)
    start = found.end() if found else 0
    host = _ENDS_HOST.split(name[start:], maxsplit=1)[0]
    if "@" in host:
        name = name[:start] + name[start + host.rindex("@") + 1 :]
    elif "@" in name[start:] and ":" in host and not re.search(r":\d*\Z|\]", host):
        return f"{name[:start]}..."  # a password with a slash in it
    end = re.search(r"[?#]" if found else r"\?", name)
    return f"{name[: end.start()]}..." if end else name


def _from_data_uri(uri: str, limits: Limits) -> bytes:
    match = _DATA_URI.match(uri)
    if match is None:
        raise MediaError("only data URIs of the form data:image/png;base64,... are read")
    encoded = uri[match.end() :].translate(_NO_SPACE)
    _check_size(len(encoded) * 3 // 4 - encoded[-2:].count("="), limits)
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError:
        raise MediaError("the data URI is damaged: not base64") from None


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.bytes:
        raise MediaError(f"{size:,} bytes are more than the {limits.bytes:,} allowed")
    if size < 1:
        raise MediaError("the file is empty")
