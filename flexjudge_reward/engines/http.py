"""Many HTTP requests to one server, with retries and time limits: the transport of `ServerEngine`.

    waiting --attempt--> reply
                     --> failure  "engine"     rejected: this request will not be served
                     --> failure  "transport"  no attempt left
                     --> a pause, then the next attempt
    all that wait --> failure  "transport"  server_down: one request found no listener in any of its attempts
                  --> failure  "engine"     rejected_all: the server rejects what all requests share (key, model)
                  --> failure  "timeout"    no reply to any request for `stall_timeout` seconds

Promised: every request ends as a reply or as one named failure, and never waits for another. Retried are what
may pass by itself (connection errors, cut or broken bodies, a 200 that holds an error, and the statuses of `_RETRIED`),
with growing, jittered pauses, or the pause that the server demands, up to `_LONGEST_PAUSE_S`. Keys and passwords appear
in no message.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar
from urllib.parse import parse_qsl, urlsplit

from flexjudge_reward.engines.chat_codec import ChatCodec
from flexjudge_reward.errors import EngineError
from flexjudge_reward.types import Generation, Request

if TYPE_CHECKING:
    import aiohttp
    import yarl

_T = TypeVar("_T")

_RETRIED = {408, 409, 425, 429} | set(range(500, 600))
_REJECTED_KEY = {401, 403}
_LONGEST_PAUSE_S = 30.0
_PROBE_S = 5.0
_CLOSE_S = 5.0
_SHOWN = 300  # characters of a server's message that a failure quotes
_LARGE = 2**20  # bytes; aiohttp wants larger bodies as a file


@dataclass(frozen=True)
class _Retry:
    """An attempt failed in a way that may pass."""

    problem: str
    pause: float | None = None  # seconds that the server demands
    unreachable: bool = False  # whether no process listens at the address


@dataclass(frozen=True)
class _Rejected:
    """The server will not serve this request."""

    problem: str
    all: bool = False  # whether it rejects what every request has in common: the key, the model
    too_long: bool = False  # whether prompt and longest reply together do not fit the model's context


@dataclass
class _Batch:
    """What the requests of one `post_all` share."""

    requests: Sequence[Request]
    codec: ChatCodec
    stall_timeout: float
    replies: list[Generation | None]
    problems: list[str]  # the last one of each request that is being retried
    last_reply: float = 0.0  # when the server last answered a request, by the clock of the loop
    served: bool = False  # whether the server answered one of them
    rejected_all: str = ""  # the server's reason, once it rejected what every request has in common
    server_down: bool = False  # whether one request found no listener in any of its attempts


class Client:
    """One server, one event-loop thread, one pool of connections."""

    def __init__(
        self, url: str, login: tuple[str, str] | None, key: str, concurrency: int, timeout: float, max_attempts: int
    ) -> None:
        self.pid = os.getpid()
        self._parts = urlsplit(url)
        self._concurrency, self._timeout, self._max_attempts = concurrency, timeout, max_attempts
        self._where = self._parts._replace(query="").geturl()
        basic = base64.b64encode(":".join(login).encode()).decode() if login else None
        values = [value for _, value in parse_qsl(self._parts.query) if len(value) > 7]  # shorter: a version, a switch
        self._secrets = [s for s in (key, basic, *(login or ()), self._parts.query, *values) if s]
        self._listed: list[dict[str, Any]] | None = None
        self._disconnected = False  # whether a connection failed since the last reply
        self._closed = False
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="flexjudge-server", daemon=True)
        self._thread.start()
        self._chat_url = self._url("chat/completions")
        self._slots = asyncio.Semaphore(concurrency)
        self._session = self._wait(self._open(f"Bearer {key}" if key else f"Basic {basic}" if basic else None))

    def models(self, start_command: str) -> list[dict[str, Any]]:
        """The server's list of models; empty if it keeps none. Asks only at first, and after connection errors.

        Raises EngineError if no server answers, with the command that starts one, or if the server rejects the key.
        """
        with self._lock:
            if self._listed is None or self._disconnected:
                self._listed = self._wait(self._list(3 if self._listed is None else 1, start_command))
                self._disconnected = False
            return self._listed

    def post_all(self, requests: Sequence[Request], codec: ChatCodec, stall_timeout: float) -> list[Generation]:
        """The reply to each request, in order; when none came for `stall_timeout` seconds, the rest are `timeout`.

        Raises EngineError if the server rejected the key or the model before it answered anything.
        """
        batch = _Batch(requests, codec, stall_timeout, [None] * len(requests), [""] * len(requests))
        self._wait(self._post_all(batch))
        if batch.rejected_all and not batch.served:
            raise EngineError(batch.rejected_all)
        return [reply or _unanswered(batch, index) for index, reply in enumerate(batch.replies)]

    def close(self) -> None:
        """Ends what is running, the connections and the thread; may be called twice, and in a forked child."""
        if self._closed or self.pid != os.getpid():
            return
        self._closed = True
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(_CLOSE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_S)
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs `work` on the loop's thread and waits for it here."""
        if self._closed:
            work.close()
            raise EngineError(f"the connection to {self._where} was closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise EngineError(f"the connection to {self._where} was closed while requests were running") from None
        except BaseException:
            future.cancel()
            raise

    async def _open(self, authorization: str | None) -> aiohttp.ClientSession:
        import aiohttp

        headers = {"Content-Type": "application/json"} | ({"Authorization": authorization} if authorization else {})
        return aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),  # requests do not depend on each other
            connector=aiohttp.TCPConnector(limit=self._concurrency + 1),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(self._timeout, 10.0)),
            headers=headers,
        )

    async def _shut(self) -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._session.close()

    def _url(self, path: str) -> yarl.URL:
        import yarl

        return yarl.URL(self._parts._replace(path=f"{self._parts.path}/{path}").geturl(), encoded=True)

    async def _list(self, attempts: int, start_command: str) -> list[dict[str, Any]]:
        import aiohttp

        problem = ""
        for attempt in range(attempts):
            if attempt:
                await asyncio.sleep(_pause(attempt - 1, None))
            try:
                limit = aiohttp.ClientTimeout(total=_PROBE_S)
                async with self._session.get(self._url("models"), timeout=limit, allow_redirects=False) as response:
                    if response.status in _REJECTED_KEY:
                        raise EngineError(self._key_rejected(response.status))
                    if response.status not in _RETRIED:  # such as 503 while it loads
                        return _entries(await response.read()) if response.status == 200 else []
                    problem = f"it answered {response.status}"
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                problem = self._clean(error)
        raise EngineError(
            f"no server answers at {self._where} ({problem}). Start one with `{start_command}`, or correct the address"
        )

    async def _post_all(self, batch: _Batch) -> None:
        waiting, batch.last_reply = iter(range(len(batch.requests))), self._loop.time()

        async def work() -> None:
            for index in waiting:  # shared: each worker takes the next one
                async with self._slots:
                    reply = batch.replies[index] = await self._reply(batch, index)
                if reply.failure is None or reply.failure.kind != "transport":  # else the server did not answer
                    batch.last_reply = self._loop.time()

        workers = [asyncio.create_task(work()) for _ in range(min(len(batch.requests), self._concurrency))]
        try:
            while (left := batch.last_reply + batch.stall_timeout - self._loop.time()) > 0:
                _, pending = await asyncio.wait(workers, timeout=left)
                if not pending:
                    break
        finally:
            for worker in workers:
                worker.cancel()
        for result in await asyncio.gather(*workers, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def _reply(self, batch: _Batch, index: int) -> Generation:
        outcome = await self._with_retries(batch, index, capped=True)
        if isinstance(outcome, _Rejected) and outcome.too_long:
            outcome = await self._with_retries(batch, index, capped=False)
        return Generation.failed("engine", outcome.problem) if isinstance(outcome, _Rejected) else outcome

    async def _with_retries(self, batch: _Batch, index: int, capped: bool) -> Generation | _Rejected:
        """The reply to one request, attempted until it is there, rejected, or out of attempts."""
        if batch.rejected_all:
            return _Rejected(batch.rejected_all)
        if batch.server_down:
            return Generation.failed("transport", f"not sent: the server at {self._where} is down")
        request, encode = batch.requests[index], batch.codec.encode
        # Images take long to encode; that must not hold up the other requests.
        in_thread = bool(request.prompt.media)
        body = await asyncio.to_thread(encode, request, capped) if in_thread else encode(request, capped)
        unreachable = True
        for attempt in range(self._max_attempts):
            outcome = await self._attempt(body)
            if not isinstance(outcome, _Retry):
                self._disconnected = False
                if isinstance(outcome, dict):
                    batch.served = True
                    return batch.codec.decode(outcome)
                if outcome.all:
                    batch.rejected_all = outcome.problem
                return outcome
            batch.problems[index] = outcome.problem
            unreachable &= outcome.unreachable
            if batch.server_down or attempt == self._max_attempts - 1:
                break
            await asyncio.sleep(_pause(attempt, outcome.pause))
        batch.server_down |= unreachable
        return Generation.failed("transport", f"{batch.problems[index]}, after {attempt + 1} attempts")

    async def _attempt(self, body: bytes) -> dict[str, Any] | _Rejected | _Retry:
        """The server's reply, a rejection, or a failure that may pass."""
        import aiohttp

        data = io.BytesIO(body) if len(body) > _LARGE else body
        try:
            async with (
                asyncio.timeout(self._timeout) as limit,  # costs less than aiohttp's own
                self._session.post(self._chat_url, data=data, allow_redirects=False) as response,
            ):
                raw = await response.read()
        except aiohttp.ClientPayloadError:
            return _Retry("the server broke off in the middle of its answer")
        except (aiohttp.ClientError, OSError) as error:
            if limit.expired():
                return _Retry("the server did not answer within the timeout of one attempt")
            self._disconnected = True
            unreachable = isinstance(error, aiohttp.ClientConnectorError)
            return _Retry(f"the connection failed: {self._clean(error)}", unreachable=unreachable)
        return self._outcome(response.status, response.headers.get("Retry-After", ""), raw)

    def _outcome(self, status: int, retry_after: str, raw: bytes) -> dict[str, Any] | _Rejected | _Retry:
        answer = _json(raw)
        if status == 200 and _is_reply(answer):
            return answer
        said = self._message(answer, raw)
        if status == 200:
            return _Retry(f"the server sent no reply but {said}")
        if status in _RETRIED:
            return _Retry(f"the server answered {status}: {said}", _seconds(retry_after))
        if status in _REJECTED_KEY:
            return _Rejected(self._key_rejected(status), all=True)
        if status == 404:
            known = ", ".join(str(entry["id"]) for entry in self._listed or ()) or "none"
            problem = f"the server at {self._where} answered 404: {said}. It lists the models: {known}"
            return _Rejected(problem, all=True)
        too_long = status == 400 and ("max_tokens" in said or "context length" in said)
        return _Rejected(f"the server answered {status}: {said}", too_long=too_long)

    def _key_rejected(self, status: int) -> str:
        return (
            f"the server at {self._where} rejected the API key ({status}): pass api_key= or set the environment"
            " variable FLEXJUDGE_API_KEY"
        )

    def _message(self, answer: Any, raw: bytes) -> str:
        """The server's own message, short and without secrets."""
        error = answer.get("error", answer) if isinstance(answer, dict) else None
        message = error.get("message", error) if isinstance(error, dict) else error
        return self._clean(message if message else raw[:_LARGE].decode("utf-8", "replace") or "an empty body")

    def _clean(self, message: object) -> str:
        text = str(message) or type(message).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:_SHOWN]


