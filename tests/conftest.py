"""Every test: no network but loopback, and no settings or cache of the user who runs it."""

from __future__ import annotations

import gc
import itertools
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from support import cache_files
from support.late import HEAVY, load

_HOME = tempfile.TemporaryDirectory(prefix="flexjudge-tests-")
os.environ["HF_HOME"] = _HOME.name  # before anything imports datasets: prepared data sets go there
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several workers share two cores

gc.set_threshold(20_000, 20, 20)  # a tenth of all time went into it


def forget_settings() -> None:
    """Removes what the user has set, and what `flexjudge serve` sets for its workers."""
    for name in [name for name in os.environ if name.startswith("FLEXJUDGE_")]:
        del os.environ[name]


forget_settings()
_numbers = itertools.count()
_FORKING = tuple(f"test_{name}.py" for name in ("readme", "trl_trainers", "cli", "diffusion_dpo", "program", "ranks"))
_HEAVY = re.compile(r'\b(?:late|needs)\("(?:torch|transformers|trl|datasets|flexjudge_recipes)\b')
_connect = socket.socket.connect


def _loopback_only(self: socket.socket, address: Any) -> None:
    inet = self.family in (socket.AF_INET, socket.AF_INET6)
    if inet and not str(address[0]).startswith(("127.", "::1", "localhost")):
        raise OSError(f"tests reach loopback only, not {address!r}")
    _connect(self, address)


socket.socket.connect = _loopback_only  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Every worker collects all files, so none of them may import at its head what takes seconds."""
    before = HEAVY & sys.modules.keys()
    report = yield
    if heavy := sorted(HEAVY & sys.modules.keys() - before):
        report.outcome, report.longrepr = "failed", f"it imports {', '.join(heavy)} at its head: see support/late.py"
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker gets whole files, and one of them all that fork programs: a preloaded process takes 8 s.

    Files with heavy packages go to the first worker as long as it can do them: the others need not import those.
    """
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "programs" if file.endswith(_FORKING) else file

        def _assign_work_unit(self, node: Any) -> None:
            heavy = node is self.nodes[0]
            fit = (scope for scope in self.workqueue if _is_heavy(config.rootpath, scope) is heavy)
            if scope := next(fit, None):  # where none is left, the next one: those that take long come first
                self.workqueue.move_to_end(scope, last=False)
            super()._assign_work_unit(node)

    return Files(config, log) if config.getvalue("dist") == "loadfile" else None


@cache
def _is_heavy(root: Path, scope: str) -> bool:
    """Whether the tests of a scope import torch or data sets into their worker."""
    return scope == "programs" or bool(_HEAVY.search((root / scope.split("::")[0]).read_text("utf-8")))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of the test's own, in a folder that few of them make; no setting of a command is left for the next."""
    monkeypatch.setenv("XDG_CACHE_HOME", os.path.join(_HOME.name, f"cache-{next(_numbers)}"))
    yield
    forget_settings()


@pytest.fixture(scope="module", autouse=True)
def late_imports(request: pytest.FixtureRequest) -> Iterator[None]:
    """Imports what the file names late, without vLLM: TRL imports it where it is, which takes 6 s of processor time.

    Then a garbage collection looks at what the file makes, not at all of torch, which takes half a second.
    """
    hidden = request.path.name != "test_vllm.py" and sys.modules.setdefault("vllm", None) is None  # type: ignore[arg-type]
    load(vars(request.module))
    gc.collect()
    gc.freeze()
    yield
    if hidden:
        sys.modules.pop("vllm", None)


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
