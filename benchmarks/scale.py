"""A plan past these machines: 8 to 512 judges, 10^6 to 10^9 verdicts a day, by a simulation of discrete events.

    python benchmarks/scale.py check    the simulation against real runs: records simulation.error_percent (3 minutes)
    python benchmarks/scale.py plan     the tables of SCALE.md and results/scale.png (5 minutes)

A verdict's way: one of our processes prepares it (one core, one at a time) and looks into the cache; what is new goes
over the network and through the router to the judge with the fewest requests, waits there until one of its slots is
free, and is decoded there with the others; then its process reads the reply. A process has so many requests in flight
and no more. Where the time of a judge's step grows with its requests, all of them become slower, as in vLLM.

`check` judges the same rows with `Judge` on `ServerEngine` against a server of known speed: 2 replicas with slots,
whose steps last `base + slope * requests` seconds, and rows of known lengths. The unit costs of `plan` are in COSTS and
GPU, each with its source.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import re
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from figures import record

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Setup:
    """What is simulated. Times in seconds, work in steps (tokens)."""

    judges: int
    slots: int  # requests that one judge decodes at once
    step: Callable[[int], float]  # how long a step lasts with so many requests in it
    processes: int = 1
    in_flight: int = 64  # of one process
    prepare: float = 0.0  # our CPU before the request, and after the reply
    read: float = 0.0
    look: float = 0.0  # our CPU for a verdict from the cache
    hits: float = 0.0  # the share of these
    route: float = 0.0  # the router's time for one request
    send: float = 0.0  # the network's


@dataclass
class Station:
    """A place that serves one at a time, in order."""

    free_at: float = 0.0
    busy: float = 0.0

    def serve(self, now: float, seconds: float) -> float:
        """When this one is done."""
        self.free_at = max(now, self.free_at) + seconds
        self.busy += seconds
        return self.free_at


@dataclass
class Replica:
    """A judge: what it decodes shares its speed, so that time is counted in steps that each of them has done."""

    done: float = 0.0  # steps since the start
    since: float = 0.0
    ends: list[tuple[float, int]] = field(default_factory=list)  # at which step a request ends, and its process
    queue: deque[tuple[float, int]] = field(default_factory=deque)
    full: float = 0.0  # the integral of the share of slots in use
    version: int = 0

    def advance(self, now: float, setup: Setup) -> None:
        """Decodes until now."""
        if self.ends:
            self.done += (now - self.since) / setup.step(len(self.ends))
            self.full += (now - self.since) * len(self.ends) / setup.slots
        self.since = now

    def next_end(self, setup: Setup) -> float:
        """When the next request ends, if none comes."""
        return self.since + max(0.0, self.ends[0][0] - self.done) * setup.step(len(self.ends))


@dataclass(frozen=True)
class Outcome:
    """What a simulated run took; and in the middle half of its verdicts, how fast and how busy it was."""

    seconds: float
    per_s: float
    busy: dict[str, float]  # the share of the time that each part worked

    @property
    def limit(self) -> str:
        """The busiest part; where none is busy, our limit of requests in flight."""
        name, share = max(self.busy.items(), key=lambda one: one[1])
        return name if share > 0.9 else "requests in flight"


def simulate(setup: Setup, work: Sequence[Sequence[float]], seed: int = 0) -> Outcome:
    """Runs all rows to their end. `work` has, for each process, the steps of each of its rows, in order."""
    draw = random.Random(seed)
    ours, router, network = [Station() for _ in work], Station(), Station()
    replicas = [Replica() for _ in range(setup.judges)]
    least = [(0, draw.random(), number) for number in range(setup.judges)]
    loads = [0] * setup.judges
    heapq.heapify(least)
    left = [iter(rows) for rows in work]
    events: list[tuple[float, int, str, int, float]] = []
    count = made = 0

    def at(time: float, kind: str, who: int, steps: float = 0.0) -> None:
        nonlocal count
        count += 1
        heapq.heappush(events, (time, count, kind, who, steps))

    def start(now: float, process: int) -> None:
        """The next row of a process, past those that the cache has."""
        for steps in left[process]:
            if setup.hits and draw.random() < setup.hits:
                now = ours[process].serve(now, setup.look)
                nonlocal made
                made += 1
                continue
            at(ours[process].serve(now, setup.prepare), "send", process, steps)
            return

    def watch(number: int) -> None:
        replicas[number].version += 1
        if replicas[number].ends:
            at(replicas[number].next_end(setup), "end", number, replicas[number].version)

    def snapshot(now: float) -> tuple[float, float, dict[str, float]]:
        busy = {
            "our Python": sum(one.busy for one in ours) / len(ours),
            "router": router.busy,
            "network": network.busy,
            "judges": sum(one.full for one in replicas) / len(replicas),
        }
        return now, made, busy

    for process in range(len(work)):
        for _ in range(setup.in_flight):
            start(0.0, process)
    now, total, middle = 0.0, sum(map(len, work)), [snapshot(0.0)]
    while events:
        if made >= total * (0.25, 0.75, 2)[len(middle) - 1]:  # two of the four rounds
            middle.append(snapshot(now))
        now, _, kind, who, steps = heapq.heappop(events)
        if kind == "send":
            at(router.serve(network.serve(now, setup.send), setup.route), "arrive", who, steps)
        elif kind == "arrive":
            while least[0][0] != loads[least[0][2]]:  # its load has changed since
                heapq.heappop(least)
            number = heapq.heappop(least)[2]
            loads[number] += 1
            heapq.heappush(least, (loads[number], draw.random(), number))
            replica = replicas[number]
            replica.advance(now, setup)
            if len(replica.ends) < setup.slots:
                heapq.heappush(replica.ends, (replica.done + steps, who))
                watch(number)
            else:
                replica.queue.append((steps, who))
        elif kind == "end" and replicas[who].version == steps:
            replica = replicas[who]
            replica.advance(now, setup)
            _, process = heapq.heappop(replica.ends)
            if replica.queue:
                steps, waiting = replica.queue.popleft()
                heapq.heappush(replica.ends, (replica.done + steps, waiting))
            loads[who] -= 1
            heapq.heappush(least, (loads[who], draw.random(), who))
            watch(who)
            at(ours[process].serve(now, setup.read), "read", process)
        elif kind == "read":
            made += 1
            start(now, who)
    (began, before, idle), (ended, after, worked) = middle[1], middle[2]
    busy = {name: (worked[name] - idle[name]) / (ended - began) for name in idle}
    return Outcome(now, (after - before) / (ended - began), busy)


REPLICAS, SLOTS = 2, 16
LAWS = {"steps of one length": (0.04, 0.0), "steps that grow": (0.024, 0.0016)}  # base and slope
IN_FLIGHT = (4, 16, 32, 64)
CHECKED = 320  # rows


def steps_of(number: int) -> int:
    """The length of a row's reply: as lengths are, most are short and few are long."""
    return max(1, round(random.Random(number).lognormvariate(2.0, 0.6)))


