"""`flexjudge doctor labelled.jsonl`: go or no-go before a training, and how to ask the judge. Exit code 1 is no."""

from __future__ import annotations

import argparse
from typing import Any

from flexjudge_reward.cli.evaluate import Judges, add_source
from flexjudge_reward.cli.judging import add_judge, columns_of, judge_config
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.builtin import FORMATS
from flexjudge_reward.judge.record import json_line
from flexjudge_reward.offline.evaluate.doctor import Thresholds, doctor


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    does = "check a judge on labels of your own before a training: go or no-go, and how to ask it"
    command = commands.add_parser("doctor", help=does, description=f"C{does[1:]}.", allow_abbrev=False)
    command.set_defaults(run=run)
    add_source(command)
    given = "the formats to compare, separated by commas (default: pointwise,pairwise)"
    command.add_argument("--formats", default="pointwise,pairwise", metavar="A,B", help=given)
    command.add_argument(
        "--budgets", default="", metavar="N,N", help="limits of tokens to compare (default: the judge's)"
    )
    planted = "the source has no labels: make worse answers of known order from its own"
    command.add_argument("--planted", action="store_true", help=planted)
    for name, value in vars(Thresholds()).items():
        flag = "--" + name.replace("_", "-")
        command.add_argument(flag, type=float, default=value, metavar="X", help=f"a share of 1 (default: {value})")
    add_judge(command)


def run(arguments: argparse.Namespace) -> int:
    """Prints the settings, the reasons and the recommendation; 0 for go, else 1."""
    if arguments.source is None:
        raise ConfigError("name the labelled file: flexjudge doctor labelled.jsonl")
    if arguments.format is not None:
        raise ConfigError(f"doctor compares formats: give --formats {arguments.format} in place of --format")
    formats = [name for name in arguments.formats.split(",") if name]
    if not formats or (wrong := sorted(set(formats) - set(FORMATS))):
        raise ConfigError(f"formats are {', '.join(FORMATS)}, found {wrong if formats else 'none'}")
    try:
        budgets = [int(text) for text in arguments.budgets.split(",") if text]
    except ValueError:
        raise ConfigError(f"budgets are whole numbers such as 256,1024, found {arguments.budgets!r}") from None
    thresholds = Thresholds(arguments.min_agreement, arguments.max_failed, arguments.max_flips)
    with Judges(arguments) as judges:
        found = doctor(
            arguments.source,
            judges.of,
            formats=formats,
            budgets=budgets or [None],
            planted=arguments.planted,
            thresholds=thresholds,
            seed=judge_config(arguments).seed,
            media_root=arguments.media_root,
            split=arguments.split,
            columns=columns_of(arguments),
            limit=arguments.limit,
        )
    print(json_line(found.as_dict()).rstrip() if arguments.json else found)
    return 0 if found.outcome == "go" else 1
