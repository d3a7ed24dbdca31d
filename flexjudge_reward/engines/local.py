"""What the engines that load a model in this process share: its source, its identity, closing."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from flexjudge_reward.engines.base import StatefulEngine
from flexjudge_reward.engines.model import Source, supports
from flexjudge_reward.errors import ConfigError, EngineError, MissingExtra

_CLOSE_S = 10.0  # how long closing waits for a running judgement


def fails_one(error: BaseException) -> bool:
    """Whether an error is one request's: an exception, or a panic of `tokenizers`, whose class in PyO3 is none."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


class LocalEngine(StatefulEngine):
    """A model in this process. A subclass has `complete` and `_release`."""

    packages: ClassVar[tuple[str, ...]]
    """One of these packages must be installed; the first is the engine's name, and that of the extra."""

    def __init__(
        self,
        model: str,
        revision: str | None,
        dtype: str,
        min_pixels: int | None,
        max_pixels: int | None,
        trust_remote_code: bool,
    ) -> None:
        if trust_remote_code and not Path(model).is_dir() and not re.fullmatch("[0-9a-f]{40}", revision or ""):
            raise ConfigError(
                f"trust_remote_code runs code of {model!r}: pin it with revision= the 40 hex digits of the commit you"
                f" have read, found {revision!r}"
            )
        self.model, self.revision, self.dtype, self.trust_remote_code = model, revision, dtype, trust_remote_code
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        self.pixels = {name: value for name, value in limits.items() if value is not None}
        """The pixel limits that were given, by name."""
        super().__init__()

    def identity(self) -> dict[str, object]:
        """Model, version, dtype, template and limits; loads no weights. Raises MissingExtra or EngineError."""
        return {
            "engine": self.packages[0],
            "version": self._version(),
            **self._source.identity(),
            "dtype": self.dtype,
            "min_pixels": self.pixels.get("min_pixels"),
            "max_pixels": self.pixels.get("max_pixels"),
        }

    def supports(self, modality: str) -> bool:
        """As `Engine.supports`; loads no weights. Raises EngineError if there is no such model."""
        return supports(self._source, modality)

    def close(self) -> None:
        """Frees the model within seconds, even if a judgement hangs in another thread."""
        acquired = self._lock.acquire(timeout=_CLOSE_S)
        try:
            self._release()
        finally:
            if acquired:
                self._lock.release()

    def _release(self) -> None:
        """Frees the model, if it is loaded."""
        raise NotImplementedError

    def _version(self) -> str:
        for package in self.packages:
            with suppress(metadata.PackageNotFoundError):
                return metadata.version(package)
        raise MissingExtra(self.packages[0], self.packages[0])

    @cached_property
    def _source(self) -> Source:
        source = Source.find(self.model, self.revision, self.trust_remote_code)
        # No other kind of weights is loaded, because that runs code.
        if source.revision is None and not any(Path(source.model).glob("*.safetensors")):
            raise EngineError(f"no weights in {source.model}: it has no .safetensors file, and no other kind is loaded")
        return source
