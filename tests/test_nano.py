"""The embedded judge: what its world promises, and that the shipped weights load and judge in it."""

from __future__ import annotations

import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import Choice, Example, Generation, Judge, Listwise, Media, Pair, Rubric, Sampling, Scale, Score
from flexjudge_reward.nano import path, traces, world

SCENE = world.Scene(("red circle", "nothing", "blue square", "red star"))
WHAT, EMPTY = world.Question(SCENE, "what", "top-left"), world.Question(SCENE, "what", "top-right")
COUNT, EXISTS = world.Question(SCENE, "count", "red"), world.Question(SCENE, "exists", "blue square")
DESCRIBE = world.Question(SCENE, "describe")
TOLD = "top-left red circle top-right nothing bottom-left blue square bottom-right red star"

SCORES = [
    (WHAT, "red circle", 10, 5),
    (WHAT, "A red circle.", 10, 5),
    (WHAT, "red square", 5, 3),
    (WHAT, "green circle", 5, 3),
    (WHAT, "green square", 1, 1),
    (WHAT, "nothing", 1, 1),
    (WHAT, "red", 1, 1),
    (WHAT, "red circle red circle", 1, 1),
    (WHAT, "", 1, 1),
    (WHAT, "2", 1, 1),
    (EMPTY, "nothing", 10, 5),
    (EMPTY, "red circle", 1, 1),
    (COUNT, "2", 10, 5),
    (COUNT, "3", 5, 3),
    (COUNT, "1.", 5, 3),
    (COUNT, "0", 1, 1),
    (COUNT, "many", 1, 1),
    (EXISTS, "yes", 10, 5),
    (EXISTS, "no", 1, 1),
    (EXISTS, "yes and no", 1, 1),
    (DESCRIBE, TOLD, 10, 5),
    (DESCRIBE, TOLD.replace("star", "circle"), 8, 4),
    (DESCRIBE, TOLD.replace("star", "circle").replace("nothing", "red star"), 5, 3),
    (DESCRIBE, TOLD.replace("red", "white").replace("nothing", "red star"), 3, 2),
    (DESCRIBE, TOLD + " red", 1, 1),
    (DESCRIBE, "top-left red circle", 1, 1),
]


@pytest.mark.parametrize(("asked", "reply", "of_ten", "of_five"), SCORES)
def test_true_scores(asked: world.Question, reply: str, of_ten: int, of_five: int) -> None:
    assert (world.score(asked, reply, 10), world.score(asked, reply, 5)) == (of_ten, of_five)
    assert world.is_correct(asked, reply) == (of_ten == 10)


def test_questions_and_their_answers() -> None:
    asked = [WHAT, EMPTY, COUNT, EXISTS, DESCRIBE, world.Question(SCENE, "count", "star")]
    assert [(q.text, q.truth) for q in asked] == [
        ("What is top-left?", "red circle"),
        ("What is top-right?", "nothing"),
        ("How many red shapes?", "2"),
        ("Is there a blue square?", "yes"),
        ("Describe the picture.", TOLD),
        ("How many stars?", "1"),
    ]


def some(seed: int, count: int = 300) -> list[tuple[random.Random, world.Question]]:
    rng = random.Random(seed)
    return [(rng, world.question(rng, world.scene(rng))) for _ in range(count)]


def test_the_trace_ends_in_the_score_that_the_answer_tag_repeats() -> None:
    for rng, asked in some(1):
        replies, high = world.candidates(rng, asked, 3), rng.choice((5, 10))
        thought = traces.reasoning(asked, replies, "listwise", high)
        scores = [world.score(asked, reply, high) for reply in replies]
        assert [int(part.split()[0].rstrip(".")) for part in thought.split(" score ")[1:]] == scores
        assert traces.verdict(asked, replies, "listwise", high) == "".join(f"<answer>{s}</answer>" for s in scores)


def test_a_choice_ends_in_the_first_of_the_best() -> None:
    for rng, asked in some(2):
        replies = world.candidates(rng, asked, 4)
        scores = [world.score(asked, reply) for reply in replies]
        letter = "ABCD"[scores.index(max(scores))]
        assert traces.reasoning(asked, replies, "choice").endswith(f"best {letter}.")
        assert traces.verdict(asked, replies, "choice") == f"<answer>{letter}</answer>"


