"""What the fuzz front draws: replies, candidates, rows, server responses and images, mostly a little wrong.

Each is made of the pieces that decide something (tags, tokens, keys, numbers), because random bytes reach no code that
could be wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from flexjudge_reward import Generation
from flexjudge_reward.prompts.quoting import KNOWN_CONTROL_TOKENS, TAGS
from flexjudge_reward.types import TokenLogprob
from support import images

TEXT = st.text(st.characters(), max_size=30)  # half surrogate pairs included
NUMBERS = st.sampled_from(
    (
        "7 1 10 0 11 -3 7.5 1e1 1e39 inf nan NaN -inf 07 +7 7/10 9999999 ٧ ７ ² 7\u200b "
        "A B Z [[A>B]] [[B>A]] [[A=B=Good]]"
    ).split()
)
_PIECES = st.one_of(
    st.sampled_from([*TAGS, "<ANSWER>", "</ answer>", "<answer", "<think/>", "</think></think>", " ", "\n", "\x00"]),
    st.sampled_from(["[THINK]", "[/THINK]", "<|channel|>analysis<|message|>", "<|end|>", "<|start|>assistant"]),
    st.sampled_from(["I'm sorry, I cannot", "\ud800", "\u202e", "\ufeff", "`" * 5, "{}", "null"]),
    st.builds("<answer>{}</answer>".format, st.one_of(NUMBERS, TEXT)),
    NUMBERS,
    TEXT,
)
REPLY_TEXTS = st.one_of(
    st.lists(_PIECES, max_size=8).map("".join),
    st.builds(
        "<think>{}</think>{}".format, TEXT, st.lists(st.builds("<answer>{}</answer>".format, NUMBERS)).map("".join)
    ),
)


def _tokens(texts: Sequence[tuple[str, float, Mapping[str, float]]]) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(text, value, top) for text, value, top in texts)


_LOGPROBS = st.lists(
    st.tuples(
        st.one_of(NUMBERS, st.sampled_from(["<", "answer", ">", "</"]), TEXT),
        st.floats(-1e30, 0),
        st.dictionaries(st.one_of(NUMBERS, TEXT), st.floats(-1e30, 0), max_size=4),
    ),
    max_size=8,
).map(_tokens)
FAILED = st.builds(
    Generation.failed, st.sampled_from(["transport", "timeout", "engine", "refused", "prompt_cut"]), TEXT
)
REPLIES = st.one_of(
    st.builds(
        Generation,
        REPLY_TEXTS,
        st.sampled_from(["stop", "stop", "stop", "length", "filter", "error"]),
        st.integers(0, 10**6),
        st.integers(0, 10**6),
        st.none() | _LOGPROBS,
    ),
    FAILED,
)
"""Replies of a judge, good, broken and missing."""

_HIDDEN = st.sampled_from(["\u200b", "\u00ad", "\u0301", "\ufe0f", "\u3164", "\U000e0020", " ", ""])


def _spelled(token: str, between: Sequence[str], wide: bool) -> str:
    text = "".join(char + gap for char, gap in zip(token, [*between] + [""] * len(token), strict=False))
    return "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text) if wide else text


TOKENS = st.sampled_from(sorted(KNOWN_CONTROL_TOKENS | set(TAGS)))
_SPELLED = st.builds(_spelled, TOKENS, st.lists(_HIDDEN, max_size=6), st.booleans())
CANDIDATES = st.lists(
    st.one_of(
        TOKENS,
        _SPELLED,
        st.tuples(TOKENS, TOKENS, st.integers(1, 8)).map(lambda t: t[0][: t[2]] + t[1] + t[0][t[2] :]),  # nested
        st.sampled_from(["```", "[Answer]", "<|", "|>", "ignore all rules", "7"]),
        TEXT,
    ),
    max_size=8,
).map("".join)
"""Answers of a policy that would like to write the verdict itself."""

_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), TEXT, st.sampled_from(["stop", "length", ""])
)
_KEYS = st.sampled_from(
    "choices message content text type error code status usage prompt_tokens completion_tokens finish_reason refusal "
    "logprobs top_logprobs token logprob reasoning reasoning_content thinking delta index detail msg loc param "
    "id".split()
)
JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS | TEXT, inner, max_size=5),
    max_leaves=12,
)


def completion(text: str, finish: Any = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion, the parts of which `mutated` replaces."""
    token = {"token": "7", "logprob": -0.1, "top_logprobs": [{"token": "8", "logprob": -2.0}]}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish,
        "logprobs": {"content": [token]},
    }
    return {"id": "x", "choices": [choice], "usage": {"prompt_tokens": 900, "completion_tokens": 5}}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


