"""VendorEngine: a hosted judge of a vendor whose protocol is not OpenAI's (Anthropic, Gemini, Bedrock, ...).

    pip install 'flexjudge-reward[vendors]'
    engine = VendorEngine("anthropic:MODEL")        # its key in the vendor's own variable, such as ANTHROPIC_API_KEY

`any-llm` calls the vendors' own packages; all else is as of `ServerEngine` (`http.py`). LiteLLM knows more vendors, but
it is a hundred times larger, and releases of it were once published by an attacker.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from flexjudge_reward.engines import answers
from flexjudge_reward.engines.address import printable
from flexjudge_reward.engines.answers import Answer
from flexjudge_reward.engines.chat_codec import Body, ChatCodec
from flexjudge_reward.engines.client import ClientEngine, Wire
from flexjudge_reward.errors import ConfigError, EngineError, MissingExtra
from flexjudge_reward.prompts.quoting import KNOWN_CONTROL_TOKENS
from flexjudge_reward.types import Generation, Request

_NOT_OURS = {"continue_final_message", "add_generation_prompt", "stream", "stream_options"}  # a package decides these
_BY_CLASS = {"RateLimitError": 429, "AuthenticationError": 401, "ProviderError": 502, "TimeoutError": 504}
"""The statuses of errors that have none, by their class: a lost connection is a ProviderError. All others are 400."""


class VendorEngine(ClientEngine):
    """One model of one vendor. Nothing is sent before the first `generate`."""

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
        # Anthropic's package takes a long reply only with a timeout.
        codec = ChatCodec({"model": self.model, "timeout": self.timeout}, KNOWN_CONTROL_TOKENS)
        return self._opened().post_all(requests, codec, 1.1 * self.timeout)

    def identity(self) -> dict[str, object]:
        """Vendor, model and address."""
        return {"engine": "vendor", "vendor": self.vendor, "model": self.model, "api_base": self.api_base}

    def _wire(self) -> Wire:
        return Package(self.vendor, self.api_base)


class Package(Wire):
    """A vendor's own package."""

    def __init__(self, vendor: str, api_base: str | None) -> None:
        """Raises MissingExtra without any-llm, EngineError for a package or key that is missing."""
        try:
            from any_llm import AnyLLM
            from any_llm.exceptions import UnsupportedParameterError
        except ImportError:
            raise MissingExtra("any-llm-sdk", "vendors") from None
        try:
            try:
                self._calls = AnyLLM.create(vendor, api_base=api_base, unified_exceptions=True, max_retries=0)
            except UnsupportedParameterError:  # its package retries by itself, beside `Client`
                self._calls = AnyLLM.create(vendor, api_base=api_base, unified_exceptions=True)
        except Exception as error:
            raise EngineError(f"{vendor} cannot be asked: {printable(error)}") from error
        super().__init__(vendor, f"set {self._calls.ENV_API_KEY_NAME}")

    async def post(self, body: Body, timeout: float, sent: Callable[[Body], None]) -> Answer:
        """As `Wire.post`."""
        import asyncio

        fields = {name: value for name, value in json.loads(body.data).items() if name not in _NOT_OURS}
        try:
            async with asyncio.timeout(timeout):
                reply = await self._calls.acompletion(**fields)
        except Exception as error:  # of the vendor's own package; a TypeError for a field that it does not take
            return _answer(error)
        return answers.read(200, {}, reply.model_dump_json().encode(), printable)  # type: ignore[union-attr]


def _answer(error: Exception) -> Answer:
    """An error of a package, read as the HTTP answer that it reports."""
    raw = getattr(error, "original_exception", None) or error
    response = getattr(raw, "response", None)
    bedrock = response if isinstance(response, dict) else {}
    by_class = next((_BY_CLASS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _BY_CLASS), 400)
    own = bedrock.get("ResponseMetadata", {}).get("HTTPStatusCode")
    known = (getattr(error, "status_code", None), getattr(raw, "code", None), own, by_class)  # `code` is Google's
    bodies = (getattr(raw, "body", None), getattr(raw, "details", None), bedrock.get("Error"))
    said = next((body for body in bodies if isinstance(body, dict)), {"message": f"{type(raw).__name__}: {raw}"})
    said = said if "error" in said else {"error": {name.lower(): value for name, value in said.items()}}
    status = next(one for one in known if isinstance(one, int))
    return answers.read(status, getattr(response, "headers", {}), json.dumps(said, default=str).encode(), printable)
