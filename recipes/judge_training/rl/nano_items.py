"""The hard task of the CPU run, the old task that it must not unlearn, and what a judge gets right of both.

    hard    the full description of an image, and the same with one planted fault: of four places one is wrong
    old     the choice of the best of two to four short answers, which the embedded judge already makes

The embedded judge was taught such descriptions in words only, few of them, and none that differ so little. Measured
images are held out: no training ever drew one.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from flexjudge_recipes.judge_training.rl.items import Item
from flexjudge_recipes.judge_training.rl.rewards import best, picked
from flexjudge_recipes.nano import shapes

from transformers import PrinterCallback, TrainerCallback

from flexjudge_reward import Example, Format, Judge, Media, Sampling, TransformersEngine, Verdict
from flexjudge_reward.nano import path

Task = Literal["hard", "old"]
LETTERS = shapes.LETTERS
OLD: tuple[shapes.Kind, ...] = ("what", "count", "exists")


def items(task: Task, count: int, seed: str, held_out: bool = False, media: bool = True) -> list[Item]:
    """`count` items, the best candidate in any place; without `media` the scene is in words."""
    rng = random.Random(f"{task} {seed}")
    made = []
    for _ in range(count):
        scene = shapes.scene(rng, held_out)
        asked = shapes.Question(scene, "describe") if task == "hard" else shapes.question(rng, scene, OLD)
        if task == "hard":
            replies = rng.sample([asked.truth, faulty(rng, scene)], 2)
        else:
            replies = shapes.candidates(rng, asked, rng.choice((2, 3, 4, 4)), single_best=True, junk=0.0)
        shown = Media.image(shapes.draw(scene, rng)) if media else f"{scene.in_words(rng)}\n"
        scores = tuple(float(shapes.score(asked, reply)) for reply in replies)
        made.append(Item(Example([shown, asked.text], replies), scores, task))
    return made


def faulty(rng: random.Random, scene: shapes.Scene) -> str:
    """The scene in words with another content at one place."""
    while True:
        cells, other = list(scene.cells), shapes.scene(rng).cells
        place = rng.randrange(4)
        if scene.cells[place] != shapes.NOTHING and other[place] != shapes.NOTHING and rng.random() < 0.6:
            words = [scene.cells[place].split(), other[place].split()]  # half of it changed
            half = rng.randrange(2)
            cells[place] = " ".join((words[half][0], words[1 - half][1]))
        else:
            cells[place] = other[place]
        if tuple(cells) != scene.cells:
            return shapes.Scene((cells[0], cells[1], cells[2], cells[3])).in_words()


@dataclass(frozen=True)
class Score:
    """What a judge does on one task: all values but `count` are shares."""

    right: float
    formed: float
    by_letter: dict[str, float]
    """Right answers by the letter of the best candidate."""
    said: dict[str, float]
    """How often each letter is the verdict; a tie is none."""
    count: int

    @classmethod
    def of(cls, chosen: list[Item], verdicts: list[Verdict]) -> Score:
        gold = [LETTERS[best(item.scores)] for item in chosen]
        said = [None if (place := _picked(one)) is None else LETTERS[place] for one in verdicts]
        hits, wanted, used = Counter(g for g, s in zip(gold, said, strict=True) if g == s), Counter(gold), Counter(said)
        return cls(
            sum(hits.values()) / len(gold),
            sum(verdict.scores is not None for verdict in verdicts) / len(gold),
            {letter: round(hits[letter] / count, 4) for letter, count in sorted(wanted.items())},
            {letter: round(used[letter] / len(gold), 4) for letter in sorted(set(wanted) | set(filter(None, used)))},
            len(gold),
        )


def _picked(verdict: Verdict) -> int | None:
    return None if verdict.scores is None else picked(verdict.scores)


def measured(model: str | Path, format: Format, count: int, limit: int) -> dict[str, Score]:
    """The judge in a folder on held-out items of both tasks, greedy: always the same ones."""
    # The second draw: the rate and the number of steps in nano.yaml were chosen on items of the first.
    chosen = {task: items(task, count, "held out 2", held_out=True) for task in get_args(Task)}
    with TransformersEngine(str(model), dtype="float32", batch_size=256) as engine:
        judge = Judge(format, engine, Sampling(max_tokens=limit))
        return {task: Score.of(made, judge([item.example for item in made])) for task, made in chosen.items()}


class Measure(TrainerCallback):  # type: ignore[misc]
    """Both tasks before training, every so many steps, and at the end, through the engine that users judge with."""

    def __init__(self, format: Format, every: int, count: int, limit: int, folder: Path) -> None:
        """`folder` is where the weights are put to be measured."""
        self.format, self.every, self.count, self.limit, self.folder = format, every, count, limit, folder
        self.scores: dict[int, dict[str, Score]] = {}

    def attach(self, trainer: Any) -> None:
        """Replaces the trainer's own printing of thirty numbers a line."""
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for entry in state.log_history:
            if "held_out" in entry:
                self.scores[entry["step"]] = {task: Score(**score) for task, score in entry["held_out"].items()}
        if state.global_step == 0:
            self._measure(state, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self._measure(state, kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step not in self.scores:  # also where the run stopped by itself
            self._measure(state, kwargs["model"])

    def _measure(self, state: Any, model: Any) -> None:
        shutil.copytree(path("judge"), self.folder, dirs_exist_ok=True)
        model.save_pretrained(self.folder)
        found = measured(self.folder, self.format, self.count, self.limit)
        self.scores[state.global_step] = found
        state.log_history.append({"step": state.global_step, "held_out": {t: vars(s) for t, s in found.items()}})
        shown = "   ".join(f"{task} {score.right:.1%} {score.by_letter}" for task, score in found.items())
        print(f"step {state.global_step:3}   right, greedy, held out: {shown}", flush=True)
