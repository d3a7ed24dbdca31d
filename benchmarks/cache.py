"""The cache under stress: processes killed while writing, bits flipped in the file, eight processes at once.

    python benchmarks/cache.py            everything, about three minutes; appends the figures
    python benchmarks/cache.py kills cap  some parts of: kills, damage, contention, openings, cap, warm
    python benchmarks/cache.py growth     one file with 10 million rows, 4 GB and up to an hour; ROWS=100000 for fewer

* kills: rounds of 4 writers and 1 reader on one file, all killed with SIGKILL. A writer notes each key after `put`
  returned. cache.lost_acknowledged counts noted keys that are not served afterwards.
* damage: single bits flipped, files cut, side files deleted, files of other kinds put in the place of the cache.
  cache.wrong_served counts replies that differ from what was stored, here and in every other part.
* contention: 8 processes with 5,000 operations each, half of them reading, half of them with a new request (a lookup
  that misses, then a write). cache.ops_per_s_8_processes counts `generate` calls with one request.
* openings: 200 processes open and use one new file at the same moment.
* warm: one process judges 20,000 texts again. cache.verdicts_per_s counts verdicts per second of its CPU time.
* growth: the CPU time of each operation with ten million rows against that with ten thousand. The new rows of a batch
  are real ones, about questions of their own. cache.slowdown_10m is the largest ratio.
* cap: a file limited to 100 MB is fed ten times that; the largest size ever seen is printed.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from figures import record

from flexjudge_reward import (
    CachedEngine,
    Engine,
    Example,
    Generation,
    Judge,
    Message,
    Pointwise,
    Prompt,
    Request,
    Untrusted,
    Verdict,
)
from flexjudge_reward.engines.cache.keys import keys_of

SPAWN = multiprocessing.get_context("spawn")
FORK = multiprocessing.get_context("fork")  # where fresh interpreters would never meet, or take all the time


class Echo(Engine):
    """A judge without a lock, whose only right reply follows from the request. It keeps no requests, as
    `ScriptedEngine` does: each costs time in every pass of Python's garbage collector."""

    def __init__(self, reply: str = "") -> None:
        self.reply = reply  # to every request instead

    def identity(self) -> dict[str, object]:
        return {"engine": "echo", "model": "echo"}

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        return [Generation(self.reply or reply_to(request)) for request in requests]


def ask(name: str) -> Request:
    return Request(Prompt((Message("user", ("Judge this.", Untrusted(name))),)))


def reply_to(request: Request) -> str:
    """About the length of a judge's reply."""
    name = request.prompt.messages[0].parts[1]
    assert isinstance(name, Untrusted)
    return f"<think>{name.text} {'because ' * 120}</think><answer>7</answer>"


def check(engine: CachedEngine, names: Sequence[str]) -> tuple[int, int]:
    """(not served, wrongly served) of `names`."""
    requests = [ask(name) for name in names]
    replies = engine.generate(requests)
    wrong = sum(reply.text != reply_to(request) for request, reply in zip(requests, replies, strict=True))
    return sum(not reply.cached for reply in replies), wrong


# ---- kills


def write_until_killed(path: Path, notes: Path, tag: str) -> None:
    engine = CachedEngine(Echo(), path)
    with notes.open("a", buffering=1) as file:
        for i in range(10**9):
            names = [f"{tag}-{i}-{j}" for j in range(1 + i % 8)]
            engine.generate([ask(name) for name in names])
            if engine.stats.stored:
                file.write(" ".join(names) + "\n")


def read_until_killed(path: Path, notes: Path, tag: str) -> None:
    engine = CachedEngine(Echo(), path)
    while True:
        check(engine, [f"{tag.replace('r', str(random.randrange(4)))}-{random.randrange(50)}-0" for _ in range(8)])


