"""ServerEngine: a judge behind any OpenAI-compatible endpoint. For training: one server for all ranks.

    vllm serve jongwooko/Flex-VL-7B --port 8000
    engine = ServerEngine("http://localhost:8000/v1")

Requests run on one private event-loop thread per engine, at most `concurrency` at once, so `generate` works from
threads, inside a running loop, and after fork or pickling. One slow, failing or refused request never loses its batch,
and a batch may take as long as it needs while replies come.
The server never sees a URL of ours or of the data: media travel as data URIs. `_http.py` retries and gives up.

Not known here: whether the weights behind the server's model name change; give `build=` a new value when they do. A
vLLM server reads a clip as one frame per second and at most 32 of them, unless it was started with other
`--media-io-kwargs`: no request can tell it the clip's own rate.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flexjudge_reward.errors import ConfigError, EngineError, MediaError
from flexjudge_reward.media.base import Media
from flexjudge_reward.prompts.quoting import KNOWN_CONTROL_TOKENS, flatten
from flexjudge_reward.types import FinishReason, Generation, Message, Prompt, Sampling, TokenLogprob

if TYPE_CHECKING:
    from flexjudge_reward.engines.http import Client

KEY_VARIABLE = "FLEXJUDGE_API_KEY"
_FINISH: dict[str | None, FinishReason] = {"stop": "stop", "length": "length", "content_filter": "filter"}
_VLLM_ONLY = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
_OWN_FIELDS = {"model", "messages", "stream", "n", "seed", "max_tokens"}  # what prompt and sampling say


class ServerEngine:
    """An OpenAI-compatible chat endpoint. Cheap to build: nothing is sent before the first `generate`."""

    _client: Client | None
    _listed: dict[str, Any] | None
    _tokens: frozenset[str] | None

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        *,
        concurrency: int = 64,
        patience: float = 330.0,
        timeout: float = 300.0,
        tries: int = 8,
        tokenizer: str | None = None,
        build: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            base_url: up to and with the version, such as http://localhost:8000/v1.
            model: the server's name for the judge; None takes the first it lists.
            api_key: sent as a bearer token; None takes the environment variable FLEXJUDGE_API_KEY, if set.
            concurrency: the most requests in flight, over all threads.
            patience: seconds without any reply after which `generate` gives up; what is left is a `timeout` failure. By
                default a little more than one try.
            timeout: seconds for one try of one request.
            tries: per request, the first included.
            tokenizer: folder or Hub id of the judge's tokenizer: text from outside is then kept from all of its added
                tokens, beside those of the known model families. Needs `transformers`.
            build: a word of yours that changes when the weights behind the model's name do; part of every cache key.
            extra_body: further fields of every request, as the server documents them. No secrets: it is part of every
                cache key.

        Raises:
            ConfigError: no http(s) address, a number that is not positive, or an extra field that is ours to set.
        """
        numbers = {"concurrency": concurrency, "patience": patience, "timeout": timeout, "tries": tries}
        for name, value in numbers.items():
            if not value > 0:
                raise ConfigError(f"{name} must be positive, found {value!r}")
        if taken := _OWN_FIELDS & set(extra_body or {}):
            raise ConfigError(f"extra_body may not set {sorted(taken)[0]!r}: the engine sets it")
        self._url, self._login = _split_login(base_url)
        self.base_url = _shown(self._url)
        """The address without login or query, as it is shown in messages and cache keys."""
        self.model, self._api_key, self.tokenizer, self.build = model, api_key, tokenizer, build
        self.concurrency, self.patience, self.timeout, self.tries = concurrency, patience, timeout, tries
        self.extra_body = dict(extra_body or {})
        self._reset()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """One reply per prompt, in order; a request that fails after its retries is a failure of its own.

        Raises:
            EngineError: no server answers at the address, it refuses the key, or it does not have the model.
        """
        if not prompts:
            return []
        language = _Chat(self._shared_fields(sampling, self._served()), sampling, self._control_tokens())
        return self._opened().post_all(prompts, language, self.patience)

    def identity(self) -> dict[str, object]:
        """The address without secrets, the model as the server lists it, and `build`. Asks the server once.

        Raises:
            EngineError: no server answers at the address.
        """
        served = self._served()
        return {
            "engine": "server",
            "base_url": self.base_url,
            "model": served["id"],
            "root": served.get("root"),
            "max_model_len": served.get("max_model_len"),
            "build": self.build,
            "control_tokens": hashlib.sha256("\n".join(sorted(self._control_tokens())).encode()).hexdigest(),
            "extra_body": self.extra_body,
        }

    def close(self) -> None:
        """Ends the connections and the thread. A later `generate` opens them anew."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def __repr__(self) -> str:
        return f"ServerEngine({self.base_url!r}, model={self.model!r})"

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._client = self._listed = self._tokens = None

    def _opened(self) -> Client:
        from flexjudge_reward.engines.http import Client  # asyncio and ssl are not for every import of the package

        with self._lock:
            if self._client is None or self._client.pid != os.getpid():  # a forked child has no loop thread
                key = (self._api_key or os.environ.get(KEY_VARIABLE) or "").strip()
                self._client = Client(
                    self._url, self._login, key, self.concurrency, self.timeout, self.tries, self._start_command()
                )
                weakref.finalize(self, self._client.close)  # also at the interpreter's end
            return self._client

    def _start_command(self) -> str:
        port = urlsplit(self._url).port or 80
        return f"vllm serve {self.model or 'jongwooko/Flex-VL-7B'} --port {port}"

    def _served(self) -> dict[str, Any]:
        """The server's own entry of the model, asked once."""
        listed = self._opened().models()
        if self._listed is None:
            if self.model is None and not listed:
                raise EngineError(f"the server at {self.base_url} lists no models; give model=")
            name = self.model or str(listed[0]["id"])
            self._listed = next((dict(entry) for entry in listed if entry.get("id") == name), {"id": name})
        return self._listed

    def _shared_fields(self, sampling: Sampling, served: Mapping[str, Any]) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "model": served["id"],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if sampling.stop:
            fields["stop"] = list(sampling.stop)
        if sampling.logprobs is not None:
            fields |= {"logprobs": True, "top_logprobs": sampling.logprobs}
        if served.get("owned_by") == "vllm":
            # vLLM fills fields that are not sent from the model's generation_config.json; Sampling is to be all.
            fields |= _VLLM_ONLY
        return fields | self.extra_body

    def _control_tokens(self) -> frozenset[str]:
        if self.tokenizer is None:
            return KNOWN_CONTROL_TOKENS
        with self._lock:
            if self._tokens is None:
                from flexjudge_reward.engines.model import Source, added_tokens, load_tokenizer

                tokenizer = load_tokenizer(Source.find(self.tokenizer, None, False))
                self._tokens = KNOWN_CONTROL_TOKENS | added_tokens(tokenizer)
            return self._tokens

    def __getstate__(self) -> dict[str, Any]:
        kept = {"_url", "_login", "_api_key"}
        return {name: value for name, value in self.__dict__.items() if name in kept or not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


def _split_login(base_url: str) -> tuple[str, tuple[str, str] | None]:
    """The address without user and password, and these; every path ends in the version."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("base_url must be an address such as http://localhost:8000/v1, and it is not http(s)")
    login = (parts.username or "", parts.password or "") if "@" in parts.netloc else None
    path = parts.path.rstrip("/") or "/v1"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], path=path, fragment="").geturl(), login


def _shown(url: str) -> str:
    return urlsplit(url)._replace(query="").geturl()


class _Chat:
    """The language of one call's requests: JSON bodies and chat completions.

    Candidates of a group share a picture and all prompts the instructions, so each of these is written once.
    """

    def __init__(self, shared: Mapping[str, Any], sampling: Sampling, tokens: frozenset[str]) -> None:
        self._begin = json.dumps(shared)[:-1]  # the closing brace follows after the fields of one request
        self._sampling, self._tokens = sampling, tokens
        self._uris: dict[Media, str] = {}
        self._systems: dict[Message, str] = {}

    def write(self, prompt: Prompt, capped: bool) -> bytes | Generation:
        """One request; a failure if its media cannot be used."""
        try:
            messages = ", ".join([self._message(message) for message in prompt.messages])
        except MediaError as error:
            return Generation.failed("media", str(error))
        cap = f', "max_tokens": {self._sampling.max_tokens}' if capped else ""
        if prompt.messages[-1].role == "assistant":  # the judge's own beginning, as vLLM and SGLang name it
            cap += ', "continue_final_message": true, "add_generation_prompt": false'
        seed = self._sampling.seed + prompt.sample
        return f'{self._begin}{cap}, "seed": {seed}, "messages": [{messages}]}}'.encode()

    def _message(self, message: Message) -> str:
        if message.role != "system":
            return self._written(message)
        if message not in self._systems:
            self._systems[message] = self._written(message)
        return self._systems[message]

    def _written(self, message: Message) -> str:
        parts = flatten(message, self._tokens)
        plain = len(parts) == 1 and isinstance(parts[0], str)
        content = json.dumps(parts[0] if plain else [self._part(part) for part in parts])
        return f'{{"role": "{message.role}", "content": {content}}}'

    def _part(self, part: str | Media) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        if part not in self._uris:
            self._uris[part] = part.data_uri()
        name = f"{part.kind}_url"
        return {"type": name, name: {"url": self._uris[part]}}

    def read(self, answer: Mapping[str, Any]) -> Generation:
        """What the server answered, as a reply; a failure where a field is not what it should be."""
        try:
            return _generation(answer)
        except (TypeError, ValueError, OverflowError, KeyError, AttributeError) as error:
            return Generation.failed("engine", f"the server's reply has a malformed field: {error!r}")


def _generation(answer: Mapping[str, Any]) -> Generation:
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    message = choice["message"]
    text, finish = message.get("content") or "", _FINISH.get(choice.get("finish_reason"))
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    if reasoning:
        # A thought that the token limit cut stays open: budget forcing looks for that.
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
        TokenLogprob.among(
            str(entry["token"]),
            float(entry["logprob"]),
            [(str(other["token"]), float(other["logprob"])) for other in entry.get("top_logprobs") or ()],
        )
        for entry in logprobs["content"]
    )
