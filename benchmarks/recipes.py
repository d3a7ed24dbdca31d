"""What the recipes teach, by the ground truth that no judge sees: three seeds each, as a user runs them.

    python benchmarks/recipes.py dpo_vlm        about five minutes

Each training is a process of its own with an empty folder and an empty cache.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import record

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (1, 2, 3)


def run(recipe: str, config: str, seed: int, folder: Path) -> dict[str, Any]:
    """One training; what it reported, and how many minutes it took."""
    began = time.monotonic()
    command = [sys.executable, f"recipes/{recipe}.py", "--config", f"recipes/configs/{config}.yaml"]
    command += ["--seed", str(seed), "--output_dir", str(folder), "--judge_cache", str(folder / "judge.sqlite")]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found | {"minutes": (time.monotonic() - began) / 60}


def dpo_vlm() -> None:
    """Accuracy on held-out pictures before and after."""
    with tempfile.TemporaryDirectory() as scratch:
        found = [run("dpo_vlm", "dpo_nano", seed, Path(scratch, str(seed))) for seed in SEEDS]
    gains = [100 * (one["accuracy_after"] - one["accuracy_before"]) for one in found]
    each = ", ".join(f"{one['accuracy_before']:.1%} to {one['accuracy_after']:.1%}" for one in found)
    formed = min(one["well_formed_after"] for one in found)
    note = f"mean of seeds {SEEDS}: {each} of 400 held-out pictures; well-formed afterwards {formed:.1%} at least"
    record("recipes.dpo_vlm_gain_points", statistics.mean(gains), unit="points", target=">= 25", note=note)
    record(
        "recipes.dpo_vlm_minutes",
        max(one["minutes"] for one in found),
        unit="minutes",
        target="<= 5",
        note="longest of three, without installation",
    )


if __name__ == "__main__":
    if sys.argv[1:] != ["dpo_vlm"]:
        sys.exit("usage: python benchmarks/recipes.py dpo_vlm")
    dpo_vlm()
