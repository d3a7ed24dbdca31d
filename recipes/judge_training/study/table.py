"""The results of the transfer study as a table and as plots, beside the papers' figures. Trains and loads nothing.

Results are a file of lines, one per finished cell. A line that a kill cut, or of other settings, does not count; of two
lines of one cell and seed the last does. Values are means in percent over the seeds, ± their standard deviation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from flexjudge_recipes.judge_training.study.cells import CELLS, START

Results = dict[tuple[str, int], dict[str, Any]]
COLUMNS = {
    "words_pair_better": "text pairs",
    "image_pair_better": "image pairs",
    "video_pair_better": "video pairs",
    "image_pair_exact": "both scores, images",
    "image_single_exact": "single scores, images",
    "words_list_better": "lists of three, text",
    "image_pair_formed": "read, image pairs",
    "questions_think": "picture questions",
    "questions_seen": "the same, thought right",
    "questions_direct": "the same, asked directly",
}
MEDIA = ("words_pair_better", "image_pair_better", "video_pair_better")
FORMATS = ("image_pair_better", "image_single_exact", "words_list_better")


@dataclass(frozen=True)
class Question:
    """One question of the study: the cells that are compared, and what the papers found."""

    title: str
    cells: tuple[str, ...]
    papers: str
    shown: tuple[str, ...] = ("image_pair_better",)
    """The columns that are plotted."""


QUESTIONS = {
    "a": Question(
        "Text-only traces, judged on text, image and video",
        ("base", START),
        "Flex-Judge, Qwen2.5-VL-7B before and after: VL-RewardBench 36.3 to 48.6, GenAI-Bench video 37.6 to 44.8,"
        " MLLM-as-a-Judge pairs with tie 42.3 to 53.8.",
        MEDIA,
    ),
    "b": Question(
        "Reasons first against the answer first",
        (START, "answer_first"),
        "Flex-Judge, reasons first against answer first: VL-RewardBench 48.6 against 39.3, pairs with tie 53.8 against"
        " 52.1, correlation of single scores .332 against .290.",
        MEDIA,
    ),
    "c": Question(
        "1,000 text traces against 1,000 image-text traces",
        (START, "image_text"),
        "Flex-Judge, text against image-text traces: VL-RewardBench 48.6 against 43.8, pairs with tie 53.8 against"
        " 19.8, GenAI-Bench video 44.8 against 43.4. Those image-text traces are the judge's own; these are right.",
        MEDIA,
    ),
    "d": Question(
        "100 to 10,000 traces, and what the base forgets",
        ("traces_100", "traces_300", START, "traces_3000", "traces_10000"),
        "Flex-Judge, 500 to 4,000 traces: judging of text keeps rising, of images it falls after 1,000 (a figure, no"
        " values). TextVQA after 1,000 80.8 to 80.3, OK-VQA 67.5 to 72.1. More traces are more steps there, not here.",
    ),
    "e": Question(
        "One format against the mix",
        ("pairs", START, "four_formats"),
        "Flex-Judge: without the mix, instructions of other formats are often not followed (no values).",
        FORMATS,
    ),
    "f": Question(
        "Filter by agreement and by length against none",
        (START, "no_agreement", "any_length", "shortest"),
        "Flex-Judge: a large gain by agreement; long thoughts are better than random ones, and these than short ones"
        " (a figure, no values).",
    ),
    "g": Question(
        "SFT against SFT and RL",
        (START, "rl"),
        "MSRL, VL-RewardBench before and after its stages of RL: 66.6 to 75.9. MR. Judge after both: 75.5; after SFT"
        " alone not known to us.",
        MEDIA,
    ),
}
VOTES = (
    "Flex-Judge, seven votes: GenAI-Bench 45.2 to 49.3. MR. Judge, VL-RewardBench by 1, 5, 10 votes: 75.5, 77.1, 79.5."
)
WAIT = (
    "Flex-Judge: pairs fall after the first round of waiting and climb back nearly to the start by the fourth; single"
    " scores gain a little (figures, no values)."
)


def read(file: Path, settings: Mapping[str, int]) -> Results:
    """The lines with these settings, by cell and seed."""
    found: Results = {}
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        try:
            entry = json.loads(line)
            if all(entry[name] == value for name, value in settings.items()):
                found[entry["cell"], entry["seed"]] = entry
        except (ValueError, KeyError, TypeError):  # the line that a kill cut
            continue
    return found


def values(found: Results, cell: str, name: str) -> dict[int, float]:
    """A figure of a cell by seed, in percent."""
    return {
        seed: 100 * entry["figures"][name]
        for (own, seed), entry in sorted(found.items())
        if own == cell and name in entry["figures"]
    }


def differences(found: Results) -> dict[str, dict[int, float]]:
    """The headline figures by seed, in points (`video_pair_better` in percent): what has both of its cells."""
    image = {cell: values(found, cell, "image_pair_better") for cell in CELLS}

    def lost(cell: str, name: str = "questions_think") -> tuple[dict[int, float], dict[int, float]]:
        after, before = values(found, cell, name), values(found, "base", name)
        return {seed: base for seed in after for base in before.values()}, after

    pairs = {
        "image_minus_text_points": (image[START], values(found, START, "words_pair_better")),
        "reason_first_minus_answer_first_points": (image[START], image["answer_first"]),
        "image_text_minus_text_only_points": (image["image_text"], image[START]),
        "forgetting_points_at_1k": lost(START),
        "forgetting_points_at_10k": lost("traces_10000"),
        "forgetting_points_at_1k_of_seeing": lost(START, "questions_seen"),
        "forgetting_points_at_10k_of_seeing": lost("traces_10000", "questions_seen"),
        "rl_minus_sft_points": (image["rl"], image[START]),
    }
    made = {name: {s: one[s] - two[s] for s in one if s in two} for name, (one, two) in pairs.items()}
    return {"video_pair_better": values(found, START, "video_pair_better"), **made}


def said(numbers: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not numbers:
        return "-"
    return f"{fmean(numbers):.1f}" + (f" ± {stdev(numbers):.1f}" if len(numbers) > 1 else "")


def markdown(found: Results, settings: Mapping[str, int]) -> str:
    """All tables."""
    cpu = [sum(entry["cpu_seconds"].values()) for entry in found.values()]
    error = 50 / sqrt(settings["count"])
    lines = [
        "# The transfer study",
        "",
        f"{len(found)} finished cells, {sum(cpu) / 3600:.1f} hours of CPU time. Every SFT has {settings['steps']} steps"
        f" of {settings['batch']} traces from the embedded base, whatever the number of different ones. Pairs:"
        f" {settings['count']} held-out examples, else half as many; greedy; percent, mean ± standard deviation over n"
        " seeds. Pairs and lists: the better answer alone has the highest score; of pairs a coin finds 50 %. A reply"
        f" that cannot be read counts as wrong. All seeds answer the same examples, so that ± leaves out the choice of"
        f" these: of a share of pairs it is up to {error:.1f} points (standard error), of a difference of two up to"
        f" {error * sqrt(2):.1f}, of half as many examples {sqrt(2):.1f} times that.",
    ]
    head = ["cell", "n", *COLUMNS.values()]
    for letter, question in QUESTIONS.items():
        rows = []
        for cell in question.cells:
            columns = [list(values(found, cell, name).values()) for name in COLUMNS]
            rows.append([CELLS[cell].about, str(len(columns[0])), *map(said, columns)])
        lines += ["", f"## ({letter}) {question.title}", "", *_table(head, rows), "", question.papers]
    lines += ["", "## (h) Votes and budgets at inference", ""]
    lines += [*_table(["on images", "n", "pairs", "single scores", "read, pairs"], _inference(found)), "", VOTES, WAIT]
    lines += ["", "## Differences", "", *_table(["figure", "n", "mean", "by seed"], _headlines(found)), ""]
    return "\n".join(lines)


def _inference(found: Results) -> list[list[str]]:
    pattern = re.compile(r"image_pair_((votes|budget|wait)_(\d+))_better")
    named = {
        "votes": "{} vote(s), temperature 1",
        "budget": "reasoning cut at {} tokens",
        "wait": "{} round(s) of waiting",
    }
    rows = []
    for cell in ("votes", "wait"):
        names = {name: None for (own, _), entry in found.items() if own == cell for name in entry["figures"]}
        for how in filter(None, map(pattern.fullmatch, names)):
            shown = (how[0], f"image_single_{how[1]}_exact", f"image_pair_{how[1]}_formed")  # as in `markdown`
            columns = [list(values(found, cell, name).values()) for name in shown]
            rows.append([named[how[2]].format(how[3]), str(len(columns[0])), *map(said, columns)])
    return rows


def _headlines(found: Results) -> list[list[str]]:
    return [
        [f"`transfer.{name}`", str(len(by_seed)), said(list(by_seed.values())), _listed(by_seed)]
        for name, by_seed in differences(found).items()
    ]


def _listed(by_seed: Mapping[int, float]) -> str:
    return ", ".join(f"{seed}: {value:.1f}" for seed, value in by_seed.items()) or "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def write(file: Path, settings: Mapping[str, int]) -> None:
    """The tables as .md and the plots as .png, beside the results; nothing if there are none."""
    found = read(file, settings)
    if found:
        file.with_suffix(".md").write_text(markdown(found, settings), "utf-8")
        plots(found, file.with_suffix(".png"))


# ------------------------------------------------------------------------------------------------------------ plots


def plots(found: Results, file: Path) -> None:
    """A panel for each question."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(20, 9), dpi=80, layout="constrained")
    figure.suptitle("What text-only traces teach the embedded judge: percent, mean and range of the seeds")
    axes = dict(zip("abcdefgh", figure.subplots(2, 4).flat, strict=True))
    for letter, question in QUESTIONS.items():
        (_sizes if letter == "d" else _bars)(axes[letter], found, question)
    for cell, kind in (("votes", "votes"), ("wait", "wait")):
        points = {number: values(found, cell, f"image_pair_{kind}_{number}_better") for number in range(100)}
        _line(axes["h"], points, {"votes": "votes", "wait": "rounds of waiting"}[kind])
    titles = {letter: question.title for letter, question in QUESTIONS.items()}
    for letter, axis in axes.items():
        axis.set_title(f"({letter}) {titles.get(letter, 'Votes and waiting: image pairs')}", fontsize=10)
        axis.set(ylim=(0, 145), yticks=range(0, 101, 20))  # room for the legend
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, loc="upper left")
    figure.savefig(file)


