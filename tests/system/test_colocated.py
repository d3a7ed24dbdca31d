"""A judge beside the policy: asleep outside its window, and never asked while its canary fails."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flexjudge_reward import (
    CachedEngine,
    Cascade,
    ConfigError,
    EngineError,
    Example,
    ExpectedScore,
    FlexJudgeReward,
    Judge,
    JudgeConfig,
    Message,
    Pointwise,
    Prompt,
    Request,
    RewardSession,
    ScriptedEngine,
)
from flexjudge_reward.engines import colocated
from flexjudge_reward.engines.colocated import ColocatedEngine
from flexjudge_reward.engines.memory import MemoryPlan, host_memory
from flexjudge_reward.trainers.server import RewardServer
from support import sleeping_server

GIB = 2**30
SLEEP = "sleep?level=1&mode=wait"
CANARY = ["asked"] * 4  # a text and a picture, twice
RESETS = ["reset_prefix_cache", "reset_mm_cache", "reset_encoder_cache"]
WHOLE = "judged by a whole one"


class Place:
    """The folder of a `sleeping_server`, and an engine in front of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan("", "")
        self.engine = ColocatedEngine("nano", server=[sys.executable, sleeping_server.__file__, str(folder)])

    def plan(self, damage: str, mended_by: str) -> None:
        (self.folder / "plan.json").write_text(json.dumps({"damage": damage, "mended_by": mended_by}))

    def events(self) -> list[str]:
        """What happened since the last call."""
        lines = (self.folder / "events").read_text().splitlines()
        new, self.seen = lines[getattr(self, "seen", 0) :], len(lines)
        return new

    def step(self) -> list[str]:
        """One step of a trainer: what the judge says, and then what happened at the server."""
        with self.engine.window():
            self.engine.generate([request()])
        return self.events()


def request(text: str = "Is it good?") -> Request:
    return Request(Prompt((Message("user", (text,)),)))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.engine.close()


def test_it_sleeps_outside_its_window(place: Place, tmp_path: Path) -> None:
    assert place.step() == ["started", *CANARY, WHOLE, SLEEP]
    assert place.step() == ["wake_up", *CANARY, WHOLE, SLEEP]
    with place.engine.window():
        pass
    assert place.events() == []  # nothing was asked: it slept on
    with pytest.raises(EngineError, match="the GPU is the policy's"):
        place.engine.generate([request()])
    cached = CachedEngine(place.engine, tmp_path / "replies.sqlite")
    assert cached.needs_window
    with cached.window():
        cached.generate([request()])
    assert place.events() == ["wake_up", *CANARY, WHOLE, SLEEP]
    with cached.window():
        assert cached.generate([request()])[0].cached
    assert place.events() == []
    pickle.loads(pickle.dumps(cached)).close()


@pytest.mark.parametrize(
    ("damage", "mended_by", "expected"),
    [
        pytest.param("tokens", "reset", ["wake_up", "asked", "asked", *RESETS, *CANARY, WHOLE, SLEEP], id="tokens"),
        pytest.param("again", "reset", ["wake_up", "asked", "asked", *RESETS, *CANARY, WHOLE, SLEEP], id="the_cache"),
        pytest.param(
            "logprobs",
            "restart",
            ["wake_up", "asked", "asked", *RESETS, "asked", "asked", "started", *CANARY, WHOLE, SLEEP],
            id="scales_that_only_a_restart_mends",
        ),
        pytest.param("dies", "restart", ["wake_up", "started", *CANARY, WHOLE, SLEEP], id="death_at_the_wake"),
    ],
)
def test_damage_is_found_before_anything_is_judged(
    place: Place, damage: str, mended_by: str, expected: list[str]
) -> None:
    place.step()
    place.plan(damage, mended_by)
    assert place.step() == expected


