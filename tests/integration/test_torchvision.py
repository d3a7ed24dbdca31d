"""A broken, a missing and a mended torchvision. Each in interpreters of their own, outside this environment's hooks."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import flexjudge_reward

MEND = "flexjudge_reward.engines.torchvision_mend"
JUDGE_A_PICTURE = """
from flexjudge_reward import Example, Judge, Media, Pointwise, TransformersEngine
judge = Judge(Pointwise(prompt_set="nano"), TransformersEngine("nano"))
verdict, = judge([Example([Media.image(picture), "top-left?"], ["red"])])
assert verdict.scores, verdict
"""
JUDGE_A_VIDEO = """
verdict, = judge([Example([Media.video([picture] * 4), "top-left?"], ["red"])])
assert verdict.failure.kind == "engine" and "torchvision" in verdict.failure.detail, verdict
"""
PROBE = "import torchvision"
PICTURE = "from PIL import Image; picture = Image.new('RGB', (56, 56), 'red')\n"
HIDDEN = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] == "torchvision" else find(name, path, target)
PathFinder.find_spec = staticmethod(find_spec)
"""


def run(code: str, python: str | Path | None = None, *options: str) -> subprocess.CompletedProcess[str]:
    """A Python that sees the installed packages, but not the .pth files beside them."""
    python = python or getattr(sys, "_base_executable", sys.executable)
    paths = [str(Path(flexjudge_reward.__file__).parent.parent), sysconfig.get_path("purelib")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [str(python), *(options or ("-c", code))]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


WORKS = "the torchvision of this machine is missing, or matches its torch"


def test_a_broken_one_stops_neither_a_judge_nor_trl_and_is_said_once() -> None:
    # Without vLLM, which TRL would import for the generation that no one does here.
    done = run("import sys; sys.modules['vllm'] = None\n" + PICTURE + JUDGE_A_PICTURE + "import trl; trl.GRPOTrainer")
    assert done.returncode == 0, done.stderr
    if "torchvision does not match torch" not in done.stderr and "torchvision::nms" not in run(PROBE).stderr:
        pytest.skip(WORKS)
    assert done.stderr.count("torchvision does not match torch") == 1
    assert f"python -m {MEND}" in done.stderr


def test_a_missing_one_stops_a_judge_at_videos_only() -> None:
    done = run(HIDDEN + PICTURE + JUDGE_A_PICTURE + JUDGE_A_VIDEO)
    assert done.returncode == 0, done.stderr


def test_an_environment_is_mended_for_good_and_put_back(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    mended = run("", python, "-m", MEND)  # tries the import, mends, and tries again, each in a new Python
    if "nothing to mend" in mended.stdout and "torchvision::nms" not in run(PROBE).stderr:
        pytest.skip(WORKS)
    assert mended.returncode == 0 and "declares them" in mended.stdout, mended.stderr
    own_script = run(PROBE, python)
    assert own_script.returncode == 0, own_script.stderr
    assert run("", python, "-m", MEND, "--remove").returncode == 0
    assert not list((tmp_path / "venv").rglob("flexjudge_torchvision_mend*"))
