"""Judges known to be good, biased to the first place, noisy, or out of their world; and what doctor should say."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexjudge_reward import Judge, MajorityVote, Request, Sampling, ScriptedEngine
from flexjudge_reward.formats.builtin import FORMATS
from flexjudge_reward.offline.evaluate.benchmark import FOLDER
from flexjudge_reward.offline.evaluate.doctor import Diagnosis, doctor
from support.jsonl import write
from support.judging import candidates, grade, tags

JudgeOf = Callable[[str, int | None], Judge]


def labelled(count: int = 40, size: int = 3) -> list[dict[str, Any]]:
    """Rows whose candidates say how good they are, 1 to 10."""
    rng = random.Random(7)
    rows = []
    for number in range(count):
        worth = rng.sample(range(1, 11), size)
        rows.append(
            {"id": number, "question": f"q{number}", "candidates": [f"{w} x{number}" for w in worth], "label": worth}
        )
    return rows


def clipped(values: list[float]) -> str:
    return tags(*(min(10, max(1, round(value))) for value in values))


def worth(text: str) -> float:
    """The grade that an answer says; with another answer after it, nothing."""
    return grade(text) if len(text.split()) <= 2 else 1


def good(request: Request) -> str:
    return clipped([worth(text) for text in candidates(request)])


def hasty(request: Request) -> str:
    """Reads the beginning of an answer only."""
    return clipped([grade(text) for text in candidates(request)])


def biased(request: Request) -> str:
    """Three points more for the first of several."""
    values = [worth(text) for text in candidates(request)]
    return clipped([value + 3 * (len(values) > 1 and place == 0) for place, value in enumerate(values)])


def noisy(request: Request) -> str:
    """Right on average; the seed of the sampling decides how wrong it is."""
    texts = candidates(request)
    noise = random.Random(f"{request.sampling.seed} {texts}")
    return clipped([worth(text) + noise.gauss(0, 4) for text in texts])


def coin(request: Request) -> str:
    texts = candidates(request)
    chance = random.Random(f"{request.sampling.seed} {texts}")
    return tags(*(chance.randint(1, 10) for _ in texts))


def mute(request: Request) -> str:
    return "I would rather not say." if grade(candidates(request)[0]) % 4 == 0 else good(request)


def scripted(reply: Callable[[Request], str], votes: int = 1) -> JudgeOf:
    """The judge of each format, all with one engine."""
    engine = ScriptedEngine(reply)

    def made(format: str, budget: int | None) -> Judge:
        plain: Any = FORMATS[format]()
        sampling = Sampling(temperature=float(votes > 1), max_tokens=budget or 64)
        return Judge(MajorityVote(plain, votes) if votes > 1 else plain, engine, sampling)

    return made


@dataclass(frozen=True)
class Case:
    """A judge, the formats to compare, and what is right to say: the outcome and the settings that may be named."""

    judge: JudgeOf
    formats: tuple[str, ...]
    outcome: str
    named: tuple[str, ...]


CASES = {
    "good": Case(scripted(good), ("pointwise", "pairwise"), "go", ("pointwise", "pairwise")),
    "good, listwise": Case(scripted(good), ("listwise", "pairwise"), "go", ("listwise", "pairwise")),
    "position-biased": Case(
        scripted(biased), ("pointwise", "pairwise"), "go", ("pointwise", "pairwise + position swap")
    ),
    "position-biased, pairs only": Case(scripted(biased), ("pairwise",), "go", ("pairwise + position swap",)),
    "noisy": Case(scripted(noisy, 9), ("pointwise",), "go", ("pointwise + 9 votes",)),
    "noisy, pairs too": Case(
        scripted(noisy, 9), ("pointwise", "pairwise"), "go", ("pointwise + 9 votes", "pairwise + 9 votes")
    ),
    "a coin": Case(scripted(coin), ("pointwise", "pairwise"), "no-go", ()),
    "does not read to the end": Case(scripted(hasty), ("pointwise", "pairwise", "listwise"), "no-go", ()),
    "declines a quarter": Case(scripted(mute), ("pointwise", "pairwise"), "no-go", ()),
}


def is_right(case: Case, found: Diagnosis) -> bool:
    """Whether the outcome and the setting are among the right ones."""
    name = None if found.recommended is None else found.recommended.name.rpartition(" (")[0]
    return found.outcome == case.outcome and (name in case.named if case.named else name is None)


def examined(case: Case, folder: Path) -> Diagnosis:
    """What doctor says of a scripted judge."""
    return doctor(write(folder / "labelled.jsonl", labelled()), case.judge, formats=case.formats)


# ---------------------------------------------------------------- the embedded judge


def inside(count: int) -> list[dict[str, Any]]:
    """Labelled rows of the nano world, in words and as images, with a better answer each."""
    rows = [json.loads(line) for line in (FOLDER / "nano_world.jsonl").read_text().splitlines()]
    ranked = [row for row in rows if len(set(row["scores"])) > 1][:count]
    return [
        {
            "id": row["id"],
            "question": [{"image": row["image"]} if row["image"] else {"text": row["scene"]}, row["question"]],
            "candidates": row["answers"],
            "label": row["scores"],
        }
        for row in ranked
    ]


def outside(count: int) -> list[dict[str, Any]]:
    """Sums, which the embedded judge knows nothing of."""
    rng = random.Random(3)
    rows = []
    for number in range(count):
        one, other = rng.randint(2, 9), rng.randint(2, 9)
        answers = [str(one + other), str(one + other + rng.choice((-2, -1, 1, 2)))]
        right = rng.randint(0, 1)
        row = {"id": number, "question": f"What is {one} plus {other}?", "label": "AB"[right]}
        rows.append({**row, "candidates": answers[::-1] if right else answers})
    return rows


def nano() -> JudgeOf:
    """The embedded judge, loaded once."""
    first: list[Judge] = []

    def made(format: str, budget: int | None) -> Judge:
        built = Judge.load(model="nano", format=format, cache="off", max_tokens=budget)
        first.append(built)
        return Judge(built.format, first[0].engine, built.sampling)

    return made
