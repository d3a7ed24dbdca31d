"""ServerEngine: a judge behind any OpenAI-compatible endpoint. For training: one server for all ranks.

    vllm serve jongwooko/Flex-VL-7B --port 8000
    engine = ServerEngine("http://localhost:8000/v1")

Requests run on one private event-loop thread per engine, at most `concurrency` at once, so `generate` works from
threads, inside a running loop, and after fork or pickling. One slow, failing or rejected request never loses its batch,
and a batch may take as long as it needs while replies come. The server never sees a URL of ours or of the data: media
travel as data URIs, sounds as `input_audio`, images to vLLM by name after the first time. Replicas behind one address
have to serve one model.

A video keeps its frame rate on a vLLM server (0.32) that was started with `--trust-request-mm-kwargs`. Elsewhere, and
with two rates in one prompt, its frames go as images, and the record says so; at one frame per second (two for a model
with "omni" in its name) vLLM needs no such option. A server of the Omni family also needs the model's own size
of clips, `--mm-processor-kwargs '{"videos_kwargs": {"size": {"shortest_edge": ..., "longest_edge": ...}}}'`.

Not known here: whether the weights behind the server's model name change; give `build=` a new value when they do.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from flexjudge_reward.engines.address import Address
from flexjudge_reward.engines.chat_codec import ChatCodec, Family, as_stills
from flexjudge_reward.engines.client import ClientEngine, Wire
from flexjudge_reward.engines.replies import THINKS
from flexjudge_reward.errors import ConfigError, EngineError
from flexjudge_reward.media.base import Media
from flexjudge_reward.media.image import FORMATS_SENT, ImageFormat
from flexjudge_reward.prompts.quoting import KNOWN_CONTROL_TOKENS
from flexjudge_reward.types import Generation, Prompt, Request

_VLLM_ONLY = {
    **{"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "skip_special_tokens": False},
    "chat_template_kwargs": THINKS,
}
_OWN_FIELDS = {"model", "messages", "stream", "n", "seed", "max_tokens"}  # set by prompt and sampling


class ServerEngine(ClientEngine):
    """An OpenAI-compatible chat endpoint. Cheap to build: nothing is sent before the first `generate`."""

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        *,
        concurrency: int = 64,
        stall_timeout: float = 330.0,
        timeout: float = 300.0,
        max_attempts: int = 8,
        tokenizer: str | None = None,
        build: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        max_pixels: int | None = None,
        image_format: ImageFormat = "auto",
    ) -> None:
        """
        Args:
            base_url: up to and with the version, such as http://localhost:8000/v1.
            model: the server's name for the judge; None takes the first it lists.
            api_key: sent as a bearer token; None takes the environment variable FLEXJUDGE_API_KEY, if set.
            concurrency: the most requests in flight, over all threads and all of this user's processes on this machine.
            stall_timeout: seconds without any reply after which the requests that are left fail as `timeout`.
            timeout: seconds for one attempt of one request.
            max_attempts: per request, the first included.
            tokenizer: folder or Hub id of the judge's tokenizer: its added tokens are then neutralised in untrusted
                text, instead of whatever looks like a control token of some family. Needs `transformers`.
            build: a label of yours that changes when the weights behind the model's name do; part of every cache key.
            extra_body: further fields of every request, as the server documents them. No secrets: it is part of every
                cache key.
            headers: of every request, beside or instead of the key's; a value "$NAME" is an environment variable's.
            max_pixels: larger images are made smaller before they are sent.
            image_format: "auto" sends images as PNG, without loss, and those that were JPEG as JPEG, which is smaller.

        Raises:
            ConfigError: no http(s) address, a number that is not positive, or an extra field that the engine sets.
        """
        self._base_url, self.base_url = base_url, Address(base_url).shown
        self.model, self._api_key, self.tokenizer, self.build = model, api_key, tokenizer, build
        self.concurrency, self.stall_timeout, self.timeout = concurrency, stall_timeout, timeout
        self.max_attempts, self.extra_body, self.headers = max_attempts, dict(extra_body or {}), dict(headers or {})
        self.max_pixels, self.image_format = max_pixels, image_format
        self._check()
        super().__init__()

    def _check(self) -> None:
        if taken := _OWN_FIELDS & set(self.extra_body):
            raise ConfigError(f"extra_body may not set {sorted(taken)[0]!r}: the engine sets it")
        if self.image_format not in FORMATS_SENT:
            raise ConfigError(f"image_format must be one of {', '.join(FORMATS_SENT)}, found {self.image_format!r}")
        for name in ("concurrency", "stall_timeout", "timeout", "max_attempts", "max_pixels"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, found {getattr(self, name)!r}")

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        """As `Engine.complete`. Raises EngineError: no server answers, or it serves nothing (key, model, account)."""
        served = self._served()
        # vLLM fills absent fields from the model's generation_config.json; Sampling must decide alone.
        only = _VLLM_ONLY if served.get("owned_by") == "vllm" else {}
        shared = {"model": served["id"], **only, **self.extra_body}
        codec = ChatCodec(
            shared,
            self._control_tokens,
            partial(Media.data_uri, max_pixels=self.max_pixels, image_format=self.image_format),
            self._name if only else None,
            _family(served),
        )
        return self._opened().post_all(requests, codec, self.stall_timeout)

    def _name(self, media: Media) -> str:
        """Of what the server is sent: the content, and what is made of it."""
        return f"{media.digest}-{self.max_pixels or 'all'}-{self.image_format}"

    def identity(self) -> dict[str, object]:
        """The model as the server lists it now, and `build`.

        The address is part of it only if the server does not say what it serves (`root`): the same judge at another
        port is the same judge. Raises EngineError if no server answers.
        """
        served = self._served()
        return {
            "engine": "server",
            "base_url": None if served.get("root") else self.base_url,
            "model": served["id"],
            "root": served.get("root"),
            "max_model_len": served.get("max_model_len"),
            "build": self.build,
            "control_tokens": hashlib.sha256("\n".join(sorted(self._control_tokens)).encode()).hexdigest(),
            "extra_body": self.extra_body,
            "max_pixels": self.max_pixels,
            "image_format": self.image_format,
        }

    def shows_stills(self, prompt: Prompt) -> bool:
        """As `Engine.shows_stills`: only the refusal of a first video tells that the server takes no frame rate."""
        return as_stills(prompt, _family(self._served()), self._opened().dialect)

    def __repr__(self) -> str:
        return f"ServerEngine({self.base_url!r}, model={self.model!r})"

    def _wire(self) -> Wire:
        from flexjudge_reward.engines.connections import Connections  # asyncio and ssl are not for every import

        key = (self._api_key or os.environ.get("FLEXJUDGE_API_KEY") or "").strip()
        return Connections(Address(self._base_url, key, self.headers), self.concurrency + 1, self.timeout)

    def _served(self) -> dict[str, Any]:
        """The server's own entry of the model. Asked again after a lost connection: it may serve other weights now."""
        command = f"vllm serve {self.model or 'jongwooko/Flex-VL-7B'} --port {Address(self._base_url).port}"
        listed = self._opened().models(command, needed=self.model is None)
        if self.model is None and not listed:
            raise EngineError(f"the server at {self.base_url} lists no models; give model=")
        name = self.model or str(listed[0]["id"])
        return next((entry for entry in listed if entry.get("id") == name), {"id": name})

    @cached_property
    def _control_tokens(self) -> frozenset[str]:
        if self.tokenizer is None:
            return KNOWN_CONTROL_TOKENS
        from flexjudge_reward.engines.model import Source, added_tokens, load_tokenizer

        return added_tokens(load_tokenizer(Source.find(self.tokenizer, None, False)))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_base_url": self._base_url, "_api_key": self._api_key}


def _family(served: Mapping[str, Any]) -> Family:
    if served.get("owned_by") != "vllm":
        return "other"
    return "omni" if "omni" in f"{served['id']} {served.get('root')}".lower() else "vllm"
