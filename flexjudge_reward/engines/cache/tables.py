"""The tables of the cache file, and the statements that read and change them.

Every function works on an open database and lets SQLite's errors through; `store.py` handles them. Keys are 32 bytes,
values are bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flexjudge_reward.errors import ConfigError

APPLICATION_ID = 0x464A5231  # "FJR1"; in the header of our files only
VERSION = 3
_READABLE = (2, VERSION)  # version 2 has the first table only; the first row that is stored adds the others
LOCK_TIMEOUT = 30.0  # seconds to wait for other processes
MAX_VALUE = 64 << 20  # bytes; a damaged length must not ask for gigabytes
MAX_WAL = 16 << 20  # bytes of the write-ahead log after which it is emptied
ROWS_AT_ONCE = 500  # per statement or transaction
_PAGES_KIB = 32 << 10  # of the file in memory: the inner pages of ten million rows, so that only leaves are read
HOUR = 3600  # seconds; last use is kept by the hour, so that reading rarely writes

_TABLES = """
CREATE TABLE replies (
    key BLOB NOT NULL UNIQUE,
    used INTEGER NOT NULL,    -- hours since 1970 when last stored or served
    stored INTEGER NOT NULL,  -- seconds since 1970
    model BLOB NOT NULL,      -- the judge's name
    checksum BLOB NOT NULL,   -- over key and value
    value BLOB NOT NULL,
    request BLOB NOT NULL     -- the document that the key is the hash of; packed, with its frame's id before it
);
CREATE INDEX replies_by_use ON replies (used);
"""
# A frame is what the documents of a batch have in common. A picture is a file by its hash, and the digest of its
# pixels with a checksum over both: a picture that was judged before need not be decoded to find its replies.
_ADDED = (
    "CREATE TABLE IF NOT EXISTS frames (id BLOB PRIMARY KEY, frame BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS pictures (file BLOB NOT NULL UNIQUE, digest BLOB NOT NULL)",
)
_FRAMED = b"\xf1"  # begins a request that has a frame; a plain one is a zlib stream, which begins with 0x78
_ID = 8  # bytes of a frame's id
_DIGEST = 32  # bytes of a picture's
_BYTES_A_PICTURE = 1 << 10  # of the file's limit; it takes 150
_BYTES_A_FRAME = 64 << 10  # of the file's limit; a frame has about one KiB


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
    frame: bytes = b""
    """What `request` is packed against; empty for none."""

    @property
    def size(self) -> int:
        """Bytes it takes at most: a long value fills whole pages of its own."""
        return len(self.value) + len(self.request) + 4096


@dataclass(frozen=True)
class FileSummary:
    """What a cache file holds, and when its oldest and newest rows were stored, in seconds since 1970."""

    rows: int
    models: dict[str, int]
    """Rows of each judge."""
    oldest: int | None
    newest: int | None


def create(path: Path) -> None:
    """Fills the empty file `path`."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.executescript(_TABLES)
        for table in _ADDED:
            db.execute(table)


def connect(path: Path) -> sqlite3.Connection:
    """Opens the existing file `path`, without reading it."""
    return sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=LOCK_TIMEOUT, isolation_level=None, check_same_thread=False
    )


