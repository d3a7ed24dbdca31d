"""One answer of a chat server: a reply, a refusal of this request, or a trouble that may pass. Never raises.

    Reply      a chat completion, in whatever dialect: its text as one text, as chunks or as a stream of events
    Refusal    the server will not serve this request: the status, its message, and the fields it points at
    Passing    a rate limit, an overload, a broken body, an error inside a 200

An error inside a 200 counts by its own code, a number or a word. Whatever the status, it is a rate limit if the code of
the error says so: codes quote no judged text, as messages may.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from flexjudge_reward.engines.bodies import value_of

_PASSING = {408, 409, 425, 429, 498, 499} | (set(range(500, 600)) - {501, 505})
LIMITS = (429, 498, 529)  # 498 is Groq's, 529 Anthropic's
"""The statuses of a rate limit."""
_NO_CREDIT = ("insufficient_quota", "billing", "credit balance", "payment", "insufficient balance", "余额不足")
_LIMITED = re.compile(
    r"throttl|(rate|request).?limit|too.?many.?requests|resource.?exhausted|slow.?down|overload", re.IGNORECASE
)
_REFUSED = re.compile(
    r"invalid|validation|filter|moderat|polic|safety|sensitive|blocked|length|too.?l(ong|arge)", re.IGNORECASE
)
_NEVER_FITS = re.compile(r"request too large|must be reduced", re.IGNORECASE)  # below a limit of tokens per minute
_STRAINED = re.compile(r"memory|context|capacity|time.?out|timed out|deadline|exceed|too (long|large)", re.IGNORECASE)
_INTERRUPTED = "error abort aborted cancelled timeout time_limit network_error insufficient_system_resource".split()
_TEXTS = (str, list, dict, type(None))  # the forms of a text, or none
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
    def unpaid(self) -> bool:
        """Whether it is about credit, not about what was asked."""
        return self.status == 402

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

    @property
    def overloaded(self) -> bool:
        """Whether it is a 503: nginx, Envoy and others send one for each request over their limit."""
        return self.refusal is not None and self.refusal.status == 503

    @property
    def broken(self) -> bool:
        """Whether the server failed at the request, and says nothing of its length, of time or of memory."""
        return self.refusal is not None and self.refusal.status == 500 and not _STRAINED.search(self.refusal.message)


Answer = Reply | Refusal | Passing


def read(status: int, headers: Mapping[str, str], raw: bytes, clean: Callable[[str], str]) -> Answer:
    """What an answer is; `clean` makes the server's message fit to be shown."""
    body = value_of(raw, headers)
    if 200 <= status < 300 and _is_reply(body):
        return Reply(body)
    message = clean(_message(body) or raw[:_SHOWN].decode("utf-8", "replace") or "an empty body")
    code, words, pause = _code(body), _words(body), _pause(headers, body)
    if 200 <= status < 300:
        code = code or (429 if _LIMITED.search(words) else 400 if _REFUSED.search(words) else None)
        if code is None:
            return Passing(f"the server sent no reply but {message}")
        status = code
    if 300 <= status < 400:
        message = clean(f"it redirects to {headers.get('Location', 'nowhere')}")
    refusal = Refusal(status, message, frozenset(_fields(body)))
    said = f"{words} {message}" if status >= 500 else words
    if "exceed_context_size" in words:  # llama.cpp's, also as a 500
        return refusal
    limited = status in LIMITS or (status != 413 and _LIMITED.search(said) is not None)
    if not limited and status not in _PASSING:
        return refusal
    # Gemini speaks of billing in each rate limit, too, and says when to come back.
    spent = pause is None and any(word in f"{words} {message}".lower() for word in _NO_CREDIT)
    if status == 429 and (spent or _NEVER_FITS.search(message)):
        return refusal
    return Passing(f"the server answered {status}: {message}", pause, limited, refusal=refusal)


def models(raw: bytes) -> list[dict[str, Any]]:
    """The entries of a list of models."""
    body = value_of(raw)
    listed = body.get("data") if isinstance(body, dict) else None
    return [entry for entry in listed or () if isinstance(entry, dict) and "id" in entry]


