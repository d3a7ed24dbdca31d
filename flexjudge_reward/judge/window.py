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
from typing import Any, TypeVar

from flexjudge_reward.errors import ConfigError, EngineError, SeveralModels
from flexjudge_reward.judge.groups import GroupResult, check_format, judge_groups
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.types import Example, Failure

T = TypeVar("T")
R = TypeVar("R")
Judged = Callable[[Sequence[Example], Sequence[Mapping[str, object]]], Sequence[R]]

_THREADS = 32
_READERS = 4  # batches that are read at once, or as many as there are processors: one may wait for a slow decoder
_ROWS = 4  # under way for each request that the judge takes at once: of most batches only the slowest are left
_AHEAD = 2  # times these rows may be judged before a slower one that is written before them


def judge_side_by_side(
    judge: Judge, examples: Sequence[Example], labels: Sequence[Mapping[str, object]] | None = None, again: bool = False
) -> list[GroupResult]:
    """As `judge_groups`, in batches side by side as `side_by_side` says.

    Raises ConfigError before anything is asked, and EngineError if the judge answers nothing. Where it answers nothing
    any more, what is left of the examples fails.
    """
    labels = labels or [{}] * len(examples)
    for index, example in enumerate(examples):
        try:
            check_format(judge.format, example)
        except ConfigError as error:
            raise ConfigError(f"example {index}: {error}") from error
    results: list[GroupResult] = []
    try:
        for found in side_by_side(judge, examples, labels, partial(judge_groups, judge, again=again)):
            results += found
    except SeveralModels:
        raise
    except EngineError as error:
        if not results:
            raise
        failure = Failure("engine", str(error))
        results += [GroupResult.failed(example, failure) for example in examples[len(results) :]]
    return results


def side_by_side(
    judge: Judge, examples: Sequence[Example], labels: Sequence[Mapping[str, object]], work: Judged[R]
) -> Iterator[Sequence[R]]:
    """What `work` makes of the examples and their labels, in order: of all at once, or of one batch after the other.

    There are batches, side by side, if a judge on a server has media that are to be read. Texts need no reading, and
    one batch of them takes a third less of the processor. Media of one batch are read in several threads.
    """
    if len(examples) <= _batch_size(judge) or not any(example.media for example in examples):
        yield work(examples, labels)
        return

    def judged(batch: list[tuple[Example, Mapping[str, object]]]) -> Sequence[R]:
        return work([example for example, _ in batch], [label for _, label in batch])

    rows = zip(examples, labels, strict=True)
    for _, found in in_order(rows, judged, judge, len(examples), lambda row: row[0]):
        yield found


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
    readers = _Threads(max(_READERS, os.cpu_count() or 1), "flexjudge-media")
    workers = _Threads(_THREADS, "flexjudge-rows")

    def judged(batch: list[T]) -> R:
        # Not read in this thread: each thread keeps the memory of the pictures that it has read.
        readers.submit(lambda: judge.read([one for row in batch if (one := example(row))], threads=1)).result()
        return work(batch)

    size = _batch_size(judge)
    under_way: deque[tuple[list[T], Future[R]]] = deque()
    ended: Exception | None = None
    try:
        while True:
            while len(under_way) < _AHEAD * _THREADS and ended is None:
                batch, ended = _taken(rows, size)
                if not batch:
                    break
                under_way.append((batch, workers.submit(partial(judged, batch))))
            if not under_way and ended is not None:
                raise ended
            if not under_way:
                return
            batch, result = under_way.popleft()
            yield batch, result.result()
    finally:
        for _, result in under_way:  # what is judged now ends with the judge, and what is left does not begin
            result.cancel()


def _taken(rows: Iterator[T], most: int) -> tuple[list[T], Exception | None]:
    """The next rows, and what a stream raised that broke off behind them."""
    batch: list[T] = []
    try:
        for row in islice(rows, most):
            batch.append(row)
    except Exception as error:
        return batch, error
    return batch, None


def _batch_size(judge: Judge) -> int:
    """Rows of a batch of a judge on a server."""
    return -(-_ROWS * judge.engine.in_flight // _THREADS)


class _Threads:
    """At most so many threads. They end when nothing is left to do, and with the process.

    After a deadline or an interruption some may still wait for a judge.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name, self._running = most, name, 0
        self._tasks: deque[tuple[Callable[[], object], Future[Any]]] = deque()
        self._lock = threading.Lock()

    def submit(self, work: Callable[[], R]) -> Future[R]:
        """The result of `work`, which begins in turn once a thread is free."""
        result: Future[R] = Future()
        with self._lock:
            self._tasks.append((work, result))
            fresh = self._running < self._most
            self._running += fresh
        if fresh:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        return result

    def _run(self) -> None:
        while task := self._next():
            work, result = task
            if result.set_running_or_notify_cancel():
                try:
                    result.set_result(work())
                except BaseException as error:
                    result.set_exception(error)

    def _next(self) -> tuple[Callable[[], object], Future[Any]] | None:
        with self._lock:
            if not self._tasks:
                self._running -= 1
                return None
            return self._tasks.popleft()
