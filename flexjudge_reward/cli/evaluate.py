"""`flexjudge evaluate NAME_OR_FILE`: a judge on a published benchmark, or on a file with labels of the user's own.

Several judges: run the command again with another judge and the same folder; the table has all of them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from flexjudge_reward.cli.judging import add_judge, column, columns_of, failure_limit, judge_config
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.judge.config import JudgeConfig
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.offline.evaluate.benchmark import Benchmark, benchmark_names
from flexjudge_reward.offline.evaluate.job import evaluate

_LABEL = """A labelled file is one that `score` reads, with a "label" in every row: a number for one candidate; for
several a number each (higher is better), the letter of the best, or "tie"."""


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    does = "measure a judge on a benchmark, or on labels of your own"
    described = f"M{does[1:]}. {_LABEL} Without a name, the benchmarks are listed."
    command = commands.add_parser("evaluate", help=does, description=described, allow_abbrev=False)
    command.set_defaults(run=run)
    add_source(command)
    command.add_argument("-o", "--output", type=Path, metavar="DIR", help="the folder of verdicts, tables and plots")
    command.add_argument("--data", type=Path, help="a file or folder in place of the data set on the Hub")
    command.add_argument("--data-revision", metavar="COMMIT", help="of the data set on the Hub")
    command.add_argument("--name", help="of the judge in the table")
    limit = "exit with 3 if more judgements failed than this share, 0 to 1 (default: 0.05)"
    command.add_argument("--max-failure-rate", type=float, metavar="X", help=limit)
    add_judge(command)


def add_source(command: argparse.ArgumentParser) -> None:
    """The flags of a labelled source, which `doctor` has, too."""
    command.add_argument("source", metavar="NAME_OR_FILE", nargs="?", help="a benchmark, a .toml file, labelled rows")
    command.add_argument("--media-root", type=Path, help="the folder below which media files may be read")
    command.add_argument("--split", help="of a labelled data set")
    command.add_argument("--column", action="append", type=column, metavar="NAME=COLUMN", help="as for score")
    command.add_argument("--limit", type=int, metavar="N", help="the most rows, of each part, drawn at random")
    command.add_argument("--config", type=Path, metavar="FILE", help="settings of the judge, TOML or YAML")
    command.add_argument("--json", action="store_true", help="the figures as one JSON object on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table of all judges of the folder; 3 if too many judgements failed."""
    if arguments.source is None:
        for name in benchmark_names():
            print(f"{name:24} {Benchmark.load(name).title}")
        return 0
    if arguments.output is None:
        raise ConfigError("give the folder of the results: -o runs/check")
    most_failed = failure_limit(arguments)
    with Judges(arguments) as judges:
        found = evaluate(
            arguments.source,
            judges,
            arguments.output,
            data=arguments.data,
            media_root=arguments.media_root,
            revision=arguments.data_revision,
            limit=arguments.limit,
            seed=judge_config(arguments).seed,
            name=arguments.name,
            split=arguments.split,
            columns=columns_of(arguments),
        )
    if arguments.json:
        print(found.files[0].with_suffix(".json").read_text("utf-8").rstrip())
    else:
        print((arguments.output / f"{found.benchmark.name}.md").read_text("utf-8").rstrip())
    for warning in found.warnings:
        print(f"flexjudge: warning: {warning}", file=sys.stderr)
    return 3 if found.always["failed"] > most_failed else 0


class Judges:
    """The judge of the flags, by the format and the rubric that the flags leave open; all share one engine."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._first: Judge | None = None

    def __call__(self, format: str, rubric: str) -> Judge:
        """The judge for a part of a benchmark. Raises ConfigError as `JudgeConfig`."""
        return self._sharing(judge_config(self._arguments, format=format, rubric=rubric))

    def of(self, format: str, max_tokens: int | None) -> Judge:
        """The judge of one format and budget, whatever the flags say of these. Raises ConfigError as `JudgeConfig`."""
        given = {"format": format} | ({} if max_tokens is None else {"max_tokens": max_tokens})
        return self._sharing(judge_config(argparse.Namespace(**(vars(self._arguments) | given))))

    def _sharing(self, config: JudgeConfig) -> Judge:
        built = config.build()
        if self._first is None:
            print(config.describe(), file=sys.stderr)
            self._first = built
        return Judge(built.format, self._first.engine, built.sampling, self._first.record)

    def __enter__(self) -> Judges:
        return self

    def __exit__(self, *_: object) -> None:
        if self._first is not None:
            self._first.close()
