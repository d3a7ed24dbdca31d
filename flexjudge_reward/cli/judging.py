"""`flexjudge score | rerank | annotate`. Every setting of `JudgeConfig` is a flag, made from its declaration."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

from flexjudge_reward.data.rows import RowOptions
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.judge.config import JudgeConfig, RewardConfig
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.settings import PREFIX, add_flags, settings_of
from flexjudge_reward.judge.summary import RunSummary
from flexjudge_reward.offline.annotate import annotate_file
from flexjudge_reward.offline.score import rerank_file, score_file
from flexjudge_reward.types import FailureKind

Job = Callable[[argparse.Namespace, Judge, RowOptions], RunSummary | Counter[str]]
_FORM = """A row: {"id": 7, "question": "What is top left?", "answer": "a cat", "images": ["pics/7.png"]}, or with
"candidates" as a list in place of "answer"; a question or candidate is a text, a list of parts ({"text": ..},
{"image": path or data URI}, {"molecule": SMILES}) or a list of chat messages; candidates may be whole conversations
with the question in them. "reference" (one or a list) and "rubric" are optional. A row that cannot be used is noted in
the output (of annotate: OUTPUT.skipped.jsonl) and skipped."""

_SOURCE = "- for standard input, a .jsonl, .csv (also .gz, .zst) or .parquet file, a folder, or org/name on the Hub"


def add_commands(commands: Any) -> None:
    """Adds the commands to the parser."""
    _add(commands, "score", score, "judge the rows of a file or data set")
    _add(commands, "rerank", rerank, "rank the candidates of each row, best first")
    pairs = _add(commands, "annotate", annotate, "make preference pairs for DPO from the candidates of each row")
    pairs.add_argument("--pairs", choices=("best", "all"), default="best", help="of each row (default: best)")
    pairs.add_argument("--margin", type=float, default=0.0, help="the least difference of a pair's scores")


def score(arguments: argparse.Namespace, judge: Judge, options: RowOptions) -> RunSummary:
    """Judges a file."""
    return score_file(arguments.source, judge, arguments.output, **options)


def rerank(arguments: argparse.Namespace, judge: Judge, options: RowOptions) -> RunSummary:
    """Ranks a file."""
    return rerank_file(arguments.source, judge, arguments.output, judge.sampling.seed, **options)


def annotate(arguments: argparse.Namespace, judge: Judge, options: RowOptions) -> Counter[str]:
    """Makes pairs of a file; returns the counts."""
    if arguments.output is None:
        raise ConfigError("give the file of the pairs: -o pairs.jsonl")
    return annotate_file(arguments.source, judge, arguments.output, arguments.pairs, arguments.margin, **options)


def _said(result: RunSummary | Counter[str]) -> str:
    """A result in words."""
    if isinstance(result, RunSummary):
        return str(result)
    counts = result
    reasons = sorted(set(counts) - {"rows", "pairs", "row"})
    skipped = [f"{counts[why]} {why}" for why in reasons]
    skipped += [f"{counts['row']} rows that cannot be used"] if counts["row"] else []
    return f"{counts['pairs']} pairs from {counts['rows']} rows; skipped: {', '.join(skipped) or 'none'}"


def column(text: str) -> tuple[str, str]:
    """The entry and the column of a text such as question=prompt; the column may be empty."""
    name, given, column = text.partition("=")
    if not (name and given):
        raise argparse.ArgumentTypeError(f"expected NAME=COLUMN such as question=prompt, found {text!r}")
    return name, column


def _add(commands: Any, name: str, job: Job, does: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=does,
        description=f"{does[0].upper()}{does[1:]}. {_FORM}",
        allow_abbrev=False,  # else --api-key KEY is --api-key-env
    )
    command.set_defaults(run=partial(_run, job))
    command.add_argument("source", metavar="SOURCE", help=_SOURCE)
    command.add_argument("-o", "--output", type=Path, help="the file of the results; by default standard output")
    command.add_argument("--media-root", type=Path, help="the folder below which media files may be read")
    command.add_argument("--split", help="of a data set that has several, or a part of one: 'train[:1000]'")
    command.add_argument("--config-name", help="of a data set that has several configurations")
    command.add_argument(
        "--column",
        action="append",
        type=column,
        metavar="NAME=COLUMN",
        help="an entry's name here, such as question=prompt; several candidates= make a list, id= ignores the entry",
    )
    command.add_argument("--limit", type=int, metavar="N", help="the most rows, after shuffling")
    seeded = "for a random order; without one the rows come as they are (a Hub stream is shuffled through a buffer)"
    command.add_argument("--shuffle-seed", type=int, metavar="N", help=seeded)
    command.add_argument("--config", type=Path, metavar="FILE", help="settings of the judge, TOML or YAML")
    command.add_argument("--json", action="store_true", help="the summary as JSON, on standard error")
    limit = "exit with 3 if more judgements failed than this share, 0 to 1 (default: 0.05)"
    command.add_argument("--max-failure-rate", type=float, default=0.05, metavar="X", help=limit)
    command.add_argument("--strict", action="store_true", help="end at the first row that cannot be used")
    add_flags(command, [settings_of(RewardConfig)["completion"]], {"completion": RewardConfig.completion})
    group = command.add_argument_group("the judge; without these FLEXJUDGE_* and the machine decide")
    defaults = {field.name: field.default for field in dataclasses.fields(JudgeConfig)}
    add_flags(group, settings_of(JudgeConfig).values(), defaults)
    return command


def _run(job: Job, arguments: argparse.Namespace) -> int:
    """Runs a job with the judge that the flags, the environment and the machine choose; prints a summary."""
    environ = dict(os.environ) | ({PREFIX + "CONFIG": str(arguments.config)} if arguments.config else {})
    config = JudgeConfig.resolve({name: getattr(arguments, name) for name in settings_of(JudgeConfig)}, environ)
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # standard output is for data
    columns: dict[str, list[str]] = {}
    for name, given in arguments.column or ():
        columns.setdefault(name, []).extend([given] if given else [])
    options = RowOptions(
        media_root=arguments.media_root,
        split=arguments.split,
        config_name=arguments.config_name,
        columns=columns,
        limit=arguments.limit,
        shuffle_seed=arguments.shuffle_seed,
        completion=RewardConfig.resolve({"completion": arguments.completion}, environ).completion,
        strict=arguments.strict,
    )
    with _source(arguments), config.build() as judge:
        print(config.describe(), file=sys.stderr)
        result = job(arguments, judge, options)
    found = result.as_dict() if isinstance(result, RunSummary) else dict(result)
    print(json.dumps(found) if arguments.json else _said(result), file=sys.stderr)
    return _exit_code(result, arguments.max_failure_rate)


def _exit_code(result: RunSummary | Counter[str], limit: float) -> int:
    """3 if too many judgements failed, which a program that reads the file next should know."""
    if isinstance(result, RunSummary):
        failed, judged = result.failed, result.judged
    else:
        failed = sum(count for why, count in result.items() if why in get_args(FailureKind))
        judged = sum(count for why, count in result.items() if why not in ("rows", "row"))
    if judged and failed > limit * judged:
        print(f"flexjudge: {failed} of {judged} judgements failed, more than {limit:.1%}", file=sys.stderr)
        return 3
    return 0


@contextmanager
def _source(arguments: argparse.Namespace) -> Iterator[None]:
    """Standard input as a file of lines, since a source is read twice: to check it, and to judge it."""
    if arguments.source != "-":
        yield
        return
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        arguments.source = file.name
        yield
