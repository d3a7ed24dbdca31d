"""Every test: no network but loopback, and no settings or cache of the user who runs it."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import cache_files

_HOME = tempfile.TemporaryDirectory(prefix="flexjudge-tests-")
os.environ["HF_HOME"] = _HOME.name  # before anything imports datasets: prepared data sets go there
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores

_numbers = itertools.count()
_connect = socket.socket.connect


def _loopback_only(self: socket.socket, address: Any) -> None:
    inet = self.family in (socket.AF_INET, socket.AF_INET6)
    if inet and not str(address[0]).startswith(("127.", "::1", "localhost")):
        raise OSError(f"tests reach loopback only, not {address!r}")
    _connect(self, address)


socket.socket.connect = _loopback_only  # type: ignore[method-assign]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole trainings and drawn inputs run without the coverage tracer, which would take a third of their time."""
    for item in items:
        if {"recipes", "fuzz"} & set(item.path.parts) or item.path.name == "test_breaking.py":
            item.add_marker("no_cover")


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
