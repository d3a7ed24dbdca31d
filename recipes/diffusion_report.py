"""What diffusion-DPO changed: same-seed pictures before and after, by the judge, by the truth, and to look at.

Files in the run's folder: report.json, grid.png (held-out prompts, before above after), curve.png, and README.md, the
model card. The truth, and how clean the pictures are, is known of the embedded world only; there the report says
whether they stayed as clean, within a bound.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusion_nano
from common import card
from PIL import Image

TIES = ("tie", "order", "margin", "same")  # why `annotate` names no winner without anything having failed
SHOWN = 12  # prompts in the grid
OUTLINE_FALL, STAIN_RISE = 0.01, 1.0  # the most, of 1 and of 255, by which quality may fall and is "not worse"


@dataclass(frozen=True)
class Shown:
    """A held-out prompt, drawn with the same seed before and after."""

    prompt: str
    before: Path
    after: Path


def report(found: dict[str, Any], shown: Sequence[Shown], judge: str, folder: Path, nano: bool) -> dict[str, Any]:
    """Prints the table, and writes the files of this module.

    Args:
        found: what training left: `pairs`, `held_out_pairs`, `implicit_accuracy`, `log`, and what else is to be kept.
        judge: who preferred, and by which rubric, in words.
        nano: whether the truth is known.
    """
    found |= judge_wins(folder / "held_out.jsonl")
    rows = [
        ("pairs", "", str(found["pairs"])),
        ("held-out pairs in the right order", "50.0%", f"{found['implicit_accuracy']:.1%}"),
        ("same-seed win rate, by the judge", "50.0%", f"{found['judge_win_rate']:.1%}"),
    ]
    if nano:
        found |= truths(shown)
        rows += [
            ("same-seed win rate, by the truth", "50.0%", f"{found['win_rate']:.1%}"),
            ("pictures just as asked for", f"{found['right_before']:.1%}", f"{found['right_after']:.1%}"),
            ("fit of the outlines, 0 to 1", f"{found['outline_before']:.3f}", f"{found['outline_after']:.3f}"),
            ("stain beside the shape, 0 to 255", f"{found['stain_before']:.2f}", f"{found['stain_after']:.2f}"),
            (f"no worse by {OUTLINE_FALL:g} and {STAIN_RISE:g}", "", "yes" if found["quality_kept"] else "no"),
        ]
    print(
        "\n"
        + "\n".join(f"{name:36} {before:>8} {after:>8}" for name, before, after in (("", "before", "after"), *rows))
    )
    (folder / "report.json").write_text(json.dumps(found, indent=2) + "\n")
    draw_grid(shown[:SHOWN], folder / "grid.png")
    draw_curve(found["log"], folder / "curve.png")
    how = f"Diffusion-DPO, a LoRA, on {found['pairs']} pairs of its own pictures; load_lora_weights(folder) loads it"
    (folder / "README.md").write_text(card(found["base"], how, judge, rows, "diffusers"), "utf-8")
    print(f"pictures       {folder / 'grid.png'}, {folder / 'curve.png'}")
    return found


def judge_wins(file: Path) -> dict[str, float]:
    """How often the judge prefers the picture after; a tie counts half, and what it could not judge is left out."""
    won = [json.loads(line)["pair"] == [1, 0] for line in file.read_text("utf-8").splitlines()]
    skipped = [json.loads(line)["why"] for line in file.with_suffix(".skipped.jsonl").read_text("utf-8").splitlines()]
    ties = sum(why in TIES for why in skipped)
    judged = len(won) + ties
    rate = (sum(won) + ties / 2) / judged if judged else float("nan")
    return {"judge_win_rate": rate, "judge_ties": ties, "judge_failed": len(skipped) - ties}


def truths(shown: Sequence[Shown]) -> dict[str, float]:
    """The truth about the embedded world's pictures; a tie counts half."""
    pairs = [
        tuple(diffusion_nano.truth(Image.open(file), one.prompt) for file in (one.before, one.after)) for one in shown
    ]
    wins = statistics.mean((b.score > a.score) + (b.score == a.score) / 2 for a, b in pairs)
    result = {"win_rate": wins}
    for index, when in enumerate(("before", "after")):
        result[f"right_{when}"] = statistics.mean(pair[index].score == 10 for pair in pairs)
        result[f"score_{when}"] = statistics.mean(pair[index].score for pair in pairs)
        result[f"outline_{when}"] = statistics.mean(pair[index].outline for pair in pairs)
        result[f"stain_{when}"] = statistics.mean(pair[index].stain for pair in pairs)
    return result | {"quality_kept": quality_kept(result)}


def quality_kept(found: Mapping[str, float]) -> bool:
    """Whether the pictures after are as clean as those before, but for OUTLINE_FALL and STAIN_RISE."""
    fall, rise = found["outline_before"] - found["outline_after"], found["stain_after"] - found["stain_before"]
    return fall <= OUTLINE_FALL + 1e-9 and rise <= STAIN_RISE + 1e-9


def draw_grid(shown: Sequence[Shown], file: Path) -> None:
    """Before above after, a column per prompt."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(shown), figsize=(1.3 * len(shown), 3.2), dpi=120, squeeze=False)
    for column, one in enumerate(shown):
        for row, picture in enumerate((one.before, one.after)):
            axes[row][column].imshow(Image.open(picture), interpolation="nearest")
            axes[row][column].set(xticks=[], yticks=[])
        words = one.prompt if len(one.prompt) <= 60 else one.prompt[:57] + "..."
        axes[0][column].set_title(words.replace(" ", "\n", 2), fontsize=6, parse_math=False)
    for row, when in enumerate(("before", "after")):
        axes[row][0].set_ylabel(when)
    figure.savefig(file, bbox_inches="tight")
    plt.close(figure)


def draw_curve(log: Sequence[dict[str, float]], file: Path) -> None:
    """Pairs in the right order, and how far both errors moved: where the winner's rises, pictures suffer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in log if "accuracy" in row]
    steps = [row["step"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), dpi=120)
    left.plot(steps, [100 * row["accuracy"] for row in rows])
    left.set(xlabel="step", ylabel="training pairs in the right order, %", ylim=(0, 100))
    for side, name in (("error_won", "chosen"), ("error_lost", "rejected")):
        right.plot(steps, [row[side] for row in rows], label=name)
    right.set(xlabel="step", ylabel="denoising error, difference to the start")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(file, bbox_inches="tight")
    plt.close(figure)
