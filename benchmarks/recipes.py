"""What the recipes teach, by the ground truth that no judge sees: three seeds each, as a user runs them.

    python benchmarks/recipes.py dpo_vlm            about five minutes
    python benchmarks/recipes.py diffusion          about twenty minutes, the tiny text-to-image models included
    python benchmarks/recipes.py vlm_long           about ten minutes: where the judge of pictures and the truth part
    python benchmarks/recipes.py molecules          about twenty minutes, policies and judge included, made if not there
    python benchmarks/recipes.py molecules_long     about twenty minutes: where the judge and the truth part

Each training is a process of its own with an empty folder and an empty cache.
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

from figures import record

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (1, 2, 3)
DRAWERS = ROOT / "runs" / "diffusion_nano"  # the tiny text-to-image models, made if not there
PREPARED = ROOT / "runs" / "molecules"  # the policies and the judge of the molecule recipes, made if not there


def run(
    recipe: str,
    config: str,
    seed: int,
    folder: Path,
    flags: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """One training; what it reported, and how many minutes it took. `settings` are those of the environment."""
    began = time.monotonic()
    command = [sys.executable, f"recipes/{recipe}.py", "--config", f"recipes/configs/{config}.yaml"]
    command += ["--seed", str(seed), "--output_dir", str(folder), "--judge_cache", str(folder / "judge.sqlite"), *flags]
    environment = os.environ | dict(settings or {})
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=environment)
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


# --------------------------------------------------------------------------------------------------------- diffusion


def diffusion() -> None:
    """Same-seed win rates and implicit accuracy of both kinds of denoiser, which run side by side, a thread each."""
    kinds = ("unet", "flow")
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        found = dict(zip(kinds, pool.map(lambda kind: _drawn_better(kind, Path(scratch)), kinds), strict=True))
    for kind, runs in found.items():
        _record_wins(kind, runs)
    every = [one for runs in found.values() for one in runs]
    each = "; ".join(f"{kind} " + _percents(runs, "implicit_accuracy") for kind, runs in found.items())
    note = f"lowest mean of the two kinds; by seed {SEEDS}: {each}"
    lowest = min(statistics.mean(one["implicit_accuracy"] for one in runs) for runs in found.values())
    record("recipes.diffusion_implicit_accuracy", lowest, unit="share", target=">= 0.85", note=note)
    longest = max(one["minutes"] for one in every)
    note = "longest of six, two at a time, without installation and the pre-training of the tiny text-to-image model"
    record("recipes.diffusion_minutes", longest, unit="minutes", target="<= 5", note=note)


def _drawn_better(kind: str, scratch: Path) -> list[dict[str, Any]]:
    """A training for each seed; the picture grid of the first is kept."""
    base, one = DRAWERS / f"nano-{kind}", {"OMP_NUM_THREADS": "1"}
    if not base.exists():
        command = [sys.executable, "recipes/diffusion_nano.py", "--kind", kind, "--out", str(base)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=os.environ | one)
    (scratch / base.name).symlink_to(base)
    folders = [scratch / f"{kind}-{seed}" for seed in SEEDS]
    name = f"diffusion_dpo_nano_{kind}"
    found = [run("diffusion_dpo", name, seed, at, (), one) for seed, at in zip(SEEDS, folders, strict=True)]
    shutil.copy(folders[0] / "grid.png", Path(__file__).parent / "results" / f"diffusion_{kind}.png")
    return found


def _record_wins(kind: str, runs: list[dict[str, Any]]) -> None:
    note = f"by the truth, ties half, by seed {SEEDS}: {_percents(runs, 'win_rate')}; by the judge"
    note += f" {_percents(runs, 'judge_win_rate')}; just as asked for"
    note += f" {_percents(runs, 'right_before')} before, {_percents(runs, 'right_after')} after"
    for what, digits in (("outline", 3), ("stain", 2)):
        before, after = (statistics.mean(one[f"{what}_{when}"] for one in runs) for when in ("before", "after"))
        note += f"; {what} {before:.{digits}f} to {after:.{digits}f}"
    note += f"; both no worse than the bound in {sum(one['quality_kept'] for one in runs)} of {len(runs)}"
    wins = statistics.mean(one["win_rate"] for one in runs)
    record(f"recipes.diffusion_{kind}_win_rate", wins, unit="share", target=">= 0.75", note=note)


def _percents(runs: list[dict[str, Any]], name: str) -> str:
    return ", ".join(f"{one[name]:.1%}" for one in runs)


# ---------------------------------------------------------------------------------------------- a long run of the VLM

VLM_LONG: dict[str, tuple[list[str], dict[str, str]]] = {  # flags, settings of the judge
    "a call per answer": ([], {}),
    "KL (beta 0.04)": (["--beta", "0.04"], {}),
    "a list per group": ([], {"FLEXJUDGE_FORMAT": "listwise"}),
}


def vlm_long(steps: int = 120) -> None:
    """GRPO on pictures for five times as long as the demo: the judge's reward beside the truth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(VLM_LONG), figsize=(5 * len(VLM_LONG), 4), sharey=True, layout="constrained")
    for axes, (name, (flags, settings)) in zip(panels, VLM_LONG.items(), strict=True):
        with tempfile.TemporaryDirectory() as scratch:
            flags = [*flags, "--max_steps", str(steps), "--measure_every", "10"]
            found = run("grpo_vlm", "grpo_nano", 1, Path(scratch), flags, settings)
        rewards, accuracy = ({int(step): value for step, value in found[what].items()} for what in CURVES)
        axes.plot(list(rewards), list(rewards.values()), label="judge reward (0 to 1)")
        axes.plot(list(accuracy), list(accuracy.values()), "o-", label="accuracy on held-out pictures (truth)")
        best = max(accuracy, key=lambda step: accuracy[step])
        axes.axvline(best, color="grey", linestyle=":")
        axes.set(title=name, xlabel="step", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        first, last = min(accuracy), max(accuracy)
        ends = " to ".join(f"{statistics.mean(part):.2f}" for part in _ends(list(rewards.values())))
        truth = f"{accuracy[first]:.1%} at first, {accuracy[best]:.1%} at step {best}, {accuracy[last]:.1%} at the end"
        print(f"{name}: judge reward {ends}; truth {truth}; {found['minutes']:.1f} minutes", flush=True)
    panels[0].legend(loc="lower right")
    figure.savefig(Path(__file__).parent / "results" / "overoptimisation_vlm.png", dpi=110)
    plt.close(figure)


CURVES = ("judge_reward", "accuracy")


def _ends(values: list[float]) -> tuple[list[float], list[float]]:
    return values[:5], values[-5:]


# --------------------------------------------------------------------------------------------------------- molecules


def run_molecules(stage: str, seed: int, scratch: Path, name: str, **flags: object) -> dict[str, Any]:
    """One stage in a folder and with a cache of its own, on one thread; what it reported, and its minutes."""
    folder, began = scratch / name, time.monotonic()
    command = [sys.executable, "recipes/molecules.py", stage]
    if (ROOT / f"recipes/configs/molecules_{stage}.yaml").exists():
        command += ["--config", f"recipes/configs/molecules_{stage}.yaml"]
    else:
        command += ["--model_name_or_path", "nano", "--use_cpu", "true", "--bf16", "false"]
    flags = {"prepared": PREPARED, "output_dir": folder, "judge_cache": folder / "judge.sqlite", "seed": seed} | flags
    command += [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    report = folder / "report.json"
    found: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    return found | {"minutes": (time.monotonic() - began) / 60}


def molecules() -> None:
    """Validity, uniqueness and so on after GRPO and DPO, and the QED of the judge's choice."""
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:

        def each(*stages: tuple[str, int]) -> list[dict[str, Any]]:
            return list(pool.map(lambda one: run_molecules(*one, Path(scratch), f"{one[0]}-{one[1]}"), stages))

        made = each(("judge", 1), *(("pretrain", seed) for seed in SEEDS))
        best, dpo, grpo = (each(*((stage, seed) for seed in SEEDS)) for stage in ("best_of_n", "dpo", "grpo"))
        exact = json.loads((PREPARED / "judge" / "measured.json").read_text())
    note = f"of {exact['held_out']} held-out molecules; whole reasoning {exact['trace_exact']:.1%}"
    record("recipes.molecules_judge_exact", exact["exact"], unit="share", target=">= 0.95", note=note)
    _record_training("", grpo)
    _record_training("_dpo", dpo)
    gains = [one["judge"]["16"] - one["judge"]["1"] for one in best]
    curves = "; ".join(", ".join(f"{value:.2f}" for value in one["judge"].values()) for one in best)
    note = f"mean QED, 0 for what is no molecule, of the choice among 1, 2, 4, 8, 16, by seed {SEEDS}: {curves}"
    record("recipes.molecules_best_of_16_gain", statistics.mean(gains), unit="QED", target="> 0", note=note)
    longest = max(one["minutes"] for one in [*best, *dpo, *grpo])
    judge, *policies = (one["minutes"] for one in made)
    note = f"longest of nine stages, two at a time, a thread each; before them the judge took {judge:.1f} and a policy"
    note += f" {max(policies):.1f} at most"
    record("recipes.molecules_minutes", longest, unit="minutes", target="<= 5", note=note)


def _record_training(name: str, found: list[dict[str, Any]]) -> None:
    """The figures of a training, means of the seeds; what each seed did is in the notes."""

    def each(figure: str) -> str:
        return ", ".join(f"{one['before'][figure]:.3f} to {one['after'][figure]:.3f}" for one in found)

    def mean(figure: str) -> float:
        return statistics.mean(one["after"][figure] for one in found)

    others = "; ".join(f"{figure} {each(figure)}" for figure in ("qed", "sa", "judge"))
    record(
        f"recipes.molecules{name}_validity_after",
        mean("validity"),
        unit="share",
        target=">= 0.85",
        note=f"of 500 samples, by seed {SEEDS}: {each('validity')}; {others}",
    )
    for figure in ("uniqueness", "novelty"):
        wanted = f"recipes.molecules{name}_{figure}_after"
        record(wanted, mean(figure), unit="share", target=">= 0.9", note=f"by seed {SEEDS}: {each(figure)}")
    lost = statistics.mean(one["before"]["diversity"] - one["after"]["diversity"] for one in found)
    wanted = f"recipes.molecules{name}_diversity_lost"
    record(wanted, lost, unit="diversity", target="", note=f"by seed {SEEDS}: {each('diversity')}")


LONG = {  # what is done about over-optimisation: nothing, a price of distance from the start, a price of similarity
    "no KL, no diversity price": {"beta": 0.0, "diversity": 0.0},
    "KL (beta 0.1)": {"beta": 0.1, "diversity": 0.0},
    "diversity price 2": {"beta": 0.0, "diversity": 2.0},
}


def molecules_long() -> None:
    """GRPO for longer and faster than is good: the judge's score beside QED, SA and diversity, with each remedy."""
    steps: dict[str, object] = {"max_steps": 140, "measure_every": 20, "samples": 200, "judged": 60}
    steps |= {"learning_rate": 5e-4, "lr_scheduler_type": "constant"}
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:

        def curve(name: str) -> dict[str, dict[str, float]]:
            found: dict[str, dict[str, float]] = run_molecules(
                "grpo", 1, Path(scratch), name.replace(" ", "-"), **steps, **LONG[name]
            )["curve"]
            return found

        made = Path(scratch, "made")
        list(pool.map(lambda stage: run_molecules(stage, 1, made, stage), ("judge", "pretrain")))
        curves = dict(zip(LONG, pool.map(curve, LONG), strict=True))
    results = Path(__file__).parent / "results"
    (results / "overoptimisation_molecules.json").write_text(json.dumps(curves, indent=1) + "\n")
    draw_long(curves, results / "overoptimisation_molecules.png")
    for name, curve in curves.items():
        print(f"{name}: the truth is best at step {parting(curve)}, the judge at step {_peak(curve, 'judge')}")


def parting(curve: dict[str, dict[str, float]]) -> int:
    """The step after which QED over all samples does not rise any more."""
    return _peak(curve, "qed_all")


def _peak(curve: dict[str, dict[str, float]], name: str) -> int:
    return max(map(int, curve), key=lambda step: curve[str(step)].get(name, 0.0))


def draw_long(curves: dict[str, dict[str, dict[str, float]]], file: Path) -> None:
    """A panel for each way, with the step where the truth is best."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(curves), figsize=(5 * len(curves), 4), dpi=110, sharey=True, layout="constrained"
    )
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        for what, share in (("judge", 1.0), ("qed", 1.0), ("qed_all", 1.0), ("sa", 0.1), ("diversity", 1.0)):
            rows = {int(step): share * found[what] for step, found in curve.items() if what in found}
            axes.plot(list(rows), list(rows.values()), "o-", ms=3, label="sa / 10" if what == "sa" else what)
        axes.axvline(parting(curve), color="grey", linestyle=":")
        axes.set(title=name, xlabel="step", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    figure.savefig(file, bbox_inches="tight")
    plt.close(figure)


RECIPES = {
    "dpo_vlm": dpo_vlm,
    "diffusion": diffusion,
    "vlm_long": vlm_long,
    "molecules": molecules,
    "molecules_long": molecules_long,
}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in RECIPES:
        sys.exit(f"usage: python benchmarks/recipes.py {' | '.join(RECIPES)}")
    RECIPES[sys.argv[1]]()