def _bars(axis: Any, found: Results, question: Question) -> None:
    """A group of bars per column, a bar per cell."""
    width = 0.8 / len(question.cells)
    for index, cell in enumerate(question.cells):
        columns = [list(values(found, cell, name).values()) for name in question.shown]
        there = {place + index * width: each for place, each in enumerate(columns) if each}
        axis.bar(
            list(there), [*map(fmean, there.values())], width, yerr=_range(there.values()), label=CELLS[cell].about
        )
    middle = width * (len(question.cells) - 1) / 2
    labels = [COLUMNS[name] for name in question.shown]
    axis.set_xticks([place + middle for place in range(len(labels))], labels, fontsize=8)


def _sizes(axis: Any, found: Results, question: Question) -> None:
    """Lines over the number of traces, and what the base does."""
    for name in ("words_pair_better", "image_pair_better", "questions_think", "questions_seen"):
        _line(axis, {CELLS[cell].traces: values(found, cell, name) for cell in question.cells}, COLUMNS[name])
    for value in values(found, "base", "questions_think").values():
        axis.axhline(value, linestyle="--", color="grey", label="picture questions, base")
    axis.set_xscale("log")


def _line(axis: Any, points: Mapping[int, Mapping[int, float]], label: str) -> None:
    there = {at: list(by_seed.values()) for at, by_seed in points.items() if by_seed}
    if there:
        axis.errorbar(list(there), [*map(fmean, there.values())], yerr=_range(there.values()), marker="o", label=label)


def _range(groups: Iterable[Sequence[float]]) -> list[list[float]]:
    """How far the smallest and the largest are from the mean."""
    each = list(groups)
    return [[fmean(one) - min(one) for one in each], [max(one) - fmean(one) for one in each]]
