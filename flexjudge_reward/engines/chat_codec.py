"""ChatCodec: requests as JSON bodies of the chat completions API, and completions of any vendor as replies.

A completion is read whatever form its text has: one text, chunks of text and thought, reasoning in a field of its own.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from flexjudge_reward.engines import answers
from flexjudge_reward.engines.dialect import RATES, THINKING, Dialect
from flexjudge_reward.engines.replies import plain
from flexjudge_reward.engines.stills import with_stills
from flexjudge_reward.media.audio import uri as audio_uri
from flexjudge_reward.media.base import Media
from flexjudge_reward.prompts.quoting import flatten
from flexjudge_reward.types import FinishReason, Generation, Message, Prompt, Request, TokenLogprob

_FINISH: dict[str, FinishReason] = {
    # A missing reason: the reply is whole only if its answer can be read.
    **dict.fromkeys(("", *"stop eos eos_token eosfound end_turn end_of_turn stop_sequence stop_token".split()), "stop"),
    **dict.fromkeys("complete completed done end finish finished normal null none success".split(), "stop"),
    **dict.fromkeys("length max_tokens max_output_tokens max_completion_tokens max_new_tokens".split(), "length"),
    **dict.fromkeys("max_length token_limit model_length context_length error_limit incomplete".split(), "length"),
    **dict.fromkeys(("model_context_window_exceeded", "maxpredictedtokensreached", "contextlengthreached"), "length"),
    **dict.fromkeys(
        "content_filter content-filter safety refusal blocklist recitation language spii".split(), "filter"
    ),
    **dict.fromkeys("prohibited_content image_safety guardrail_intervened sensitive error_toxic".split(), "filter"),
    **dict.fromkeys(("content_filtered", "image_prohibited_content", "image_recitation", "moderation"), "filter"),
}
# Fields that hold a reply's reasoning: the first is shown that is not empty.
_THOUGHTS = "reasoning reasoning_content thinking reasoning_text thinking_blocks reasoning_details".split()
_CHUNK_OF_THOUGHT = re.compile(r"(redacted_)?(thinking|reasoning)\b")
_INNER = ("thinking", "reasoning", "reasoningContent", "reasoningText", "text", "content", "summary", "value")
_MOST_TOKENS = 1e12  # that a server can have counted
_CACHED = ("cache_read_input_tokens", "cache_creation_input_tokens")
_TOKENS_PER_WORD = 0.8  # at least: tokenizers split words, few join two of them
Family = Literal["other", "vllm", "omni"]
_FPS = {"vllm": 1.0, "omni": 2.0}  # of a video without a rate
_CUT_FROM = 1000  # tokens; no server has a context so short that it would cut a shorter prompt
MOST_URI_CHARACTERS = 32 << 20  # of the data URIs that wait for another request with the same media
_MOST_SYSTEMS = 64
_CLOSING = 8  # tokens that "</think>" has at most
_quoted: Callable[[Any], str] = json.encoder.encode_basestring_ascii  # what `dumps` makes of a text, at a fifth of it
PLACEHOLDER = 16  # tokens; what some gateways report where they do not count


@dataclass
class Body:
    """A request as it is sent, and what `Dialect.learn` looks at."""

    pieces: tuple[bytes, ...]
    """Its data; the data URIs among them are the same objects in all bodies. Empty after a large one was sent."""
    fields: frozenset[str]
    roles: tuple[str, ...]
    version: int
    """Of the dialect."""
    held: int = 0
    """Bytes of `Room` that it holds."""
    named: bool = False
    """Whether media are in it by name only."""
    kinds: frozenset[str] = frozenset()
    """Of the media in it."""

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(map(len, self.pieces))

    @property
    def data(self) -> bytes:
        """The whole of it."""
        return b"".join(self.pieces)


class ChatCodec:
    """The codec of one batch. The candidates of a group share an image, so a media item is encoded once for them.

    Every request has the `shared` fields; `control_tokens` are neutralised in untrusted text; `uri` gives a media item
    as a data URI, `name` the name under which the server keeps an image; `family` is that of the server: vLLM's may
    close reasonings, and its Omni models have a frame rate of their own. `encode` may be called from several threads.
    """

    def __init__(
        self,
        shared: Mapping[str, Any],
        control_tokens: frozenset[str],
        uri: Callable[[Media], str] = Media.data_uri,
        name: Callable[[Media], str] | None = None,
        family: Family = "other",
    ) -> None:
        self._shared, self._control_tokens, self._uri_of, self._name_of = dict(shared), control_tokens, uri, name
        self._family = family
        self._heads: dict[tuple[object, ...], tuple[str, frozenset[str]]] = {}
        self._systems: dict[Message, str] = {}  # those of a batch are few, and as JSON the same each time
        self._place = secrets.token_hex(16)  # of a data URI in a body, before it is put in; no text can have it in it
        self._uris: dict[Media, bytes] = {}
        self._kept = 0  # characters of them
        self._encoding: dict[Media, threading.Lock] = {}
        self._lock = threading.Lock()

    def nameable(self, request: Request) -> Sequence[Media]:
        """The media of a request that may be sent by name. Of a video, the server keeps frames of one rate."""
        return [media for media in request.prompt.shown if media.kind == "image"] if self._name_of else ()

    def unmade(self, request: Request, dialect: Dialect, named: frozenset[Media]) -> list[Media]:
        """The media of a request whose data URIs `encode` would have to make, which takes long. Raises MediaError."""
        shown = self.shown(request, dialect).prompt.shown
        return [media for media in shown if media not in named and media not in self._uris]

    def encode(
        self, request: Request, dialect: Dialect, capped: bool = True, named: frozenset[Media] = frozenset()
    ) -> Body:
        """One request as the server takes it; if `capped`, it limits the reply's length.

        A server may reject a limit that does not fit the model's context beside the prompt; without one, the reply is
        cut there. Of media that are `named`, the server gets the name only.
        """
        request = self.shown(request, dialect)
        continued = request.prompt.messages[-1].role == "assistant"
        rates = _other_rates(request.prompt, self._family)
        same = (request.sampling, request.answer_tokens, capped, continued, dialect.version, *rates)
        if same not in self._heads:  # most requests of a batch differ in their messages only
            known = request if THINKING not in dialect.lacking else replace(request, answer_tokens=0)
            fields = dialect.fields(self.wanted(known, capped))
            self._heads[same] = self._head(fields), frozenset(fields)
        head, names = self._heads[same]
        return self._body(request.prompt, head, names, dialect.system_turn, dialect.version, named)

    def body(self, request: Request, fields: Mapping[str, Any], system_turn: bool = True) -> Body:
        """The body with exactly these fields beside the model and the messages."""
        return self._body(request.prompt, self._head(fields), frozenset(fields), system_turn, 0)

    def _head(self, fields: Mapping[str, Any]) -> str:
        return json.dumps({**fields, "model": self._shared["model"]})[:-1] + ', "messages": '

    def _body(
        self,
        prompt: Prompt,
        head: str,
        names: frozenset[str],
        system_turn: bool,
        version: int,
        named: frozenset[Media] = frozenset(),
    ) -> Body:
        prompt = prompt if system_turn else prompt.without_system_turn()
        shown: list[Media] = []
        messages = ", ".join([self._message(message, shown) for message in prompt.messages])
        roles = tuple([message.role for message in prompt.messages])
        whole = f"{head}[{messages}]}}".encode()
        if not shown:
            return Body((whole,), names, roles, version)
        # A data URI of a megabyte is put in as it is: as a text of the JSON it would be copied and escaped each time.
        first, *rest = whole.split(self._place.encode())
        uris = [b"" if media in named else self.made(media) for media in shown]
        pieces = [first, *(piece for both in zip(uris, rest, strict=True) for piece in both)]
        by_name, kinds = any(one in named for one in shown), frozenset([one.kind for one in shown])
        return Body(tuple(pieces), names, roles, version, named=by_name, kinds=kinds)

    def wanted(self, request: Request, capped: bool) -> dict[str, Any]:
        """The fields that a request should have, by their usual names."""
        sampling = request.sampling
        fields: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        closed = self._family != "other" and request.answer_tokens > 0
        if closed:
            fields[THINKING] = max(1, sampling.max_tokens - 1)  # the server does not count the opening tag
        if capped:
            fields["max_tokens"] = sampling.max_tokens + (request.answer_tokens + _CLOSING if closed else 0)
        if sampling.stop:
            fields["stop"] = list(sampling.stop)
        if sampling.logprobs is not None:
            fields |= {"logprobs": True, "top_logprobs": sampling.logprobs}
        if request.prompt.messages[-1].role == "assistant":  # the names of vLLM and SGLang
            fields |= {"continue_final_message": True, "add_generation_prompt": False}
        for rate in _other_rates(request.prompt, self._family):
            own = ("mm_processor_kwargs", {"fps": rate}), ("media_io_kwargs", {"video": {"fps": rate}})
            fields |= own[:1] if self._family == "omni" else own[1:]
        return fields | {name: value for name, value in self._shared.items() if name != "model"}

    def shown(self, request: Request, dialect: Dialect) -> Request:
        """The request with its videos as images where the server can be given none, or not their own frame rates."""
        if not request.prompt.media or not as_stills(request.prompt, self._family, dialect):
            return request
        dialect.stills = True
        return replace(request, prompt=with_stills(request.prompt))

    def decode(self, response: Mapping[str, Any]) -> Generation:
        """A chat completion as a reply; a failure where a field is malformed. Never raises."""
        try:
            return _generation(response)
        except (TypeError, ValueError, OverflowError, KeyError, AttributeError) as error:
            return Generation.failed("engine", f"the server's reply has a malformed field: {error!r}")

    def _message(self, message: Message, shown: list[Media]) -> str:
        """A message as JSON, with a place for each media item, which are added to `shown`."""
        system = message.role == "system"
        if system and (known := self._systems.get(message)):
            return known
        parts = flatten(message, self._control_tokens)
        plain = len(parts) == 1 and isinstance(parts[0], str)
        content = _quoted(parts[0]) if plain else json.dumps([self._part(part, shown) for part in parts])
        text = f'{{"role": "{message.role}", "content": {content}}}'
        if system and plain and len(self._systems) < _MOST_SYSTEMS:
            self._systems[message] = text
        return text

    def _part(self, part: str | Media, shown: list[Media]) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        shown.append(part)
        if part.kind == "audio":
            return {"type": "input_audio", "input_audio": {"data": self._place, "format": "wav"}}
        name = f"{part.kind}_url"
        own = {"uuid": self._name_of(part)} if self._name_of and part.kind == "image" else {}
        return {"type": name, name: {"url": self._place}, **own}

    def made(self, media: Media) -> bytes:
        """The data URI of a media item as it is in a body. Raises MediaError."""
        with self._lock:
            encoding = self._encoding.setdefault(media, threading.Lock())
        with encoding:  # the same image is often sent by several requests at once
            uri = self._uris.get(media)
            if uri is None:
                # vLLM (0.32) without soundfile takes samples of 16 bits for floats of up to 32,768.
                exact = media.kind == "audio" and self._family != "other"
                whole = audio_uri(media.samples()) if exact else self._uri_of(media)
                # The part of a sound has no place for the type in front.
                uri = (whole.partition(",")[2] if media.kind == "audio" else whole).encode()
                self._keep(media, uri)
            return uri

    def _keep(self, media: Media, uri: bytes) -> None:
        """Keeps a data URI, and of the others the last ones: requests with the same media follow each other."""
        with self._lock:
            self._uris[media] = uri
            self._kept += len(uri)
            while self._kept > MOST_URI_CHARACTERS and len(self._uris) > 1:
                self._kept -= len(self._uris.pop(next(iter(self._uris))))


def as_stills(prompt: Prompt, family: Family, dialect: Dialect) -> bool:
    """Whether videos of a prompt go as images: the server can be given none, or not their own frame rates."""
    rates = {media.fps for media in prompt.shown if media.kind == "video"}
    keeps = family != "other" and not (_other_rates(prompt, family) and dialect.lacking & RATES)
    return bool(rates) and not (keeps and len(rates) == 1)


def _other_rates(prompt: Prompt, family: Family) -> list[float]:
    """The frame rates of its videos other than the one that the server takes them to have, each once."""
    if not prompt.media:
        return []
    return sorted({media.fps for media in prompt.shown if media.kind == "video"} - {_FPS.get(family, 0.0)})


def is_plausible(reply: Generation, prompt: Prompt) -> bool:
    """Whether the number of tokens needs no closer look: it is unknown, or at least one for five characters."""
    characters = 0
    for message in prompt.messages:
        for part in message.parts:
            if not isinstance(part, Media):
                characters += len(part if isinstance(part, str) else part.text)
    return reply.prompt_tokens <= PLACEHOLDER or 5 * reply.prompt_tokens >= characters


def whole(reply: Generation, least: int) -> Generation:
    """The reply, or its failure if the server read fewer tokens than the prompt has at `least`."""
    if least < _CUT_FROM or not PLACEHOLDER < reply.prompt_tokens < least:
        return reply
    detail = f"the server read {reply.prompt_tokens} tokens of a prompt with at least {least}: give its model a longer"
    return Generation.failed("prompt_cut", f"{detail} context (Ollama: num_ctx)")


def least_tokens(prompt: Prompt) -> int:
    """A lower bound of the prompt's tokens, for any tokenizer that splits at white space."""
    parts = [part for message in prompt.messages for part in message.parts if not isinstance(part, Media)]
    texts = [part if isinstance(part, str) else part.text for part in parts]
    return int(_TOKENS_PER_WORD * sum(len(text.split()) for text in texts))


