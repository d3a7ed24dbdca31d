"""What the transfer study trains: its cells, and the traces of each.

A cell is one training and what is measured of it. All cells of a seed draw from one list of prompts, so that two cells
differ in one thing only: n traces are the first n prompts, and text and image-text traces have the same questions,
answers and thoughts. Two exceptions are drawn anew: the prompts of lists and choices, and the order in which a scene in
words names its places, where a cell misreads or shortens traces. All trainings have the same length: a small set is
shown more often. No question asks for a description, as these traces are the longest by far.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from flexjudge_recipes.nano import judge_traces, shapes, traces

KINDS = shapes.judged(3)  # no descriptions
POOL = 16  # batches that are ordered by length together, as in judge_traces
Length = Literal["long", "middle", "short"]


@dataclass(frozen=True)
class Cell:
    """One training. Every default is the shared one: 1,000 right, long traces in words, reasons first."""

    about: str
    work: Literal["none", "sft", "rl", "votes", "wait"] = "sft"
    traces: int = 1000
    """Distinct ones."""
    medium: Literal["words", "image"] = "words"
    forms: tuple[traces.Form, ...] = ("pair", "score")
    scales: tuple[int, ...] = (10, 5)
    wrong: float = 0.0
    """The share of traces whose scores a teacher would not agree with."""
    lengths: tuple[Length, ...] = ("long",)
    answer_first: bool = False


CELLS = {
    "base": Cell("the base, not trained to judge", "none"),
    "text": Cell("1,000 text traces: the shared setting"),
    "answer_first": Cell("the verdict before the reasons", answer_first=True),
    "image_text": Cell("1,000 image-text traces", medium="image"),
    "traces_10000": Cell("10,000 traces", traces=10_000),
    "rl": Cell("SFT, then GRPO on pairs in words", "rl"),
    "votes": Cell("votes at inference", "votes"),
    "wait": Cell("budgets and waiting at inference", "wait"),
    "pairs": Cell("pairs on one scale only", forms=("pair",), scales=(10,)),
    "no_agreement": Cell("half of the traces disagree with the teacher", wrong=0.5),
    "any_length": Cell("thoughts of any length", lengths=get_args(Length)),
    "shortest": Cell("the shortest thoughts", lengths=("short",)),
    "traces_100": Cell("100 traces", traces=100),
    "traces_300": Cell("300 traces", traces=300),
    "traces_3000": Cell("3,000 traces", traces=3000),
    "four_formats": Cell("a mix of four formats", forms=("pair", "score", "listwise", "choice")),
}
"""In the order in which a seed works them off. `rl`, `votes` and `wait` start from the judge of `text`."""
START = "text"


def rows(cell: Cell, seed: int, steps: int, batch: int) -> Iterator[dict[str, Any]]:
    """`steps` batches of `batch` traces in the order of training: the set again and again, each time shuffled."""
    own = [trace(cell, seed, number) for number in range(min(cell.traces, steps * batch))]
    rng, shown = random.Random(f"study {seed} order"), list[dict[str, Any]]()
    while len(shown) < steps * batch:
        shown += rng.sample(own, len(own))
    for start in range(0, steps * batch, POOL * batch):
        pool = sorted(shown[start : min(start + POOL * batch, steps * batch)], key=judge_traces.size_of)
        batches = [pool[first : first + batch] for first in range(0, len(pool), batch)]
        rng.shuffle(batches)
        yield from (row for one in batches for row in one)


def trace(cell: Cell, seed: int, number: int) -> dict[str, Any]:
    """The trace on prompt `number` of a seed, as `flexjudge traces` writes it, with `image` if it is drawn."""
    rng = random.Random(f"study {seed} {number}")
    form = cell.forms[number % len(cell.forms)]
    high = 10 if form == "choice" else rng.choice(cell.scales)
    count = {"score": 1, "pair": 2}.get(form) or rng.choice((2, 3, 4))
    asked = shapes.question(rng, shapes.scene(rng), KINDS)
    replies = shapes.candidates(rng, asked, count, single_best=form == "choice")
    own = random.Random(f"study {seed} {number} trace")  # so that its question and answers stay the same
    read = misread(own, asked, replies, high) if own.random() < cell.wrong else replies
    thought = shortened(asked, read, form, high, own.choice(cell.lengths))
    row = {
        "format": judge_traces.NAMES[form],
        "question": asked.text,
        "candidates": replies,
        "criteria": judge_traces.CRITERIA,
        "low": 1,
        "high": high,
        "reply": f"<think>{thought}</think>{traces.verdict(asked, read, form, high)}",
    }
    if cell.medium == "image":
        return row | {"image": shapes.draw(asked.scene, own)}
    return row | {"question": f"{asked.scene.in_words(own)}\n{asked.text}"}


def misread(rng: random.Random, asked: shapes.Question, replies: list[str], high: int) -> list[str]:
    """The answers as a careless judge reads them: one is taken for another with another score."""
    place = rng.randrange(len(replies))
    while True:
        other = shapes.candidate(rng, asked)
        if shapes.score(asked, other, high) != shapes.score(asked, replies[place], high):
            return [*replies[:place], other, *replies[place + 1 :]]


def shortened(asked: shapes.Question, replies: list[str], form: traces.Form, high: int, length: Length) -> str:
    """The thought. middle: the answers are scored without a comparison; short: the scene is not read aloud either."""
    if length == "long":
        return traces.reasoning(asked, replies, form, high)
    scores = [
        f"{letter} score {shapes.score(asked, one, high)}" for letter, one in zip(shapes.LETTERS, replies, strict=False)
    ]
    return " ".join([*[traces.derivation(asked)] * (length == "middle"), *scores]) + "."


def items(seed: int, count: int = 256) -> Iterator[dict[str, Any]]:
    """Pairs in words with one better answer, for GRPO; on no prompt of a trace."""
    for number in range(count):
        rng = random.Random(f"study {seed} item {number}")
        asked = shapes.question(rng, shapes.scene(rng), KINDS)
        replies = shapes.candidates(rng, asked, 2, single_best=True)
        scores = [shapes.score(asked, one) for one in replies]
        yield {"question": f"{asked.scene.in_words(rng)}\n{asked.text}", "candidates": replies, "scores": scores}