def prepare(db: sqlite3.Connection, path: Path) -> None:
    """Sets up a new connection to a file that has our id; writes nothing.

    Raises ConfigError for another version of it, sqlite3.DatabaseError for damage.
    """
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
    db.text_factory = bytes  # damaged text must not raise while it is read
    memory = f"cache_size = -{_PAGES_KIB}"
    for setting in ("synchronous = NORMAL", "trusted_schema = OFF", "secure_delete = OFF", memory):
        db.execute(f"PRAGMA {setting}")
    application, version = _number(db, "application_id"), _number(db, "user_version")
    if application == APPLICATION_ID and version in _READABLE:
        return
    if application == APPLICATION_ID:
        raise ConfigError(f"the cache {path} was written by another version of flexjudge_reward; give another path")
    raise sqlite3.DatabaseError("its log changes the header")


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Takes the write lock at its start: a later upgrade from reading could fail without waiting."""
    db.execute("BEGIN IMMEDIATE")
    yield  # on an exception the store closes the connection, which rolls back
    db.execute("COMMIT")


def lookup(db: sqlite3.Connection, keys: Sequence[bytes]) -> tuple[dict[bytes, bytes], list[bytes], list[bytes]]:
    """(values of `keys`, those of `keys` that were not used this hour, keys of damaged rows).

    The checksum covers the requested key, so a wrong row never passes.
    """
    values: dict[bytes, bytes] = {}
    stale, damaged, requested, now = [], [], set(keys), hour()
    for start in range(0, len(keys), ROWS_AT_ONCE):
        part = keys[start : start + ROWS_AT_ONCE]
        marks = ",".join("?" * len(part))
        rows = db.execute(f"SELECT key, used, checksum, value FROM replies WHERE key IN ({marks})", part).fetchall()
        for key, used, checksum, value in rows:
            if not (key in requested and isinstance(value, bytes) and checksum == checksum_of(key, value)):
                damaged.append(key)
                continue
            values[key] = value
            if used != now:
                stale.append(key)
    return values, stale, damaged


def insert(db: sqlite3.Connection, rows: Sequence[Row], limit: int) -> int:
    """Adds the rows whose keys are new; evicts the least recently used while the file would pass `limit` bytes.

    How many were evicted.
    """
    _bring_up(db)
    incoming, went, evicted = sum(row.size for row in rows), 1, 0
    while went and used_bytes(db) + incoming > limit:
        replies, pictures = _delete_oldest(db, 2 * len(rows) + 16)
        went, evicted = replies + pictures, evicted + replies
    ids = {frame: _frame_id(db, frame, limit // _BYTES_A_FRAME) for frame in {row.frame for row in rows} if frame}
    used, now = hour(), int(time.time())
    for row in rows:
        values = (row.key, used, now, row.model.encode(errors="replace"), checksum_of(row.key, row.value))
        statement = "INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING"
        db.execute(statement, (*values, row.value, _stored_request(row, ids.get(row.frame))))
    return evicted


def _frame_id(db: sqlite3.Connection, frame: bytes, most: int) -> bytes | None:
    """The id of a frame, which is stored if it is new; None if there are `most` already, since none is evicted."""
    name = hashlib.sha256(frame).digest()[:_ID]
    known = db.execute("SELECT 1 FROM frames WHERE id = ?", (name,)).fetchone()
    if not known and db.execute("SELECT COUNT(*) FROM frames").fetchone()[0] >= most:
        return None
    db.execute("INSERT OR IGNORE INTO frames VALUES (?, ?)", (name, frame))
    return name


def _stored_request(row: Row, frame: bytes | None) -> bytes:
    if frame is not None:
        return _FRAMED + frame + row.request
    return zlib.compress(zlib.decompressobj(zdict=row.frame).decompress(row.request), 1) if row.frame else row.request


def pictures(db: sqlite3.Connection, files: Sequence[bytes]) -> dict[bytes, bytes]:
    """The digests of those files, by their hashes, that are known."""
    known: dict[bytes, bytes] = {}
    if _number(db, "user_version") < VERSION:
        return known
    for start in range(0, len(files), ROWS_AT_ONCE):
        part = files[start : start + ROWS_AT_ONCE]
        marks = ",".join("?" * len(part))
        rows = db.execute(f"SELECT file, digest FROM pictures WHERE file IN ({marks})", part).fetchall()
        known.update({file: digest[:_DIGEST] for file, digest in rows if _is_sound(file, digest)})
    return known


def _is_sound(file: object, digest: object) -> bool:
    """Whether a picture's row is as it was written; one of an earlier release has no checksum, and does not count."""
    if not isinstance(file, bytes) or not isinstance(digest, bytes):
        return False
    return digest[_DIGEST:] == checksum_of(file, digest[:_DIGEST])


