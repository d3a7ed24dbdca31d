"""What is inside the cache file: its tables, and the statements that read and change them.

Every function works on an open database and lets SQLite's errors through; what to do about them is decided in
`store/__init__.py`. Values are bytes here, keys are 32 bytes; nothing knows what they mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flexjudge_reward.errors import ConfigError

APPLICATION_ID = 0x464A5231  # "FJR1"; stands in the header of our files and of nobody else's
VERSION = 1
LOCK_TIMEOUT = 30.0  # seconds to wait for other processes
MAX_VALUE = 64 << 20  # bytes; a damaged length must not ask for gigabytes
MAX_WAL = 16 << 20  # bytes of the write-ahead log after which it is emptied
CHUNK = 500  # rows per statement or transaction
HOUR = 3600  # seconds; last use is kept by the hour, so that reading rarely writes

_TABLES = """
CREATE TABLE replies (
    key BLOB NOT NULL UNIQUE,
    used INTEGER NOT NULL,    -- hours since 1970 when last stored or served
    stored INTEGER NOT NULL,  -- seconds since 1970
    model BLOB NOT NULL,      -- the judge's name, for statistics
    checksum BLOB NOT NULL,   -- over key and value
    value BLOB NOT NULL,
    request BLOB NOT NULL     -- what the key was made of
);
CREATE INDEX replies_by_use ON replies (used);
CREATE TABLE totals (name TEXT PRIMARY KEY, count INTEGER NOT NULL);
INSERT INTO totals VALUES ('hits', 0), ('misses', 0);
"""


@dataclass(frozen=True)
class Row:
    """One reply, to store or as found."""

    key: bytes
    """32 bytes."""
    value: bytes
    request: bytes
    model: str = ""
    stored: int = 0
    """Seconds since 1970; set by the store."""

    @property
    def size(self) -> int:
        """Bytes it takes at most: a long value fills whole pages of its own."""
        return len(self.value) + len(self.request) + 4096


@dataclass(frozen=True)
class Found:
    """What a lookup gave: sound values, keys not touched this hour, keys of damaged rows."""

    values: dict[bytes, bytes]
    stale: list[bytes]
    bad: list[bytes]


@dataclass(frozen=True)
class Summary:
    """What a cache file holds."""

    rows: int
    models: dict[str, int]
    """Rows of each judge."""
    hits: int
    """Replies served, all processes together; a killed process may not have counted its last ones."""
    misses: int
    oldest: int | None
    """When stored, in seconds since 1970; None when empty."""
    newest: int | None


def create(path: Path) -> None:
    """Fills the empty file `path`."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.executescript(_TABLES)


def connect(path: Path) -> sqlite3.Connection:
    """Opens the existing file `path`, without reading it."""
    return sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=LOCK_TIMEOUT, isolation_level=None, check_same_thread=False
    )


def prepare(db: sqlite3.Connection, path: Path) -> None:
    """Sets up a new connection and checks that the file is ours; writes nothing.

    Raises:
        ConfigError: a healthy database, but of another application or version.
        sqlite3.DatabaseError: damaged.
    """
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
    db.text_factory = bytes  # damaged text must not raise while it is read
    for setting in ("synchronous = NORMAL", "trusted_schema = OFF", "secure_delete = OFF"):
        db.execute(f"PRAGMA {setting}")
    db.execute(f"PRAGMA journal_size_limit = {MAX_WAL}")
    application, version = _number(db, "application_id"), _number(db, "user_version")
    if (application, version) == (APPLICATION_ID, VERSION):
        return
    if application == APPLICATION_ID:
        raise ConfigError(f"the cache {path} was written by another version of flexjudge_reward; give another path")
    names = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
    if not names or b"replies_by_use" in names:
        raise sqlite3.DatabaseError("its header is not ours, but its tables are" if names else "it holds no tables")
    raise ConfigError(f"{path} is a database of another application, not a cache; give another path")


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Takes the write lock at its start: a later upgrade from reading could fail without waiting."""
    deadline = time.monotonic() + LOCK_TIMEOUT
    # SQLite itself sleeps up to 100 ms between two tries, in which eight writers stand idle.
    db.execute("PRAGMA busy_timeout = 0")
    while True:
        try:
            db.execute("BEGIN IMMEDIATE")
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.0005, 0.003))
    db.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT * 1000:.0f}")
    yield  # on an exception the store closes the connection, which rolls back
    db.execute("COMMIT")


def lookup(db: sqlite3.Connection, keys: Sequence[bytes]) -> Found:
    """The sound rows of `keys`. A checksum is taken over the key that was asked for, so a wrong row never passes."""
    found, asked, now = Found({}, [], []), set(keys), hour()
    for start in range(0, len(keys), CHUNK):
        part = keys[start : start + CHUNK]
        marks = ",".join("?" * len(part))
        rows = db.execute(f"SELECT key, used, checksum, value FROM replies WHERE key IN ({marks})", part).fetchall()
        for key, used, checksum, value in rows:
            if not (key in asked and isinstance(value, bytes) and checksum == checksum_of(key, value)):
                found.bad.append(key)
                continue
            found.values[key] = value
            if used != now:
                found.stale.append(key)
    return found


def insert(db: sqlite3.Connection, rows: Sequence[Row], limit: int) -> None:
    """Adds the rows whose keys are new, first removing the longest unused while the file would pass `limit` bytes."""
    incoming, went = sum(row.size for row in rows), 1
    while went and used_bytes(db) + incoming > limit:
        went = _delete_oldest(db, 2 * len(rows) + 16)
    used, now = hour(), int(time.time())
    db.executemany(
        "INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
        [(r.key, used, now, _encoded(r.model), checksum_of(r.key, r.value), r.value, r.request) for r in rows],
    )


def touch(db: sqlite3.Connection, stale: Sequence[bytes], bad: Sequence[bytes]) -> None:
    """Notes the use of `stale` rows and removes `bad` ones."""
    now = hour()
    db.executemany("UPDATE replies SET used = ? WHERE key = ?", [(now, key) for key in stale])
    db.executemany("DELETE FROM replies WHERE key = ?", [(key,) for key in bad])


def count(db: sqlite3.Connection, totals: Mapping[str, int]) -> None:
    """Adds to the file's hits and misses."""
    db.executemany("UPDATE totals SET count = count + ? WHERE name = ?", [(n, name) for name, n in totals.items()])


