"""The bytes behind a source of encoded media: bytes, a base64 data URI, a path below a root, or a `datasets` dict.

Promised: no URL is fetched, no file outside the roots is opened, and the size in bytes is checked.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from typing import Any

from flexjudge_reward.errors import MediaError
from flexjudge_reward.media import files
from flexjudge_reward.media.modality import Limits, Roots

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{0,31}://")
_NO_SPACE = str.maketrans("", "", " \t\r\n")
_SHOWN = 80  # characters of a path in a message
_DATA_URI = re.compile(r"data:([a-z0-9.+/-]*)(;[a-z0-9=._-]+)*;base64,", re.IGNORECASE)


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
    if isinstance(source, str) and _URL.match(source):
        raise MediaError("URLs are not fetched; load it yourself and pass the bytes, a PIL image or a path")
    if isinstance(source, str | os.PathLike):
        return files.read(source, roots, limits.bytes)
    raise MediaError(f"expected a PIL image, array, bytes, data URI, path or dict, found {type(source).__name__}")


def numbers(source: object) -> Any:
    """An array-like source as a numpy array. Raises MediaError."""
    import numpy as np

    try:
        return np.asarray(source)
    except Exception as error:  # whatever the foreign type raises; a tensor on a GPU, TypeError
        raise MediaError(f"{type(source).__name__} gives no array: {str(error)[:200]}") from None


def described(source: object) -> str:
    """A short name of a source for messages. Never its content: it may be large or private."""
    if isinstance(source, Mapping):
        return described(source["bytes"] if source.get("bytes") is not None else source.get("path"))
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{memoryview(source).nbytes:,} bytes"
    if isinstance(source, list | tuple):
        return f"{len(source)} frames"
    if not isinstance(source, str | os.PathLike):
        return type(source).__name__
    name = str(source)
    if name[:5].lower() == "data:":
        return "data URI"
    return repr(name if len(name) <= _SHOWN else "..." + name[-_SHOWN:])


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
