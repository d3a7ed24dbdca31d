"""What is at the path of a cache: a cache file, room for one, or something that is not ours and stays as it is.

Promised: only a regular file that is empty or has our application id in its header is ever taken for a cache, so only
such a file is written, replaced or moved. Devices, FIFOs and sockets are not opened.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from flexjudge_reward.engines.cache.tables import APPLICATION_ID
from flexjudge_reward.errors import ConfigError

_MAGIC, _ID_AT = b"SQLite format 3\0", 68  # of every SQLite file
_OTHERS = stat.S_IRWXO
_known: set[tuple[int, int]] = set()


def is_cache(path: Path, anew: bool = False) -> bool:
    """Whether a cache file is there, damaged or not; if not, one may be put there: there is nothing, or an empty file.

    To close a file drops all locks that SQLite holds on it in this process, so one that was a cache is read again only
    if `anew`. Raises ConfigError: something else is there; OSError: it cannot be read.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(status.st_mode):
        raise _refused(path, "it is not a regular file")
    if not status.st_size:
        return False
    if anew or (status.st_dev, status.st_ino) not in _known:
        head = _head(path)
        if head[_ID_AT:] != APPLICATION_ID.to_bytes(4, "big"):
            whose = "a database of another application" if head.startswith(_MAGIC) else "a file of another kind"
            raise _refused(path, f"it is {whose} and stays as it is")
        _known.add((status.st_dev, status.st_ino))
    return True


def shut_out_others(path: Path) -> None:
    """Takes the rights of users outside the file's group: replies quote what was judged, and rows can be forged."""
    for file in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))):
        with contextlib.suppress(FileNotFoundError):
            status = file.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_mode & _OTHERS and status.st_uid == os.geteuid():
                file.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS)


def _head(path: Path) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)  # it may have become a FIFO meanwhile
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise _refused(path, "it is not a regular file")
        return os.read(handle, _ID_AT + 4)
    finally:
        os.close(handle)


def _refused(path: Path, why: str) -> ConfigError:
    return ConfigError(f"cannot use the cache {path}: {why}; give another path")
