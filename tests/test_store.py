"""The cache file under fire: killed writers, forks, full disks, other users, limits. Through `CachedEngine` where a
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
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.cache_files import FORK, LIMIT, NAMES, aside, ask_all, echo, row, use

from flexjudge_reward import ConfigError, Generation, Prompt, Sampling
from flexjudge_reward.engines.cache import store as store_module
from flexjudge_reward.engines.cache.engine import CachedEngine, sound
from flexjudge_reward.engines.cache.store import Store, remote_filesystem, tables
from flexjudge_reward.engines.scripted import ScriptedEngine

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


# ---- processes


def write_until_killed(path: Path, notes: Path) -> None:
    engine = CachedEngine(ScriptedEngine(echo), path)
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
    assert aside(cache_file) == []


def open_and_use(path: Path, number: int, count: int, warned: Any) -> None:
    engine = CachedEngine(ScriptedEngine(echo), path)
    rng = random.Random(number)
    for i in range(count):
        ask_all(engine, [f"{number}-{i}", f"{rng.randrange(8)}-{rng.randrange(i + 1)}", "shared"])
    warned.put((engine.stats.stored, sorted(engine.store._warned)))
    engine.close()


@pytest.mark.parametrize(("processes", "count"), [(8, 50), (60, 1)])
def test_processes_share_a_new_file(cache_file: Path, processes: int, count: int) -> None:
    warned = FORK.Queue()
    workers = [FORK.Process(target=open_and_use, args=(cache_file, i, count, warned)) for i in range(processes)]
    for worker in workers:
        worker.start()
    found = [warned.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert [warnings for _, warnings in found] == [[]] * processes
    assert use(cache_file, [f"{n}-{i}" for n in range(processes) for i in range(count)]) == processes * count
    assert Store(cache_file, LIMIT).summary().models == {"scripted": Store(cache_file, LIMIT).summary().rows}


class Stateless:
    """A judge without a lock, which a fork could leave locked."""

    def identity(self) -> dict[str, object]:
        return {"model": "stateless"}

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        return [Generation(echo(prompt)) for prompt in prompts]

    def close(self) -> None:
        pass


def in_child(engine: CachedEngine, number: int) -> int:
    """A forked child that uses the file; its process id."""
    if child := os.fork():
        return child
    status = 1
    try:
        served = ask_all(engine, NAMES) + ask_all(engine, [f"child {number}"])
        status = 0 if served == len(NAMES) and not engine.store._warned else 2
    finally:
        os._exit(status)


def exit_code(child: int) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_fork_while_threads_use_the_file(cache_file: Path) -> None:
    engine = CachedEngine(Stateless(), cache_file)
    ask_all(engine, NAMES)
    stop = threading.Event()

    def work() -> None:
        for i in range(10**6):
            ask_all(engine, [f"thread {i}"])
            if stop.is_set():
                return

    thread = threading.Thread(target=work)
    thread.start()
    children = []
    for number in range(10):
        children.append(in_child(engine, number))
        time.sleep(0.02)
    assert [exit_code(child) for child in children] == [0] * 10
    stop.set()
    thread.join()
    names = [*NAMES, *(f"child {i}" for i in range(10)), "thread 0"]
    assert ask_all(engine, names) == len(names)
    engine.close()


# ---- files that cannot be used


@pytest.fixture
def nobody() -> Iterator[None]:
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
    """A folder in which nobody but root may make another; made before there is no root."""
    folder = tmp_path / "shut"
    folder.mkdir(mode=0o500)
    return folder


def goes_on_without(path: Path, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    engine = CachedEngine(ScriptedEngine(echo), path)
    assert [ask_all(engine, ["a", "b"]) for _ in range(3)] == [0, 0, 0]
    engine.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(path) in caplog.text and reason in caplog.text and "goes on without the cache" in caplog.text
    with pytest.raises(ConfigError, match="cannot use the cache"):
        engine.store.summary()


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    goes_on_without(tmp_path / "file" / "replies.sqlite", caplog, "Not a directory")


def test_a_folder_in_the_place_of_the_file(cache_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache_file.mkdir(parents=True)
    goes_on_without(cache_file, caplog, "unable to open")


def test_a_folder_that_cannot_be_written(shut: Path, nobody: None, caplog: pytest.LogCaptureFixture) -> None:
    goes_on_without(shut / "own" / "replies.sqlite", caplog, "Permission denied")


def test_a_network_file_system(
    cache_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_module, "remote_filesystem", lambda path: "nfs4")
    goes_on_without(cache_file, caplog, "nfs4 file system")
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
        assert ask_all(CachedEngine(ScriptedEngine(echo), path), NAMES[:5]) == 0
        (disk / "ballast").write_bytes(b"x" * 200_000)
        engine = CachedEngine(ScriptedEngine(echo), path)
        for i in range(60):
            ask_all(engine, [f"{i} {j} {'x' * 900}" for j in range(10)])
        assert len(caplog.records) == 1 and "full" in caplog.text and aside(path) == []
        assert ask_all(engine, NAMES[:5]) == 5, "what is stored is still served"

        (disk / "ballast").unlink()
        monkeypatch.setattr(engine.store, "_paused", {})  # a minute later
        stored = engine.stats.stored
        ask_all(engine, ["there is room again"])
        assert engine.stats.stored == stored + 1 and len(caplog.records) == 1
        engine.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_lock_that_nobody_gives_back(
    filled: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "LOCK_TIMEOUT", 0.1)
    with closing(sqlite3.connect(filled, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        engine = CachedEngine(ScriptedEngine(echo), filled)
        assert [ask_all(engine, [*NAMES, "new"]) for _ in range(3)] == [len(NAMES)] * 3, "reading goes on"
    assert len(caplog.records) == 1 and "locked" in caplog.text
    engine.close()


# ---- limits and habits


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
        engine = CachedEngine(ScriptedEngine(echo), cache_file)
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
    assert store.put([row(3)]) == 1 and aside(cache_file) == []
    assert [len(store.get([row(i).key])) for i in (1, 2, 3)] == [1, 0, 1]


@pytest.mark.parametrize("jump", [-400 * 86400, 400 * 86400])
def test_a_clock_that_jumps(filled: Path, jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    assert use(filled, [*NAMES, "new"]) == len(NAMES)
    assert use(filled, [*NAMES, "new"]) == len(NAMES) + 1


def test_look_ups_are_counted_for_all_processes(cache_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(cache_file, ["a", "b"])
    use(cache_file, ["a", "c"])
    use(cache_file, ["a", "b"])
    found = Store(cache_file, LIMIT).summary()
    assert (found.rows, found.hits, found.misses) == (3, 3, 3)
    assert found.oldest and found.newest and found.oldest <= found.newest
    store = Store(cache_file, LIMIT)
    monkeypatch.setattr(store, "_flushed", -1e9)  # a long run that only reads counts now and then
    store.get([b"x" * 32])
    assert Store(cache_file, LIMIT).summary().misses == 4
    store.get([b"y" * 32])
    monkeypatch.setattr(store, "_flushed", -1e9)  # one that also writes, somewhat more often
    store.put([row(1)])
    assert Store(cache_file, LIMIT).summary().misses == 5


def test_verify_removes_bad_rows_and_sets_a_broken_structure_aside(filled: Path) -> None:
    store = Store(filled, LIMIT)
    assert store.verify(sound) == (60, 0)
    with closing(sqlite3.connect(filled)) as db:
        db.execute("UPDATE replies SET value = replace(value, 'because', 'becausE') WHERE rowid = 1")
        db.execute("UPDATE replies SET request = 'text' WHERE rowid = 2")
        db.execute("UPDATE replies SET model = 5 WHERE rowid = 3")
        db.commit()
    assert store.verify(sound) == (60, 2)
    assert store.verify(sound) == (58, 0)
    assert store.summary().models == {"scripted": 57, "5": 1}
    with closing(sqlite3.connect(filled)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("DELETE FROM sqlite_schema WHERE name = 'replies_by_use'")
        db.commit()
    assert Store(filled, LIMIT).verify(sound) == (0, 0)
    assert len(aside(filled)) == 1
