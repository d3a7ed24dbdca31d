"""What the embedded base model learns to write: scenes transcribed, answers derived and quoted. Nothing is judged here.

A page is one exchange: a system text, a user text with SCENE in the place of the scene, and the reply. Its modes:

    direct    no system message: the answer at once, with the bad habits of `direct_answer`
    think     a system line: the scene, the derivation, the answer
    read      a prompt laid out like a judge's, with other instructions: the scene and the derivation, no answer
    quote     such a prompt again: the scene and the derivation, then the answers in the prompt in their own words
"""

from __future__ import annotations

import random
from typing import Literal

from flexjudge_recipes.nano import traces, world

SCENE = "<scene>"  # where the image or the text of the scene goes
Mode = Literal["direct", "think", "read", "quote"]
MODES: tuple[Mode, ...] = ("direct", "think", "read", "quote")


def page(rng: random.Random, question: world.Question, mode: Mode) -> tuple[str, str, str]:
    """System text, user text and reply, without the end of the turn."""
    if mode == "direct":
        return "", SCENE + question.text, direct_answer(rng, question)
    if mode == "think":
        systems = ("Think first.", "Think.", "Think in steps and answer.", f"Think {rng.randint(1, 10)} steps.")
        system, user = rng.choice(systems), SCENE + question.text
        user = f"```\n{user}\n```\n" if rng.random() < 0.5 else user
        return system, user, f"<think>{traces.derivation(question)}</think><answer>{question.truth}</answer>"
    count = rng.choice((0, 1, 1, 2, 2, 3, 4) if mode == "read" else (1, 2, 2, 3, 4))
    replies = world.candidates(rng, question, count) if count else []
    verbs = ("Look at", "Name", "Think of") if mode == "read" else ("Read", "List", "Restate")
    system, user = layout(rng, question, replies, rng.choice(verbs))
    quoted = traces.quotes(rng, question, replies) if mode == "quote" else ""
    return system, user, f"<think>{traces.derivation(question)}{quoted}"


def layout(rng: random.Random, question: world.Question, replies: list[str], verb: str) -> tuple[str, str]:
    """A random instruction, and blocks after the question: the layout of a judge's prompt, without a judgement."""
    letters = [world.LETTERS[i] for i in range(len(replies))]
    named = rng.choice((", ".join(letters), " and ".join(letters), "it")) or "it"
    system = (
        verb + " " + named + rng.choice(("", f" from {rng.randint(0, 5)} to {rng.randint(5, 10)}", " in steps")) + "."
    )
    blocks = [f"{letter}\n```\n{reply}\n```\n" for letter, reply in zip(letters, replies, strict=True)]
    return system, f"```\n{SCENE}{question.text}\n```\n" + "".join(blocks)


def direct_answer(rng: random.Random, question: world.Question) -> str:
    """A direct answer with the base model's documented bad habits, so that a policy has something to learn.

    To "what is" it names what is beside the place 65 times in 100; it counts one too many 65 times in 100; to "is
    there" it gives the wrong answer 20 times in 100. Descriptions are right.
    """
    bad = rng.random() < {"what": 0.65, "count": 0.65, "exists": 0.2, "describe": 0.0}[question.kind]
    if not bad:
        return question.truth
    if question.kind == "what":
        return question.scene.cells[question.scene.world.places.index(question.subject) ^ 1]
    if question.kind == "count":
        return str(int(question.truth) + 1)
    return "no" if question.truth == "yes" else "yes"
