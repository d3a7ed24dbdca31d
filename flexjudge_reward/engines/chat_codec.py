"""ChatCodec: requests as JSON bodies of the chat completions API, and its responses as replies."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

from flexjudge_reward.media.base import Media
from flexjudge_reward.prompts.quoting import flatten
from flexjudge_reward.types import FinishReason, Generation, Message, Request, TokenLogprob

_FINISH: dict[str | None, FinishReason] = {"stop": "stop", "length": "length", "content_filter": "filter"}


class ChatCodec:
    """The codec of one batch. The candidates of a group share an image, so each media item is encoded once.

    Every request has the `shared` fields; `control_tokens` are neutralised in untrusted text. `encode` may be called
    from several threads.
    """

    def __init__(self, shared: Mapping[str, Any], control_tokens: frozenset[str]) -> None:
        self._shared, self._control_tokens = dict(shared), control_tokens
        self._uris: dict[Media, str] = {}
        self._encoding: dict[Media, threading.Lock] = {}
        self._lock = threading.Lock()

    def encode(self, request: Request, capped: bool) -> bytes:
        """The JSON body of one request; if `capped`, it limits the reply's length.

        A server may reject (400) a limit that does not fit the model's context beside the prompt; without one, the
        reply is cut there.
        """
        sampling = request.sampling
        fields: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        if capped:
            fields["max_tokens"] = sampling.max_tokens
        if sampling.stop:
            fields["stop"] = list(sampling.stop)
        if sampling.logprobs is not None:
            fields |= {"logprobs": True, "top_logprobs": sampling.logprobs}
        if request.prompt.messages[-1].role == "assistant":  # the names of vLLM and SGLang
            fields |= {"continue_final_message": True, "add_generation_prompt": False}
        messages = [self._message(message) for message in request.prompt.messages]
        return json.dumps(fields | self._shared | {"messages": messages}).encode()

    def decode(self, response: Mapping[str, Any]) -> Generation:
        """A chat completion as a reply; a failure where a field is malformed. Never raises."""
        try:
            return _generation(response)
        except (TypeError, ValueError, OverflowError, KeyError, AttributeError) as error:
            return Generation.failed("engine", f"the server's reply has a malformed field: {error!r}")

    def _message(self, message: Message) -> dict[str, Any]:
        parts = flatten(message, self._control_tokens)
        plain = len(parts) == 1 and isinstance(parts[0], str)
        return {"role": message.role, "content": parts[0] if plain else [self._part(part) for part in parts]}

    def _part(self, part: str | Media) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        name = f"{part.kind}_url"
        return {"type": name, name: {"url": self._uri(part)}}

    def _uri(self, media: Media) -> str:
        with self._lock:
            encoding = self._encoding.setdefault(media, threading.Lock())
        with encoding:  # the same image is often sent by several requests at once
            if media not in self._uris:
                self._uris[media] = media.data_uri()
            return self._uris[media]


def _generation(response: Mapping[str, Any]) -> Generation:
    choice, usage = response["choices"][0], response.get("usage") or {}
    message = choice["message"]
    text, finish = message.get("content") or "", _FINISH.get(choice.get("finish_reason"))
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    if reasoning:
        # Reasoning that the token limit cut stays open: budget forcing looks for that.
        text = f"<think>{reasoning}" + ("" if finish == "length" and not text else f"</think>{text}")
    if message.get("refusal"):
        text, finish = message["refusal"], "filter"
    if finish is None:
        return Generation.failed("engine", f"the server ended the reply with {choice.get('finish_reason')!r}")
    return Generation(
        text,
        finish,
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        logprobs=_logprobs(choice.get("logprobs")),
    )


def _logprobs(logprobs: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...] | None:
    if not logprobs or not logprobs.get("content"):
        return None
    return tuple(
        TokenLogprob.merged(
            str(entry["token"]),
            float(entry["logprob"]),
            [(str(other["token"]), float(other["logprob"])) for other in entry.get("top_logprobs") or ()],
        )
        for entry in logprobs["content"]
    )
