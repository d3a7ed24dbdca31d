"""Every test: no network but loopback, no settings or cache of the person who runs it."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import cache_files, real

if TYPE_CHECKING:
    from flexjudge_reward.engines import VLLMEngine

_HOME = tempfile.TemporaryDirectory(prefix="flexjudge-tests-")
os.environ["HF_HOME"] = _HOME.name  # before anything imports datasets: prepared data sets go there
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "2")

real.prepare()  # before anything imports transformers

_connect = socket.socket.connect


def _loopback_only(self: socket.socket, address: Any) -> None:
    inet = self.family in (socket.AF_INET, socket.AF_INET6)
    if inet and not str(address[0]).startswith(("127.", "::1", "localhost")):
        raise OSError(f"tests reach loopback only, not {address!r}")
    _connect(self, address)


socket.socket.connect = _loopback_only  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No FLEXJUDGE_* setting from outside, and a cache of the test's own."""
    for name in [name for name in os.environ if name.startswith("FLEXJUDGE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield


@pytest.fixture
def cache_file(tmp_path: Path) -> Iterator[Path]:
    """Where no cache is yet. In memory where there is such a place: a busy disk would decide how long tests take."""
    room = os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 64 << 20
    with tempfile.TemporaryDirectory(dir="/dev/shm" if room else tmp_path) as folder:
        yield Path(folder) / "own" / "replies.sqlite"


@pytest.fixture
def filled(cache_file: Path) -> Path:
    """A cache with the replies about `cache_files.NAMES`."""
    cache_files.use(cache_file, cache_files.NAMES)
    return cache_file


@pytest.fixture(scope="session")
def nano_vllm() -> Iterator[VLLMEngine]:
    """The embedded judge on a real in-process vLLM; at the end its process must be gone."""
    from flexjudge_reward import Message, Prompt, Sampling
    from flexjudge_reward.engines import VLLMEngine

    engine = VLLMEngine("nano", dtype="float32", enforce_eager=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM and what it imports use deprecated parts of torch
        engine.generate([Prompt((Message("user", ("What is top-left?",)),))], Sampling(max_tokens=4))
    assert len(real.engine_processes()) == 1
    yield engine
    engine.close()
    engine.close()
    assert real.engine_processes(patience=10) == []  # one that was killed takes a moment to go


@pytest.fixture(scope="session")
def nano_server() -> Iterator[str]:
    """The address of a real vLLM server that has the embedded judge as "nano"."""
    with _serve_nano() as url:
        yield url


@pytest.fixture(scope="session")
def nano_splitting_server() -> Iterator[str]:
    """The same behind a parser that takes the reasoning out of the reply, as judges that think are often served."""
    with _serve_nano("--reasoning-parser", "deepseek_r1") as url:
        yield url


def _serve_nano(*options: str) -> AbstractContextManager[str]:
    from flexjudge_reward.nano import path

    judge = (str(path("judge")), "--dtype", "float32", "--enforce-eager", "--served-model-name", "nano")
    return real.serve(*judge, *options)