def test_a_judge_that_stays_damaged_judges_nothing(place: Place) -> None:
    place.step()
    place.plan("tokens", "nothing")
    for _ in range(2):
        with pytest.raises(EngineError, match="fails its canary, so nothing is judged: the text, first: other tokens"):
            place.step()
        assert not [event for event in place.events() if event.startswith("judged")]
    place.plan("", "")
    assert place.step() == ["started", *CANARY, WHOLE, SLEEP]


def test_a_judge_that_does_not_fall_asleep_is_ended(place: Place) -> None:
    place.plan("awake", "")
    assert place.step() == ["started", *CANARY, WHOLE, SLEEP]
    assert place.step() == ["started", *CANARY, WHOLE, SLEEP]


def test_a_judge_that_was_killed_is_started_again(place: Place) -> None:
    place.step()
    process = place.engine._process
    assert process is not None
    process._process.kill()
    process._process.wait()
    with pytest.raises(OSError):  # else the GPU has two of them
        while True:
            process._ask("GET", "/health", 1.0)
            time.sleep(0.01)
    assert place.step() == ["started", *CANARY, WHOLE, SLEEP]


def late_call(place: Place) -> tuple[threading.Thread, list[EngineError]]:
    """A running call that may outlive its window, and what it raises."""
    errors: list[EngineError] = []

    def call() -> None:
        try:
            place.engine.generate([request()])
        except EngineError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    return thread, errors