TRACES = [
    (WHAT, "green circle", "So top-left red circle.", "A green red no circle circle yes score 5."),
    (WHAT, "red", "", "A red red yes unclear score 1."),
    (WHAT, "nothing", "", "A nothing red no score 1."),
    (WHAT, "red circle star", "", "A red red yes circle circle yes unclear score 1."),
    (
        COUNT,
        "3",
        "bottom-left blue square blue red no 1 bottom-right red star red red yes 2. So 2.",
        "A 3 2 near score 5.",
    ),
    (COUNT, "many", "top-right nothing 1", "A unclear score 1."),
    (EXISTS, "no", "top-left red circle red blue no circle square no no top-right nothing no", "A no yes no score 1."),
    (EXISTS, "yes.", "bottom-left blue square blue blue yes square square yes yes", "A yes yes yes score 10."),
    (DESCRIBE, "top-left red star top-right nothing.", TOLD, "no 0 A top-right nothing nothing yes 1 unclear score 1."),
]


@pytest.mark.parametrize(("asked", "reply", "worked", "checked"), TRACES)
def test_a_trace_compares_word_by_word(asked: world.Question, reply: str, worked: str, checked: str) -> None:
    thought = traces.reasoning(asked, [reply], "score")
    assert thought.startswith("top-left red circle") and thought.endswith(checked)
    assert worked in thought


def test_quotes_say_what_stands_on_the_page_and_nothing_else() -> None:
    replies = ["top-left red star top-right nothing bottom-left blue square bottom-right red star.", "red", TOLD]
    quoted = traces.quotes(random.Random(1), DESCRIBE, replies)
    letters = {place: f" A {place}" for place in world.PLACES}
    assert all(quoted.count(letter) == 1 and quoted.count(letter.replace("A", "C")) == 1 for letter in letters.values())
    assert " A top-left red star" in quoted and " C top-left red circle" in quoted and " B " not in quoted
    assert traces.quotes(random.Random(1), WHAT, ["a red star.", "4", "nothing"]) == " A red star C nothing"


def test_unclear_is_what_leaves_the_asked_form() -> None:
    for rng, asked in some(12, 2000):
        reply = world.candidate(rng, asked, junk=0.5)
        thought = traces.reasoning(asked, [reply], "score")
        assert ("unclear" in thought) == (world.parse(asked, reply) is None), reply


def test_the_right_answer_is_right_and_junk_is_not() -> None:
    for rng, asked in some(3):
        assert world.score(asked, asked.truth) == 10
        assert world.score(asked, world.candidate(rng, asked, junk=1.0)) == 1


def test_one_seed_gives_one_world() -> None:
    def made(seed: int) -> list[Any]:
        rng = random.Random(seed)
        asked = world.question(rng, world.scene(rng))
        return [asked, world.candidates(rng, asked, 4), world.draw(asked.scene, rng).tobytes()]

    assert made(5) == made(5) != made(6)


def test_training_and_held_out_scenes_are_apart() -> None:
    rng = random.Random(4)
    train, held = ({world.scene(rng, side) for _ in range(2000)} for side in (False, True))
    assert not train & held
    cells = (world.NOTHING, *(f"{colour} {shape}" for colour in world.COLOURS for shape in world.SHAPES))
    every = [world.Scene(four).held_out for four in itertools.islice(itertools.product(cells, repeat=4), 0, None, 37)]
    assert 0.11 < sum(every) / len(every) < 0.14


def test_pictures_of_different_cells_differ_and_keep_their_colours() -> None:
    rng = random.Random(7)
    one, other = (
        world.draw(world.Scene((cell, "nothing", "nothing", "nothing")), rng) for cell in ("red star", "blue star")
    )
    assert one.size == (56, 56) and one.mode == "RGB"
    assert one.getpixel((14, 14))[0] > one.getpixel((14, 14))[2]
    assert other.getpixel((14, 14))[2] > other.getpixel((14, 14))[0]


def test_a_clip_has_frames_of_one_size_that_move() -> None:
    frames = world.clip(SCENE, random.Random(8), 4)
    assert [frame.size for frame in frames] == [(56, 56)] * 4
    assert len({frame.tobytes() for frame in frames}) > 1


