"""Media read in threads: decoders and hashes run beside each other on as many processors as there are."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from flexjudge_reward.media.base import Media

MOST_THREADS = 16


def read_all(media: Iterable[Media], threads: int = MOST_THREADS) -> None:
    """Reads what is not read yet, in order; errors stay with their item. An interruption leaves what was not begun."""
    unread = [one for one in {id(one): one for one in media}.values() if not one.is_read]
    threads = min(threads, os.cpu_count() or 1, len(unread))
    if threads < 2:
        for one in unread:
            with suppress(Exception):  # whoever needs it gets it
                one.check()
        return
    pool = ThreadPoolExecutor(threads, "flexjudge-media")
    try:
        for result in [pool.submit(one.check) for one in unread]:
            result.exception()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
