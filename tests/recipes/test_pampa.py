"""Best of N on PAMPA, with scripted judges and a nano model of molecules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flexjudge_reward import (
    ConfigError,
    EngineError,
    Generation,
    Judge,
    Pointwise,
    Request,
    ScriptedEngine,
    TransformersEngine,
)
from support import mol_parts, pampa_cases
from support.late import late, needs

needs("rdkit")
pampa = late("flexjudge_recipes.best_of_n.pampa")

LATE = Generation.failed("timeout", "late")


def test_accuracies_of_twenty_molecules_are_those_by_hand() -> None:
    assert pampa_cases.mismatches() == []


def test_more_of_them_repeat_the_same_draws_for_all_molecules() -> None:
    rows = [pampa.Row("CCO", True, ("High permeability", "Moderate permeability"))] * 2
    scored = [[1.0, 2.0], [3.0, None]]
    assert pampa.accuracy(rows, scored, 2, 0) == 0.5
    assert pampa.accuracy(rows, scored, 1, 0) in {share / 10 for share in range(11)}
    assert pampa.accuracy(rows, scored, 1, 0) == pampa.accuracy(rows, scored, 1, 0)
    assert list(pampa.best_of_n(rows * 3, scored * 3, 0)) == [1, 2]


@pytest.mark.parametrize(
    ("answer", "expected", "before"),
    [
        pytest.param("a\nFinal answer: High permeability", True, "a", id="high"),
        pytest.param("a Final answer: Low-to-Moderate permeability", False, "a", id="low"),
        pytest.param("a final Answer: moderate Permeability", False, "a", id="moderate"),
        pytest.param("Final answer: high permeability Final answer: moderate permeability", False, "", id="the_last"),
        pytest.param("high permeability", True, "high permeability", id="without_a_final_answer"),
        pytest.param("Final answer: permeable", None, "", id="neither"),
    ],
)
def test_predictions_and_what_is_cut(answer: str, expected: bool | None, before: str) -> None:
    assert pampa.prediction(answer) is expected and pampa.cut(answer) == before


def test_pampa_leaves_out_what_the_judge_did_not_score(capsys: pytest.CaptureFixture[str]) -> None:
    right, wrong = "Final answer: High permeability", "Final answer: Moderate permeability"
    rows = [pampa.Row("CCO", True, (f"late {right}", wrong)), pampa.Row("no molecule", True, (right, right))]
    ten = "<think>x</think><answer>10</answer>"
    engine = ScriptedEngine(lambda request: LATE if "late" in str(request.prompt.messages) else ten)
    scored = pampa.scores(rows, Judge(Pointwise("permeability"), engine), "paper", "text")
    assert scored == [[None, 10.0], [None, None]]
    assert pampa.best_of_n(rows, scored, seed=0)[2] == 0.0  # the wrong one is all that was scored
    assert "without a score: 3; replies that are not well-formed: {'timeout': 1, 'media': 2}" in capsys.readouterr().out
    with pytest.raises(EngineError, match="scored no analysis at all"):
        pampa.scores(rows[1:], Judge(Pointwise("permeability"), engine), "code", "text")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "has no rows", id="empty"),
        pytest.param("{", "line 1 is not JSON", id="json"),
        pytest.param("[]", "line 1: a row has 'smiles', 'label'", id="list"),
        pytest.param('{"smiles": "C", "label": 2, "answers": ["a", "b"]}', "line 1: a row has 'smiles'", id="label"),
        pytest.param('{"smiles": "C", "label": 1, "answers": ["a"]}', "line 1: 'answers' are two or more", id="one"),
    ],
)
def test_pampa_names_the_wrong_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "answers.jsonl"
    with pytest.raises(ConfigError, match="cannot be read"):
        pampa.read(file)
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        pampa.read(file)


def test_a_nano_writes_the_analyses_and_is_continued_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "pampa.json"
    held = [{"smiles": "CCO", "answer": "High permeability"}, {"smiles": "CCN", "answer": "x"}]
    prompts = {"default": {"system": "Be brief.", "user": "Molecule <mol>: permeable?"}}
    data.write_text(json.dumps({"prompts": prompts, "data_list": held, "split": {"test": [0]}}))
    engine = TransformersEngine(str(mol_parts.converted(tmp_path)), device="cpu")
    asked: list[Request] = []
    generate = engine.generate
    monkeypatch.setattr(
        engine,
        "generate",
        lambda requests: asked.extend(requests) or generate([one.changed(max_tokens=6) for one in requests]),
    )
    (row,) = pampa.sample(engine, data, "default", 3, 1.0)
    assert row.high and len(row.answers) == len(set(row.answers)) == 3 and len(asked) == 6
    assert all("\n\nFinal answer: " in text for text in row.answers)
    with pytest.raises(ConfigError, match=r"is not Mol-LLaMA's pampa.json: KeyError: 'rationale'"):
        pampa.sample(engine, data, "rationale", 3, 1.0)
