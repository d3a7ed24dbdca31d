"""The programs of the recipes with wrong arguments: one line, exit code 2, and no traceback."""

from __future__ import annotations

from pathlib import Path

import flexjudge_recipes

import pytest

from support.forked import run
from support.late import needs

needs("trl")

ROOT = Path(flexjudge_recipes.__file__).parent
TRAIN = {
    "grpo_vlm": "grpo_vlm/train.py",
    "dpo_vlm": "dpo_vlm/train.py",
    "molecules_grpo": "molecules/train.py grpo",
    "molecules_best_of_n": "molecules/best_of_n.py",
    "sft": "judge_training/sft/train.py",
    "rl": "judge_training/rl/train.py",
}
WRONG = [
    pytest.param("", "needs arguments: name a configuration", id="nothing"),
    pytest.param("--config nope.yaml", "--config nope.yaml cannot be read (No such file or directory)", id="no_file"),
    pytest.param("--config broken.yaml", "wrong arguments: while parsing", id="broken_file"),
    pytest.param("--config list.yaml", "must contain a YAML mapping", id="file_of_another_form"),
    pytest.param("--config", "--config needs a file", id="no_value"),
    pytest.param("--modle x --output_dir o", "wrong arguments: ", id="unknown"),
    pytest.param("--output_dir o --use_cpu true --bf16 false", "no model: set model_name_or_path", id="no_model"),
]


def ends(program: str, words: str, folder: Path) -> str:
    """The line that a program ends with."""
    (folder / "broken.yaml").write_text("a: [")
    (folder / "list.yaml").write_text("- 1")
    name, *method = program.split()
    done = run([str(ROOT / name), *method, *words.split()], folder)
    *_, last = done.stderr.splitlines()
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stdout == "", done.stderr
    assert ": error: " in last
    return last


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_wrong_arguments_are_one_line(words: str, said: str, tmp_path: Path) -> None:
    assert said in ends(TRAIN["grpo_vlm"], words, tmp_path)


@pytest.mark.parametrize("program", [pytest.param(value, id=name) for name, value in TRAIN.items()])
def test_every_program_that_needs_arguments_says_so(program: str, tmp_path: Path) -> None:
    if program.startswith("molecules"):
        pytest.importorskip("rdkit")
    assert "needs arguments: name a configuration" in ends(program, "", tmp_path)


def test_no_run_has_the_bars_of_weights() -> None:
    """They fill the log of a batch job."""
    import flexjudge_recipes.common  # noqa: F401

    from transformers.utils.logging import is_progress_bar_enabled

    assert not is_progress_bar_enabled()