def test_a_call_that_outlives_its_window_asks_nothing_more(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a trainer's deadline: the judge is started by a thread that no caller waits for any more."""
    monkeypatch.setattr(colocated, "_PATIENCE_S", 0.01)
    with place.engine.window():
        thread, errors = late_call(place)
        while not place.engine._lock.locked():
            time.sleep(0.001)
    thread.join()
    assert len(errors) == 1 and place.engine._process is None
    assert place.step()[-6:] == [*CANARY, WHOLE, SLEEP]


def test_a_judge_that_wakes_past_its_window_is_not_started_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is ended for the policy; a new one would take the GPU from it."""
    place.step()
    place.plan("hangs", "")
    monkeypatch.setattr(colocated, "_PATIENCE_S", 0.01)
    with place.engine.window():
        thread, errors = late_call(place)
        while not (place.folder / "events").read_text().endswith("wake_up\n"):
            time.sleep(0.001)
    thread.join(20)
    assert "the GPU is the policy's" in str(errors) and place.engine._process is None
    assert place.events() == ["wake_up"]


def test_a_call_that_still_runs_holds_up_no_window(place: Place) -> None:
    """Other ranks wait for this one, and the deadline counts inside the window only."""
    window = place.engine.window()
    with place.engine._lock:
        entered = threading.Thread(target=window.__enter__, daemon=True)
        entered.start()
        entered.join(5)
        assert not entered.is_alive()
    window.__exit__(None, None, None)


def test_connections_that_do_not_end_keep_no_judge(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.step()
    process, server = place.engine._process, place.engine._server
    assert process is not None and server is not None
    with monkeypatch.context() as patched, pytest.raises(TimeoutError):
        patched.setattr(server, "close", lambda: (_ for _ in ()).throw(TimeoutError))
        place.engine.close()
    assert not process.alive
    server.close()


@pytest.mark.parametrize(
    "forks",
    [
        pytest.param("", id="alone"),
        pytest.param("if not os.fork(): os.close(1); time.sleep(60); os._exit(0)\n", id="its_forked_worker_lives"),
    ],
)
def test_the_server_ends_with_its_trainer(forks: str, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, time\n"
        "from flexjudge_reward.engines.judge_process import JudgeProcess\n"
        "os.setpgid(0, 0)\n"
        f"process = JudgeProcess([sys.executable, {sleeping_server.__file__!r}, {str(tmp_path)!r}])\n"
        "process.await_start(60)\n"
        f"print(process.port, flush=True)\n{forks}"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    Place(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as ended:
        try:
            port = int(ended.communicate(timeout=60)[0])
            assert ended.returncode == -signal.SIGKILL
            assert _gone(port), "the server lives on"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(ended.pid, signal.SIGKILL)


def _gone(port: int) -> bool:
    """Whether within seconds no one listens any more."""
    import socket

    end = time.monotonic() + 10
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return True
        time.sleep(0.05)
    return False


def test_two_ranks_never_draw_one_port(tmp_path: Path) -> None:
    """From the draw until the end, also before the server listens and after it has died."""
    import socket

    from flexjudge_reward.engines.judge_process import JudgeProcess

    Place(tmp_path)
    slow = JudgeProcess([sys.executable, "-c", "import time; time.sleep(60)"])
    whole = JudgeProcess([sys.executable, sleeping_server.__file__, str(tmp_path)])
    try:
        whole.await_start(60)
        for process in (slow, whole):
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", process.port))
    finally:
        for process in (slow, whole):
            process.stop()
    with socket.socket() as other:
        other.bind(("127.0.0.1", slow.port))


def test_a_server_that_does_not_start_says_why() -> None:
    with (
        ColocatedEngine("nano", server=[sys.executable, "-c", "raise SystemExit('no kernel image')"]) as engine,
        pytest.raises(EngineError, match=r"ended with code 1.*no kernel image"),
    ):
        engine.generate([request()])


def test_ranks_and_keys_are_not_for_the_server(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from flexjudge_reward.engines.judge_process import _environment

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "FLEXJUDGE_API_KEY"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    own = _environment(1)
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "FLEXJUDGE_API_KEY"} & own.keys()
    assert own["CUDA_VISIBLE_DEVICES"] == "5" and own["VLLM_SERVER_DEV_MODE"] == "1"


PLAN = MemoryPlan(15 * GIB, 1, 100 * GIB, 80 * GIB, 60 * GIB, 0.3)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        pytest.param({}, "", id="fits"),
        pytest.param({"gpu_total": 0, "gpu_free": 0}, "", id="no_gpu"),
        pytest.param({"judges": 8}, "120.0 GiB (8 x 15.0 GiB), and only 100.0 GiB are free", id="host_memory"),
        pytest.param({"share": 0.15}, "is 12.0 GiB of 80.0 GiB: set gpu_memory_utilization to 0.21", id="small_share"),
        pytest.param(
            {"gpu_free": 20 * GIB}, "share is 24.0 GiB of the GPU, and the trainer leaves 20.0 GiB", id="full"
        ),
    ],
)
def test_memory_is_planned_before_the_start(changes: dict[str, Any], problem: str) -> None:
    from dataclasses import replace

    plan = replace(PLAN, **changes)
    if not problem:
        plan.check()
        return
    with pytest.raises(ConfigError, match=re.escape(problem)):
        plan.check()


def test_the_plan_is_made_of_what_is_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**20 < host_memory() < 2**50
    monkeypatch.setattr("flexjudge_reward.engines.memory.host_memory", lambda: 1000)
    with pytest.raises(ConfigError, match=r"only 0\.0 GiB are free"), place.engine.window():
        place.engine.generate([request()])
    assert not (place.folder / "events").exists()


def test_a_judge_started_again_is_planned_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host memory of the other ranks' judges is taken already."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    place.step()
    weights = place.engine._weights
    monkeypatch.setattr("flexjudge_reward.engines.memory.host_memory", lambda: 2 * weights)
    place.plan("dies", "restart")
    assert place.step() == ["wake_up", "started", *CANARY, WHOLE, SLEEP]


def test_pages_of_files_are_free_memory(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 300\nactive_file 200\ninactive_file 400\n")
    assert host_memory(tmp_path) == 700


# ---- in a trainer


def trainer(**arguments: Any) -> SimpleNamespace:
    """What TRL's trainer is to a reward: arguments, and a method to log with."""

    class Trainer(SimpleNamespace):
        def log(self, name: str, value: float) -> None:
            pass

    return Trainer(args=SimpleNamespace(**{"use_vllm": True, "vllm_mode": "colocate", **arguments}))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        pytest.param({"vllm_enable_sleep_mode": True}, "", id="trl"),
        pytest.param({"vllm_enable_sleep_mode": False}, "set its vllm_enable_sleep_mode=True", id="trl_awake"),
        pytest.param({"sleep_level": 1, "vllm_enable_sleep_mode": False}, "", id="swift"),
        pytest.param({"sleep_level": 0}, "set its sleep_level=1", id="swift_awake"),
        pytest.param({"use_vllm": False}, "", id="no_vllm"),
        pytest.param({"vllm_mode": "server", "vllm_enable_sleep_mode": False}, "", id="policy_elsewhere"),
    ],
)
def test_the_policy_has_to_leave_the_gpu(place: Place, arguments: dict[str, Any], problem: str) -> None:
    reward = FlexJudgeReward(Judge(Pointwise(), place.engine))
    policy = trainer(**arguments)

    def step() -> list[float | None]:
        return reward(["Say it."], ["It."], log_metric=policy.log)

    if problem:
        with pytest.raises(ConfigError, match=problem):
            step()
        assert not (place.folder / "events").exists()
    else:
        assert step() == [pytest.approx(6 / 9)]
        assert place.events()[-2:] == [WHOLE, SLEEP]


