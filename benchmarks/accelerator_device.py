"""The clock and the memory of an accelerator, and the figures of accelerator.py. All works without one, too."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from time import perf_counter

from figures import record

GB, GIB = 1e9, 2**30


def figure(name: str, value: float, unit: str, note: str, target: str = "") -> None:
    """Records one figure; a recipe has changed this process's command line."""
    command = "python benchmarks/accelerator.py"
    record(f"accelerator.{name}", value, unit=unit, target=target, note=note, command=command)


def now() -> float:
    """The clock, when the accelerator has done all that it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()


def allocated() -> int:
    """Bytes of tensors now; 0 without an accelerator."""
    import torch

    return int(torch.cuda.memory_allocated()) if torch.cuda.is_available() else 0


def peaks() -> tuple[int, int]:
    """The peak of the bytes allocated and reserved; zeros without an accelerator."""
    import torch

    if not torch.cuda.is_available():
        return 0, 0
    return int(torch.cuda.max_memory_allocated()), int(torch.cuda.max_memory_reserved())


@cache
def others() -> str:
    """What other processes held of the accelerator at the first call, which is made before this one uses it."""
    query = ["nvidia-smi", "--query-gpu=memory.used,utilization.gpu", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "nvidia-smi did not answer"
    load = f"load average {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores"
    return f"other processes held {found.replace(', ', ' and used ')} of the GPU at the start; {load}"