def server_of(base: float, slope: float) -> Any:
    """A server whose replicas decode as the simulation's judges do."""
    from support.fault_server import FaultServer, reply

    class Replicas(FaultServer):
        def __init__(self) -> None:
            super().__init__()
            self.active, self.free = [0] * REPLICAS, [asyncio.Semaphore(SLOTS) for _ in range(REPLICAS)]
            self.load = [0] * REPLICAS

        async def _answer(self, request: Any) -> Any:
            from aiohttp import web

            named = re.search(r"item (\d+)", await request.text())
            steps = steps_of(int(named[1])) if named else 0  # the engine asks what kind of server this is
            number = min(range(REPLICAS), key=self.load.__getitem__)
            self.load[number] += 1
            async with self.free[number]:
                self.active[number] += 1
                loop = asyncio.get_running_loop()
                due = loop.time()
                for _ in range(steps):
                    due += base + slope * self.active[number]  # an absolute time: a late wake-up is not added up
                    await asyncio.sleep(due - loop.time())
                self.active[number] -= 1
            self.load[number] -= 1
            return web.Response(text=reply("<think>so</think><answer>7</answer>"), content_type="application/json")

    return Replicas()


def real(engine: Any, cache: Path | None) -> float:
    """The seconds that `Judge` needs for the rows; with a cache, every second one of them was judged before."""
    from flexjudge_reward import CachedEngine, Example, Judge, Pointwise

    rows = [Example(f"item {number} .", ["an answer"]) for number in range(CHECKED)]
    with Judge(Pointwise(), engine if cache is None else CachedEngine(engine, cache)) as judge:
        judge(rows[::2] if cache else rows[:1])  # the server is found, and half of the cache is filled
        start = perf_counter()
        verdicts = judge(rows)
        seconds = perf_counter() - start
    assert not any(verdict.failure for verdict in verdicts)
    return seconds