def _generation(response: Mapping[str, Any]) -> Generation:
    choice, usage = (response.get("choices") or [{}])[0], response.get("usage")
    message, usage = answers.message_of(choice), usage if isinstance(usage, dict) else {}
    said = answers.finish_of(choice)
    # Some have a detail, as in "content_filter: SPII", or a class, as in "FinishReason.STOP".
    finish = _FINISH.get(said) or _FINISH.get(said.lower().partition(":")[0].rpartition(".")[2])
    thought, text = _texts(message.get("content"))
    own = [one for one in map(message.get, _THOUGHTS) if one and isinstance(one, (str, list, dict))]
    if own:
        thought = next(filter(None, map("".join, map(_texts, own))), "") or thought
    if thought:
        # Reasoning that the token limit cut stays open: budget forcing looks for that.
        text = f"<think>{thought}" + ("" if finish == "length" and not text else f"</think>{text}")
    text = plain(text)
    if text and "think>" not in text and _thinks_unseen(message, usage):
        text = f"<think></think>{text}"
    if refusal := message.get("refusal") or _refusal(message.get("content")):
        text, finish = str(refusal), "filter"
    if not message and answers.is_blocked(response):
        finish = "filter"
    if finish is None:
        return Generation.failed("engine", f"the server ended the reply with {said!r}")
    return Generation(
        text,
        finish,
        prompt_tokens=_prompt_tokens(usage),
        completion_tokens=_count(usage.get("completion_tokens")) or _count(usage.get("output_tokens")),
        logprobs=_logprobs(choice.get("logprobs")),
    )


