"""Labels of a user's own: what a file may say, and what is said where labels, media or answers say too little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import ConfigError, Judge, Pointwise, Sampling, ScriptedEngine, evaluate
from flexjudge_reward.offline.evaluate import job, table
from flexjudge_reward.offline.evaluate.doctor import doctor
from flexjudge_reward.offline.evaluate.labels import user_rows
from flexjudge_reward.offline.evaluate.metrics import measure
from support.doctor_cases import good, labelled, scripted
from support.jsonl import write
from support.judging import scores


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of 50 resamples instead of 1000, and no plot, which test_evaluate.py looks at."""
    monkeypatch.setattr(job, "measure", lambda metrics, rows, *_: measure(metrics, rows, 50))
    monkeypatch.setattr(table, "_plot", lambda *_: None)


def csv(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_cell_of_a_csv_file_may_hold_a_number(tmp_path: Path) -> None:
    lines = ("id,question,answer,label", "1,q,a,4", "2,q,b,-1.5", "3,q,c,", "4,q,d,NaN", "5,q,e,true", "6,q,f,A")
    _, good_rows, bad = user_rows(csv(tmp_path / "mine.csv", *lines))
    assert [row.merits for row in good_rows] == [(4.0,), (-1.5,)] and [row.number for row in bad] == [2, 3, 4, 5]


def test_a_cell_of_a_csv_file_may_hold_a_list_or_a_letter(tmp_path: Path) -> None:
    lines = ("id,question,one,two,label", 'x,q,a,b,"[3, 1]"', "y,q,a,b,B", "z,q,a,b,tie", "w,q,a,b,[3", "v,q,a,b,2")
    _, good_rows, bad = user_rows(csv(tmp_path / "mine.csv", *lines), columns={"candidates": ["one", "two"]})
    assert [row.merits for row in good_rows] == [(3.0, 1.0), (0.0, 1.0), (0.0, 0.0)]
    assert ["found '[3'" in bad[0].why, "found 2" in bad[1].why] == [True, True]


@pytest.mark.parametrize(
    ("labels", "reply", "says"),
    [
        pytest.param([2, 4, 8], scores, ["of 3 rows says nothing: label at least 20, and about 73"], id="few"),
        pytest.param([5] * 3, scores, ["pearson and spearman cannot be computed"], id="labels alike"),
        pytest.param([1, 2, 3], lambda _: "no", ["malformed 3; the first: ", "cannot be computed"], id="failures"),
    ],
)
def test_figures_that_say_little_come_with_a_warning(
    labels: list[int], reply: Any, says: list[str], tmp_path: Path
) -> None:
    rows = [{"id": n, "question": "q", "answer": f"{n + 1} a", "label": label} for n, label in enumerate(labels)]
    source, judge = write(tmp_path / "mine.jsonl", rows), Judge(Pointwise(), ScriptedEngine(reply), Sampling())
    first, again = (evaluate(source, judge, tmp_path / "out", name="a") for _ in range(2))
    assert first.warnings == again.warnings, "a finished run is read from its file"
    assert all(any(one in warning for warning in first.warnings) for one in says), first.warnings


def test_media_that_cannot_be_read_are_no_verdict_on_the_judge(tmp_path: Path) -> None:
    rows = [{**row, "image": "no.png"} for row in labelled(10)]
    with pytest.raises(ConfigError, match=r"60 of 60 judgements have media.*first row 1: .*no\.png.*media_root"):
        doctor(write(tmp_path / "mine.jsonl", rows), scripted(good), formats=["pairwise"], media_root=tmp_path)


def test_a_setting_says_how_its_judgements_failed(tmp_path: Path) -> None:
    found = doctor(write(tmp_path / "mine.jsonl", labelled()), scripted(lambda _: "no"), formats=["pointwise"])
    assert "(malformed 40; the first: " in found.reasons[0] and found.outcome == "no-go"


def test_what_a_judge_wrote_is_no_code_for_a_terminal(tmp_path: Path) -> None:
    judge = scripted(lambda _: "<think>x</think><answer>\x1b[2Jten</answer>" + "\u202e" * 500)
    found = doctor(write(tmp_path / "mine.jsonl", labelled()), judge, formats=["pointwise"])
    assert "failed" in found.reasons[0] and found.reasons[0].isprintable() and len(found.reasons[0]) < 400


def test_single_answers_have_no_order(tmp_path: Path) -> None:
    rows = [{"id": n, "question": f"q{n}", "answer": "a", "label": n} for n in range(30)]
    with pytest.raises(ConfigError, match=r"every row has one candidate.*flexjudge evaluate takes single ones"):
        doctor(write(tmp_path / "mine.jsonl", rows), scripted(good))
