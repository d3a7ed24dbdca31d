"""Best of N on PAMPA, with a scripted judge."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of TRL, about versions of vLLM
    pytest.importorskip("trl")
    pytest.importorskip("rdkit")
    from flexjudge_recipes.best_of_n import pampa


from flexjudge_reward import ConfigError, EngineError, Judge, Pointwise, Request, ScriptedEngine
from support.molecules import LATE, TEN, text_of


def test_pampa_picks_the_better_analysis(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    answers = ["Greasy. Final answer: High permeability", "Polar.\nFinal Answer: **Low**", "It is", "final answer high"]
    lines = [{"smiles": "c1ccccc1", "label": 1, "answers": answers}, {"smiles": "CCO", "label": 0, "answers": answers}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = pampa.read(file)
    assert [[row.is_right(i) for i in range(4)] for row in rows] == [[1, 0, 0, 1], [0, 1, 0, 0]]

    def prefers_greasy(request: Request) -> str:
        text = str(request.prompt.messages[-1])
        assert "Descriptors: molecular weight" in text_of(request) and "Final answer" not in text
        return f"<think>x</think><answer>{9 if 'Greasy' in text else 2}</answer>"

    judge = Judge(Pointwise("permeability"), ScriptedEngine(prefers_greasy))
    shares = pampa.best_of_n(rows, judge, cut=True, seed=0)
    assert list(shares) == [1, 2, 4] and shares[4] == 0.5


def test_pampa_leaves_out_what_the_judge_did_not_score(capsys: pytest.CaptureFixture[str]) -> None:
    right, wrong = "Final answer: high", "Final answer: low"
    rows = [pampa.Row("CCO", True, (f"late {right}", wrong)), pampa.Row("no molecule", True, (right, right))]
    engine = ScriptedEngine(lambda request: LATE if "late" in str(request.prompt.messages) else TEN)
    shares = pampa.best_of_n(rows, Judge(Pointwise("permeability"), engine), cut=False, seed=0)
    assert shares == {1: 0.0, 2: 0.0}  # the wrong one is all that was scored
    assert capsys.readouterr().out == "without a score: {'timeout': 1, 'media': 2}\n"
    with pytest.raises(EngineError, match="scored no analysis at all"):
        pampa.best_of_n(rows[1:], Judge(Pointwise("permeability"), engine), cut=False, seed=0)


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
