"""Who generates what: of equal requests that several threads send at the same time, one is generated for all.

    ours, others = claims.take(keys)        each key is either ours to generate, or another thread's
    ours[key].set_result(reply)             which all who wait for it get
    claims.release(ours)                    in any case, and then those who still wait generate it themselves

A thread generates what is its own before it waits, so that no two wait for each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import Future
from typing import TypeAlias

from flexjudge_reward.types import Generation

Claimed: TypeAlias = dict[bytes, Future[Generation]]


class Claims:
    """The keys that are generated now. Thread-safe without a lock, which could stay locked in a forked child."""

    def __init__(self) -> None:
        self._taken: dict[tuple[int, bytes], Future[Generation]] = {}  # a forked child waits for none of its parent's

    def take(self, keys: Iterable[bytes]) -> tuple[Claimed, Claimed]:
        """Ours, and those of others."""
        ours: Claimed = {}
        others: Claimed = {}
        for key in keys:
            own: Future[Generation] = Future()
            taken = self._taken.setdefault((os.getpid(), key), own)
            (ours if taken is own else others)[key] = taken
        return ours, others

    def release(self, ours: Claimed) -> None:
        """Ends our claims."""
        for key, future in ours.items():
            self._taken.pop((os.getpid(), key), None)
            future.cancel()  # without effect where there is a reply
