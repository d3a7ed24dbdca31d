"""Several training processes as one: what they tell each other, and who judges which group.

A trainer may split the completions of one prompt over its processes in any way. For a format that judges whole groups,
every rank offers the texts of its rows; each group is judged once, by one rank that has its prompt (and so its
pictures, which never travel); the outcomes go back to the rows.

Every rank takes part in every exchange, whatever happened to it: an error travels as a value and is raised on all ranks
together, and judging that passes its deadline gives `timeout` failures instead of waiting. So no rank waits for another
longer than that deadline. Groups, owners and rewards are computed from what all ranks have seen alike.
"""

from __future__ import annotations

import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flexjudge_reward.errors import ConfigError, EngineError
from flexjudge_reward.judge.rewards import Outcome, groups
from flexjudge_reward.types import Failure

T = TypeVar("T")
Place = tuple[int, int]
"""A row of the batch: its rank, and its number there."""


@dataclass(frozen=True)
class Offer:
    """What a rank has to be judged."""

    keys: tuple[str, ...] = ()
    """The group of each row, as a hash."""
    texts: tuple[str, ...] = ()
    """The completion of each row."""
    error: str = ""
    """Why this rank has nothing to offer."""


@dataclass(frozen=True)
class Group:
    """The completions of one prompt, over all ranks."""

    places: tuple[Place, ...]
    texts: tuple[str, ...]
    owner: int
    """The rank that judges it."""
    source: int
    """The owner's row that has the prompt."""


@dataclass(frozen=True)
class Judged:
    """One row's result, as the other ranks see it."""

    outcome: Outcome
    told: str = ""
    """The judge's reasoning, or why there is none."""
    length: int = 0
    """Of the completion, in characters."""
    cached: bool = False
    """Whether its replies came whole from the cache."""


@dataclass(frozen=True)
class Share:
    """What a rank has judged."""

    keys: tuple[str, ...] = ()
    """The group of each of its own rows."""
    rows: dict[Place, Judged] = field(default_factory=dict)
    """What it judged, its own rows or those of its groups."""
    notes: dict[str, float] = field(default_factory=dict)
    """Counts: verdicts, those from the cache, tokens, swaps and so on."""
    parts: tuple[Failure | None, ...] = ()
    """What became of every single judgement; see `Verdict.parts`."""
    seconds: float = 0.0
    error: str = ""
    """Why this rank could not judge at all."""


def assemble(offers: Sequence[Offer], size: int | None = None) -> list[Group]:
    """The groups of all ranks' rows, of `size` if that fits. Every rank computes the same.

    The owner of a group is, among the ranks with most of its rows, the one with the fewest groups so far.

    Raises:
        ConfigError: rows come alone, so there are no groups to judge.
    """
    places = [(rank, row) for rank, offer in enumerate(offers) for row in range(len(offer.keys))]
    named = groups([key for offer in offers for key in offer.keys], size)
    members: dict[Any, list[Place]] = {}
    for place, name in zip(places, named, strict=True):
        members.setdefault(name, []).append(place)
    if min(map(len, members.values())) < 2:
        raise ConfigError(
            "a group format compares the completions of one prompt, but here a prompt has only one: the rows of a"
            " generation batch (per_device_train_batch_size x processes x steps_per_generation) must be a multiple of"
            " num_generations, which must be at least 2; or use format='score'"
        )
    load: Counter[int] = Counter()
    found = []
    for group in members.values():
        held = Counter(rank for rank, _ in group)
        most = max(held.values())
        owner = min((rank for rank, count in held.items() if count == most), key=lambda rank: (load[rank], rank))
        load[owner] += 1
        source = next(row for rank, row in group if rank == owner)
        found.append(Group(tuple(group), tuple(offers[rank].texts[row] for rank, row in group), owner, source))
    return found


def exchange(mine: T) -> list[T]:
    """What every rank has, in rank order. Every rank must call it equally often."""
    group = distributed()
    if group is None:
        return [mine]
    all_of: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(all_of, mine)
    return all_of


def raise_together(received: Sequence[Offer | Share]) -> None:
    """Raises on every rank what one rank could not do."""
    for rank, other in enumerate(received):
        if other.error:
            raise EngineError(f"rank {rank} could not judge: {other.error}")


def within(seconds: float, work: Callable[[], T]) -> T | None:
    """The result of `work`, or None if it takes longer; it then goes on in a thread that nobody waits for.

    Without other ranks nobody waits, so there `work` simply runs.
    """
    if distributed() is None or math.isinf(seconds):
        return work()
    results: list[T] = []
    errors: list[BaseException] = []
    torch = sys.modules.get("torch")
    device = torch.cuda.current_device() if torch is not None and torch.cuda.is_initialized() else None

    def run() -> None:
        try:
            if (
                torch is not None and device is not None
            ):  # which belongs to a thread: here it would be the first, of all ranks
                torch.cuda.set_device(device)
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="flexjudge-judging", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    return results[0] if results else None


def distributed() -> Any:
    """torch.distributed where several processes train together, else None. Does not import torch."""
    torch = sys.modules.get("torch")
    group = None if torch is None else torch.distributed
    several = group is not None and group.is_available() and group.is_initialized() and group.get_world_size() > 1
    return group if several else None


def rank() -> int:
    """This process's rank; 0 alone."""
    group = distributed()
    return 0 if group is None else int(group.get_rank())