def test_without_a_window_nothing_is_judged(place: Place) -> None:
    session = RewardSession(Judge(Pointwise(), place.engine))
    with pytest.raises(ConfigError, match="computes rewards while its policy sleeps"):
        session.score_groups([[Example("Say it.", ["It."])]])
    with pytest.raises(ConfigError, match="computes rewards while its policy sleeps"):
        RewardServer(session)
    small = Judge(ExpectedScore(Pointwise()), ScriptedEngine([]))
    with pytest.raises(ConfigError, match="cannot be colocated"):
        Cascade(small, session.judge, 0.5)


def test_asynchronous_rollouts_have_no_window(place: Place) -> None:
    import asyncio

    reward = FlexJudgeReward(Judge(Pointwise(), place.engine))
    errors: list[Exception] = []

    async def step() -> None:
        with suppress(asyncio.CancelledError):
            try:
                reward(["Say it."], ["It."])
            except ConfigError as error:
                errors.append(error)

    thread = threading.Thread(target=lambda: asyncio.run(step()))
    thread.start()
    thread.join()
    assert "computes rewards while its policy sleeps" in str(errors)


@pytest.mark.parametrize(
    ("given", "check"),
    [
        pytest.param(
            {"colocate": True}, lambda c: c.engine == "vllm" and c.model == "jongwooko/Flex-VL-7B", id="alone"
        ),
        pytest.param({"colocate": True, "model": "nano"}, lambda c: c.engine == "vllm", id="a_model"),
        pytest.param({"colocate": False}, lambda c: c.engine == "transformers", id="off"),
        pytest.param({"colocate": False, "base_url": "http://a:1/v1"}, lambda c: c.engine == "server", id="off_served"),
    ],
)
def test_settings(given: dict[str, Any], check: Callable[[JudgeConfig], bool]) -> None:
    config = JudgeConfig.resolve(given, environ={}, gpu=lambda: False)
    assert check(config)
    if config.colocate:
        judge = config.build(processes=8)  # one per rank, planned by each
        assert isinstance(judge.engine, CachedEngine) and isinstance(judge.engine.engine, ColocatedEngine)


def test_a_server_and_a_judge_of_ones_own_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="base_url is for the engine server"):
        JudgeConfig.resolve({"colocate": True, "base_url": "http://a:1/v1"}, environ={})
    assert JudgeConfig.resolve({}, environ={"FLEXJUDGE_COLOCATE": "1"}, gpu=lambda: False).colocate
    assert os.environ.get("FLEXJUDGE_COLOCATE") is None