def test_rows_for_trainers_know_the_truth() -> None:
    rows = list(world.rows(seed=9, count=20, held_out=True))
    assert all(world.is_correct(row["asked"], row["truth"]) for row in rows)  # type: ignore[arg-type]
    assert [row["question"] for row in rows] == [row["question"] for row in world.rows(seed=9, count=20, held_out=True)]


def test_the_traces_are_what_the_formats_read() -> None:
    for rng, asked in some(10, 50):
        for form, kind in (("pair", Pair), ("choice", Choice)):
            replies = world.candidates(rng, asked, 2, single_best=True)
            text = f"<think>{traces.reasoning(asked, replies, form)}</think>{traces.verdict(asked, replies, form)}"
            verdict = kind(prompts="nano").read(Example(asked.text, replies), [Generation(text)])
            assert verdict.scores is not None
            assert verdict.scores.index(max(verdict.scores)) == world.best(asked, replies)


# The shipped weights.


@pytest.mark.parametrize("name", ["judge", "base"])
def test_a_checkpoint_is_complete_and_small(name: Any) -> None:
    folder = path(name)
    present = {file.name for file in folder.iterdir()}
    needed = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert needed | {"preprocessor_config.json", "chat_template.jinja"} <= present
    assert sum(file.stat().st_size for file in folder.iterdir()) < 16e6
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]


def test_unknown_checkpoints_are_named() -> None:
    with pytest.raises(ValueError, match="'judge' and a 'base'"):
        path("other")  # type: ignore[arg-type]


def test_any_text_survives_the_tokenizer() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(path("judge") / "tokenizer.json"))
    for text in (
        "top-left red circle",
        "```\nA\n```\n",
        "Grüße, 世界! \U0001f600",
        "C1=CC=CC=C1  x\t\n\n y",
        "a" * 300,
        "1234567890",
    ):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode(" purple triangle bottom-right unclear score 10").ids) == 6


def test_the_recipe_sees_pictures_as_the_plain_model_does() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))
    import nano_model

    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(path("base"), dtype=torch.float32)
    patches = torch.from_numpy(nano_model.to_patches([world.draw(SCENE, random.Random(3))]))
    with torch.no_grad():
        fast = nano_model.see(model.model.visual, patches)[0]
        plain = model.model.visual(patches[0], grid_thw=torch.tensor([[1, 4, 4]])).pooler_output
    assert torch.allclose(fast, plain, atol=1e-4)


def sanity(
    form: traces.Form, medium: str, candidates: int, count: int = 64
) -> tuple[list[Example], list[tuple[int, ...]]]:
    rng = random.Random(f"{form} {medium}")
    examples, truths = [], []
    for _ in range(count):
        asked = world.question(rng, world.scene(rng, held_out=True), world.judged(candidates))
        replies = world.candidates(rng, asked, candidates, single_best=form == "choice")
        scene = Media.image(world.draw(asked.scene, rng)) if medium == "picture" else asked.scene.told(rng) + "\n"
        examples.append(Example((scene, asked.text), replies))
        truths.append(tuple(world.score(asked, reply) for reply in replies))
    return examples, truths


def test_the_judge_judges_held_out_scenes() -> None:
    pytest.importorskip("torch")
    engines = pytest.importorskip("flexjudge_reward.engines.transformers")
    engine = engines.TransformersEngine(str(path("judge")))
    sampling, rubric = Sampling(max_tokens=160), Rubric("Is the answer right?", Scale(1, 10))
    try:
        # Well below the measured figures (nano/README.md), because 64 examples are few.
        for form, kind, medium, candidates, least in (
            ("pair", Pair, "words", 2, 0.85),
            ("pair", Pair, "picture", 2, 0.75),
            ("score", Score, "picture", 1, 0.8),
            ("listwise", Listwise, "picture", 3, 0.7),
            ("choice", Choice, "picture", 4, 0.8),
        ):
            examples, truths = sanity(form, medium, candidates)  # type: ignore[arg-type]
            verdicts = Judge(kind(rubric, "nano"), engine, sampling)(examples)
            scores = [verdict.scores for verdict in verdicts]
            if form == "choice":
                truths = [tuple(int(score == max(truth)) for score in truth) for truth in truths]
            right = sum(found == tuple(map(float, truth)) for found, truth in zip(scores, truths, strict=True))
            assert right / len(truths) >= least, f"{form} on {medium}: {right} of {len(truths)}"
    finally:
        engine.close()
