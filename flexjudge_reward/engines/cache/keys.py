"""Cache keys: SHA-256 over everything that could change a reply, as canonical JSON; and how two of them differ.

The engine's identity, every message, part by part, whether its videos go as images, and every sampling parameter. Text
counts by its digest, media by kind and content, so the stored document holds no data of the user. Trusted text,
untrusted text and media never look alike.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from flexjudge_reward.engines.base import Engine
from flexjudge_reward.engines.cache.tables import Row
from flexjudge_reward.engines.stills import STILLS
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.media.base import Media
from flexjudge_reward.prompts.quoting import VERSION
from flexjudge_reward.types import Message, Prompt, Request, Untrusted

SCHEMA = "flexjudge-reply-2"
"""In every key; changes when the content of a key changes."""
_NO_VIDEOS = frozenset(("image", "audio", "molecule"))  # what a kind of the user's own shows is known once it is loaded


class Key(NamedTuple):
    """The key of a request, and the document it is the hash of."""

    digest: bytes
    document: bytes
    model: str
    frame: bytes
    """What the documents of a batch have in common, as far as the first one tells."""
    stills: bool | None = None
    """Whether videos go as images, which is not known from the engine's identity; None without videos."""

    def packed(self) -> bytes:
        """The document, compressed: what it has in common with the frame takes no room."""
        packing = zlib.compressobj(1, zdict=self.frame)
        return packing.compress(self.document) + packing.flush()


def request_key(engine: Engine, request: Request) -> str:
    """The key of a request, in hex, as `flexjudge cache explain` takes it. Raises MediaError, ConfigError."""
    return keys_of(engine.identity(), [request], engine.shows_stills)[0].digest.hex()


def keys_of(
    identity: Mapping[str, object], requests: Sequence[Request], stills: Callable[[Prompt], bool] = lambda prompt: False
) -> list[Key]:
    """The keys of some requests to the engine of this identity.

    Args:
        stills: whether the engine shows the videos of a prompt as images; asked where there are any.

    Raises ConfigError if the identity is not made of JSON values, and MediaError.
    """
    model = str(identity.get("model") or identity.get("engine") or "unnamed")
    # The document of a request is canonical JSON, put together from pieces: most of them are the same in all requests.
    head = '{"engine":' + _json(canonical(identity, "the engine's identity")) + ',"messages":['
    samplings: dict[int, str] = {}
    messages: dict[int, str] = {}  # those of several requests, such as the system message
    keys: list[Key] = []
    frame = b""
    for request in requests:
        parts = []
        for message in request.prompt.messages:
            if (text := messages.get(id(message))) is None:
                text = messages[id(message)] = _message(message)
            parts.append(text)
        if (tail := samplings.get(id(request.sampling))) is None:
            sampling = _json(canonical(vars(request.sampling), "the sampling"))
            tail = f'],"quoting":{VERSION},"sampling":{sampling},"schema":"{SCHEMA}"'
            samplings[id(request.sampling)] = tail
        frame = frame or _encoded(f"{head}{_trusted(request)}{tail}}}")
        shown = stills(request.prompt) if request.prompt.media and _shows_videos(request.prompt) else None
        videos = "" if shown is None else f',"videos":"{STILLS if shown else "videos"}"'
        document = _encoded(f"{head}{','.join(parts)}{tail}{videos}}}")
        keys.append(Key(hashlib.sha256(document).digest(), document, model, frame, shown))
    return keys


def _shows_videos(prompt: Prompt) -> bool:
    kinds = {media.kind for media in prompt.media}
    return not kinds <= _NO_VIDEOS and any(media.kind == "video" for media in prompt.shown)


def _json(value: object) -> str:
    # Not escaped: an escaped lone surrogate pair and the character it would spell look the same.
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def canonical(value: object, where: str) -> Any:
    """`value` with one spelling for equal values (1 and 1.0, tuple and list), fit for JSON.

    Raises ConfigError if something in it is not a JSON value, so that two processes might not agree on it.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else value
    if isinstance(value, list | tuple):
        return [canonical(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: canonical(entry, f"{where}.{name}") for name, entry in value.items()}
    raise ConfigError(f"{where} must be made of JSON values to be part of a cache key, found {value!r}")


def _message(message: Message) -> str:
    parts = ",".join([_trusted_text(part) if isinstance(part, str) else _part(part) for part in message.parts])
    return f'{{"parts":[{parts}],"role":{_role(message.role)}}}'


_role = lru_cache(_json)


def _part(part: Untrusted | Media) -> str:
    if isinstance(part, Media):
        return _json({part.kind: part.digest})
    return f'{{"characters":{len(part.text)},"untrusted":"{hashlib.sha256(_encoded(part.text)).hexdigest()}"}}'


@lru_cache(maxsize=4096)
def _trusted_text(text: str) -> str:
    return f'{{"characters":{len(text)},"text":"{hashlib.sha256(_encoded(text)).hexdigest()}"}}'


def _trusted(request: Request) -> str:
    """The trusted texts of a request as they are in its document."""
    texts = [part for message in request.prompt.messages for part in message.parts if isinstance(part, str)]
    return ",".join(map(_trusted_text, texts))


# ---- what a file holds of the requests


class Difference(NamedTuple):
    """A field in which two requests differ, such as `sampling.seed`, and its JSON in each; None where there is none."""

    field: str
    one: str | None
    other: str | None


def differences(one: Row, other: Row) -> tuple[Difference, ...]:
    """The fields in which the requests of two rows differ. Raises ConfigError if a row is damaged."""
    left, right = _fields(one), _fields(other)
    names = sorted(left.keys() | right.keys())
    return tuple(Difference(n, left.get(n), right.get(n)) for n in names if left.get(n) != right.get(n))


def document_of(row: Row) -> Any | None:
    """The document that the key of a row is the hash of; None if it is damaged."""
    unpacking = zlib.decompressobj(zdict=row.frame)
    try:
        document = unpacking.decompress(row.request)
    except (zlib.error, TypeError):
        return None
    return json.loads(document) if unpacking.eof and hashlib.sha256(document).digest() == row.key else None


def _fields(row: Row) -> dict[str, str]:
    document = document_of(row)
    if document is None:
        raise ConfigError(f"the stored request {row.key.hex()} is damaged; `flexjudge cache verify` removes it")
    return _leaves(document, "")


def _leaves(value: object, name: str) -> dict[str, str]:
    """Each field of a document by its path."""
    if not isinstance(value, dict | list) or not value:
        return {name: json.dumps(value, ensure_ascii=False)}
    leaves: dict[str, str] = {}
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
        leaves |= _leaves(entry, f"{name}[{key}]" if isinstance(value, list) else f"{name}.{key}".lstrip("."))
    return leaves
