"""The cache file under stress: killed writers, forks, full disks, other users, limits. Through `CachedEngine` where a
promise is about replies, through `Store` where it is about the file."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import CachedEngine, ConfigError, Engine, Generation, Request
from flexjudge_reward.engines.cache import store as store_module
from flexjudge_reward.engines.cache import tables
from flexjudge_reward.engines.cache.engine import is_intact
from flexjudge_reward.engines.cache.store import Store, remote_filesystem
from support.cache_files import FORK, LIMIT, NAMES, ask_all, cached, echo, row, set_aside, use

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


# ---- processes


def write_until_killed(path: Path, notes: Path) -> None:
    engine = cached(path)[0]
    with notes.open("a", buffering=1) as file:
        for i in range(10**9):
            names = [f"{notes.name}-{i}-{j}" for j in range(1 + i % 5)]
            ask_all(engine, names)
            assert engine.stats.stored
            file.write("|".join(names) + "|\n")


def test_sigkill_loses_nothing_that_was_acknowledged(tmp_path: Path, cache_file: Path) -> None:
    for number in range(3):
        notes = [tmp_path / f"{number}-{i}" for i in range(3)]
        workers = [FORK.Process(target=write_until_killed, args=(cache_file, note)) for note in notes]
        for worker in workers:
            worker.start()
        while not all(note.exists() and note.stat().st_size for note in notes):
            time.sleep(0.01)
        time.sleep(0.05 * number)
        for worker in workers:
            os.kill(worker.pid or 0, signal.SIGKILL)
            worker.join()
        names = [name for note in notes for line in note.read_text().split("\n")[:-1] for name in line.split("|")[:-1]]
        assert names and use(cache_file, names) == len(names)
    assert set_aside(cache_file) == []


def open_and_use(path: Path, number: int, count: int, start: Any, warned: Any) -> None:
    engine = cached(path)[0]
    rng = random.Random(number)
    start.wait()
    for i in range(count):
        ask_all(engine, [f"{number}-{i}", f"{rng.randrange(8)}-{rng.randrange(i + 1)}", "shared"])
    warned.put((engine.stats.stored, sorted(engine.store._warned)))
    engine.close()


@pytest.mark.parametrize(("processes", "count"), [(6, 30), (24, 1)])
def test_processes_share_a_new_file(cache_file: Path, processes: int, count: int) -> None:
    start, warned = FORK.Barrier(processes), FORK.Queue()
    workers = [FORK.Process(target=open_and_use, args=(cache_file, i, count, start, warned)) for i in range(processes)]
    for worker in workers:
        worker.start()
    found = [warned.get(timeout=240) for _ in workers]
    for worker in workers:
        worker.join()
    assert [warnings for _, warnings in found] == [[]] * processes
    assert use(cache_file, [f"{n}-{i}" for n in range(processes) for i in range(count)]) == processes * count
    assert Store(cache_file, LIMIT).summary().models == {"scripted": Store(cache_file, LIMIT).summary().rows}


# ---- forks


class Lockless(Engine):
    """A judge without a lock, which a fork could leave locked."""

    def identity(self) -> dict[str, object]:
        return {"model": "lockless"}

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        return [Generation(echo(request)) for request in requests]


def in_child(check: Callable[[], bool]) -> int:
    """A forked child that exits with 0 if `check` holds; its process id."""
    if child := os.fork():
        return child
    try:
        os._exit(0 if check() else 2)
    finally:
        os._exit(1)


def exit_code(child: int, patience: float = 60.0) -> int:
    """A negative number means that the child hangs."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_forks_while_threads_use_the_file(cache_file: Path) -> None:
    engine = CachedEngine(Lockless(), cache_file)
    ask_all(engine, NAMES)
    stop = threading.Event()

    def work() -> None:
        for i in range(10**6):
            ask_all(engine, [f"thread {i}"])
            if stop.is_set():
                return

    def child(number: int) -> bool:
        served = ask_all(engine, NAMES) + ask_all(engine, [f"child {number}"])
        return served == len(NAMES) and not engine.store._warned

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    children = []
    for number in range(10):
        children.append(in_child(lambda number=number: child(number)))
        time.sleep(0.02)
    exit_codes = [exit_code(child) for child in children]
    stop.set()
    thread.join(60)
    assert exit_codes == [0] * 10
    names = [*NAMES, *(f"child {i}" for i in range(10)), "thread 0"]
    assert ask_all(engine, names) == len(names)
    engine.close()


