"""Whole groups over torch.distributed ranks: which rank judges which group, and the exchange of results.

A trainer may split the completions of one prompt over its processes in any way. For a format that judges whole groups,
every rank shares the texts of its rows; each group is judged once, by one rank that has its prompt (and so its images,
which never travel); the outcomes go back to the rows.

Every rank takes part in every exchange: an error travels as a value and is raised on all ranks together. One deadline
counts from the beginning of the call, over reading rows and media and judging; what passes it gives `timeout` failures.
So no rank waits for another longer than that deadline. Groups, owners and rewards are computed from data that all ranks
have seen alike.

Rewards that overlap in time have a gloo group of ranks each, opened in the order in which the trainer calls them: what
one exchanges cannot meet what another does, in whatever order their judges answer.
"""

from __future__ import annotations

import atexit
import ctypes
import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from flexjudge_reward.errors import ConfigError, EngineError
from flexjudge_reward.judge.machine import distributed
from flexjudge_reward.judge.rewards import Outcome, group_ids
from flexjudge_reward.trainers.probes import ProbeResult
from flexjudge_reward.types import Failure

T = TypeVar("T")
RowId = tuple[int, int]
"""A row of the batch: its rank, and its number there."""
_ENDING_S = 3  # seconds that a process waits at its end for judging that passed its deadline


@dataclass(frozen=True)
class RankRows:
    """The rows of a rank."""

    keys: tuple[str, ...]
    """The group of each row, as a hash."""
    texts: tuple[str, ...]
    """The completion of each row."""
    late: bool = False
    """Whether the media of its prompts were not read within the deadline, so that its keys are of the texts only."""


@dataclass(frozen=True)
class Group:
    """The completions of one prompt, over all ranks."""

    key: str
    rows: tuple[RowId, ...]
    texts: tuple[str, ...]
    owner: int
    """The rank that judges it."""
    source: int
    """The owner's row that has the prompt."""


@dataclass(frozen=True)
class RowResult:
    """One row's result, as the other ranks see it."""

    outcome: Outcome
    reasoning: str = ""
    """The judge's, after the failure if there is one."""
    length: int = 0
    """Of the completion, in characters."""
    cached: bool = False
    """Whether all its replies came from the cache."""
    spread: float = 0.0
    """How unsure the judge is of the score, as a standard deviation in [0, 1]."""


@dataclass(frozen=True)
class RankResults:
    """What a rank has judged."""

    keys: tuple[str, ...] = ()
    """The group of each of its own rows."""
    rows: dict[RowId, RowResult] = field(default_factory=dict)
    """What it judged: its own rows, or those of its groups."""
    counters: dict[str, float] = field(default_factory=dict)
    outcomes: tuple[Failure | None, ...] = ()
    """One entry per single judgement; see `Verdict.outcomes`."""
    seconds: float = 0.0
    probes: tuple[ProbeResult, ...] = ()


@dataclass(frozen=True)
class RankError:
    """Why a rank could not judge at all."""

    message: str


class OtherRankError(EngineError):
    """Another rank could not judge; raised on all ranks but that one."""


def assign_groups(ranks: Sequence[RankRows], size: int | None = None) -> list[Group]:
    """The groups of all ranks' rows, of `size` if that fits. Every rank computes the same.

    The owner of a group is, among the ranks with most of its rows, the one with the fewest groups so far.
    Raises ConfigError if a prompt has only one row, so that there are no groups to judge.
    """
    ids = [(rank, row) for rank, rows in enumerate(ranks) for row in range(len(rows.keys))]
    names = group_ids([key for rows in ranks for key in rows.keys], size)
    members: dict[Any, list[RowId]] = {}
    for row_id, name in zip(ids, names, strict=True):
        members.setdefault(name, []).append(row_id)
    if min(map(len, members.values())) < 2:
        raise ConfigError(
            "a group format compares the completions of one prompt, but here a prompt has only one: the rows of a"
            " generation batch (per_device_train_batch_size x processes x steps_per_generation) must be a multiple of"
            " num_generations, which must be at least 2; or use format='pointwise'"
        )
    load: Counter[int] = Counter()
    groups = []
    for (key, _), own in members.items():
        held = Counter(rank for rank, _ in own)
        most = max(held.values())
        owner = min((rank for rank, count in held.items() if count == most), key=lambda rank: (load[rank], rank))
        load[owner] += 1
        source = next(row for rank, row in own if rank == owner)
        groups.append(Group(key, tuple(own), tuple(ranks[rank].texts[row] for rank, row in own), owner, source))
    return groups


