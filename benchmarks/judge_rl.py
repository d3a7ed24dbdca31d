"""What RL adds to a judge after SFT: recipes/judge_training/rl on its hard task, three seeds.

    python benchmarks/judge_rl.py                 # an estimated five minutes a seed on a free core; mr_judge.* recorded
    python benchmarks/judge_rl.py --seeds 2 --dry # one cell, nothing recorded

Each seed is one training, with other items, in build/judge_rl/seed_N; one that is there already is read, not run again,
and one that was cut off starts again, with the pass rates that it has. All are measured greedily on the same 500
held-out items of each task. Seed 1 is not among them: it chose the rate and the number of steps, on other items.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from figures import record

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "judge_training" / "rl"


def cell(seed: int, out: Path, more: list[str]) -> dict[str, Any]:
    """The report of one training, run if need be. A run that was cut off keeps its pass rates."""
    folder = out / f"seed_{seed}"
    report = folder / "report.json"
    if not report.exists():
        for path in folder.glob("*") if folder.exists() else ():
            if path.name != "_work":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        words = ["--config", RECIPE / "nano.yaml", "--output_dir", folder, "--seed", seed, "--resume", "true", *more]
        subprocess.run([sys.executable, str(RECIPE / "train.py"), *map(str, words)], check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(report.read_text())["held_out"]
    return found


def points(held_out: dict[str, Any], task: str) -> tuple[float, float, float]:
    """Right before and after in percent, and the largest loss of a letter in points."""
    first, last = (held_out[step][task] for step in (min(held_out, key=int), max(held_out, key=int)))
    lost = max(first["by_letter"][letter] - last["by_letter"][letter] for letter in first["by_letter"])
    return 100 * first["right"], 100 * last["right"], 100 * lost


def main() -> None:
    """Trains, prints a row per seed, records."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4])
    args.add_argument("--out", type=Path, default=ROOT / "build" / "judge_rl")
    args.add_argument("--dry", action="store_true", help="print, record nothing")
    options, more = args.parse_known_args()  # the rest are flags of the recipe
    cells = {seed: cell(seed, options.out, more) for seed in options.seeds}
    print(f"{'seed':>4}  {'hard before':>11}  {'after':>6}  {'old before':>10}  {'after':>6}  largest loss of a letter")
    gains, forgotten, lost = [], [], []
    for seed, held_out in cells.items():
        hard, old = points(held_out, "hard"), points(held_out, "old")
        gains.append(hard[1] - hard[0])
        forgotten.append(old[0] - old[1])
        lost.append(max(hard[2], old[2]))
        print(f"{seed:4}  {hard[0]:11.1f}  {hard[1]:6.1f}  {old[0]:10.1f}  {old[1]:6.1f}  {lost[-1]:.1f}")
    said = f"by seed {', '.join(f'{gain:.1f}' for gain in gains)}; 500 held-out items each, greedy"
    for name, value, target, note in (
        ("mr_judge.rl_minus_sft_points", sum(gains) / len(gains), ">= 3", said),
        ("mr_judge.rl_minus_sft_points_least", min(gains), ">= 3", "the smallest of the seeds"),
        ("mr_judge.old_task_points_lost", max(forgotten), "<= 2", "choices of 2 to 4 short answers, the worst seed"),
        ("mr_judge.letter_points_lost", max(lost), "<= 5", "of either task, right by letter, the worst seed"),
    ):
        if options.dry:
            print(f"{name} = {value:.2f} (target {target}) {note}")
        else:
            record(name, value, unit="points", target=target, note=note)


if __name__ == "__main__":
    main()
