"""The small worlds of the embedded judges: four places, what is at each, questions, answers and their true scores.

A world is a value of two vocabularies: `SHAPES` is a 2 x 2 grid of coloured shapes, drawn by `shapes.py`, and `SOUNDS`
four sounds one after the other, played by `sounds.py`. Questions, candidate answers, true scores and reasoning
(`traces.py`) come out of the same code for both. A scene can be shown or described in words; both have the same place
in a question, so one can replace the other. Everything is known: the right answer and the score any answer deserves.
Everything random comes from the generator the caller passes, so a seed fixes all of it.

Scores on the scale 1-10 (on 1-5: half of it, rounded up):

    what is at a place     both words right 10, one of the two 5, else 1
    how many               exact 10, off by one 5, else 1
    is there               right 10, wrong 1
    describe               4 places right 10, three 8, two 5, one 3, none 1
    any question           a malformed answer: 1

Scenes are split by a hash: a held-out scene is never shown or described in training.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["what", "count", "exists", "describe"]
KINDS: tuple[Kind, ...] = ("what", "count", "exists", "describe")
LETTERS = "ABCDEFGH"
NOISE = ("yes", "no", "is", "the", "a", "score", "best", "10", "5", "3", "1", "A")
"""Words of no scene that malformed answers have."""
_DESCRIBED = (1, 3, 5, 8, 10)


@dataclass(frozen=True)
class World:
    """The words of a world."""

    firsts: tuple[str, ...]
    """The first word of what is at a place, such as the colours."""
    seconds: tuple[str, ...]
    """The second word, such as the shapes."""
    places: tuple[str, str, str, str]
    nothing: str
    """What is at an empty place."""
    thing: str
    """What any content is called."""
    describe: str
    """The request for a description."""

    @property
    def words(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.firsts, *self.seconds, *self.places, self.nothing)

    def vocabulary(self, kind: Kind) -> tuple[tuple[str, ...], ...]:
        """What the words of an answer can be, one after the other; in a description, of each place."""
        if kind == "count":
            return (("0", "1", "2", "3", "4", "5"),)
        return (("yes", "no"),) if kind == "exists" else ((*self.firsts, self.nothing), self.seconds)

    def scene(self, rng: random.Random, held_out: bool = False) -> Scene:
        """A random scene from one side of the split; a place is empty one time in four."""
        while True:
            cells = [self.nothing if rng.random() < 0.25 else " ".join(self.content(rng)) for _ in self.places]
            made = Scene((cells[0], cells[1], cells[2], cells[3]), self)
            if made.held_out == held_out:
                return made

    def content(self, rng: random.Random) -> tuple[str, str]:
        """Any two words."""
        return rng.choice(self.firsts), rng.choice(self.seconds)


SHAPES = World(
    ("red", "green", "blue", "yellow", "purple", "white"),
    ("circle", "square", "triangle", "star"),
    ("top-left", "top-right", "bottom-left", "bottom-right"),
    "nothing",
    "shape",
    "Describe the picture.",
)
SOUNDS = World(
    ("deep", "low", "middle", "high", "shrill"),
    ("hum", "rattle", "rustle", "chirp"),
    ("first", "second", "third", "fourth"),
    "silence",
    "sound",
    "Describe the recording.",
)


@dataclass(frozen=True)
class Scene:
    """Four cells in reading order, each of two words of its world, or nothing."""

    cells: tuple[str, str, str, str]
    world: World = SHAPES

    @property
    def held_out(self) -> bool:
        """Whether this scene is kept for measuring (one in eight)."""
        return hashlib.sha256("|".join(self.cells).encode()).digest()[0] < 32

    def in_words(self, rng: random.Random | None = None) -> str:
        """The scene in words; with `rng` the places come in a random order."""
        order = list(range(4))
        if rng is not None:
            rng.shuffle(order)
        return " ".join(f"{self.world.places[i]} {self.cells[i]}" for i in order)

    def in_code(self) -> str:
        """The scene in letters, place after place: as in an image, no word of an answer is in it."""
        letters = dict(zip((*self.world.firsts, *self.world.seconds), "ghjkmnpqvw", strict=False))
        return " ".join("".join(letters.get(word, "z") for word in cell.split()) for cell in self.cells)

    def count(self, subject: str) -> int:
        """How many cells show `subject`: a first word, a second, both of them, or the world's `thing` for any."""
        there = [cell for cell in self.cells if cell != self.world.nothing]
        return sum(subject == self.world.thing or set(subject.split()) <= set(cell.split()) for cell in there)


