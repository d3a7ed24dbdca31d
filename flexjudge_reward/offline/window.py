"""Batches of rows that are judged side by side and come back in their order, so that a judge on a server is kept full.

A batch ends with its slowest reply. One batch after the other would leave the judge idle until then; here further
batches are under way meanwhile. A judge in this process judges one batch at a time: that one fills it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from flexjudge_reward.engines.base import Engine

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 32
_ROWS = 4  # under way for each request that the judge takes at once: of most batches only the slowest are left
_AHEAD = 2  # times these rows may be judged before a slower one that is written before them


def in_order(
    rows: Iterator[T], judge: Callable[[list[T]], R], engine: Engine, alone: int
) -> Iterator[tuple[list[T], R]]:
    """Each batch of rows and what `judge` makes of it, in order.

    What `judge` or `rows` raises comes in its place, behind the batches before it; no other one begins after that.

    Args:
        alone: rows of a batch of a judge that takes one batch at a time.
    """
    if engine.in_flight == 1:
        while batch := list(islice(rows, alone)):
            yield batch, judge(batch)
        return
    size = -(-_ROWS * engine.in_flight // _THREADS)
    under_way: deque[tuple[list[T], Future[R]]] = deque()
    pool = ThreadPoolExecutor(_THREADS, "flexjudge-rows")
    ended: Exception | None = None
    try:
        while True:
            while len(under_way) < _AHEAD * _THREADS and ended is None:
                batch = []
                try:
                    for row in islice(rows, size):
                        batch.append(row)
                except Exception as error:  # a stream that broke off
                    ended = error
                if not batch:
                    break
                under_way.append((batch, pool.submit(judge, batch)))
            if not under_way and ended is not None:
                raise ended
            if not under_way:
                return
            batch, result = under_way.popleft()
            yield batch, result.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # what still runs ends with the judge