def _is_reply(body: Any) -> bool:
    """Whether a body is a chat completion: one choice with a message that has a text in some form.

    One without choices or message is a reply that says nothing, if the server has counted its tokens.
    """
    if not isinstance(body, dict) or body.get("error"):
        return False
    try:
        choice = (body["choices"] or [{}])[0]
        message = message_of(choice)
        texts = [message.get(name) for name in ("content", "reasoning", "reasoning_content", "refusal")]
        ended = finish_of(choice).lower()
    except (TypeError, KeyError, IndexError, AttributeError):
        return False
    silent = isinstance(body.get("usage"), dict) and not _failed(body) and not choice.get("delta")  # a cut stream's
    counted = bool(message or ended or is_blocked(body)) or silent
    whole = all(isinstance(text, _TEXTS) for text in texts)
    return counted and whole and not choice.get("error") and ended not in _INTERRUPTED


def message_of(choice: Mapping[str, Any]) -> Any:
    """The message of a choice; some name it as a part of a stream that has ended, or have its text alone."""
    if message := choice.get("message"):
        return message
    text = choice.get("text")
    return {"content": text} if isinstance(text, str) else (finish_of(choice) and choice.get("delta")) or {}


def finish_of(choice: Mapping[str, Any]) -> str:
    """Why a choice ended, in the server's words; SGLang's own form is an object with a type."""
    said = choice.get("finish_reason")
    if said is None and isinstance(other := choice.get("stop_reason"), str):  # vLLM has a stop text there, beside it
        said = other
    return str((said.get("type") if isinstance(said, dict) else said) or "")


def is_blocked(body: Mapping[str, Any]) -> bool:
    """Whether a completion without a message says that the prompt was filtered: Azure's results, Gemini's feedback."""
    found = body.get("prompt_filter_results"), body.get("promptFeedback"), body.get("prompt_feedback")
    return bool(re.search(r"'filtered': True|block_?reason", f"{found}", re.IGNORECASE))


def _failed(body: Mapping[str, Any]) -> bool:
    """Whether a body without choices reports an error in MiniMax's form."""
    status = body.get("base_resp")
    return isinstance(status, dict) and bool(status.get("status_code"))


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


def _upstream(error: Any) -> Any:
    """The error that OpenRouter and others pass on from the server behind them: JSON in a text, or a text."""
    metadata = error.get("metadata") if isinstance(error, dict) else None
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    return (_error(value_of(raw.encode("utf-8", "replace"))) or raw) if isinstance(raw, str) else raw


def _message(body: Any) -> str:
    error = _error(body)
    inner = _upstream(error)
    if isinstance(error, list):
        return "; ".join(str(one.get("msg") or one) if isinstance(one, dict) else str(one) for one in error)
    if isinstance(error, dict):
        error = error.get("message") or error.get("msg") or error.get("error") or error
    said = "" if error is None else str(error)
    return f"{said}: {_message({'error': inner})}" if inner else said


def _code(body: Any) -> int | None:
    error = _error(body)
    for name in ("code", "status", "status_code") if isinstance(error, dict) else ():
        with suppress(TypeError, ValueError):
            if 400 <= int(error.get(name, 0)) < 600:
                return int(error[name])
    return None


def _parts(body: Any) -> Iterator[Mapping[str, Any]]:
    """The objects that an error is made of."""
    error = _error(body)
    more = (error.get("errors"), error.get("details"), _upstream(error)) if isinstance(error, dict) else ()
    for one in (body, error, *more):
        yield from (part for part in (one if isinstance(one, list) else [one]) if isinstance(part, dict))


def _words(body: Any) -> str:
    """The codes of an error that are words."""
    names = ("code", "type", "status", "reason", "__type", "error_code", "error_type")
    return " ".join(part[name] for part in _parts(body) for name in names if isinstance(part.get(name), str))


def _fields(body: Any) -> Iterator[str]:
    """The fields of the request that an error points at: `param` of OpenAI's errors, `loc` of FastAPI's."""
    error = _error(body)
    for one in error if isinstance(error, list) else [error, _upstream(error)]:
        if isinstance(one, dict):
            if isinstance(one.get("param"), str):
                yield one["param"]
            if isinstance(one.get("loc"), list):
                yield from (str(part) for part in one["loc"])


def _pause(headers: Mapping[str, str], body: Any) -> float | None:
    """Seconds to wait: Retry-After (a number or a date), its relative in milliseconds, or Google's `retryDelay`."""
    with suppress(KeyError, ValueError):
        return float(headers["Retry-After-Ms"]) / 1000
    with suppress(KeyError, ValueError):
        return float(headers["Retry-After"])
    with suppress(KeyError, ValueError):
        return parsedate_to_datetime(headers["Retry-After"]).timestamp() - time()
    with suppress(StopIteration, ValueError):
        return float(next(str(part["retryDelay"]).removesuffix("s") for part in _parts(body) if "retryDelay" in part))
    return None
