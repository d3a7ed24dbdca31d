"""`flexjudge score | rerank | annotate SOURCE --ray [ADDRESS] -o FOLDER`: the same jobs on Ray Data (`on_ray.py`)."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from flexjudge_reward.data.rows import RowOptions
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.judge.config import JudgeConfig
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.summary import RunSummary
from flexjudge_reward.offline.on_ray import RayPool, annotate_on_ray, rerank_on_ray, score_on_ray

Result = RunSummary | Counter[str]
_NEEDS_RAY = ("ray_judges", "ray_rows", "ray_keep_order")


def _score(arguments: argparse.Namespace, judge: Judge, pool: RayPool, options: RowOptions) -> Result:
    return score_on_ray(arguments.source, judge, arguments.output, pool, **options)


def _rerank(arguments: argparse.Namespace, judge: Judge, pool: RayPool, options: RowOptions) -> Result:
    return rerank_on_ray(arguments.source, judge, arguments.output, pool, judge.sampling.seed, **options)


def _annotate(arguments: argparse.Namespace, judge: Judge, pool: RayPool, options: RowOptions) -> Result:
    which, margin = arguments.pairs, arguments.margin
    return annotate_on_ray(arguments.source, judge, arguments.output, pool, which, margin, **options)


JOBS: dict[str, Callable[[argparse.Namespace, Judge, RayPool, RowOptions], Result]] = {
    "score": _score,
    "rerank": _rerank,
    "annotate": _annotate,
}
"""What can run on Ray, by the names of the commands."""


def add_flags(command: argparse.ArgumentParser, name: str) -> None:
    """Adds the flags of a job that can run on Ray."""
    command.set_defaults(on_ray=JOBS[name])
    group = command.add_argument_group("on Ray Data: many files, many judges; SOURCE and OUTPUT are then folders")
    where = "run on Ray: a cluster's address, such as HOST:6379 or auto; without one RAY_ADDRESS, or this machine alone"
    group.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help=where)
    judges = "how many judges work at once (default: one per GPU, or 2 that need none)"
    group.add_argument("--ray-judges", type=_count, metavar="N", help=judges)
    group.add_argument("--ray-rows", type=_count, metavar="N", help="rows of one block, and of one file (default: 512)")
    order = "the output's files, by their names, have the order of the input"
    group.add_argument("--ray-keep-order", action="store_true", help=order)


def pool(arguments: argparse.Namespace) -> RayPool | None:
    """Where the job runs on Ray, if it does. Raises ConfigError for flags that do not go together."""
    if getattr(arguments, "ray", None) is None:
        given = [name for name in _NEEDS_RAY if getattr(arguments, name, None)]
        if given:
            raise ConfigError(f"--{given[0].replace('_', '-')} needs --ray")
        if isinstance(arguments.output, str):
            raise ConfigError(f"only a job on Ray writes to an address, found {arguments.output!r}: see --ray")
        return None
    if arguments.source == "-":
        raise ConfigError("--ray reads files, which every node can read: give a file or a folder instead of -")
    if arguments.output is None:
        raise ConfigError("say where the rows go: with --ray -o FOLDER, new or of the same run that was cut off")
    if Path(arguments.output).suffix in (".jsonl", ".json", ".csv", ".parquet"):
        raise ConfigError(f"with --ray the output is a folder of .parquet files, found {str(arguments.output)!r}")
    if getattr(arguments, "push_to_hub", None):
        raise ConfigError("--push-to-hub is not for --ray: `hf upload` takes the folder kept=true when it is complete")
    if getattr(arguments, "license", None):
        raise ConfigError("--license is for the card of the pairs, and --ray writes none: leave it out")
    rows = {} if arguments.ray_rows is None else {"block_rows": arguments.ray_rows}
    return RayPool(arguments.ray or None, arguments.ray_judges, keep_order=arguments.ray_keep_order, **rows)


def with_plugins(pool: RayPool, config: JudgeConfig) -> RayPool:
    """The pool, whose processes import what the judge's settings import here."""
    named = (config.plugins or "").split(",")
    if isinstance(config.format, str) and ":" in config.format:
        named.append(config.format.rpartition(":")[0])
    files = (os.path.abspath(name) if name.endswith(".py") else name for name in map(str.strip, named) if name)
    return dataclasses.replace(pool, plugins=tuple(files))


def place(text: str) -> Path | str:
    """A path, or an address such as s3://bucket/folder."""
    return text if "://" in text else Path(text)


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found {text!r}")
    return int(text)
