"""What every recipe does the same way: going on from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from flexjudge_reward import ConfigError


def checkpoint(args: Any) -> str | None:
    """The checkpoint that a trainer's `resume_from_checkpoint` names: a folder, or with "true" the last of the run.

    On the command line "true" is a text, which the trainer would take for a folder's name.

    Raises:
        ConfigError: there is none.
    """
    wanted = str(args.resume_from_checkpoint or "false")
    if wanted.lower() == "false":
        return None
    if wanted.lower() == "true":
        found = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    else:
        found = wanted if Path(wanted).is_dir() else None
    if found is None:
        where = f"in {args.output_dir}" if wanted.lower() == "true" else f"at {wanted}"
        raise ConfigError(f"there is no checkpoint {where} to go on from; leave --resume_from_checkpoint out to begin")
    return found
