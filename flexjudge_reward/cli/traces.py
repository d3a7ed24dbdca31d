"""`flexjudge traces`: training traces for a judge of one's own, written by whatever judge there is.

flexjudge traces rows.jsonl -o traces.parquet --model jongwooko/Flex-VL-7B --format pairwise
flexjudge traces judgelm_train_100k.jsonl -o traces.parquet --format pairwise --teacher score --seeds 13,79 \\
    --temperature 0.1 --column question=question_body --column candidates=answer1_body \\
    --column candidates=answer2_body --column id=question_id
"""

from __future__ import annotations

import argparse
from typing import Any

from flexjudge_reward.cli.judging import add_job, row_options
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.offline.traces import TraceCounts, traces_file


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    command = add_job(commands, "traces", traces, "keep a judge's replies as training traces for another judge")
    drawn = "of sampling, separated by commas: each row is judged with each (default: --seed)"
    command.add_argument("--seeds", type=_numbers, metavar="N,N", help=drawn)
    agree = "the entry with scores, a list per row, that a trace must agree with exactly"
    command.add_argument("--teacher", metavar="NAME", help=agree)
    command.add_argument("--license", default="", help="of the rows and the replies, for the card")


def traces(arguments: argparse.Namespace, judge: Judge) -> TraceCounts:
    """Makes traces of a file; returns the counts."""
    if arguments.output is None:
        raise ConfigError("give the file of the traces: -o traces.parquet")
    seeds = arguments.seeds or (judge.sampling.seed,)
    more = row_options(arguments)
    return traces_file(arguments.source, judge, arguments.output, seeds, arguments.teacher, arguments.license, **more)


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers of a text such as 13,79."""
    try:
        return tuple(int(one) for one in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 13,79, found {text!r}") from None
