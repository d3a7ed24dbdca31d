"""What the embedded models are trained on, as token ids: pages to read (`pages.py`) and judgements (`judge_traces.py`).

A stage says which media and which modes are in it, and which weights learn. Every batch follows from a seed and its
number. A judgement is rendered as an engine renders it, and its scene is in words only.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from flexjudge_recipes.judge_training.nano_model import to_patches
from flexjudge_recipes.judge_training.sft.data import Renderer
from flexjudge_recipes.nano import judge_traces, pages, shapes, sounds
from flexjudge_recipes.nano.world import KINDS, SHAPES, SOUNDS, Question, World, judged, question

import numpy as np
from tokenizers import Tokenizer

MEDIA: dict[str, World] = {"image": SHAPES, "video": SHAPES, "sound": SOUNDS, "text": SHAPES, "text of sounds": SOUNDS}
"""Every way to show a scene, and the world of it."""
_TOKENS = 4 * sounds.PLACE // 640  # of a recording: 25 a second
_POOL = 16  # batches that are ordered by length together


@dataclass(frozen=True)
class Stage:
    """One part of a training."""

    name: str
    steps: int
    size: int
    """Sequences of a step."""
    peak: float
    """The highest learning rate."""
    media: dict[str, float]
    """How often each is in a page."""
    modes: tuple[float, float, float, float] = (0.2, 0.25, 0.2, 0.35)
    """How often each of `pages.MODES` is."""
    judgements: float = 0.0
    """Their share; the rest are pages."""
    frozen: tuple[str, ...] = field(default=())
    """Beginnings of the names of weights that do not learn."""


@dataclass
class Sample:
    """Token ids, where the completion starts, what is shown if anything, and a label for the report."""

    ids: list[int]
    start: int
    label: str
    patches: np.ndarray | None = None
    seconds: int = 0
    recording: np.ndarray | None = None


class Maker:
    """Makes samples of scenes and questions."""

    def __init__(self, tokenizer: Tokenizer, renderer: Renderer | None = None) -> None:
        """`renderer` is for judgements; without it there are pages only."""
        self.tokenizer, self.renderer = tokenizer, renderer
        self.vision = {tokenizer.token_to_id(token) for token in ("<|image_pad|>", "<|video_pad|>")}
        self.audio = tokenizer.token_to_id("<|AUDIO|>")

    def page(self, rng: random.Random, stage: Stage, held_out: bool = False, what: str = "") -> Sample:
        """Transcribing and answering (`recipes/nano/pages.py`); no scores, no comparisons. `what` is "MEDIUM MODE"."""
        medium, _, given = what.rpartition(" ")
        medium = medium or rng.choices(tuple(stage.media), tuple(stage.media.values()))[0]
        mode: Any = given or rng.choices(pages.MODES, stage.modes)[0]
        kinds = (*KINDS, "describe") if mode == "quote" else judged(1) if stage.judgements else KINDS
        asked = question(rng, MEDIA[medium].scene(rng, held_out), kinds)
        system, user, reply = pages.page(rng, asked, mode)
        reply += "<|im_end|>" if mode in ("direct", "think") else ""
        shown, sample = self.shown(rng, asked, medium)
        chat = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
        chat += f"<|im_start|>user\n{user.replace(pages.SCENE, shown)}<|im_end|>\n<|im_start|>assistant\n"
        return self.encoded(sample, chat, reply, f"{medium} {mode}")

    def shown(self, rng: random.Random, asked: Question, medium: str) -> tuple[str, Sample]:
        """The scene as a prompt shows it, and a sample without tokens that holds its pixels or its recording."""
        empty = Sample([], 0, "")
        if medium.startswith("text"):
            return asked.scene.in_words(rng) + "\n", empty
        if medium == "sound":
            empty.recording = sounds.play(asked.scene, rng)
            return f"<|audio_bos|>{'<|AUDIO|>' * _TOKENS}<|audio_eos|>", empty
        frames = shapes.clip(asked.scene, rng, 1 if medium == "image" else 4)
        empty.patches, empty.seconds = to_patches(frames), rng.choice((0, 1, 2))
        pad = "<|image_pad|>" if medium == "image" else "<|video_pad|>"
        return f"<|vision_start|>{pad * 4 * len(empty.patches)}<|vision_end|>", empty

    def judgement(self, rng: random.Random, junk: float, held_out: bool = False, world: World | None = None) -> Sample:
        """A judgement of answers about a scene in words."""
        if self.renderer is None:
            raise ValueError("a maker of judgements needs a renderer")
        world = world or rng.choice((SHAPES, SOUNDS))
        row = judge_traces.trace(rng, held_out, junk, world)
        text = self.renderer.row(row)
        label = f"judged {world.thing}s {row['format']}"
        return self.encoded(Sample([], 0, ""), text["prompt"], text["completion"], label)

    def encoded(self, sample: Sample, prompt: str, reply: str, label: str) -> Sample:
        """The sample with its tokens."""
        ids = self.tokenizer.encode(prompt).ids
        sample.ids, sample.start, sample.label = ids + self.tokenizer.encode(reply).ids, len(ids), label
        return sample

    def positions(self, sample: Sample) -> np.ndarray:
        """Rotary positions (3, length): an image is at one time, its cells spread over height and width.

        Text after a video continues where its height ends in a Qwen2.5-VL, and in an Omni after all of its positions.
        """
        result = np.empty((3, len(sample.ids)), dtype=np.int64)
        where = [i for i, token in enumerate(sample.ids) if token in self.vision]
        first, cells = (where[0], len(where)) if where else (len(sample.ids), 0)
        result[:, :first] = np.arange(first)
        index = np.arange(cells)
        spread = np.stack([index // 4 * sample.seconds, index // 2 % 2, index % 2])
        result[:, first : first + cells] = first + spread
        taken = 0 if not cells else 2 if self.audio is None else int(spread.max()) + 1
        result[:, first + cells :] = first + taken + np.arange(len(sample.ids) - first - cells)
        return result


def batches(make: Maker, stage: Stage, seed: int, first: int) -> Iterator[list[Sample]]:
    """Endless batches of about equal length, from batch `first` on; the n-th is the same whenever it is made."""
    for number in itertools.count(first // _POOL):
        rng = random.Random(f"{seed} {stage.name} {number}")
        junk = judge_traces.JUNK[number * _POOL >= 0.75 * stage.steps]
        samples = [
            make.judgement(rng, junk) if stage.judgements and rng.random() < stage.judgements else make.page(rng, stage)
            for _ in range(_POOL * stage.size)
        ]
        samples.sort(key=lambda sample: len(sample.ids))
        groups = [samples[i * stage.size : (i + 1) * stage.size] for i in range(_POOL)]
        rng.shuffle(groups)
        yield from groups[first % _POOL if number == first // _POOL else 0 :]
