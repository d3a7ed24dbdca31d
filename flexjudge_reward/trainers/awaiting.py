"""Who calls a reward: a program that wants a list, or a trainer whose event loop awaits it."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import Generator
from typing import Any


class Ready(list[float | None]):
    """Rewards that may be awaited, too."""

    def __await__(self) -> Generator[Any, None, list[float | None]]:
        return self
        yield


def runs_in_a_loop() -> bool:
    """Whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def loop_is_the_trainers() -> bool:
    """Whether the loop of this thread is a trainer's, which awaits rewards: in another thread or a worker process.

    The loop of a notebook is in the main thread, and its cells call a reward as a function.
    """
    return threading.current_thread() is not threading.main_thread() or multiprocessing.parent_process() is not None
