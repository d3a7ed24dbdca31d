"""Many requests to one server, with retries and time limits: the transport of `ServerEngine` and `VendorEngine`.

    waiting --attempt--> reply
                     --> failure  "refused"      the server serves others, and not this request
                     --> failure  "unsupported"  it needs a field that the server does not know
                     --> failure  "engine"       the credit that is left does not pay for it
                     --> failure  "transport"    no attempt left
                     --> failure  "refused"      no attempt left, each was a 500, and others of its length are served
                     --> a pause, then the next attempt; a rate limit costs no attempt
    all that wait --> failure  "transport"  server_down: one request found no listener in any of its attempts
                  --> failure  "engine"     unusable: the server refuses a harmless request, too (key, model, credit)
                  --> failure  "timeout"    no reply to any request for `stall_timeout` seconds

Promised: every request ends as a reply or as one named failure, and never waits for another. A refusal is classified by
evidence, not by its status: a field that it names is left out from now on (`dialect.py`); where the server has just
served another request, it is this request's own; else a harmless request decides (`probes.py`).

A server that breaks at one row refuses it, since else an answer that breaks it would escape its low score. What else
fails in all attempts stays "transport", which counts against no answer: a cut connection, a 502, 503 or 504, a timeout
and a full memory come to the longest prompts and replies first, so blame would train the policy to be short.

Pauses grow and are jittered, or are what the server demands. Keys and passwords appear in no message.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from flexjudge_reward.engines import answers
from flexjudge_reward.engines.answers import Answer, Passing, Refusal, Reply
from flexjudge_reward.engines.chat_codec import Body, ChatCodec, is_plausible, least_tokens, whole
from flexjudge_reward.engines.client import Wire
from flexjudge_reward.engines.connections import LARGE
from flexjudge_reward.engines.dialect import THINKING, Dialect, names_limit
from flexjudge_reward.engines.probes import Prober
from flexjudge_reward.engines.references import NEVER, References, names_miss
from flexjudge_reward.engines.replicas import Replicas
from flexjudge_reward.engines.room import EXPECTED, Room
from flexjudge_reward.engines.shares import Sharing
from flexjudge_reward.engines.throttle import LONGEST_PAUSE_S, Throttle
from flexjudge_reward.errors import EngineError, MediaError, SeveralModels
from flexjudge_reward.media.base import Media
from flexjudge_reward.types import FailureKind, Generation, Request

_T = TypeVar("_T")

_PROBE_S, _CLOSE_S = 5.0, 5.0
_ENCODERS = 8  # threads, at most one for two processors
_WORTH_A_PROBE = 32  # requests
_BUSY_S = 30.0  # for how long after a reply a 503 may mean that there are too many requests
_BUSY_SHARE = 1 / 3  # of the last answers; a replica of five that is down is no reason to ask the others less
_WEIGHT = 0.1  # of the last answer in this share
_MOST_BUSY = 8  # such answers to one request; further ones are attempts
_LISTS = 3  # more of the lists of models, which a router has from any of its replicas
_SUSPICIOUS = 1.5  # times the least tokens of a prompt: what most tokenizers make of most texts is more


@dataclass
class _Batch:
    """What the requests of one `post_all` share."""

    requests: Sequence[Request]
    codec: ChatCodec
    stall_timeout: float
    replies: list[Generation | None]
    problems: list[str]  # the last one of each request that is being retried
    making: dict[Media, asyncio.Future[bytes]] = field(default_factory=dict)  # images that are being encoded
    last_reply: float = 0.0  # when the server last answered a request, by the clock of the loop
    served: bool = False  # whether the server replied to one of them
    unusable: str = ""  # why the server serves nothing at all
    mixed: bool = False  # whether that is so because several models reply
    server_down: bool = False  # whether one request found no listener in any of its attempts


class Client:
    """One server, one event-loop thread, one wire."""

    def __init__(self, wire: Wire, concurrency: int, timeout: float, max_attempts: int) -> None:
        self.pid = os.getpid()
        self._wire, self._where = wire, wire.where
        self._concurrency, self._timeout, self._max_attempts = concurrency, timeout, max_attempts
        self._listed: list[dict[str, Any]] | None = None
        self._replies = 0
        self._last_reply = 0.0  # to any batch, by the clock of the loop
        self._overloaded: object = None  # the request of the last 503
        self._busy = 0.0  # the share of 503s among the last answers
        self._closed = False
        self._lock = threading.Lock()
        self.dialect, self._replicas = Dialect(self._where), Replicas(self._where)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="flexjudge-server", daemon=True)
        self._thread.start()
        # Each thread keeps the memory of the largest images that it encoded.
        self._encoders = ThreadPoolExecutor(min(_ENCODERS, ((os.cpu_count() or 1) + 1) // 2), "flexjudge-encoder")
        self._throttle, self._room, self._prober = Throttle(concurrency), Room(), Prober(self.dialect, self._attempt)
        self._references = References(self._where)
        self._sharing = Sharing(self._where, self._throttle)

    def models(self, start_command: str, needed: bool) -> list[dict[str, Any]]:
        """The server's list of models; empty if it keeps none. Asks only at first, and after connection errors.

        Raises EngineError if no server answers, with the command that starts one, or if the list is `needed` and the
        server rejects the key.
        """
        with self._lock:
            if self._listed is None or self._wire.failed:
                self._listed = self._wait(self._list(3 if self._listed is None else 1, start_command, needed))
                self._wire.failed = False
            return self._listed

    def post_all(self, requests: Sequence[Request], codec: ChatCodec, stall_timeout: float) -> list[Generation]:
        """The reply to each request, in order; when none came for `stall_timeout` seconds, the rest are `timeout`.

        Raises EngineError if the server is unusable and has replied to none of them, or is several models.
        """
        batch = _Batch(requests, codec, stall_timeout, [None] * len(requests), [""] * len(requests))
        self._wait(self._post_all(batch))
        if batch.unusable and (batch.mixed or not batch.served):
            raise (SeveralModels if batch.mixed else EngineError)(batch.unusable)
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
        self._encoders.shutdown(wait=False, cancel_futures=True)
        self._sharing.close()

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

    async def _shut(self) -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._wire.close()

    async def _list(self, attempts: int, start_command: str, needed: bool) -> list[dict[str, Any]]:
        problem = ""
        for attempt in range(attempts):
            if attempt:
                await asyncio.sleep(_pause(attempt - 1, None))
            outcome = await self._wire.models(_PROBE_S)
            if isinstance(outcome, Passing):
                problem = outcome.problem
            elif needed and outcome[0] in (401, 403):
                raise EngineError(self._key_rejected(outcome[0]))
            elif outcome[0] < 500:  # such as 503 while it loads
                return await self._one_list(answers.models(outcome[1])) if outcome[0] == 200 else []
            else:
                problem = f"it answered {outcome[0]}"
        raise EngineError(
            f"no server answers at {self._where} ({problem}). Start one with `{start_command}`, or correct the address"
        )

    async def _one_list(self, listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The list, if the server gives no other one. Raises EngineError."""
        asked = (self._wire.models(_PROBE_S) for _ in range(_LISTS))
        others = await asyncio.gather(*asked)
        lists = [answers.models(one[1]) for one in others if not isinstance(one, Passing) and one[0] == 200]
        if problem := self._replicas.listed([listed, *lists]):
            raise SeveralModels(problem)
        return listed

    async def _post_all(self, batch: _Batch) -> None:
        used = any(request.prompt.messages[0].role == "system" for request in batch.requests)
        if used and self._replies + len(batch.requests) >= _WORTH_A_PROBE:
            await self._prober.check_system_turn(batch.codec)
        waiting, batch.last_reply = iter(range(len(batch.requests))), self._loop.time()
        self._sharing.want(len(batch.requests))

        async def work() -> None:
            for index in waiting:  # shared: each worker takes the next one
                try:
                    reply = batch.replies[index] = await self._reply(batch, index)
                except MediaError as error:  # its frames were dropped, and could not be decoded again
                    reply = batch.replies[index] = Generation.failed("media", str(error))
                self._sharing.want(-1)
                if reply.failure is None or reply.failure.kind != "transport":  # else the server did not answer
                    batch.last_reply = self._loop.time()

        workers = [asyncio.create_task(work()) for _ in range(min(len(batch.requests), self._concurrency))]
        try:
            # A batch may wait behind the requests of others; as long as these are answered, the server is there.
            while (left := max(batch.last_reply, self._last_reply) + batch.stall_timeout - self._loop.time()) > 0:
                _, pending = await asyncio.wait(workers, timeout=left)
                if not pending:
                    break
        finally:
            for worker in workers:
                worker.cancel()
            results = await asyncio.gather(*workers, return_exceptions=True)
            self._sharing.want(-batch.replies.count(None))  # now that nothing of them is in flight
        if failed := next((result for result in results if isinstance(result, Exception)), None):
            raise failed

    async def _reply(self, batch: _Batch, index: int) -> Generation:
        """The reply to one request, attempted until it is there, refused, or out of attempts."""
        request, capped, attempt, unreachable, misses, breaks, busy = batch.requests[index], True, 0, True, 0, True, 0
        body: Body | None = None
        while True:
            if hopeless := self._hopeless(batch, request, attempt):
                return hopeless
            if body is None or not body.pieces or body.version != self.dialect.version:
                body = await self._encoded(batch, request, capped, misses)
            outcome, began = await self._attempt(body, (id(batch), index) if busy < _MOST_BUSY else None)
            if isinstance(outcome, Reply):
                self._references.served(body.named, misses)
                reply = await self._read(batch, request, body, outcome)
                if body.roles[0] == "system" and not self.dialect.system_turn:
                    continue
                return reply
            refusal = outcome.refusal
            if refusal and body.named and names_miss(refusal.message):
                body, misses = None, misses + 1
                continue
            if refusal and await self._prober.taught(batch.codec, request, body, refusal):
                continue
            if isinstance(outcome, Refusal):
                if problem := self._replicas.refused(outcome.status, outcome.message, self._replies > 0):
                    batch.unusable, batch.mixed = problem, True
                elif capped and not outcome.unpaid and names_limit(outcome.message, outcome.fields):
                    capped, body = await self._prober.taught_limit(batch.codec, request, body), None
                elif body.named:
                    body, misses = None, NEVER
                elif await self._refused(batch, request, began, outcome) and body.version == self.dialect.version:
                    return _own(outcome)
                continue
            said = batch.problems[index] = outcome.problem
            if outcome.limited:
                busy, batch.last_reply = busy + outcome.overloaded, self._loop.time()
                if self._throttle.exhausted:
                    return Generation.failed("transport", f"{said}, and so all requests for a long time")
                continue
            if body.named and refusal and refusal.status == 500:  # it may fail at the name, and would each time
                body, misses = None, NEVER
            attempt, unreachable, breaks = attempt + 1, unreachable and outcome.unreachable, breaks and outcome.broken
            if batch.server_down or attempt == self._max_attempts:
                batch.server_down |= unreachable
                return await self._given_up(batch, request, f"{said}, after {attempt} attempts", breaks)
            await asyncio.sleep(_pause(attempt - 1, outcome.pause))

    async def _given_up(self, batch: _Batch, request: Request, said: str, breaks: bool) -> Generation:
        """The failure of a request that has no attempt left; `breaks` is whether the server broke at each."""
        if breaks and await self._prober.serves_no_shorter(batch.codec, request):
            return Generation.failed("refused", f"{said}; it serves harmless text of this length")
        return Generation.failed("transport", said)

    def _hopeless(self, batch: _Batch, request: Request, attempt: int) -> Generation | None:
        """Why a request is not sent at all, or not again."""
        if batch.unusable:
            return Generation.failed("engine", batch.unusable)
        if batch.server_down and not attempt:
            return Generation.failed("transport", f"not sent: the server at {self._where} is down")
        lacking = self.dialect.unsupported(request)
        return Generation.failed("unsupported", lacking) if lacking else None

    async def _read(self, batch: _Batch, request: Request, body: Body, outcome: Reply) -> Generation:
        """A completion as a reply; too few tokens of its prompt may be a dropped system turn, or a cut."""
        batch.served, self._wire.failed, self._last_reply = True, False, self._loop.time()
        self._prober.served()
        self._replies += 1
        reply = batch.codec.decode(outcome.body)
        if THINKING in body.fields and reply.completion_tokens > request.sampling.max_tokens:
            reply = replace(reply, closed=True)
        if problem := self._replicas.replied(outcome.body.get("model")):
            batch.unusable, batch.mixed = problem, True
        if body.kinds and (lost := await self._prober.dropped(batch.codec, body.kinds, reply)):
            return Generation.failed("unsupported", f"the server at {self._where} shows its model no {lost}")
        if is_plausible(reply, request.prompt):
            return reply
        least = least_tokens(request.prompt)
        if reply.prompt_tokens < _SUSPICIOUS * least:
            await self._prober.check_system_turn(batch.codec)
        return whole(reply, least)

    async def _encoded(self, batch: _Batch, request: Request, capped: bool, misses: int) -> Body:
        codec = batch.codec
        if not request.prompt.media:
            return codec.encode(request, self.dialect, capped)
        nameable = codec.nameable(request)
        named = await self._references.turn(nameable, misses)
        if making := [batch.making[one] for one in named if one in batch.making]:
            await asyncio.wait(making)  # the name must not be there before the bytes
            named = await self._references.turn(nameable, misses)
        await self._room.enter()
        held = 0
        try:
            for media in codec.unmade(request, self.dialect, named):
                await self._made(batch, media)
            body = codec.encode(request, self.dialect, capped, named)
            body.held = held = body.size if body.size > LARGE else 0
        finally:
            self._room.leave(EXPECTED - held)
        return body

    async def _made(self, batch: _Batch, media: Media) -> None:
        """Encodes an image, once for all requests with it: that takes long, and must not hold up the others."""
        making = batch.making.get(media)
        if making is None:
            making = batch.making[media] = self._loop.run_in_executor(self._encoders, batch.codec.made, media)
            making.add_done_callback(lambda _: batch.making.pop(media))  # the codec keeps it, and only the last ones
        await asyncio.shield(making)
        self._references.made(media)

    def _sent(self, body: Body) -> None:
        """Gives up what a large body with media holds."""
        if body.held:
            self._room.leave(body.held)
            body.held, body.pieces = 0, ()

    async def _attempt(self, body: Body, row: object = None) -> tuple[Answer, float]:
        """What the server says, and when the attempt began; `row` names its request, where a 503 may be a rate limit.

        It is one if the server serves others, many answers are such, and the one before was another request's: else it
        is a fault.
        """
        try:
            began = await self._throttle.enter()
            try:
                found = await self._wire.post(body, self._timeout, self._sent)
            finally:
                self._throttle.leave()
        finally:
            self._sent(body)
        if isinstance(found, Reply):
            self._throttle.served()
            self._busy *= 1 - _WEIGHT
        elif isinstance(found, Passing):
            if found.limited:
                self._throttle.limited(began, found.pause)
            elif found.overloaded and row is not None:
                last, self._overloaded, self._busy = self._overloaded, row, self._busy + _WEIGHT * (1 - self._busy)
                recent = self._last_reply > self._loop.time() - _BUSY_S
                if recent and row != last and self._busy > _BUSY_SHARE:
                    found = replace(found, limited=True)
                    self._throttle.overloaded(began, found.pause)
        return found, began

    async def _refused(self, batch: _Batch, request: Request, began: float, refusal: Refusal) -> bool:
        """Whether a refusal is this request's own: else the server is unusable, or a field of it was found."""
        if not batch.unusable:
            every = await self._prober.refusal_of_all(batch.codec, request, began, refusal.status)
            batch.unusable = "" if every is None else self._unusable(every)
        return not batch.unusable

    def _unusable(self, refusal: Refusal) -> str:
        if refusal.status == 401:
            return self._key_rejected(401)
        said = f"the server at {self._where} answered {refusal.status}: {refusal.message}"
        if refusal.status == 404 and self._listed is not None:
            return f"{said}. It lists the models: {', '.join(str(entry['id']) for entry in self._listed) or 'none'}"
        key = f"the API key ({self._wire.key_advice}), " if refusal.status == 403 else ""
        return f"{said}, to a harmless request, too: look at {key}the model's name, the account and the address"

    def _key_rejected(self, status: int) -> str:
        return f"the server at {self._where} rejected the API key ({status}): {self._wire.key_advice}"


def _own(refusal: Refusal) -> Generation:
    """The failure of a request that the server refuses while it serves others."""
    # The rest of a credit pays for short rows only: these are no better for it.
    kind: FailureKind = "engine" if refusal.unpaid else "refused"
    return Generation.failed(kind, f"the server answered {refusal.status}: {refusal.message}")


def _unanswered(batch: _Batch, index: int) -> Generation:
    last = f"; last: {batch.problems[index]}" if batch.problems[index] else ""
    return Generation.failed("timeout", f"no reply, and none to any other request for {batch.stall_timeout:g} s{last}")


def _pause(attempt: int, demanded: float | None) -> float:
    """Seconds before the next attempt: 0.5, 1, 2, 4, 8, 8.. with half of it random, or what the server demands."""
    if demanded is None:
        return min(8.0, 0.5 * 2.0**attempt) * random.uniform(0.5, 1.0)
    return max(0.0, min(demanded, LONGEST_PAUSE_S)) * random.uniform(1.0, 1.1)