def _prompt_tokens(usage: Mapping[str, Any]) -> int:
    """The tokens that the server read; some leave those out of `prompt_tokens` that a cache held."""
    details = usage.get("prompt_tokens_details")
    counted = _count(usage.get("prompt_tokens"))
    apart = sum([_count(usage[name]) for name in _CACHED if name in usage])
    cached = max(apart, _count(details.get("cached_tokens")) if isinstance(details, dict) else 0)
    return counted + (cached if cached > counted else 0) if counted else _count(usage.get("input_tokens")) + apart


def _count(value: object) -> int:
    """A number of tokens; 0 for whatever else a server tells, since no reply is worse for it."""
    return int(value) if isinstance(value, (int, float)) and 0 < value < _MOST_TOKENS else 0


def _thinks_unseen(message: Mapping[str, Any], usage: Mapping[str, Any]) -> bool:
    """Whether the model has reasoned, and its vendor shows nothing of it, or only in encrypted form."""
    details, content = usage.get("completion_tokens_details"), message.get("content")
    chunks = content if isinstance(content, list) else []
    counted = isinstance(details, Mapping) and _count(details.get("reasoning_tokens")) > 0
    hidden = any(isinstance(chunk, Mapping) and _is_thought(chunk) for chunk in chunks)
    return counted or hidden or any(map(message.get, _THOUGHTS))


