"""The connections to one server: one request, and the whole of its answer or the reason why there is none.

Promised: a large body is sent piece by piece and given up as soon as it is sent; an answer is read whole, to a limit,
or not at all; no redirect is followed and no cookie kept. Everything runs on one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from flexjudge_reward.engines import answers
from flexjudge_reward.engines.address import Address
from flexjudge_reward.engines.answers import Answer, Passing
from flexjudge_reward.engines.chat_codec import Body
from flexjudge_reward.engines.client import Wire

if TYPE_CHECKING:
    import aiohttp

LARGE = 2**17  # bytes; larger bodies are sent in parts
_PART = 2**18
_LONGEST_ANSWER = 2**24  # bytes


class Connections(Wire):
    """At most `limit` of them."""

    def __init__(self, address: Address, limit: int, timeout: float) -> None:
        super().__init__(address.shown, "pass api_key= or set the environment variable FLEXJUDGE_API_KEY")
        self._address, self._limit, self._timeout = address, limit, timeout
        self._session: aiohttp.ClientSession | None = None
        self._urls = {path: address.url(path) for path in ("models", "chat/completions")}

    async def close(self) -> None:
        """Closes them."""
        if self._session is not None:
            await self._session.close()

    async def post(self, body: Body, timeout: float, sent: Callable[[Body], None]) -> Answer:
        """As `Wire.post`."""
        large = body.size > LARGE
        options: dict[str, Any] = {"headers": {"Content-Length": str(body.size)}} if large else {}
        options["data"] = _parts(body, sent) if large else body.data
        outcome = await self._send("POST", "chat/completions", options, timeout)
        return outcome if isinstance(outcome, Passing) else answers.read(*outcome, clean=self._address.clean)

    async def models(self, timeout: float) -> tuple[int, bytes] | Passing:
        """As `Wire.models`."""
        outcome = await self._send("GET", "models", {}, timeout)
        return outcome if isinstance(outcome, Passing) else (outcome[0], outcome[2])

    async def _send(
        self, method: str, path: str, options: dict[str, Any], timeout: float
    ) -> tuple[int, Any, bytes] | Passing:
        """The status, the headers and the body of an answer, or why there is none."""
        import aiohttp

        session = self._session = self._session or self._open()
        options |= {"allow_redirects": False, "proxy": self._address.proxy}
        try:
            async with (
                asyncio.timeout(timeout) as limit,  # costs less than aiohttp's own
                session.request(method, self._urls[path], **options) as response,
            ):
                raw = await response.content.readany()
                while part := await response.content.readany():
                    raw += part
                    if len(raw) > _LONGEST_ANSWER:
                        return 413, {}, b"the server's answer is longer than 16 MiB"
        except aiohttp.ClientPayloadError:
            return Passing("the server broke off in the middle of its answer")
        except (aiohttp.ClientError, OSError) as error:
            if limit.expired():
                return Passing("the server did not answer within the timeout of one attempt")
            self.failed = True
            unreachable = isinstance(error, aiohttp.ClientConnectorError)
            return Passing(f"the connection failed: {self._address.clean(error)}", unreachable=unreachable)
        return response.status, response.headers, raw

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        return aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),  # requests do not depend on each other
            connector=aiohttp.TCPConnector(limit=self._limit, **self._address.tls()),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(self._timeout, 10.0)),
            headers=self._address.headers,
        )


async def _parts(body: Body, sent: Callable[[Body], None]) -> AsyncIterator[memoryview]:
    for piece in body.pieces:
        view = memoryview(piece)
        for at in range(0, len(view), _PART):
            yield view[at : at + _PART]
    sent(body)
