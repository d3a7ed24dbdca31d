"""Every code block of the README runs as pasted; only installing and serving a 7B judge need a network and a GPU."""

from __future__ import annotations

import json
import re
from pathlib import Path

from flexjudge_recipes.nano import shapes

import pytest

import flexjudge_reward
from support.forked import run

README = (Path(flexjudge_reward.__file__).parent.parent / "README.md").read_text("utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TEXT = re.sub(r"```python\n.*?```", "", README, flags=re.DOTALL)
SHELL = [line[4:].split("  #")[0].strip() for line in TEXT.splitlines() if re.match(r"    \w", line)]
ELSEWHERE = ("pip install", "git clone", "CUDA_VISIBLE_DEVICES", "export", "flexjudge_reward/", "recipes/")
COMMANDS = [line for line in SHELL if not line.startswith(ELSEWHERE)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that the README's commands name."""
    image, truth = shapes.example(seed=1)
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images" / "1.png")
    row = {"id": 1, "question": "What is top-left?", "images": ["1.png"]}
    (tmp_path / "answers.jsonl").write_text(json.dumps({**row, "answer": truth}) + "\n")
    verdict = {"line": 1, "id": 1, "scores": [7], "failures": [None], "scale": [1, 10], "reasoning": ["fine"]}
    (tmp_path / "verdicts.jsonl").write_text(json.dumps(verdict) + "\n")
    candidates = {"id": 1, "question": "2 + 2?", "candidates": ["4", "5"]}
    (tmp_path / "samples.jsonl").write_text(json.dumps(candidates) + "\n")
    return tmp_path


def check(words: list[str], folder: Path) -> None:
    done = run(words, folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.split()[1])
def test_python_blocks(block: str, folder: Path) -> None:
    (folder / "pasted.py").write_text(block, "utf-8")
    check(["pasted.py"], folder)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.split()[:2]))
def test_commands(command: str, folder: Path) -> None:
    program, *words = command.split()
    assert program == "flexjudge", f"the README has a command that no test runs: {command}"
    check(["-m", "flexjudge_reward", *words], folder)


def test_there_are_blocks_and_commands() -> None:
    assert len(PYTHON) >= 2 and len(COMMANDS) >= 2
