"""The second seam: text generation. An engine does not know what a score is.

    class MyEngine(Engine):
        def complete(self, requests):
            return [Generation(my_model(request.prompt, request.sampling)) for request in requests]

        def identity(self):
            return {"engine": "mine", "model": "v3"}

    with CachedEngine(MyEngine()) as engine:
        judge = Judge(Pointwise(), engine)

An engine around another one is an `EngineWrapper`, so that it hides nothing of the inner one but what it changes.

Engines are cheap to build and load at the first `generate`. They pickle, may be called from several threads, and close
within seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

from flexjudge_reward.errors import ConfigError, MediaError
from flexjudge_reward.media.base import Media
from flexjudge_reward.media.molecule import TOKENS
from flexjudge_reward.types import Generation, Prompt, Request


class Closable:
    """What a `with` block closes at its end."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Engine(Closable):
    """Base class of all engines."""

    remote: bool = False
    """Whether the model runs elsewhere, so that this process only waits: other judges may be asked meanwhile."""
    needs_window: bool = False
    """Whether it shares the GPU with a trainer, and so may work inside `window` only, which only some trainers have."""

    @property
    def in_flight(self) -> int:
        """The most requests that it answers at once, those of several calls together; 1 where calls take turns."""
        return 1

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """One Generation per request, in order. Raises EngineError if the engine can answer nothing.

        A request that fails alone is a Generation with a `failure`; one whose media cannot be used fails here.
        """
        failures = [self._media_failure(request) for request in requests]
        usable = [request for request, failure in zip(requests, failures, strict=True) if failure is None]
        replies = self.complete(usable) if usable else []
        if len(replies) != len(usable):
            raise ConfigError(
                f"{type(self).__name__}.complete returned {len(replies)} replies for {len(usable)} requests;"
                " an engine returns one per request, in order"
            )
        remaining = iter(replies)
        return [failure or next(remaining) for failure in failures]

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        """The replies to requests whose media are loaded: what an engine implements."""
        raise NotImplementedError(f"{type(self).__name__} has no complete()")

    def identity(self) -> dict[str, object]:
        """Everything about the engine that could change a reply, as JSON values. Part of every cache key."""
        raise NotImplementedError(f"{type(self).__name__} has no identity()")

    def shows_stills(self, prompt: Prompt) -> bool:
        """Whether it shows the videos of a prompt as images, as far as is known now. Part of the cache key."""
        return False

    def recognise(self, media: Sequence[Media]) -> None:
        """Gives media whose files it has seen before their digests, so that they need not be decoded to be known."""

    def findings(self) -> dict[str, object]:
        """What was found out about the model so far, such as whether it takes a system turn. For records."""
        return {}

    def supports(self, modality: str) -> bool:
        """Whether the model can be shown "image", "video", "audio" or "molecule tokens".

        True where only the server knows; molecule tokens need an engine that has the model in its hands.
        """
        return modality != TOKENS

    def _media_failure(self, request: Request) -> Generation | None:
        try:
            for media in request.prompt.shown:
                media.check()
                if media.needs == TOKENS and not self.supports(TOKENS):
                    return Generation.failed("unsupported", f"the engine {type(self).__name__} shows no {TOKENS}")
        except MediaError as error:
            return Generation.failed("media", str(error))
        return None

    def window(self) -> AbstractContextManager[None]:
        """The time of one batch of judgements in a trainer's step, for an engine that rests between them."""
        return nullcontext()

    def innermost(self) -> Engine:
        """The engine that has the model: this one, or what is inside of its wrappers."""
        return self

    def close(self) -> None:
        """Releases the model or the connections. May be called twice; a later `generate` opens them again."""


class EngineWrapper(Engine):
    """An engine around another one, and like it in all that a subclass does not change."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def remote(self) -> bool:  # type: ignore[override]
        """As the engine inside."""
        return self.engine.remote

    @property
    def needs_window(self) -> bool:  # type: ignore[override]
        """As the engine inside."""
        return self.engine.needs_window

    @property
    def in_flight(self) -> int:
        """As the engine inside."""
        return self.engine.in_flight

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        """The replies of the engine inside."""
        return self.engine.generate(requests)

    def identity(self) -> dict[str, object]:
        """That of the engine inside."""
        return self.engine.identity()

    def shows_stills(self, prompt: Prompt) -> bool:
        """As the engine inside."""
        return self.engine.shows_stills(prompt)

    def recognise(self, media: Sequence[Media]) -> None:
        """As the engine inside."""
        self.engine.recognise(media)

    def findings(self) -> dict[str, object]:
        """Those of the engine inside."""
        return self.engine.findings()

    def supports(self, modality: str) -> bool:
        """As the engine inside."""
        return self.engine.supports(modality)

    def window(self) -> AbstractContextManager[None]:
        """That of the engine inside."""
        return self.engine.window()

    def innermost(self) -> Engine:
        """That of the engine inside."""
        return self.engine.innermost()

    def close(self) -> None:
        """Closes the engine inside."""
        self.engine.close()


class StatefulEngine(Engine):
    """An engine with a lock. What begins with an underscore stays in this process: a pickled copy starts closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())
