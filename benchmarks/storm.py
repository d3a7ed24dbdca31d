"""What a judge server's troubles cost: rows, tries, memory. All on loopback, through `ServerEngine`.

    python benchmarks/storm.py                       all four, recorded; about eight minutes on two busy cores
    python benchmarks/storm.py storm soak            some of them
    python benchmarks/storm.py soak --rows 5000      smaller, nothing recorded

    storm       10,000 requests; an attempt in five meets one of twenty faults: `storm.rows_lost`, `storm.tries_per_row`
    ratelimit   90 rows at a server that serves 60 requests a minute: `ratelimit.rows_lost`
    router      512 requests in flight through a router with two replicas, one dies and comes back: `router.rows_lost`
    soak        100,000 judgements, 5 % of the attempts fail: `soak.memory_drift_percent`; handles and threads

A row is lost if it has neither its own reply nor the failure that its fault has to give, which is none for a fault that
passes. The servers of storm and soak run in processes of their own, so that memory is the client's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from figures import record

from flexjudge_reward import Example, Generation, Judge, Message, Pointwise, Prompt, Request, ServerEngine, Untrusted
from support.fault_server import Fault, FaultServer

ROWS, SHARE = 10_000, 0.2
SOAK_ROWS, SOAK_SHARE, SOAK_BATCH = 100_000, 0.05, 1_000
FLIGHT = 512


def whole(content: Any, finish: str = "stop", **message: Any) -> str:
    """The JSON of a chat completion."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 500, "completion_tokens": 5}})


def error(status: int, message: str, **headers: str) -> Fault:
    """An answer that is an error."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault(status=status, headers=named, body=json.dumps({"error": {"message": message}}))


PASSING = {
    "500": error(500, "internal error"),
    "502 of a proxy": Fault(status=502, body="<html>Bad Gateway</html>"),
    "503 with a pause": error(503, "overloaded", Retry_After="0.2"),
    "504": Fault(status=504),
    "408": error(408, "request timeout"),
    "409": error(409, "conflict"),
    "529": error(529, "overloaded_error"),
    "429 with a pause": error(429, "too many requests", Retry_After_Ms="50"),
    "reset": Fault("reset"),
    "cut body": Fault("cut"),
    "empty body": Fault(),
    "a page": Fault(body="<html>Please wait</html>"),
    "half a JSON": Fault(body='{"choices": [{"message": {"content": "<think>'),
    "an error inside a 200": Fault(body='{"error": {"code": 503, "message": "no replica"}}'),
    "hang": Fault("hang"),
}
FINAL = {
    "moderated": (error(403, "this content was flagged by moderation"), "refused"),
    "too large": (error(413, "the request is too large"), "refused"),
    "filtered": (error(400, "the prompt triggered the content management policy"), "refused"),
    "malformed field": (Fault(body=whole("x", finish="whatever")), "engine"),
    "credit": (error(402, "this request exceeds the credit that is left"), "engine"),
}
FAULTS = [*PASSING, *FINAL]


def fault_of(name: str, nth: int, share: float, kinds: Sequence[str]) -> str | None:
    """Which fault the nth attempt of an item meets, the same in every process."""
    rng = random.Random(f"{name} {nth}")
    return rng.choice(kinds) if rng.random() < share else None


class StormServer(FaultServer):
    """Faults on a share of the attempts; keeps no requests."""

    def __init__(self, share: float, kinds: Sequence[str]) -> None:
        super().__init__()
        self.share, self.kinds, self.requests = share, kinds, deque(maxlen=1)  # type: ignore[assignment]

    def respond(self, name: str, body: dict[str, Any]) -> Fault | None:
        kind = fault_of(name, self.attempts[name], self.share, self.kinds) if name else None
        if kind is None:
            return Fault(body=whole(f"<think>{name}</think><answer>7</answer>"))
        return PASSING[kind] if kind in PASSING else FINAL[kind][0]


def _run(pipe: Any, share: float, kinds: Sequence[str]) -> None:
    with StormServer(share, kinds) as server:
        pipe.send(server.url)
        while pipe.recv():
            pipe.send(sum(server.attempts.values()))


@contextmanager
def apart(share: float, kinds: Sequence[str]) -> Iterator[tuple[str, Callable[[], int]]]:
    """A storm server in a process of its own: its address, and how many attempts it has seen."""
    pipe, other = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(other, share, kinds), daemon=True)
    process.start()

    def attempts() -> int:
        pipe.send("attempts")
        return int(pipe.recv())

    try:
        yield pipe.recv(), attempts
    finally:
        process.terminate()
        process.join(20)


def requests(count: int) -> list[Request]:
    """One request per item; the reply to it has the item's name."""
    return [Request(Prompt((Message("user", (Untrusted(f"Please judge item {n} "),)),))) for n in range(count)]


