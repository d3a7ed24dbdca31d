"""The figure of the README: a group as the judge sees and scores it, and what a policy learns from such scores.

    python benchmarks/demo.py             # the trainings: their newest reports are drawn, one per seed
    python benchmarks/front_page.py

The answers are those of the embedded policy before training; the judge is the embedded one. Writes
results/front_page.png.
"""

from __future__ import annotations

import json
import os
import random
import sys
import textwrap
from pathlib import Path
from typing import Any

from flexjudge_recipes.nano import shapes

import matplotlib.pyplot as plt

from flexjudge_reward import Example, Judge, Media, Message, Prompt, Request, Sampling, TransformersEngine, judge_groups
from flexjudge_reward.nano import path

ROOT = Path(__file__).resolve().parent.parent
GROUP, SEED = 4, 11


def judged_group() -> tuple[Any, str, list[tuple[str, float, str]]]:
    """An image, a question, and answers with the judge's score and reasoning, best first."""
    rng = random.Random(SEED)
    question = shapes.question(rng, shapes.scene(rng, held_out=True), ("what",))
    image = shapes.draw(question.scene, rng)
    prompt = Prompt((Message("user", (Media.image(image), question.text)),))
    with TransformersEngine(str(path("base"))) as policy:
        draws = [Request(prompt, Sampling(temperature=1.3, max_tokens=8, seed=seed)) for seed in range(40)]
        answers = list(dict.fromkeys(reply.text.strip() for reply in policy.generate(draws)))[:GROUP]
    with Judge.load(model="nano") as judge:
        (result,) = judge_groups(judge, [Example([Media.image(image), question.text], answers)])
    rows = [
        (answer, (verdict.scores or (0.0,))[0], verdict.reasoning)
        for answer, verdict in zip(answers, result.verdicts, strict=True)
    ]
    return image, question.text, sorted(rows, key=lambda row: -row[1])


def draw_group(axis: Any, rows: list[tuple[str, float, str]], question: str) -> None:
    """The answers with their scores as bars, and the reasoning of the best and the worst."""
    axis.set_title(f"{question}\nfour answers of the policy, scored by the judge", fontsize=10, loc="left")
    axis.barh([answer for answer, _, _ in rows], [score for _, score, _ in rows], color="#4c78a8", height=0.55)
    axis.set(xlim=(0, 11), xlabel="score, 1 to 10")
    axis.invert_yaxis()
    for place, (_, score, _) in enumerate(rows):
        axis.text(score + 0.1, place, f"{score:g}", va="center", fontsize=9)


def demo_reports() -> dict[int, Path]:
    """By seed, the newest report that benchmarks/demo.py left."""
    files = (ROOT / "runs" / "demo_benchmark").glob("*-seed*/report.json")
    newest = {int(file.parent.name.rpartition("seed")[2]): file for file in sorted(files, key=os.path.getmtime)}
    return dict(sorted(newest.items()))


def draw_curves(axis: Any, reports: dict[int, Path]) -> None:
    """The truth over the steps, a line per seed; the judge never saw it."""
    for seed, file in reports.items():
        accuracy = {int(step): 100 * share for step, share in json.loads(file.read_text())["accuracy"].items()}
        axis.plot(list(accuracy), list(accuracy.values()), "o-", ms=3, alpha=0.8, label=f"seed {seed}")
    axis.set_title("make demo: GRPO with these scores as the reward", fontsize=10, loc="left")
    axis.set(xlabel="step", ylabel="right on held-out images, %")
    axis.legend(fontsize=8, loc="lower right")
    axis.grid(alpha=0.3)


def main() -> None:
    """Draws the figure."""
    reports = demo_reports()
    if not reports:
        sys.exit("runs/demo_benchmark has no report: run python benchmarks/demo.py first")
    image, question, rows = judged_group()
    figure = plt.figure(figsize=(11, 4.6), dpi=110, layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(0.75, 1.35, 1.3), height_ratios=(1.5, 1))
    shown = figure.add_subplot(grid[0, 0])
    shown.imshow(image, interpolation="nearest")
    shown.set_title("the image", fontsize=10, loc="left")
    shown.axis("off")
    draw_group(figure.add_subplot(grid[0, 1]), rows, question)
    draw_curves(figure.add_subplot(grid[:, 2]), reports)
    words = figure.add_subplot(grid[1, :2])
    words.axis("off")
    text = "the judge's reasoning, before its score"
    for answer, score, reasoning in (rows[0], rows[-1]):
        text += f"\n\n“{answer}”, {score:g}:\n" + textwrap.fill(reasoning, 84)
    words.text(0, 1, text, va="top", fontsize=8)
    figure.savefig(Path(__file__).parent / "results" / "front_page.png")


if __name__ == "__main__":
    main()
