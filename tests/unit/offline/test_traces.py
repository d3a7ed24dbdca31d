"""`traces_file` and `flexjudge traces`: which replies become training traces, and what the files say of the others."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import (
    CachedEngine,
    ConfigError,
    EngineError,
    Generation,
    Judge,
    Listwise,
    MajorityVote,
    MultipleChoice,
    Pairwise,
    PairwiseVerdict,
    Pointwise,
    Rubric,
    Sampling,
    Scale,
    ScriptedEngine,
)
from flexjudge_reward.cli.main import main
from flexjudge_reward.data.tables import Table
from flexjudge_reward.offline.traces import traces_file
from support import teacher_file
from support.jsonl import write
from support.judging import scores, tags
from support.late import needs

needs("datasets")

QA = {"id": 1, "question": "q", "candidates": ["7", "4"], "scores": [7, 4]}
WARM = Sampling(temperature=0.1)


def kept(path: Path) -> list[dict[str, Any]]:
    return list(Table.open(path).rows())


def skipped(path: Path) -> list[tuple[Any, str]]:
    lines = path.with_suffix(".skipped.jsonl").read_text().splitlines()
    return [(entry["id"], entry["why"]) for entry in map(json.loads, lines)]


def test_a_teacher_file_with_planted_faults_keeps_exactly_the_rows_it_should(tmp_path: Path) -> None:
    made = teacher_file.rows(1000)
    source, output = tmp_path / "teacher.jsonl", tmp_path / "traces.parquet"
    source.write_text("".join(one.line + "\n" for one in made))
    judge = Judge(Pairwise(), ScriptedEngine(teacher_file.Teacher(made)), WARM)
    counts = traces_file(source, judge, output, teacher_file.SEEDS, "score", columns=teacher_file.COLUMNS)
    assert teacher_file.wrong(made, output) == []
    expected = Counter(one.why or "traces" for one in made)
    assert counts["rows"] == 1000 and counts["row"] == expected["row"] and counts["traces"] == expected["traces"]
    card = output.with_suffix(".md").read_text()
    assert "| rows | 1000 |" in card and f"| traces | {expected['traces']} |" in card


def test_a_trace_has_all_that_another_wording_needs(tmp_path: Path) -> None:
    own = {"criteria": "Is it short?", "low": 0, "high": 4}
    source = write(tmp_path / "in.jsonl", [{**QA, "reference": "7", "rubric": own, "candidates": ["1", "4"]}])
    reply = Generation(tags(1, 4) + "\n", completion_tokens=9)
    traces_file(source, Judge(Pairwise(), ScriptedEngine([reply])), tmp_path / "out.parquet", license="CC0\nx")
    assert kept(tmp_path / "out.parquet") == [
        {"id": "1", "format": "pairwise", "question": "q", "candidates": ["1", "4"], "reference": "7"}
        | {"criteria": "Is it short?", "low": 0, "high": 4, "reply": tags(1, 4), "scores": [1, 4]}
        | {"tokens": 9, "seed": 0}
    ]
    assert "Licence: CC0 x\n" in (tmp_path / "out.md").read_text()
    assert not list(tmp_path.glob("*.partial")) and skipped(tmp_path / "out.parquet") == []


AGREES = [
    pytest.param(Pairwise(), ["7", "4"], [7, 4], tags(7, 4), True, id="both"),
    pytest.param(Pairwise(), ["7", "4"], [7, 5], tags(7, 4), False, id="one"),
    pytest.param(Pointwise(), ["7"], [7], tags(7), True, id="single"),
    pytest.param(Listwise(), ["7", "4", "1"], [7, 4, 1], tags(7, 4, 1), True, id="list"),
    pytest.param(Listwise(), ["7", "4", "1"], [7, 1, 4], tags(7, 4, 1), False, id="list_in_another_order"),
    pytest.param(MultipleChoice(), ["7", "4", "1"], [2, 9, 3], tags("B"), True, id="letter"),
    pytest.param(MultipleChoice(), ["7", "4", "1"], [9.5, 9, 3], tags("B"), False, id="another_letter"),
    pytest.param(Pointwise(Rubric("r", Scale(1, 5, True))), ["7"], [4.5], tags("4.5"), True, id="decimals"),
]


@pytest.mark.parametrize(("format", "candidates", "wanted", "reply", "agrees"), AGREES)
def test_agreement_with_the_teacher(
    tmp_path: Path, format: Any, candidates: list[str], wanted: list[float], reply: str, agrees: bool
) -> None:
    source = write(tmp_path / "in.jsonl", [{**QA, "candidates": candidates, "scores": wanted}])
    judge = Judge(format, ScriptedEngine([reply]))
    counts = traces_file(source, judge, tmp_path / "out.parquet", teacher="scores")
    assert (counts["traces"], counts["disagrees"]) == (int(agrees), int(not agrees))
    assert skipped(tmp_path / "out.parquet") == [] if agrees else [(1, "disagrees")]


def test_rows_without_a_trace_are_counted_once_however_many_replies_they_have(tmp_path: Path) -> None:
    rows = [{**QA, "id": n, "question": f"q{n}", "scores": [7, 4 + n % 2]} for n in range(4)]
    judge = Judge(Pairwise(), ScriptedEngine(lambda request: tags(7, 4)), WARM)
    counts = traces_file(write(tmp_path / "in.jsonl", rows), judge, tmp_path / "out.parquet", (1, 2, 3), "scores")
    assert (counts["disagrees"], counts.left_out) == (6, {"disagrees": 2})
    assert str(counts) == "2 traces from 4 rows and 12 replies; left out: 2 disagrees"


REFUSED: list[Any] = [
    pytest.param({}, {"teacher": "score"}, "entry 'score' with the teacher's scores is missing", id="no_scores"),
    pytest.param({"scores": [7, 11]}, {"teacher": "scores"}, "7, 11 are off the scale 1, 10", id="off_the_scale"),
    pytest.param({"scores": [True, 4]}, {"teacher": "scores"}, "a number per candidate", id="no_numbers"),
    pytest.param({}, {"seeds": (1, 2)}, "several need a temperature", id="seeds_without_temperature"),
    pytest.param({}, {"seeds": ()}, "one or several different numbers", id="no_seeds"),
    pytest.param({"question": [{"molecule": "CCO"}]}, {}, "traces are of texts", id="media"),
    pytest.param({"candidates": ["a"]}, {}, "judges 2 candidates", id="one_candidate"),
    pytest.param({"question": None}, {}, "a part is a text", id="no_question"),
]


@pytest.mark.parametrize(("row", "options", "why"), REFUSED)
def test_a_clear_error_before_anything_is_judged(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], why: str
) -> None:
    engine = ScriptedEngine(scores)
    with pytest.raises(ConfigError, match=why):
        traces_file(
            write(tmp_path / "in.jsonl", [QA | row]), Judge(Pairwise(), engine), tmp_path / "t.parquet", **options
        )
    assert not engine.requests and not (tmp_path / "t.parquet").exists()


@pytest.mark.parametrize(
    ("format", "why"),
    [
        pytest.param(MajorityVote(Pairwise(), 3), "leave out what MajorityVote", id="votes"),
        pytest.param(PairwiseVerdict(), "no scores to compare", id="options"),
    ],
)
def test_formats_that_make_no_traces(tmp_path: Path, format: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        traces_file(
            write(tmp_path / "in.jsonl", [QA]),
            Judge(format, ScriptedEngine(scores)),
            tmp_path / "t.parquet",
            (0,),
            "scores",
        )


def test_a_run_that_was_cut_off_pays_for_nothing_twice(tmp_path: Path, cache_file: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{**QA, "id": n, "question": f"q{n}"} for n in range(600)])
    left = [500]

    def mortal(request: Any) -> str:
        if left[0] == 0:
            raise EngineError("the server is gone")
        left[0] -= 1
        return scores(request)

    def run() -> Any:
        with CachedEngine(ScriptedEngine(mortal), cache_file) as engine:
            return traces_file(source, Judge(Pairwise(), engine), tmp_path / "out.parquet")

    with pytest.raises(EngineError):
        run()
    assert not (tmp_path / "out.parquet").exists()
    left[0] = 600 - 256  # the first batch is in the cache
    assert run()["traces"] == 600 == len(kept(tmp_path / "out.parquet"))


def test_a_judge_that_is_gone_ends_the_run(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [QA, {**QA, "id": 2, "question": "r"}])
    gone = ScriptedEngine(lambda request: Generation.failed("transport", "no route"))
    with pytest.raises(EngineError, match="answered nothing of 2 rows: no route"):
        traces_file(source, Judge(Pairwise(), gone), tmp_path / "out.parquet")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        pytest.param([], "give the file of the traces", id="no_output"),
        pytest.param(["-o", "t.jsonl"], "go to a .parquet file", id="another_file"),
    ],
)
def test_wrong_commands(tmp_path: Path, words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.jsonl", [QA])
    assert main(["traces", str(source), "--model", "nano", "--format", "pairwise", *words]) == 2
    assert why in capsys.readouterr().err
