"""One limit for all processes that ask one server, also when some of them are killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flexjudge_reward import Message, Prompt, Request, ServerEngine
from flexjudge_reward.engines.shares import Share, fair
from support.fault_server import FaultServer


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def share() -> Iterator[list[Share]]:
    shares = [Share("http://judge/v1", 64) for _ in range(3)]
    yield shares
    for one in shares:
        one.leave()
        one.leave()


@pytest.mark.parametrize(
    ("wanted", "parts"),
    [
        pytest.param([64], [64], id="alone"),
        pytest.param([900, 900], [32, 32], id="two"),
        pytest.param([900, 3, 0], [61, 3, 0], id="one_waits_for_its_last_replies"),
        pytest.param([64] * 100, [1] * 100, id="more_processes_than_places"),
        pytest.param([0], [0], id="nothing"),
    ],
)
def test_fair_parts(wanted: list[int], parts: list[int]) -> None:
    assert fair(64, wanted) == parts


def test_a_part_grows_only_as_others_give_back(share: list[Share]) -> None:
    one, two, three = share
    assert one.update(500, 0) == 64
    assert two.update(500, 0) == 1  # the other has its 64 in flight
    assert one.update(500, 64) == 32
    assert one.update(500, 40) == 32
    assert two.update(500, 1) == 24
    assert one.update(500, 32) == 32
    assert two.update(500, 24) == 32
    assert one.update(2, 2) == 2
    assert two.update(500, 32) == 62
    assert three.update(0, 0) == 0
    two.leave()
    assert one.update(500, 2) == 64


def test_other_servers_do_not_count(share: list[Share]) -> None:
    share[0].update(500, 0)
    other = Share("http://other/v1", 64)
    assert other.update(500, 0) == 64
    other.leave()


def test_a_forked_child_gives_back_nothing_of_its_parent(share: list[Share]) -> None:
    assert share[0].update(500, 0) == 64
    if not (child := os.fork()):
        share[0].leave()
        os._exit(share[0].update(500, 0) != 64)  # for itself
    assert os.waitpid(child, 0)[1] == 0
    assert share[1].update(500, 0) == 1


def test_a_stopped_process_stops_no_other(share: list[Share]) -> None:
    assert share[0].update(500, 0) == 64
    with share[1]._locked():
        assert share[0].update(2, 2) == 64
        share[0].update(0, 0)  # its last call before it rests
    assert share[1].update(500, 0) == 64


@pytest.mark.parametrize("broken", ["no_folder", "removed", "full_disk"])
def test_without_a_folder_each_process_has_the_limit(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken == "no_folder":
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "file"))
        (tmp_path / "file").write_text("")
    if broken == "full_disk":
        other = Share("http://judge/v1", 64)  # so that there is one to count
        monkeypatch.setattr("os.pwrite", _full)
    one = Share("http://judge/v1", 64)
    if broken == "removed":
        for path in list(tmp_path.rglob("*.member")):
            path.parent.rename(tmp_path / "elsewhere")
    assert one.update(500, 0) == 64
    assert one.update(500, 64) == 64
    one.leave()
    if broken == "full_disk":
        other.leave()


def _full(*_: object) -> int:
    raise OSError("no space left on device")


def test_a_batch_that_timed_out_holds_nothing(share: list[Share]) -> None:
    """The engine rests after it, while other processes ask."""
    with FaultServer(delay=30.0) as server, ServerEngine(server.url, concurrency=8, stall_timeout=0.2) as engine:
        other = Share(server.url, 8)
        replies = engine.generate([Request(Prompt((Message("user", (f"item {n} ",)),))) for n in range(16)])
        assert {reply.failure and reply.failure.kind for reply in replies} == {"timeout"}
        assert other.update(500, 0) == 8
        other.leave()


def test_two_engines_are_not_two_times_the_load() -> None:
    """Each has a file of its own, as two processes have."""
    requests = [Request(Prompt((Message("user", (f"item {n} ",)),))) for n in range(60)]
    with FaultServer(delay=0.05) as server, ThreadPoolExecutor(2) as pool:
        engines = [ServerEngine(server.url, concurrency=8) for _ in range(2)]
        replies = list(pool.map(lambda engine: engine.generate(requests), engines))
        for engine in engines:
            engine.close()
    assert all(reply.failure is None for batch in replies for reply in batch)
    assert server.most_in_flight <= 8 + 1
