"""Media read in threads, in order, while something else is done: whoever needs one waits for that one only.

Decoders and hashes run beside each other on as many processors as there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from flexjudge_reward.media.base import Media

_THREADS = 16


@contextmanager
def read_ahead(media: Iterable[Media]) -> Iterator[None]:
    """Reads what is not read yet; errors stay with their item. What was not begun at the end of the block is left."""
    unread = [one for one in {id(one): one for one in media}.values() if not one.is_read]
    threads = min(_THREADS, os.cpu_count() or 1, len(unread))
    if threads < 2:
        yield
        return
    pool = ThreadPoolExecutor(threads, "flexjudge-media")
    for one in unread:
        pool.submit(one.check)
    try:
        yield
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
