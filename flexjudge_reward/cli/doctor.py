"""`flexjudge doctor labelled.jsonl`: go or no-go before a training, and how to ask the judge. Exit code 1 is no.

With --tune, the rubric is improved by half of the rows, and the other half says go or no-go.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flexjudge_reward.cli.evaluate import Judges, add_source
from flexjudge_reward.cli.judging import add_judge, columns_of, judge_config
from flexjudge_reward.cli.rubric import add_proposer, proposer_of
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.builtin import FORMATS
from flexjudge_reward.judge.record import json_line
from flexjudge_reward.offline.evaluate.doctor import Diagnosis, Thresholds, doctor
from flexjudge_reward.offline.evaluate.tune import Tuning, tune


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
    tuned = "improve the rubric by half of the rows; FILE, which is new, is written if it is better on the others"
    command.add_argument("--tune", type=Path, metavar="FILE", help=tuned)
    add_proposer(command)
    for name, value in vars(Thresholds()).items():
        flag = "--" + name.replace("_", "-")
        command.add_argument(flag, type=float, default=value, metavar="X", help=f"a share of 1 (default: {value})")
    add_judge(command, hidden=("format",))


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
    if arguments.planted and arguments.tune:
        raise ConfigError("--tune takes labels of your own: planted faults say nothing of your criteria")
    if arguments.proposer is not None and not arguments.tune:
        raise ConfigError("--proposer writes rubrics for --tune FILE, which is missing")
    options: dict[str, Any] = {
        "formats": formats,
        "budgets": budgets or [None],
        "thresholds": Thresholds(**{name: getattr(arguments, name) for name in vars(Thresholds())}),
        "seed": judge_config(arguments).seed,
        "media_root": arguments.media_root,
        "split": arguments.split,
        "columns": columns_of(arguments),
        "limit": arguments.limit,
    }
    found: Diagnosis | Tuning
    with Judges(arguments) as judges, proposer_of(arguments) as proposer:
        if arguments.tune:
            found = tune(arguments.source, judges.of, arguments.tune, proposer=proposer, **options)
        else:
            found = doctor(arguments.source, judges.of, planted=arguments.planted, **options)
    print(json_line(found.as_dict()).rstrip() if arguments.json else found)
    outcome = found.diagnosis.outcome if isinstance(found, Tuning) else found.outcome
    return 0 if outcome == "go" else 1
