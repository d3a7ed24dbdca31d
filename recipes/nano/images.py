"""The task of `diffusion_dpo` in miniature: prompts for images of one coloured shape, their judging, and the truth.

A prompt such as "red star top-left" describes one shape at one place of a 32 x 32 image. The embedded judge knows
questions and answers only, so it is asked "What is top-left?" about the image and scores the answer "red star". The
truth is measured on the pixels, by colour and outline; no judge sees it. The models are in `image_generator.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import dataclass
from functools import cache

from flexjudge_recipes.nano import shapes
from flexjudge_recipes.nano.world import SHAPES, SOUNDS

import numpy as np
from PIL import Image

from flexjudge_reward import Example, Pointwise, Prompt

SIZE = 32  # pixels; the judge reads such an image as well as one of 56
_LOOK = 3  # the seed of the one way in which a shape is drawn: so small a model would blur several

# ---------------------------------------------------------------------------------------------------------- prompts


@dataclass(frozen=True)
class Spec:
    """What a prompt describes."""

    colour: str
    shape: str
    place: str

    @classmethod
    def of(cls, prompt: str) -> Spec:
        """The spec of a prompt of this world."""
        colour, shape, place = prompt.split()
        return cls(colour, shape, place)

    @classmethod
    def sample(cls, rng: random.Random) -> Spec:
        """A random spec."""
        return cls(rng.choice(shapes.COLOURS), rng.choice(shapes.SHAPES), rng.choice(shapes.PLACES))

    def __str__(self) -> str:
        """The prompt."""
        return f"{self.colour} {self.shape} {self.place}"

    @property
    def held_out(self) -> bool:
        """Whether the prompt is kept for measuring (26 of 96)."""
        return hashlib.sha256(str(self).encode()).digest()[0] < 64

    def image(self) -> Image.Image:
        """The correct image."""
        cells = [f"{self.colour} {self.shape}" if place == self.place else shapes.NOTHING for place in shapes.PLACES]
        return draw(shapes.Scene((cells[0], cells[1], cells[2], cells[3])))


def draw(scene: shapes.Scene) -> Image.Image:
    """The image of a scene; the same scene is always drawn in the same way."""
    return shapes.draw(scene, random.Random(_LOOK)).resize((SIZE, SIZE), Image.Resampling.BOX)


def prompts(seed: int, count: int, held_out: bool = False) -> list[str]:
    """`count` prompts from one side of the split, each about equally often.

    Held-out prompts are held out of the preference training; the pretrained model has seen images of every prompt.
    """
    rng = random.Random(f"wishes {seed}")
    every = [Spec(*words) for words in itertools.product(shapes.COLOURS, shapes.SHAPES, shapes.PLACES)]
    side = [str(spec) for spec in every if spec.held_out == held_out]
    sampled: list[str] = []
    while len(sampled) < count:
        sampled += rng.sample(side, len(side))
    return sampled[:count]


class PromptAsAnswer(Pointwise):
    """Asks what the image, or the recording, has at the place that the prompt names; the rest is the answer to score.

    Anything but a prompt of these worlds and one image or recording is judged as any other question.
    """

    def render(self, example: Example) -> list[Prompt]:
        """The question about the image, with one candidate."""
        words = str(example.question[0]).split()
        if len(words) == 3 and words[2] in (*SHAPES.places, *SOUNDS.places):
            (shown,) = example.candidates[0]
            example = Example([shown, f"What is {words[2]}?"], [f"{words[0]} {words[1]}"])
        return super().render(example)


# ------------------------------------------------------------------------------------------------------------ truth


@dataclass(frozen=True)
class Truth:
    """What an image shows at the place that its prompt names, measured on the pixels."""

    score: int
    """10 for colour and shape, 5 for one of them, else 1; the scale of the judge."""
    shape_iou: float
    """Intersection over union of the outline and that of the nearest shape, 0 to 1."""
    background_error: float
    """Mean distance of the other places' pixels from their common colour, 0 to 255: noise, or further shapes."""


def truth(image: Image.Image, prompt: str) -> Truth:
    """The truth about an image."""
    spec, cells = Spec.of(prompt), _cells(image)
    others = np.concatenate([cell.reshape(-1, 3) for place, cell in cells.items() if place != spec.place])
    background = np.median(others, axis=0)
    colour, shape, iou = _recognise(cells[spec.place], background)
    score = (1, 5, 10)[(colour == spec.colour) + (shape == spec.shape)]
    return Truth(score, iou, float(np.abs(others - background).mean()))


def _cells(image: Image.Image) -> dict[str, np.ndarray]:
    """The pixels of each place, without the frame."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    near, far = slice(2, SIZE // 2), slice(SIZE // 2, SIZE - 2)
    return {place: pixels[(near, far)[i // 2], (near, far)[i % 2]] for i, place in enumerate(shapes.PLACES)}


def _recognise(cell: np.ndarray, background: np.ndarray) -> tuple[str, str, float]:
    """Colour, shape and the fit of the outline; two empty texts where there is nothing."""
    mask = _mask(cell, background)
    if mask.sum() < 12:
        return "", "", 0.0
    median = np.median(cell[mask], axis=0)
    colour = min(shapes.COLOURS, key=lambda name: float(np.abs(median - _colours()[name]).sum()))
    fits = {name: max(_iou(_outline(mask), known) for known in outlines) for name, outlines in _outlines().items()}
    shape = max(fits, key=lambda name: fits[name])
    return colour, shape, fits[shape]


def _mask(cell: np.ndarray, background: np.ndarray) -> np.ndarray:
    return np.abs(cell - background).max(-1) > 60


def _outline(mask: np.ndarray) -> np.ndarray:
    """The mask cut to its own bounds and scaled to 16 x 16."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(Image.fromarray(cut).convert("L").resize((16, 16), Image.Resampling.BILINEAR)) > 127


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@cache
def _outlines() -> dict[str, list[np.ndarray]]:
    """Every shape at every place."""
    return {shape: [_outline(mask) for mask, _ in _correct_cells("red", shape)] for shape in shapes.SHAPES}


@cache
def _colours() -> dict[str, np.ndarray]:
    return {name: np.mean([mean for _, mean in _correct_cells(name, "square")], axis=0) for name in shapes.COLOURS}


def _correct_cells(colour: str, shape: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mask and colour of correct images, at every place."""
    measured = []
    for place in shapes.PLACES:
        cells = _cells(Spec(colour, shape, place).image())
        cell = cells.pop(place)
        mask = _mask(cell, np.median(np.concatenate([*cells.values()]).reshape(-1, 3), axis=0))
        measured.append((mask, np.median(cell[mask], axis=0)))
    return measured
