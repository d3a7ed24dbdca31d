"""`flexjudge path`: the file that a trainer loads, and on standard error the line of its configuration.

swift rlhf ... --external_plugins "$(flexjudge path ms-swift)" --reward_funcs flexjudge
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from flexjudge_reward import trainers

_FOLDER = Path(trainers.__file__).parent
FILES = {
    "axolotl": ("trl.py", "trl: {reward_funcs: [flexjudge_reward.trainers.trl.flexjudge]}"),
    "ms-swift": (
        "ms_swift/flexjudge_ms_swift.py",
        '--external_plugins "$(flexjudge path ms-swift)" --reward_funcs flexjudge',
    ),
    "openrlhf": ("openrlhf.py", '--reward.remote_url "$(flexjudge path openrlhf)"'),
    "openrlhf-agent": ("openrlhf_agent.py", '--train.agent_func_path "$(flexjudge path openrlhf-agent)"'),
    "slime": ("slime.py", "--custom-rm-path flexjudge_reward.trainers.slime.group_rm --group-rm"),
    "trl": ("trl.py", "trl grpo --reward_funcs flexjudge_reward.trainers.trl.flexjudge"),
    "verifiers": (
        "rollouts.py",
        "--env.taskset.task.rewards.flexjudge.fn flexjudge_reward.trainers.rollouts:verifiers_reward",
    ),
    "verl": (
        "verl.py",
        "reward.reward_manager.source=importlib reward.reward_manager.name=FlexJudgeRewardManager"
        " reward.reward_manager.module.path=pkg://flexjudge_reward.trainers.verl",
    ),
}  # fmt: skip
"""Of each trainer, its file and how it is named there."""


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    command = commands.add_parser("path", help="the file that a trainer loads as its reward")
    command.add_argument("trainer", choices=sorted(FILES), metavar="TRAINER", help=", ".join(sorted(FILES)))
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the file."""
    file, line = FILES[arguments.trainer]
    print(_FOLDER / file)
    print(line, file=sys.stderr)
    return 0
