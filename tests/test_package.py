"""The package as a whole: its public names, what importing it costs, and which module may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flexjudge_reward

PACKAGE = Path(flexjudge_reward.__file__).parent

HEAVY = {
    "torch",
    "transformers",
    "vllm",
    "trl",
    "datasets",
    "aiohttp",
    "PIL",
    "numpy",
    "accelerate",
    "peft",
    "av",
    "rdkit",
}

LADDER = (  # DESIGN: imports run one way; a module may import only from a lower step, or from its own folder
    {"errors"},
    {"nano"},
    {"media"},
    {"rubric"},
    {"types"},
    {"prompts"},
    {"data"},
    {"formats", "engines"},
    {"judge"},
    {"trainers", "offline"},
    {"cli", "__init__", "__main__"},
)
STEP = {part: number for number, parts in enumerate(LADDER) for part in parts}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The module or folder of the package that `path` belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> list[tuple[str, bool]]:
    """Imported module names, each with whether the import stands at the top level of the file."""
    tree = ast.parse(path.read_text("utf-8"))
    guarded = {id(n) for b in tree.body if isinstance(b, ast.If) for n in ast.walk(b)}
    found = []
    for node in ast.walk(tree):
        top = node in tree.body and id(node) not in guarded
        if isinstance(node, ast.Import):
            found += [(alias.name, top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, top))
    return found


def test_every_public_name_exists_and_is_documented() -> None:
    assert sorted(flexjudge_reward.__all__) == flexjudge_reward.__all__
    for name in flexjudge_reward.__all__:
        assert (getattr(flexjudge_reward, name).__doc__ or "").strip(), name


def test_nothing_public_leaks() -> None:
    code = "import flexjudge_reward as f; print(*[n for n in vars(f) if n[0] != '_' and n not in f.__all__])"
    leaked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    folders = {path.stem for path in PACKAGE.iterdir()}
    assert set(leaked) <= folders


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, flexjudge_reward; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert HEAVY.isdisjoint(loaded)


# Imported inside functions only, so they may import what is heavy.
LATE = {"engines/decode.py"}


def test_imports_run_one_way() -> None:
    wrong = []
    for path in modules():
        where = path.relative_to(PACKAGE).as_posix()
        for name, top in imports(path):
            root, _, inner = name.partition(".")
            other = inner.split(".")[0]
            if root == "flexjudge_reward" and other and other != part(path) and STEP[other] >= STEP[part(path)]:
                wrong.append(f"{where} imports {name}")
            if top and root in HEAVY and where not in LATE:
                wrong.append(f"{where} imports {root} at its top level")
    assert not wrong


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_stay_readable(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 450
    assert ast.get_docstring(ast.parse(text)) or not text.strip(), f"{path.name} opens without its contract"


def test_recipes_and_benchmarks_use_public_modules() -> None:
    root = PACKAGE.parent
    for path in [*root.glob("recipes/*.py"), *root.glob("benchmarks/*.py")]:
        for name, _ in imports(path):
            assert "._" not in name, f"{path.name} imports the private {name}"