def kills(folder: Path, rounds: int = 100, writers: int = 4) -> tuple[int, int, int]:
    """(acknowledged, lost, wrong)."""
    path, acknowledged, lost, wrong, slowest = folder / "replies.sqlite", 0, 0, 0, 0.0
    for number in range(rounds):
        workers = [
            FORK.Process(target=write_until_killed, args=(path, folder / f"{number}-{i}", f"{number}-{i}"))
            for i in range(writers)
        ]
        workers.append(FORK.Process(target=read_until_killed, args=(path, folder / "none", f"{number}-r")))
        for worker in workers:
            worker.start()
        wait_for([folder / f"{number}-{i}" for i in range(writers)])
        time.sleep(random.uniform(0.02, 0.3))
        for worker in workers:
            os.kill(worker.pid or 0, signal.SIGKILL)
        for worker in workers:
            worker.join()
        names = [name for i in range(writers) for name in whole_lines(folder / f"{number}-{i}")]
        engine, start = CachedEngine(Echo(), path), time.perf_counter()
        engine.store.get([b"x" * 32])
        slowest = max(slowest, time.perf_counter() - start)
        missing, bad = check(engine, names)
        acknowledged, lost, wrong = acknowledged + len(names), lost + missing, wrong + bad
        engine.close()
    assert not list(folder.glob("*.damaged-*")), "a kill damaged the file"
    print(f"kills: {rounds} rounds, {acknowledged} acknowledged, {lost} lost, {wrong} wrong, opened in {slowest:.2f} s")
    return acknowledged, lost, wrong


def wait_for(paths: Sequence[Path]) -> None:
    deadline = time.monotonic() + 60
    while not all(path.exists() and path.stat().st_size for path in paths):
        assert time.monotonic() < deadline, "the writers did not start"
        time.sleep(0.005)


def whole_lines(path: Path) -> list[str]:
    text = path.read_text()
    return text[: text.rfind("\n") + 1].split()


# ---- damage


def damage(folder: Path, flips: int = 600, cuts: int = 100, deleted: int = 50, foreign: int = 20) -> int:
    """Wrongly served replies, after every kind of damage."""
    good = folder / "good.sqlite"
    names = [f"name {i}" for i in range(60)]
    engine = CachedEngine(Echo(), good)
    for start in range(0, 60, 20):
        engine.generate([ask(name) for name in names[start : start + 20]])
    engine.close()
    rng = random.Random(0)
    cases: list[tuple[str, Callable[[Path], object]]] = [
        *[("bit flips", lambda path: flip(path, rng))] * flips,
        *[("cuts", lambda path: os.truncate(path, rng.randrange(1, path.stat().st_size)))] * cuts,
        *[("deleted side files", lambda path: use_and_delete(path, rng))] * deleted,
        *[("foreign files", lambda path: path.write_bytes(foreign_file(rng)))] * foreign,
    ]
    tally: dict[str, list[int]] = {}
    for number, (kind, harm) in enumerate(cases):
        path = folder / f"{number}" / "replies.sqlite"
        path.parent.mkdir()
        shutil.copy(good, path)
        harm(path)
        wrong, missing = harmed(path, names)
        aside = len(list(path.parent.glob("*.damaged-*")))
        tally[kind] = [a + b for a, b in zip(tally.get(kind, [0] * 4), [1, wrong, missing, aside], strict=True)]
        shutil.rmtree(path.parent)
    for kind, (count, wrong, missing, aside) in tally.items():
        print(f"damage: {count} {kind}: {wrong} wrong, {missing} of {count * 60} missed, {aside} files set aside")
    return sum(wrong for _, wrong, _, _ in tally.values())


def harmed(path: Path, names: Sequence[str]) -> tuple[int, int]:
    """(wrong, missed at first) on a harmed file, which must soon serve every request again."""
    engine = CachedEngine(Echo(), path)
    tries = [check(engine, names) for _ in range(3)]  # a wrong page size in the header shows only after writing
    assert tries[-1][0] == 0 or engine.store._paused, "a repaired cache does not serve"
    engine.close()
    return sum(wrong for _, wrong in tries), tries[0][0]


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def use_and_delete(path: Path, rng: random.Random) -> None:
    """Deletes a side file under a process that has the cache open and continues to use it."""
    engine = CachedEngine(Echo(), path)
    check(engine, [f"before {i}" for i in range(5)])
    path.with_name(path.name + rng.choice(["-wal", "-shm"])).unlink()
    assert check(engine, [f"after {i}" for i in range(5)])[1] == 0
    engine.close()


