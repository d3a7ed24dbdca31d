"""How far a job is: a bar on a terminal, lines elsewhere; both say what became of the rows so far."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import Judge, Listwise, Pointwise, ScriptedEngine, annotate_file, rerank_file, score_file
from flexjudge_reward.offline import progress
from support.jsonl import write
from support.judging import scores

ROWS = [{"id": n, "question": "q", "candidates": ["3 a", "9 b"]} for n in range(3)]
JOBS = [
    pytest.param(score_file, "judging", "0 of 6 judgements failed", id="score"),
    pytest.param(rerank_file, "judging", "0 of 6 judgements failed", id="rerank"),
    pytest.param(annotate_file, "annotating", "3 pairs, 0 failed", id="annotate"),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(job: Callable[..., Any], folder: Path) -> None:
    format = Pointwise() if job is not annotate_file else Listwise()
    job(write(folder / "in.jsonl", ROWS), Judge(format, ScriptedEngine(scores)), folder / "out.jsonl")


@pytest.mark.parametrize(("job", "what", "said"), JOBS)
def test_a_log_has_a_line_now_and_then(
    job: Callable[..., Any],
    what: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(job, tmp_path)
    assert what not in capsys.readouterr().err  # it took less than a minute
    monkeypatch.setattr(progress, "_PAUSE_S", 0.0)
    (tmp_path / "out.jsonl").unlink()
    run(job, tmp_path)
    assert f"{what}: 3 of 3 rows, {said}\n" in capsys.readouterr().err


@pytest.mark.parametrize(("job", "what", "said"), JOBS)
def test_a_terminal_has_a_bar(
    job: Callable[..., Any], what: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    run(job, tmp_path)
    assert what in shown.getvalue() and said in shown.getvalue() and "\n" not in shown.getvalue().strip()
