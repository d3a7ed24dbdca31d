"""torch's random numbers, which judging leaves as they were: a run is the same, cached or not."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


class RandomNumbers:
    """torch's random state, so that a run is the same whether its replies are cached or not."""

    def __init__(self) -> None:
        self._lock, self._calls, self._saved = threading.Lock(), 0, ExitStack()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Saves the state before the first of the calls that overlap, and restores it after the last."""
        with self._lock:
            torch = sys.modules.get("torch")
            if torch is not None and not self._calls:
                devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
                self._saved.enter_context(torch.random.fork_rng(devices=devices))
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if not self._calls:
                    self._saved.close()


random_numbers = RandomNumbers()
"""Of this process."""
