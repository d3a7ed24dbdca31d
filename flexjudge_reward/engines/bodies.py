"""The bytes of an answer as one JSON value: JSON, a stream of events, or what a careless server makes of either.

What is not strict JSON is read once more with patience: another encoding, half a character, a line break inside a text,
a comment in front, bytes behind the end. A body that was cut has no end, and stays unread. Completions come in the form
of the chat completions API, whatever is around them: a list, an envelope (`data`, `result`), the message alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from email.message import Message
from typing import Any

_BOM = b"\xef\xbb\xbf"
_EVENTS = re.compile(rb"(\xef\xbb\xbf)?\s*(:|data:|event:|id:|retry:)")  # how a stream of events begins
_COMMENTS = re.compile(r"\s*(:.*\n\s*)*")
_parse = json.JSONDecoder().decode
_patient = json.JSONDecoder(strict=False)
_ENVELOPES = ("data", "result", "response", "output", "body")
_REASONS = ("finish_reason", "stop_reason", "done_reason")


def value_of(raw: bytes, headers: Mapping[str, str] = {}) -> Any:
    """What an answer holds; None if it is neither JSON nor a stream that came to its end. Never raises."""
    if _EVENTS.match(raw):
        found = _stream(raw)
        return found if found is not None else _patiently(raw, headers)
    try:
        found = _parse(raw.removeprefix(_BOM).decode())  # of bytes `loads` would guess the encoding first
    except (ValueError, RecursionError):
        found = _patiently(raw, headers)
    # Almost every body is a completion, and nothing is to be looked for.
    return found if type(found) is dict and "choices" in found else _completion(found)


def _patiently(raw: bytes, headers: Mapping[str, str]) -> Any:
    if not raw.strip():
        return None
    kind = Message()
    kind["Content-Type"] = headers.get("Content-Type", "")
    try:
        text = raw.decode(str(kind.get_param("charset") or json.detect_encoding(raw)), "replace")
    except (LookupError, ValueError):  # no such encoding, or one that cannot replace what is damaged
        text = raw.decode("utf-8", "replace")
    text = text.removeprefix("\ufeff")
    try:
        found, end = _patient.raw_decode(text, _COMMENTS.match(text).end())  # type: ignore[union-attr]
    except (ValueError, RecursionError):
        return None
    # Another object behind the first one: chunks of a stream without its marks.
    return _stream(raw) if text[end:].lstrip().startswith("{") else found


def _stream(raw: bytes) -> Any:
    """The events of a stream as one completion; None if they are not one."""
    lines = raw.decode("utf-8-sig", "replace").split("\n")  # a text may hold other ends of lines
    data = [line.removeprefix("data:").strip() for line in lines if line.startswith(("data:", "{"))]
    whole: dict[str, Any] = {}
    texts: dict[str, Any] = {}
    finish = None
    for chunk in (_object(one) for one in data if one != "[DONE]"):
        if not isinstance(chunk, dict) or chunk.get("error"):
            return chunk
        whole |= {name: value for name, value in chunk.items() if value}
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            delta = (choice.get("delta") or choice.get("message") or {}) if isinstance(choice, dict) else None
            if not isinstance(delta, dict):
                return None
            if choice.get("index"):  # another reply
                continue
            finish = choice.get("finish_reason") or finish
            for name, value in delta.items():
                if isinstance(value, list) or (isinstance(value, str) and name != "role"):
                    texts[name] = _longer(texts[name], value) if name in texts else value
    # Without a finish reason the stream was cut; a proxy writes its last event all the same.
    return None if finish is None else {**whole, "choices": [{"message": texts, "finish_reason": finish}]}


def _object(text: str) -> Any:
    try:
        return _patient.decode(text)
    except (ValueError, RecursionError):
        return None


def _longer(before: Any, more: Any) -> Any:
    """A text, or a list of chunks, with what follows it."""
    if isinstance(before, type(more)):
        return before + more
    return [one for piece in (before, more) if piece for one in (piece if isinstance(piece, list) else [piece])]


def _completion(body: Any) -> Any:
    """A completion without what is around it, with its choices; any other value as it is."""
    inner = body[0] if isinstance(body, list) and len(body) == 1 else body
    if not isinstance(inner, dict) or inner.get("error"):
        return body
    held = [inner, *(inner[name] for name in _ENVELOPES if isinstance(inner.get(name), dict))]
    if found := next((one for one in held if isinstance(one.get("choices"), list)), None):
        return found
    # Ollama and Cohere have the message alone, Anthropic its fields.
    message = inner.get("message") if isinstance(inner.get("message"), dict) else inner
    ended = next((inner[name] for name in _REASONS if isinstance(inner.get(name), str)), None)
    if ended and isinstance(message, dict) and message.get("role") == "assistant" and "content" in message:
        return {**inner, "choices": [{"message": message, "finish_reason": ended}]}
    return body
