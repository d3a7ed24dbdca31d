"""The judge's traces: the reasoning that leads from a question and its candidate answers to their true scores.

Tiny steps; each needs only the text before it, and the things compared are next to each other: a model this small
tells two neighbouring words apart at once, and words far apart only after very long training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from flexjudge_recipes.nano.world import LETTERS, NOISE, Question, Scene, best, parse, score, spoken

Form = Literal["score", "pair", "listwise", "choice"]
_OWN = ("a", "score", "best")  # words of a thought itself


def derivation(asked: Question) -> str:
    """The scene transcribed and the right answer worked out on the way. It does not depend on any candidate.

    Counting and looking compare every place with the question and write the answer so far, so that the last one is
    the answer: "top-left red circle red blue no circle circle yes no".
    """
    steps: list[str] = []
    for index, (place, cell) in enumerate(zip(asked.scene.world.places, asked.scene.cells, strict=True)):
        steps += [place, cell]
        if asked.kind in ("count", "exists"):
            so_far = Question(_first(asked.scene, index + 1), asked.kind, asked.subject)
            steps += [*_compared(cell, asked), so_far.truth]
    end = {"what": f" So {asked.subject} {asked.truth}.", "describe": ""}.get(asked.kind, f" So {asked.truth}.")
    return " ".join(steps) + "." + end


def _first(of: Scene, count: int) -> Scene:
    """The scene with nothing after its first `count` places."""
    cells = (*of.cells[:count], *[of.world.nothing] * (4 - count))
    return Scene((cells[0], cells[1], cells[2], cells[3]), of.world)


def _compared(cell: str, asked: Question) -> list[str]:
    """The word of the cell beside the one asked for (or both words), and whether they are the same."""
    world = asked.scene.world
    if cell == world.nothing or asked.subject == world.thing:
        return []
    first, second = cell.split()
    same = [(first if word in world.firsts else second, word) for word in asked.subject.split()]
    return [f"{found} {word} {_yes(found == word)}" for found, word in same]


def reasoning(asked: Question, replies: Sequence[str], form: Form, high: int = 10, names_odd: bool = False) -> str:
    """The thought of a judge: the derivation, then each candidate checked against it, lettered from A.

    With `names_odd` it has the word at which an answer leaves the asked form: to write the next word of an answer is
    what the judge does all the time, so it reads on to the end. The second training has it.
    """
    steps = [derivation(asked)]
    for index, reply in enumerate(replies):
        letter = LETTERS[index]
        steps.append(f" {letter} {_check(asked, reply, letter, names_odd)} score {score(asked, reply, high)}")
        if form == "choice":
            steps.append(f" best {LETTERS[best(asked, replies[: index + 1])]}")
    return "".join(steps) + "."


def quotes(rng: random.Random, asked: Question, replies: Sequence[str]) -> str:
    """Answers of the asked form in their own words, each after its letter; nothing is compared or judged.

    A description is quoted place by place, in a random order: "B bottom-left red circle B top-right nothing".
    """
    said = []
    for letter, reply in zip(LETTERS, replies, strict=False):
        parts, odd = spoken(asked, reply)
        for place, words in rng.sample(parts, len(parts)) if odd is None else ():
            said.append(" ".join(["", letter, *[place] * bool(place), *words]))
    return "".join(said)


def verdict(asked: Question, replies: Sequence[str], form: Form, high: int = 10) -> str:
    """The answer tags that follow the thought."""
    if form == "choice":
        return f"<answer>{LETTERS[best(asked, replies)]}</answer>"
    return "".join(f"<answer>{score(asked, reply, high)}</answer>" for reply in replies)


def _check(asked: Question, reply: str, letter: str, names_odd: bool) -> str:
    """Every word of the answer, the true word beside it, whether they are the same: "red blue no circle circle yes".

    In a description the letter stands before every place, so that the answer to look at is near, and after it how
    many were right so far. Where an answer leaves the asked form, "unclear" ends it.
    """
    parts, odd = spoken(asked, reply)
    world, steps = asked.scene.world, list[str]()
    hits = 0
    for (place, words), true in zip(parts, parse(asked, asked.truth) or (), strict=False):
        right = [true.split()[min(index, len(true.split()) - 1)] for index in range(len(words))]
        same = [_same(said, other) for said, other in zip(words, right, strict=True)]
        steps += [*[letter] * bool(steps), place] if place else []
        for three in zip(words, right, same, strict=True):
            steps += three
        if place and (words == [world.nothing] or len(words) == 2):
            hits += set(same) == {"yes"}
            steps.append(str(hits))
    if odd is None:
        return " ".join(steps)
    known = {*world.words, *NOISE, *world.vocabulary("count")[0]}.difference(_OWN)
    return " ".join([*steps, *[odd] * (names_odd and odd in known), "unclear"])


def _same(said: str, true: str) -> str:
    """Of numbers, "near" if they differ by one."""
    return "near" if said.isdigit() and abs(int(said) - int(true)) == 1 else _yes(said == true)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
