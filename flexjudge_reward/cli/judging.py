"""`flexjudge score | rerank | annotate | rejudge`. Every setting of `JudgeConfig` is a flag, by its declaration."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

from flexjudge_reward.cli import ray
from flexjudge_reward.data.rows import RowOptions, Rows
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.judge.config import KNOWN_SETTINGS, JudgeConfig, RewardConfig
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.rewards import ADVICE
from flexjudge_reward.judge.settings import PREFIX, add_flags, collect, settings_of
from flexjudge_reward.judge.summary import RunSummary
from flexjudge_reward.offline.annotate import annotate_file
from flexjudge_reward.offline.recorded import RecordedRows
from flexjudge_reward.offline.score import rejudge_file, rerank_file, score_file
from flexjudge_reward.offline.traces import TraceCounts
from flexjudge_reward.types import FailureKind

Result = RunSummary | TraceCounts | Counter[str]
Job = Callable[[argparse.Namespace, Judge], Result]
_FORM = """A row: {"id": 7, "question": "What is top left?", "answer": "a cat", "images": ["pics/7.png"]}, or with
"candidates" as a list in place of "answer"; a question or candidate is a text, a list of parts ({"text": ..},
{"image": path or data URI}, {"molecule": SMILES}) or a list of chat messages; candidates may be whole conversations
with the question in them. "reference" (one or a list) and "rubric" are optional. A row that cannot be used is noted in
the output (of annotate: OUTPUT.skipped.jsonl) and skipped."""

_SOURCE = "- for standard input, a .jsonl, .csv (also .gz, .zst) or .parquet file, a folder, or org/name on the Hub"


def add_score(commands: Any) -> None:
    """Adds `score` to the parser."""
    ray.add_flags(add_job(commands, "score", score, "judge the rows of a file or data set"), "score")


def add_rerank(commands: Any) -> None:
    """Adds `rerank` to the parser."""
    ray.add_flags(add_job(commands, "rerank", rerank, "rank the candidates of each row, best first"), "rerank")


def add_annotate(commands: Any) -> None:
    """Adds `annotate` to the parser."""
    pairs = add_job(commands, "annotate", annotate, "make preference pairs for DPO from the candidates of each row")
    pairs.add_argument("--pairs", choices=("best", "all"), default="best", help="of each row (default: best)")
    pairs.add_argument("--margin", type=float, default=0.0, help="the least difference of a pair's scores")
    pushed = "the data set of the Hub that the folder of the pairs goes to; a new one is private"
    pairs.add_argument("--push-to-hub", metavar="ORG/NAME", help=pushed)
    pairs.add_argument("--license", metavar="ID", help="of the pairs, for their card, such as apache-2.0")
    ray.add_flags(pairs, "annotate")


def add_rejudge(commands: Any) -> None:
    """Adds `rejudge` to the parser."""
    again = commands.add_parser(
        "rejudge",
        help="judge the candidates of a record of judgements again, with another judge, rubric or format",
        description="Judges what a record of judgements holds again, without generating: the completions of a training"
        " run, or the candidates of score, rerank or annotate. `flexjudge compare` shows where the verdicts differ.",
        allow_abbrev=False,
    )
    again.set_defaults(run=partial(_run, rejudge))
    again.add_argument("source", metavar="RECORD", help="a file that --record or FlexJudgeReward(record=...) wrote")
    small = "judge the thumbnail of an image that was not kept whole (see --record-media)"
    again.add_argument("--thumbnails", action="store_true", help=small)
    _add_judging(again)


def score(arguments: argparse.Namespace, judge: Judge) -> RunSummary:
    """Judges a file."""
    return score_file(arguments.source, judge, arguments.output, **row_options(arguments))


def rerank(arguments: argparse.Namespace, judge: Judge) -> RunSummary:
    """Ranks a file."""
    return rerank_file(arguments.source, judge, arguments.output, judge.sampling.seed, **row_options(arguments))


def annotate(arguments: argparse.Namespace, judge: Judge) -> Counter[str]:
    """Makes pairs of a file; returns the counts."""
    if arguments.output is None:
        raise ConfigError("say where the pairs go: -o pairs, a data set, or -o pairs.jsonl, a file of lines")
    more = {"push_to_hub": arguments.push_to_hub, "license": arguments.license, **row_options(arguments)}
    return annotate_file(arguments.source, judge, arguments.output, arguments.pairs, arguments.margin, **more)


def rejudge(arguments: argparse.Namespace, judge: Judge) -> RunSummary:
    """Judges a record again."""
    return rejudge_file(
        arguments.source,
        judge,
        arguments.output,
        limit=arguments.limit,
        strict=arguments.strict,
        thumbnails=arguments.thumbnails,
        own_rubrics=arguments.rubric is None,
    )


COMMANDS = {"score": add_score, "rerank": add_rerank, "annotate": add_annotate, "rejudge": add_rejudge}


def _said(result: Result) -> str:
    """A result in words."""
    if isinstance(result, RunSummary | TraceCounts):
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


def add_job(commands: Any, name: str, job: Job, does: str) -> argparse.ArgumentParser:
    """Adds a command that judges a file or data set, with the flags that all of them have."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=does,
        description=f"{does[0].upper()}{does[1:]}. {_FORM}",
        allow_abbrev=False,  # else --api-key KEY is --api-key-env
    )
    command.set_defaults(run=partial(_run, job))
    command.add_argument("source", metavar="SOURCE", help=_SOURCE)
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
    seeded = "for a random order; without one the rows come as they are (a Hub stream is shuffled through a buffer)"
    command.add_argument("--shuffle-seed", type=int, metavar="N", help=seeded)
    shared = [settings_of(RewardConfig)[name] for name in ("completion", "ignored_columns")]
    add_flags(command, shared, {"completion": RewardConfig.completion})
    _add_judging(command)
    return command


