"""`flexjudge recipes`: what it lists, copies and runs, and its errors of one line."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path
from typing import Any

import flexjudge_recipes

import pytest

import flexjudge_reward
from flexjudge_reward.cli.main import main
from support.forked import run

ROOT = Path(flexjudge_recipes.__file__).parent
RECIPES = sorted(path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/**/README.md"))


def recipes(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What the command prints: its output, or its error of one line."""
    assert main(["recipes", *words]) == code
    out, err = capsys.readouterr()
    if code == 0:
        assert not err
        return out
    assert not out and err.startswith("flexjudge: error: ") and err.count("\n") == 1
    return err


# ---------------------------------------------------------------- list


def test_every_recipe_is_listed_with_its_configurations_and_programs(capsys: pytest.CaptureFixture[str]) -> None:
    listed: dict[str, list[str]] = {}
    for line in recipes(capsys, "list").splitlines():
        if not line.startswith(" "):
            name, *configs = line.replace("   (configurations: ", ", ").removesuffix(")").split(", ")
            listed[name] = []
            assert configs == sorted(path.stem for path in (ROOT / name).glob("*.yaml"))
        else:
            program, _, does = line.strip().partition(" ")
            listed[name].append(program)
            assert f'"""{does.strip()}\n' in (ROOT / name / f"{program}.py").read_text("utf-8")
    assert list(listed) == RECIPES and len(RECIPES) >= 8
    assert (listed["grpo_vlm"], listed["judge_training"]) == (["train", "quickstart"], ["nano"])


# ---------------------------------------------------------------- copy


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_a_copy_uses_its_own_parts(tmp_path: Path, there: bool, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "mine"
    if there:
        target.mkdir()
    shown = recipes(capsys, "copy", "molecules", str(target))
    assert shown == f"molecules is in {target}: python {target}/train.py --help\n"
    original = {path.name for path in (ROOT / "molecules").iterdir()} - {"__pycache__"}
    assert {path.name for path in target.iterdir()} == original
    lines = (target / "train.py").read_text("utf-8").splitlines()
    assert {"import measure", "from reward import MoleculeReward"} <= set(lines)
    assert any(line.startswith("from flexjudge_recipes.common import") for line in lines), "what all share stays"
    assert not any("flexjudge_recipes.molecules" in path.read_text("utf-8") for path in target.glob("*.py"))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_copy_replaces_nothing(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "mine"
    if kind == "folder":
        target.mkdir()
    kept = target / "train.py" if kind == "folder" else target
    kept.write_text("mine")
    assert "exists and is not an empty folder; give another one" in recipes(
        capsys, "copy", "dpo_vlm", str(target), code=2
    )
    assert kept.read_text() == "mine" and len(list(tmp_path.rglob("*"))) == (2 if kind == "folder" else 1)


def test_a_copied_program_runs_with_its_own_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trl")
    recipes(capsys, "copy", "dpo_vlm", str(tmp_path / "copy"))
    with (tmp_path / "copy" / "sampling.py").open("a") as part:
        part.write('\nprint("the part of the copy")\n')
    done = run(["copy/train.py", "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the part of the copy\nusage: train.py") and "--questions" in done.stdout


# ---------------------------------------------------------------- run


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """The modules that were run in place of the real ones, with their arguments."""
    runs: list[tuple[str, list[str]]] = []

    def run_module(name: str, **options: Any) -> None:
        assert options["run_name"] == "__main__"
        runs.append((name, sys.argv))

    monkeypatch.setattr(runpy, "run_module", run_module)
    monkeypatch.setattr(sys, "argv", ["flexjudge"])
    return runs


@pytest.mark.parametrize(
    ("words", "passed"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param(["--help"], ["--help"], id="help_is_that_of_the_recipe"),
        pytest.param(["--config", "nano"], ["--config", "NANO"], id="own_configuration"),
        pytest.param(["--config", "nano.yaml"], ["--config", "nano.yaml"], id="file"),
        pytest.param(["--config", "other"], ["--config", "other"], id="unknown_configuration"),
        pytest.param(
            ["nano", "--output_dir", "nano", "--config", "nano", "nano"],
            ["nano", "--output_dir", "nano", "--config", "NANO", "nano"],
            id="only_the_word_after_config",
        ),
    ],
)
def test_flags_are_passed_on(started: list[tuple[str, list[str]]], words: list[str], passed: list[str]) -> None:
    assert main(["recipes", "run", "grpo_vlm", *words]) == 0
    folder = ROOT / "grpo_vlm"
    arguments = [str(folder / "nano.yaml") if word == "NANO" else word for word in passed]
    assert started == [("flexjudge_recipes.grpo_vlm.train", [str(folder / "train.py"), *arguments])]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        pytest.param("molecules", "molecules.train", id="training_is_the_default"),
        pytest.param("molecules/best_of_n", "molecules.best_of_n", id="by_name"),
        pytest.param("judge_training", "judge_training.nano", id="the_only_program"),
        pytest.param("judge_training/nano", "judge_training.nano", id="beside_other_recipes"),
        pytest.param("judge_training/sft", "judge_training.sft.train", id="in_a_folder"),
        pytest.param("judge_training/sft/train", "judge_training.sft.train", id="in_a_folder_by_name"),
    ],
)
def test_the_program_of_a_recipe(started: list[tuple[str, list[str]]], name: str, module: str) -> None:
    assert main(["recipes", "run", name]) == 0
    assert [run for run, _ in started] == [f"flexjudge_recipes.{module}"]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("words", [["copy", "none", "folder"], ["run", "none"], ["run", "nano"]])
def test_an_unknown_recipe_is_answered_with_the_list(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    expected = f"there is no recipe {words[1]!r}; there are {', '.join(RECIPES)}\n"
    assert recipes(capsys, *words, code=2).endswith(expected)


def test_an_unknown_program_is_answered_with_those_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    shown = recipes(capsys, "run", "grpo_vlm/none", code=2)
    assert "the recipe grpo_vlm has no program 'none'; it has train, quickstart" in shown


def test_without_the_package_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "flexjudge_recipes", None)  # type: ignore[arg-type]
    assert "the recipes are not installed: install flexjudge-reward" in recipes(capsys, "list", code=2)


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["burn"]):
        with pytest.raises(SystemExit, match="2"):
            main(["recipes", *words])
        assert "usage: flexjudge recipes" in capsys.readouterr().err


def test_no_module_of_the_package_imports_the_recipes() -> None:
    package = Path(flexjudge_reward.__file__).parent
    nodes = [node for path in package.rglob("*.py") for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    assert names and not any(name.startswith("flexjudge_recipes") for name in names)


def test_a_package_that_a_recipe_needs_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def needing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'trl.trainer'", name="trl.trainer")

    monkeypatch.setattr("runpy.run_module", needing)
    assert "pip install 'flexjudge-reward[trl]'" in recipes(capsys, "run", "grpo_vlm", "--config", "nano", code=2)