@pytest.mark.parametrize(
    ("module", "place"),
    [
        pytest.param(tables, "insert", id="in an operation"),
        pytest.param(store_module, "_close_before_forks", id="before the first operation"),
    ],
)
def test_a_fork_at_the_worst_moment(cache_file: Path, module: Any, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread is inside the store when another forks: the fork waits for an operation, and leaves no lock locked."""
    use(cache_file, NAMES)
    store, inside, work = Store(cache_file, LIMIT), threading.Event(), getattr(module, place)

    def slow(*arguments: Any) -> object:
        inside.set()
        time.sleep(0.2)
        return work(*arguments)

    def child() -> bool:
        monkeypatch.undo()
        return store.put([row(2)]) == 1 and len(store.get([row(2).key])) == 1

    monkeypatch.setattr(module, place, slow)
    thread = threading.Thread(target=store.put, args=([row(1)],), daemon=True)
    thread.start()
    inside.wait(60)
    assert exit_code(in_child(child), patience=10) == 0
    thread.join(60)
    assert not thread.is_alive() and len(store.get([row(1).key, row(2).key])) == 2 and not store._warned


def test_a_program_without_a_cache_has_no_fork_hooks(cache_file: Path) -> None:
    """Nor has one that builds a cached engine and has not used it; then there is one set, however many stores."""
    code = f"""
import os
register, ours = os.register_at_fork, []

def note(**hooks):
    ours.extend(hook for hook in hooks.values() if str(hook.__module__).startswith("flexjudge_reward"))
    register(**hooks)

os.register_at_fork = note
import flexjudge_reward
from support.cache_files import ask, cached
one, other = (cached(__import__("pathlib").Path({str(cache_file)!r} + str(n)))[0] for n in range(2))
one.identity(), one.generate([]), one.close()
assert ours == [], ours
for engine in (one, other, one):
    engine.generate([ask("a")])
assert len(ours) == 3, ours
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-P", "-c", code], check=True, env=environment)


# ---- files that cannot be used


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Not being root, whom no permission stops."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except OSError:  # the root of a name space with a single user
        pytest.skip("needs another user than root")
    yield
    os.seteuid(0)


@pytest.fixture
def shut(tmp_path: Path) -> Path:
    """A folder in which only root may make another; made while the process is root."""
    folder = tmp_path / "shut"
    folder.mkdir(mode=0o500)
    return folder


def continues_without(path: Path, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    engine = cached(path)[0]
    assert [ask_all(engine, ["a", "b"]) for _ in range(3)] == [0, 0, 0]
    engine.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(path) in caplog.text and reason in caplog.text and "continues without the cache" in caplog.text
    with pytest.raises(ConfigError, match="cannot use the cache"):
        engine.store.summary()


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    continues_without(tmp_path / "file" / "replies.sqlite", caplog, "Not a directory")


def test_a_folder_in_the_place_of_the_file(cache_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache_file.mkdir(parents=True)
    continues_without(cache_file, caplog, "not a regular file")


def test_a_folder_that_cannot_be_written(shut: Path, unprivileged: None, caplog: pytest.LogCaptureFixture) -> None:
    continues_without(shut / "own" / "replies.sqlite", caplog, "Permission denied")


def test_a_network_file_system(
    cache_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_module, "remote_filesystem", lambda path: "nfs4")
    continues_without(cache_file, caplog, "nfs4 file system")
    assert not cache_file.parent.exists()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/.cache/x", "nfs4"),
        ("/home/me/local disk/x", None),
        ("/homes/x", None),
        ("/", None),
        ("/data/deep/x", "lustre"),
    ],
)
def test_network_file_systems_are_known_by_their_mount(tmp_path: Path, path: str, kind: str | None) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/a / ext4 rw 0 0\nserver:/h /home nfs4 rw 0 0\n/dev/b /home/me/local\\040disk ext4 rw 0 0\n"
        "tmpfs /data tmpfs rw 0 0\nl@o /data/deep lustre rw 0 0\n"
    )
    assert remote_filesystem(Path(path), mounts) == kind
    assert remote_filesystem(Path(path), tmp_path / "none") is None


