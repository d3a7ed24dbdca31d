"""The command line `flexjudge`: judges files and data sets, looks after the cache, and brings the recipes.

    flexjudge score answers.jsonl -o verdicts.jsonl --media-root images/
    cat answers.jsonl | flexjudge score - --limit 100 | jq .scores
    flexjudge rerank samples.jsonl -o ranked.jsonl --format listwise
    flexjudge annotate samples.jsonl -o pairs.jsonl --format pairwise --margin 2
    flexjudge annotate org/name -o pairs.jsonl --split train --column question=prompt --column candidates=responses
    flexjudge traces samples.jsonl -o traces.parquet --format pairwise
    flexjudge report runs/x -o report.html
    flexjudge rejudge runs/x/judgements.jsonl -o others.jsonl --model ... --rubric ...
    flexjudge compare runs/x/judgements.jsonl others.jsonl
    flexjudge evaluate nano_world -o runs/check             a benchmark, or a file with labels of your own
    flexjudge doctor labelled.jsonl                         go or no-go before a training, and with which format
    flexjudge rubric draft labelled.jsonl -o rubric.toml    a checklist from labels
    flexjudge cache stats | verify | prune | explain
    flexjudge nano                          where the embedded judge is, and how it is served
    flexjudge serve                         the judge as a server for trainers
    flexjudge path TRAINER                  the file that a trainer loads as its reward
    flexjudge recipes list | copy | run

Only data goes to standard output. Exit codes: 0 done; 1 verify found damage, two files differ, doctor says no, or a
draft is no better than a coin; 2 an error, in one line on stderr; 3 done, with more failed judgements than
--max-failure-rate; 130 interrupted.
"""

from __future__ import annotations

import argparse
import codecs
import errno
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module, metadata, util
from typing import Any

from flexjudge_reward.cli import cache, compare, doctor, evaluate, judging, nano, path, report, rubric, serve, traces
from flexjudge_reward.errors import ConfigError, FlexJudgeError, MissingExtra, printable

_SHELLS = "completion for a shell: flexjudge completion bash | zsh | tcsh"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    _mend_streams()
    try:
        parser = _parser(*words[:1])
        if words[:1] == ["completion"]:
            return _completion(parser, words[1:])
        arguments = parser.parse_args(words)
        code: int = arguments.run(arguments)
    except BrokenPipeError:  # such as `| head -1`: the reader has what it wanted
        with suppress(OSError):  # not a file; else the interpreter fails at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (FlexJudgeError, OSError) as error:  # a disk that is full, a folder that is gone
        print(f"flexjudge: error: {' '.join(printable(_said(error)).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "finished judgements are kept, and the same command continues with them"
        print(f"\nflexjudge: interrupted; {kept}", file=sys.stderr)
        return 130
    return code


def _mend_streams() -> None:
    """Makes a closed standard stream the null device, and lets none fail at a character that it cannot encode."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # else print(file=sys.stderr) goes to standard output, among the data
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r+", encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error("flexjudge", _escaped)
        sys.stdout.reconfigure(errors="flexjudge")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """What cannot be encoded as JSON escapes it: rows on standard output stay JSON, which has no `\\xe9`."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _said(error: FlexJudgeError | OSError) -> object:
    """An error in words; of the operating system's, the file and the reason."""
    if not isinstance(error, OSError) or isinstance(error, FlexJudgeError) or error.strerror is None:
        return error
    if error.errno == errno.ENOSPC and error.filename is None:
        return f"{error.strerror}: make room where the output goes, and give the same command again"
    return f"{str(error.filename)!r}: {error.strerror}" if error.filename is not None else error.strerror


_COMMANDS = {
    **judging.COMMANDS,
    "traces": traces.add_command,
    "compare": compare.add_command,
    "evaluate": evaluate.add_command,
    "doctor": doctor.add_command,
    "rubric": rubric.add_command,
    "report": report.add_command,
    "cache": cache.add_command,
    "nano": nano.add_command,
    "serve": serve.add_command,
    "path": path.add_command,
}


def _parser(command: str = "") -> argparse.ArgumentParser:
    """The parser of one command; of all without one, or with one that does not exist. All flags take 10 ms."""
    parser = argparse.ArgumentParser(prog="flexjudge", description="A generative judge as the reward of RLHF trainers.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    if command in _COMMANDS:
        _COMMANDS[command](commands)
        return parser
    for add in _COMMANDS.values():
        add(commands)
    recipes = commands.add_parser("recipes", help="programs that train with a judge: list, copy, run")
    commands.add_parser("completion", help=_SHELLS)
    if command == "recipes" or (command == "completion" and util.find_spec("flexjudge_recipes")):
        _add_recipes(recipes)
    return parser


class _Version(argparse.Action):
    """Reads the version when it is wanted."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"flexjudge {metadata.version('flexjudge-reward')}")
        parser.exit()


def _add_recipes(parser: argparse.ArgumentParser) -> None:
    """Adds what can be done with recipes. Imported only here: they are a package on top of this one."""
    if util.find_spec("flexjudge_recipes") is None:
        raise ConfigError(
            "the recipes are not installed: install flexjudge-reward from a wheel or with pip install -e ."
        )
    import_module("flexjudge_recipes.cli").add_commands(parser)


def _completion(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    """Prints the completion of a shell."""
    if {"-h", "--help"} & {*words}:
        print(f"usage: flexjudge completion SHELL\n\n{_SHELLS}")
        return 0
    try:
        shtab = import_module("shtab")
    except ImportError:
        raise MissingExtra("shtab", "completion") from None
    if len(words) != 1 or words[0] not in shtab.SUPPORTED_SHELLS:
        raise ConfigError(f"name a shell: {', '.join(shtab.SUPPORTED_SHELLS)}")
    for action in _actions(parser):
        if action.nargs != 0 and action.choices is None and action.type not in (int, float):
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # else the shell completes no file here
    print(shtab.complete(parser, words[0]))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        for command in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
            yield from _actions(command)
