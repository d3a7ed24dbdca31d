"""The judge's traces: the reasoning that leads from a question and its candidate answers to their true scores.

Tiny steps, each of which needs only what stands before it, and what is compared stands side by side: a model this small
tells two neighbouring words apart at once, and words far apart only after very long training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from flexjudge_reward.nano.world import (
    COLOURS,
    LETTERS,
    NOTHING,
    PLACES,
    VOCABULARY,
    Question,
    Scene,
    best,
    parse,
    score,
    words_of,
)

Form = Literal["score", "pair", "listwise", "choice"]


def derivation(asked: Question) -> str:
    """The scene transcribed and the right answer worked out on the way. It does not depend on any candidate.

    Counting and looking compare every place with what is asked for and write the answer so far, so that the last one is
    the answer: "top-left red circle red blue no circle circle yes no".
    """
    steps: list[str] = []
    for index, (place, cell) in enumerate(zip(PLACES, asked.scene.cells, strict=True)):
        steps += [place, cell]
        if asked.kind in ("count", "exists"):
            so_far = Question(_first(asked.scene, index + 1), asked.kind, asked.subject)
            steps += [*_compared(cell, asked.subject), so_far.truth]
    end = {"what": f" So {asked.subject} {asked.truth}.", "describe": ""}.get(asked.kind, f" So {asked.truth}.")
    return " ".join(steps) + "." + end


def _first(of: Scene, count: int) -> Scene:
    """The scene with nothing after its first `count` places."""
    cells = (*of.cells[:count], *[NOTHING] * (4 - count))
    return Scene((cells[0], cells[1], cells[2], cells[3]))


def _compared(cell: str, subject: str) -> list[str]:
    """The colour or shape of the cell (or both) beside the one asked for, and whether they are the same."""
    if cell == NOTHING or subject == "shape":
        return []
    colour, shape = cell.split()
    return [f"{colour if word in COLOURS else shape} {word} {_yes(word in cell)}" for word in subject.split()]


def reasoning(asked: Question, replies: Sequence[str], form: Form, high: int = 10) -> str:
    """The thought of a judge: the derivation, then each candidate checked against it, lettered from A."""
    steps = [derivation(asked)]
    for index, reply in enumerate(replies):
        steps.append(f" {LETTERS[index]} {_check(asked, reply)} score {score(asked, reply, high)}")
        if form == "choice":
            steps.append(f" best {LETTERS[best(asked, replies[: index + 1])]}")
    return "".join(steps) + "."


def verdict(asked: Question, replies: Sequence[str], form: Form, high: int = 10) -> str:
    """The answer tags that follow the thought."""
    if form == "choice":
        return f"<answer>{LETTERS[best(asked, replies)]}</answer>"
    return "".join(f"<answer>{score(asked, reply, high)}</answer>" for reply in replies)


def _check(asked: Question, reply: str) -> str:
    """Every word of the answer, the true word beside it, whether they are the same: "red blue no circle circle yes".

    A description says after every place how many were right; where an answer leaves the asked form, "unclear" ends it.
    """
    words, hits = words_of(asked, reply), 0
    steps: list[str] = []
    places = PLACES if asked.kind == "describe" else ("",)
    for place, true in zip(places, parse(asked, asked.truth) or (), strict=True):
        if place:
            if words[:1] != [place]:
                return " ".join([*steps, "unclear"])
            steps.append(words.pop(0))
        same = []
        for index, known in enumerate(VOCABULARY[asked.kind]):
            if not words or words[0] not in known:
                return " ".join([*steps, "unclear"])
            right = true.split()[min(index, len(true.split()) - 1)]
            same.append(_same(words[0], right))
            steps += [words[0], right, same[-1]]
            if words.pop(0) == NOTHING:
                break
        hits += set(same) == {"yes"}
        steps += [str(hits)] if place else []
    return " ".join([*steps, "unclear"] if words else steps)


def _same(said: str, true: str) -> str:
    """Of numbers, "near" if they differ by one."""
    return "near" if said.isdigit() and abs(int(said) - int(true)) == 1 else _yes(said == true)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
