"""The small world of the embedded judge: images of coloured shapes, questions, answers and their true scores.

A scene is a 2 x 2 grid of coloured shapes. It can be drawn as an image (56 x 56, a cell is one merged patch of a
Qwen2.5-VL), as a short video, or described in words; image and words have the same place in a question, so one can
replace the other. Everything is known: the right answer, the score any answer deserves, and the reasoning that leads
to the score (`traces.py`). Everything random comes from the generator the caller passes, so a seed fixes all of it.

Scores on the scale 1-10 (on 1-5: half of it, rounded up):

    what is at a place     colour and shape right 10, one of the two 5, else 1
    how many               exact 10, off by one 5, else 1
    is there               right 10, wrong 1
    describe               4 places right 10, three 8, two 5, one 3, none 1
    any question           a malformed answer: 1

Scenes are split by a hash: a held-out scene is never drawn or described in training.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

Kind = Literal["what", "count", "exists", "describe"]

COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle", "star")
PLACES = ("top-left", "top-right", "bottom-left", "bottom-right")
KINDS: tuple[Kind, ...] = ("what", "count", "exists", "describe")
CELL = 28
NOTHING = "nothing"
LETTERS = "ABCDEFGH"

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
_CONTENT = ((*COLOURS, NOTHING), SHAPES)
VOCABULARY: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "what": _CONTENT,
    "count": (("0", "1", "2", "3", "4", "5"),),
    "exists": (("yes", "no"),),
    "describe": _CONTENT,
}
"""What the words of an answer can be, one after the other; in a description, of each place."""
_DESCRIBED = (1, 3, 5, 8, 10)


@dataclass(frozen=True)
class Scene:
    """Four cells in reading order, each "colour shape" or "nothing"."""

    cells: tuple[str, str, str, str]

    @property
    def held_out(self) -> bool:
        """Whether this scene is kept for measuring (one in eight)."""
        return hashlib.sha256("|".join(self.cells).encode()).digest()[0] < 32

    def in_words(self, rng: random.Random | None = None) -> str:
        """The scene in words; with `rng` the places come in a random order."""
        order = list(range(4))
        if rng is not None:
            rng.shuffle(order)
        return " ".join(f"{PLACES[i]} {self.cells[i]}" for i in order)

    def count(self, subject: str) -> int:
        """How many cells show `subject`: a colour, a shape, "colour shape" or "shape" for any."""
        return sum(shows(cell, subject) for cell in self.cells)


def example(seed: int) -> tuple[Image, str]:
    """An image, and what is at its top left."""
    rng = random.Random(seed)
    shown = scene(rng, held_out=True)
    return draw(shown, rng), shown.cells[0]


def shows(cell: str, subject: str) -> bool:
    """Whether the content of a cell is a `subject`."""
    return cell != NOTHING and (subject == "shape" or set(subject.split()) <= set(cell.split()))


def scene(rng: random.Random, held_out: bool = False) -> Scene:
    """A random scene from one side of the split; a cell is empty one time in four."""
    while True:
        cells = [NOTHING if rng.random() < 0.25 else f"{rng.choice(COLOURS)} {rng.choice(SHAPES)}" for _ in PLACES]
        made = Scene((cells[0], cells[1], cells[2], cells[3]))
        if made.held_out == held_out:
            return made


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


@dataclass(frozen=True)
class Question:
    """A question about a scene. `subject` is a place, or what is counted or looked for."""

    scene: Scene
    kind: Kind
    subject: str = ""

    @property
    def text(self) -> str:
        """The question as a user asks it; the same words whether the scene is drawn or described."""
        if self.kind == "what":
            return f"What is {self.subject}?"
        if self.kind == "count":
            return (
                f"How many {self.subject}s?"
                if self.subject in (*SHAPES, "shape")
                else f"How many {self.subject} shapes?"
            )
        return f"Is there a {self.subject}?" if self.kind == "exists" else "Describe the picture."

    @property
    def truth(self) -> str:
        """The right answer, in the short form."""
        if self.kind == "what":
            return self.scene.cells[PLACES.index(self.subject)]
        if self.kind == "count":
            return str(self.scene.count(self.subject))
        if self.kind == "exists":
            return "yes" if self.scene.count(self.subject) else "no"
        return self.scene.in_words()


def question(rng: random.Random, about: Scene, kinds: Sequence[Kind] = KINDS) -> Question:
    """A random question of one of `kinds`."""
    kind = rng.choice(kinds)
    if kind == "what":
        return Question(about, kind, rng.choice(PLACES))
    if kind == "count":
        return Question(about, kind, rng.choice((rng.choice(COLOURS), rng.choice(SHAPES), "shape")))
    if kind == "exists":
        there = [cell for cell in about.cells if cell != NOTHING]
        if there and rng.random() < 0.5:
            return Question(about, kind, rng.choice(there))
        colour, shape = (
            rng.choice(there).split() if there and rng.random() < 0.6 else (rng.choice(COLOURS), rng.choice(SHAPES))
        )
        other = rng.choice(((colour, rng.choice(SHAPES)), (rng.choice(COLOURS), shape)))
        return Question(about, kind, " ".join(other))
    return Question(about, kind)


def judged(count: int) -> tuple[Kind, ...]:
    """The mix of questions the judge is asked about with `count` candidates, as often as each stands in it.

    Looking for something is the hardest to learn; three descriptions would make the longest traces by far.
    """
    mix: tuple[Kind, ...] = ("what", "what", "what", "what", "count", "count", "count") + ("exists",) * 5
    return mix if count > 2 else (*mix, "describe", "describe")


def parse(asked: Question, reply: str) -> tuple[str, ...] | None:
    """The answer in `reply` as a tuple (what: one content, describe: four), or None if it is not of the asked form."""
    parts, whole = spoken(asked, reply)
    return tuple(" ".join(words) for _, words in parts) if whole else None


def spoken(asked: Question, reply: str) -> tuple[list[tuple[str, list[str]]], bool]:
    """`reply` as far as it is of the asked form: (place, words) of each part, and whether that is all of it.

    A description has a part for every place; any other answer has one, without a place.
    """
    words = reply.strip().lower().rstrip(".").strip().split(" ")
    if asked.kind == "what" and words[0] == "a":
        words = words[1:]
    parts: list[tuple[str, list[str]]] = []
    for place in PLACES if asked.kind == "describe" else ("",):
        if place and (not words or words.pop(0) != place):
            return parts, False
        parts.append((place, []))
        for known in VOCABULARY[asked.kind]:
            if not words or words[0] not in known:
                return parts, False
            parts[-1][1].append(words.pop(0))
            if parts[-1][1] == [NOTHING]:
                break
    return parts, not words


def is_correct(asked: Question, reply: str) -> bool:
    """Whether `reply` is the right answer: the ground truth that no judge sees."""
    return parse(asked, reply) == parse(asked, asked.truth)


def score(asked: Question, reply: str, high: int = 10) -> int:
    """The score `reply` deserves on the scale 1 to `high` (10 or 5)."""
    ten = _score_of_ten(asked, parse(asked, reply))
    return ten if high == 10 else (ten + 1) // 2


def _score_of_ten(asked: Question, answer: tuple[str, ...] | None) -> int:
    truth = parse(asked, asked.truth)
    if answer is None or truth is None:
        return 1
    if asked.kind == "describe":
        return _DESCRIBED[sum(a == b for a, b in zip(answer, truth, strict=True))]
    if answer == truth:
        return 10
    if asked.kind == "count":
        return 5 if abs(int(answer[0]) - int(truth[0])) == 1 else 1
    return 5 if asked.kind == "what" and set(answer[0].split()) & set(truth[0].split()) else 1


def best(asked: Question, replies: Sequence[str]) -> int:
    """The index of the best reply, the first of them on a tie."""
    scores = [score(asked, reply) for reply in replies]
    return scores.index(max(scores))


# Candidate answers of known quality.


def candidate(rng: random.Random, asked: Question, right: float = 0.4, junk: float = 0.1) -> str:
    """An answer: right with the given chance, junk with the other, else plausible and more or less wrong."""
    draw_ = rng.random()
    if draw_ < junk:
        return _junk(rng, asked)
    text = asked.truth if draw_ < junk + right else _wrong(rng, asked)
    if asked.kind == "what" and text != NOTHING and rng.random() < 0.1:
        text = f"a {text}"
    return text + "." if rng.random() < 0.1 else text


def candidates(
    rng: random.Random, asked: Question, count: int, single_best: bool = False, junk: float = 0.1
) -> list[str]:
    """`count` answers in random order; with `single_best` one of them alone has the highest score."""
    while True:
        replies = [candidate(rng, asked, junk=junk) for _ in range(count)]
        scores = sorted(score(asked, reply) for reply in replies)
        if not single_best or scores[-1] > scores[-2]:
            return replies


def _wrong(rng: random.Random, asked: Question) -> str:
    if asked.kind == "what":
        return _other_content(rng, asked, asked.truth)
    if asked.kind == "count":
        near = [n for n in (int(asked.truth) - 1, int(asked.truth) + 1) if n >= 0]
        wrong = rng.choice(near) if rng.random() < 0.6 else rng.randint(0, 5)
        return str(wrong)
    if asked.kind == "exists":
        return "no" if asked.truth == "yes" else "yes"
    cells = list(asked.scene.cells)
    for index in rng.sample(range(4), rng.randint(1, 4)):
        cells[index] = _other_content(rng, asked, cells[index])
    return Scene((cells[0], cells[1], cells[2], cells[3])).in_words()


def _other_content(rng: random.Random, asked: Question, content: str) -> str:
    """Something else than `content`: half of it changed, the content of another place, or anything."""
    colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
    if content != NOTHING and rng.random() < 0.55:
        old_colour, old_shape = content.split()
        return rng.choice((f"{colour} {old_shape}", f"{old_colour} {shape}"))
    return rng.choice((*asked.scene.cells, f"{colour} {shape}", NOTHING))


def _junk(rng: random.Random, asked: Question) -> str:
    """What a policy in training also says: nothing, half an answer, too much, another question's answer, noise."""
    words = (
        *COLOURS,
        *SHAPES,
        *PLACES,
        NOTHING,
        "yes",
        "no",
        "is",
        "the",
        "a",
        "score",
        "best",
        "10",
        "5",
        "3",
        "1",
        "A",
    )
    other = candidate(rng, question(rng, asked.scene), junk=0.0)
    letters = "".join(
        rng.choice("abcdefghijklmnopqrstuvwxyz0123456789 .,!?:;()<>/=+") for _ in range(rng.randint(1, 14))
    )
    kind = rng.randrange(8)
    parts = asked.truth.split()
    made = (
        "",
        " ".join(parts[: max(1, len(parts) - 1)]) if len(parts) > 1 else rng.choice(words),
        f"{asked.truth} {rng.choice(words)}",
        other,
        " ".join(rng.choice(words) for _ in range(rng.randint(1, 16))),
        letters,
        rng.choice(("score 10", "A is best", "10", "the best answer is A", "5", "A score 10", "answer 10")),
        " ".join([_wrong(rng, asked)] * rng.randint(2, 4)),
    )[kind]
    return made if parse(asked, made) is None else ""


# Rows for trainers.


def rows(
    seed: int, count: int, held_out: bool = False, kinds: Sequence[Kind] = ("what", "count", "exists")
) -> Iterator[dict[str, object]]:
    """`count` picture questions: {"image", "question", "truth", "asked"}, where `asked` goes to `is_correct`."""
    rng = random.Random(seed)
    for _ in range(count):
        asked = question(rng, scene(rng, held_out), kinds)
        yield {"image": draw(asked.scene, rng), "question": asked.text, "truth": asked.truth, "asked": asked}
