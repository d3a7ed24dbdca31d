"""`flexjudge serve` as a process: answers, drains, shares its cache between workers, and says what is wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward.cli.main import main
from support.fault_server import FaultServer


@contextmanager
def served(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process and its address, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "flexjudge_reward", "serve", "--serve-port", str(port)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FLEXJUDGE_")}
    with subprocess.Popen([*command, "--cache", str(folder / "cache"), *words], env=environ) as process:
        try:
            for _ in range(300):
                if process.poll() is not None:
                    break
                try:
                    ask(f"http://127.0.0.1:{port}/judge")
                    break
                except OSError:
                    time.sleep(0.1)
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def ask(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
        return json.loads(answer.read())


def test_workers_share_one_cache_and_end_together(tmp_path: Path) -> None:
    with FaultServer(delay=0.01) as judge:
        with served(tmp_path, "--base-url", judge.url, "--serve-workers", "2") as (process, url):

            def rate(number: int) -> Any:
                return ask(url + "/rm", {"prompt": "q", "response": f"item {number % 20} "})

            with ThreadPoolExecutor(8) as pool:
                assert set(pool.map(rate, range(20))) == {6 / 9}
                assert set(pool.map(rate, range(20, 60))) == {6 / 9}
            assert {name: count for name, count in judge.attempts.items() if name} == {
                f"item {n}": 1 for n in range(20)
            }
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        with pytest.raises(OSError):
            ask(url + "/judge")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--serve-host", "0.0.0.0"], "others can reach 0.0.0.0: set FLEXJUDGE_SERVE_TOKEN", id="token"),
        pytest.param(["--serve-host", "judge.org"], "others can reach judge.org", id="name"),
        pytest.param(["--serve-port", "0", "--serve-workers", "2"], "several workers need a port", id="port"),
        pytest.param(["--serve-port", "70000"], "must be from 0 to 65535", id="range"),
        pytest.param(["--model", "nano", "--votes", "3"], "3 votes at temperature 0", id="judge"),
        pytest.param(["--model", "nano", "--max-cost", "5"], "max_cost needs a price", id="ceiling"),
        pytest.param(["--model", "nano", "--probes", "2"], "'probes' must be from 0 to 1", id="probes"),
        pytest.param(["--model", "nano", "--second-judge", "b"], "second_judge='b' names no judge", id="second-judge"),
    ],
)
def test_wrong_settings_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_server_needs_a_judge(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXJUDGE_REWARD_SERVER", "http://127.0.0.1:9")
    assert main(["serve"]) == 2
    assert "reward_server names another server" in capsys.readouterr().err
