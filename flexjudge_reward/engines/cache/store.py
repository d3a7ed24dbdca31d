"""The cache file: one SQLite database of judge replies by key, shared by the processes of one machine.

It does not know what keys and values mean.

Promised:
* what `put` returned for is there after a SIGKILL of any process;
* a row whose checksum over key and value fails is never served: it is a miss, and is removed;
* a damaged cache is renamed to `<name>.damaged-<time>` and a new one started; nothing is deleted unseen;
* what is no cache (`place.py`) is left alone, byte for byte; a link leads to its file and stays;
* a file that cannot be used (not ours, not writable, disk full, remote file system, locked) costs one warning, not the
  run;
* users outside the file's group get no right to it, also where it had one; a new file is for its user only;
* the file, with its log, stays below its size limit: the least recently used replies are evicted first.

Not promised: keeping the last commits through a power loss (the file stays consistent), network file systems, Windows,
or a side file (`-wal`, `-shm`) that is shortened while in use.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from flexjudge_reward.engines.cache import place, tables
from flexjudge_reward.engines.cache.tables import MAX_VALUE, MAX_WAL, ROWS_AT_ONCE, FileSummary, Row
from flexjudge_reward.errors import ConfigError

T = TypeVar("T")
log = logging.getLogger(__name__)

PAUSE = 60.0  # seconds without the file after it could not be used

_REMOTE = frozenset(
    "nfs nfs4 cifs smb3 smbfs ncpfs afs lustre gpfs beegfs ceph glusterfs 9p pvfs2 orangefs wekafs fuse.sshfs "
    "fuse.ceph-fuse fuse.glusterfs fuse.s3fs fuse.gcsfuse fuse.rclone fuse.juicefs fuse.goofys".split()
)

# SQLite's primary result codes about the moment (rights, locks, space, use), not about the file's content.
_PASSING = frozenset(
    getattr(sqlite3, f"SQLITE_{name}")
    for name in "PERM BUSY LOCKED NOMEM READONLY INTERRUPT IOERR FULL CANTOPEN PROTOCOL MISUSE NOLFS AUTH RANGE".split()
)


class Store:
    """Rows by key in one file. Thread-safe; opens at first use; works after a fork."""

    _connection: sqlite3.Connection | None = None

    def __init__(self, path: Path, max_bytes: int) -> None:
        """
        Args:
            path: the file; missing folders are made, the last for its user only (0700).
            max_bytes: size limit of the file with its log, at least 1 MiB.
        """
        if max_bytes < 1 << 20:
            raise ConfigError(f"the size limit of a cache must be at least {1 << 20} bytes, found {max_bytes!r}")
        # Side files belong beside the file itself, and a link is never replaced.
        self.path = Path(os.path.realpath(path.expanduser()))
        self.max_bytes = max_bytes
        self.set_aside: list[Path] = []
        """Damaged files that this object moved away, by their new names."""
        self.lock = threading.Lock()
        """Held during each use of the file, and never by another thread while this process forks."""
        self._opened: tuple[int, int] | None = None
        self._paused: dict[str, float] = {}
        self._warned: set[str] = set()

    # ---- while judging: never raises, whatever the state of the file

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are stored and sound."""
        values, stale, damaged = self._unless_paused("read", lambda db: tables.lookup(db, keys)) or ({}, [], [])
        if damaged:
            self._warn("rows", f"{self.path} holds damaged rows; they were not served (see `flexjudge cache verify`)")
        if damaged or stale:
            self._write(tables.touch, stale, damaged)
        return values

    def put(self, rows: Sequence[Row]) -> int:
        """Stores the rows whose keys are new; how many were taken. They survive a crash once this returns."""
        taken, limit = 0, self.max_bytes - min(MAX_WAL, self.max_bytes // 8)
        for part in self._parts(rows):
            if not self._write(self._insert, part, limit):
                break
            taken += len(part)
        return taken

    def pictures(self, files: Sequence[bytes]) -> dict[bytes, bytes]:
        """The digest of the pixels of those files, by their hashes, that are known."""
        return self._unless_paused("read", lambda db: tables.pictures(db, files)) or {}

    def name_pictures(self, known: Mapping[bytes, bytes]) -> None:
        """Notes the digests of files."""
        self._write(tables.name_pictures, known, self.max_bytes)

    def _insert(self, db: sqlite3.Connection, rows: Sequence[Row], limit: int) -> None:
        if tables.insert(db, rows, limit):
            room = f"{self.path} has reached its limit of {self.max_bytes:,} bytes"
            self._warn("full", f"{room}: the least recently used replies are evicted (raise cache_bytes to keep more)")

    def close(self) -> None:
        """Closes the file; the next use opens it again."""
        with self.lock:
            self._disconnect()

    def __del__(self) -> None:
        self._disconnect()

    # ---- maintenance operations: raise ConfigError when the file cannot be used

    def summary(self) -> FileSummary:
        """Counts; reads the whole file."""
        return self._do(tables.summary)

    @property
    def disk_bytes(self) -> int:
        """Size on disk of the file and its log."""
        return sum(_size(self._beside(suffix)) for suffix in ("", "-wal"))

    def newest(self, limit: int, digits: str = "") -> list[Row]:
        """The last stored rows whose key begins with these hexadecimal digits, newest first, without their values."""
        return self._do(lambda db: tables.newest(db, limit, digits))

    def prune(self, max_bytes: int | None = None, unused_seconds: float | None = None) -> int:
        """Removes rows, the least recently used first, until both limits hold, and shrinks the file. How many went."""
        return self._do(lambda db: tables.prune(db, max_bytes, unused_seconds))

    def verify(self, is_intact: Callable[[Row], bool]) -> tuple[int, int]:
        """Checks every row's checksum and `is_intact`, removes the bad ones: (rows checked, rows removed).

        If the structure of the file is damaged, it is set aside (see `set_aside`); the result is that of the new file.
        """
        return self._do(lambda db: tables.verify(db, is_intact))

    # ---- what happens when the file cannot be used

    def _write(self, change: Callable[..., None], *arguments: object) -> bool:
        """Whether `change(db, *arguments)` was made, as one transaction."""

        def write(db: sqlite3.Connection) -> bool:
            with tables.transaction(db):
                change(db, *arguments)
            if _size(self._beside("-wal")) > min(MAX_WAL, self.max_bytes // 16):
                tables.empty_log(db)  # readers kept SQLite from starting it over
            return True

        return bool(self._unless_paused("write", write))

    def _unless_paused(self, kind: str, operation: Callable[[sqlite3.Connection], T]) -> T | None:
        if time.monotonic() < self._paused.get(kind, 0.0):
            return None
        try:
            return self._do(operation)
        except ConfigError as error:
            self._paused[kind] = time.monotonic() + PAUSE
            self._warn("unusable", f"{error}. Judging continues without the cache")
            return None

    def _do(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `operation` on the open file; a damaged file is set aside, and a new one tried once."""
        if self not in _STORES:
            _close_before_forks(self)  # before the lock: a fork takes both locks in this order
        with self.lock:
            try:
                try:
                    return operation(self._connect())
                except (sqlite3.Error, UnicodeDecodeError) as error:
                    if not _is_damage(error):
                        raise
                    self._move_away(error)
                    return operation(self._connect())
            except (sqlite3.Error, OSError, MemoryError, UnicodeDecodeError) as error:
                self._disconnect()
                raise ConfigError(f"cannot use the cache {self.path}: {error or type(error).__name__}") from error
            except BaseException:
                self._disconnect()  # an interrupted transaction must not stay open
                raise

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("%s", text)

    def _move_away(self, error: Exception) -> None:
        damaged = self._opened
        self._disconnect()
        with self._file_lock():
            if damaged != _inode(self.path):
                return  # another process was faster
            place.is_cache(self.path, anew=True)  # a new file may have the number of one that was deleted
            target = self._rename(("", "-wal", "-shm"))
        self.set_aside.append(target)
        log.warning(
            "the cache %s was damaged (%s) and set aside as %s; a new one was started", self.path, error, target
        )

    def _rename(self, suffixes: Sequence[str]) -> Path:
        now = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09}"
        target = self._beside(f".damaged-{now}")
        for suffix in suffixes:
            with contextlib.suppress(FileNotFoundError):
                self._beside(suffix).rename(target.with_name(target.name + suffix))
        return target

    # ---- opening

    def _connect(self) -> sqlite3.Connection:
        inode = _inode(self.path)
        if self._connection is not None and self._opened == inode:
            return self._connection
        self._disconnect()  # never opened, or another process put a new file in this place
        if kind := remote_filesystem(self.path):
            raise ConfigError(
                f"cannot use the cache {self.path}: it is on a {kind} file system, where file locks may not hold;"
                " give a path on a local disk, for example in FLEXJUDGE_CACHE"
            )
        if not place.is_cache(self.path):
            self._create()
            inode = _inode(self.path)
        place.shut_out_others(self.path)
        self._connection, self._opened = tables.connect(self.path), inode
        tables.prepare(self._connection, self.path)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection, self._opened = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _create(self) -> None:
        """A complete file appears under its name at once, so no process opens half of one."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._file_lock():
            if place.is_cache(self.path):
                return  # another process was faster
            self._rename(("-wal", "-shm"))  # without their file; a crash while it was set aside leaves them
            with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=f"{self.path.name}.new-") as folder:
                fresh = Path(folder) / self.path.name
                fresh.touch(0o600)
                tables.create(fresh)
                if not place.is_cache(self.path):
                    fresh.replace(self.path)

    @contextlib.contextmanager
    def _file_lock(self) -> Iterator[None]:
        import fcntl  # not on Windows, where importing the package still works

        handle = os.open(self._beside(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _parts(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """`rows`, without the huge ones, in transactions that leave the log small."""
        part: list[Row] = []
        size, limit = 0, min(MAX_VALUE // 4, self.max_bytes // 32)
        for row in rows:
            if row.size > limit:
                continue
            part.append(row)
            size += row.size
            if len(part) == ROWS_AT_ONCE or size > limit:
                yield part
                part, size = [], 0
        if part:
            yield part


def remote_filesystem(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """The kind of network file system that `path` is on; None if it is local or the system does not tell."""
    try:
        lines = mounts.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    target, best, kind = os.path.realpath(path), "", ""
    for line in lines:
        point, found = line.split(" ")[1:3]
        point = point.replace("\\040", " ").rstrip("/")
        if (target == point or target.startswith(f"{point}/")) and len(point) >= len(best):
            best, kind = point, found
    return kind if kind in _REMOTE else None


def _is_damage(error: Exception) -> bool:
    """Whether an error speaks of the file's content. The statements are fixed, so "no such table" does too."""
    if isinstance(error, UnicodeDecodeError):
        return True  # SQLite quotes a damaged schema in its message, which Python then cannot read
    if not isinstance(error, sqlite3.DatabaseError) or isinstance(error, sqlite3.ProgrammingError):
        return False
    return (getattr(error, "sqlite_errorcode", 1) & 0xFF) not in _PASSING


def _inode(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


# SQLite's locks belong to a process, its notes about them to memory that a fork copies: a child that inherited an open
# file would believe in locks it does not hold. So every file is closed before a fork and opens again at its next use.

_STORES: weakref.WeakSet[Store] = weakref.WeakSet()
_FORKING = threading.Lock()
_HELD: list[Store] = []
_hooked = False


def _close_before_forks(store: Store) -> None:
    """Called before a file is first used, so that a program without a cache has no fork hooks."""
    global _hooked
    with _FORKING:
        _STORES.add(store)
        if not _hooked:
            os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
            _hooked = True


def _before_fork() -> None:
    _FORKING.acquire()
    for store in list(_STORES):
        store.lock.acquire()
        store._disconnect()
        _HELD.append(store)


def _after_fork() -> None:
    while _HELD:
        _HELD.pop().lock.release()
    _FORKING.release()