def foreign_file(rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return b'{"question": "a data set in the wrong place"}\n' * 100
    if kind == 1:
        return rng.randbytes(5000)
    if kind == 2:
        return b"\0" * 8192
    with tempfile.TemporaryDirectory() as folder:
        with sqlite3.connect(f"{folder}/x") as db:
            db.execute("CREATE TABLE theirs (a)")
        db.close()
        return Path(f"{folder}/x").read_bytes()


# ---- contention


def mixed(path: Path, number: int, count: int, results: Any) -> None:
    engine, rng, wrong = CachedEngine(Echo(), path), random.Random(number), 0
    check(engine, ["warm"])
    results.put(None)
    start = time.time()
    for i in range(count):
        name = f"{rng.randrange(8)}-{rng.randrange(0, i, 2)}" if i % 2 else f"{number}-{i}"
        wrong += check(engine, [name])[1]
    results.put((start, time.time(), wrong, engine.store._warned))
    engine.close()


def contention(folder: Path, processes: int = 8, count: int = 5000) -> tuple[float, int]:
    """(operations per second, wrong)."""
    results = SPAWN.Queue()
    path = folder / "replies.sqlite"
    workers = [SPAWN.Process(target=mixed, args=(path, i, count, results)) for i in range(processes)]
    for worker in workers:
        worker.start()
    found = [entry for entry in (results.get(timeout=300) for _ in range(2 * processes)) if entry]
    for worker in workers:
        worker.join()
    assert not any(warned for _, _, _, warned in found), f"a process gave up its cache: {found}"
    seconds = max(end for _, end, _, _ in found) - min(start for start, _, _, _ in found)
    rate, wrong = processes * count / seconds, sum(wrong for _, _, wrong, _ in found)
    print(f"contention: {processes} processes x {count}: {rate:.0f} per second, {wrong} wrong, no process gave up")
    return rate, wrong


def open_once(path: Path, start: Any, results: Any) -> None:
    engine = CachedEngine(Echo(), path)
    start.wait()
    before = time.perf_counter()
    _, wrong = check(engine, [f"{os.getpid()}"])
    results.put((time.perf_counter() - before, wrong, engine.stats.stored))
    engine.close()


def openings(folder: Path, processes: int = 200) -> int:
    """Wrong replies of processes that open a new file at the same moment."""
    start, results = FORK.Barrier(processes), FORK.Queue()
    path = folder / "replies.sqlite"
    workers = [FORK.Process(target=open_once, args=(path, start, results)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    stored = sum(stored for _, _, stored in found)
    print(f"openings: {stored} of {processes} stored at once, the slowest after {max(t for t, _, _ in found):.1f} s")
    assert stored == processes
    return sum(wrong for _, wrong, _ in found)


def cap(folder: Path, limit: int = 100_000_000, rows: int = 1_000) -> int:
    """Wrong replies of a file that is fed ten times its limit."""
    engine, largest, wrong, fed, number = CachedEngine(Echo(), folder / "replies.sqlite", limit), 0, 0, 0, 0
    start = time.perf_counter()
    while fed < 10 * limit:
        names = [f"{number}-{i}-" + "x" * 4000 for i in range(rows)]
        wrong += check(engine, names)[1]
        fed, number = fed + rows * 5000, number + 1
        largest = max(largest, engine.store.disk_bytes)
    missing, bad = check(engine, names)
    engine.close()
    seconds, megabytes = time.perf_counter() - start, largest / 1e6
    print(f"cap: {fed / 1e9:.1f} GB in {seconds:.0f} s, never above {megabytes:.1f} MB of {limit / 1e6:.0f}")
    assert missing == 0, "the newest replies were not kept"
    return wrong + bad


# ---- speed


def warm(folder: Path, rows: int = 20_000, rounds: int = 5) -> tuple[float, float, int]:
    """(verdicts per CPU-second, bytes a row, wrong)."""
    reply = "<think>Each part of the answer is right, and nothing is left out. It is short.</think><answer>7</answer>"
    engine = CachedEngine(Echo(reply), folder / "replies.sqlite")
    judge, rates = Judge(Pointwise(), engine), []
    examples = [
        Example(f"Question {number}: {'What is right here? ' * 8}", [f"answer {number}"]) for number in range(rows)
    ]
    for number in range(rounds + 1):
        # Else the garbage collector visits those of the round before, which takes a seventh of the time.
        verdicts: list[Verdict] = []
        start = time.process_time()
        verdicts = [verdict for at in range(0, rows, 1000) for verdict in judge(examples[at : at + 1000])]
        rates.append(rows / (time.process_time() - start))
        assert number == 0 or all(verdict.cached for verdict in verdicts)
    judge.close()
    size = (folder / "replies.sqlite").stat().st_size / rows
    wrong = sum(verdict.scores != (7.0,) for verdict in verdicts)
    print(f"warm: {', '.join(f'{rate:.0f}' for rate in rates[1:])} verdicts per CPU-second; {size:.0f} bytes a row")
    return statistics.median(rates[1:]), size, wrong


def growth(folder: Path) -> tuple[float, float, float]:
    """(the largest ratio of CPU times, seconds to open, bytes a row)."""
    few, many = 10_000, int(os.environ.get("ROWS", 10_000_000))
    path, times, filled = folder / "replies.sqlite", {}, 0
    for rows in (few, many):
        engine = CachedEngine(Echo(), path, 1 << 40)
        while filled < rows:
            engine.generate([ask(f"row {number}") for number in range(filled, filled + 500)])
            filled += 500
        engine.close()
        times[rows] = operations(path, filled)
        print(f"growth: {rows} rows: {times[rows]}", flush=True)
    ratios = {name: times[many][name] / times[few][name] for name in times[few] if name != "open"}
    print(f"growth: ratios {ratios}, {path.stat().st_size / filled:.0f} bytes a row")
    return max(ratios.values()), times[many]["open"], path.stat().st_size / filled


def operations(path: Path, rows: int, rounds: int = 40) -> dict[str, float]:
    """Microseconds of CPU a request, by operation; `open` in seconds. Pages come from the system's cache."""
    start = time.perf_counter()
    engine, rng = CachedEngine(Echo(), path, 1 << 40), random.Random(1)
    engine.store.get([b"x" * 32])
    found: dict[str, list[float]] = {"open": [time.perf_counter() - start]}
    for number in range(rounds):
        cases = {
            "found, 500 a call": [f"row {rng.randrange(rows)}" for _ in range(500)],
            "absent, 500 a call": [f"absent {number} {rng.random()}" for _ in range(500)],
            "found, alone": [f"row {rng.randrange(rows)}"],
        }
        for name, names in cases.items():
            keys = [key.digest for key in keys_of(engine.identity(), [ask(one) for one in names])]
            engine.store.get(keys)  # what was not read for long comes from the disk, which is not ours
            start = time.process_time()
            engine.store.get(keys)
            found.setdefault(name, []).append(1e6 * (time.process_time() - start) / len(keys))
        fresh = [ask(f"new {os.getpid()} {number} {one}") for one in range(500)]
        start = time.process_time()
        engine.generate(fresh)
        found.setdefault("judged and stored", []).append(1e6 * (time.process_time() - start) / len(fresh))
    engine.close()
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    wanted = sys.argv[1:] or ["kills", "damage", "contention", "openings", "cap", "warm"]
    figures: dict[str, Any] = {}
    load = os.getloadavg()[0]
    for name in wanted:
        # Only where the speed of a disk is part of the question, a real one.
        memory = name in ("damage", "cap") and os.access("/dev/shm", os.W_OK)
        with tempfile.TemporaryDirectory(dir="/dev/shm" if memory else None) as folder:
            figures[name] = globals()[name](Path(folder))
    if "growth" in figures:
        ratio, opened, size = figures.pop("growth")
        note = (
            f"{os.environ.get('ROWS', '10,000,000')} rows against 10,000, the slowest operation; {size:.0f} bytes a row"
        )
        record("cache.slowdown_10m", ratio, unit="ratio of CPU time", target="<= 2", note=note)
        record("cache.open_seconds_10m", opened, unit="s", target="<= 1", note=note)
    wrong = sum(found[-1] if isinstance(found, tuple) else found for found in figures.values())
    if "warm" in figures:
        rate, size, _ = figures["warm"]
        note = f"one process, text, 1,000 a call; load average before {load:.1f} on {os.cpu_count()} cores"
        record("cache.verdicts_per_s", rate, unit="1/CPU-s", target=">= 20000", note=note)
        record("cache.row_bytes", size, unit="bytes", target="<= 700", note="20,000 rows, a reply of 100 characters")
    if "kills" in figures:
        acknowledged, lost, _ = figures["kills"]
        note = f"of {acknowledged}; 100 rounds of 5 processes killed"
        record("cache.lost_acknowledged", lost, unit="rows", target="<= 0", note=note)
    if "damage" in figures:
        note = f"600 bit flips, 100 cuts, 50 deleted side files, 20 foreign files; in the parts {', '.join(figures)}"
        record("cache.wrong_served", wrong, unit="replies", target="<= 0", note=note)
    if "contention" in figures:
        note = f"half reads, half misses then writes; load average before {load:.1f} on {os.cpu_count()} cores"
        record("cache.ops_per_s_8_processes", figures["contention"][0], unit="1/s", target=">= 2500", note=note)


if __name__ == "__main__":
    main()
