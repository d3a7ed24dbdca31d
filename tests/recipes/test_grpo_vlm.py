"""recipes/grpo_vlm: what a run leaves, what a resumed run reports, what bad input gives. A real trainer and judge."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flexjudge_recipes

import pytest

from flexjudge_reward import ConfigError
from support.late import late, needs
from support.recipe_runs import Run, pushed, words

needs("trl")
vlm_task = late("flexjudge_recipes.nano.vlm_task")
trl = late("trl")
train = late("flexjudge_recipes.grpo_vlm.train")


PROGRAM = Path(flexjudge_recipes.__file__).parent / "grpo_vlm" / "train.py"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, **flags: Any) -> None:
    """The program, short: two steps of four groups of four, a checkpoint each.

    The n-th measurement is n percent right: the real shares of so few steps may be equal.
    """
    flags = {"questions": 32, "max_steps": 2, "measure_every": 1, "logging_steps": 1} | flags
    flags |= {"num_generations": 4, "per_device_train_batch_size": 16, "steps_per_generation": 1}
    flags |= {"save_strategy": "steps", "save_steps": 1}
    flags = {"output_dir": folder, "judge": '{"model": "nano", "cache": "off"}'} | flags
    monkeypatch.setattr(sys, "argv", words(PROGRAM, flags))
    measured = iter(range(100))
    monkeypatch.setattr(vlm_task.HeldOut, "shares", lambda *_: (next(measured) / 100, 1.0))
    train.main()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pushed(run, tmp_path_factory.mktemp("grpo") / "run") as finished:
        yield finished


def test_a_run_leaves_a_report_a_model_a_card_and_a_curve(whole: Run) -> None:
    assert whole.report["accuracy"] == {"0": 0.0, "1": 0.01, "2": 0.02}
    assert (whole.report["accuracy_before"], whole.report["accuracy_after"]) == (0.0, 0.02)
    assert list(whole.report["judge_reward"]) == ["1", "2"] and whole.report["judge"]["judged"] == 32
    card = (whole.folder / "README.md").read_text()
    assert "| right on held-out images, by the truth | 0.0% | 2.0% |" in card and "The judge was nano." in card
    assert (whole.folder / "model.safetensors").exists() and (whole.folder / "curve.png").stat().st_size > 1000


def test_only_the_model_and_its_card_are_pushed(whole: Run) -> None:
    assert list(whole.pushed) == ["me/mine"]
    files = whole.pushed["me/mine"] - {"curve.png"}
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json"} <= files
    assert not {"report.json", "curve.png"} & files and not any(name.startswith("_work") for name in files)


def test_a_resumed_run_reports_the_before_of_the_whole_one(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(ConfigError, match=r"run holds an earlier run \(README.md, .*--resume true"):
        run(tmp_path / "run", monkeypatch)
    run(tmp_path / "run", monkeypatch, resume=True)
    resumed = json.loads((tmp_path / "run" / "report.json").read_text())
    # The resumed process measures once, after step 2; that is its measurement 0.
    assert resumed["accuracy"] == {"0": 0.0, "1": 0.01, "2": 0.0}
    assert list(resumed["judge_reward"]) == ["1", "2"]
    assert resumed["judge_reward"]["1"] == whole.report["judge_reward"]["1"]


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"judge": '{"format": "rank"}'}, "format must be one of"),
        ({"judge": '{"colour": "red"}'}, "colour"),
        ({"judge": "[1]"}, "expected settings such as"),
        ({"report_to": "trackio"}, r"report_to trackio: .*pip install trackio.* Or set --report_to none"),
        ({"dataset_name": "DATA"}, "no column 'problem'; it has id, query"),
        ({"dataset_name": "DATA", "question_column": "question"}, "no column 'question'"),
    ],
    ids=["format", "unknown_setting", "no_mapping", "tracker", "column", "other_column"],
)
def test_bad_input_is_an_error_before_the_first_sample(
    flags: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"id": 1, "query": "a"}\n')
    flags = {name: tmp_path / "data" if value == "DATA" else value for name, value in flags.items()}
    monkeypatch.setattr("transformers.integrations.integration_utils.is_trackio_available", lambda: False)
    monkeypatch.setattr(trl.GRPOTrainer, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", monkeypatch, **flags)


def test_the_program_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "earlier").touch()
    monkeypatch.setattr(sys, "argv", words(PROGRAM, {"output_dir": tmp_path}))
    with pytest.raises(SystemExit, match=r"^2$"):
        runpy.run_path(str(PROGRAM), run_name="__main__")
    said = capsys.readouterr().err
    assert said.startswith("grpo_vlm: error: ") and "holds an earlier run (earlier)" in said and said.count("\n") == 1


# ------------------------------------------------------------------------------------------------------- quickstart


def test_the_quickstart_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = trl.GRPOConfig
    monkeypatch.setattr(
        trl, "GRPOConfig", lambda **given: config(**given | {"max_steps": 4, "per_device_train_batch_size": 16})
    )
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(PROGRAM.with_name("quickstart.py")), run_name="__main__")
    assert re.search(r"^reward 0\.\d+ -> 0\.\d+; 64 judged", capsys.readouterr().out, re.MULTILINE)