@dataclass(frozen=True)
class Question:
    """A question about a scene. `subject` is a place, or what is counted or looked for."""

    scene: Scene
    kind: Kind
    subject: str = ""

    @property
    def text(self) -> str:
        """The question as a user asks it; the same words whether the scene is shown or described."""
        world = self.scene.world
        if self.kind == "what":
            return f"What is {self.subject}?"
        if self.kind == "count":
            return (
                f"How many {self.subject}s?"
                if self.subject in (*world.seconds, world.thing)
                else f"How many {self.subject} {world.thing}s?"
            )
        return f"Is there a {self.subject}?" if self.kind == "exists" else world.describe

    @property
    def truth(self) -> str:
        """The right answer, in the short form."""
        if self.kind == "what":
            return self.scene.cells[self.scene.world.places.index(self.subject)]
        if self.kind == "count":
            return str(self.scene.count(self.subject))
        if self.kind == "exists":
            return "yes" if self.scene.count(self.subject) else "no"
        return self.scene.in_words()


def question(rng: random.Random, about: Scene, kinds: Sequence[Kind] = KINDS) -> Question:
    """A random question of one of `kinds`."""
    world, kind = about.world, rng.choice(kinds)
    if kind == "what":
        return Question(about, kind, rng.choice(world.places))
    if kind == "count":
        return Question(about, kind, rng.choice((*world.content(rng), world.thing)))
    if kind == "exists":
        there = [cell for cell in about.cells if cell != world.nothing]
        if there and rng.random() < 0.5:
            return Question(about, kind, rng.choice(there))
        first, second = rng.choice(there).split() if there and rng.random() < 0.6 else world.content(rng)
        other = rng.choice(((first, rng.choice(world.seconds)), (rng.choice(world.firsts), second)))
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
    parts, odd = spoken(asked, reply)
    return tuple(" ".join(words) for _, words in parts) if odd is None else None


def spoken(asked: Question, reply: str) -> tuple[list[tuple[str, list[str]]], str | None]:
    """`reply` as far as it is of the asked form: (place, words) of each part, and the word at which it leaves the form.

    That is None where it does not, and "" where it ends too early. A description has a part for every place; any other
    answer has one, without a place.
    """
    world, words = asked.scene.world, reply.strip().lower().rstrip(".").strip().split(" ")
    if asked.kind == "what" and words[0] == "a":
        words = words[1:]
    parts: list[tuple[str, list[str]]] = []
    for place in world.places if asked.kind == "describe" else ("",):
        if place and words[:1] != [place]:
            return parts, words[0] if words else ""
        words = words[1:] if place else words
        parts.append((place, []))
        for known in world.vocabulary(asked.kind):
            if not words or words[0] not in known:
                return parts, words[0] if words else ""
            parts[-1][1].append(words.pop(0))
            if parts[-1][1] == [world.nothing]:
                break
    return parts, words[0] if words else None


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
    if asked.kind == "what" and text != asked.scene.world.nothing and rng.random() < 0.1:
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


def run_on(rng: random.Random, asked: Question, reply: str) -> str:
    """`reply` with one to three words more."""
    more = rng.choices((*asked.scene.world.words, *NOISE), k=rng.choice((1, 1, 2, 3)))
    return " ".join([*reply.rstrip(" .").split(), *more])


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
    return Scene((cells[0], cells[1], cells[2], cells[3]), asked.scene.world).in_words()


def _other_content(rng: random.Random, asked: Question, content: str) -> str:
    """Something else than `content`: half of it changed, the content of another place, or anything."""
    world = asked.scene.world
    first, second = world.content(rng)
    if content != world.nothing and rng.random() < 0.55:
        old_first, old_second = content.split()
        return rng.choice((f"{first} {old_second}", f"{old_first} {second}"))
    return rng.choice((*asked.scene.cells, f"{first} {second}", world.nothing))


def _junk(rng: random.Random, asked: Question) -> str:
    """What a policy in training also says: nothing, half an answer, too much, another question's answer, noise."""
    words = (*asked.scene.world.words, *NOISE)
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
