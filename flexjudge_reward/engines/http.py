"""Many HTTP requests to one server, with retries and limits in time: the transport of `ServerEngine`.

Promised: every request ends as the server's JSON or as one named failure; a request that ends never waits for another;
`post_all` ends once nothing was answered for `patience` seconds, however much is left. Retried are what may pass by
itself (connection errors, cut or broken bodies, a 200 that holds an error, and the statuses of `_RETRIED`), with
growing, jittered pauses, or the pause the server asks for up to `_LONGEST_PAUSE_S`. Keys and passwords appear in no
message. Not known here: how prompts and replies are written.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import closing
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

from flexjudge_reward.errors import EngineError
from flexjudge_reward.types import Generation, Prompt

if TYPE_CHECKING:
    import aiohttp

_T = TypeVar("_T")

_RETRIED = {408, 409, 425, 429} | set(range(500, 600))
_REFUSED_KEY = {401, 403}
_LONGEST_PAUSE_S = 30.0
_PROBE_S = 5.0
_CLOSE_S = 5.0
_SHOWN = 300  # characters of a server's message that a failure quotes
_LARGE = 2**20  # bytes; aiohttp wants larger bodies as a file


class Language(Protocol):
    """How the server is spoken to. Neither method raises."""

    def write(self, prompt: Prompt, capped: bool) -> bytes | Generation:
        """The JSON body of a request, or why there is none.

        Not `capped`, it has no limit that a server may refuse (400) where the reply would not fit the model's context.
        """
        ...

    def read(self, answer: Mapping[str, Any]) -> Generation:
        """A chat completion as a reply."""
        ...


@dataclass(frozen=True)
class _Retry:
    """A try that failed in a way that may pass."""

    problem: str
    pause: float | None = None
    """Seconds the server asked for."""
    nobody: bool = False
    """Whether nothing listens at the address."""


@dataclass(frozen=True)
class _Refused:
    """The server will not serve this request."""

    problem: str
    all: bool = False
    """Whether it refused what every request has in common: the key, the model."""
    too_long: bool = False
    """Whether prompt and longest reply together do not fit the model's context."""


@dataclass
class _Batch:
    """What the requests of one `post_all` share."""

    prompts: Sequence[Prompt]
    language: Language
    replies: list[Generation | None]
    served: bool = False
    """Whether the server answered one of them."""
    problems: dict[int, str] = field(default_factory=dict)
    """The last problem of each request that is being retried."""
    latest: float = 0.0
    """When the server last answered a request, by the clock of the loop."""
    fatal: str = ""
    """Set when the server refused what every request has in common."""
    gone: bool = False
    """Set when one request found no server through all of its tries."""


class _Watch:
    """Ends a try of the task that made it after `limit` seconds, with a TimeoutError.

    One timer that follows the tries. A timer for each would cost a fifteenth of a request as `ClientTimeout.total` of
    aiohttp, and a fiftieth as `asyncio.timeout`.
    """

    def __init__(self, limit: float) -> None:
        self._limit, self._loop, self._task = limit, asyncio.get_running_loop(), asyncio.current_task()
        self._due: float | None = None
        self._late = False
        self._look()

    def __enter__(self) -> None:
        self._due = self._loop.time() + self._limit

    def __exit__(self, *_: object) -> None:
        late, self._due, self._late = self._late, None, False
        if late and self._task and not self._task.uncancel():
            raise TimeoutError

    def _look(self) -> None:
        now = self._loop.time()
        if self._due is not None and self._due <= now and self._task:
            # The task sees this where it waits, which is inside the try: it has not left it.
            self._late = self._task.cancel()
            self._due = None
        self._timer = self._loop.call_at(self._due or now + self._limit, self._look)

    def close(self) -> None:
        self._timer.cancel()


