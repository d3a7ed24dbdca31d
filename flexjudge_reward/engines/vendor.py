"""VendorEngine: a hosted judge of a vendor whose protocol is not OpenAI's (Anthropic, Gemini, Bedrock, ...).

    pip install 'flexjudge-reward[vendors]'
    engine = VendorEngine("anthropic:MODEL")        # its key in the vendor's own variable, such as ANTHROPIC_API_KEY

The client is `any-llm`, which calls the vendors' own packages. LiteLLM knows more vendors, but it is a hundred times
larger, and releases of it were once published by an attacker.

Promised: a rate limit loses no row while the vendor serves others. An error of one row teaches nothing, because it may
quote a candidate. A harmless request that gets the same error does, and decides whether the vendor serves anything.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from flexjudge_reward.engines.answers import LIMITS
from flexjudge_reward.engines.base import StatefulEngine
from flexjudge_reward.engines.chat_codec import ChatCodec, least_tokens, whole
from flexjudge_reward.engines.dialect import Dialect
from flexjudge_reward.engines.probes import harmless_like
from flexjudge_reward.engines.throttle import PATIENCE
from flexjudge_reward.errors import ConfigError, EngineError, MissingExtra
from flexjudge_reward.prompts.quoting import KNOWN_CONTROL_TOKENS
from flexjudge_reward.types import Generation, Request

_ONLY_VLLM = {"continue_final_message", "add_generation_prompt"}  # a vendor continues a last assistant turn, or refuses


class VendorEngine(StatefulEngine):
    """One model of one vendor. Nothing is sent before the first `generate`."""

    remote = True
    _served = 0  # replies so far

    def __init__(
        self,
        model: str,
        *,
        api_base: str | None = None,
        concurrency: int = 16,
        timeout: float = 300.0,
        max_attempts: int = 8,
    ) -> None:
        """`model` is vendor:model; `api_base` another address of its protocol; the rest as of `ServerEngine`.

        Raises ConfigError for a model without its vendor.
        """
        self.vendor, _, self.model = model.partition(":")
        if not self.model:
            raise ConfigError(f"a vendor's model is vendor:model, such as anthropic:NAME, found {model!r}")
        self.api_base, self.concurrency, self.timeout, self.max_attempts = api_base, concurrency, timeout, max_attempts
        super().__init__()

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        """As `Engine.complete`. Raises MissingExtra, and EngineError if the vendor refuses key, model or account."""
        try:
            import any_llm  # noqa: F401
        except ImportError:
            raise MissingExtra("any-llm-sdk", "vendors") from None
        codec = ChatCodec({"model": self.model}, KNOWN_CONTROL_TOKENS)
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(lambda request: self._reply(codec, request), requests))

    def identity(self) -> dict[str, object]:
        """Vendor, model and address."""
        return {"engine": "vendor", "vendor": self.vendor, "model": self.model, "api_base": self.api_base}

    def findings(self) -> dict[str, object]:
        """What the vendor turned out not to take."""
        return self._dialect.findings()

    @cached_property
    def _dialect(self) -> Dialect:
        return Dialect(self.vendor)

    def _reply(self, codec: ChatCodec, request: Request) -> Generation:
        attempt = limits = waits = 0
        served = self._served
        while True:
            if lacking := self._dialect.unsupported(request):
                return Generation.failed("unsupported", lacking)
            version = self._dialect.version  # other threads learn, too
            try:
                reply = codec.decode(self._send(codec, request))
                self._served += 1
                return whole(reply, least_tokens(request.prompt))
            except Exception as error:  # of the vendor's own package; a TypeError for a field that it does not take
                if self._taught(codec, request, version, error):
                    continue
                said, status = f"{type(error).__name__}: {error}"[:300], _status(error)
            if _is_final(status):
                return Generation.failed("refused", f"{self.vendor} answered {status}: {said}")
            if status in LIMITS:
                limits, served = limits + 1 if served == self._served else 1, self._served  # in a row, none served
            else:
                attempt += 1
            if attempt == self.max_attempts or limits == PATIENCE:
                return Generation.failed("transport", f"{self.vendor}: {said}, after {attempt + limits} attempts")
            waits += 1
            time.sleep(min(8.0, 0.5 * 2.0**waits) * random.uniform(0.5, 1.0))

    def _taught(self, codec: ChatCodec, request: Request, version: int, error: Exception) -> bool:
        """Whether more is known of the vendor than at `version`; tries what the error blames with a harmless request.

        Raises EngineError if the vendor does not serve that one either: key, model, account, a missing package.
        """
        with self._lock:
            harmless = harmless_like(request)
            roles = [message.role for message in harmless.prompt.messages]
            fields = self._wanted(codec, harmless)
            doubted = not self._served and (_is_final(_status(error)) or _is_ours(error))
            blamed = self._dialect.blamed(str(error), (), fields, roles)
            if version == self._dialect.version and (doubted or blamed):
                try:
                    self._send(codec, harmless)
                    self._served += 1
                except Exception as again:
                    final = doubted and (_is_final(_status(again)) or _is_ours(again))
                    if not self._dialect.learn(str(again), (), fields, roles) and final:
                        said = f"{type(again).__name__}: {again}"[:300]
                        raise EngineError(f"{self.vendor} cannot serve {self.model}: {said}") from again
            return version != self._dialect.version

    def _send(self, codec: ChatCodec, request: Request) -> dict[str, Any]:
        from any_llm import completion

        request = codec.shown(request, self._dialect)
        messages = json.loads(codec.body(request, {}, self._dialect.system_turn).data)["messages"]
        options = self._dialect.fields(self._wanted(codec, request))
        answer = completion(self.model, messages, provider=self.vendor, api_base=self.api_base, **options)
        return answer.model_dump()  # type: ignore[union-attr,no-any-return]

    def _wanted(self, codec: ChatCodec, request: Request) -> dict[str, Any]:
        wanted = codec.wanted(request, capped=True) | {"timeout": self.timeout}  # which some packages do not take
        return {name: value for name, value in wanted.items() if name not in _ONLY_VLLM}


def _status(error: Exception) -> int | None:
    """The HTTP status in an error of a vendor's package: Google calls it code, Bedrock has it in the response."""
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata") if isinstance(response, dict) else None
    of_bedrock = metadata.get("HTTPStatusCode") if isinstance(metadata, dict) else None
    known = (getattr(error, "status_code", None), getattr(error, "code", None), of_bedrock)
    return next((status for status in known if isinstance(status, int)), None)


def _is_final(status: int | None) -> bool:
    """Whether a status is that of a refusal."""
    return status is not None and 400 <= status < 500 and status not in (408, 409, *LIMITS)


def _is_ours(error: Exception) -> bool:
    """Whether an error came without a request: a package that is not installed, or a key that is not set."""
    from any_llm import AnyLLMError

    return _status(error) is None and isinstance(error, AnyLLMError | ImportError)