def check() -> None:
    """Records the largest error over the laws, the requests in flight, and a cache."""
    from flexjudge_reward import ScriptedEngine, ServerEngine

    sys.path.insert(0, str(HERE.parent / "tests"))
    errors = []
    for name, (base, slope) in LAWS.items():
        for in_flight in IN_FLIGHT:
            for cached in (False, True):
                with server_of(base, slope) as server, tempfile.TemporaryDirectory() as folder:
                    caches = [Path(folder, name) if cached else None for name in ("own.sqlite", "real.sqlite")]
                    own = real(ScriptedEngine(lambda request: "<think>so</think><answer>7</answer>"), caches[0])
                    seconds = real(ServerEngine(server.url, concurrency=in_flight), caches[1])
                setup = Setup(REPLICAS, SLOTS, lambda b, base=base, slope=slope: base + slope * b, in_flight=in_flight)
                setup = replace(setup, prepare=COSTS["text"] / 2, read=COSTS["text"] / 2)
                work = [float(steps_of(number)) for number in range(CHECKED) if not cached or number % 2]
                # One call prepares all its rows before it sends the first: that part was measured just now.
                expected = own + simulate(setup, [work]).seconds
                errors.append(100 * (expected - seconds) / seconds)
                what = "half of it cached" if cached else "nothing cached"
                print(f"{name}, {in_flight} in flight, {what}: {seconds:.2f} s, simulated {expected:.2f} s,"
                      f" {errors[-1]:+.1f} %", flush=True)  # fmt: skip
    note = f"largest of {len(errors)} runs; mean {sum(map(abs, errors)) / len(errors):.1f}: {REPLICAS} replicas of"
    note += f" {SLOTS} slots, {IN_FLIGHT} requests in flight, {CHECKED} rows, two laws of speed, with and without cache"
    record("simulation.error_percent", max(map(abs, errors)), unit="percent", target="<= 10", note=note)


COSTS = {"text": 200e-6, "image": 1.8e-3, "cached": 100e-6, "route": 100e-6}
"""Seconds of our CPU for a verdict, a verdict from the cache, and the router's: SCALE.md has the sources."""
WIRE = {"text": 8e3, "image": 507e3}  # bytes of a request and its reply; a 448 x 448 PNG of 374 KB as base64
NETWORK = 10e9 / 8  # bytes per second, of all our nodes together
ROW_BYTES, WRITES = 2116, 3590  # of the cache: a row, and operations per second on one file
REPLY, SLOTS_OF_A_JUDGE = 400, 256  # tokens; requests that a judge decodes at once
WEIGHTS, KV, BANDWIDTH, FLOPS = 15.2e9, 57_344, 0.7 * 3.35e12, 0.5 * 989e12
FRESH = {"text": 306, "image": 338}  # prompt tokens that no other candidate of the group has brought
READ = {"text": 900, "image": 1156}  # tokens in the KV cache of a request, on average
JUDGES, DEMANDS, HITS, SPARE = (8, 32, 128, 512), (10**6, 10**7, 10**8, 10**9), (0.0, 0.3, 0.7), 0.8


def gpu_step(kind: str) -> Callable[[int], float]:
    """How long one step of a 7B judge lasts: its weights and caches are read once, and new prompts are taken in."""
    prefill = FRESH[kind] * WEIGHTS / FLOPS / REPLY  # 2 operations for a weight of 2 bytes
    return lambda b: (WEIGHTS + b * READ[kind] * KV) / BANDWIDTH + b * prefill


def setup_of(judges: int, kind: str, hits: float, processes: int, in_flight: int, routers: int) -> Setup:
    return Setup(
        judges,
        SLOTS_OF_A_JUDGE,
        gpu_step(kind),
        processes,
        in_flight,
        prepare=0.7 * COSTS[kind],
        read=0.3 * COSTS[kind],
        look=COSTS["cached"],
        hits=hits,
        route=COSTS["route"] / routers,
        send=WIRE[kind] / (NETWORK * processes),
    )


