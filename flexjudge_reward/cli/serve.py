"""`flexjudge serve`: a judge as a server for trainers on other machines, or in other environments.

flexjudge serve --model nano
FLEXJUDGE_SERVE_TOKEN=... flexjudge serve --serve-host 0.0.0.0 --base-url http://localhost:8001/v1 --format listwise

Ends by SIGTERM or Ctrl-C, after it has answered what it judges.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import logging
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.judge.config import JudgeConfig, RewardConfig, trainer_config
from flexjudge_reward.judge.settings import PREFIX, add_flags, settings_of
from flexjudge_reward.judge.trainer_settings import TrainerConfig
from flexjudge_reward.trainers.client import TOKEN
from flexjudge_reward.trainers.server import RewardServer
from flexjudge_reward.trainers.session import RewardSession

_OWN = {name: one for name, one in settings_of(TrainerConfig).items() if name.startswith("serve_")}
_CALLERS = {"question_column", "rubric_column", "ignored_columns", "media_root", "num_generations", "reward_server"}
_REWARD = {name: one for name, one in settings_of(RewardConfig).items() if name not in _CALLERS}
"""The settings of a reward that a server keeps; a protocol has no other columns than `label`, and no files."""
_DRAIN_S = 600.0


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    command = commands.add_parser("serve", help="serve a judge to trainers", allow_abbrev=False)
    command.set_defaults(run=run)
    command.add_argument("--config", type=Path, metavar="FILE", help="settings, TOML or YAML")
    defaults = {field.name: field.default for kind in _KINDS for field in dataclasses.fields(kind)}
    add_flags(command.add_argument_group("the server"), _OWN.values(), defaults)
    add_flags(command.add_argument_group("rewards"), _REWARD.values(), defaults)
    judge = command.add_argument_group("the judge; without these FLEXJUDGE_* and the machine decide")
    add_flags(judge, settings_of(JudgeConfig).values(), defaults)


_KINDS = (JudgeConfig, RewardConfig, TrainerConfig)


def run(arguments: argparse.Namespace) -> int:
    """Serves until it is interrupted."""
    if arguments.config:
        os.environ[PREFIX + "CONFIG"] = str(arguments.config)
    settings = {name: getattr(arguments, name) for name in (*settings_of(JudgeConfig), *_REWARD)}
    own = trainer_config({name: getattr(arguments, name) for name in _OWN})
    _check_address(own)
    if own.serve_workers > 1:
        if not own.serve_port:
            raise ConfigError("several workers need a port: --serve-port N")
        JudgeConfig.resolve({name: settings[name] for name in settings_of(JudgeConfig)}).build(own.serve_workers)
        context = multiprocessing.get_context("spawn")
        others = [context.Process(target=_serve_beside, args=(settings, own)) for _ in range(own.serve_workers - 1)]
        for process in others:
            process.start()
        _serve(settings, own)
        for process in others:
            process.terminate()  # which it answers by draining
            process.join()
        return 0
    return _serve(settings, own)


def _serve(settings: dict[str, Any], own: TrainerConfig) -> int:
    """One worker."""
    from aiohttp import web

    logging.basicConfig(format="%(levelname)s %(message)s")
    os.environ.setdefault("RANK", "0")
    session = RewardSession(settings=settings)
    if session.config.reward_server:
        raise ConfigError("reward_server names another server; a server itself needs a judge: leave it out")
    if not session.judge.engine.remote:  # a server may start later than this one
        session.judge.engine.identity()  # loads nothing; raises where there is no such model
    alone = own.serve_workers == 1
    server = RewardServer(session, os.environ.get(TOKEN) or None, own.serve_rows, own.serve_deadline, alone)
    where = f"http://{own.serve_host}:{own.serve_port}"
    print(f"judge server at {where}: reward_server={where!r}", file=sys.stderr, flush=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    web.run_app(
        server.app(),
        host=own.serve_host,
        port=own.serve_port,
        reuse_port=not alone or None,
        shutdown_timeout=_DRAIN_S,
        access_log=None,
        print=None,
    )
    return 0


def _serve_beside(settings: dict[str, Any], own: TrainerConfig) -> None:
    """A further worker, which ends with the first, however that ends."""

    def follow() -> None:
        first = multiprocessing.parent_process()
        if first is not None:
            first.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    _serve(settings, own)


def _check_address(own: TrainerConfig) -> None:
    """Raises ConfigError for an address that others can reach, without a token."""
    try:
        local = ipaddress.ip_address(own.serve_host).is_loopback
    except ValueError:
        local = own.serve_host == "localhost"
    if not local and not os.environ.get(TOKEN):
        raise ConfigError(
            f"others can reach {own.serve_host}: set {TOKEN} to a secret that callers send, or serve on 127.0.0.1"
        )
