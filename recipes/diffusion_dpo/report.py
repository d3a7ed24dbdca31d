"""What diffusion-DPO changed: images of the same prompts and seeds before and after, by the judge and by the truth.

Only the nano world has a truth; there `quality_kept` says whether the images stayed as clean, within a bound.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexjudge_recipes.common import plot
from flexjudge_recipes.nano import images as nano

from PIL import Image

TIES = ("tie", "order_inconsistent", "below_margin", "identical")  # no winner, although nothing failed
GRID_COLUMNS = 12
MAX_IOU_FALL, MAX_BACKGROUND_RISE = 0.01, 1.0  # of 1 and of 255: the bound within which quality is kept
TableRow = tuple[str, str, str]


@dataclass(frozen=True)
class HeldOut:
    """A held-out prompt, and its images before and after with the same seed."""

    prompt: str
    before: Path
    after: Path


def judge_metrics(comparisons: Path) -> dict[str, float | None]:
    """How often the judge prefers the image after; a tie counts half, failures do not count."""
    kept, skipped = (_rows(file) for file in (comparisons, comparisons.with_suffix(".skipped.jsonl")))
    won = sum(row["pair"] == [1, 0] for row in kept)
    ties = sum(row["why"] in TIES for row in skipped)
    judged = len(kept) + ties
    rate = (won + ties / 2) / judged if judged else None
    return {"judge_win_rate": rate, "judge_ties": ties, "judge_failed": len(skipped) - ties}


def truth_metrics(images: Sequence[HeldOut]) -> dict[str, float]:
    """The truth about images of the nano world; a tie counts half."""
    before = [nano.truth(Image.open(row.before), row.prompt) for row in images]
    after = [nano.truth(Image.open(row.after), row.prompt) for row in images]
    wins = [(b.score > a.score) + (b.score == a.score) / 2 for a, b in zip(before, after, strict=True)]
    metrics = {"win_rate": statistics.mean(wins)}
    for when, truths in (("before", before), ("after", after)):
        metrics[f"accuracy_{when}"] = statistics.mean(truth.score == 10 for truth in truths)
        metrics[f"score_{when}"] = statistics.mean(truth.score for truth in truths)
        metrics[f"shape_iou_{when}"] = statistics.mean(truth.shape_iou for truth in truths)
        metrics[f"background_error_{when}"] = statistics.mean(truth.background_error for truth in truths)
    return metrics | {"quality_kept": quality_kept(metrics)}


def quality_kept(metrics: Mapping[str, float]) -> bool:
    """Whether the images after are as clean as those before, within the bound."""
    fall = metrics["shape_iou_before"] - metrics["shape_iou_after"]
    rise = metrics["background_error_after"] - metrics["background_error_before"]
    return fall <= MAX_IOU_FALL + 1e-9 and rise <= MAX_BACKGROUND_RISE + 1e-9


def table(results: Mapping[str, Any]) -> list[TableRow]:
    """What was measured, before and after."""
    rate = results["judge_win_rate"]
    rows = [
        ("pairs", "", str(results["pairs"])),
        ("held-out pairs ordered correctly", "50.0%", f"{results['implicit_accuracy']:.1%}"),
        ("same-seed win rate, by the judge", "50.0%", "-" if rate is None else f"{rate:.1%}"),
    ]
    if "win_rate" not in results:
        return rows

    kept = "yes" if results["quality_kept"] else "no"

    def change(name: str, form: str) -> tuple[str, str]:
        return f"{results[f'{name}_before']:{form}}", f"{results[f'{name}_after']:{form}}"

    return [
        *rows,
        ("same-seed win rate, by the truth", "50.0%", f"{results['win_rate']:.1%}"),
        ("correct images, by the truth", *change("accuracy", ".1%")),
        ("shape IoU, 0 to 1", *change("shape_iou", ".3f")),
        ("background error, 0 to 255", *change("background_error", ".2f")),
        (f"IoU and background at most {MAX_IOU_FALL:g} and {MAX_BACKGROUND_RISE:g} worse", "", kept),
    ]


def plot_curve(file: Path, results: Mapping[str, Any]) -> None:
    """Accuracy on the training pairs, and the growth of both errors: where the chosen image's grows, quality falls."""
    log = [entry for entry in results["log"] if "accuracy" in entry]
    lines = {name: {entry["step"]: entry[name] for entry in log} for name in ("accuracy", "error_won", "error_lost")}
    errors = {"chosen": lines["error_won"], "rejected": lines["error_lost"]}
    panels = {"training pairs ordered correctly": {"share": lines["accuracy"]}, "growth of the denoising error": errors}
    plot(file, f"Diffusion-DPO, {results['pairs']} pairs", panels)


def plot_grid(file: Path, images: Sequence[HeldOut]) -> None:
    """Before above after, a column per prompt."""
    from matplotlib.figure import Figure

    images = images[:GRID_COLUMNS]
    figure = Figure(figsize=(1.3 * len(images), 3.2), dpi=120, layout="constrained")
    axes = figure.subplots(2, len(images), squeeze=False)
    for column, row in enumerate(images):
        for axis, image in zip(axes[:, column], (row.before, row.after), strict=True):
            axis.imshow(Image.open(image), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        title = row.prompt if len(row.prompt) <= 60 else row.prompt[:57] + "..."
        axes[0][column].set_title(title.replace(" ", "\n", 2), fontsize=6, parse_math=False)
    for axis, when in zip(axes[:, 0], ("before", "after"), strict=True):
        axis.set_ylabel(when)
    figure.savefig(file)


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]
