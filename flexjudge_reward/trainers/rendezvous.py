"""Whole groups from rows that arrive one at a time: in one process, or at a server, by group id and with a deadline.

    with RewardSession() as session, Rendezvous(session, deadline=300) as meeting:
        score = await meeting.score(row, group=prompt_id, size=8)         # in a coroutine
        score = meeting.submit(row, group=prompt_id, size=8).result()     # in a thread

A row waits until its group is whole; then the group is judged, together with everything else that is ready. Rows
without a group are judged at once, in batches. A group that is not whole within the deadline of its first row is not
judged: each of its rows is a `timeout` failure, and what that gives is the session's policy. Half a group is never
ranked, unless the caller does not know the sizes (`idle`). A row whose future is cancelled leaves its group. Under the
policy "raise" a group that failed raises for its own rows only. An error that stops judging (the engine answers
nothing, or too many judgements failed) raises for every row that shares the batch.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from flexjudge_reward.engines.base import Closable
from flexjudge_reward.errors import ConfigError, EngineError, JudgementFailed
from flexjudge_reward.judge.config import RewardConfig
from flexjudge_reward.judge.rewards import Outcome, rewards
from flexjudge_reward.trainers.session import RewardSession
from flexjudge_reward.trainers.tasks import Scored
from flexjudge_reward.types import Example, Failure

_BATCHES, _REMOTE_BATCHES = 4, 64  # judged at the same time; a model in this process works on one of them


@dataclass(frozen=True)
class RowScore:
    """What became of one row."""

    reward: float | None
    """In [0, 1]; None where there is no reward."""
    outcome: Outcome
    reasoning: str


@dataclass
class _Group:
    size: int
    due: float
    """When it expires, by the monotonic clock."""
    rows: list[Example] = field(default_factory=list)
    futures: list[Future[RowScore]] = field(default_factory=list)

    def settle(self, scored: Scored, config: RewardConfig) -> None:
        """Gives every row its score, or the error that the policy makes of it."""
        try:
            numbers = rewards(scored.counted, [0] * len(self.rows), config.on_failure, config.on_candidate_failure)
        except JudgementFailed as error:
            self.fail(error)
            return
        for future, row in zip(self.futures, map(RowScore, numbers, scored.outcomes, scored.reasoning), strict=True):
            with suppress(InvalidStateError):  # cancelled
                future.set_result(row)

    def fail(self, error: BaseException) -> None:
        for future in self.futures:
            with suppress(InvalidStateError):  # cancelled
                future.set_exception(error)


class Rendezvous(Closable):
    """Collects rows into groups and batches for one session. Thread-safe."""

    def __init__(
        self, session: RewardSession, deadline: float = 300.0, linger: float = 0.02, idle: bool = False
    ) -> None:
        """
        Args:
            deadline: seconds within which all rows of a group must arrive.
            linger: seconds that a row that is ready waits for others to share its batch.
            idle: for a trainer that does not know the sizes of its groups: the deadline counts from the latest row, and
                what is there then is the group, if the format can judge so few.
        """
        if not deadline > 0 or not linger >= 0:
            raise ConfigError(f"deadline must be positive and linger at least 0, found {deadline!r} and {linger!r}")
        self.session, self.deadline, self.linger, self.idle = session, deadline, linger, idle
        self._open: dict[Hashable, _Group] = {}
        self._ready: list[_Group] = []
        self._changed = threading.Condition()
        self._closed = False
        self._pool = ThreadPoolExecutor(_REMOTE_BATCHES, thread_name_prefix="flexjudge-judging")
        self._places: threading.Semaphore | None = None
        self._thread = threading.Thread(target=self._dispatch, name="flexjudge-rendezvous", daemon=True)
        self._thread.start()

    def submit(self, row: Example, group: Hashable = None, size: int = 1) -> Future[RowScore]:
        """The score of one row, once its group is whole and judged.

        Args:
            row: the question with one candidate.
            group: the id that the rows of one prompt share; None for a row of its own.
            size: the rows of the group.

        Raises:
            ConfigError: another row of the group gave another size, the size does not fit the format or the setting
                `shrink`, or the row has not one candidate.
            EngineError: the rendezvous is closed.
        """
        self._check(row, group, size)
        future: Future[RowScore] = Future()
        with self._changed:
            if self._closed:
                raise EngineError("the rendezvous is closed")
            key = object() if group is None else group
            waiting = self._open.setdefault(key, _Group(size, time.monotonic() + self.deadline))
            if waiting.size != size:
                raise ConfigError(f"the group {group!r} has {waiting.size} rows for one row and {size} for another")
            if self.idle:
                waiting.due = time.monotonic() + self.deadline
            waiting.rows.append(row)
            waiting.futures.append(future)
            if len(waiting.rows) == size:
                self._ready.append(self._open.pop(key))
            self._changed.notify()
        future.add_done_callback(lambda done: self._leave(key, done) if done.cancelled() else None)
        return future

    async def score(self, row: Example, group: Hashable = None, size: int = 1) -> RowScore:
        """As `submit`, for a coroutine."""
        return await asyncio.wrap_future(self.submit(row, group, size))

    def _leave(self, key: Hashable, future: Future[RowScore]) -> None:
        with self._changed:
            waiting = self._open.get(key)
            if waiting is None or future not in waiting.futures:
                return
            index = waiting.futures.index(future)
            del waiting.rows[index], waiting.futures[index]
            if not waiting.rows:
                del self._open[key]

    def close(self) -> None:
        """Ends the threads; rows that still wait fail with EngineError. May be called twice."""
        with self._changed:
            self._closed = True
            left = [*self._open.values(), *self._ready]
            self._open, self._ready = {}, []
            self._changed.notify()
        for group in left:
            group.fail(EngineError("the rendezvous was closed before the group was judged"))
        self._thread.join()
        self._pool.shutdown()

    def _check(self, row: Example, group: Hashable, size: int) -> None:
        if size < 1 or (group is None and size != 1):
            raise ConfigError(f"a group has an id and at least one row, found group={group!r}, size={size!r}")
        if len(row.candidates) != 1:
            raise ConfigError(f"a row has one candidate, the completion; this one has {len(row.candidates)}")
        format = self.session.judge.format
        if not format.max_candidates == 1 and size < format.min_candidates:
            raise ConfigError(f"{format.described()} compares {format.min_candidates:g} rows or more, found {size}")
        if size == 1 and self.session.config.shrink:
            raise ConfigError("shrink moves scores toward their group's mean, and this row came without one: unset it")

    def _dispatch(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not self._ready and (wait := self._until_next_expiry()) != 0:
                    self._changed.wait(wait)
                if self._closed:
                    return
            self._place().acquire()  # what is ready meanwhile shares the next batch
            time.sleep(self.linger)
            with self._changed:
                groups, self._ready = self._ready, []
                expired = [key for key, group in self._open.items() if group.due <= time.monotonic()]
                groups += [self._open.pop(key) for key in expired]
            if groups:
                self._pool.submit(self._judge, groups)
            else:
                self._place().release()

    def _place(self) -> threading.Semaphore:
        """The places for batches; the judge is known since the first row was checked."""
        if self._places is None:
            remote = self.session.judge.engine.remote
            self._places = threading.Semaphore(_REMOTE_BATCHES if remote else _BATCHES)
        return self._places

    def _until_next_expiry(self) -> float | None:
        """Seconds until the next group expires; None if none is open."""
        due = min((group.due for group in self._open.values()), default=None)
        return None if due is None else max(0.0, due - time.monotonic())

    def _judge(self, groups: Sequence[_Group]) -> None:
        failed = {
            index: Failure("timeout", f"{len(group.rows)} of {group.size} rows arrived within {self.deadline:g} s")
            for index, group in enumerate(groups)
            if len(group.rows) < (self.session.judge.format.min_candidates if self.idle else group.size)
        }
        try:
            # The policy counts for each group on its own.
            scored = self.session.score_groups([group.rows for group in groups], failed, on_failure="abstain")
            for group, one in zip(groups, scored, strict=True):
                group.settle(one, self.session.config)
        except BaseException as error:
            for group in groups:
                group.fail(error)
        finally:
            self._place().release()