def _unanswered(batch: _Batch, index: int) -> Generation:
    last = f"; last: {batch.problems[index]}" if batch.problems[index] else ""
    return Generation.failed("timeout", f"no reply, and none to any other request for {batch.stall_timeout:g} s{last}")


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode())  # of bytes it would guess the encoding first
    except (ValueError, RecursionError):
        return None


def _is_reply(answer: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a body is a chat completion: one choice with a message whose texts are texts."""
    try:
        message = answer["choices"][0]["message"]
        texts = [message.get(name) for name in ("content", "reasoning", "reasoning_content", "refusal")]
    except (TypeError, KeyError, IndexError, AttributeError):
        return False
    return not answer.get("error") and all(text is None or isinstance(text, str) for text in texts)


def _entries(raw: bytes) -> list[dict[str, Any]]:
    answer = _json(raw)
    listed = answer.get("data") if isinstance(answer, dict) else None
    return [entry for entry in listed or () if isinstance(entry, dict) and "id" in entry]


def _pause(attempt: int, demanded: float | None) -> float:
    """Seconds before the next attempt: 0.5, 1, 2, 4, 8, 8.. with half of it random, or what the server demands."""
    if demanded is None:
        return min(8.0, 0.5 * 2.0**attempt) * random.uniform(0.5, 1.0)
    return max(0.0, min(demanded, _LONGEST_PAUSE_S)) * random.uniform(1.0, 1.1)


def _seconds(retry_after: str) -> float | None:
    """A Retry-After header, which is a number or a date."""
    with suppress(ValueError):
        return float(retry_after)
    with suppress(ValueError):
        return parsedate_to_datetime(retry_after).timestamp() - time()
    return None
