"""The embedded judge: its world of coloured shapes, its training, and that the shipped weights judge in that world."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

from flexjudge_recipes.nano import judge_traces, shapes, traces
from flexjudge_recipes.nano.world import SHAPES, SOUNDS, World

import pytest

from flexjudge_reward import (
    ConfigError,
    Example,
    Generation,
    Judge,
    Listwise,
    Media,
    MultipleChoice,
    Pairwise,
    Pointwise,
    Rubric,
    Sampling,
    Scale,
    TransformersEngine,
)
from flexjudge_reward.nano import path
from support.late import late, needs

needs("transformers", "datasets")
nano = late("flexjudge_recipes.judge_training.nano")
nano_model = late("flexjudge_recipes.judge_training.nano_model")
vlm_task = late("flexjudge_recipes.nano.vlm_task")
tokenizers = late("tokenizers")
torch = late("torch")
transformers = late("transformers")

SCENE = shapes.Scene(("red circle", "nothing", "blue square", "red star"))
WHAT, EMPTY = shapes.Question(SCENE, "what", "top-left"), shapes.Question(SCENE, "what", "top-right")
COUNT, EXISTS = shapes.Question(SCENE, "count", "red"), shapes.Question(SCENE, "exists", "blue square")
DESCRIBE = shapes.Question(SCENE, "describe")
TEXT = "top-left red circle top-right nothing bottom-left blue square bottom-right red star"

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
    (DESCRIBE, TEXT, 10, 5),
    (DESCRIBE, TEXT.replace("star", "circle"), 8, 4),
    (DESCRIBE, TEXT.replace("star", "circle").replace("nothing", "red star"), 5, 3),
    (DESCRIBE, TEXT.replace("red", "white").replace("nothing", "red star"), 3, 2),
    (DESCRIBE, TEXT + " red", 1, 1),
    (DESCRIBE, "top-left red circle", 1, 1),
]


@pytest.mark.parametrize(
    ("question", "reply", "of_ten", "of_five"), SCORES, ids=[f"{row[0].kind}-{row[1][:40]}" for row in SCORES]
)
def test_true_scores(question: shapes.Question, reply: str, of_ten: int, of_five: int) -> None:
    assert (shapes.score(question, reply, 10), shapes.score(question, reply, 5)) == (of_ten, of_five)
    assert shapes.is_correct(question, reply) == (of_ten == 10)


def test_questions_and_their_answers() -> None:
    questions = [WHAT, EMPTY, COUNT, EXISTS, DESCRIBE, shapes.Question(SCENE, "count", "star")]
    assert [(q.text, q.truth) for q in questions] == [
        ("What is top-left?", "red circle"),
        ("What is top-right?", "nothing"),
        ("How many red shapes?", "2"),
        ("Is there a blue square?", "yes"),
        ("Describe the picture.", TEXT),
        ("How many stars?", "1"),
    ]


def some(seed: int, count: int = 300) -> list[tuple[random.Random, shapes.Question]]:
    rng = random.Random(seed)
    return [(rng, shapes.question(rng, shapes.scene(rng))) for _ in range(count)]


def test_the_trace_ends_in_the_score_that_the_answer_tag_repeats() -> None:
    for rng, question in some(1):
        replies, high = shapes.candidates(rng, question, 3), rng.choice((5, 10))
        thought = traces.reasoning(question, replies, "listwise", high)
        scores = [shapes.score(question, reply, high) for reply in replies]
        assert [int(part.split()[0].rstrip(".")) for part in thought.split(" score ")[1:]] == scores
        assert traces.verdict(question, replies, "listwise", high) == "".join(f"<answer>{s}</answer>" for s in scores)


def test_a_choice_ends_in_the_first_of_the_best() -> None:
    for rng, question in some(2):
        replies = shapes.candidates(rng, question, 4)
        scores = [shapes.score(question, reply) for reply in replies]
        letter = "ABCD"[scores.index(max(scores))]
        assert traces.reasoning(question, replies, "choice").endswith(f"best {letter}.")
        assert traces.verdict(question, replies, "choice") == f"<answer>{letter}</answer>"


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
    (DESCRIBE, "top-left red star top-right nothing.", TEXT, "no 0 A top-right nothing nothing yes 1 unclear score 1."),
]


@pytest.mark.parametrize(
    ("question", "reply", "worked", "checked"), TRACES, ids=[f"{row[0].kind}-{row[1][:40]}" for row in TRACES]
)
def test_a_trace_compares_word_by_word(question: shapes.Question, reply: str, worked: str, checked: str) -> None:
    thought = traces.reasoning(question, [reply], "score")
    assert thought.startswith("top-left red circle") and thought.endswith(checked)
    assert worked in thought


@pytest.mark.parametrize(
    ("question", "reply", "checked"),
    [
        pytest.param(
            WHAT, "red circle star", "A red red yes circle circle yes star unclear score 1.", id="a word more"
        ),
        pytest.param(
            WHAT, "red circle score 10", "A red red yes circle circle yes unclear score 1.", id="word of a thought"
        ),
        pytest.param(WHAT, "red", "A red red yes unclear score 1.", id="ends early"),
        pytest.param(WHAT, "green circle", "A green red no circle circle yes score 5.", id="of the asked form"),
        pytest.param(COUNT, "2 0", "A 2 2 yes 0 unclear score 1.", id="a number more"),
        pytest.param(COUNT, "<answer>", "A unclear score 1.", id="a tag is not written"),
        pytest.param(EXISTS, "yes green", "A yes yes yes green unclear score 1.", id="another question's word"),
    ],
)
def test_a_trace_of_the_second_training_names_the_odd_word(question: shapes.Question, reply: str, checked: str) -> None:
    assert traces.reasoning(question, [reply], "score", names_odd=True).endswith(checked)


def test_quotes_repeat_the_answers_of_the_prompt_and_nothing_else() -> None:
    replies = ["top-left red star top-right nothing bottom-left blue square bottom-right red star.", "red", TEXT]
    quoted = traces.quotes(random.Random(1), DESCRIBE, replies)
    letters = {place: f" A {place}" for place in shapes.PLACES}
    assert all(quoted.count(letter) == 1 and quoted.count(letter.replace("A", "C")) == 1 for letter in letters.values())
    assert " A top-left red star" in quoted and " C top-left red circle" in quoted and " B " not in quoted
    assert traces.quotes(random.Random(1), WHAT, ["a red star.", "4", "nothing"]) == " A red star C nothing"


def test_unclear_marks_an_answer_of_another_form() -> None:
    for rng, question in some(12, 2000):
        reply = shapes.candidate(rng, question, junk=0.5)
        thought = traces.reasoning(question, [reply], "score")
        assert ("unclear" in thought) == (shapes.parse(question, reply) is None), reply


def test_words_behind_an_answer_make_it_malformed() -> None:
    for rng, question in some(13):
        assert shapes.score(question, shapes.run_on(rng, question, question.truth + ".")) == 1


def test_the_right_answer_is_right_and_junk_is_not() -> None:
    for rng, question in some(3):
        assert shapes.score(question, question.truth) == 10
        assert shapes.score(question, shapes.candidate(rng, question, junk=1.0)) == 1


def test_a_seed_decides_everything() -> None:
    def made(seed: int) -> list[Any]:
        rng = random.Random(seed)
        question = shapes.question(rng, shapes.scene(rng))
        return [question, shapes.candidates(rng, question, 4), shapes.draw(question.scene, rng).tobytes()]

    assert made(5) == made(5) != made(6)


def test_training_and_held_out_scenes_are_apart() -> None:
    rng = random.Random(4)
    train, held = ({shapes.scene(rng, side) for _ in range(2000)} for side in (False, True))
    assert not train & held
    cells = (shapes.NOTHING, *(f"{colour} {shape}" for colour in shapes.COLOURS for shape in shapes.SHAPES))
    every = [shapes.Scene(four).held_out for four in itertools.islice(itertools.product(cells, repeat=4), 0, None, 37)]
    assert 0.11 < sum(every) / len(every) < 0.14


def test_images_of_different_cells_differ_and_keep_their_colours() -> None:
    rng = random.Random(7)
    one, other = (
        shapes.draw(shapes.Scene((cell, "nothing", "nothing", "nothing")), rng) for cell in ("red star", "blue star")
    )
    assert one.size == (56, 56) and one.mode == "RGB"
    assert one.getpixel((14, 14))[0] > one.getpixel((14, 14))[2]
    assert other.getpixel((14, 14))[2] > other.getpixel((14, 14))[0]


def test_a_video_has_frames_of_one_size_that_move() -> None:
    frames = shapes.clip(SCENE, random.Random(8), 4)
    assert [frame.size for frame in frames] == [(56, 56)] * 4
    assert len({frame.tobytes() for frame in frames}) > 1


def test_training_rows_have_questions_and_images_and_no_truth() -> None:
    rows, again = vlm_task.training_rows(20, "a"), vlm_task.training_rows(20, "a")
    assert rows.column_names == ["prompt", "question", "image"] and rows["question"] == again["question"]
    assert rows[0]["image"].size == (56, 56)


def test_the_traces_are_what_the_formats_read() -> None:
    for rng, question in some(10, 50):
        for form, kind in (("pair", Pairwise), ("choice", MultipleChoice)):
            replies = shapes.candidates(rng, question, 2, single_best=True)
            text = (
                f"<think>{traces.reasoning(question, replies, form)}</think>{traces.verdict(question, replies, form)}"
            )
            verdict = kind(prompt_set="nano").read(Example(question.text, replies), [Generation(text)])
            assert verdict.scores is not None
            assert verdict.scores.index(max(verdict.scores)) == shapes.best(question, replies)


def test_the_rows_of_a_judge_are_judgements_in_words_and_images_that_are_only_read() -> None:
    rows = list(judge_traces.rows(0, 16, 24))
    read = [row for row in rows if "prompt" in row]
    assert len(rows) == 384 and 50 < len(read) < 110
    assert all(len(row["prompt"].media) == 1 and "score" not in row["reply"] for row in read)
    judged = [row for row in rows if "prompt" not in row]
    assert {row["format"] for row in judged} == {"pointwise", "pairwise", "listwise", "multiple_choice"}
    assert rows == list(judge_traces.rows(0, 16, 24)) != list(judge_traces.rows(1, 16, 24))
    lengths = [sum(len(row["reply"]) for row in rows[i : i + 24]) for i in range(0, 384, 24)]
    assert max(lengths) > 1.5 * min(lengths)  # batches of equal length, in random order


def test_the_second_training_has_answers_that_run_on_and_scenes_in_letters() -> None:
    first, second = ([row for row in judge_traces.rows(0, 16, 24, on) if "prompt" not in row] for on in (False, True))
    coded = [row for row in second if not set(row["question"].split("\n")[0].split()) & set(shapes.PLACES)]
    assert 0.4 < len(coded) / len(second) < 0.6
    unclear = [sum(row["reply"].count("unclear") for row in rows) for rows in (first, second)]
    assert unclear[1] > 1.5 * unclear[0]
    assert all(set(row["question"].split("\n")[0].split()) & set(shapes.PLACES) for row in first)


@pytest.mark.parametrize("world", [SHAPES, SOUNDS], ids=lambda world: world.thing)
def test_a_scene_in_letters_says_all_and_has_no_word_of_an_answer(world: World) -> None:
    rng = random.Random(5)
    scenes = [world.scene(rng) for _ in range(2000)]
    codes = {scene.cells: scene.in_code() for scene in scenes}
    assert len(set(codes.values())) == len(codes)
    assert not {word for code in codes.values() for word in code.split()} & set(world.words)


# ---------------------------------------------------------------------------------------------- the shipped weights


@pytest.mark.parametrize("name", ["judge", "base"])
def test_a_checkpoint_is_complete_and_small(name: Any) -> None:
    folder = path(name)
    present = {file.name for file in folder.iterdir()}
    needed = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert needed | {"preprocessor_config.json", "chat_template.jinja"} <= present
    assert sum(file.stat().st_size for file in folder.iterdir()) < 16e6
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]


def test_unknown_checkpoints_are_named() -> None:
    with pytest.raises(ValueError, match="'judge', 'base', 'omni', found 'other'"):
        path("other")  # type: ignore[arg-type]


def test_any_text_survives_the_tokenizer() -> None:
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


def test_the_training_computes_the_vision_features_of_the_plain_model() -> None:
    model: Any = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(path("base"), dtype=torch.float32)
    patches = torch.from_numpy(nano_model.to_patches([shapes.draw(SCENE, random.Random(3))]))
    with torch.no_grad():
        fast = nano_model.vision_features(model.model.visual, patches)[0]
        plain = model.model.visual(patches[0], grid_thw=torch.tensor([[1, 4, 4]])).pooler_output
    assert torch.allclose(fast, plain, atol=1e-4)


def test_a_wider_model_fits_the_tokenizer_of_the_shipped_one() -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(path("base") / "tokenizer.json"))
    model: Any = nano_model.make_model(tokenizer, 64)
    patches = torch.from_numpy(nano_model.to_patches([shapes.draw(SCENE, random.Random(3))]))
    assert nano_model.vision_features(model.model.visual, patches).shape == (1, 4, 64)
    assert model.lm_head.weight.shape == (model.config.text_config.vocab_size, 64)


@pytest.mark.parametrize("flags", [["--width", "100"], ["--width", "0"], ["--width", "320", "--model", "omni"]])
def test_a_width_that_no_model_has_is_an_error(monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    monkeypatch.setattr("sys.argv", ["nano.py", *flags])
    with pytest.raises(ConfigError, match="--width is a multiple of 32"):
        nano.main()


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    for _ in range(2):
        nano.claim(tmp_path / "new", model="omni", seed=0, steps=9)
    for other in ({"seed": 1, "steps": 9}, {"seed": 0, "steps": 400}):
        with pytest.raises(ConfigError, match=r"new holds another run .*'seed': 0.* another --out"):
            nano.claim(tmp_path / "new", model="omni", **other)
    (tmp_path / "base.pt").touch()
    with pytest.raises(ConfigError, match="of an earlier release"):
        nano.claim(tmp_path, model="omni", seed=0, steps=9)


def test_a_resumed_training_has_the_batches_of_a_whole_one() -> None:
    make = nano.Maker(tokenizers.Tokenizer.from_file(str(path("base") / "tokenizer.json")))
    whole = list(itertools.islice(nano.batches(make, nano.BASE, 0, 0), 4))
    resumed = next(nano.batches(make, nano.BASE, 0, 3))
    assert [sample.ids for sample in resumed] == [sample.ids for sample in whole[3]]
    assert all(0 < sample.start < len(sample.ids) for batch in whole for sample in batch)


def held_out(
    form: traces.Form, medium: str, candidates: int, count: int = 40
) -> tuple[list[Example], list[tuple[int, ...]]]:
    rng = random.Random(f"{form} {medium}")
    examples, truths = [], []
    for _ in range(count):
        question = shapes.question(rng, shapes.scene(rng, held_out=True), shapes.judged(candidates))
        replies = shapes.candidates(rng, question, candidates, single_best=form == "choice")
        scene = (
            Media.image(shapes.draw(question.scene, rng)) if medium == "image" else question.scene.in_words(rng) + "\n"
        )
        examples.append(Example((scene, question.text), replies))
        truths.append(tuple(shapes.score(question, reply) for reply in replies))
    return examples, truths


def test_the_judge_judges_held_out_scenes() -> None:
    sampling, rubric = Sampling(max_tokens=160), Rubric("Is the answer right?", Scale(1, 10))
    with TransformersEngine(str(path("judge"))) as engine:
        # Well below the measured figures (nano/README.md), because 40 examples are few.
        for form, kind, medium, candidates, least in (
            ("pair", Pairwise, "text", 2, 0.85),
            ("pair", Pairwise, "image", 2, 0.75),
            ("score", Pointwise, "image", 1, 0.8),
            ("listwise", Listwise, "image", 3, 0.7),
            ("choice", MultipleChoice, "image", 4, 0.8),
        ):
            examples, truths = held_out(form, medium, candidates)  # type: ignore[arg-type]
            verdicts = Judge(kind(rubric, "nano"), engine, sampling)(examples)
            scores = [verdict.scores for verdict in verdicts]
            if form == "choice":
                truths = [tuple(int(score == max(truth)) for score in truth) for truth in truths]
            right = sum(found == tuple(map(float, truth)) for found, truth in zip(scores, truths, strict=True))
            assert right / len(truths) >= least, f"{form} on {medium}: {right} of {len(truths)}"
