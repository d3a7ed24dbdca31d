"""The command line: `score`, `rerank` and `annotate` judge a file or data set, `cache` looks after the judge's replies.

    flexjudge score answers.jsonl -o verdicts.jsonl --media-root pictures/
    flexjudge rerank samples.jsonl -o ranked.jsonl --format listwise
    flexjudge annotate samples.jsonl -o pairs.jsonl --format pair --margin 2
    flexjudge annotate org/name -o pairs.jsonl --split train --column question=prompt --column candidates=responses
    flexjudge cache stats                       what is in it
    flexjudge cache verify                      check every row, remove damaged ones
    flexjudge cache prune --max-size 500M       keep the most recently used
    flexjudge cache prune --older-than 30d      remove what was not used since
    flexjudge cache explain [KEY [KEY]]         why two requests did not share a reply

Exit codes: 0 done, 1 verify found damage, 2 an error, in one line on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from flexjudge_reward.errors import ConfigError, FlexJudgeError

if TYPE_CHECKING:
    from flexjudge_reward.data.rows import RowOptions
    from flexjudge_reward.engines.cache.store import Row, Store
    from flexjudge_reward.judge.config import JudgeConfig
    from flexjudge_reward.judge.judge import Judge

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_JUDGE = ("format", "model", "engine", "base_url", "rubric", "prompts", "temperature", "max_tokens", "cache")
_AGES = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_COMPARED = 10_000  # newest requests among which `explain` looks for the nearest


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except FlexJudgeError as error:
        print(f"flexjudge: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flexjudge", description="A generative judge as the reward of RLHF trainers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    score = commands.add_parser("score", help="judge the rows of a file or data set")
    rerank = commands.add_parser("rerank", help="put the candidates of each row in order, best first")
    _add_judging(score, score_rows, "Judges every row of a file or data set")
    _add_judging(rerank, rerank_rows, "Puts the candidates of every row in order, best first")
    rerank.add_argument("--seed", type=int, default=0, help="of ties, orders and schedules")
    annotate = commands.add_parser("annotate", help="make preference pairs from the candidates of each row")
    _add_judging(annotate, annotate_rows, "Makes preference pairs for DPO from the candidates of every row")
    annotate.add_argument("--pairs", choices=("best", "all"), default="best", help="of each row; by default the best")
    annotate.add_argument("--margin", type=float, default=0.0, help="the least difference of the scores of a pair")
    _add_cache(commands.add_parser("cache", help="the file of judge replies"))
    return parser


def _add_judging(command: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int], does: str) -> None:
    command.description = f"{does}; the form of a row is in flexjudge_reward/rows.py."
    command.add_argument("source", metavar="SOURCE", help="a .jsonl or .parquet file, a folder, or org/name on the Hub")
    command.add_argument("-o", "--output", type=Path, help="where the rows go; by default standard output")
    command.add_argument("--media-root", type=Path, help="the folder below which pictures and clips may be read")
    command.add_argument("--split", help="of a data set that has several")
    command.add_argument("--config-name", help="of a data set that has several configurations")
    command.add_argument(
        "--column",
        action="append",
        type=parse_column,
        metavar="NAME=COLUMN",
        help="where an entry has another name, such as question=prompt; several candidates= are a list, id= is none",
    )
    judge = command.add_argument_group("the judge; without these FLEXJUDGE_* and the machine decide")
    judge.add_argument(
        "--format", choices=("score", "pair", "listwise", "choice", "relation"), help="default: score, each alone"
    )
    judge.add_argument("--model", help="nano, a folder, or a Hub id")
    judge.add_argument("--engine", choices=("vllm", "server", "transformers"))
    judge.add_argument("--base-url", help="an OpenAI-compatible server, such as http://localhost:8000/v1")
    judge.add_argument("--rubric", help="a built-in rubric or a TOML file")
    judge.add_argument("--prompts", help="a wording: flex, nano, or a folder of your own")
    judge.add_argument("--temperature", type=float)
    judge.add_argument("--max-tokens", type=int)
    judge.add_argument("--cache", help="the file of judge replies, or off")
    command.set_defaults(run=run)


def score_rows(arguments: argparse.Namespace) -> int:
    """Judges a file; prints how it went."""
    from flexjudge_reward.offline.score import score_file

    with _judge(arguments) as (judge, _):
        print(score_file(arguments.source, judge, arguments.output, **_reading(arguments)), file=sys.stderr)
    return 0


def rerank_rows(arguments: argparse.Namespace) -> int:
    """Ranks a file; prints how it went."""
    from flexjudge_reward.formats.groups import whole_groups
    from flexjudge_reward.judge.judge import Judge
    from flexjudge_reward.offline.score import rerank_file

    with _judge(arguments) as (judge, config):
        whole_format = whole_groups(judge.format, config.schedule, config.budget, config.chunk, arguments.seed)
        whole = Judge(whole_format, judge.engine, judge.sampling)
        summary = rerank_file(arguments.source, whole, arguments.output, arguments.seed, **_reading(arguments))
        print(summary, file=sys.stderr)
    return 0


def annotate_rows(arguments: argparse.Namespace) -> int:
    """Makes pairs of a file; prints how it went."""
    from flexjudge_reward.offline.annotate import annotate_file

    if arguments.output is None:
        raise ConfigError("give the file of the pairs: -o pairs.jsonl")
    with _judge(arguments) as (judge, _):
        counts = annotate_file(
            arguments.source, judge, arguments.output, arguments.pairs, arguments.margin, **_reading(arguments)
        )
    skipped = ", ".join(f"{count} {why}" for why, count in sorted(counts.items()) if why not in ("rows", "pairs"))
    print(f"{counts['pairs']} pairs from {counts['rows']} rows; skipped: {skipped or 'none'}", file=sys.stderr)
    return 0


def _reading(arguments: argparse.Namespace) -> RowOptions:
    columns: dict[str, list[str]] = {}
    for name, column in arguments.column or ():
        columns.setdefault(name, []).extend([column] if column else [])
    return {
        "media_root": arguments.media_root,
        "split": arguments.split,
        "config_name": arguments.config_name,
        "columns": columns,
    }


@contextmanager
def _judge(arguments: argparse.Namespace) -> Iterator[tuple[Judge, JudgeConfig]]:
    """The judge that the arguments, the environment and the machine say, closed at the end."""
    from flexjudge_reward.judge.config import JudgeConfig

    config = JudgeConfig.resolve({name: getattr(arguments, name) for name in _JUDGE})
    judge = config.build()
    try:
        print(config.describe(), file=sys.stderr)
        yield judge, config
    finally:
        judge.close()


def _add_cache(cache: argparse.ArgumentParser) -> None:
    commands = cache.add_subparsers(required=True, metavar="COMMAND")
    stats = commands.add_parser("stats", help="what is in the file")
    verify = commands.add_parser("verify", help="check every row and remove damaged ones")
    prune = commands.add_parser("prune", help="remove replies, the longest unused first")
    explain = commands.add_parser("explain", help="why two requests did not share a reply")
    prune.add_argument("--max-size", type=parse_size, metavar="SIZE", help="such as 500M or 2G")
    prune.add_argument("--older-than", type=parse_age, metavar="AGE", help="not used since; such as 12h, 30d or 8w")
    explain.add_argument(
        "keys", nargs="*", metavar="KEY", help="hex, 8 digits or more; none: the newest reply; one: against its nearest"
    )
    for command, run in ((stats, cache_stats), (verify, cache_verify), (prune, cache_prune), (explain, cache_explain)):
        command.set_defaults(run=run)
        command.add_argument(
            "--path", type=Path, help="the file; by default $FLEXJUDGE_CACHE or the user's cache folder"
        )


def cache_stats(arguments: argparse.Namespace) -> int:
    """Prints counts, sizes and times."""
    store = _existing(arguments.path)
    found = store.summary()
    print(f"file      {store.path}")
    print(f"size      {store.disk_bytes / (1 << 20):.1f} MiB")
    print(f"replies   {found.rows}")
    for model, rows in found.models.items():
        print(f"          {rows} by {model}")
    asked = found.hits + found.misses
    print(f"look-ups  {asked}, of them served {found.hits}" + (f" ({found.hits / asked:.1%})" if asked else ""))
    if found.oldest is not None and found.newest is not None:
        print(f"stored    {_when(found.oldest)} to {_when(found.newest)}")
    return 0


def cache_verify(arguments: argparse.Namespace) -> int:
    """Checks every row; 1 if damage was found."""
    from flexjudge_reward.engines.cache.engine import sound

    store = _existing(arguments.path)
    checked, removed = store.verify(sound)
    for target in store.set_aside:
        print(f"the file was damaged and is now {target}")
    print(f"{checked} replies checked, {removed} removed as damaged")
    return 1 if removed or store.set_aside else 0


def cache_prune(arguments: argparse.Namespace) -> int:
    """Removes what passes the given limits."""
    if arguments.max_size is None and arguments.older_than is None:
        raise ConfigError("nothing to prune by: give --max-size, --older-than or both")
    store = _existing(arguments.path)
    removed = store.prune(arguments.max_size, arguments.older_than)
    print(f"{removed} replies removed, {store.summary().rows} left in {store.disk_bytes / (1 << 20):.1f} MiB")
    return 0


def cache_explain(arguments: argparse.Namespace) -> int:
    """Prints the fields in which two stored requests differ."""
    from flexjudge_reward.engines.cache.engine import differences, nearest

    if len(arguments.keys) > 2:
        raise ConfigError(f"explain compares two requests, found {len(arguments.keys)} keys")
    store = _existing(arguments.path)
    rows = [_find(store, key) for key in arguments.keys] or store.newest(1)
    if not rows:
        raise ConfigError(f"the cache {store.path} is empty")
    if len(rows) == 1:
        others = [row for row in store.newest(_COMPARED) if row.key != rows[0].key]
        miss = nearest(rows[0], others)
        if miss is None:
            raise ConfigError(f"the cache {store.path} holds no other request to compare with")
        rows.append(next(row for row in others if row.key.hex() == miss.key))
    for name, row in zip(("one", "other"), rows, strict=True):
        print(f"{name:5}  {row.key.hex()}  {_when(row.stored)}  {row.model}")
    for difference in differences(*rows):
        print(f"{difference.field}\n  one    {difference.one or '-'}\n  other  {difference.other or '-'}")
    return 0


def parse_column(text: str) -> tuple[str, str]:
    """The entry and the column of a text such as question=prompt; the column may be empty."""
    name, given, column = text.partition("=")
    if not (name and given):
        raise argparse.ArgumentTypeError(f"expected NAME=COLUMN such as question=prompt, found {text!r}")
    return name, column


def parse_size(text: str) -> int:
    """Bytes of a text such as 500M or 2G (binary units)."""
    number, unit = text.upper().removesuffix("B").removesuffix("I"), ""
    if number[-1:] in _SIZES and not number[-1:].isdigit():
        number, unit = number[:-1], number[-1:]
    return int(_positive(number, text, "a size such as 500M or 2G") * _SIZES[unit])


def parse_age(text: str) -> float:
    """Seconds of a text such as 90m, 12h, 30d or 8w."""
    wanted = "an age such as 12h, 30d or 8w"
    if text[-1:] not in _AGES:
        raise argparse.ArgumentTypeError(f"expected {wanted}, found {text!r}")
    return _positive(text[:-1], text, wanted) * _AGES[text[-1:]]


def _positive(number: str, text: str, wanted: str) -> float:
    if not (number.isascii() and number.replace(".", "", 1).isdigit()):
        raise argparse.ArgumentTypeError(f"expected {wanted}, found {text!r}")
    return float(number)


def _existing(path: Path | None) -> Store:
    from flexjudge_reward.engines.cache.engine import MAX_BYTES, default_path
    from flexjudge_reward.engines.cache.store import Store

    store = Store(path or default_path(), MAX_BYTES)
    if not os.path.isfile(store.path):  # false too where the folder may not be read
        raise ConfigError(f"no cache at {store.path}; it is made by the first judgement, or give --path")
    return store


def _find(store: Store, key: str) -> Row:
    digits = key.lower()
    if not (8 <= len(digits) <= 64 and set(digits) <= set("0123456789abcdef")):
        raise ConfigError(f"a key is 8 to 64 hexadecimal digits, found {key!r}")
    even = digits[: len(digits) // 2 * 2]
    rows = [row for row in store.beginning(bytes.fromhex(even)) if row.key.hex().startswith(digits)]
    if len(rows) != 1:
        raise ConfigError(f"{'several stored requests begin' if rows else 'no stored request begins'} with {key!r}")
    return rows[0]


def _when(seconds: int) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "minutes")
