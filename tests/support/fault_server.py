"""A loopback OpenAI-compatible server that fails on command, or sends recorded replies.

Each request names itself in its prompt, as in "item 7", and the reply repeats the name, so that a mixed-up reply shows.
A plan says what happens: `plan(name, nth)` is the fault of the nth attempt (from 0) of that item, `None` a good reply.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

_NAME = re.compile(r"item \w+")


@dataclass(frozen=True)
class Fault:
    """`status` with `headers` and `body`; or `how`: reset, cut, hang, die."""

    how: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""


def reply(content: str | None, finish: str = "stop", **message: Any) -> str:
    """The JSON of a chat completion."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 5}})


class FaultServer:
    """Runs in a thread of its own between `with` and its end, or until a fault says die."""

    def __init__(
        self,
        plan: Callable[[str, int], Fault | None] = lambda name, nth: None,
        models: list[dict[str, Any]] | int = [{"id": "judge", "root": "/weights"}],  # noqa: B006
        key: str | None = None,
        delay: float = 0.0,
        port: int = 0,
    ) -> None:
        self.plan, self.models, self.key, self.delay, self.port = plan, models, key, delay, port
        self.attempts: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.in_flight = self.most_in_flight = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FaultServer:
        self._loop, started = asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            with suppress(RuntimeError):  # it has died by its plan since
                self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(started))
        self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        app = web.Application(client_max_size=2**28)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/health", self._health)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = runner.addresses[0][1]
        self._stopped = asyncio.Event()
        started.set()
        await self._stopped.wait()
        await runner.cleanup()

    def _rejected(self, request: web.Request) -> web.Response | None:
        sent = request.headers.get("Authorization", "")
        if self.key is None or sent == (self.key if " " in self.key else f"Bearer {self.key}"):
            return None
        return web.Response(status=401, text=json.dumps({"error": {"message": f"Incorrect API key: {sent}"}}))

    async def _models(self, request: web.Request) -> web.Response:
        if isinstance(self.models, int):
            return web.Response(status=self.models)
        return self._rejected(request) or web.json_response({"data": self.models})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()  # what a router waits for

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        if rejected := self._rejected(request):
            return rejected
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            return await self._answer(request)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text)
        self.requests.append(body)
        self.headers = dict(request.headers)
        found = _NAME.search(text)
        name = found.group() if found else ""
        # A dead server sends no reply, also while its connections are being closed.
        fault = Fault("die") if self._stopped.is_set() else self.respond(name, body)
        self.attempts[name] += 1
        await asyncio.sleep(self.delay)
        if fault is None:
            text = reply(f"<think>{name}</think><answer>7</answer>")
            return web.Response(text=text, content_type="application/json")
        return await self._fail(request, fault)

    def respond(self, name: str, body: dict[str, Any]) -> Fault | None:
        """What happens to a request; None is a good reply."""
        return self.plan(name, self.attempts[name])

    async def _fail(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        if fault.how == "hang":
            await asyncio.sleep(3600)
        if fault.how == "die":
            self._stopped.set()
        if fault.how in ("reset", "die"):
            assert request.transport is not None
            request.transport.abort()
        if fault.how == "cut":
            response = web.StreamResponse(headers={"Content-Length": "1000"})
            await response.prepare(request)
            await response.write(b'{"choices": [')
            assert request.transport is not None
            request.transport.abort()
            return response
        return web.Response(status=fault.status, headers=fault.headers, text=fault.body)
