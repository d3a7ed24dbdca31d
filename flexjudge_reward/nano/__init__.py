"""The embedded judge: a Qwen2.5-VL of two million parameters, its policy, and the small world both were trained on.

`path("judge")` is a generative judge with text-only reasoning training, `path("base")` the vision-language model it was
made from and the policy that demos train. Both folders load with `from_pretrained` and with vLLM. What they can and
cannot do is in README.md beside this file; the pictures, questions and true scores are in `world.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def path(name: Literal["judge", "base"]) -> Path:
    """The folder of the shipped checkpoint `name`."""
    if name not in ("judge", "base"):
        raise ValueError(f"there is a 'judge' and a 'base', not {name!r}")
    return Path(__file__).parent / name
