"""The cache file under fire: killed writers, damage, foreign files, full disks, many processes. Through `CachedEngine`
where a promise is about replies, through `Store` where it is about the file."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import ConfigError, Generation, Message, Prompt, Quoted, Sampling
from flexjudge_reward import store as store_module
from flexjudge_reward.cache import CachedEngine, sound
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.store import Row, Store, remote_filesystem, tables

FORK = multiprocessing.get_context("fork")  # the imports of a fresh interpreter would take longer than the tests
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
LIMIT = 1 << 30


def ask(name: str) -> Prompt:
    return Prompt((Message("user", (Quoted(name),)),))


def echo(prompt: Prompt) -> str:
    part = prompt.messages[0].parts[0]
    assert isinstance(part, Quoted)
    return f"<think>{part.text}{' because' * 40}</think><answer>7</answer>"


def use(path: Path, names: Sequence[str]) -> int:
    """Judges `names` with the cache at `path`; how many came from it. Every reply must be right."""
    engine = CachedEngine(ScriptedEngine(echo), path)
    served = ask_all(engine, names)
    engine.close()
    return served


def ask_all(engine: CachedEngine, names: Sequence[str]) -> int:
    prompts = [ask(name) for name in names]
    replies = engine.generate(prompts, Sampling())
    assert [reply.text for reply in replies] == [echo(prompt) for prompt in prompts]
    return sum(reply.cached for reply in replies)


NAMES = [f"name {i}" for i in range(60)]


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: a busy disk would decide how long these tests take."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "own" / "replies.sqlite"


@pytest.fixture
def filled(path: Path) -> Path:
    use(path, NAMES)
    return path


def aside(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.glob("*.damaged-*") if not p.name.endswith(("-wal", "-shm")))


def row(number: int, size: int = 100) -> Row:
    return Row(number.to_bytes(32, "big"), b"v" * size, b"r", "m")


# ---- processes


def write_until_killed(path: Path, notes: Path) -> None:
    engine = CachedEngine(ScriptedEngine(echo), path)
    with notes.open("a", buffering=1) as file:
        for i in range(10**9):
            names = [f"{notes.name}-{i}-{j}" for j in range(1 + i % 5)]
            ask_all(engine, names)
            assert engine.stats.stored
            file.write("|".join(names) + "|\n")


def test_sigkill_loses_nothing_that_was_acknowledged(tmp_path: Path, path: Path) -> None:
    for number in range(3):
        notes = [tmp_path / f"{number}-{i}" for i in range(3)]
        workers = [FORK.Process(target=write_until_killed, args=(path, note)) for note in notes]
        for worker in workers:
            worker.start()
        while not all(note.exists() and note.stat().st_size for note in notes):
            time.sleep(0.01)
        time.sleep(0.05 * number)
        for worker in workers:
            os.kill(worker.pid or 0, signal.SIGKILL)
            worker.join()
        names = [name for note in notes for line in note.read_text().split("\n")[:-1] for name in line.split("|")[:-1]]
        assert names and use(path, names) == len(names)
    assert aside(path) == []


def open_and_use(path: Path, number: int, count: int, warned: Any) -> None:
    engine = CachedEngine(ScriptedEngine(echo), path)
    rng = random.Random(number)
    for i in range(count):
        ask_all(engine, [f"{number}-{i}", f"{rng.randrange(8)}-{rng.randrange(i + 1)}", "shared"])
    warned.put((engine.stats.stored, sorted(engine.store._warned)))
    engine.close()


@pytest.mark.parametrize(("processes", "count"), [(8, 50), (60, 1)])
def test_processes_share_a_new_file(path: Path, processes: int, count: int) -> None:
    warned = FORK.Queue()
    workers = [FORK.Process(target=open_and_use, args=(path, i, count, warned)) for i in range(processes)]
    for worker in workers:
        worker.start()
    found = [warned.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert [warnings for _, warnings in found] == [[]] * processes
    assert use(path, [f"{n}-{i}" for n in range(processes) for i in range(count)]) == processes * count
    assert Store(path, LIMIT).summary().models == {"scripted": Store(path, LIMIT).summary().rows}


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


def test_a_fork_while_threads_use_the_file(path: Path) -> None:
    engine = CachedEngine(Stateless(), path)
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


# ---- damage


def flip(path: Path, place: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def usable(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever happened to the file, every reply is right, and soon all is remembered again or a warning says not."""
    caplog.clear()
    served = [use(path, NAMES) for _ in range(3)]
    assert served[-1] == len(NAMES) or "goes on without the cache" in caplog.text


