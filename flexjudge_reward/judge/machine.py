"""What this machine and this run are like: a GPU engine, the number of training processes, the size of a model."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

_SMALL_BYTES = 2**31  # a checkpoint up to 2 GiB may be loaded once per rank


def has_gpu_engine() -> bool:
    """Whether vLLM is installed and a CUDA device is here. Imports torch if vLLM is installed."""
    if importlib.util.find_spec("vllm") is None or importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def training_processes() -> int:
    """How many processes train together: WORLD_SIZE, or torch.distributed's world size if it is initialised."""
    size, group = os.environ.get("WORLD_SIZE", ""), distributed()
    return max(int(size) if size.isdecimal() else 1, 1 if group is None else group.get_world_size())


def distributed() -> Any:
    """torch.distributed where several processes train together, else None."""
    # Without the import: a process that has not imported torch has not initialised it either.
    torch = sys.modules.get("torch")
    group = None if torch is None else torch.distributed
    several = group is not None and group.is_available() and group.is_initialized() and group.get_world_size() > 1
    return group if several else None


def is_small(model: str | None) -> bool:
    """Whether a copy per training process is fine: a folder with little weight in it."""
    return 0 < sum(file.stat().st_size for file in Path(str(model)).glob("*.safetensors")) < _SMALL_BYTES
