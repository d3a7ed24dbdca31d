"""One answer of a chat server: a reply, a refusal of this request, or a trouble that may pass. Never raises.

    Reply      a chat completion, in whatever dialect: its text as one text, as chunks or as a stream of events
    Refusal    the server will not serve this request: the status, its message, and the fields it points at
    Passing    a rate limit, an overload, a broken body, an error inside a 200

An error inside a 200 counts by its own code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

_PASSING = {408, 409, 425, 429} | (set(range(500, 600)) - {501, 505})
_NO_CREDIT = ("insufficient_quota", "billing", "credit balance", "payment")
_SHOWN = 2**20  # bytes of an answer without a message that are looked at


@dataclass(frozen=True)
class Reply:
    """A chat completion."""

    body: Mapping[str, Any]


@dataclass(frozen=True)
class Refusal:
    """The server will not serve this request."""

    status: int
    message: str
    fields: frozenset[str] = frozenset()

    @property
    def refusal(self) -> Refusal:
        """Itself, as `Passing.refusal`."""
        return self


@dataclass(frozen=True)
class Passing:
    """There is no reply this time."""

    problem: str
    pause: float | None = None  # seconds that the server demands
    limited: bool = False  # whether there were too many requests
    unreachable: bool = False  # whether no process listens at the address
    refusal: Refusal | None = None  # how the server's message reads if it is meant for good


def read(status: int, headers: Mapping[str, str], raw: bytes, clean: Callable[[str], str]) -> Reply | Refusal | Passing:
    """What an answer is; `clean` makes the server's message fit to be shown."""
    body = _stream(raw) if raw[:5] == b"data:" else _json(raw)
    if 200 <= status < 300 and _is_reply(body):
        return Reply(body)
    message = clean(_message(body) or raw[:_SHOWN].decode("utf-8", "replace") or "an empty body")
    code = _code(body)
    if 200 <= status < 300 and code is None:
        return Passing(f"the server sent no reply but {message}")
    status = code if code is not None and 200 <= status < 300 else status
    if 300 <= status < 400:
        message = clean(f"it redirects to {headers.get('Location', 'nowhere')}")
    refusal = Refusal(status, message, frozenset(_fields(body)))
    if status not in _PASSING or (status == 429 and any(word in message for word in _NO_CREDIT)):
        return refusal
    return Passing(f"the server answered {status}: {message}", _pause(headers), status == 429, refusal=refusal)


def models(raw: bytes) -> list[dict[str, Any]]:
    """The entries of a list of models."""
    body = _json(raw)
    listed = body.get("data") if isinstance(body, dict) else None
    return [entry for entry in listed or () if isinstance(entry, dict) and "id" in entry]


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode())  # of bytes it would guess the encoding first
    except (ValueError, RecursionError):
        return None


def _stream(raw: bytes) -> Any:
    """The events of a stream as one completion; None if they are not one."""
    lines = raw.decode("utf-8", "replace").splitlines()
    chunks = [_json(line[5:].encode()) for line in lines if line.startswith("data:") and line[5:].strip() != "[DONE]"]
    whole: dict[str, Any] = {}
    texts: dict[str, str] = {}
    finish = None
    for chunk in chunks:
        if not isinstance(chunk, dict) or chunk.get("error"):
            return chunk
        whole |= {name: value for name, value in chunk.items() if value}
        choices = chunk.get("choices")
        for choice in choices[:1] if isinstance(choices, list) else ():
            if not isinstance(choice, dict) or not isinstance(choice.get("delta") or {}, dict):
                return None
            finish = choice.get("finish_reason") or finish
            for name, value in (choice.get("delta") or {}).items():
                if isinstance(value, str) and name != "role":
                    texts[name] = texts.get(name, "") + value
    # Without a finish reason the stream was cut.
    return None if finish is None else {**whole, "choices": [{"message": texts, "finish_reason": finish}]}


def _is_reply(body: Any) -> bool:
    """Whether a body is a chat completion: one choice with a message that has a text in some form."""
    try:
        choice = body["choices"][0]
        message = choice["message"]
        texts = [message.get(name) for name in ("content", "reasoning", "reasoning_content", "refusal")]
    except (TypeError, KeyError, IndexError, AttributeError):
        return False
    whole = all(text is None or isinstance(text, str | list | dict) for text in texts)
    return whole and not body.get("error") and not choice.get("error") and choice.get("finish_reason") != "error"


def _error(body: Any) -> Any:
    """The part of a body that says what went wrong."""
    if isinstance(body, list) and body:
        body = body[0]
    if not isinstance(body, dict):
        return None
    with suppress(TypeError, KeyError, IndexError, AttributeError):
        if error := body["choices"][0].get("error"):
            return error
    return body.get("error") or body.get("detail") or body.get("message") or body


def _message(body: Any) -> str:
    error = _error(body)
    if isinstance(error, list):
        return "; ".join(str(one.get("msg") or one) if isinstance(one, dict) else str(one) for one in error)
    if isinstance(error, dict):
        error = error.get("message") or error.get("msg") or error.get("error") or error
    return "" if error is None else str(error)


def _code(body: Any) -> int | None:
    error = _error(body)
    for name in ("code", "status", "status_code") if isinstance(error, dict) else ():
        with suppress(TypeError, ValueError):
            if 400 <= int(error.get(name, 0)) < 600:
                return int(error[name])
    return None


def _fields(body: Any) -> Iterator[str]:
    """The fields of the request that an error points at: `param` of OpenAI's errors, `loc` of FastAPI's."""
    error = _error(body)
    for one in error if isinstance(error, list) else [error]:
        if isinstance(one, dict):
            if isinstance(one.get("param"), str):
                yield one["param"]
            if isinstance(one.get("loc"), list):
                yield from (str(part) for part in one["loc"])


def _pause(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from Retry-After (a number or a date) or its relative in milliseconds."""
    with suppress(KeyError, ValueError):
        return float(headers["Retry-After-Ms"]) / 1000
    with suppress(KeyError, ValueError):
        return float(headers["Retry-After"])
    with suppress(KeyError, ValueError):
        return parsedate_to_datetime(headers["Retry-After"]).timestamp() - time()
    return None
