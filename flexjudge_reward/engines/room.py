"""How many bytes of large bodies exist at once: 64 photographs as JSON would be half a gigabyte.

Encoding a request with media waits for its turn while others are encoded or sent. A body gives its room back with its
last part that is sent, not with the reply, so that as many requests as ever wait for replies; a further attempt encodes
it again. Requests without media do not wait.

Everything here runs on one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque

MOST_BYTES = 64 << 20
EXPECTED = 8 << 20
"""Bytes that a body is taken to have while it is being encoded."""


class Room:
    """The bytes that are left; the last body to enter may be larger than that."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._left = most
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Waits until bytes are left, and takes `EXPECTED` of them."""
        while self._left <= 0:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._wake()  # the turn may have come at the same time
                raise
        self._left -= EXPECTED

    def leave(self, size: int) -> None:
        """Gives bytes back; takes more where `size` is negative."""
        self._left += size
        self._wake()

    def _wake(self) -> None:
        for _ in range(-(-self._left // EXPECTED)):  # none where nothing is left
            while self._waiting and self._waiting[0].done():
                self._waiting.popleft()
            if not self._waiting:
                break
            self._waiting.popleft().set_result(None)
