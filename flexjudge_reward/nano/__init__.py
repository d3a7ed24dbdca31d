"""The embedded judge: a Qwen2.5-VL of two million parameters, and the policy it was made from.

`path("judge")` is a generative judge with text-only reasoning training, `path("base")` the vision-language model it was
made from and the policy that the recipes train. Both folders load with `from_pretrained` and with vLLM. README.md
beside this file is their model card; their world of coloured shapes is `recipes/nano/shapes.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def path(name: Literal["judge", "base"]) -> Path:
    """The folder of the shipped checkpoint `name`."""
    if name not in ("judge", "base"):
        raise ValueError(f"there is a 'judge' and a 'base', not {name!r}")
    return Path(__file__).parent / name
