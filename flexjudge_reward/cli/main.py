"""The command line `flexjudge`: judges files and data sets, looks after the cache, and brings the recipes.

    flexjudge score answers.jsonl -o verdicts.jsonl --media-root images/
    flexjudge rerank samples.jsonl -o ranked.jsonl --format listwise
    flexjudge annotate samples.jsonl -o pairs.jsonl --format pairwise --margin 2
    flexjudge annotate org/name -o pairs.jsonl --split train --column question=prompt --column candidates=responses
    flexjudge cache stats | verify | prune | explain
    flexjudge recipes list | copy | run

Exit codes: 0 done, 1 verify found damage, 2 an error, in one line on stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module, util

from flexjudge_reward.cli import cache, judging
from flexjudge_reward.errors import ConfigError, FlexJudgeError, printable


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="flexjudge", description="A generative judge as the reward of RLHF trainers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    judging.add_commands(commands)
    cache.add_command(commands)
    recipes = commands.add_parser("recipes", help="programs that train with a judge: list, copy, run")
    try:
        if words[:1] == ["recipes"]:
            _add_recipes(recipes)
        arguments = parser.parse_args(words)
        code: int = arguments.run(arguments)
    except (FlexJudgeError, OSError) as error:  # a disk that is full, a folder that is gone, a pipe that was closed
        print(f"flexjudge: error: {' '.join(printable(error).split())}", file=sys.stderr)
        return 2
    return code


def _add_recipes(parser: argparse.ArgumentParser) -> None:
    """Adds what can be done with recipes. Imported only here: they are a package on top of this one."""
    if util.find_spec("flexjudge_recipes") is None:
        raise ConfigError(
            "the recipes are not installed: install flexjudge-reward from a wheel or with pip install -e ."
        )
    import_module("flexjudge_recipes.cli").add_commands(parser)