def summary(db: sqlite3.Connection) -> Summary:
    """Counts; reads the whole table."""
    models = db.execute("SELECT model, COUNT(*) FROM replies GROUP BY model ORDER BY COUNT(*) DESC").fetchall()
    oldest, newest = db.execute("SELECT MIN(stored), MAX(stored) FROM replies").fetchone()
    totals = dict(db.execute("SELECT name, count FROM totals").fetchall())
    return Summary(
        rows=sum(number for _, number in models),
        models={_decoded(model): number for model, number in models},
        hits=totals.get(b"hits", 0),
        misses=totals.get(b"misses", 0),
        oldest=oldest,
        newest=newest,
    )


def newest(db: sqlite3.Connection, limit: int) -> list[Row]:
    """The last stored rows, newest first, without their values."""
    return _requests(db.execute(f"{_REQUESTS} ORDER BY rowid DESC LIMIT ?", (limit,)))


def beginning(db: sqlite3.Connection, prefix: bytes) -> list[Row]:
    """A few rows whose key begins with `prefix`, without their values."""
    end = prefix + b"\xff" * (33 - len(prefix))
    return _requests(db.execute(f"{_REQUESTS} WHERE key BETWEEN ? AND ? LIMIT 20", (prefix, end)))


def prune(db: sqlite3.Connection, max_bytes: int | None, unused_seconds: float | None) -> int:
    """Removes rows until both limits hold, the longest unused first, and shrinks the file. How many went."""
    removed = 0
    with transaction(db):
        if unused_seconds is not None:
            before = int((time.time() - unused_seconds) // HOUR)
            removed += db.execute("DELETE FROM replies WHERE used < ?", (before,)).rowcount
        while max_bytes is not None and used_bytes(db) > max_bytes and (went := _delete_oldest(db, 64)):
            removed += went
    if removed:
        db.execute("VACUUM")
        empty_log(db)
    return removed


def verify(db: sqlite3.Connection, sound: Callable[[Row], bool]) -> tuple[int, int]:
    """Checks each row's checksum and `sound`, removes the bad ones: (rows checked, rows removed).

    Raises:
        sqlite3.DatabaseError: the structure of the file is damaged.
    """
    checked, last, bad = 0, -(1 << 63), []
    query = "SELECT rowid, key, checksum, value, request FROM replies WHERE rowid > ? ORDER BY rowid LIMIT 200"
    while rows := db.execute(query, (last,)).fetchall():
        for rowid, key, checksum, value, request in rows:
            whole = all(isinstance(part, bytes) for part in (key, value, request))
            if not (whole and checksum == checksum_of(key, value) and sound(Row(key, value, request))):
                bad.append((rowid,))
        checked, last = checked + len(rows), rows[-1][0]
    with transaction(db):
        db.executemany("DELETE FROM replies WHERE rowid = ?", bad)
    problem = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if problem != b"ok":
        raise sqlite3.DatabaseError(_decoded(problem))
    return checked, len(bad)


def empty_log(db: sqlite3.Connection) -> None:
    """Moves the write-ahead log into the file and empties it, if no other process is in the way."""
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def used_bytes(db: sqlite3.Connection) -> int:
    """Bytes of the pages in use."""
    return (_number(db, "page_count") - _number(db, "freelist_count")) * _number(db, "page_size")


def checksum_of(key: bytes, value: bytes) -> bytes:
    """16 bytes over key and value."""
    return hashlib.sha256(key + value).digest()[:16]


def hour() -> int:
    """Hours since 1970."""
    return int(time.time() // HOUR)


_REQUESTS = "SELECT key, request, model, stored FROM replies"


def _requests(cursor: sqlite3.Cursor) -> list[Row]:
    return [Row(key, b"", request, _decoded(model), stored) for key, request, model, stored in cursor.fetchall()]


def _delete_oldest(db: sqlite3.Connection, number: int) -> int:
    oldest = "SELECT rowid FROM replies ORDER BY used, rowid LIMIT ?"
    return db.execute(f"DELETE FROM replies WHERE rowid IN ({oldest})", (number,)).rowcount


def _number(db: sqlite3.Connection, pragma: str) -> int:
    return int(db.execute(f"PRAGMA {pragma}").fetchone()[0])


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _decoded(text: object) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else repr(text)
