"""Whether an alarm comes before the truth is lost, in real training where the judge and the truth part.

    python benchmarks/parting.py            three seeds, with KL and without; an hour on one core
    python benchmarks/parting.py --seeds 3 4 5 --runs plain
    python benchmarks/parting.py --seeds 3 4 5 --runs plain --steps 20    where the alarm comes early; ten minutes

The long runs of recipes.py vlm_long: GRPO on images at a constant rate, judged by the embedded judge, with probes,
controls and alarms at their defaults. The truth, which no judge sees, is measured every 10 steps on 400 held-out
images. With KL, the truth is not lost, by the same judge with the same weakness.

Each run has a folder in runs/parting; one that is finished is not made again. The alarms are those of today's code: the
recorded answers go through the reward once more, and the run's cache has their verdicts, so only probes and controls
are judged. That is what a training has, since none of them reaches a reward.

Records `alarms.points_lost_before`: the most points of truth below the peak so far, up to the first measurement after
the first alarm of a probe, or in the whole run where there is none; the most of the seeds. The rate is constant, so
the first steps of a short run are those of a long one; a short run without an alarm before its last measurement
records nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexjudge_recipes.nano import vlm_task

import yaml
from figures import record

from flexjudge_reward import Example, Media, read_record
from flexjudge_reward.trainers.session import RewardSession
from recipes import EIGHT, by_step

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "runs" / "parting"
CONFIG = ROOT / "recipes" / "grpo_vlm" / "nano.yaml"
RUNS: dict[str, dict[str, object]] = {"plain": {}, "kl": {"beta": 0.04}}
SEEDS = (3, 4, 5)  # probes were changed after a look at seeds 1 and 2 (LOG.md), so these say nothing of them
STEPS, EVERY = 120, 10


def train(name: str, seed: int, steps: int) -> Path:
    """The folder of a finished run; a log beside it grows with each measurement. One that was cut off continues."""
    folder = FOLDER / (f"{name}-{seed}" if steps == STEPS else f"{name}-{seed}-{steps}")
    if (folder / "report.json").exists():
        return folder
    begun = any(folder.glob("checkpoint-*"))
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    flags: dict[str, object] = {**EIGHT, **RUNS[name], "seed": seed, "logging_steps": 2}
    flags |= {
        "max_steps": steps,
        "measure_every": EVERY,
        "save_strategy": "steps",
        "save_steps": EVERY,
        "save_total_limit": 1,
        "resume": begun,
        "config": CONFIG,
        "output_dir": folder,
        "judge": json.dumps(judge(folder)),
    }
    command = [sys.executable, "recipes/grpo_vlm/train.py"]
    command += [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with folder.with_suffix(".log").open("a") as log:
        subprocess.run(command, cwd=ROOT, check=True, stdout=log, stderr=log, env=environment)
    return folder


def judge(folder: Path) -> dict[str, Any]:
    """The judge's settings in a run."""
    settings: dict[str, Any] = yaml.safe_load(CONFIG.read_text("utf-8"))["judge"]
    return settings | {"cache": str(folder.with_suffix(".sqlite"))}


def alarms(folder: Path, seed: int) -> dict[str, int]:
    """The step of each first alarm, by its name, of a run's recorded answers."""
    found: dict[str, int] = {}
    session = RewardSession(settings={**judge(folder), "num_generations": EIGHT["num_generations"]})
    for step, rows in sorted(recorded(folder, seed).items()):
        session.score(lambda columns, rows=rows: [rows[place] for place in sorted(rows)], step)  # type: ignore[misc]
        for name in session.summary.alarms:
            found.setdefault(name, step)
    session.close()
    return found


def recorded(folder: Path, seed: int) -> dict[int, dict[int, Example]]:
    """The answers of a run by step and place in the batch; a step that was made again counts as made last."""
    pictures = (Media.image(row["image"]) for row in vlm_task.training_rows(800, f"grpo {seed}"))
    images = {picture.digest: picture for picture in pictures}
    found: dict[int, dict[int, Example]] = defaultdict(dict)
    for entry in read_record(folder / "judgements.jsonl"):
        if "rows" in entry:
            (picture, question), ((_, place),) = entry["question"], entry["rows"]
            found[entry["step"]][place] = Example([images[picture["image"]], question], entry["candidates"])
    return found


def lost(truth: Mapping[int, float], alarm: int | None) -> float:
    """The most points below the peak so far, up to the first measurement after the alarm, or in all without one."""
    last = min((step for step in truth if alarm is not None and step > alarm), default=max(truth))
    before = [truth[step] for step in sorted(truth) if step <= last]
    peaks = itertools.accumulate(before, max)
    return 100 * max(peak - value for peak, value in zip(peaks, before, strict=True))


def outcome(name: str, seed: int, steps: int) -> tuple[float | None, str]:
    """Of one run the points that were lost before its alarm, and what happened, in words; None if it is too short."""
    folder = train(name, seed, steps)
    report = json.loads((folder / "report.json").read_text("utf-8"))
    truth, first = by_step(report["accuracy"]), alarms(folder, seed)
    alarm = min((step for kind, step in first.items() if kind.startswith("probe_")), default=None)
    best, gone = max(truth, key=lambda step: truth[step]), lost(truth, alarm)
    rewards = list(by_step(report["judge_reward"]).values())
    said = f"{name}, seed {seed}: truth {truth[best]:.1%} at step {best}, {truth[max(truth)]:.1%} at the end; judge's"
    said += f" reward {statistics.mean(rewards[-5:]):.2f} then; {gone:.1f} points lost before the first alarm"
    alarmed = ", ".join(f"{kind} at step {step}" for kind, step in sorted(first.items(), key=lambda one: one[1]))
    said += f"; alarms: {alarmed or 'none'}"
    print(said, flush=True)
    short = steps < STEPS and (alarm is None or alarm >= max(truth))
    return None if short else gone, said


def main() -> None:
    """All runs that are wanted, and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--runs", choices=RUNS, nargs="+", default=list(RUNS))
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    found = {(name, seed): outcome(name, seed, options.steps) for name in options.runs for seed in options.seeds}
    plain = [gone for (name, _), (gone, _) in found.items() if name == "plain"]
    if plain and None not in plain:
        note = "; ".join(said for _, said in found.values())
        record(
            "alarms.points_lost_before",
            max(gone for gone in plain if gone is not None),
            unit="points",
            target="<= 5",
            note=note,
        )


if __name__ == "__main__":
    main()