def lost(replies: Sequence[Generation], expected: Callable[[int], str | None]) -> Counter[str]:
    """The rows that have neither their own reply nor the failure that is expected of them, by what they have."""
    wrong: Counter[str] = Counter()
    for number, reply in enumerate(replies):
        kind, right = reply.failure and reply.failure.kind, expected(number)
        if kind != right:
            wrong[f"{kind} for {right}: {reply.failure and reply.failure.detail[:60]}"] += 1
        elif kind is None and reply.text != f"<think>item {number}</think><answer>7</answer>":
            wrong["the reply to another row"] += 1
    return wrong


def end_of(number: int) -> str | None:
    """The failure that an item ends in: that of the first attempt which does not pass."""
    nth = 0
    while (kind := fault_of(f"item {number}", nth, SHARE, FAULTS)) in PASSING:
        nth += 1
    return FINAL[kind][1] if kind is not None else None


def storm(put: Callable[..., None], rows: int) -> None:
    """Twenty kinds of fault."""
    with apart(SHARE, FAULTS) as (url, attempts), ServerEngine(url, timeout=3.0) as engine:
        start = time.perf_counter()
        replies = engine.generate(requests(rows))
        seconds, tries = time.perf_counter() - start, attempts() / rows
    wrong = lost(replies, end_of)
    typed = Counter(reply.failure.kind for reply in replies if reply.failure)
    print(f"{seconds:.0f} s; typed {dict(typed)}; wrong {dict(wrong)}")
    note = f"{rows} requests, {len(FAULTS)} kinds of fault on {SHARE:.0%} of the attempts, {seconds:.0f} s"
    put("storm.rows_lost", wrong.total(), unit="rows", target="<= 0", note=note)
    put("storm.tries_per_row", tries, unit="attempts", target="<= 1.35", note=note)


class Limited(FaultServer):
    """Serves one request per second, and refuses the others."""

    due = 0.0

    def respond(self, name: str, body: dict[str, Any]) -> Fault | None:
        now = time.monotonic()
        if now < self.due:
            return error(429, "Rate limit reached: 60 requests per minute")
        self.due = max(self.due + 1.0, now)
        return Fault(body=whole(f"<think>{name}</think><answer>7</answer>"))


def ratelimit(put: Callable[..., None], rows: int) -> None:
    """A steady 60 requests a minute."""
    start = time.perf_counter()
    with Limited() as server, ServerEngine(server.url) as engine:
        replies = engine.generate(requests(rows))
    seconds, wrong = time.perf_counter() - start, lost(replies, lambda number: None)
    print(f"{seconds:.0f} s, {server.attempts.total()} attempts; wrong {dict(wrong)}")
    note = f"{rows} rows, {seconds:.0f} s, {server.attempts.total() / rows:.1f} attempts per row"
    put("ratelimit.rows_lost", wrong.total(), unit="rows", target="<= 0", note=note)


class Router(FaultServer):
    """Sends every request to the next of its replicas; one that is not there is a 502."""

    def __init__(self, replicas: Sequence[str]) -> None:
        super().__init__()
        self.replicas, self.turn, self.broken = replicas, 0, 0

    async def _answer(self, request: Any) -> Any:
        import aiohttp
        from aiohttp import web

        self.turn += 1
        url = self.replicas[self.turn % len(self.replicas)] + "/chat/completions"
        try:
            async with aiohttp.request("POST", url, data=await request.read()) as answer:
                return web.Response(status=answer.status, body=await answer.read())
        except (TimeoutError, aiohttp.ClientError, OSError):
            self.broken += 1
            return web.Response(status=502, text="<html>Bad Gateway</html>")


