"""The four parts on a CPU: questions of the small world, and who plays the writer, describer, reasoner and editor.

The embedded judge reasons, from the scene in words, and the embedded base describes the image. Neither can follow an
instruction in prose, so each call is put in the words that they were trained with; writer and editor are programs.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from flexjudge_recipes.judge_training.mr_judge.synthesis import Engines
from flexjudge_recipes.judge_training.rl.nano_items import OLD
from flexjudge_recipes.nano import shapes

from flexjudge_reward import (
    Engine,
    EngineWrapper,
    Example,
    Generation,
    Media,
    Message,
    MultipleChoice,
    Prompt,
    Request,
    ScriptedEngine,
    TransformersEngine,
    Untrusted,
)
from flexjudge_reward.data.rows import Row
from flexjudge_reward.nano import path


def nano_rows(count: int, seed: int) -> Iterator[Row]:
    """Questions about images with their right answers."""
    rng = random.Random(f"mr_judge {seed}")
    for number in range(count):
        asked = shapes.question(rng, shapes.scene(rng), OLD)
        example = Example([Media.image(shapes.draw(asked.scene, rng)), asked.text], [asked.truth])
        yield Row(number, number, example, {})


def nano_engines() -> Engines:
    """Who plays which part."""
    describer = Reworded(TransformersEngine(str(path("base")), dtype="float32"), _as_question, "{}")
    reasoner = Reworded(TransformersEngine(str(path("judge")), dtype="float32"), _as_choice, "")
    return Engines(ScriptedEngine(_other_answer), describer, reasoner, ScriptedEngine(_unchanged))


class Reworded(EngineWrapper):
    """An engine that gets every call in other words, and whose reply goes into the result tags."""

    def __init__(self, engine: Engine, reword: object, result: str) -> None:
        super().__init__(engine)
        self.reword, self.result = reword, result

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        """As `Engine.complete`."""
        asked = [Request(self.reword(request.prompt), request.sampling) for request in requests]  # type: ignore[operator]
        replies = super().complete(asked)
        if not self.result:
            return replies
        return [Generation(f"<result>{one.text}</result>", one.finish_reason, failure=one.failure) for one in replies]


def _texts(prompt: Prompt) -> list[str]:
    return [part.text for message in prompt.messages for part in message.parts if isinstance(part, Untrusted)]


def _as_question(prompt: Prompt) -> Prompt:
    (image,) = prompt.media
    return Prompt((Message("user", (image, "Describe the picture.")),))


def _as_choice(prompt: Prompt) -> Prompt:
    description, question, *candidates = _texts(prompt)
    example = Example([f"{description}\n", question], candidates)
    return MultipleChoice(prompt_set="nano").render(example)[0]


def _other_answer(request: Request) -> str:
    """A wrong answer of the same kind, by the text of the right one; each fault of the row gives another."""
    _, answer = _texts(request.prompt)
    whole = "".join(part for message in request.prompt.messages for part in message.parts if isinstance(part, str))
    kinds = ("do not show", "leaves out", "one step", "a fact")  # as instructions/candidate.toml words them
    turn = next(index for index, words in enumerate(kinds) if words in whole)
    if answer.isdigit():
        others = [str(number) for number in range(6) if str(number) != answer]
    elif answer in ("yes", "no"):
        others = ["no" if answer == "yes" else "yes", "maybe", "1", "nothing"]
    else:
        words = answer.split()
        colours = [f"{colour} {words[-1]}" for colour in shapes.COLOURS if colour != words[0]]
        others = colours if len(words) > 1 else ["red circle", "blue star", "green square", "white star"]
    return f"<result>{others[turn % len(others)]}</result>"


def _unchanged(request: Request) -> str:
    if "You audit" in str(request.prompt.messages[0].parts[0]):
        return "<think>no word of a hint</think><answer>clean</answer>"
    (thought,) = _texts(request.prompt)
    return f"<result>{re.sub(r'</?result>', '', thought)}</result>"
