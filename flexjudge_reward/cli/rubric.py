"""`flexjudge rubric draft labelled.jsonl -o rubric.toml`: criteria proposed by a model and kept by the labels."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flexjudge_reward.cli.evaluate import Judges, add_source
from flexjudge_reward.cli.judging import add_judge, columns_of, judge_config
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.record import json_line
from flexjudge_reward.offline.evaluate.draft import draft

_SET = ("format", "rubric")  # settings that a draft decides itself


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    rubric = commands.add_parser("rubric", help="make the criteria of a checklist from labelled rows")
    does = "draft a checklist: a model proposes criteria, and those that reproduce the labels are kept"
    described = f"D{does[1:]}. Half of the rows are for that; what the checklist is worth is measured on the others."
    command = rubric.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "draft", help=does, description=described, allow_abbrev=False
    )
    command.set_defaults(run=run)
    add_source(command)
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="the rubric, a TOML file that is new")
    command.add_argument("--task", default="", metavar="TEXT", help="what the answers are for, for the proposer")
    command.add_argument("--most", type=int, default=8, metavar="N", help="the most criteria (default: 8)")
    add_proposer(command)
    add_judge(command, hidden=_SET)


def run(arguments: argparse.Namespace) -> int:
    """Prints the criteria and what they are worth; 1 if that is no better than a coin."""
    if arguments.source is None or arguments.output is None:
        raise ConfigError("name the labelled file and the rubric: flexjudge rubric draft labelled.jsonl -o rubric.toml")
    if given := [name for name in _SET if getattr(arguments, name) is not None]:
        raise ConfigError(f"a draft is a checklist with a rubric of its own: leave out --{given[0]}")
    with Judges(arguments) as judges, proposer_of(arguments) as proposer:
        found = draft(
            arguments.source,
            judges.of("checklist", None),
            arguments.output,
            proposer=proposer,
            task=arguments.task,
            most=arguments.most,
            seed=judge_config(arguments).seed,
            media_root=arguments.media_root,
            split=arguments.split,
            columns=columns_of(arguments),
            limit=arguments.limit,
        )
    print(json_line(found.as_dict()).rstrip() if arguments.json else found)
    return 0 if found.useful else 1


def add_proposer(command: argparse.ArgumentParser) -> None:
    """The flag of the model that writes proposals."""
    who = "the model that writes the proposals, as for --model, or http://HOST:PORT/v1 (default: the judge)"
    command.add_argument("--proposer", metavar="MODEL", help=who)


@contextmanager
def proposer_of(arguments: argparse.Namespace) -> Iterator[Judge | None]:
    """The judge of --proposer with the other flags of the judge, or None. Raises ConfigError as `JudgeConfig`."""
    if arguments.proposer is None:
        yield None
        return
    is_url = arguments.proposer.startswith(("http://", "https://"))
    who = {"base_url": arguments.proposer, "model": None} if is_url else {"model": arguments.proposer}
    own = vars(arguments) | {"format": None, "rubric": None, "prompt_set": None, **who}
    with judge_config(argparse.Namespace(**own)).build() as judge:
        yield judge