class Replica(FaultServer):
    """Replies after a while; dies at its `dies`th request."""

    def __init__(self, dies: int | None = None, port: int = 0) -> None:
        super().__init__(delay=0.3, port=port)
        self.dies, self.seen, self.requests = dies, 0, deque(maxlen=1)  # type: ignore[assignment]

    def respond(self, name: str, body: dict[str, Any]) -> Fault | None:
        self.seen += 1
        return Fault("die") if self.seen == self.dies else Fault(body=whole(f"<think>{name}</think><answer>7</answer>"))


def router(put: Callable[..., None], rows: int) -> None:
    """Two replicas behind a router; one dies in the middle and comes back after three seconds."""
    import threading

    with Replica() as stays, Replica(dies=rows // 8) as first, Router([stays.url, first.url]) as front:

        def revive() -> None:
            first._thread.join()
            time.sleep(3)
            again.__enter__()

        again = Replica(port=first.port)
        helper = threading.Thread(target=revive)
        helper.start()
        start = time.perf_counter()
        with ServerEngine(front.url, concurrency=FLIGHT) as engine:
            replies = engine.generate(requests(rows))
        seconds = time.perf_counter() - start
        helper.join()
        with suppress(Exception):
            again.__exit__()
    wrong = lost(replies, lambda number: None)
    served = f"{first.seen} and then {again.seen} by the one that died, {stays.seen} by the other"
    print(
        f"{seconds:.0f} s, most in flight {front.most_in_flight}, broken {front.broken}; {served}; wrong {dict(wrong)}"
    )
    note = (
        f"{rows} rows, {front.most_in_flight} in flight, {front.broken} connections broken; {served}; {seconds:.0f} s"
    )
    put("router.rows_lost", wrong.total(), unit="rows", target="<= 0", note=note)


def soak(put: Callable[..., None], rows: int) -> None:
    """Memory, handles and threads of a long run."""
    import psutil

    process, kinds = psutil.Process(), [kind for kind in PASSING if kind not in ("hang", "429 with a pause")]
    memory, handles, threads, failed = [], [], [], 0
    start = time.perf_counter()
    with apart(SOAK_SHARE, [*kinds, *FINAL]) as (url, _), ServerEngine(url) as engine:
        judge = Judge(Pointwise(), engine)
        for first in range(0, rows, SOAK_BATCH):
            verdicts = judge([Example("Please judge", [f"item {n} "]) for n in range(first, first + SOAK_BATCH)])
            failed += sum(verdict.failure is not None for verdict in verdicts)
            assert all(v.failure or v.reasoning == f"item {first + n}" for n, v in enumerate(verdicts))
            memory.append(process.memory_info().rss / 2**20)
            handles.append(process.num_fds())
            threads.append(process.num_threads())
    warm, tenth = len(memory) // 5, max(1, len(memory) // 10)
    before, after = statistics.median(memory[warm : warm + tenth]), statistics.median(memory[-tenth:])
    flat = [
        f"{name} {min(values[warm:])} to {max(values[warm:])}"
        for name, values in (("handles", handles), ("threads", threads))
    ]
    seconds = time.perf_counter() - start
    note = f"{rows} judgements, {failed} typed failures, {before:.1f} to {after:.1f} MiB, {', '.join(flat)}"
    note += f", {seconds:.0f} s"
    print(note)
    put("soak.memory_drift_percent", 100 * (after / before - 1), unit="percent", target="<= 5", note=note)


PARTS = {"storm": (storm, ROWS), "ratelimit": (ratelimit, 90), "router": (router, 4_000), "soak": (soak, SOAK_ROWS)}


def main() -> None:
    """Runs the named parts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=[], choices=[*PARTS, []])
    parser.add_argument("--rows", type=int, help="a smaller size; nothing is recorded")
    options = parser.parse_args()
    put = record if options.rows is None else lambda name, value, **_: print(f"{name} = {value:g}")
    for name in options.parts or PARTS:
        part, rows = PARTS[name]
        print(f"{name}:", flush=True)
        part(put, options.rows or rows)


if __name__ == "__main__":
    main()
