"""Training rows of the embedded judge: traces of judgements on scenes in text, and images that are only read aloud.

`rows` has them in the order of training: batches of about equal length, as padding costs time, and in the last quarter
more candidates that are only just malformed, because these are learned last. One row in five is an image to transcribe
on a page laid out like a judge's: without these the judge forgets how to see. No image is judged.

A seed decides everything. A row is the judgement's `shown` (format, question, candidates, scale), the `reply`, and for
a page its `prompt`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flexjudge_recipes.nano import pages, shapes, traces
from flexjudge_recipes.nano.world import SHAPES, World

from flexjudge_reward import (
    Example,
    Judge,
    Media,
    Message,
    Pairwise,
    Prompt,
    Rubric,
    Sampling,
    TransformersEngine,
)

CRITERIA = "Is the answer right?"
NAMES: dict[traces.Form, str] = {
    "score": "pointwise",
    "pair": "pairwise",
    "listwise": "listwise",
    "choice": "multiple_choice",
}
COUNTS: dict[traces.Form, tuple[int, ...]] = {  # candidates
    "score": (1,),
    "pair": (2,),
    "listwise": (2, 3, 4, 5, 6, 7, 8, 8),
    "choice": (2, 3, 4, 4),
}
JUNK = (0.1, 0.2)  # of the candidates, before and in the last quarter
RUN_ON, IN_CODE = 0.1, 0.5  # of the second training: candidates that run on, scenes in letters
POOL = 16  # batches that are ordered by length together


def rows(seed: int | str, steps: int, size: int, second: bool = False) -> Iterator[dict[str, Any]]:
    """`steps` batches of `size` rows, one after the other; each is `trace` or `page`.

    The rows of the second training have what a judge learns late: to read an answer to its end, and scenes that do not
    have the words of the right answer, as images have none.
    """
    for first in range(0, steps, POOL):
        rng = random.Random(f"{seed} {first}")
        junk = JUNK[first >= 0.75 * steps]
        made = [page(rng) if rng.random() < 0.2 else trace(rng, junk=junk, second=second) for _ in range(POOL * size)]
        made.sort(key=size_of)
        batches = [made[start : start + size] for start in range(0, len(made), size)]
        rng.shuffle(batches)
        yield from (row for batch in batches[: steps - first] for row in batch)


def trace(
    rng: random.Random,
    held_out: bool = False,
    junk: float = JUNK[0],
    world: World = SHAPES,
    second: bool = False,
) -> dict[str, Any]:
    """One judgement of a scene in words, as `flexjudge traces` writes it; or one of the second training."""
    form = rng.choices(tuple(COUNTS), (0.15, 0.3, 0.35, 0.2))[0]
    high = 5 if form != "choice" and rng.random() < 0.3 else 10
    count = rng.choice(COUNTS[form])
    question = shapes.question(rng, world.scene(rng, held_out), shapes.judged(count))
    replies = shapes.candidates(rng, question, count, form == "choice" and rng.random() < 0.9, junk)
    if second:
        replies = [shapes.run_on(rng, question, reply) if rng.random() < RUN_ON else reply for reply in replies]
    thought = traces.reasoning(question, replies, form, high, names_odd=second)
    scene = question.scene.in_code() if second and rng.random() < IN_CODE else question.scene.in_words(rng)
    return {
        "format": NAMES[form],
        "question": f"{scene}\n{question.text}",
        "candidates": replies,
        "criteria": CRITERIA,
        "low": 1,
        "high": high,
        "reply": f"<think>{thought}</think>{traces.verdict(question, replies, form, high)}",
    }


def page(rng: random.Random) -> dict[str, Any]:
    """An image to transcribe, on a page laid out like a judge's. The reply has no end: nothing is learned about it."""
    question = shapes.question(rng, shapes.scene(rng), shapes.judged(1))
    system, user, reply = pages.page(rng, question, "read")
    before, after = user.split(pages.SCENE)
    image = Media.image(shapes.draw(question.scene, rng))
    return {"prompt": Prompt((Message("system", (system,)), Message("user", (before, image, after)))), "reply": reply}


def size_of(row: dict[str, Any]) -> int:
    """About the number of characters."""
    return len(row["reply"]) + len(row.get("question", "")) + sum(map(len, row.get("candidates", ())))


def measured(judge: Path, count: int) -> dict[str, float]:
    """The share of held-out pairs whose scores a judge both gets right, in words and as images; greedy."""
    shares = {}
    with TransformersEngine(str(judge), dtype="float32") as engine:
        ask = Judge(Pairwise(Rubric(CRITERIA), "nano"), engine, Sampling(max_tokens=160))
        for medium in ("words", "images"):
            rng = random.Random(f"measured {medium}")
            asked = [shapes.question(rng, shapes.scene(rng, True), shapes.judged(2)) for _ in range(count)]
            replies = [shapes.candidates(rng, question, 2) for question in asked]
            scenes = [q.scene.in_words(rng) + "\n" if medium == "words" else _drawn(q, rng) for q in asked]
            examples = [Example((s, q.text), r) for s, q, r in zip(scenes, asked, replies, strict=True)]
            truths = [tuple(shapes.score(q, one) for one in r) for q, r in zip(asked, replies, strict=True)]
            right = sum(verdict.scores == truth for verdict, truth in zip(ask(examples), truths, strict=True))
            shares[medium] = right / count
    return shares


def _drawn(question: shapes.Question, rng: random.Random) -> Media:
    return Media.image(shapes.draw(question.scene, rng))


def write_teacher_file(file: Path, count: int, damaged: float = 0.1) -> None:
    """Pairs of answers with their true scores in the form of JudgeLM-100K; of some the scores are wrong or missing."""
    rng = random.Random("teacher file")
    lines = []
    for number in range(count):
        question = shapes.question(rng, shapes.scene(rng), shapes.judged(2))
        replies = shapes.candidates(rng, question, 2)
        scores: list[int] | None = [shapes.score(question, one) for one in replies]
        if rng.random() < damaged:
            scores = rng.choice((None, [-1, -1], [11 - score for score in scores or ()]))
        row = {"question_id": number, "question_body": f"{question.scene.in_words(rng)}\n{question.text}"}
        row |= {f"answer{index + 1}_body": reply for index, reply in enumerate(replies)}
        lines.append(json.dumps(row | ({} if scores is None else {"score": scores})) + "\n")
    file.write_text("".join(lines), "utf-8")
