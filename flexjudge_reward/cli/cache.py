"""`flexjudge cache`: what is in the file of judge replies, and its maintenance.

flexjudge cache stats                       its size, replies and judges
flexjudge cache verify                      check every row, remove damaged ones
flexjudge cache prune --max-size 500M       keep the most recently used
flexjudge cache prune --older-than 30d      remove what was not used since
flexjudge cache explain [KEY [KEY]]         why two requests did not share a reply
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexjudge_reward.errors import ConfigError, printable

if TYPE_CHECKING:
    from flexjudge_reward.engines.cache.store import Store
    from flexjudge_reward.engines.cache.tables import Row

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_AGES = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    cache = commands.add_parser("cache", help="the file of judge replies")
    subcommands = cache.add_subparsers(required=True, metavar="COMMAND")
    where = "the file; by default $FLEXJUDGE_CACHE or the user's cache folder"

    def added(run: Callable[[argparse.Namespace], int], purpose: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = subcommands.add_parser(run.__name__, help=purpose)
        parser.set_defaults(run=run)
        parser.add_argument("--path", type=Path, help=where)
        return parser

    added(stats, "what is in the file")
    added(verify, "check every row and remove damaged ones")
    pruning = added(prune, "remove replies, the least recently used first")
    pruning.add_argument("--max-size", type=size, metavar="SIZE", help="such as 500M or 2G")
    pruning.add_argument("--older-than", type=age, metavar="AGE", help="not used since; such as 12h, 30d or 8w")
    keys = "hex, 8 digits or more; the newest replies where fewer than two are given"
    added(explain, "why two requests did not share a reply").add_argument("keys", nargs="*", metavar="KEY", help=keys)


def stats(arguments: argparse.Namespace) -> int:
    """Prints counts, sizes and times."""
    store = _existing(arguments.path)
    summary = store.summary()
    print(f"file      {store.path}")
    print(f"size      {store.disk_bytes / (1 << 20):.1f} MiB")
    print(f"replies   {summary.rows}")
    for model, rows in summary.models.items():
        print(f"          {rows} by {printable(model)}")
    if summary.oldest is not None and summary.newest is not None:
        print(f"stored    {_when(summary.oldest)} to {_when(summary.newest)}")
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Checks every row; 1 if damage was found."""
    from flexjudge_reward.engines.cache.engine import is_intact

    store = _existing(arguments.path)
    checked, removed = store.verify(is_intact)
    for target in store.set_aside:
        print(f"the file was damaged and is now {target}")
    print(f"{checked} replies checked, {removed} removed as damaged")
    return 1 if removed or store.set_aside else 0


def prune(arguments: argparse.Namespace) -> int:
    """Removes what passes the given limits."""
    if arguments.max_size is None and arguments.older_than is None:
        raise ConfigError("nothing to prune by: give --max-size, --older-than or both")
    store = _existing(arguments.path)
    removed = store.prune(arguments.max_size, arguments.older_than)
    print(f"{removed} replies removed, {store.summary().rows} left in {store.disk_bytes / (1 << 20):.1f} MiB")
    return 0


def explain(arguments: argparse.Namespace) -> int:
    """Prints the fields in which two stored requests differ."""
    from flexjudge_reward.engines.cache.keys import differences

    if len(arguments.keys) > 2:
        raise ConfigError(f"explain compares two requests, found {len(arguments.keys)} keys")
    store = _existing(arguments.path)
    rows = [_find(store, key) for key in arguments.keys]
    rows += [row for row in store.newest(3) if row.key not in {given.key for given in rows}]
    if len(rows) < 2:
        raise ConfigError(f"the cache {store.path} holds fewer than two requests to compare")
    for name, row in zip(("one", "other"), rows, strict=False):
        print(f"{name:5}  {row.key.hex()}  {_when(row.stored)}  {printable(row.model)}")
    for difference in differences(rows[0], rows[1]):
        one, other = (printable(value or "-") for value in (difference.one, difference.other))
        print(f"{printable(difference.field)}\n  one    {one}\n  other  {other}")
    return 0


def size(text: str) -> int:
    """Bytes of a text such as 500M or 2G (binary units)."""
    number, unit = _quantity(text, "(?i:([KMGT]?)(?:I?B)?)", "a size such as 500M or 2G")
    return int(number * _SIZES[unit.upper()])


def age(text: str) -> float:
    """Seconds of a text such as 90m, 12h, 30d or 8w."""
    number, unit = _quantity(text, "([mhdw])", "an age such as 12h, 30d or 8w")
    return number * _AGES[unit]


def _quantity(text: str, unit: str, expected: str) -> tuple[float, str]:
    found = re.fullmatch(r"(\d*\.?\d+)" + unit, text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
    return float(found[1]), found[2]


def _existing(path: Path | None) -> Store:
    from flexjudge_reward.engines.cache.engine import MAX_BYTES, default_path
    from flexjudge_reward.engines.cache.store import Store

    store = Store(path or default_path(), MAX_BYTES)
    # False too where the folder may not be read. What was no cache before must not become one by being looked at.
    if not os.path.isfile(store.path) or not os.path.getsize(store.path):
        raise ConfigError(f"no cache at {store.path}; the first judgement makes it, or give --path")
    return store


def _find(store: Store, key: str) -> Row:
    if not re.fullmatch("[0-9a-f]{8,64}", key, re.IGNORECASE):
        raise ConfigError(f"a key is 8 to 64 hexadecimal digits, found {key!r}")
    rows = store.newest(2, key)
    if len(rows) != 1:
        raise ConfigError(f"{'several stored requests begin' if rows else 'no stored request begins'} with {key!r}")
    return rows[0]


def _when(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "minutes")
    except (ValueError, OverflowError, OSError):  # of a clock that was wrong
        return f"{seconds} s after 1970"
