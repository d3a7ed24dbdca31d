"""ClientEngine: what the engines share whose model is behind a server. Each reaches it by a `Wire` of its own.

Requests run on one private event-loop thread per engine, at most `concurrency` at once, so `generate` works from
threads, inside a running loop, and after fork or pickling.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from flexjudge_reward.engines.answers import Answer, Passing
from flexjudge_reward.engines.base import StatefulEngine
from flexjudge_reward.engines.chat_codec import Body

if TYPE_CHECKING:
    from flexjudge_reward.engines.http import Client


class Wire:
    """How one server is reached. Used on one event loop."""

    failed = False
    """Whether a connection failed since the last reply."""

    def __init__(self, where: str, key_advice: str) -> None:
        """`where` names the server in messages, `key_advice` says how it gets another key."""
        self.where, self.key_advice = where, key_advice

    async def post(self, body: Body, timeout: float, sent: Callable[[Body], None]) -> Answer:
        """The answer to a chat request. Never raises. `sent` is called with a large body when its last part is out."""
        raise NotImplementedError(f"{type(self).__name__} has no post()")

    async def models(self, timeout: float) -> tuple[int, bytes] | Passing:
        """The status and the body of the list of models; by default the server keeps none."""
        return 404, b""

    async def close(self) -> None:
        """Closes what is open."""


class ClientEngine(StatefulEngine):
    """An engine with a `Client`, which is opened at the first request."""

    remote = True
    concurrency: int
    timeout: float
    max_attempts: int

    _client: Client | None = None

    def _wire(self) -> Wire:
        raise NotImplementedError(f"{type(self).__name__} has no _wire()")

    @property
    def in_flight(self) -> int:
        """Its `concurrency`."""
        return self.concurrency

    def findings(self) -> dict[str, object]:
        """What the server turned out not to take; empty before the first request."""
        return {} if self._client is None else self._client.dialect.findings()

    def close(self) -> None:
        """Ends the connections and the thread. A later `generate` opens them again."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            self._finalizer.detach()  # else it would keep the closed client
            client.close()

    def _opened(self) -> Client:
        from flexjudge_reward.engines.http import Client  # asyncio and ssl are not for every import of the package

        with self._lock:
            if self._client is None or self._client.pid != os.getpid():  # a forked child has no loop thread
                self._client = Client(self._wire(), self.concurrency, self.timeout, self.max_attempts)
                self._finalizer = weakref.finalize(self, self._client.close)  # also at the interpreter's end
            return self._client
