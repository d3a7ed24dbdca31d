"""What `make demo` teaches: ground-truth accuracy gained over six seeds, and that a second run judges nothing anew.

    python benchmarks/demo.py                 # six trainings and a repetition, about ten minutes on two cores

Runs the recipe as a user does, in processes of its own, with an empty cache per seed. Records
`demo.accuracy_gain_points`, `demo.accuracy_gain_min` and `demo.rerun_new_judgements`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from figures import record

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ["recipes/grpo_vlm/train.py", "--config", "recipes/grpo_vlm/nano.yaml"]


def run(seed: int, folder: Path, settings: Mapping[str, str] | None = None, *flags: str) -> dict[str, Any]:
    """One training with its own cache; what it reported. `settings` are further settings of the judge."""
    began = time.monotonic()
    judge = {"model": "nano", "cache": str(folder.with_suffix(".sqlite"))} | dict(settings or {})
    command = [sys.executable, *RECIPE, "--seed", str(seed), "--output_dir", str(folder), "--judge", json.dumps(judge)]
    subprocess.run([*command, *flags], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    judged, seconds = report["judge"], time.monotonic() - began
    shares = f"{report['accuracy_before']:.1%} -> {report['accuracy_after']:.1%}"
    counts = f"{judged['judged']} judged, {judged['new']} new, failures {judged['failures']}"
    print(f"{judge.get('format', 'pointwise')}, seed {seed}: {shares}, {counts}, {seconds:.0f} s", flush=True)
    return report


def main() -> None:
    """Six seeds, then the first again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "demo_benchmark")
    options = parser.parse_args()
    folders = [options.out / f"{time.strftime('%H%M%S')}-seed{seed}" for seed in options.seeds]
    reports = [run(seed, folder) for seed, folder in zip(options.seeds, folders, strict=True)]
    gains = [100 * (report["accuracy_after"] - report["accuracy_before"]) for report in reports]
    each = ", ".join(f"{report['accuracy_before']:.1%} to {report['accuracy_after']:.1%}" for report in reports)
    note = f"seeds {options.seeds}: {each} of 400 held-out images"
    record("demo.accuracy_gain_points", statistics.mean(gains), unit="points", target=">= 20", note=note)
    record("demo.accuracy_gain_min", min(gains), unit="points", target=">= 15", note=note)
    again = run(options.seeds[0], folders[0], None, "--resume", "true")["judge"]
    note = f"{again['judged']} judged, {again['cached']} from the cache"
    record("demo.rerun_new_judgements", again["new"], unit="judgements", target="<= 0", note=note)


if __name__ == "__main__":
    main()
