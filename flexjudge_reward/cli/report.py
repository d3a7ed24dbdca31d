"""`flexjudge report`: a page that shows what a judge did.

flexjudge report runs/grpo_nano -o report.html
flexjudge report verdicts.jsonl
flexjudge report runs/grpo_nano --serve          follows the run, at http://127.0.0.1:8765
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from flexjudge_reward.errors import ConfigError

_PORT = 8765


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "report",
        help="a page that shows what a judge did",
        description="Makes one HTML file of a record of judgements, of an output of score, rerank or annotate, or of a"
        " folder with such files. It loads nothing from elsewhere.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("source", type=Path, metavar="RUN_OR_FILE", help="a run's folder, or a .jsonl file")
    parser.add_argument("-o", "--output", type=Path, help="by default report.html beside the files")
    parser.add_argument("--media-root", type=Path, help="the folder below which media files may be read")
    where = f"show it at http://127.0.0.1:PORT instead, and follow the run (default: {_PORT})"
    parser.add_argument("--serve", type=int, nargs="?", const=_PORT, metavar="PORT", help=where)


def run(arguments: argparse.Namespace) -> int:
    """Writes the page, or serves it until Ctrl-C."""
    from flexjudge_reward.offline.journal import replaced
    from flexjudge_reward.report.lines import files_of
    from flexjudge_reward.report.render import report
    from flexjudge_reward.report.serve import Server

    source: Path = arguments.source
    output: Path = arguments.output or (source / "report.html" if source.is_dir() else source.with_suffix(".html"))
    if output.suffix not in (".html", ".htm"):
        raise ConfigError(f"the page goes to an .html file, found {str(output)!r}")
    if arguments.serve is not None:
        files_of(source)  # raises for a place that does not exist
        with Server(source, arguments.serve, arguments.media_root) as serving:
            print(f"the report is at http://127.0.0.1:{serving.server_port}; Ctrl-C ends it", file=sys.stderr)
            try:
                serving.serve_forever()
            except KeyboardInterrupt:
                return 0
    try:
        made = report(source, arguments.media_root)
    except OSError as error:
        raise ConfigError(f"cannot read {source}: {error.strerror or error}") from None
    if not made.judged and not made.pairs:
        raise ConfigError(f"{source} has no line of a record, or of an output of score, rerank or annotate")
    try:
        replaced(output, made.html.encode())
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror or error}") from None
    print(f"{output}: {made}", file=sys.stderr)
    return 0
