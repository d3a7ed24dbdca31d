"""What `make demo` teaches: ground-truth accuracy gained over three seeds, and that a second run judges nothing anew.

    python benchmarks/demo.py                 # three trainings and a repetition; about four times `make demo`

Runs the recipe as a user does, in processes of its own, with an empty cache per seed. Records
`demo.accuracy_gain_points` and `demo.rerun_new_judgements`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from figures import record

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "recipes/configs/grpo_nano.yaml"


def run(seed: int, folder: Path, form: str = "score", *flags: str) -> dict[str, Any]:
    """One training with a judge of this format; what it reported."""
    began = time.monotonic()
    command = [sys.executable, "recipes/grpo_vlm.py", "--config", CONFIG, "--seed", str(seed)]
    command += ["--output_dir", str(folder), "--judge_cache", str(folder / "judge.sqlite"), *flags]
    environment = os.environ | {"FLEXJUDGE_FORMAT": form}
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=environment)
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    judged, seconds = found["judge"], time.monotonic() - began
    shares = f"{found['accuracy_before']:.1%} -> {found['accuracy_after']:.1%}"
    counts = f"{judged['judgements']} judgements, {judged['new']} new, failures {judged['failures']}"
    print(f"{form}, seed {seed}: {shares}, {counts}, {seconds:.0f} s", flush=True)
    return found


def main() -> None:
    """Three seeds, then the first again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "demo_benchmark")
    options = parser.parse_args()
    folders = [options.out / f"{time.strftime('%H%M%S')}-seed{seed}" for seed in options.seeds]
    found = [run(seed, folder) for seed, folder in zip(options.seeds, folders, strict=True)]
    gains = [100 * (one["accuracy_after"] - one["accuracy_before"]) for one in found]
    each = ", ".join(f"{one['accuracy_before']:.1%} to {one['accuracy_after']:.1%}" for one in found)
    record(
        "demo.accuracy_gain_points",
        statistics.mean(gains),
        unit="points",
        target=">= 15",
        note=f"mean of seeds {options.seeds}: {each} of 400 held-out pictures",
    )
    again = run(options.seeds[0], folders[0])["judge"]
    note = f"{again['judgements']} judgements, {again['cached']} from the cache"
    record("demo.rerun_new_judgements", again["new"], unit="judgements", target="<= 0", note=note)


if __name__ == "__main__":
    main()