def test_no_bit_flip_serves_a_wrong_reply(filled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(1)
    size = filled.stat().st_size
    places = [
        *range(0, 100, 4),
        *(rng.randrange(100, 4096) for _ in range(10)),
        *(rng.randrange(size) for _ in range(40)),
    ]
    for number, place in enumerate(places):
        copy = tmp_path / f"{number}" / "replies.sqlite"
        copy.parent.mkdir()
        shutil.copy(filled, copy)
        flip(copy, place, rng.randrange(8))
        usable(copy, caplog)


def test_a_flip_in_every_stored_reply_is_seen(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = filled.read_bytes().replace(b" because because", b" because becausE")
    filled.write_bytes(data)
    assert use(filled, NAMES) == 0
    assert caplog.text.count("damaged rows") == 1
    assert use(filled, NAMES) == len(NAMES) and aside(filled) == []


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_a_file_cut_short(filled: Path, share: float, caplog: pytest.LogCaptureFixture) -> None:
    os.truncate(filled, max(1, int(filled.stat().st_size * share)))
    usable(filled, caplog)
    assert len(aside(filled)) == caplog.text.count("set aside") == (share < 0.99)


@pytest.mark.parametrize("suffix", ["-wal", "-shm", ".lock", ""])
def test_files_deleted_under_a_running_process(filled: Path, suffix: str) -> None:
    engine = CachedEngine(ScriptedEngine(echo), filled)
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
    engine = CachedEngine(ScriptedEngine(echo), path)
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
    results.get(timeout=60)
    with filled.open("r+b") as file:
        file.write(b"\xff" * filled.stat().st_size)
    engine = CachedEngine(ScriptedEngine(echo), filled)
    ask_all(engine, ["theirs", *NAMES])  # what the log does not hold is read from the file
    assert len(engine.store.set_aside) == 1
    damaged.set()
    assert results.get(timeout=60) == 1, "the other process sees the new file"
    assert results.get(timeout=60) == []
    worker.join()
    assert ask_all(engine, ["mine", "theirs", "late"]) == 3, "closing the old file harmed the new one"
    engine.close()
    assert use(filled, ["mine", "theirs", "late"]) == 3 and len(aside(filled)) == 1


def test_losing_the_race_to_set_a_file_aside_is_harmless(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process replaces the file between our error and our lock."""
    flip(filled, 0, 0)
    other, lock = Store(filled, LIMIT), Store._file_lock

    def slow(self: Store) -> Any:
        if self is ours and not aside(filled):
            other.put([row(1)])
        return lock(self)

    ours = Store(filled, LIMIT)
    monkeypatch.setattr(Store, "_file_lock", slow)
    assert len(ours.get([row(1).key])) == 1
    assert ours.set_aside == [] and len(aside(filled)) == 1


def test_losing_the_race_to_create_a_file_is_harmless(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, lock = Store(path, LIMIT), Store._file_lock

    def slow(self: Store) -> Any:
        if self is ours and not path.exists():
            other.put([row(1)])
        return lock(self)

    ours = Store(path, LIMIT)
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


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"question": "a data set in the wrong place"}\n' * 50, id="a data set"),
        pytest.param(b"\0" * 8192, id="zeros"),
        pytest.param(random.Random(0).randbytes(5000), id="noise"),
        pytest.param(b"SQLite format 3\0", id="only the first bytes"),
        pytest.param(b"x", id="one byte"),
    ],
)
def test_a_file_of_another_kind_is_set_aside_whole(
    path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    assert use(path, ["a"]) == 0 and use(path, ["a"]) == 1
    assert [(path.parent / name).read_bytes() for name in aside(path)] == [content]
    assert [record.message.count(aside(path)[0]) for record in caplog.records] == [1]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(other_database, "a database of another application", id="another application"),
        pytest.param(
            lambda path: (use(path, NAMES), pragma(path, "user_version = 9")), "another version", id="newer version"
        ),
    ],
)
def test_a_healthy_database_that_is_not_ours_is_left_alone(
    path: Path, make: Callable[[Path], object], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    make(path)
    before = path.read_bytes()
    engine = CachedEngine(ScriptedEngine(echo), path)
    assert [ask_all(engine, ["a"]) for _ in range(3)] == [0, 0, 0]
    assert len(caplog.records) == 1 and reason in caplog.text and "goes on without the cache" in caplog.text
    assert path.read_bytes() == before and aside(path) == []
    with pytest.raises(ConfigError, match=reason):
        engine.store.summary()


def test_our_tables_under_a_damaged_header(filled: Path) -> None:
    pragma(filled, "application_id = 1")
    assert use(filled, NAMES) == 0 and use(filled, NAMES) == len(NAMES) and len(aside(filled)) == 1


def test_a_mistake_of_the_caller_is_not_taken_for_damage(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Store(filled, LIMIT).get([object()]) == {}  # type: ignore[list-item]
    assert aside(filled) == [] and len(caplog.records) == 1


def test_an_empty_file_is_filled(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    assert use(path, ["a"]) == 0 and use(path, ["a"]) == 1 and aside(path) == []


# ---- files that cannot be used


@pytest.fixture
def nobody() -> Iterator[None]:
    """Not being root, whom no permission stops."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


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


def test_a_folder_in_the_place_of_the_file(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.mkdir(parents=True)
    goes_on_without(path, caplog, "unable to open")


def test_a_folder_that_cannot_be_written(tmp_path: Path, nobody: None, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path("/") if os.getuid() == 0 else tmp_path
    if os.getuid() != 0:
        folder.chmod(0o500)
    goes_on_without(folder / "flexjudge-test" / "replies.sqlite", caplog, "Permission denied")


def test_a_network_file_system(path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(store_module, "remote_filesystem", lambda path: "nfs4")
    goes_on_without(path, caplog, "nfs4 file system")
    assert not path.parent.exists()


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
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
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


def test_the_file_stays_below_its_limit_and_keeps_what_is_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, hour = 2 << 20, tables.hour()
    store, sizes = Store(path, limit), []
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


def test_a_huge_reply_is_not_stored(path: Path) -> None:
    store = Store(path, 1 << 20)
    assert store.put([row(1), row(2, 1 << 20), row(3)]) == 2
    assert len(store.get([row(i).key for i in (1, 2, 3)])) == 2


def test_the_first_of_two_replies_stays(path: Path) -> None:
    store = Store(path, LIMIT)
    store.put([row(1, 10)])
    store.put([row(1, 20)])
    assert store.get([row(1).key]) == {row(1).key: b"v" * 10}


def test_a_log_that_readers_keep_long_is_emptied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(path, LIMIT)
    store.put([row(0)])
    monkeypatch.setattr(store_module, "MAX_WAL", 200_000)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
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


def test_only_the_user_may_read_it(path: Path) -> None:
    old = os.umask(0)
    try:
        engine = CachedEngine(ScriptedEngine(echo), path)
        ask_all(engine, ["a"])
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in [path.parent, *path.parent.iterdir()]}
    finally:
        os.umask(old)
    assert modes.pop("own") == 0o700
    assert modes == dict.fromkeys(
        ["replies.sqlite", "replies.sqlite-wal", "replies.sqlite-shm", "replies.sqlite.lock"], 0o600
    )
    engine.close()


def test_an_interrupted_write_leaves_nothing_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(path, LIMIT)
    store.put([row(1)])
    insert = tables.insert

    def interrupted(*arguments: Any) -> None:
        insert(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tables, "insert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.put([row(2)])
    assert store.put([row(3)]) == 1 and aside(path) == []
    assert [len(store.get([row(i).key])) for i in (1, 2, 3)] == [1, 0, 1]


@pytest.mark.parametrize("jump", [-400 * 86400, 400 * 86400])
def test_a_clock_that_jumps(filled: Path, jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    assert use(filled, [*NAMES, "new"]) == len(NAMES)
    assert use(filled, [*NAMES, "new"]) == len(NAMES) + 1


def test_look_ups_are_counted_for_all_processes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(path, ["a", "b"])
    use(path, ["a", "c"])
    use(path, ["a", "b"])
    found = Store(path, LIMIT).summary()
    assert (found.rows, found.hits, found.misses) == (3, 3, 3)
    assert found.oldest and found.newest and found.oldest <= found.newest
    store = Store(path, LIMIT)
    monkeypatch.setattr(store, "_flushed", -1e9)  # a long run that only reads counts now and then
    store.get([b"x" * 32])
    assert Store(path, LIMIT).summary().misses == 4
    store.get([b"y" * 32])
    monkeypatch.setattr(store, "_flushed", -1e9)  # one that also writes, somewhat more often
    store.put([row(1)])
    assert Store(path, LIMIT).summary().misses == 5


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