def _texts(content: Any) -> tuple[str, str]:
    """The thought and the text of a content: one text, one chunk, or a list of chunks."""
    if isinstance(content, str):
        return "", content
    if not isinstance(content, list):
        content = [] if content is None else [content]
    thought, text = "", ""
    for chunk in filter(None, content):
        inner = chunk if isinstance(chunk, str) else next(filter(None, map(chunk.get, _INNER)), None)
        if isinstance(chunk, str):
            text += chunk
        elif _is_thought(chunk):
            thought += "".join(_texts(inner))
        else:
            text += "".join(_texts(inner))
    return thought, text


def _refusal(content: Any) -> Any:
    """The refusal among the chunks of a content."""
    chunks = content if isinstance(content, list) else []
    return next((chunk["refusal"] for chunk in chunks if isinstance(chunk, Mapping) and chunk.get("refusal")), None)


def _is_thought(chunk: Mapping[str, Any]) -> bool:
    """Whether a chunk is a thought, by its type or by the name of what it holds."""
    by_name = any(isinstance(chunk.get(name), str | list | dict) for name in _INNER[:4])
    return by_name or _CHUNK_OF_THOUGHT.match(str(chunk.get("type"))) is not None


def _logprobs(logprobs: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...] | None:
    if not logprobs or not logprobs.get("content"):
        return None
    return tuple(
        TokenLogprob.merged(
            str(entry["token"]),
            _logprob(entry),
            [(str(other["token"]), _logprob(other)) for other in entry.get("top_logprobs") or ()],
        )
        for entry in logprobs["content"]
    )


def _logprob(entry: Mapping[str, Any]) -> float:
    value = float("-inf") if entry["logprob"] is None else float(entry["logprob"])  # SGLang's, which JSON cannot say
    if not value <= 1e-3:  # also NaN; rounding may put a certain token above 0
        raise ValueError(f"a log probability of {value}")
    return min(value, 0.0)
