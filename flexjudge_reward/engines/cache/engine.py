"""A judge that remembers: the same request is asked once, whichever process asks again.

It answers: was this very request answered before? `CachedEngine` is an engine around an engine. It stores what the
judge replied, never what the reply was worth, so a better reader or another scale needs no new judgement.

Promised:
* the key is a SHA-256 over everything that could change the reply: the engine's identity, every message, part by part,
  with media by their digests, every field of the sampling, and the sample index, so k votes are k keys;
* failures and replies that were cut, filtered or empty are never stored;
* identical requests of one batch are judged once, and order is kept;
* of prompts and media the file holds digests only, of replies the whole text;
* nothing about the file can stop a run (see `store/`).

What it cannot know: that an engine's identity is complete, or that a server changed its weights under the same name.
Replies are replayed, not reproduced: a sampled reply is one draw, kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from flexjudge_reward.engines.cache.store import Row, Store
from flexjudge_reward.errors import ConfigError, MediaError
from flexjudge_reward.media.base import MediaKind
from flexjudge_reward.types import Engine, Generation, Part, Prompt, Quoted, Sampling, TokenLogprob

SCHEMA = "flexjudge-reply-1"
"""Stands in every key; a change of what a key is made of changes it."""

MAX_BYTES = 2 << 30
CHUNK = 4096  # requests per engine call: a very large batch that fails late keeps what it had
_NOT_IN_KEY = frozenset({"timeout", "retries"})
"""Sampling fields that cannot change a reply. A deny-list: a field added later is in the key until it stands here."""


@dataclass(frozen=True)
class CacheStats:
    """What one `CachedEngine` did in this process; hits + misses = requests."""

    hits: int = 0
    """Served without asking the judge: from the file, or as the twin of a request in the same batch."""
    misses: int = 0
    """Asked of the judge."""
    stored: int = 0
    """Replies written."""


def default_path() -> Path:
    """`$FLEXJUDGE_CACHE`, or `flexjudge_reward/replies.sqlite` in the user's cache folder."""
    if given := os.environ.get("FLEXJUDGE_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base) / "flexjudge_reward" / "replies.sqlite"


class CachedEngine:
    """An engine that asks `engine` only what the file does not hold. Thread-safe; pickles; opens the file when used."""

    def __init__(self, engine: Engine, path: str | os.PathLike[str] | None = None, max_bytes: int = MAX_BYTES) -> None:
        """
        Args:
            path: the file; `default_path()` if None. Processes of one machine may share it.
            max_bytes: its size limit, at least 1 MiB; the replies not used for longest go first.
        """
        self.engine = engine
        self.store = Store(default_path() if path is None else Path(path), max_bytes)
        self._stats = CacheStats()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """One reply per prompt, in order; those that were not generated for this prompt have `cached=True`.

        Raises:
            ConfigError: the engine's identity is not made of JSON values, or its replies do not match its prompts.
            EngineError: from the engine; what it had answered before is stored.
        """
        requests = _requests(self.engine.identity(), prompts, sampling)
        # A request without a key (its media cannot be read) goes to the engine, which knows how to fail it.
        names = [request.key if request else i for i, request in enumerate(requests)]
        replies = self._stored([request.key for request in requests if request])
        first: dict[bytes | int, int] = {}
        for i, name in enumerate(names):
            if name not in replies:
                first.setdefault(name, i)
        asked = list(first.values())
        self._count(hits=len(prompts) - len(asked), misses=len(asked))
        for start in range(0, len(asked), CHUNK):
            part = asked[start : start + CHUNK]
            fresh = self._ask([prompts[i] for i in part], sampling)
            self._keep([requests[i] for i in part], fresh, sampling)
            replies.update(zip((names[i] for i in part), fresh, strict=True))
        return [replies[name] if first.get(name) == i else _served(replies[name]) for i, name in enumerate(names)]

    def identity(self) -> dict[str, object]:
        """That of the engine inside: a cache does not change replies."""
        return self.engine.identity()

    def takes(self, kind: MediaKind) -> bool:
        """Whether the engine inside can show the judge media of this kind; True if it does not know."""
        takes = getattr(self.engine, "takes", None)
        return takes is None or bool(takes(kind))

    def close(self) -> None:
        """Closes the file and the engine."""
        self.store.close()
        self.engine.close()

    @property
    def stats(self) -> CacheStats:
        """The counts so far."""
        return self._stats

    def __reduce__(self) -> tuple[type[CachedEngine], tuple[Engine, Path, int]]:
        return CachedEngine, (self.engine, self.store.path, self.store.max_bytes)

    def _stored(self, keys: Sequence[bytes]) -> dict[bytes | int, Generation]:
        read = {key: decode(value) for key, value in self.store.get(keys).items()}
        return {key: generation for key, generation in read.items() if generation is not None}

    def _ask(self, prompts: list[Prompt], sampling: Sampling) -> list[Generation]:
        replies = self.engine.generate(prompts, sampling)
        if len(replies) != len(prompts):
            raise ConfigError(
                f"{type(self.engine).__name__}.generate returned {len(replies)} replies for {len(prompts)} prompts;"
                " an engine returns one per prompt, in order"
            )
        return replies

    def _keep(self, requests: Sequence[Request | None], replies: Sequence[Generation], sampling: Sampling) -> None:
        rows = [
            Row(request.key, encode(reply), zlib.compress(request.document, 1), request.model)
            for request, reply in zip(requests, replies, strict=True)
            if request and worth_storing(reply, sampling)
        ]
        self._count(stored=self.store.put(rows))

    def _count(self, hits: int = 0, misses: int = 0, stored: int = 0) -> None:
        with self.store.lock:  # a lock of its own could stay locked in a forked child
            s = self._stats
            self._stats = CacheStats(s.hits + hits, s.misses + misses, s.stored + stored)


# ---- keys


@dataclass(frozen=True)
class Request:
    """What a key is made of, as canonical JSON, and the key."""

    key: bytes
    document: bytes
    model: str


def request_key(engine: Engine, prompt: Prompt, sampling: Sampling) -> str:
    """The key of a request, in hex, as `flexjudge cache explain` takes it. Raises MediaError, ConfigError."""
    return _request(*_frame(engine.identity(), sampling), prompt).key.hex()


def _requests(identity: Mapping[str, object], prompts: Sequence[Prompt], sampling: Sampling) -> list[Request | None]:
    frame, model = _frame(identity, sampling)
    requests: list[Request | None] = []
    for prompt in prompts:
        try:
            requests.append(_request(frame, model, prompt))
        except MediaError:
            requests.append(None)
    return requests


def _frame(identity: Mapping[str, object], sampling: Sampling) -> tuple[dict[str, Any], str]:
    """The part of the document that all prompts of a batch share, and the judge's name."""
    chosen = {f.name: getattr(sampling, f.name) for f in fields(sampling) if f.name not in _NOT_IN_KEY}
    engine = canonical(identity, "the engine's identity")
    frame = {"schema": SCHEMA, "engine": engine, "sampling": canonical(chosen, "the sampling")}
    return frame, str(identity.get("model") or identity.get("engine") or "unnamed")


def _request(frame: dict[str, Any], model: str, prompt: Prompt) -> Request:
    messages = [{"role": message.role, "parts": [_part(part) for part in message.parts]} for message in prompt.messages]
    document = _json({**frame, "sample": int(prompt.sample), "messages": messages})
    return Request(hashlib.sha256(document).digest(), document, model)


def _part(part: Part) -> dict[str, object]:
    """A part by its kind and digest: trusted text, quoted text and media never look alike."""
    if isinstance(part, Quoted | str):
        text = part.text if isinstance(part, Quoted) else part
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return {"quoted" if isinstance(part, Quoted) else "text": digest, "characters": len(text)}
    return {part.kind: part.digest}


def canonical(value: object, where: str) -> Any:
    """`value` with one spelling for equal values (1 and 1.0, tuple and list), fit for JSON.

    Raises:
        ConfigError: something in it is not a JSON value, so two processes might not agree on it.
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


def _json(value: object) -> bytes:
    # Not escaped: an escaped lone surrogate pair and the character it would spell look the same.
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


# ---- values


def worth_storing(generation: Generation, sampling: Sampling) -> bool:
    """Whether a reply is complete: not failed, cut, filtered or empty. Whether it can be read is not asked.

    Where one token was asked for, it is the whole reply, whatever it is: `expected.py` asks so.
    """
    if generation.failure is None and generation.finish_reason == "length" and sampling.max_tokens == 1:
        return True
    return generation.failure is None and generation.finish_reason == "stop" and bool(generation.text.strip())


def encode(generation: Generation) -> bytes:
    """A complete reply as JSON; its finish reason is "stop" unless it says otherwise."""
    logprobs = generation.logprobs and [
        {"token": t.token, "logprob": float(t.logprob), "top": {token: float(p) for token, p in t.top.items()}}
        for t in generation.logprobs
    ]
    entries = {
        "text": generation.text,
        "prompt_tokens": int(generation.prompt_tokens),
        "completion_tokens": int(generation.completion_tokens),
        "logprobs": logprobs,
    } | ({} if generation.finish_reason == "stop" else {"finish_reason": generation.finish_reason})
    return json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def decode(value: bytes) -> Generation | None:
    """The reply in `value`, with `cached=True`; None if it is not one."""
    try:
        entries = json.loads(value.decode("utf-8", "surrogatepass"))
        logprobs = entries["logprobs"]
        return Generation(
            text=str(entries["text"]),
            finish_reason="length" if entries.get("finish_reason") == "length" else "stop",
            prompt_tokens=int(entries["prompt_tokens"]),
            completion_tokens=int(entries["completion_tokens"]),
            logprobs=None if logprobs is None else tuple(TokenLogprob(**entry) for entry in logprobs),
            cached=True,
        )
    except (ValueError, TypeError, KeyError):
        return None


def _served(generation: Generation) -> Generation:
    """What a request gets that was not asked itself. A failure is shared by twins, but it is not called cached."""
    return replace(generation, cached=generation.failure is None)


def sound(row: Row) -> bool:
    """Whether a stored row is a reply to the request that its key was made of: for `flexjudge cache verify`."""
    return _document(row) is not None and decode(row.value) is not None


def _document(row: Row) -> Any | None:
    """What the key of a row was made of; None if it was damaged."""
    try:
        document = zlib.decompress(row.request)
    except (zlib.error, TypeError):
        return None
    return json.loads(document) if hashlib.sha256(document).digest() == row.key else None


# ---- why two requests did not share a key


@dataclass(frozen=True)
class Difference:
    """One field in which two requests differ; None where one has no such field."""

    field: str
    """Such as `sampling.seed` or `messages[1].parts[2].quoted`."""
    one: str | None
    other: str | None

    def __str__(self) -> str:
        return f"{self.field}: {self.one or 'nothing'} | {self.other or 'nothing'}"


@dataclass(frozen=True)
class Miss:
    """The stored request nearest to one that was not found."""

    key: str
    stored: int
    """When, in seconds since 1970."""
    differences: tuple[Difference, ...]
    """Its value first, then that of the request that was asked."""


def explain_miss(engine: CachedEngine, prompt: Prompt, sampling: Sampling) -> Miss | None:
    """The nearest of the newest 10,000 stored requests, and the fields in which it differs from this one.

    None if nothing is stored. No differences means that the request is stored.

    Raises:
        ConfigError: the cache file cannot be used.
        MediaError: the prompt's media cannot be read.
    """
    request = _request(*_frame(engine.identity(), sampling), prompt)
    return nearest(Row(request.key, b"", zlib.compress(request.document)), engine.store.newest(10_000))


def nearest(row: Row, others: Sequence[Row]) -> Miss | None:
    """The row of `others` whose request is nearest to that of `row`: by the data judged, then by everything else.

    Raises:
        ConfigError: `row` was damaged; damaged others are skipped.
    """
    misses = (Miss(o.key.hex(), o.stored, differences(o, row)) for o in others if _document(o) is not None)
    return min(misses, key=_distance, default=None)


def differences(one: Row, other: Row) -> tuple[Difference, ...]:
    """The fields in which the requests of two rows differ. Raises ConfigError if a row was damaged."""
    left, right = _fields(one), _fields(other)
    names = sorted(left.keys() | right.keys())
    return tuple(Difference(n, left.get(n), right.get(n)) for n in names if left.get(n) != right.get(n))


def _fields(row: Row) -> dict[str, str]:
    document = _document(row)
    if document is None:
        raise ConfigError(f"the stored request {row.key.hex()} was damaged; `flexjudge cache verify` removes it")
    return _leaves(document, "")


def _distance(miss: Miss) -> tuple[int, int]:
    """Other data to judge is a farther request than the same data asked in another way."""
    data = sum(
        not difference.field.endswith(".text") for difference in miss.differences if "].parts[" in difference.field
    )
    return data, len(miss.differences)


def _leaves(value: object, name: str) -> dict[str, str]:
    """Each field of a document by its path, shown briefly."""
    if isinstance(value, dict) and "characters" in value and name.endswith("]"):
        kind = "quoted" if "quoted" in value else "text"
        return {f"{name}.{kind}": f"{value['characters']} characters, sha256 {value[kind][:12]}"}
    if isinstance(value, dict | list) and value:
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        found: dict[str, str] = {}
        for key, entry in entries:
            found |= _leaves(entry, f"{name}[{key}]" if isinstance(value, list) else f"{name}.{key}".lstrip("."))
        return found
    return {name: json.dumps(value, ensure_ascii=False)}
