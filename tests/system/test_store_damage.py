"""The cache file damaged, deleted, raced for, or not ours: no wrong reply, no harm to other files. Through
`CachedEngine` where a promise is about replies, through `Store` where it is about the file."""

from __future__ import annotations

import os
import random
import shutil
import socket
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import ConfigError
from flexjudge_reward.engines.cache.store import Store
from support.cache_files import FORK, LIMIT, NAMES, ask_all, cached, row, set_aside, use

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


# ---- damage


def flip(path: Path, place: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def usable(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every reply is right, and after at most two uses all are served again, or a warning says that they are not."""
    caplog.clear()
    assert any(use(path, NAMES) == len(NAMES) for _ in range(3)) or "continues without the cache" in caplog.text


def test_no_bit_flip_serves_a_wrong_reply(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the header, in the rest of the first page (the schema) and anywhere."""
    rng = random.Random(1)
    size = filled.stat().st_size
    places = [
        *range(0, 100, 5),
        *(rng.randrange(100, 4096) for _ in range(10)),
        *(rng.randrange(size) for _ in range(30)),
    ]
    for number, place in enumerate(places):
        copy = filled.parent / f"{number}" / "replies.sqlite"
        copy.parent.mkdir()
        shutil.copy(filled, copy)
        flip(copy, place, rng.randrange(8))
        usable(copy, caplog)


def test_a_flip_in_every_stored_reply_is_seen(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(sqlite3.connect(filled)) as db:
        for row, value in db.execute("SELECT rowid, value FROM replies").fetchall():
            db.execute("UPDATE replies SET value = ? WHERE rowid = ?", (value[:-1] + bytes([value[-1] ^ 1]), row))
        db.commit()
    assert use(filled, NAMES) == 0
    assert caplog.text.count("damaged rows") == 1
    assert use(filled, NAMES) == len(NAMES) and set_aside(filled) == []


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_a_file_cut_short(filled: Path, share: float, caplog: pytest.LogCaptureFixture) -> None:
    os.truncate(filled, max(1, int(filled.stat().st_size * share)))
    usable(filled, caplog)
    assert len(set_aside(filled)) == caplog.text.count("set aside") == (0.001 < share < 0.99)


@pytest.mark.parametrize("suffix", ["-wal", "-shm", ".lock", ""])
def test_files_deleted_under_a_running_process(filled: Path, suffix: str) -> None:
    engine = cached(filled)[0]
    ask_all(engine, ["before"])
    filled.with_name(filled.name + suffix).unlink(missing_ok=True)
    ask_all(engine, ["after"])
    engine.close()
    assert use(filled, NAMES) in (0, len(NAMES))
    assert use(filled, NAMES) == len(NAMES)


def test_a_log_without_its_file_is_not_replayed(filled: Path, tmp_path: Path) -> None:
    store = Store(filled, LIMIT)
    store.put([row(1)])
    shutil.copy(f"{filled}-wal", tmp_path / "wal")
    store.close()
    filled.unlink()
    shutil.copy(tmp_path / "wal", f"{filled}-wal")
    assert Store(filled, LIMIT).summary().rows == 0
    assert len(list(filled.parent.glob("*.damaged-*-wal"))) == 1


def hold_open(path: Path, damaged: Any, results: Any) -> None:
    engine = cached(path)[0]
    ask_all(engine, ["mine"])
    results.put(None)
    damaged.wait()
    results.put(ask_all(engine, ["mine", "theirs"]))
    ask_all(engine, ["late"])
    engine.close()
    results.put(engine.store.set_aside)


def test_one_process_sets_the_file_aside_for_all(filled: Path) -> None:
    damaged, results = FORK.Event(), FORK.Queue()
    worker = FORK.Process(target=hold_open, args=(filled, damaged, results))
    worker.start()
    results.get(timeout=240)
    with filled.open("r+b") as file:
        file.seek(100)  # without its header it is not known to be ours
        file.write(b"\xff" * (filled.stat().st_size - 100))
    engine = cached(filled)[0]
    ask_all(engine, ["theirs", *NAMES])  # what the log does not hold is read from the file
    assert len(engine.store.set_aside) == 1
    damaged.set()
    assert results.get(timeout=240) == 1, "the other process sees the new file"
    assert results.get(timeout=240) == []
    worker.join()
    assert ask_all(engine, ["mine", "theirs", "late"]) == 3, "closing the old file harmed the new one"
    engine.close()
    assert use(filled, ["mine", "theirs", "late"]) == 3 and len(set_aside(filled)) == 1


def test_losing_the_race_to_set_a_file_aside_is_harmless(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process replaces the file between our error and our lock."""
    flip(filled, 0, 0)
    other, lock = Store(filled, LIMIT), Store._file_lock

    def slow(self: Store) -> Any:
        if self is ours and not set_aside(filled):
            other.put([row(1)])
        return lock(self)

    ours = Store(filled, LIMIT)
    monkeypatch.setattr(Store, "_file_lock", slow)
    assert len(ours.get([row(1).key])) == 1
    assert ours.set_aside == [] and len(set_aside(filled)) == 1


def test_losing_the_race_to_create_a_file_is_harmless(cache_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, lock = Store(cache_file, LIMIT), Store._file_lock

    def slow(self: Store) -> Any:
        if self is ours and not cache_file.exists():
            other.put([row(1)])
        return lock(self)

    ours = Store(cache_file, LIMIT)
    monkeypatch.setattr(Store, "_file_lock", slow)
    assert len(ours.get([row(1).key])) == 1


# ---- files that are not ours


def other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (a)")
        db.commit()


def pragma(path: Path, text: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA {text}")
        db.commit()


def in_a_file(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def newer(path: Path) -> None:
    use(path, NAMES)
    pragma(path, "user_version = 9")


def without_our_id(path: Path) -> None:
    use(path, NAMES)
    pragma(path, "application_id = 1")


def a_socket(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(path))


def a_device(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except OSError:
        pytest.skip("needs the right to make a device")


def a_link_to(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def linked(path: Path) -> None:
        target = path.parent / "target"
        make(target)
        path.symlink_to(target)

    return linked


NOTES = b'{"question": "a data set in the wrong place"}\n' * 50
FOREIGN = [
    pytest.param(in_a_file(NOTES), "a file of another kind", id="a_data_set"),
    pytest.param(in_a_file(b"\0" * 8192), "a file of another kind", id="zeros"),
    pytest.param(in_a_file(random.Random(0).randbytes(5000)), "a file of another kind", id="noise"),
    pytest.param(in_a_file(b"SQLite format 3\0"), "database of another application", id="only_the_first_bytes"),
    pytest.param(in_a_file(b"x"), "a file of another kind", id="one_byte"),
    pytest.param(in_a_file(b"CREATE INDEX replies_by_use;" * 9), "a file of another kind", id="our_words_in_a_text"),
    pytest.param(other_database, "a database of another application", id="another_application"),
    pytest.param(without_our_id, "a database of another application", id="our_tables_without_our_id"),
    pytest.param(newer, "another version", id="a_newer_version"),
    pytest.param(os.mkfifo, "not a regular file", id="a_FIFO"),
    pytest.param(a_socket, "not a regular file", id="a_socket"),
    pytest.param(a_device, "not a regular file", id="a_device"),
    pytest.param(Path.mkdir, "not a regular file", id="a_folder"),
    pytest.param(a_link_to(in_a_file(NOTES)), "a file of another kind", id="a_link_to_a_data_set"),
    pytest.param(a_link_to(os.mkfifo), "not a regular file", id="a_link_to_a_FIFO"),
    pytest.param(lambda path: path.symlink_to("/dev/null"), "not a regular file", id="a_link_to_dev_null"),
    pytest.param(lambda path: path.symlink_to(path), "symbolic links", id="a_link_to_itself"),
]


def state(folder: Path) -> dict[str, object]:
    """All that can be seen of what is in a folder, without opening what is no regular file."""
    seen = {}
    for path in folder.iterdir():
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else os.readlink(path) if path.is_symlink() else ""
        seen[path.name] = (status.st_ino, status.st_mode, status.st_mtime_ns, content)
    return seen


@pytest.mark.parametrize(("make", "reason"), FOREIGN)
def test_what_is_not_ours_stays_as_it_is(
    cache_file: Path, make: Callable[[Path], object], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, and judging continues; nothing is written, moved or left beside it."""
    cache_file.parent.mkdir()
    make(cache_file)
    before = state(cache_file.parent)
    engine = cached(cache_file)[0]
    assert [ask_all(engine, ["a"]) for _ in range(3)] == [0, 0, 0]
    assert len(caplog.records) == 1 and reason in caplog.text and "continues without the cache" in caplog.text
    for change in (engine.store.summary, engine.store.prune, lambda: engine.store.verify(lambda row: True)):
        with pytest.raises(ConfigError, match=reason):
            change()
    engine.close()
    assert state(cache_file.parent) == before


def test_a_file_that_takes_the_place_of_a_damaged_cache_stays(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the number of a file that was a cache, between our error and our lock."""
    flip(filled, 0, 0)
    store, lock = Store(filled, LIMIT), Store._file_lock

    def slow(self: Store) -> Any:
        filled.write_bytes(NOTES)
        return lock(self)

    monkeypatch.setattr(Store, "_file_lock", slow)
    assert store.get([row(1).key]) == {} and filled.read_bytes() == NOTES and set_aside(filled) == []


@pytest.mark.parametrize("there", [False, True])
def test_a_link_leads_to_its_file_and_stays(cache_file: Path, there: bool) -> None:
    target = cache_file.parent.parent / "disk" / "replies.sqlite"
    cache_file.parent.mkdir()
    cache_file.symlink_to(target)
    if there:
        target.parent.mkdir()
        target.touch()
    assert use(cache_file, ["a"]) == 0 and use(cache_file, ["a"]) == 1 == use(target, ["a"])
    assert cache_file.is_symlink() and [path.name for path in cache_file.parent.iterdir()] == [cache_file.name]


@pytest.mark.parametrize(
    ("mode", "after"),
    [
        pytest.param(0o666, 0o660, id="everyone"),
        pytest.param(0o644, 0o640, id="everyone_reads"),
        pytest.param(0o606, 0o600, id="others_only"),
        pytest.param(0o660, 0o660, id="a_group_stays"),
        pytest.param(0o600, 0o600, id="private"),
        pytest.param(0o4601, 0o4600, id="other_bits_stay"),
    ],
)
def test_others_have_no_right_to_a_cache(filled: Path, mode: int, after: int) -> None:
    filled.chmod(mode)
    engine = cached(filled)[0]
    ask_all(engine, ["new"])
    assert {stat.S_IMODE(path.stat().st_mode) & 0o7 for path in filled.parent.iterdir()} == {0}
    assert stat.S_IMODE(filled.stat().st_mode) == after
    engine.close()


def test_a_mistake_of_the_caller_is_not_taken_for_damage(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Store(filled, LIMIT).get([object()]) == {}  # type: ignore[list-item]
    assert set_aside(filled) == [] and len(caplog.records) == 1


def test_an_empty_file_is_filled(cache_file: Path) -> None:
    cache_file.parent.mkdir()
    cache_file.touch(0o666)
    assert use(cache_file, ["a"]) == 0 and use(cache_file, ["a"]) == 1 and set_aside(cache_file) == []
