"""What a reward server takes in at once: so many rows that wait or are judged, so many bytes of unanswered bodies.

Promised: above, callers wait, and after `_ROOM_S` seconds they get `Busy`. The bytes of a body are free as soon as it
is parsed, but they count until its answer, since the media of its rows take as much.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from flexjudge_reward.errors import ConfigError, FlexJudgeError
from flexjudge_reward.trainers.wire import body_of

if TYPE_CHECKING:
    from aiohttp import web

T = TypeVar("T")
MOST_BYTES = 64_000_000  # of one body
_HELD_BYTES = 1_000_000_000  # of all
_READERS, _READ_S = 16, 60.0  # bodies that are read at once, and how long one may take
_ROOM_S = 30.0  # for which a request waits for room


class Busy(FlexJudgeError):
    """There is no room, and there was none for a while."""


class Intake:
    """The rows and bytes that a server holds. Used by one event loop."""

    def __init__(self, most: int) -> None:
        """`most` is the number of rows."""
        self.most, self.rows, self.bytes = most, 0, 0
        self._reading = asyncio.Semaphore(_READERS)

    @asynccontextmanager
    async def parsed(self, request: web.Request, read: Callable[[Mapping[str, Any]], T]) -> AsyncIterator[T]:
        """What `read` makes of the JSON of a request; its bytes count until the block ends.

        Raises Busy; ConfigError and what `read` raises; HTTPRequestTimeout and HTTPRequestEntityTooLarge.
        """
        from aiohttp import web

        size = min(request.content_length or MOST_BYTES, MOST_BYTES)
        await self._wait(1, size)
        self.bytes += size
        try:
            try:
                async with self._reading, asyncio.timeout(_READ_S):
                    raw = await _body(request)
            except TimeoutError:
                raise web.HTTPRequestTimeout from None
            self.bytes, size = self.bytes + len(raw) - size, len(raw)
            found = await asyncio.to_thread(lambda: read(body_of(raw)))
            raw = bytearray()
            yield found
        finally:
            self.bytes -= size

    @asynccontextmanager
    async def held(self, rows: int) -> AsyncIterator[None]:
        """Room for so many rows until the block ends. Raises Busy; ConfigError for more rows than there is room."""
        await self._wait(rows, 0)
        self.rows += rows
        try:
            yield
        finally:
            self.rows -= rows

    async def _wait(self, rows: int, size: int) -> None:
        """Until there is room. What shares a group waits for others, so that waiting has an end."""
        due = time.monotonic() + _ROOM_S
        while self.rows + rows > self.most or self.bytes + size > _HELD_BYTES:
            if rows > self.most:
                raise ConfigError(f"a request has at most {self.most} rows, this one has {rows}")
            if time.monotonic() > due:
                raise Busy(f"{self.rows} rows of {self.bytes:,} bytes are waiting, and there is room for {self.most}")
            await asyncio.sleep(0.05)


async def _body(request: web.Request) -> bytearray:
    """The body. `request.read()` would keep it as long as the request."""
    from aiohttp import web

    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MOST_BYTES:
            raise web.HTTPRequestEntityTooLarge(MOST_BYTES, len(body))
    return body
