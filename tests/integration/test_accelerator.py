"""`benchmarks/accelerator.py`: its parts on a CPU with a small model, the 7B shape without weights, all on a GPU."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.late import late, needs

needs("torch", "transformers")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
torch, transformers = late("torch"), late("transformers")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script's modules, which import each other as scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("accelerator", "accelerator_parts")
    return SimpleNamespace(**{name.rpartition("_")[2]: importlib.import_module(name) for name in names})


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where figures go."""
    monkeypatch.setenv("FIGURES_FILE", str(tmp_path / "figures.jsonl"))
    monkeypatch.setenv("FIGURES_COMMIT", "abc1234")
    return tmp_path / "figures.jsonl"


def recorded(file: Path) -> dict[str, dict[str, Any]]:
    """The figures by the ends of their names."""
    lines = map(json.loads, file.read_text("utf-8").splitlines())
    return {line["name"].removeprefix("accelerator."): line for line in lines}


def test_the_7b_shape_has_the_parameters_of_the_published_model(script: Any) -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(script.parts.shaped("7b"))
    assert sum(weight.numel() for weight in model.parameters()) == 8_292_166_656
    assert len(model.model.visual.blocks) == 32 and len(model.model.language_model.layers) == 28


def test_a_made_judge_is_compared_and_its_plan_measured(
    script: Any, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["make", "--shape", "tiny", "--here", "--folder", str(tmp_path / "judge")]
    options = script.accelerator.parse(words)
    for part in ("make", "plan", "engine", "identity"):
        script.parts.PARTS[part](options)
    judge, _, _ = script.parts.judge_of(options.folder, "tiny")
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda share: None)
    script.parts.figure_least_share(judge, script.parts.examples("text", script.parts.SIZES["tiny"], 1), 2**30, 2**37)
    found = recorded(file)
    assert {name for name in found if name.startswith("engine")} == {"engine_ratio_text", "engine_ratio_image"}
    assert all(found[f"engine_ratio_{kind}"]["value"] > 0 for kind in ("text", "image"))  # how fast is no test
    assert abs(found["plan_error_percent"]["value"]) < 1
    assert found["plan_least_share_fits"]["value"] == 1 and found["identity_seconds"]["value"] > 0
    assert {line["commit"] for line in found.values()} == {"abc1234"}


@pytest.mark.parametrize(("recipe", "trainer"), [("sft", "SFTConfig"), ("rl", "GRPOConfig")])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_recipes_take_the_arguments(script: Any, recipe: str, trainer: str, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from flexjudge_recipes.common import parsed

    import trl

    options = script.accelerator.parse(["--folder", str(tmp_path), "--out", str(tmp_path / "figures")])
    words = [*script.parts.words_of(recipe, options, str(tmp_path / "out")), "--use_cpu", "true"]
    module = importlib.import_module(f"flexjudge_recipes.judge_training.{recipe}.train")
    own, args, model_args = parsed((module.RecipeArguments, getattr(trl, trainer), trl.ModelConfig), words)
    assert model_args.model_name_or_path == str(tmp_path) and own.dataset_name == "nano"
    assert args.bf16 and args.max_steps > script.parts.WARM_UP and args.save_strategy == "no"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["sleep"], "no part 'sleep'", id="unknown_part"),
        pytest.param(["--shape", "tiny"], "needs --out", id="tiny_figures_into_the_repository"),
    ],
)
def test_wrong_words_are_refused(
    script: Any, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script.accelerator.parse(words)
    assert message in capsys.readouterr().err


@pytest.mark.gpu
def test_all_parts_run(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    if not torch.cuda.is_available():
        pytest.skip("needs an accelerator")
    words = ["--shape", "tiny", "--out", str(file), "--folder", str(tmp_path / "judge"), "--work", str(tmp_path)]
    command = [sys.executable, str(BENCHMARKS / "accelerator.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert recorded(file)["sft_peak_gb"]["value"] > 0
