"""Whether a judge fits beside a trainer: in host memory while it sleeps, on the GPU while it is awake."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from flexjudge_reward.engines.model import Source
from flexjudge_reward.errors import ConfigError

WORKSPACE = 3 << 29
"""Bytes on the GPU beside the weights, at least: activations, and pages for one long prompt.

A judge of 7B takes 1.2 GiB for 4,249 tokens with transformers (`benchmarks/accelerator.py plan`).
"""
_SPARE = 0.9  # of the free host memory; the rest is for data loaders and checkpoints
_GIB = 2**30


@dataclass(frozen=True)
class MemoryPlan:
    """What there is and what a judge takes; all in bytes."""

    weights: int
    """Of the judge, on disk, and in host memory while it sleeps (level 1)."""
    judges: int
    """On this node: one per rank."""
    host_free: int
    gpu_total: int = 0
    """0 where there is no GPU."""
    gpu_free: int = 0
    """Now, beside the trainer, after its cached blocks were given back."""
    share: float = 0.0
    """Of the GPU that the judge takes while it is awake."""

    @classmethod
    def measured(cls, weights: int, share: float, alone: bool = False) -> MemoryPlan:
        """The plan on this machine, for the GPU of this process; of one judge only, if `alone`."""
        ranks = "1" if alone else os.environ.get("LOCAL_WORLD_SIZE", "")
        free, total = gpu_memory()
        return cls(weights, int(ranks) if ranks.isdecimal() else 1, host_memory(), total, free, share)

    def check(self) -> None:
        """Raises ConfigError, with the numbers, if the judge cannot fit."""
        asleep, awake = self.judges * self.weights, int(self.share * self.gpu_total)
        if asleep > _SPARE * self.host_free:
            each = f" ({self.judges} x {_gib(self.weights)})" if self.judges > 1 else ""
            raise ConfigError(
                f"colocate: a sleeping judge keeps its weights in host memory: {_gib(asleep)}{each}, and only"
                f" {_gib(self.host_free)} are free here: take a smaller judge, or a server of its own (base_url=)"
            )
        if self.gpu_total and awake < self.weights + WORKSPACE:
            least = math.ceil(100 * (self.weights + WORKSPACE) / self.gpu_total) / 100
            raise ConfigError(
                f"colocate: the judge needs {_gib(self.weights + WORKSPACE)} of the GPU, and its share is"
                f" {_gib(awake)} of {_gib(self.gpu_total)}: set gpu_memory_utilization to {least:.2f} or more"
            )
        if self.gpu_total and self.gpu_free < awake:
            raise ConfigError(
                f"colocate: the judge's share is {_gib(awake)} of the GPU, and the trainer leaves {_gib(self.gpu_free)}"
                f" of {_gib(self.gpu_total)}: set gpu_memory_utilization below"
                f" {self.gpu_free / self.gpu_total:.2f}, or let the policy sleep deeper"
            )


def gpu_memory() -> tuple[int, int]:
    """Free and total bytes of this process's GPU, without the blocks that torch only caches; zeros without a GPU."""
    torch = sys.modules.get("torch")  # a trainer has imported it
    if torch is None or not torch.cuda.is_available():
        return 0, 0
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return int(free), int(total)


def host_memory(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that new processes may take: what Linux counts as available, within the limit of the container.

    Pages of files count as free: the system drops them first. `group` is the folder of the container's control group.
    """
    found = []
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(1024 * int(line.split()[1]))
    try:
        most, used = ((group / f"memory.{name}").read_text("ascii").strip() for name in ("max", "current"))
        entries = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines())
        files = int(entries.get("active_file", 0)) + int(entries.get("inactive_file", 0))
        found.append(int(most) - int(used) + files)
    except (OSError, ValueError):  # no limit: the file has "max" or is not there
        pass
    return min(found)


def weights_of(source: Source) -> int:
    """Bytes of a model's weights; of one that is not downloaded yet, what its index says, and 0 without an index."""
    if index := source.file("model.safetensors.index.json"):
        return int(json.loads(index.read_text("utf-8"))["metadata"]["total_size"])
    config = source.file("config.json")
    return sum(file.stat().st_size for file in config.parent.glob("*.safetensors")) if config else 0


def _gib(count: float) -> str:
    return f"{count / _GIB:.1f} GiB"
