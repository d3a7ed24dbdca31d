"""Every test: no network but loopback, and no settings or cache of the user who runs it."""

from __future__ import annotations

import gc
import importlib
import itertools
import os
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from support import cache_files

_HOME = tempfile.TemporaryDirectory(prefix="flexjudge-tests-")
os.environ["HF_HOME"] = _HOME.name  # before anything imports datasets: prepared data sets go there
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several workers share two cores

gc.set_threshold(20_000, 20, 20)  # a tenth of all time went into it

_numbers = itertools.count()
_WITH_VLLM = ("trl.generation.vllm_generation", "trl.generation.vllm_client", "trl.experimental.async_grpo")
_FORKING = tuple(f"test_{name}.py" for name in ("readme", "trl_trainers", "cli", "diffusion_dpo", "program", "ranks"))
_connect = socket.socket.connect


def _loopback_only(self: socket.socket, address: Any) -> None:
    inet = self.family in (socket.AF_INET, socket.AF_INET6)
    if inet and not str(address[0]).startswith(("127.", "::1", "localhost")):
        raise OSError(f"tests reach loopback only, not {address!r}")
    _connect(self, address)


socket.socket.connect = _loopback_only  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """TRL imports vLLM where it is, which takes 6 s of processor time in each worker. Only test_vllm.py needs it."""
    sys.modules["vllm"] = None  # type: ignore[assignment]
    try:
        return (yield)
    finally:
        for name in _WITH_VLLM if "trl" in sys.modules else ():
            with suppress(ImportError), warnings.catch_warnings():  # an older TRL has other modules
                warnings.simplefilter("ignore")  # it calls them experimental
                importlib.import_module(name)
        sys.modules.pop("vllm", None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker gets whole files, and one of them all that fork programs: a preloaded process takes 8 s."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "programs" if file.endswith(_FORKING) else file

    return Files(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No FLEXJUDGE_* setting from outside, and a cache of the test's own, in a folder that few of them make."""
    for name in [name for name in os.environ if name.startswith("FLEXJUDGE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", os.path.join(_HOME.name, f"cache-{next(_numbers)}"))


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> None:
    """A collection looks at one file of tests, not at all of torch and vLLM, which takes half a second."""
    gc.collect()
    gc.freeze()


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
