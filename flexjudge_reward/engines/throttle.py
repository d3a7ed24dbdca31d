"""How fast one server is asked: additive increase, multiplicative decrease, as TCP does it.

A rate limit (429) halves the requests in flight and holds all of them for a pause; every round of replies adds one. At
one request in flight the time between two requests grows instead, and shrinks again with every reply. So a server
that serves one request per second is asked about once per second.

Promised: a rate limit loses no request while the server replies now and then. Patience is counted in the server's own
answers: `PATIENCE` rate limits in a row, with all requests held in between and none served, exhaust it.

Everything here runs on one event loop.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque

PATIENCE = 20
LONGEST_PAUSE_S = 30.0
_LONGEST_INTERVAL_S = 8.0
_OVERLOAD_S = 2.0  # for which all wait after a 503, whatever it demands: it may be about one request only


class Throttle:
    """The requests in flight to one server."""

    def __init__(self, most: int) -> None:
        self.most, self.limit, self.interval = most, float(most), 0.0
        self.in_flight, self.limited_in_a_row = 0, 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._free_at = self._limited_at = 0.0
        self._overloads = 0  # in a row

    @property
    def exhausted(self) -> bool:
        """Whether the server has only sent rate limits for longer than is waited for."""
        return self.limited_in_a_row >= PATIENCE

    async def enter(self) -> float:
        """Waits until one more request may be in flight; `leave` ends it. Gives the time at which it begins."""
        loop = asyncio.get_running_loop()
        while True:
            if self.in_flight >= int(self.limit):
                turn = loop.create_future()
                self._waiting.append(turn)
                try:
                    await turn
                except asyncio.CancelledError:
                    self._wake()  # the turn may have come at the same time
                    raise
            elif (wait := self._free_at - loop.time()) > 0:
                await asyncio.sleep(wait)
            else:
                break
        now = loop.time()
        self.in_flight += 1
        self._free_at = max(self._free_at, now + self.interval)
        return now

    def leave(self) -> None:
        """One request is no longer in flight."""
        self.in_flight -= 1
        self._wake()

    def resize(self, most: int) -> None:
        """Another limit from now on; what is in flight beyond it ends first."""
        unlimited, self.most = self.limit >= self.most, most
        self.limit = float(most) if unlimited else min(self.limit, most)
        self._wake()

    def served(self) -> None:
        """The server has replied."""
        self.limited_in_a_row = self._overloads = 0
        if self.limit < self.most:
            self.limit = min(float(self.most), self.limit + 1 / self.limit)
        self.interval = 0.0 if self.interval < 0.01 else self.interval * 0.9
        self._wake()

    def limited(self, began: float, pause: float | None) -> None:
        """The server has rejected a request that began then because there were too many; `pause` is what it demands."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now + _pause(self.limited_in_a_row, pause))
        if began < self._limited_at:  # sent before the last decrease, which it could not know
            return
        self._limited_at = now
        self.limited_in_a_row += 1
        if self.limit >= 2:
            self.limit /= 2
        else:
            self.limit, self.interval = 1.0, min(_LONGEST_INTERVAL_S, max(0.05, self.interval * 1.5))

    def overloaded(self, began: float, pause: float | None) -> None:
        """The same for an answer that may be this request's own: all wait for 2 s at most, and no patience is lost."""
        now = asyncio.get_running_loop().time()
        self._overloads = self._overloads + 1 if began >= self._limited_at else self._overloads
        self._free_at = max(self._free_at, now + min(_OVERLOAD_S, _pause(self._overloads, pause)))
        if began >= self._limited_at:
            self._limited_at, self.limit = now, max(1.0, self.limit / 2)

    def _wake(self) -> None:
        free = int(self.limit) - self.in_flight
        while self._waiting and free > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1


def _pause(limited_in_a_row: int, demanded: float | None) -> float:
    """Seconds until the next request: 0.25, 0.5, 1, .. 8, with half of it random, or what the server demands."""
    if demanded is None:
        return min(8.0, 0.25 * 2.0 ** min(limited_in_a_row, 5)) * random.uniform(0.5, 1.0)
    return min(max(0.0, demanded), LONGEST_PAUSE_S) * random.uniform(1.0, 1.1)
