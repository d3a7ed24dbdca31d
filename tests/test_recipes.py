"""Recipes that are not GRPO, run short: what they leave, what a second run finds, what bad input gets."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trl")

RECIPES = Path(__file__).parent.parent / "recipes"
pytestmark = [
    pytest.mark.trainer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """recipes/dpo_vlm.py as a module."""
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module("dpo_vlm")


@pytest.mark.parametrize("config", sorted(path.name for path in (RECIPES / "configs").glob("dpo_*.yaml")))
def test_every_setting_of_the_dpo_configs_exists(config: str, recipe: Any) -> None:
    from trl import DPOConfig, ModelConfig, TrlParser

    parser = TrlParser((recipe.RecipeArguments, DPOConfig, ModelConfig))
    words = ["--config", str(RECIPES / "configs" / config), "--bf16", "false", "--use_cpu", "true"]
    options, args, _ = parser.parse_args_and_config(words, fail_with_unknown_args=True)
    assert options.judge_model and args.loss_type == ["sigmoid", "sft"] and args.max_length is None


def run(recipe: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, **flags: Any) -> None:
    flags = {"questions": 24, "answers": 4, "held_out": 20, "num_train_epochs": 1, "fewest_pairs": 2} | flags
    flags |= {"output_dir": folder, "judge_cache": "off", "logging_steps": 1}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["dpo_vlm.py", "--config", str(RECIPES / "configs" / "dpo_nano.yaml"), *words])
    recipe.main()


def test_dpo_samples_judges_and_trains_and_a_second_run_only_trains(
    tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe, tmp_path, monkeypatch, prepare_only=True)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert rows and all(row["scores"][0] - row["scores"][1] >= 1 for row in rows)
    assert not (tmp_path / "report.json").exists()
    first = capsys.readouterr().out
    assert "judge          {" in first

    run(recipe, tmp_path, monkeypatch)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["pairs"] == len(rows) and 0 <= report["accuracy_after"] <= 1
    card = (tmp_path / "README.md").read_text()
    assert "base_model: nano" in card and "Judge: nano, format score, rubric helpfulness." in card
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "curve.png").stat().st_size > 1000
    output = capsys.readouterr().out
    assert "ground truth" in output and "well-formed" in output and "judge   " not in output


def test_too_few_pairs_are_counted_and_nothing_is_trained(
    tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flexjudge_reward import ConfigError

    with pytest.raises(ConfigError, match=r"0 pairs are too few to train on .*pairs.md counts why"):
        run(recipe, tmp_path, monkeypatch, questions=2, margin=9.5)
    with pytest.raises(ConfigError, match="no column 'problem'; it has id, answer"):
        data = tmp_path / "data"
        data.mkdir()
        (data / "train.jsonl").write_text('{"id": 1, "answer": "a"}\n')
        run(recipe, tmp_path / "other", monkeypatch, dataset_name=data)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        pytest.param(None, None, id="not given"),
        pytest.param("false", None, id="false on the command line"),
        pytest.param(False, None, id="false in a file"),
        pytest.param("true", "checkpoint-20", id="true on the command line"),
        pytest.param(True, "checkpoint-20", id="true in a file"),
        pytest.param("checkpoint-4", "checkpoint-4", id="a folder"),
        pytest.param("checkpoint-5", "there is no checkpoint at", id="a folder that is not there"),
    ],
)
def test_recipes_go_on_from_the_checkpoint_that_is_named(
    wanted: Any, found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flexjudge_reward import ConfigError

    monkeypatch.syspath_prepend(str(RECIPES))
    common = importlib.import_module("common")
    for step in (4, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    named = tmp_path / wanted if isinstance(wanted, str) and "-" in wanted else wanted
    args = SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint=named)
    if found and found.startswith("there"):
        with pytest.raises(ConfigError, match=found):
            common.checkpoint(args)
    else:
        assert common.checkpoint(args) == (found and str(tmp_path / found))
    with pytest.raises(ConfigError, match=r"no checkpoint in .*nowhere to go on from"):
        common.checkpoint(SimpleNamespace(output_dir=str(tmp_path / "nowhere"), resume_from_checkpoint=True))