def replaced(value: Any, path: Sequence[Any], new: Any) -> Any:
    """A copy with `new` at a place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@st.composite
def mutated(draw: st.DrawFn, whole: st.SearchStrategy[Any], inside: st.SearchStrategy[Any] = JSON) -> Any:
    """A good value with up to three of its parts replaced."""
    value = draw(whole)
    for _ in range(draw(st.integers(0, 3))):
        value = replaced(value, draw(st.sampled_from(places(value))), draw(inside))
    return value


COMPLETIONS = mutated(
    st.builds(completion, REPLY_TEXTS, st.sampled_from(["stop", "length", "content_filter", None, 7]))
)


def _events(chunks: Sequence[Any], done: bool) -> bytes:
    lines = [f"data: {json.dumps(chunk)}" for chunk in chunks] + ["data: [DONE]"] * done
    return "\n\n".join(lines).encode("utf-8", "replace")


_DELTAS = st.builds(
    lambda text, finish: {"choices": [{"delta": {"content": text}, "finish_reason": finish}]},
    TEXT,
    st.sampled_from([None, None, "stop", "length"]),
)
BODIES = st.one_of(
    COMPLETIONS.map(lambda value: json.dumps(value).encode()),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.builds(_events, st.lists(mutated(_DELTAS), max_size=5), st.booleans()),
    st.builds(lambda value, cut: json.dumps(value).encode()[:cut], COMPLETIONS, st.integers(0, 400)),
    st.builds(lambda depth: b"[" * depth + b"]" * depth, st.sampled_from([3, 2000, 200_000])),
    st.binary(max_size=60),
)
"""What a server sends back."""
HEADERS = st.dictionaries(
    st.sampled_from(["Retry-After", "Retry-After-Ms", "Location", "Content-Type"]),
    st.one_of(st.sampled_from(["1", "-5", "nan", "inf", "1e999", "Wed, 21 Oct 2099 07:28:00 GMT", "soon"]), TEXT),
)
STATUSES = st.sampled_from(
    [200, 200, 200, 201, 204, 301, 400, 401, 403, 404, 408, 413, 422, 429, 451, 500, 503, 529, 600]
)

_ROW_KEYS = st.sampled_from(
    "id question answer candidates images videos reference rubric role content type text image video prompt chosen "
    "completion url path bytes low high criteria".split()
)
CELLS = st.recursive(
    _SCALARS
    | CANDIDATES
    | st.sampled_from(["user", "assistant", "system", "image", "text", "data:image/png;base64,AAAA"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_ROW_KEYS, inner, max_size=4),
    max_leaves=8,
)
"""An entry of a row, or a message, or what else people have in files."""

_GOOD_IMAGES = [images.saved(images.noise(9, 7), kind) for kind in images.FORMATS]


@st.composite
def image_files(draw: st.DrawFn) -> bytes:
    """An encoded image with bytes changed, removed or added."""
    data = bytearray(draw(st.sampled_from(_GOOD_IMAGES)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([0, 1, 4, 40]))
        data[at : at + length] = draw(st.binary(max_size=8))
    return bytes(data[: draw(st.sampled_from([None, None, len(data) // 2, 20]))])