class Client:
    """One server, one event-loop thread, one pool of connections."""

    def __init__(
        self,
        url: str,
        login: tuple[str, str] | None,
        key: str | None,
        concurrency: int,
        timeout: float,
        tries: int,
        start_command: str,
    ) -> None:
        import yarl

        self.pid = os.getpid()
        self._parts, self._start_command = urlsplit(url), start_command
        self._concurrency, self._timeout, self._tries = concurrency, timeout, tries
        self._where = self._parts._replace(query="").geturl()
        self._secrets = [secret for secret in (key, *(login or ()), self._parts.query) if secret]
        self._listed: list[dict[str, Any]] | None = None
        self._unreachable = 0  # tries since something listened there
        self._closed = False
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="flexjudge-server", daemon=True)
        self._thread.start()
        self._chat_url = yarl.URL(self._address("chat/completions"), encoded=True)
        self._session, self._slots = self._wait(self._open(login, key))

    def models(self) -> list[dict[str, Any]]:
        """The server's list of models; empty if it keeps none. Asks only at first, and after connection errors.

        Raises:
            EngineError: no server answers, or it refuses the key.
        """
        with self._lock:
            if self._listed is None or self._unreachable:
                self._listed = self._wait(self._list(tries=3 if self._listed is None else 1))
                self._unreachable = 0
            return self._listed

    def post_all(self, prompts: Sequence[Prompt], language: Language, patience: float) -> list[Generation]:
        """The reply to each prompt, in order; what is left when none came for `patience` seconds is a `timeout`.

        Raises:
            EngineError: the server refused the key or the model before it answered anything.
        """
        batch = _Batch(prompts, language, [None] * len(prompts))
        self._wait(self._post_all(batch, patience))
        if batch.fatal and not batch.served:
            raise EngineError(batch.fatal)
        return [reply or self._unanswered(batch, index, patience) for index, reply in enumerate(batch.replies)]

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

    async def _open(
        self, login: tuple[str, str] | None, key: str | None
    ) -> tuple[aiohttp.ClientSession, asyncio.Semaphore]:
        import aiohttp

        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        session = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),  # requests do not depend on each other
            connector=aiohttp.TCPConnector(limit=self._concurrency + 1),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(self._timeout, 10.0)),
            headers=headers,
            auth=aiohttp.BasicAuth(*login) if login and not key else None,
        )
        return session, asyncio.Semaphore(self._concurrency)

    async def _shut(self) -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._session.close()
        await self._loop.shutdown_default_executor()

    def _address(self, path: str) -> str:
        return self._parts._replace(path=f"{self._parts.path}/{path}").geturl()

    async def _list(self, tries: int) -> list[dict[str, Any]]:
        import aiohttp

        problem = ""
        for attempt in range(tries):
            await asyncio.sleep(0.5 * attempt)
            try:
                limit = aiohttp.ClientTimeout(total=_PROBE_S)
                async with self._session.get(self._address("models"), timeout=limit, allow_redirects=False) as response:
                    if response.status in _REFUSED_KEY:
                        raise EngineError(self._key_refused(response.status))
                    return _entries(await response.read()) if response.status == 200 else []
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                problem = self._clean(error)
        raise EngineError(
            f"no server answers at {self._where} ({problem}). Start one with `{self._start_command}`,"
            " or correct the address"
        )

    async def _post_all(self, batch: _Batch, patience: float) -> None:
        waiting, batch.latest = iter(range(len(batch.prompts))), self._loop.time()

        async def work() -> None:
            with closing(_Watch(self._timeout)) as watch:
                for index in waiting:  # shared: each takes the next one
                    async with self._slots:
                        reply = batch.replies[index] = await self._reply(batch, index, watch)
                    if reply.failure is None or reply.failure.kind != "transport":  # else nobody answered
                        batch.latest = self._loop.time()

        tasks = [asyncio.create_task(work()) for _ in range(min(len(batch.prompts), self._concurrency))]
        try:
            while (left := batch.latest + patience - self._loop.time()) > 0:
                if not (await asyncio.wait(tasks, timeout=left))[1]:
                    break
        finally:
            for task in tasks:
                task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def _reply(self, batch: _Batch, index: int, watch: _Watch) -> Generation:
        prompt, write = batch.prompts[index], batch.language.write
        refused = ""
        for capped in (True, False):
            if batch.fatal or batch.gone:
                return self._left_out(batch)
            # Pictures take long to encode; that must not hold up the other requests.
            here = not prompt.media
            body = write(prompt, capped) if here else await self._loop.run_in_executor(None, write, prompt, capped)
            outcome = body if isinstance(body, Generation) else await self._tried(batch, index, body, watch)
            if isinstance(outcome, Generation):
                return outcome
            refused = outcome.problem
            if not outcome.too_long:
                break
        return Generation.failed("engine", refused)

    async def _tried(self, batch: _Batch, index: int, body: bytes, watch: _Watch) -> Generation | _Refused:
        """The reply to one body, tried until it is there, refused, or out of tries."""
        nobody = True
        for attempt in range(self._tries):
            outcome = await self._try(body, watch)
            if not isinstance(outcome, _Retry):
                self._unreachable = 0
                if isinstance(outcome, dict):
                    batch.served = True
                    return batch.language.read(outcome)
                if outcome.all:
                    batch.fatal = outcome.problem
                    return self._left_out(batch)
                return outcome
            batch.problems[index] = outcome.problem
            nobody &= outcome.nobody
            self._unreachable = self._unreachable + 1 if outcome.nobody else 0
            if batch.gone or attempt == self._tries - 1:
                break
            await asyncio.sleep(_pause(attempt, outcome.pause))
        batch.gone |= nobody
        return Generation.failed("transport", f"{batch.problems[index]}, after {attempt + 1} tries")

    async def _try(self, body: bytes, watch: _Watch) -> dict[str, Any] | _Refused | _Retry:
        """The server's reply, a refusal, or a failure that may pass."""
        import aiohttp

        data = io.BytesIO(body) if len(body) > _LARGE else body
        try:
            with watch:
                async with self._session.post(self._chat_url, data=data, allow_redirects=False) as response:
                    raw = await response.read()
        except TimeoutError:
            return _Retry("the server did not answer within the timeout of one try")
        except aiohttp.ClientPayloadError:
            return _Retry("the server broke off in the middle of its answer")
        except (aiohttp.ClientError, OSError) as error:
            nobody = isinstance(error, aiohttp.ClientConnectorError)
            return _Retry(f"the connection failed: {self._clean(error)}", nobody=nobody)
        return self._judged(response.status, response.headers.get("Retry-After"), raw)

    def _judged(self, status: int, retry_after: str | None, raw: bytes) -> dict[str, Any] | _Refused | _Retry:
        answer = _json(raw)
        if status == 200 and _is_reply(answer):
            reply: dict[str, Any] = answer
            return reply
        said = self._said(answer, raw)
        if status == 200:
            return _Retry(f"the server sent no reply but {said}")
        if status in _RETRIED:
            return _Retry(f"the server answered {status}: {said}", _seconds(retry_after))
        if status in _REFUSED_KEY:
            return _Refused(self._key_refused(status), all=True)
        if status == 404:
            known = ", ".join(str(entry["id"]) for entry in self._listed or ()) or "none"
            return _Refused(f"the server at {self._where} answered 404: {said}. It lists the models: {known}", all=True)
        too_long = status == 400 and ("max_tokens" in said or "context length" in said)
        return _Refused(f"the server answered {status}: {said}", too_long=too_long)

    def _left_out(self, batch: _Batch) -> Generation:
        if batch.fatal:
            return Generation.failed("engine", batch.fatal)
        return Generation.failed("transport", f"not sent: the server at {self._where} went away")

    def _unanswered(self, batch: _Batch, index: int, patience: float) -> Generation:
        last = f"; last: {batch.problems[index]}" if index in batch.problems else ""
        return Generation.failed("timeout", f"no reply, and none to any other request for {patience:g} s{last}")

    def _key_refused(self, status: int) -> str:
        return (
            f"the server at {self._where} refused the API key ({status}): pass api_key= or set the environment"
            " variable FLEXJUDGE_API_KEY"
        )

    def _said(self, answer: Any, raw: bytes) -> str:
        """The server's own message, short and without secrets."""
        error = answer.get("error", answer) if isinstance(answer, dict) else None
        message = error.get("message", error) if isinstance(error, dict) else error
        return self._clean(message if message else raw[:_SHOWN].decode("utf-8", "replace") or "an empty body")

    def _clean(self, message: object) -> str:
        text = str(message) or type(message).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:_SHOWN]


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode())  # of bytes it would guess the encoding first
    except (ValueError, RecursionError):
        return None


def _is_reply(answer: Any) -> bool:
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


def _pause(attempt: int, asked: float | None) -> float:
    """Seconds before the next try: 0.5, 1, 2, 4, 8, 8.. with half of it random, or what the server asked for."""
    pause = min(8.0, 0.5 * 2.0**attempt) if asked is None else max(0.0, min(asked, _LONGEST_PAUSE_S))
    spread = random.uniform(0.5, 1.0) if asked is None else random.uniform(1.0, 1.1)
    return pause * spread


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After header, which is a number or a date."""
    if not retry_after:
        return None
    try:
        return float(retry_after)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(retry_after).timestamp() - time()
    except ValueError:
        return None
