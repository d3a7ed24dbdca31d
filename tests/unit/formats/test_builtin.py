"""The built-in formats: what they ask (golden prompts in `data/`), what they read, and what they refuse."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from flexjudge_reward import (
    ConfigError,
    Example,
    Failure,
    Format,
    Generation,
    Judge,
    Listwise,
    Media,
    MultipleChoice,
    Pairwise,
    PairwiseVerdict,
    Pointwise,
    Prompt,
    Rubric,
    Scale,
    ScriptedEngine,
    Untrusted,
    Verdict,
)
from flexjudge_reward.formats.builtin import FORMATS
from flexjudge_reward.formats.onecall import OneCall
from flexjudge_reward.prompts.quoting import flatten
from support.attacks import COUNTS

DATA = Path(__file__).parent / "data"
FIVE = Rubric("Is it right?", Scale(1, 5))
HALVES = Rubric("Is it right?", Scale(0, 10, decimals=True))
WORDS = Rubric("Is it right?", None)


def example(count: int, rubric: Rubric | None = None) -> Example:
    return Example("q", [f"answer {i}" for i in range(count)], rubric=rubric)


def reply(*answers: str) -> Generation:
    return Generation("<think>because</think>" + "".join(f"<answer>{a}</answer>" for a in answers))


def shown(prompt: Prompt) -> str:
    """A prompt as text for a golden file: trusted text as it is, untrusted text in « », media in [ ]."""
    blocks = []
    for message in prompt.messages:
        parts = (
            f"«{part.text}»" if isinstance(part, Untrusted) else f"[{part.kind}]" if isinstance(part, Media) else part
            for part in message.parts
        )
        blocks.append(f"=== {message.role}\n{''.join(parts)}")
    return "\n".join(blocks) + "\n"


UNKNOWN = {("nano", "pairwise_verdict"), ("nano", "checklist")}  # what the embedded judge was never trained on
GOLDEN = [(folder, name) for folder in ("flex", "nano") for name in FORMATS if (folder, name) not in UNKNOWN]


@pytest.mark.parametrize(("prompt_set", "name"), GOLDEN)
def test_prompts_are_the_golden_ones(prompt_set: str, name: str) -> None:
    """A checkpoint understands the prompts it was trained with: a changed prompt must be a decision.

    To accept a change: delete the file in `data/` and run this test twice.
    """
    molecule = Media.molecule("never loaded")
    candidates = ["An answer with `code`.", "```\na fence of its own\n```", ["text ", molecule]]
    judged = Example([molecule, "What is shown?"], candidates[: COUNTS[name]], "the reference")
    (prompt,) = FORMATS[name](prompt_set=prompt_set).render(judged)
    golden = DATA / f"prompt-{prompt_set}-{name}.txt"
    if not golden.exists():
        golden.write_text(shown(prompt), "utf-8")
        pytest.fail(f"{golden.name} did not exist and was written; look at it and run the test again")
    assert shown(prompt) == golden.read_text("utf-8")


SCORES = [
    pytest.param(Pointwise(), 1, ["7"], (7.0,), id="pointwise"),
    pytest.param(Pointwise(), 1, [" 10 "], (10.0,), id="pointwise_top_with_spaces"),
    pytest.param(Pointwise(FIVE), 1, ["5"], (5.0,), id="pointwise_of_five"),
    pytest.param(Pointwise(HALVES), 1, ["7.5"], (7.5,), id="pointwise_with_decimals"),
    pytest.param(Pointwise(), 1, ["8.0"], (8.0,), id="a_whole_number_with_a_point"),
    pytest.param(Pointwise(), 1, ["10.000"], (10.0,), id="the_highest_with_a_point"),
    pytest.param(Pairwise(), 2, ["8.0", "3"], (8.0, 3.0), id="one_with_a_point"),
    pytest.param(MultipleChoice(), 3, ["(C)"], (0.0, 0.0, 1.0), id="letter_in_brackets"),
    pytest.param(Pointwise(HALVES), 1, ["0"], (0.0,), id="pointwise_bottom"),
    pytest.param(Pairwise(), 2, ["7", "7"], (7.0, 7.0), id="pairwise_tie_stays_a_tie"),
    pytest.param(Pairwise(), 2, ["1", "10"], (1.0, 10.0), id="pairwise"),
    pytest.param(Listwise(), 2, ["1", "2"], (1.0, 2.0), id="list_of_two"),
    pytest.param(Listwise(), 8, list("12345678"), tuple(float(i) for i in range(1, 9)), id="list_of_eight"),
    pytest.param(MultipleChoice(), 4, ["D"], (0.0, 0.0, 0.0, 1.0), id="choice"),
    pytest.param(PairwiseVerdict(), 2, ["[[A>B]]"], (1.0, 0.0), id="first_better"),
    pytest.param(PairwiseVerdict(), 2, ["[[B>A]]"], (0.0, 1.0), id="second_better"),
    pytest.param(PairwiseVerdict(), 2, ["[[A=B=Good]]"], (1.0, 1.0), id="both_good"),
    pytest.param(PairwiseVerdict(), 2, ["[[A=B=Bad]]"], (0.0, 0.0), id="both_bad"),
]

FAILURES = [
    pytest.param(Pointwise(), 1, ["11"], "out_of_range", id="above"),
    pytest.param(Pointwise(), 1, ["0"], "out_of_range", id="below"),
    pytest.param(Pointwise(FIVE), 1, ["6"], "out_of_range", id="above_its_own_scale"),
    pytest.param(Pointwise(), 1, ["7.5"], "malformed", id="decimal_on_a_scale_of_whole_numbers"),
    pytest.param(Pointwise(), 1, ["8."], "malformed", id="nothing_after_the_point"),
    pytest.param(Pointwise(), 1, ["11.0"], "out_of_range", id="off_the_scale_with_a_point"),
    pytest.param(Pointwise(), 1, ["8/10"], "malformed", id="of_a_scale_that_is_not_said"),
    pytest.param(MultipleChoice(), 3, ["(D)"], "out_of_range", id="letter_in_brackets_that_is_no_option"),
    pytest.param(MultipleChoice(), 3, ["(C"], "malformed", id="half_a_bracket"),
    pytest.param(Pointwise(HALVES), 1, ["1e39"], "malformed", id="exponent"),
    pytest.param(Pointwise(HALVES), 1, ["inf"], "malformed", id="infinity"),
    pytest.param(Pointwise(HALVES), 1, ["nan"], "malformed", id="nan"),
    pytest.param(Pointwise(HALVES), 1, ["-0.5"], "out_of_range", id="negative"),
    pytest.param(Pointwise(HALVES), 1, ["7."], "malformed", id="dot_at_the_end"),
    pytest.param(Pointwise(), 1, ["７"], "malformed", id="full_width_digit"),
    pytest.param(Pointwise(), 1, ["7", "7"], "wrong_count", id="two_scores_for_one"),
    pytest.param(Pairwise(), 2, ["7"], "wrong_count", id="one_score_for_two"),
    pytest.param(Pairwise(), 2, ["7", "x"], "malformed", id="second_is_no_number"),
    pytest.param(Pairwise(), 2, ["70", "x"], "out_of_range", id="the_first_fault_is_named"),
    pytest.param(Listwise(), 3, ["7", "7"], "wrong_count", id="two_scores_for_three"),
    pytest.param(MultipleChoice(), 2, ["C"], "out_of_range", id="no_such_option"),
    pytest.param(MultipleChoice(), 2, ["a"], "malformed", id="small_letter"),
    pytest.param(MultipleChoice(), 2, ["AB"], "malformed", id="two_letters"),
    pytest.param(MultipleChoice(), 2, [""], "malformed", id="no_letter"),
    pytest.param(MultipleChoice(), 2, ["А"], "malformed", id="cyrillic_letter"),
    pytest.param(MultipleChoice(), 2, ["A", "B"], "wrong_count", id="two_choices"),
    pytest.param(PairwiseVerdict(), 2, ["A>B"], "malformed", id="without_brackets"),
    pytest.param(PairwiseVerdict(), 2, ["[[A=B]]"], "malformed", id="unknown_option_is_not_both_bad"),
    pytest.param(PairwiseVerdict(), 2, ["[[A>B]]", "[[B>A]]"], "wrong_count", id="two_options"),
]


@pytest.mark.parametrize(("format", "count", "answers", "scores"), SCORES)
def test_answers_become_scores(format: OneCall, count: int, answers: list[str], scores: tuple[float, ...]) -> None:
    generation = reply(*answers)
    verdict = format.read(example(count), [generation])
    assert verdict == Verdict(scores, None, format.scale(example(count)), "because", (generation,))


@pytest.mark.parametrize(("format", "count", "answers", "kind"), FAILURES)
def test_wrong_answers_become_failures(format: OneCall, count: int, answers: list[str], kind: str) -> None:
    verdict = format.read(example(count), [reply(*answers)])
    assert verdict.scores is None
    assert isinstance(verdict.failure, Failure)
    assert verdict.failure.kind == kind
    assert verdict.reasoning == "because"
    assert verdict.generations == (reply(*answers),)
    assert verdict.outcomes == (verdict.failure,)


def test_a_failed_reply_keeps_its_failure_and_its_reasoning() -> None:
    cut = Generation("<think>so far", "length")
    verdict = Pairwise().read(example(2), [cut])
    assert verdict.failure is not None
    assert (verdict.failure.kind, verdict.reasoning, verdict.generations) == ("truncated", "so far", (cut,))


@pytest.mark.parametrize("name", ["pairwise", "listwise", "multiple_choice"])
def test_swapping_candidates_and_answers_mirrors_the_verdict(name: str) -> None:
    format, count = FORMATS[name](), COUNTS[name]
    for order in itertools.permutations(range(count)):
        if name == "multiple_choice":
            here, there = ["A"], ["ABC"[order.index(0)]]
        else:
            here = ["3", "9", "6"][:count]
            there = [here[i] for i in order]
        first = format.read(example(count), [reply(*here)]).scores
        moved = format.read(example(count), [reply(*there)]).scores
        assert first is not None
        assert moved == tuple(first[i] for i in order)


def test_the_rubric_of_an_example_overrides_the_formats() -> None:
    own = example(1, rubric=FIVE)
    assert Pointwise().scale(own) == FIVE.scale
    assert Pointwise().read(own, [reply("7")]).failure is not None
    assert "Is it right?" in shown(Pointwise().render(own)[0])
    assert MultipleChoice().scale(example(2, rubric=FIVE)) == Scale(0, 1)


def test_criteria_without_a_scale_keep_the_formats_scale() -> None:
    own = example(1, rubric=WORDS)
    text = shown(Pointwise(FIVE).render(own)[0])
    assert "Is it right?" in text and "1 to 5" in text
    assert Pointwise(FIVE).read(own, [reply("6")]).failure is not None
    assert Pointwise(WORDS).read(own, [reply("6")]).scores == (6.0,)


@pytest.mark.parametrize(
    ("format", "count", "message"),
    [
        pytest.param(Pointwise(), 2, "Pointwise judges 1 candidates at a time, this example has 2", id="pointwise"),
        pytest.param(Pairwise(), 1, "Pairwise judges 2 candidates at a time, this example has 1", id="pairwise"),
        pytest.param(Listwise(), 9, "judges 2 to 8 candidates", id="listwise"),
        pytest.param(MultipleChoice(), 0, "judges 2 to 8 candidates", id="choice"),
    ],
)
def test_a_wrong_number_of_candidates_raises_before_generating(format: Format, count: int, message: str) -> None:
    engine = ScriptedEngine([])
    with pytest.raises(ConfigError, match=f"example 0: .*{message}"):
        Judge(format, engine)([example(count)])
    assert not engine.requests


def test_braces_in_an_answer_stay_braces() -> None:
    (prompt,) = Pointwise().render(Example("{candidate} {low}", ["{question} {{x}} {criteria}"]))
    text = "".join(part for part in flatten(prompt.messages[1]) if isinstance(part, str))
    assert "{candidate} {low}" in text
    assert "{question} {{x}} {criteria}" in text


def test_a_group_shares_the_beginning_of_its_prompts() -> None:
    first, second = (Pointwise().render(Example("the question", [answer]))[0] for answer in ("one", "two"))
    assert first.messages[0] == second.messages[0]
    assert first.messages[1].parts[:3] == second.messages[1].parts[:3]


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(Example("q", ["a"]), id="texts"),
        pytest.param(Example(["q", Media.image(b""), "more"], ["a", "b"], "r"), id="image_between_texts"),
        pytest.param(Example([Media.image(b""), "q"], [[Media.image(b"")], []]), id="image_first_alone_and_nothing"),
    ],
)
def test_no_two_trusted_texts_of_a_prompt_meet(example: Example) -> None:
    (prompt,) = Listwise().render(example) if len(example.candidates) > 1 else Pointwise().render(example)
    for message in prompt.messages:
        kinds = [type(part) is str for part in message.parts]
        assert not any(one and other for one, other in itertools.pairwise(kinds)), message
