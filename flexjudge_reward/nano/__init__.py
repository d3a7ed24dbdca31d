"""The embedded judges, and the policy that they were made from: models of two to three million parameters.

`path("judge")` is a Qwen2.5-VL with text-only reasoning training, a generative judge named "nano"; `path("omni")` is a
Qwen2.5-Omni that hears as well, "nano-omni". `path("base")` is the vision-language model that both were made from and
the policy that the recipes train. All load with transformers and with vLLM. README.md beside this file is their model
card; their worlds of coloured shapes and of sounds are in `recipes/nano/world.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

Checkpoint = Literal["judge", "base", "omni"]
JUDGES: dict[str, Checkpoint] = {"nano": "judge", "nano-omni": "omni"}
"""The names of the embedded judges as settings and commands take them, and their checkpoints."""


def path(name: Checkpoint) -> Path:
    """The folder of the shipped checkpoint `name`."""
    if name not in (known := get_args(Checkpoint)):
        raise ValueError(f"the checkpoints are {', '.join(map(repr, known))}, found {name!r}")
    return Path(__file__).parent / name
