"""The world of coloured shapes: its scenes as images and videos, and rows for trainers.

A scene is a 2 x 2 grid of coloured shapes. It can be drawn as an image (56 x 56, a cell is one merged patch of a
Qwen2.5-VL), as a short video, or described in words. What is asked about it, and the score of any answer, is in
`world.py`; these names are its own as well as this module's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flexjudge_recipes.nano.world import KINDS as KINDS
from flexjudge_recipes.nano.world import LETTERS as LETTERS
from flexjudge_recipes.nano.world import SHAPES as WORLD
from flexjudge_recipes.nano.world import Kind as Kind
from flexjudge_recipes.nano.world import Question as Question
from flexjudge_recipes.nano.world import Scene as Scene
from flexjudge_recipes.nano.world import best as best
from flexjudge_recipes.nano.world import candidate as candidate
from flexjudge_recipes.nano.world import candidates as candidates
from flexjudge_recipes.nano.world import is_correct as is_correct
from flexjudge_recipes.nano.world import judged as judged
from flexjudge_recipes.nano.world import parse as parse
from flexjudge_recipes.nano.world import question as question
from flexjudge_recipes.nano.world import run_on as run_on
from flexjudge_recipes.nano.world import score as score
from flexjudge_recipes.nano.world import spoken as spoken

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS, SHAPES, PLACES, NOTHING = WORLD.firsts, WORLD.seconds, WORLD.places, WORLD.nothing
CELL = 28

_RGB = {
    "red": (215, 45, 45),
    "green": (45, 170, 65),
    "blue": (50, 85, 220),
    "yellow": (235, 210, 50),
    "purple": (150, 60, 190),
    "white": (240, 240, 240),
}
_FRAME = (150, 150, 150)
_STAR = ((0, -10), (3, -3), (10, -3), (4, 2), (6, 9), (0, 5), (-6, 9), (-4, 2), (-10, -3), (-3, -3))


def example(seed: int) -> tuple[Image, str]:
    """An image, and what is at its top left."""
    rng = random.Random(seed)
    shown = scene(rng, held_out=True)
    return draw(shown, rng), shown.cells[0]


def scene(rng: random.Random, held_out: bool = False) -> Scene:
    """A random scene from one side of the split; a cell is empty one time in four."""
    return WORLD.scene(rng, held_out)


def draw(of: Scene, rng: random.Random) -> Image:
    """A picture of the scene: place, size and shade of every shape vary a little, and so does the ground."""
    return clip(of, rng, frames=1)[0]


def clip(of: Scene, rng: random.Random, frames: int = 4) -> list[Image]:
    """A clip of the scene in which the shapes drift by a pixel or two."""
    ground = tuple(rng.randint(8, 40) for _ in range(3))
    looks = [_Look.drawn(rng) for _ in PLACES]
    images = []
    for _ in range(frames):
        images.append(_frame(of, looks, ground))
        looks = [look.drifted(rng) for look in looks]
    return images


@dataclass(frozen=True)
class _Look:
    """Where in its cell a shape stands, how large it is and how bright."""

    x: float
    y: float
    size: float
    shade: float

    @classmethod
    def drawn(cls, rng: random.Random) -> _Look:
        return cls(rng.uniform(-3, 3), rng.uniform(-3, 3), rng.uniform(7.5, 10), rng.uniform(0.85, 1.06))

    def drifted(self, rng: random.Random) -> _Look:
        x, y = (max(-3.0, min(3.0, v + rng.uniform(-1, 1))) for v in (self.x, self.y))
        return _Look(x, y, self.size, self.shade)


def _frame(of: Scene, looks: Sequence[_Look], ground: tuple[int, ...]) -> Image:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (2 * CELL, 2 * CELL), ground)
    pen = ImageDraw.Draw(image)
    # The frame tells every cell on which side of the picture it lies; the vision tower itself sees only distances.
    pen.rectangle((0, 0, 2 * CELL - 1, 2 * CELL - 1), outline=_FRAME, width=2)
    for index, (cell, look) in enumerate(zip(of.cells, looks, strict=True)):
        if cell != NOTHING:
            middle = (index % 2 * CELL + CELL / 2 + look.x, index // 2 * CELL + CELL / 2 + look.y)
            _shape(pen, cell, look, middle)
    return image


def _shape(pen: object, cell: str, look: _Look, middle: tuple[float, float]) -> None:
    colour, shape = cell.split()
    fill = tuple(min(255, int(value * look.shade)) for value in _RGB[colour])
    (x, y), r = middle, look.size
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)  # type: ignore[attr-defined]
    elif shape == "square":
        pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=fill)  # type: ignore[attr-defined]
    else:
        corners = _STAR if shape == "star" else ((0, -10), (10, 9), (-10, 9))
        pen.polygon([(x + u * r / 10, y + v * r / 10) for u, v in corners], fill=fill)  # type: ignore[attr-defined]


# Rows for trainers.


def rows(
    seed: int, count: int, held_out: bool = False, kinds: Sequence[Kind] = ("what", "count", "exists")
) -> Iterator[dict[str, object]]:
    """`count` picture questions: {"image", "question", "truth", "asked"}, where `asked` goes to `is_correct`."""
    rng = random.Random(seed)
    for _ in range(count):
        asked = question(rng, scene(rng, held_out), kinds)
        yield {"image": draw(asked.scene, rng), "question": asked.text, "truth": asked.truth, "asked": asked}
