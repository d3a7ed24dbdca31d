"""The package as a whole: its public names, what importing it costs, which module may import which, and sizes."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

import flexjudge_reward

PACKAGE = Path(flexjudge_reward.__file__).parent
ROOT = PACKAGE.parent

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
    {"trainers", "offline", "report"},
    {"cli"},
    {"__init__", "__main__"},
)
STEP = {part: number for number, parts in enumerate(LADDER) for part in parts}
LATE = {  # imported inside functions only, so it may import what is heavy
    "engines/decode.py",
    *(f"engines/molecules/{name}.py" for name in ("graphs", "encoders", "model", "convert")),
}

MOST_MODULES, MOST_FOLDERS = 4, 11  # at the top, beside __init__.py
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 45


@cache
def parsed() -> list[tuple[str, str, ast.Module]]:
    """Every module of the package: its path, its text and its tree."""
    texts = [(path, path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))]
    return [(path.relative_to(PACKAGE).as_posix(), text, ast.parse(text)) for path, text in texts]


def imports(tree: ast.Module) -> list[tuple[str, bool]]:
    """Imported module names, each with whether the import is at the top level of the file and not below an `if`."""
    guarded = {id(node) for block in tree.body if isinstance(block, ast.If) for node in ast.walk(block)}
    found = []
    for node in ast.walk(tree):
        top = node in tree.body and id(node) not in guarded
        if isinstance(node, ast.Import):
            found += [(alias.name, top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, top))
    return found


def length(node: ast.stmt) -> int:
    """Of a statement, in lines."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def printed(code: str) -> list[str]:
    """The words that a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_every_public_name_exists_and_is_documented() -> None:
    names = flexjudge_reward.__all__
    assert sorted(names) == names and len(set(names)) == len(names)
    assert [name for name in names if not (getattr(flexjudge_reward, name).__doc__ or "").strip()] == []


def test_importing_leaks_no_name_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, flexjudge_reward as f;"
        "print(*[n for n in vars(f) if n[0] != '_' and n not in f.__all__]); print('|', *sys.modules)"
    )
    words = printed(code)
    leaked, loaded = words[: words.index("|")], words[words.index("|") :]
    assert set(leaked) <= {path.stem for path in PACKAGE.iterdir()}
    assert HEAVY & set(loaded) == set()


def test_imports_run_one_way() -> None:
    wrong = []
    for where, _, tree in parsed():
        own = where.split("/")[0].removesuffix(".py")
        for name, top in imports(tree):
            root, _, inner = name.partition(".")
            other = inner.split(".")[0]
            if root == "flexjudge_reward" and other and other != own and STEP[other] >= STEP[own]:
                wrong.append(f"{where} imports {name}")
            if top and root in HEAVY and where not in LATE:
                wrong.append(f"{where} imports {root} at its top level")
    assert wrong == []


def test_the_top_stays_small() -> None:
    entries = [path for path in PACKAGE.iterdir() if not path.name.startswith((".", "__pycache__"))]
    modules = sorted(path.name for path in entries if path.suffix == ".py" and path.name != "__init__.py")
    folders = sorted(path.name for path in entries if path.is_dir())
    assert len(modules) <= MOST_MODULES, modules
    assert len(folders) <= MOST_FOLDERS, folders


def test_files_and_functions_stay_short_and_open_with_their_contract() -> None:
    wrong = []
    for where, text, tree in parsed():
        if (lines := len(text.splitlines())) > MOST_LINES:
            wrong.append(f"{where} has {lines} lines")
        if text.strip() and not ast.get_docstring(tree):
            wrong.append(f"{where} opens without its contract")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and length(node) > MOST_LINES_OF_A_FUNCTION:
                wrong.append(f"{where}:{node.lineno} {node.name} has {length(node)} lines")
    assert wrong == []


def test_recipes_and_benchmarks_import_public_names() -> None:
    wrong = []
    for path in [*ROOT.glob("recipes/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            module = [getattr(node, "module", None) or ""]
            names = [part for name in [*module, *(alias.name for alias in node.names)] for part in name.split(".")]
            private = [name for name in names if name.startswith("_") and not name.startswith("__")]
            wrong += [f"{path.relative_to(ROOT)}:{node.lineno} imports {name}" for name in private]
    assert wrong == []


def test_an_engine_around_another_is_a_wrapper() -> None:
    """What it does not change is then that of the engine inside (`tests/contract/test_engines.py`)."""
    wrong = []
    for path in [*PACKAGE.rglob("*.py"), *ROOT.glob("recipes/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and "Engine" in map(ast.unparse, node.bases):
                given = [one.annotation for one in ast.walk(node) if isinstance(one, ast.arg) and one.annotation]
                if "Engine" in map(ast.unparse, given) and node.name != "EngineWrapper":
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert wrong == []


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    targets = re.findall(r"\]\(([^)\s#]+)[^)]*\)", text)
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []
    assert len(text.splitlines()) <= 110 and len(targets) > 5


def test_the_index_page_has_absolute_links_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What setup.py gives as the long description; the sources say the version in one place."""
    given: dict[str, str] = {}
    monkeypatch.setattr("setuptools.setup", lambda **arguments: given.update(arguments))
    runpy.run_path(str(ROOT / "setup.py"))
    targets = re.findall(r"\]\(([^)\s]+)\)", given["long_description"])
    assert targets and all(target.startswith("https://") for target in targets)
    assert any("/raw/main/benchmarks/results/" in target for target in targets)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert "version" not in project and "version" in project["dynamic"]
    assert f"## {flexjudge_reward.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_a_core_install_judges_pictures_without_numpy() -> None:
    """What needs numpy says so in one line; a PNG of 16 bits, a record's thumbnail and `compare` do not."""
    code = """
import io, sys
sys.modules["numpy"] = None
import importlib.util
from pathlib import Path
import PIL.Image
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numpy" else found(name, *rest)
from flexjudge_reward import Media, MissingExtra, evaluate
from flexjudge_reward.cli.compare import compared
array = type("Array", (), {"__array__": None})()
deep, file = PIL.Image.new("I;16", (30, 20), 0x8000), io.BytesIO()
deep.save(file, "PNG")
assert Media.image(file.getvalue()).images()[0].getpixel((0, 0)) == (128, 128, 128)
assert compared({"1": [1.0, 2.0]}, {"1": [2.0, 3.0]})[0]
for needs in (lambda: Media.image(array).images(), lambda: evaluate("nano_world", None, Path("out"))):
    try:
        needs()
    except MissingExtra as error:
        print(error.extra)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["datasets", "evaluate"], done.stderr


def test_files_that_texts_name_exist() -> None:
    """Code, pages and rubrics name files of this repository by their paths."""
    named = re.compile(
        r"(?<![\w/.])(?:recipes|benchmarks|tests|flexjudge_reward)/[\w./-]+\.(?:py|toml|yaml|md|jsonl|png)"
    )
    texts = [path for folder in (PACKAGE, ROOT / "recipes") for path in folder.rglob("*")]
    texts = [path for path in texts if path.suffix in (".py", ".toml", ".md", ".yaml")] + [*ROOT.glob("*.md")]
    gone = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in texts
        for name in named.findall(path.read_text("utf-8"))
        if not (ROOT / name).exists()
    }
    assert not gone


def test_caps_of_vllm_are_in_its_extras_only() -> None:
    """Who does not install vLLM may have a newer torch and transformers than it takes."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    with_vllm = {name for name, needs in extras.items() if any(need.startswith("vllm") for need in needs)}
    assert with_vllm == {"vllm", "cpu"}
    assert not any("[vllm]" in need or "[cpu]" in need for needs in extras.values() for need in needs)