def simulated(setup: Setup) -> Outcome:
    """A run of four rows for each request in flight, and more with a cache, whose replies differ in length."""
    draw = random.Random(1)
    rows = max(int(4 * setup.in_flight / (1 - setup.hits)), 2000 // setup.processes)
    lengths = [[REPLY * draw.lognormvariate(-0.125, 0.5) for _ in range(rows)] for _ in range(setup.processes)]
    return simulate(setup, lengths)


WAYS: dict[str, tuple[str, float, Callable[[int], tuple[int, int, int]]]] = {
    "text, as installed: one process, 64 in flight": ("text", 0.0, lambda n: (1, 64, 1)),
    "text, one process, concurrency 320 for each judge": ("text", 0.0, lambda n: (1, 320 * n, 1)),
    "text, one process and one router for each 64 judges": ("text", 0.0, lambda n: _apart(n, 64)),
    "the same, half of it in the cache": ("text", 0.5, lambda n: _apart(n, 64)),
    "images, one process, concurrency 320 for each judge": ("image", 0.0, lambda n: (1, 320 * n, 1)),
    "images, one process for each 8 judges": ("image", 0.0, lambda n: _apart(n, 8)),
}


def _apart(judges: int, each: int) -> tuple[int, int, int]:
    processes = -(-judges // each)
    return processes, 320 * judges // processes, -(-judges // 64)


def plan() -> None:
    """Writes the tables and the plot."""
    found: dict[str, dict[int, Outcome]] = {}
    for name, (kind, hits, shape) in WAYS.items():
        found[name] = {}
        for judges in JUDGES:
            processes, in_flight, routers = shape(judges)
            found[name][judges] = simulated(setup_of(judges, kind, hits, processes, in_flight, routers))
            print(f"{name}: {judges} judges, {found[name][judges].per_s:,.0f}/s", flush=True)
    text, image = (found[list(WAYS)[row]][8].per_s / 8 for row in (2, 5))
    page = HERE / "SCALE.md"
    tables = _capacity(found), _purchase({"text": text, "image": image})
    parts = re.split(r"(<!-- table \d -->\n).*?(<!-- end -->)", page.read_text(), flags=re.DOTALL)
    body = "".join(f"{part}\n{tables[n // 3]}\n" if n % 3 == 1 else part for n, part in enumerate(parts))
    page.write_text(body)
    _plot(found)


def _capacity(found: dict[str, dict[int, Outcome]]) -> str:
    """Verdicts per second, and what is full."""
    lines = ["| verdicts per second, and what is full | " + " | ".join(f"{n} judges" for n in JUDGES) + " |"]
    lines.append("|---" * (len(JUDGES) + 1) + "|")
    for name, outcomes in found.items():
        cells = [f"{outcomes[n].per_s:,.0f}: {outcomes[n].limit}" for n in JUDGES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _purchase(each: dict[str, float]) -> str:
    """What a demand needs, at 80 % of what each part can do."""
    lines = ["| verdicts a day | kind | judges, with 0, 30 and 70 % in the cache | our processes | routers | Gbit/s |"
             " in flight | cache a day |", "|---" * 8 + "|"]  # fmt: skip
    for demand in DEMANDS:
        for kind, rate in each.items():
            per_s = demand / 86_400 / SPARE
            judges = [max(1, round(per_s * (1 - hits) / rate + 0.4999)) for hits in HITS]
            processes, routers = (max(1, round(per_s * COSTS[name] + 0.4999)) for name in (kind, "route"))
            flight = per_s / rate * SLOTS_OF_A_JUDGE
            cells = [f"{demand:,}", kind, ", ".join(f"{n:,}" for n in judges), f"{processes:,}", f"{routers:,}"]
            cells += [f"{per_s * WIRE[kind] * 8 / 1e9:.2g}", f"{flight:,.0f}", f"{demand * ROW_BYTES / 1e9:,.0f} GB"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _plot(found: dict[str, dict[int, Outcome]]) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), dpi=90)
    for (name, outcomes), style in zip(found.items(), ("-", "-", "-", "--", ":", "-."), strict=True):
        axes.loglog(list(outcomes), [one.per_s for one in outcomes.values()], style, marker="o", ms=3, label=name)
    axes.axhline(1e9 / 86_400, color="grey", lw=0.6)
    axes.annotate("10^9 a day", (JUDGES[0], 1.1e9 / 86_400), fontsize=7, color="grey")
    axes.set_ylim(10, 3e6)
    axes.set_xticks(JUDGES, map(str, JUDGES))
    axes.set_xlabel("judges (7B, one H100 each)")
    axes.set_ylabel("verdicts per second, simulated")
    axes.legend(fontsize=6, frameon=False)
    figure.tight_layout()
    figure.savefig(HERE / "results" / "scale.png")


if __name__ == "__main__":
    {"check": check, "plan": plan}[sys.argv[1]]()
