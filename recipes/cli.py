"""`flexjudge recipes`: the programs of this folder, which are in the wheel as `flexjudge_recipes`.

flexjudge recipes list
flexjudge recipes copy grpo_vlm my_recipe         to read and change; runs as python my_recipe/train.py
flexjudge recipes run grpo_vlm --config nano      as it is; further flags go to the recipe
"""

from __future__ import annotations

import argparse
import ast
import runpy
import shutil
import sys
from itertools import pairwise
from pathlib import Path

from flexjudge_reward import ConfigError, MissingExtra

ROOT = Path(__file__).parent
EXTRAS = dict.fromkeys(("torch", "transformers", "accelerate", "datasets", "trl", "peft", "matplotlib"), "trl")
EXTRAS |= {"rdkit": "molecules", "diffusers": "diffusers"}
"""The extra that brings a package which recipes import."""


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Adds list, copy and run to the parser of `flexjudge recipes`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    list_parser = commands.add_parser("list", help="the recipes, their programs and configurations")
    list_parser.set_defaults(run=list_recipes)
    copy_parser = commands.add_parser("copy", help="copy a recipe's folder, to read and change it")
    copy_parser.add_argument("name", metavar="RECIPE")
    copy_parser.add_argument("folder", type=Path, help="a new or empty folder")
    copy_parser.set_defaults(run=copy_recipe)
    run_parser = commands.add_parser("run", help="run a recipe as it is")
    run_parser.add_argument("name", metavar="RECIPE[/PROGRAM]")
    run_parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="flags of the recipe")
    run_parser.set_defaults(run=run_recipe)


def list_recipes(arguments: argparse.Namespace) -> int:
    """Prints every recipe with what it does."""
    for name, recipe in _recipes().items():
        configs = ", ".join(sorted(path.stem for path in recipe.glob("*.yaml")))
        print(name + (f"   (configurations: {configs})" if configs else ""))
        for program in _programs(recipe):
            first = (ast.get_docstring(ast.parse(program.read_text("utf-8"))) or "").splitlines()[0]
            print(f"    {program.stem:14} {first}")
    return 0


def copy_recipe(arguments: argparse.Namespace) -> int:
    """Copies a recipe's folder."""
    recipe, target = _recipe(arguments.name), arguments.folder
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{str(target)!r} exists and is not an empty folder; give another one")
    try:
        shutil.copytree(recipe, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    except shutil.Error as error:  # the reasons of all files; a part of a recipe would be in the way of the next try
        shutil.rmtree(target, ignore_errors=True)
        raise ConfigError(f"{str(target)!r} cannot be written: {error.args[0][0][2]}") from None
    own = f"from flexjudge_recipes.{arguments.name.replace('/', '.')}"
    for program in target.glob("*.py"):  # the copy uses its own parts, not the installed ones
        text = program.read_text("utf-8").replace(f"{own} import", "import").replace(f"{own}.", "from ")
        program.write_text(text, "utf-8")
    print(f"{arguments.name} is in {target}: python {target}/{_programs(recipe)[0].name} --help")
    return 0


def run_recipe(arguments: argparse.Namespace) -> int:
    """Runs a recipe's program in this process."""
    name, program = arguments.name, ""
    if name not in _recipes() and "/" in name:
        name, _, program = name.rpartition("/")
    recipe = _recipe(name)
    programs = {path.stem: path for path in _programs(recipe)}
    chosen = program or next(iter(programs))
    if chosen not in programs:
        raise ConfigError(f"the recipe {name} has no program {chosen!r}; it has {', '.join(programs)}")
    sys.argv = [str(programs[chosen]), *_with_own_config(recipe, arguments.arguments)]
    try:
        runpy.run_module(f"flexjudge_recipes.{name.replace('/', '.')}.{chosen}", run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        raise MissingExtra(package, EXTRAS[package]) from None
    return 0


def _with_own_config(recipe: Path, words: list[str]) -> list[str]:
    """The arguments, with the name of one of the recipe's configurations after --config as its file."""
    own = {path.stem: str(path) for path in recipe.glob("*.yaml")}
    return [own.get(word, word) if before == "--config" else word for before, word in pairwise(["", *words])]


def _recipes() -> dict[str, Path]:
    """The folders with a program, by their place such as judge_training/sft; `nano` makes the small worlds' models."""
    folders = sorted(path for path in (*ROOT.glob("*"), *ROOT.glob("*/*")) if path.is_dir())
    names = {folder.relative_to(ROOT).as_posix(): folder for folder in folders}
    return {name: folder for name, folder in names.items() if name != "nano" and _programs(folder)}


def _recipe(name: str) -> Path:
    recipes = _recipes()
    if name not in recipes:
        raise ConfigError(f"there is no recipe {name!r}; there are {', '.join(recipes)}")
    return recipes[name]


def _programs(recipe: Path) -> list[Path]:
    """The programs of a recipe, its training first."""
    files = [path for path in recipe.glob("*.py") if 'if __name__ == "__main__"' in path.read_text("utf-8")]
    return sorted(files, key=lambda path: (path.stem != "train", path.stem))
