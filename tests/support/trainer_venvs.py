"""The virtual environments of real trainers, made by `make test-trainers`; without one its tests are skipped."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VENVS = Path(os.environ.get("TRAINER_VENVS", ROOT / ".venv" / "trainers"))


def place(name: str) -> Path:
    """The folder of a trainer's environment. Skips the test where it was not made."""
    if not (VENVS / f"{name}.ok").exists():
        pytest.skip(f"there is no environment with {name}: make test-trainers")
    return VENVS / name


def run(name: str, command: list[str], folder: Path, timeout: float = 540, **variables: str) -> str:
    """What a command says that runs with a trainer's environment; its own error where it fails."""
    return run_in([str(place(name) / "bin" / command[0]), *command[1:]], folder, None, timeout, **variables)


def run_in(
    command: list[str], folder: Path, packages: Path | None = None, timeout: float = 540, **variables: str
) -> str:
    """The same with any program, which finds a trainer's `packages` first."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("FLEXJUDGE_")}
    own_packages = [] if packages is None else [str(packages)]
    paths = os.pathsep.join([*own_packages, str(ROOT), str(folder), environ.get("PYTHONPATH", "")])
    quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "USE_HF": "1", "HF_HUB_OFFLINE": "1"}
    own = {"PYTHONPATH": paths, "HF_HOME": str(folder / "hub"), "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        command, cwd=folder, env={**environ, **quiet, **own, **variables},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the ranks and workers that it started
        raise AssertionError(f"not done after {timeout:g} s:\n{process.communicate()[0][-6000:]}") from None
    assert process.returncode == 0, said[-6000:]
    return said
