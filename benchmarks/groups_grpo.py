"""The demo's training with one judge call per group (listwise) against one per answer (pointwise).

`python benchmarks/groups.py grpo` runs it. The judge is on a real vLLM server, as the README advises for training.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demo import run
from figures import record

from flexjudge_reward.nano import path

FORMATS = ("pointwise", "listwise")
LABELS = {"pointwise": "pointwise: a call per answer", "listwise": "listwise: a call per group"}
PLOT = Path(__file__).parent / "results" / "grpo_listwise.png"
# Groups of eight, one list each, in few large steps: longer lists than the demo's groups of four.
EIGHT = (
    *("--num_generations", "8", "--per_device_train_batch_size", "64", "--steps_per_generation", "2"),
    *("--max_steps", "24", "--learning_rate", "4e-4", "--lr_scheduler_type", "constant"),
)
Reports = Mapping[str, list[dict[str, Any]]]


def grpo(seeds: Sequence[int] = (1, 2, 3, 4, 5, 6), uncached_seeds: Sequence[int] = (1, 2, 3)) -> None:
    """Accuracy after training, the judge's seconds with and without the cache, and the plot."""
    cached = train(seeds)
    accuracy = {format: [100 * report["accuracy_after"] for report in cached[format]] for format in FORMATS}
    gains = [a - b for a, b in zip(accuracy["listwise"], accuracy["pointwise"], strict=True)]
    error = statistics.stdev(gains) / len(gains) ** 0.5
    listwise, pointwise = (statistics.mean(accuracy[format]) for format in ("listwise", "pointwise"))
    note = f"standard error {error:.1f}; {len(gains)} seeds: {listwise:.1f} % against {pointwise:.1f} % right"
    mean = statistics.mean(gains)
    record("groups.grpo_listwise_minus_pointwise_points", mean, unit="points", target=">= 0", note=note)
    record_time("groups.grpo_judge_time_ratio", cached)
    # Without the cache every answer is new, as with a policy that does not repeat itself.
    uncached = train(uncached_seeds, cache="off")
    record_time("groups.grpo_new_judge_time_ratio", uncached)
    plot(cached, uncached)


def train(seeds: Sequence[int], **judge: str) -> Reports:
    """The reports of both formats by seed. The format that runs first alternates, because the machine's speed drifts.

    Args:
        judge: further settings of the judge.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from support import real

    reports: Reports = {format: [] for format in FORMATS}
    options = ("--dtype", "float32", "--enforce-eager", "--served-model-name", "nano")
    with real.serve(str(path("judge")), *options) as url, tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds):
            for format in FORMATS[::-1] if number % 2 else FORMATS:
                settings = {"format": format, "base_url": url, **judge}
                reports[format].append(run(seed, Path(folder, f"{format}{seed}"), settings, *EIGHT))
    return reports


def record_time(name: str, reports: Reports) -> None:
    """The judge's seconds with lists as a ratio of those with pointwise scores."""

    def values(format: str, key: str) -> list[float]:
        return [report["judge"][key] for report in reports[format]]

    listwise, pointwise = (values(format, "seconds") for format in ("listwise", "pointwise"))
    by_seed = [a / b for a, b in zip(listwise, pointwise, strict=True)]
    hits = sum(values("pointwise", "cached")) / sum(values("pointwise", "judged"))
    listwise_tokens, pointwise_tokens = (sum(values(format, "tokens")) for format in ("listwise", "pointwise"))
    note = f"a vLLM server, {sum(listwise):.0f} s against {sum(pointwise):.0f} s; by seed"
    note += f" {min(by_seed):.2f} to {max(by_seed):.2f}; {hits:.0%} of the pointwise scores came from the cache"
    note += f"; tokens, those of cached replies included, {listwise_tokens} against {pointwise_tokens}"
    record(name, sum(listwise) / sum(pointwise), unit="ratio", target="< 1", note=note)


def plot(
    cached: Mapping[str, Sequence[Mapping[str, Any]]], uncached: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Accuracy over the steps, a line per seed, and the seconds of judging with and without the cache."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    curves, times = figure.subplots(1, 2, width_ratios=(1.9, 1))
    for place, (format, colour) in enumerate(zip(FORMATS, ("tab:gray", "tab:blue"), strict=True)):
        for number, report in enumerate(cached[format]):
            shares = [100 * share for share in report["accuracy"].values()]
            label = None if number else LABELS[format]
            curves.plot(list(map(int, report["accuracy"])), shares, "o-", color=colour, label=label)
        seconds = [[report["judge"]["seconds"] for report in reports[format]] for reports in (cached, uncached)]
        bars = times.bar([place, place + 3], list(map(statistics.mean, seconds)), width=0.9, color=colour)
        times.bar_label(bars, fmt="%.0f")
    curves.set(xlabel="step", ylabel="right on held-out images, %", ylim=(0, 100))
    curves.legend(loc="lower right")
    curves.grid(alpha=0.3)
    times.set_xticks([0.5, 3.5], ["cache", "no cache"])
    times.set(ylabel="seconds of judging per training")
    times.margins(y=0.1)
    figure.savefig(PLOT)
