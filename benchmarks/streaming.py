"""Whether judging starts when a group is whole, and not when the batch is.

    python benchmarks/streaming.py

A judge server answers each request after 1 s. Groups of eight become whole one after another, every 50 ms, as where a
policy streams; they go through a `Rendezvous`, as in the reward server and in verl. `streaming.seconds_ratio` is the
time from the first to the last reward, relative to the arrival of the last group and one answer. Takes ten seconds.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from figures import record

from flexjudge_reward import Example, Judge, Pointwise, Rendezvous, RewardSession, ServerEngine
from support.fault_server import FaultServer

DELAY, EVERY, GROUPS, SIZE = 1.0, 0.05, 40, 8


def main() -> None:
    """Measures and records."""
    with FaultServer(delay=DELAY) as server, ServerEngine(server.url, concurrency=512) as engine:
        session = RewardSession(Judge(Pointwise(), engine), {"probes": 0.0})
        with Rendezvous(session) as meeting:
            meeting.submit(Example("Is it so?", ["warm"])).result()  # the server's list of models
            start, futures = time.perf_counter(), []
            for number in range(GROUPS):
                time.sleep(max(0.0, start + number * EVERY - time.perf_counter()))
                rows = [Example(f"Is it {number}?", [f"item {number}x{n} "]) for n in range(SIZE)]
                futures += [meeting.submit(row, number, SIZE) for row in rows]
            assert all(future.result().reward is not None for future in futures)
            seconds = time.perf_counter() - start
        session.close()
    ideal = (GROUPS - 1) * EVERY + DELAY
    note = f"{GROUPS} groups of {SIZE}, one every {EVERY} s: {seconds:.2f} s, ideal {ideal:.2f} s"
    note += f"; most requests in flight {server.most_in_flight}"
    record("streaming.seconds_ratio", seconds / ideal, unit="ratio", target="<= 1.2", note=note)


if __name__ == "__main__":
    main()
