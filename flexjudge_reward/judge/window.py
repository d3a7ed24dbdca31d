"""Batches of rows that are judged side by side and come back in their order, so that a judge on a server is kept full.

A batch ends with its slowest reply. One batch after the other would leave the judge idle until then; here further
batches are under way meanwhile. Their media are read in the order of the rows, a few batches at once, so that the
first ones are asked about while later ones are read, and so many are in memory as these batches have. A judge in this
process judges one batch at a time: that one fills it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import Generic, TypeVar

from flexjudge_reward.errors import ConfigError, EngineError, SeveralModels
from flexjudge_reward.judge.groups import GroupResult, check_format, judge_groups
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.types import Example, Failure

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 32
_READERS = 4  # batches that are read at once, or as many as there are processors: one may wait for a slow decoder
_ROWS = 4  # under way for each request that the judge takes at once: of most batches only the slowest are left
_AHEAD = 2  # times these rows may be judged before a slower one that is written before them


def judge_side_by_side(
    judge: Judge, examples: Sequence[Example], labels: Sequence[Mapping[str, object]], again: bool = False
) -> list[GroupResult]:
    """As `judge_groups`; for a judge on a server in batches side by side, where there are media to be read.

    Texts need no reading, and one batch of them takes a third less of the processor.

    Raises ConfigError before anything is asked, and EngineError if the judge answers nothing. Where it answers nothing
    any more, what is left of the examples fails.
    """
    for index, example in enumerate(examples):
        try:
            check_format(judge.format, example)
        except ConfigError as error:
            raise ConfigError(f"example {index}: {error}") from error

    if not any(example.media for example in examples):
        return judge_groups(judge, examples, labels, again)

    def judged(batch: list[tuple[Example, Mapping[str, object]]]) -> list[GroupResult]:
        return judge_groups(judge, [example for example, _ in batch], [label for _, label in batch], again)

    rows, results = zip(examples, labels, strict=True), list[GroupResult]()
    try:
        for _, found in in_order(rows, judged, judge, len(examples), lambda row: row[0]):
            results += found
    except SeveralModels:
        raise
    except EngineError as error:
        if not results:
            raise
        failure = Failure("engine", str(error))
        results += [GroupResult.failed(example, failure) for example in examples[len(results) :]]
    return results


def in_order(
    rows: Iterator[T], work: Callable[[list[T]], R], judge: Judge, alone: int, example: Callable[[T], Example | None]
) -> Iterator[tuple[list[T], R]]:
    """Each batch of rows and what `work` makes of it with `judge`, in order.

    What `work` or `rows` raises comes in its place, behind the batches before it; no other one begins after that.

    Args:
        alone: rows of a batch of a judge that takes one batch at a time.
        example: what is judged of a row; None for nothing.
    """
    if judge.engine.in_flight == 1:
        while batch := list(islice(rows, alone)):
            yield batch, work(batch)
        return
    size = -(-_ROWS * judge.engine.in_flight // _THREADS)
    under_way: deque[tuple[list[T], Future[R]]] = deque()
    ended: Exception | None = None
    workers = _Workers(work, judge, example)
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
                under_way.append((batch, workers.submit(batch)))
            if not under_way and ended is not None:
                raise ended
            if not under_way:
                return
            batch, result = under_way.popleft()
            yield batch, result.result()
    finally:
        workers.close([result for _, result in under_way])


class _Workers(Generic[T, R]):
    """Threads that end with the process, since after a deadline or an interruption they may still wait for a judge."""

    def __init__(self, work: Callable[[list[T]], R], judge: Judge, example: Callable[[T], Example | None]) -> None:
        self._work, self._judge, self._example, self._threads = work, judge, example, 0
        self._tasks: SimpleQueue[tuple[Callable[[], R], Future[R]] | None] = SimpleQueue()
        self._readings = deque(threading.Event() for _ in range(max(_READERS, os.cpu_count() or 1)))
        for free in self._readings:
            free.set()

    def submit(self, batch: list[T]) -> Future[R]:
        """What `work` makes of the batch, once a thread is free."""
        result: Future[R] = Future()
        self._readings.append(threading.Event())
        self._tasks.put((partial(self._read_and_work, batch, self._readings.popleft(), self._readings[-1]), result))
        if self._threads < _THREADS:
            self._threads += 1
            threading.Thread(target=self._run, name="flexjudge-rows", daemon=True).start()
        return result

    def close(self, left: Sequence[Future[R]]) -> None:
        """Ends the threads. What is judged now ends with the judge, and what is left does not begin."""
        for result in reversed(left):  # or one might begin whose turn to read never comes
            result.cancel()
        for _ in range(self._threads):
            self._tasks.put(None)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            work, result = task
            if result.set_running_or_notify_cancel():
                try:
                    result.set_result(work())
                except BaseException as error:
                    result.set_exception(error)

    def _read_and_work(self, batch: list[T], before: threading.Event, read: threading.Event) -> R:
        before.wait()
        try:
            self._judge.read([one for row in batch if (one := self._example(row)) is not None], threads=1)
        finally:
            read.set()
        return self._work(batch)
