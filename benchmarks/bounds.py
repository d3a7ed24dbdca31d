"""What one slow molecule, a killed engine, a second writer or an answer without end costs a run: each has a bound.

    python benchmarks/bounds.py                        all four, recorded; about five minutes on two busy cores
    python benchmarks/bounds.py molecules annotators   some of them

    molecules    ring systems that cost RDKit a minute each: processor seconds until each is refused
    annotators   two processes write one output, or the first is killed while it writes: the outputs that are whole
    answers      a gigabyte of zeros in a gzip of one megabyte, and chunks without end: MiB of the client's memory
    vllm         the process of the in-process engine is killed in a batch: seconds until the call says so

Everything is real: RDKit, files and processes, a server on loopback, vLLM with the embedded judge.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from aiohttp import web
from figures import record

from flexjudge_reward import (
    ConfigError,
    EngineError,
    Example,
    Judge,
    Media,
    MediaError,
    Message,
    Pointwise,
    Prompt,
    Request,
    Sampling,
    ScriptedEngine,
    ServerEngine,
    VLLMEngine,
    annotate_file,
)
from support import attacks, real
from support.fault_server import FaultServer

CAGES, TRIES, ROWS = 8, 6, 1200
KILLS_S = (0.1, 1.0)


def molecules() -> None:
    """The slowest refusal, and how long another thread of this process had to wait meanwhile."""
    Media.molecule("CCO").load()
    costs, waits = [], [0.0]
    for smiles in attacks.slow_smiles(CAGES):
        stop, start = threading.Event(), _seconds()
        ticking = threading.Thread(target=_tick, args=(stop, waits))
        ticking.start()
        try:
            Media.molecule(smiles).load()
            costs.append(float("inf"))
        except MediaError:
            costs.append(_seconds() - start)
        stop.set()
        ticking.join()
    note = f"{CAGES} SMILES of {len(smiles)} characters, each refused; another thread waited {max(waits):.2f} s at most"
    record("hardening.molecule_cpu_seconds", max(costs), unit="s", target="<= 3", note=note)


def _seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _tick(stop: threading.Event, waits: list[float]) -> None:
    before = time.perf_counter()
    while not stop.wait(0.01):
        now = time.perf_counter()
        waits[0], before = max(waits[0], now - before), now


def annotators() -> None:
    """The share of outputs that have each pair once, by a run that says it ended well."""
    whole = 0
    for number in range(TRIES):
        with tempfile.TemporaryDirectory() as folder:
            rows = [{"id": n, "question": "q", "candidates": [f"good {n}", f"bad {n}"]} for n in range(ROWS)]
            Path(folder, "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            ends = _two_writers(folder) if number % 2 else _one_killed(folder)
            ids = sorted(json.loads(line)["id"] for line in Path(folder, "out.jsonl").read_text().splitlines())
        print(f"{ends}, {len(ids)} pairs")
        whole += ids == list(range(ROWS)) and ends.count(0) == 1
    note = f"{TRIES} tries with {ROWS} rows: two writers at once, or a SIGKILL of the one that writes, and another run"
    record("hardening.annotators_whole", whole / TRIES, unit="share", target=">= 1", note=note)


def _two_writers(folder: str) -> list[int | None]:
    writers = [_writer(folder) for _ in range(2)]
    for writer in writers:
        writer.join()
    return [writer.exitcode for writer in writers]


def _one_killed(folder: str) -> list[int | None]:
    killed = _writer(folder)
    part = Path(folder, "out.jsonl.partial")
    while killed.is_alive() and not (part.exists() and part.stat().st_size):
        time.sleep(0.001)
    killed.kill()
    killed.join()
    again = _writer(folder)
    again.join()
    return [killed.exitcode, again.exitcode]


def _writer(folder: str) -> Any:
    process = multiprocessing.get_context("spawn").Process(target=_annotate, args=(folder,))
    process.start()
    return process


def _annotate(folder: str) -> None:
    def reply(request: Request) -> str:
        time.sleep(0.001)
        return f"<think>so</think><answer>{9 if 'good' in str(request.prompt.messages[-1]) else 3}</answer>"

    try:
        annotate_file(Path(folder, "in.jsonl"), Judge(Pointwise(), ScriptedEngine(reply)), Path(folder, "out.jsonl"))
    except ConfigError as error:  # another one writes it
        sys.exit(3 if "is being written by process" in str(error) else 4)


class Endless(FaultServer):
    """Sends "item bomb" a gigabyte in a gzip of one megabyte, and "item chunks" a body that never ends."""

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        if not any(name in text for name in ("item bomb", "item chunks")):
            return web.Response(text='{"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}')
        bomb = "item bomb" in text
        response = web.StreamResponse(headers={"Content-Encoding": "gzip"} if bomb else {})
        await response.prepare(request)
        packer, zeros = zlib.compressobj(9, zlib.DEFLATED, 31), bytes(2**20)
        with suppress(ConnectionError):  # the client has read enough
            for _ in range(1024 if bomb else 10**6):
                await response.write(packer.compress(zeros) if bomb else zeros)
                await asyncio.sleep(0)
        return response


def answers() -> None:
    """The growth of the client's peak over both, in a process of its own."""
    with Endless() as server, multiprocessing.get_context("spawn").Pool(1) as pool:
        grown, kinds = pool.apply(_asked, (server.url,))
    note = f"1 GB in a gzip of 1 MB, and chunks without end: {kinds}"
    record("hardening.answer_memory_mib", grown, unit="MiB", target="<= 96", note=note)


def _asked(url: str) -> tuple[float, list[str | None]]:
    with ServerEngine(url, "judge", timeout=60) as engine:
        judge = Judge(Pointwise(), engine)
        judge([Example("q", ["warm"])])
        before = _peak_mib()
        verdicts = judge([Example("q", [f"item {name}"]) for name in ("bomb", "chunks")])
        return _peak_mib() - before, [verdict.failure and verdict.failure.kind for verdict in verdicts]


def _peak_mib() -> float:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def vllm() -> None:
    """The longest time from a kill to the error; after each, the same engine serves again."""
    real.prepare()
    warnings.simplefilter("ignore")  # of vLLM and what it imports
    one = Request(Prompt((Message("user", ("Say something.",)),)), Sampling(max_tokens=200, temperature=1.0))
    noticed = []
    with VLLMEngine("nano", dtype="float32", enforce_eager=True) as engine:
        for after in KILLS_S:
            assert engine.generate([one])[0].failure is None
            (process,) = real.engine_processes()
            killing = threading.Timer(after, os.kill, (int(process.split()[0]), signal.SIGKILL))
            start = time.monotonic()
            killing.start()
            try:
                engine.generate([one.changed(seed=seed) for seed in range(2000)])
                sys.exit("the batch ended before the kill")
            except EngineError:
                noticed.append(time.monotonic() - start - after)
        assert engine.generate([one])[0].failure is None
    shown = ", ".join(f"{seconds:.1f}" for seconds in noticed)
    note = f"{shown} s after kills at {', '.join(map(str, KILLS_S))} s of a batch of 2,000; each time it serves again"
    record("hardening.killed_vllm_seconds", max(noticed), unit="s", target="<= 5", note=note)


PARTS = {part.__name__: part for part in (molecules, annotators, answers, vllm)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    for name in parser.parse_args().parts or PARTS:
        PARTS[name]()
