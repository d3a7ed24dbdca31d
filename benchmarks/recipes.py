"""What the recipes teach, by the truth that no judge sees: three seeds each, as a user runs them.

    python benchmarks/recipes.py dpo_vlm            about five minutes
    python benchmarks/recipes.py diffusion          about twenty minutes, the tiny text-to-image models included
    python benchmarks/recipes.py vlm_long           about ten minutes: where the judge of images and the truth part
    python benchmarks/recipes.py molecules          about twenty minutes, the tiny policies and the tiny judge included
    python benchmarks/recipes.py sounds             about ten minutes, the tiny generators included
    python benchmarks/recipes.py molecules_long     about twenty minutes: where the judge and the truth part

Each training is a process of its own with an empty folder and an empty cache. The tiny models that the recipes start
from are pretrained in runs/, unless they are there.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from figures import record

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
SEEDS = (1, 2, 3)
GENERATORS = ROOT / "runs" / "diffusion_nano"  # the tiny text-to-image models
PREPARED = ROOT / "runs" / "molecules"  # the policies and the judge of the molecule recipe
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # for what runs two at a time


def run(
    recipe: str,
    config: str,
    seed: int,
    folder: Path,
    flags: Mapping[str, object] | None = None,
    judge: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """One training: its report, and its minutes.

    Args:
        recipe: the program below recipes/, and a method if it has several: "molecules/train.py grpo".
        config: the YAML file beside it.
        folder: the output folder; the cache of the judge is beside it.
        flags: further flags of the program.
        judge: settings of the judge that replace those of the file.
    """
    program, *method = recipe.split()
    file = ROOT / "recipes" / program.split("/")[0] / config
    settings = {**yaml.safe_load(file.read_text("utf-8"))["judge"], "cache": f"{folder}.sqlite", **(judge or {})}
    given = {"config": file, "seed": seed, "output_dir": folder, "judge": json.dumps(settings), **(flags or {})}
    minutes = python(f"recipes/{program}", *method, environment=environment, **given)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text("utf-8"))
    return report | {"minutes": minutes}


def python(*words: str, environment: Mapping[str, str] | None = None, **flags: object) -> float:
    """Runs a program of the repository; the minutes that it took."""
    began = time.monotonic()
    command = [sys.executable, *words]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **(environment or {})})
    return (time.monotonic() - began) / 60


# --------------------------------------------------------------------------------------------------------------- DPO


def dpo_vlm() -> None:
    """Accuracy on held-out images before and after."""
    with tempfile.TemporaryDirectory() as scratch:
        reports = [run("dpo_vlm/train.py", "nano.yaml", seed, Path(scratch, str(seed))) for seed in SEEDS]
    gains = [100 * (report["accuracy_after"] - report["accuracy_before"]) for report in reports]
    each = ", ".join(f"{report['accuracy_before']:.1%} to {report['accuracy_after']:.1%}" for report in reports)
    formed = min(report["well_formed_after"] for report in reports)
    note = f"mean of seeds {SEEDS}: {each} of 400 held-out images; well-formed afterwards {formed:.1%} at least"
    record("recipes.dpo_vlm_gain_points", statistics.mean(gains), unit="points", target=">= 25", note=note)
    longest, note = max(report["minutes"] for report in reports), "longest of three, without installation"
    record("recipes.dpo_vlm_minutes", longest, unit="minutes", target="<= 5", note=note)


# --------------------------------------------------------------------------------------------------------- diffusion


def diffusion() -> None:
    """Same-seed win rates and implicit accuracy of both kinds of denoiser, which run side by side, a thread each."""
    kinds = ("unet", "flow")
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        reports = dict(zip(kinds, pool.map(lambda kind: train_diffusion(kind, Path(scratch)), kinds), strict=True))
    for kind, of_kind in reports.items():
        record_wins(kind, of_kind)
    each = "; ".join(f"{kind} {percents(of_kind, 'implicit_accuracy')}" for kind, of_kind in reports.items())
    note = f"lowest mean of the two kinds; by seed {SEEDS}: {each}"
    lowest = min(mean(of_kind, "implicit_accuracy") for of_kind in reports.values())
    record("recipes.diffusion_implicit_accuracy", lowest, unit="share", target=">= 0.85", note=note)
    longest = max(report["minutes"] for of_kind in reports.values() for report in of_kind)
    note = "longest of six, two at a time, without installation and the pretraining of the tiny text-to-image model"
    record("recipes.diffusion_minutes", longest, unit="minutes", target="<= 5", note=note)


def train_diffusion(kind: str, scratch: Path) -> list[dict[str, Any]]:
    """A training for each seed; the image grid of the first is kept."""
    base = GENERATORS / f"nano-{kind}"
    if not base.exists():
        python("recipes/nano/image_generator.py", environment=ONE_THREAD, kind=kind, output=base)
    (scratch / base.name).symlink_to(base)  # the recipe looks for it beside its output folder
    folders = [scratch / f"{kind}-{seed}" for seed in SEEDS]
    reports = [
        run("diffusion_dpo/train.py", f"nano_{kind}.yaml", seed, folder, environment=ONE_THREAD)
        for seed, folder in zip(SEEDS, folders, strict=True)
    ]
    shutil.copy(folders[0] / "grid.png", RESULTS / f"diffusion_{kind}.png")
    return reports


def record_wins(kind: str, reports: Sequence[Mapping[str, Any]]) -> None:
    """The win rate by the truth; what else was measured is in the note."""
    note = f"by the truth, ties half, by seed {SEEDS}: {percents(reports, 'win_rate')}; by the judge"
    note += f" {percents(reports, 'judge_win_rate')}; correct images"
    note += f" {percents(reports, 'accuracy_before')} before, {percents(reports, 'accuracy_after')} after"
    for name, digits in (("shape_iou", 3), ("background_error", 2)):
        before, after = (
            statistics.mean(report[f"{name}_{when}"] for report in reports) for when in ("before", "after")
        )
        note += f"; {name.replace('_', ' ')} {before:.{digits}f} to {after:.{digits}f}"
    note += f"; both within the bound in {sum(report['quality_kept'] for report in reports)} of {len(reports)}"
    wins = mean(reports, "win_rate")
    record(f"recipes.diffusion_{kind}_win_rate", wins, unit="share", target=">= 0.75", note=note)


def mean(reports: Sequence[Mapping[str, Any]], name: str) -> float:
    """The mean of one value over the reports."""
    return statistics.mean(report[name] for report in reports)


def percents(reports: Sequence[Mapping[str, Any]], name: str) -> str:
    """One value of each report."""
    return ", ".join(f"{report[name]:.1%}" for report in reports)


# ---------------------------------------------------------------------------------------------- a long run of the VLM

EIGHT: dict[str, object] = {  # groups of eight at a constant rate, which is what parts judge and truth in the end
    "num_generations": 8,
    "per_device_train_batch_size": 64,
    "steps_per_generation": 2,
    "learning_rate": 4e-4,
    "lr_scheduler_type": "constant",
}
VLM_LONG: dict[str, tuple[dict[str, object], dict[str, str]]] = {  # flags, settings of the judge
    "a call per answer": ({}, {}),
    "KL (beta 0.04)": ({"beta": 0.04}, {}),
    "a list per group": ({}, {"format": "listwise"}),
}


def vlm_long(steps: int = 120, every: int = 10) -> None:
    """GRPO on images for five times as many answers as the demo: the judge's reward beside the truth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(VLM_LONG), 4), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(VLM_LONG), sharey=True)
    for axes, (name, (flags, judge)) in zip(panels, VLM_LONG.items(), strict=True):
        with tempfile.TemporaryDirectory() as scratch:
            flags = {**EIGHT, **flags, "max_steps": steps, "measure_every": every}
            report = run("grpo_vlm/train.py", "nano.yaml", 1, Path(scratch, "run"), flags, judge)
        rewards, accuracy = (by_step(report[what]) for what in ("judge_reward", "accuracy"))
        axes.plot(list(rewards), list(rewards.values()), label="judge reward (0 to 1)")
        axes.plot(list(accuracy), list(accuracy.values()), "o-", label="accuracy on held-out images (truth)")
        best = max(accuracy, key=lambda step: accuracy[step])
        axes.axvline(best, color="grey", linestyle=":")
        axes.set(title=name, xlabel="step", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        values, ends = list(rewards.values()), (accuracy[min(accuracy)], accuracy[max(accuracy)])
        shown = f"judge reward {statistics.mean(values[:5]):.2f} to {statistics.mean(values[-5:]):.2f}"
        shown += f"; truth {ends[0]:.1%} at first, {accuracy[best]:.1%} at step {best}, {ends[1]:.1%} at the end"
        print(f"{name}: {shown}; {report['minutes']:.1f} minutes", flush=True)
    panels[0].legend(loc="lower right")
    figure.savefig(RESULTS / "overoptimisation_vlm.png")


def by_step(values: Mapping[str, float]) -> dict[int, float]:
    """A curve of a report: JSON has its steps as texts."""
    return {int(step): value for step, value in values.items()}


# --------------------------------------------------------------------------------------------------------- molecules


def run_molecules(program: str, seed: int, folder: Path, **flags: object) -> dict[str, Any]:
    """One run of the molecule recipe on one thread. `program` is "best_of_n", "dpo" or "grpo"."""
    recipe = "molecules/best_of_n.py" if program == "best_of_n" else f"molecules/train.py {program}"
    return run(recipe, f"{program}.yaml", seed, folder, {"prepared": PREPARED, **flags}, environment=ONE_THREAD)


def prepare_molecules(seed: int | None) -> float:
    """Trains the policy of a seed, or for None the judge, unless it is there; the minutes that it took."""
    part, flags = ("judge", {}) if seed is None else ("policy", {"seed": seed})
    folder = PREPARED / ("judge" if seed is None else f"policy-{seed}")
    if folder.exists():
        return 0.0
    return python(f"recipes/nano/molecule_{part}.py", str(folder), environment=ONE_THREAD, **flags)


def molecules() -> None:
    """Validity, uniqueness and so on after GRPO and DPO, and the QED of the judge's choice."""
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:

        def each(program: str) -> list[dict[str, Any]]:
            return list(pool.map(lambda seed: run_molecules(program, seed, Path(scratch, f"{program}-{seed}")), SEEDS))

        judge, *policies = pool.map(prepare_molecules, (None, *SEEDS))
        best, dpo, grpo = (each(program) for program in ("best_of_n", "dpo", "grpo"))
    exact = json.loads((PREPARED / "judge" / "measured.json").read_text("utf-8"))
    note = f"of {exact['held_out']} held-out molecules; whole reasoning {exact['trace_exact']:.1%}"
    record("recipes.molecules_judge_exact", exact["exact"], unit="share", target=">= 0.95", note=note)
    record_molecules("", grpo)
    record_molecules("_dpo", dpo)
    gains = [report["judge"]["16"] - report["judge"]["1"] for report in best]
    curves = "; ".join(", ".join(f"{value:.2f}" for value in report["judge"].values()) for report in best)
    note = f"mean QED, 0 for what is no molecule, of the choice among 1, 2, 4, 8, 16, by seed {SEEDS}: {curves}"
    record("recipes.molecules_best_of_16_gain", statistics.mean(gains), unit="QED", target="> 0", note=note)
    longest = max(report["minutes"] for report in [*best, *dpo, *grpo])
    note = f"longest of nine runs, two at a time, a thread each; before them the judge took {judge:.1f} and a policy"
    note += f" {max(policies):.1f} at most"
    record("recipes.molecules_minutes", longest, unit="minutes", target="<= 5", note=note)


def record_molecules(name: str, reports: Sequence[Mapping[str, Any]]) -> None:
    """The means over the seeds; the values by seed are in the notes."""

    def each(what: str) -> str:
        return ", ".join(f"{report['before'][what]:.3f} to {report['after'][what]:.3f}" for report in reports)

    after = [report["after"] for report in reports]
    prefix, others = f"recipes.molecules{name}", "; ".join(f"{what} {each(what)}" for what in ("qed", "sa", "judge"))
    note = f"of 500 samples, by seed {SEEDS}: {each('validity')}; {others}"
    record(f"{prefix}_validity_after", mean(after, "validity"), unit="share", target=">= 0.85", note=note)
    for what in ("uniqueness", "novelty"):
        note = f"by seed {SEEDS}: {each(what)}"
        record(f"{prefix}_{what}_after", mean(after, what), unit="share", target=">= 0.9", note=note)
    lost = statistics.mean(report["before"]["diversity"] - report["after"]["diversity"] for report in reports)
    note = f"by seed {SEEDS}: {each('diversity')}"
    record(f"{prefix}_diversity_lost", lost, unit="diversity", target="", note=note)


MOLECULES_LONG = {  # against over-optimisation: nothing, a penalty for distance from the start, or for similarity
    "no KL, no diversity penalty": {"beta": 0.0, "diversity": 0.0},
    "KL (beta 0.1)": {"beta": 0.1, "diversity": 0.0},
    "diversity penalty 2": {"beta": 0.0, "diversity": 2.0},
}
LONG_STEPS: dict[str, object] = {"max_steps": 140, "measure_every": 20, "samples": 200, "judged": 60}


def molecules_long() -> None:
    """GRPO for longer and at a higher rate than is good: the judge's score beside QED, SA and diversity."""
    flags = {**LONG_STEPS, "learning_rate": 5e-4, "lr_scheduler_type": "constant"}
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:

        def curve(number: int, name: str) -> dict[str, dict[str, float]]:
            report = run_molecules("grpo", 1, Path(scratch, str(number)), **flags, **MOLECULES_LONG[name])
            return dict(report["curve"])

        list(pool.map(prepare_molecules, (None, 1)))
        found = pool.map(curve, range(len(MOLECULES_LONG)), MOLECULES_LONG)
        curves = dict(zip(MOLECULES_LONG, found, strict=True))
    (RESULTS / "overoptimisation_molecules.json").write_text(json.dumps(curves, indent=1) + "\n")
    plot_molecules(curves, RESULTS / "overoptimisation_molecules.png")
    for name, by_name in curves.items():
        truth, judge = (best_step(by_name, what) for what in ("qed_all", "judge"))
        print(f"{name}: QED over all samples is best at step {truth}, the judge's score at step {judge}")


def best_step(curve: Mapping[str, Mapping[str, float]], what: str) -> int:
    """The step with the highest value."""
    return max(map(int, curve), key=lambda step: curve[str(step)].get(what, 0.0))


def plot_molecules(curves: Mapping[str, Mapping[str, Mapping[str, float]]], file: Path) -> None:
    """A panel per remedy, with the step where QED over all samples is best."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(curves), 4), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True)
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        for what, factor in (("judge", 1.0), ("qed", 1.0), ("qed_all", 1.0), ("sa", 0.1), ("diversity", 1.0)):
            values = {int(step): factor * measured[what] for step, measured in curve.items() if what in measured}
            axes.plot(list(values), list(values.values()), "o-", ms=3, label="sa / 10" if what == "sa" else what)
        axes.axvline(best_step(curve, "qed_all"), color="grey", linestyle=":")
        axes.set(title=name, xlabel="step", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    figure.savefig(file, bbox_inches="tight")


# ------------------------------------------------------------------------------------------------------------ sounds


def sounds() -> None:
    """The share of right recordings before and after GRPO, and of the judge's choice among eight."""
    with tempfile.TemporaryDirectory() as scratch:

        def each(program: str) -> list[dict[str, Any]]:
            flags = {"prepared": Path(scratch, "prepared")}
            folders = [(seed, Path(scratch, f"{program}-{seed}")) for seed in SEEDS]
            name = "train" if program == "grpo" else program
            return [run(f"sounds/{name}.py", f"{program}.yaml", seed, folder, flags) for seed, folder in folders]

        best, grpo = each("best_of_n"), each("grpo")
    gains = [100 * (report["right_after"] - report["right_before"]) for report in grpo]
    each_gain = ", ".join(f"{report['right_before']:.1%} to {report['right_after']:.1%}" for report in grpo)
    note = f"GRPO, mean of seeds {SEEDS}: {each_gain} of 400 recordings"
    record("recipes.sounds_gain_points", statistics.mean(gains), unit="points", target=">= 15", note=note)
    note = f"by seed {SEEDS}: first {percents(best, 'first')}, choice {percents(best, 'judge')}"
    note += f", any {percents(best, 'oracle')}"
    closed = 100 * (mean(best, "judge") - mean(best, "first"))
    record("recipes.sounds_best_of_8_gain_points", closed, unit="points", target=">= 15", note=note)
    longest, note = max(report["minutes"] for report in [*best, *grpo]), "longest of six, without installation"
    record("recipes.sounds_minutes", longest, unit="minutes", target="<= 5", note=note)


PARTS = {
    "dpo_vlm": dpo_vlm,
    "diffusion": diffusion,
    "vlm_long": vlm_long,
    "molecules": molecules,
    "sounds": sounds,
    "molecules_long": molecules_long,
}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PARTS:
        sys.exit(f"usage: python benchmarks/recipes.py {' | '.join(PARTS)}")
    PARTS[sys.argv[1]]()
