"""`flexjudge nano`: where an embedded judge is, and serving it.

flexjudge nano                     the folder of the weights of nano
flexjudge nano nano-omni           of the judge that hears as well
flexjudge nano --serve --port N    a vLLM server of it, under its name, until it is interrupted
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from flexjudge_reward import nano
from flexjudge_reward.errors import ConfigError, need


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    command = commands.add_parser("nano", help="where an embedded judge is, and serving it")
    command.add_argument("name", nargs="?", choices=tuple(nano.JUDGES), default="nano", help="which (default: nano)")
    command.add_argument("--serve", action="store_true", help="serve it with vLLM, which needs the extra vllm or cpu")
    command.add_argument("--port", type=int, default=8001, help="of the server (default: 8001)")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the folder, or becomes the server."""
    name = arguments.name
    folder = str(nano.path(nano.JUDGES[name]))
    if not arguments.serve:
        print(folder)
        how = f"flexjudge nano {name} --serve; then --base-url http://localhost:8001/v1 --prompt-set nano"
        print(f"serve it: {how}", file=sys.stderr)
        return 0
    if not 0 < arguments.port < 65536:
        raise ConfigError(f"--port is a number from 1 to 65535, found {arguments.port}")
    need("vllm", "vllm")
    # The module, because the command of vLLM's CPU build does not start.
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--host", "127.0.0.1"]
    options = ["--port", str(arguments.port), "--served-model-name", name, "--dtype", "float32", "--enforce-eager"]
    sys.stderr.flush()
    os.execv(sys.executable, [*server, *options, *_clips(Path(folder, "processor_config.json"))])


def _clips(processor: Path) -> list[str]:
    """What a server of the Omni family needs for videos (`engines/server.py`): their rate, and the model's own size."""
    if not processor.exists():
        return []
    size = json.loads(processor.read_text("utf-8"))["video_processor"]["size"]
    return ["--trust-request-mm-kwargs", "--mm-processor-kwargs", json.dumps({"videos_kwargs": {"size": size}})]
