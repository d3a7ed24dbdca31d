"""What ranks spend on exchanging the completions of a batch, so that groups are whole.

    python benchmarks/exchange.py        4 ranks of 2,048 completions of 2 KB over gloo, half a minute

ranks.exchange_seconds is the median, over calls, of the slowest rank's time for one exchange of rows and one of
results, behind a barrier, so that waiting for ranks that are still at work does not count.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from statistics import median
from time import perf_counter
from typing import Any

from figures import record

from flexjudge_reward.trainers.gather import RankResults, RankRows, RowResult, all_gather, assign_groups

RANKS, ROWS, CHARACTERS, CALLS, GROUP = 4, 2048, 2000, 7, 8


def rank(number: int, port: int, results: Any) -> None:
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(number), "WORLD_SIZE": str(RANKS)}
    dist.init_process_group("gloo", rank=number, world_size=RANKS)
    # The completions of a prompt are on all ranks, as some trainers split them.
    keys = tuple(f"{row * RANKS // GROUP:064}" for row in range(ROWS))
    texts = tuple(f"{number} {row} ".ljust(CHARACTERS, "x") for row in range(ROWS))
    for _ in range(CALLS + 1):
        dist.barrier()
        start = perf_counter()
        ranks = all_gather(RankRows(keys, texts), None)
        first = perf_counter() - start
        own = [group for group in assign_groups(ranks, GROUP) if group.owner == number]
        rows = {row: RowResult(0.5, "because " * 50, CHARACTERS) for group in own for row in group.rows}
        dist.barrier()
        start = perf_counter()
        all_gather(RankResults(keys, rows), None)
        results.put(first + perf_counter() - start)
        dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn, load = multiprocessing.get_context("spawn"), os.getloadavg()[0]
    results = spawn.Queue()
    processes = [spawn.Process(target=rank, args=(number, port, results)) for number in range(RANKS)]
    for process in processes:
        process.start()
    found = [results.get(timeout=300) for _ in range(RANKS * (CALLS + 1))]
    for process in processes:
        process.join()
    calls = [max(found[at : at + RANKS]) for at in range(RANKS, len(found), RANKS)]
    note = f"{RANKS} ranks of {ROWS} completions of {CHARACTERS} characters on {os.cpu_count()} cores; load {load:.1f}"
    record("ranks.exchange_seconds", median(calls), unit="s", target="< 1", note=note)


if __name__ == "__main__":
    main()