def _add_judging(command: argparse.ArgumentParser) -> None:
    """Adds what all jobs take: the output, the limits, and the judge."""
    command.add_argument("-o", "--output", type=ray.place, help="the file of the results; by default standard output")
    command.add_argument("--limit", type=int, metavar="N", help="the most rows, after shuffling")
    command.add_argument("--config", type=Path, metavar="FILE", help="settings of the judge, TOML or YAML")
    command.add_argument("--json", action="store_true", help="the summary as JSON, on standard error")
    limit = "exit with 3 if more judgements failed than this share, 0 to 1 (default: 0.05)"
    command.add_argument("--max-failure-rate", type=float, metavar="X", help=limit)
    command.add_argument("--strict", action="store_true", help="end at the first row that cannot be used")
    add_judge(command)


def add_judge(command: argparse.ArgumentParser, hidden: Collection[str] = ()) -> None:
    """Adds a flag for each setting of a judge; `hidden` ones are not in the help, since the command refuses them."""
    group = command.add_argument_group("the judge; without these FLEXJUDGE_* and the machine decide")
    known = settings_of(JudgeConfig) | {
        name: settings_of(JudgeConfig)[name]._replace(help=argparse.SUPPRESS) for name in hidden
    }
    defaults = {field.name: field.default for field in dataclasses.fields(JudgeConfig) if field.name not in hidden}
    add_flags(group, known.values(), defaults)


def judge_config(arguments: argparse.Namespace, **defaults: object) -> JudgeConfig:
    """The settings of the judge that the flags, the environment and the machine choose; `defaults` are below these."""
    environ = _environ(arguments)
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # standard output is for data
    given = {name: getattr(arguments, name) for name in settings_of(JudgeConfig)}
    known = {name for layer in collect(KNOWN_SETTINGS, given, environ) for name in layer}
    return JudgeConfig.resolve(given | {name: value for name, value in defaults.items() if name not in known}, environ)


def columns_of(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The names that entries have in the source."""
    columns: dict[str, list[str]] = {}
    for name, given in arguments.column or ():
        columns.setdefault(name, []).extend([given] if given else [])
    return columns


def _run(job: Job, arguments: argparse.Namespace) -> int:
    """Runs a job with the judge that the flags, the environment and the machine choose; prints a summary."""
    pool = ray.pool(arguments)
    config = judge_config(arguments)
    limit = failure_limit(arguments)
    with _source(arguments), config.build() as judge:
        if pool is None:
            _check_paths(arguments, job)
        print(config.describe(), file=sys.stderr)
        if pool is None:
            result = job(arguments, judge)
        else:
            result = arguments.on_ray(arguments, judge, ray.with_plugins(pool, config), row_options(arguments))
    found = result.as_dict() if isinstance(result, RunSummary) else dict(result)
    print(json.dumps(found) if arguments.json else _said(result), file=sys.stderr)
    return _exit_code(result, limit)


def _check_paths(arguments: argparse.Namespace, job: Job) -> None:
    """Raises ConfigError if the source is missing, or the output has no folder: the first thing that a user sees."""
    source, output = arguments.source, arguments.output
    if not os.path.exists(source):  # else it is read twice for nothing
        RecordedRows(source) if job is rejudge else Rows(source, **row_options(arguments))
    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"there is no folder {str(output.parent)!r} for the output: make it, or give another place")


def _environ(arguments: argparse.Namespace) -> dict[str, str]:
    """The environment, with the file of settings that was named."""
    return dict(os.environ) | ({PREFIX + "CONFIG": str(arguments.config)} if arguments.config else {})


def failure_limit(arguments: argparse.Namespace) -> float:
    """The share of failed judgements from which a job ends with 3. Raises ConfigError: it is no share."""
    return RewardConfig.resolve({"max_failure_rate": arguments.max_failure_rate}, _environ(arguments)).max_failure_rate


def row_options(arguments: argparse.Namespace) -> RowOptions:
    """How a source is read."""
    given = {"completion": arguments.completion, "ignored_columns": arguments.ignored_columns}
    shared = RewardConfig.resolve(given, _environ(arguments))
    return RowOptions(
        media_root=arguments.media_root,
        split=arguments.split,
        config_name=arguments.config_name,
        columns=columns_of(arguments),
        limit=arguments.limit,
        shuffle_seed=arguments.shuffle_seed,
        completion=shared.completion,
        ignored_columns=shared.ignored_columns,
        strict=arguments.strict,
    )


def _exit_code(result: Result, limit: float) -> int:
    """3 if too many judgements failed, which a program that reads the file next should know."""
    counts = result.failures if isinstance(result, RunSummary) else result
    kinds = {kind: counts[kind] for kind in get_args(FailureKind) if counts.get(kind)}
    if isinstance(result, RunSummary | TraceCounts):
        failed, judged = result.failed, result.judged
    else:
        failed = sum(kinds.values())
        judged = sum(count for why, count in result.items() if why not in ("rows", "row"))
    if judged and failed > limit * judged:
        said = f"{failed} of {judged} judgements failed, more than {limit:.1%}"
        print(f"flexjudge: {said}: {ADVICE[max(kinds, key=kinds.__getitem__)]}", file=sys.stderr)
        return 3
    return 0


@contextmanager
def _source(arguments: argparse.Namespace) -> Iterator[None]:
    """Standard input as a file of lines, since a source is read twice: to check it, and to judge it."""
    if arguments.source != "-":
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "standard-input.jsonl")  # a card names it
        with file.open("wb") as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
        arguments.source = str(file)
        try:
            yield
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(file), "standard input")) from None