def own_group(deadline: float) -> Any:
    """A group of all ranks for one reward; None alone. Every rank must call it in the same order."""
    ranks = distributed()
    # A rank answers within its deadline. Longer than that waits only who waits for a rank that is stuck elsewhere.
    seconds = min(max(1800.0, 2 * deadline), 7 * 86400.0)
    return None if ranks is None else ranks.new_group(backend="gloo", timeout=timedelta(seconds=seconds))


def all_gather(mine: T, group: Any = None) -> list[T]:
    """What every rank has, in rank order. Every rank must call it equally often. Raises OtherRankError.

    `group` is one of `own_group`; by default the trainer's.
    """
    ranks = distributed()
    gathered: list[Any] = [mine]
    if ranks is not None:
        gathered = [None] * ranks.get_world_size()
        ranks.all_gather_object(gathered, mine, group=group)
    if not isinstance(mine, RankError):
        for number, other in enumerate(gathered):
            if isinstance(other, RankError):
                raise OtherRankError(f"rank {number} could not judge: {other.message}")
    return gathered


@contextmanager
def raised_on_all_ranks(group: Any = None) -> Iterator[None]:
    """An error inside is raised on all ranks: the others see it in the exchange they are waiting in."""
    try:
        yield
    except OtherRankError:
        raise  # all ranks have it already
    except Exception as error:
        all_gather(RankError(f"{type(error).__name__}: {error}"), group)
        raise


class Deadline:
    """What is left of the time that a call may take, so that no other rank waits longer. Alone, there is no limit."""

    def __init__(self, seconds: float) -> None:
        """It begins now."""
        self.seconds = seconds
        self._due = math.inf if distributed() is None else time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds; 0 once it has passed."""
        return max(0.0, self._due - time.monotonic())

    def run(self, work: Callable[[], T]) -> T | None:
        """The result of `work`, or None if it takes longer than what is left.

        Work that takes longer cannot be ended: it continues in a thread that ends with the process. Until then it
        occupies the engine, so that the next call may be late too, and it still writes into cache and record
        (`judge/record.py`). Its result is dropped.
        """
        if math.isinf(self._due):
            return work()
        if not self.left:
            return None
        result, thread = started(work)
        if wait([result], min(self.left, threading.TIMEOUT_MAX)).not_done:
            atexit.register(_end, thread)
            return None
        return result.result()


def started(work: Callable[[], T]) -> tuple[Future[T], threading.Thread]:
    """`work` in a thread that ends with the process at the latest, on the GPU of this rank."""
    result: Future[T] = Future()
    device = _device()

    def run() -> None:
        try:
            if device is not None:  # it belongs to a thread: a new thread would use the first GPU on every rank
                sys.modules["torch"].cuda.set_device(device)
            found = work()
        except BaseException as error:
            with suppress(InvalidStateError):  # no caller waits for it any more
                result.set_exception(error)
        else:
            with suppress(InvalidStateError):
                result.set_result(found)

    thread = threading.Thread(target=run, name="flexjudge-judging", daemon=True)
    thread.start()
    return result, thread


def _device() -> int | None:
    """The GPU of this rank, if one is in use: the main thread's; a trainer's other threads do not know it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    local = os.environ.get("LOCAL_RANK", "")
    if threading.current_thread() is not threading.main_thread() and local.isdecimal():
        return int(local) % int(torch.cuda.device_count())
    return int(torch.cuda.current_device())


def _end(thread: threading.Thread) -> None:
    """Ends a thread before the interpreter does, which aborts the process if torch runs in the thread."""
    kill = ctypes.pythonapi.PyThreadState_SetAsyncExc
    kill(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
    thread.join(_ENDING_S)


def rank() -> int:
    """This process's rank; 0 alone."""
    group = distributed()
    return 0 if group is None else int(group.get_rank())
