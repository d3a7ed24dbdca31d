"""A reward server: one judge behind the protocols that trainers speak. `flexjudge serve`, or `RewardServer(..).app()`.

    POST /judge    groups, with images; failures are null with their kind (`wire.py`); GET says what judges
    POST           /get_reward, /rm, /scores: OpenRLHF, slime, LLaMA-Factory (`protocols.py`)
    GET  /health   200 if the judge's model answered within the last minute, or answers now; no token needed
    GET  /metrics  for Prometheus

    200   every row has a score or a failure           429, 503   full, draining, the judge answers nothing, or too many
    400   the sentence says what is wrong                         failures of a trainer's rows: later it may succeed
    401   no or a wrong token                          408, 413   a body that takes a minute; larger than 64 MB
    402   past a ceiling of cost                       409        an alarm has stopped the judging (on_alarm="stop")

Promised: no row is lost by a signal to end: what is being judged is answered first. Media are bytes, never a path or an
address. A wrong request harms no other. At most `rows` rows and 1 GB of bodies wait; above, callers wait, and after a
while get a 503 (`intake.py`). Behind /judge failures are for the client to count; those of one caller harm no other.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from flexjudge_reward.engines.cache.engine import CachedEngine
from flexjudge_reward.errors import ConfigError, CostLimitReached, EngineError, JudgementFailed
from flexjudge_reward.judge.groups import check_fits
from flexjudge_reward.judge.rewards import FailureWatch
from flexjudge_reward.trainers.intake import MOST_BYTES, Busy, Intake
from flexjudge_reward.trainers.protocols import PROTOCOLS, Protocol, groups_of
from flexjudge_reward.trainers.pulse import Pulse, exposition
from flexjudge_reward.trainers.rendezvous import Rendezvous, RowScore
from flexjudge_reward.trainers.rows import neutral, numbers_only, with_numbers
from flexjudge_reward.trainers.session import RewardSession
from flexjudge_reward.trainers.tasks import key_of
from flexjudge_reward.trainers.window import NO_WINDOW
from flexjudge_reward.trainers.wire import STOPPED, rows_of, scores_json
from flexjudge_reward.types import Example, Failure

if TYPE_CHECKING:
    from aiohttp import web

_Handler = Callable[[Any], Awaitable[Any]]
_Group = tuple[Sequence[Example], str | None, int]  # rows, an id that other requests share, and the group's size
_log = logging.getLogger("flexjudge_reward")


class RewardServer:
    """One judge and the rows that wait for it. Used by one event loop."""

    def __init__(
        self,
        session: RewardSession,
        token: str | None = None,
        rows: int = 4096,
        deadline: float = 300.0,
        alone: bool = True,
    ) -> None:
        """
        Args:
            session: its judge may be shared with nothing else; its policies rule `rewards`.
            token: what callers have to send, as a bearer token or as the password of basic authentication.
            rows: the most that wait or are judged at once.
            deadline: seconds within which the rows of a group that several requests share must arrive.
            alone: whether all requests come to this process, so that they can share groups.

        Raises:
            ConfigError: wrong settings of the session, or a judge beside a policy.
        """
        self.session, self._token, self._alone = session, token, alone
        session.check()
        judge = session.judge
        if judge.engine.needs_window:
            raise ConfigError(NO_WINDOW)
        asks = judge.engine if isinstance(judge.engine, CachedEngine) else judge
        self._pulse = asks.engine = Pulse(asks.engine)
        self._meeting = Rendezvous(session, deadline)
        # Each caller of /judge counts its own failures; one that has many would stop the others' batches.
        self._watch, session.watch = session.watch, FailureWatch(1.0)
        self._intake, self._requests = Intake(rows), Counter[tuple[str, int]]()
        self._failures, self._judged = Counter[str](), 0

    def app(self) -> web.Application:
        """The application; it is closed with its session when it shuts down. Belongs to the loop that runs it."""
        from aiohttp import web

        @web.middleware
        async def guard(request: web.Request, handler: _Handler) -> Any:
            return await self._guard(request, handler)

        app = web.Application(client_max_size=MOST_BYTES, middlewares=[guard])
        app.add_routes([web.post("/judge", self._answering(self._groups, self._judge))])
        for path, protocol in PROTOCOLS.items():
            read, reply = partial(self._rows, protocol), partial(self._speak, protocol)
            app.add_routes([web.post(path, self._answering(read, reply))])
        pages = {"/judge": self._about, "/health": self._health, "/metrics": self._metrics}
        app.add_routes([web.get(path, page) for path, page in pages.items()])
        app.on_shutdown.append(self._drain)
        return app

    async def _guard(self, request: web.Request, handler: _Handler) -> Any:
        """Every request passes here: the token, errors as sentences, counts."""
        from aiohttp import web

        status, words, headers = 200, "", {}
        try:
            if request.path != "/health" and not self._allowed(request):
                raise web.HTTPUnauthorized
            response = await handler(request)
            status = response.status
            return response
        except web.HTTPException as error:
            status, words = error.status, error.reason
        except (ConfigError, RecursionError) as error:
            status, words = 400, str(error)
        except (Busy, CostLimitReached, EngineError, JudgementFailed) as error:
            status, words = STOPPED.get(type(error), 503) if error is self.session.stopped else 503, str(error)
            headers = {"Retry-After": "2"} if status == 503 else {}
        except Exception:
            _log.exception("the reward server failed at a request to %s", request.path)
            status, words = 500, "the server failed at this request; its log says how"
        finally:
            known = getattr(request.match_info.route.resource, "canonical", "other")
            self._requests[known, status] += 1
        return web.json_response({"error": words}, status=status, headers=headers)

    def _allowed(self, request: web.Request) -> bool:
        from aiohttp import BasicAuth

        if self._token is None:
            return True
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "basic":  # http://any:TOKEN@host, for trainers that only take an address
            try:
                given = BasicAuth.decode(f"{kind} {given}").password
            except ValueError:
                return False
        return hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token.encode())

    def _answering(self, read: Callable[[Mapping[str, Any]], Any], reply: _Handler) -> _Handler:
        """Reads the JSON of a request, and writes that of its answer."""
        from aiohttp import web

        async def answer(request: web.Request) -> web.Response:
            async with self._intake.parsed(request, read) as rows:
                found = await reply(rows)
            return web.Response(body=json.dumps(found, allow_nan=False).encode(), content_type="application/json")

        return answer

    async def _scored(self, groups: Sequence[_Group]) -> list[list[RowScore]]:
        """The rows of each group."""
        futures: list[asyncio.Future[RowScore]] = []
        async with self._intake.held(sum(len(rows) for rows, _, _ in groups)):
            keys = await asyncio.to_thread(lambda: [self._key(*group) for group in groups])
            try:
                for (rows, _, size), key in zip(groups, keys, strict=True):
                    futures += [asyncio.wrap_future(self._meeting.submit(one, key, size)) for one in rows]
                results = await asyncio.gather(*futures, return_exceptions=True)
            finally:
                for future in futures:
                    future.cancel()  # what still waits, after an error or when the caller has gone
        if error := next((one for one in results if isinstance(one, BaseException)), None):
            raise error
        found = iter(cast("list[RowScore]", results))
        scored = [[next(found) for _ in rows] for rows, _, _ in groups]
        for one in itertools.chain.from_iterable(scored):
            self._judged += 1
            if isinstance(one.outcome, Failure):
                self._failures[one.outcome.kind] += 1
        return scored

    def _key(self, rows: Sequence[Example], name: str | None, size: int) -> object:
        """Where the rows meet those of other requests. Raises ConfigError: the judge cannot judge them."""
        judge = self.session.judge
        texts = rows[0].with_candidates([part for one in rows for part in one.candidates])
        whole = texts if judge.format.max_candidates == 1 or name is None else texts.with_candidates(["a"] * size)
        check_fits(judge, whole)
        if name is None:
            return object()
        if not self._alone:
            raise ConfigError("this server has several workers, which do not share groups: send each group whole")
        return name, key_of(rows[0])  # another question is another group: neither harms the other

    def _groups(self, body: Mapping[str, Any]) -> list[_Group]:
        groups = body.get("groups")
        if not isinstance(groups, list) or not groups or len(body) > 1:
            raise ConfigError('a request is {"groups": [..]} with at least one group')
        return [rows_of(group, self.session.config.completion) for group in groups]

    async def _judge(self, groups: Sequence[_Group]) -> dict[str, Any]:
        return {"groups": [scores_json(rows) for rows in await self._scored(groups)]}

    def _rows(self, protocol: Protocol, body: Mapping[str, Any]) -> tuple[list[Example], list[list[int]]]:
        """The rows of a trainer's request, and which are of one prompt."""
        if self.session.judge.format.max_candidates > 1:
            raise ConfigError("this protocol has no groups, which the format of the judge compares: use /judge")
        numbers_only(self.session.config, "this protocol")
        rows = protocol.rows(body, self.session.config)
        return rows, groups_of(rows)

    async def _speak(self, protocol: Protocol, asked: tuple[list[Example], list[list[int]]]) -> Any:
        rows, groups = asked
        scored = await self._scored([([rows[n] for n in group], None, len(group)) for group in groups])
        by_row = dict(zip(itertools.chain(*groups), itertools.chain(*scored), strict=True))
        found = [by_row[index] for index in range(len(rows))]
        self._watch.add([one.outcome for one in found])
        failed = [isinstance(one.outcome, Failure) for one in found]
        return protocol.answer(with_numbers([one.reward for one in found], neutral(self.session)), failed)

    async def _about(self, request: web.Request) -> web.Response:
        from aiohttp import web

        judge, most = self.session.judge, self.session.judge.format.max_candidates
        format = {
            "name": judge.format.name,
            "described": judge.format.described(),
            "min_candidates": judge.format.min_candidates,
            "max_candidates": None if most == float("inf") else most,
        }
        return web.json_response({"format": format, "judge": judge.described()})

    async def _health(self, request: web.Request) -> web.Response:
        from aiohttp import web

        alive = await self._pulse.alive()
        said = {"status": "ok"} if alive else {"status": "the judge does not answer"}
        return web.json_response(said, status=200 if alive else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        from aiohttp import web

        text = exposition(
            self._requests, self._judged, self._failures, self._intake.rows, self.session.summary, self._pulse
        )
        return web.Response(text=text, content_type="text/plain", charset="utf-8")

    async def _drain(self, app: web.Application) -> None:
        """Judges what has arrived; groups that are not whole are a 503, since no more will come."""
        await asyncio.sleep(3 * self._meeting.linger)
        await asyncio.to_thread(self._meeting.close)
        await asyncio.to_thread(self.session.close)
