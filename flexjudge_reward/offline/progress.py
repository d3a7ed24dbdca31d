"""How far a job is: a bar on a terminal; elsewhere, such as in the log of a batch job, a line every minute.

Both say what became of the rows so far, so that a judge that fails is seen before the end.
"""

from __future__ import annotations

import sys
import time

_PAUSE_S = 60.0  # between two lines


class Progress:
    """Counts rows on standard error."""

    def __init__(self, what: str, total: int | None, done: int = 0) -> None:
        """Args: what: the job, such as "judging"; total: of rows, if known; done: rows of an earlier run."""
        from tqdm import tqdm

        self._what, self._total, self._done, self._said_at = what, total, done, time.monotonic()
        self._bar = tqdm(total=total, initial=done, unit="row", desc=what, disable=None)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, rows: int, so_far: str) -> None:
        """Adds rows; `so_far` is what became of all rows, such as "3 failed"."""
        self._done += rows
        self._bar.set_postfix_str(so_far, refresh=False)
        self._bar.update(rows)
        if self._bar.disable and time.monotonic() - self._said_at >= _PAUSE_S:
            self._said_at = time.monotonic()
            of = "" if self._total is None else f" of {self._total:,}"
            print(f"{self._what}: {self._done:,}{of} rows, {so_far}", file=sys.stderr, flush=True)