def name_pictures(db: sqlite3.Connection, known: Mapping[bytes, bytes], limit: int) -> None:
    """Notes the digests of files. They take a small part of `limit` bytes: a reply costs more than decoding."""
    _bring_up(db)
    rows = [(file, digest + checksum_of(file, digest)) for file, digest in known.items()]
    mend = "ON CONFLICT (file) DO UPDATE SET digest = excluded.digest WHERE digest != excluded.digest"
    db.executemany(f"INSERT INTO pictures VALUES (?, ?) {mend}", rows)
    last = "SELECT MAX(rowid) FROM pictures"
    db.execute(f"DELETE FROM pictures WHERE rowid <= ({last}) - ?", (limit // _BYTES_A_PICTURE,))


def _bring_up(db: sqlite3.Connection) -> None:
    """Adds what an earlier version of the file lacks. That version then refuses it, since it cannot read its rows."""
    if _number(db, "user_version") < VERSION:
        for table in _ADDED:
            db.execute(table)
        db.execute(f"PRAGMA user_version = {VERSION}")


def touch(db: sqlite3.Connection, stale: Sequence[bytes], damaged: Sequence[bytes]) -> None:
    """Notes the use of `stale` rows and removes `damaged` ones."""
    now = hour()
    db.executemany("UPDATE replies SET used = ? WHERE key = ?", [(now, key) for key in stale])
    db.executemany("DELETE FROM replies WHERE key = ?", [(key,) for key in damaged])


def summary(db: sqlite3.Connection) -> FileSummary:
    """Counts; reads the whole table."""
    models = db.execute("SELECT model, COUNT(*) FROM replies GROUP BY model ORDER BY COUNT(*) DESC").fetchall()
    oldest, newest = db.execute("SELECT MIN(stored), MAX(stored) FROM replies").fetchone()
    by_model = {_decoded(model): number for model, number in models}
    return FileSummary(sum(by_model.values()), by_model, oldest, newest)


def newest(db: sqlite3.Connection, limit: int, digits: str = "") -> list[Row]:
    """The last stored rows whose key begins with these hexadecimal digits, newest first, without their values."""
    query = "SELECT key, request, model, stored FROM replies WHERE hex(key) LIKE ? ORDER BY rowid DESC LIMIT ?"
    rows, frames = db.execute(query, (f"{digits}%", limit)).fetchall(), _frames(db)
    found = [(key, *_unframed(request, frames), _decoded(model), stored) for key, request, model, stored in rows]
    return [Row(key, b"", request, model, stored, frame) for key, request, frame, model, stored in found]


def prune(db: sqlite3.Connection, max_bytes: int | None, unused_seconds: float | None) -> int:
    """How many rows were removed until both limits hold; shrinks the file."""
    removed = 0
    with transaction(db):
        if unused_seconds is not None:
            before = int((time.time() - unused_seconds) // HOUR)
            removed += db.execute("DELETE FROM replies WHERE used < ?", (before,)).rowcount
        while max_bytes is not None and used_bytes(db) > max_bytes and any(went := _delete_oldest(db, 64)):
            removed += went[0]
        if _number(db, "user_version") >= VERSION:
            used = f"SELECT substr(request, 2, {_ID}) FROM replies"
            db.execute(f"DELETE FROM frames WHERE id NOT IN ({used})")
    if removed:
        db.execute("VACUUM")
        empty_log(db)
    return removed


def verify(db: sqlite3.Connection, is_intact: Callable[[Row], bool]) -> tuple[int, int]:
    """(rows checked, rows removed as damaged). Raises sqlite3.DatabaseError if the structure of the file is damaged."""
    checked, last, bad = 0, -(1 << 63), []
    frames: dict[bytes, bytes] = {b"": b""}
    query = "SELECT rowid, key, checksum, value, request FROM replies WHERE rowid > ? ORDER BY rowid LIMIT 200"
    while rows := db.execute(query, (last,)).fetchall():
        if any(_frame_of(row[-1]) not in frames for row in rows):
            frames = {b"": b""} | _frames(db)  # another process added one
        for rowid, key, checksum, value, request in rows:
            whole = all(isinstance(part, bytes) for part in (key, value, request))
            request, frame = _unframed(request, frames) if whole else (b"", b"")
            found = Row(key, value, request, frame=frame)
            if not (whole and checksum == checksum_of(key, value) and is_intact(found)):
                bad.append((rowid,))
        checked, last = checked + len(rows), rows[-1][0]
    with transaction(db):
        db.executemany("DELETE FROM replies WHERE rowid = ?", bad)
        if _number(db, "user_version") >= VERSION:
            shown = db.execute("SELECT rowid, file, digest FROM pictures")
            damaged = [(rowid,) for rowid, file, digest in shown if not _is_sound(file, digest)]
            db.executemany("DELETE FROM pictures WHERE rowid = ?", damaged)
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


def _delete_oldest(db: sqlite3.Connection, number: int) -> tuple[int, int]:
    """The replies and the pictures that went."""
    oldest = "SELECT rowid FROM replies ORDER BY used, rowid LIMIT ?"
    replies = db.execute(f"DELETE FROM replies WHERE rowid IN ({oldest})", (number,)).rowcount
    if _number(db, "user_version") < VERSION:
        return replies, 0
    first = "SELECT rowid FROM pictures ORDER BY rowid LIMIT ?"
    return replies, db.execute(f"DELETE FROM pictures WHERE rowid IN ({first})", (number,)).rowcount


def _frames(db: sqlite3.Connection) -> dict[bytes, bytes]:
    return dict(db.execute("SELECT id, frame FROM frames")) if _number(db, "user_version") >= VERSION else {}


def _frame_of(request: object) -> bytes:
    """The id of its frame; empty for none."""
    return request[1 : 1 + _ID] if isinstance(request, bytes) and request.startswith(_FRAMED) else b""


def _unframed(request: bytes, frames: Mapping[bytes, bytes]) -> tuple[bytes, bytes]:
    """A stored request, and its frame."""
    name = _frame_of(request)
    return (request[1 + _ID :], frames.get(name, b"")) if name else (request, b"")


def _number(db: sqlite3.Connection, pragma: str) -> int:
    return int(db.execute(f"PRAGMA {pragma}").fetchone()[0])


def _decoded(text: object) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else repr(text)