def test_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        path = disk / "replies.sqlite"
        assert ask_all(cached(path)[0], NAMES[:5]) == 0
        (disk / "ballast").write_bytes(b"x" * 200_000)
        engine = cached(path)[0]
        for i in range(60):
            ask_all(engine, [f"{i} {j} {'x' * 900}" for j in range(10)])
        assert len(caplog.records) == 1 and "full" in caplog.text and set_aside(path) == []
        assert ask_all(engine, NAMES[:5]) == 5, "what is stored is still served"

        (disk / "ballast").unlink()
        monkeypatch.setattr(engine.store, "_paused", {})  # a minute later
        stored = engine.stats.stored
        ask_all(engine, ["there is room again"])
        assert engine.stats.stored == stored + 1 and len(caplog.records) == 1
        engine.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_lock_that_is_never_released(
    filled: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "LOCK_TIMEOUT", 0.1)
    with closing(sqlite3.connect(filled, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        engine = cached(filled)[0]
        assert [ask_all(engine, [*NAMES, "new"]) for _ in range(3)] == [len(NAMES)] * 3, "reading still works"
    assert len(caplog.records) == 1 and "locked" in caplog.text
    engine.close()


# ---- limits


def test_the_file_stays_below_its_limit_and_keeps_what_is_used(
    cache_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, hour = 2 << 20, tables.hour()
    store, sizes = Store(cache_file, limit), []
    store.put([row(0, 1000)])
    for number in range(1, 60):
        store.put([row(number * 100 + i, 3000) for i in range(50)])
        if number % 5 == 0:
            monkeypatch.setattr(tables, "hour", lambda hours=hour + number: hours)
            assert store.get([row(0).key])
        sizes.append(store.disk_bytes)
    assert limit // 2 < max(sizes) <= limit
    assert store.get([row(0).key]) and store.get([row(5900).key]) and not store.get([row(100).key])
    store.close()


def test_a_huge_reply_is_not_stored(cache_file: Path) -> None:
    store = Store(cache_file, 1 << 20)
    assert store.put([row(1), row(2, 1 << 20), row(3)]) == 2
    assert len(store.get([row(i).key for i in (1, 2, 3)])) == 2


def test_the_first_of_two_replies_stays(cache_file: Path) -> None:
    store = Store(cache_file, LIMIT)
    store.put([row(1, 10)])
    store.put([row(1, 20)])
    assert store.get([row(1).key]) == {row(1).key: b"v" * 10}


def test_a_log_that_readers_keep_long_is_emptied(cache_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(cache_file, LIMIT)
    store.put([row(0)])
    monkeypatch.setattr(store_module, "MAX_WAL", 200_000)
    with closing(sqlite3.connect(cache_file, isolation_level=None)) as reader:
        reader.execute("BEGIN").execute("SELECT * FROM replies").fetchall()
        monkeypatch.setattr(tables, "empty_log", lambda db: None)
        for i in range(100):
            store.put([row(i, 8000)])
    assert store._beside("-wal").stat().st_size > 500_000
    monkeypatch.undo()
    monkeypatch.setattr(store_module, "MAX_WAL", 200_000)
    store.put([row(200)])
    assert store._beside("-wal").stat().st_size <= 200_000
    store.close()


def test_only_the_user_may_read_it(cache_file: Path) -> None:
    old = os.umask(0)
    try:
        engine = cached(cache_file)[0]
        ask_all(engine, ["a"])
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in [cache_file.parent, *cache_file.parent.iterdir()]}
    finally:
        os.umask(old)
    assert modes.pop("own") == 0o700
    assert modes == dict.fromkeys(
        ["replies.sqlite", "replies.sqlite-wal", "replies.sqlite-shm", "replies.sqlite.lock"], 0o600
    )
    engine.close()


def test_an_interrupted_write_leaves_nothing_open(cache_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(cache_file, LIMIT)
    store.put([row(1)])
    insert = tables.insert

    def interrupted(*arguments: Any) -> None:
        insert(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tables, "insert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.put([row(2)])
    assert store.put([row(3)]) == 1 and set_aside(cache_file) == []
    assert [len(store.get([row(i).key])) for i in (1, 2, 3)] == [1, 0, 1]


@pytest.mark.parametrize("jump", [-400 * 86400, 400 * 86400])
def test_a_clock_that_jumps(filled: Path, jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    assert use(filled, [*NAMES, "new"]) == len(NAMES)
    assert use(filled, [*NAMES, "new"]) == len(NAMES) + 1


def test_verify_removes_bad_rows_and_sets_a_broken_structure_aside(filled: Path) -> None:
    store = Store(filled, LIMIT)
    assert store.verify(is_intact) == (60, 0)
    with closing(sqlite3.connect(filled)) as db:
        ((value,),) = db.execute("SELECT value FROM replies WHERE rowid = 1")
        db.execute("UPDATE replies SET value = ? WHERE rowid = 1", (value[:-1] + bytes([value[-1] ^ 1]),))
        db.execute("UPDATE replies SET request = 'text' WHERE rowid = 2")
        db.execute("UPDATE replies SET model = 5 WHERE rowid = 3")
        db.commit()
    assert store.verify(is_intact) == (60, 2)
    assert store.verify(is_intact) == (58, 0)
    assert store.summary().models == {"scripted": 57, "5": 1}
    with closing(sqlite3.connect(filled)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("DELETE FROM sqlite_schema WHERE name = 'replies_by_use'")
        db.commit()
    assert Store(filled, LIMIT).verify(is_intact) == (0, 0)
    assert len(set_aside(filled)) == 1
