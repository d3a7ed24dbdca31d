"""The five formats: what they ask (golden prompts in tests/data), what they read, and what they refuse."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from support.measures import COUNTS, FORMATS

from flexjudge_reward import (
    Choice,
    ConfigError,
    Example,
    Failure,
    Generation,
    Listwise,
    Media,
    Pair,
    Prompt,
    Quoted,
    Relation,
    Rubric,
    Scale,
    Score,
    Verdict,
)
from flexjudge_reward.prompts.quoting import flatten
from flexjudge_reward.prompts.template import KEYS, Template, fill, wordings

DATA = Path(__file__).parent / "data"
FIVE = Rubric("Is it right?", Scale(1, 5))
HALVES = Rubric("Is it right?", Scale(0, 10, decimals=True))


def example(count: int, rubric: Rubric | None = None) -> Example:
    return Example("q", [f"answer {i}" for i in range(count)], rubric=rubric)


def reply(*answers: str) -> Generation:
    return Generation("<think>because</think>" + "".join(f"<answer>{a}</answer>" for a in answers))


def shown(prompt: Prompt) -> str:
    """A prompt as text for a golden file: trusted text as it is, outside text in « », media in [ ]."""
    blocks = []
    for message in prompt.messages:
        parts = (
            f"«{part.text}»" if isinstance(part, Quoted) else f"[{part.kind}]" if isinstance(part, Media) else part
            for part in message.parts
        )
        blocks.append(f"=== {message.role}\n{''.join(parts)}")
    return "\n".join(blocks) + "\n"


GOLDEN = [
    (wording, name) for wording in ("flex", "nano") for name in FORMATS if (wording, name) != ("nano", "relation")
]


@pytest.mark.parametrize(("wording", "name"), GOLDEN)
def test_prompts_are_the_golden_ones(wording: str, name: str, request: pytest.FixtureRequest) -> None:
    """A checkpoint understands the wording it was trained with: a changed prompt must be a decision.

    To accept a change: delete the file in tests/data and run this test twice.
    """
    picture = Media.molecule("stands for a picture")
    candidates = ["An answer with `code`.", "```\na fence of its own\n```", ["text ", picture]]
    many = Example([picture, "What is shown?"], candidates[: COUNTS[name]], "the reference")
    (prompt,) = FORMATS[name](prompts=wording).render(many)
    golden = DATA / f"prompt-{wording}-{name}.txt"
    if not golden.exists():
        golden.write_text(shown(prompt), "utf-8")
        pytest.fail(f"{golden.name} did not exist and was written; look at it and run the test again")
    assert shown(prompt) == golden.read_text("utf-8")


SCORES = [
    pytest.param(Score(), 1, ["7"], (7.0,), id="score"),
    pytest.param(Score(), 1, [" 10 "], (10.0,), id="score_top_with_spaces"),
    pytest.param(Score(FIVE), 1, ["5"], (5.0,), id="score_of_five"),
    pytest.param(Score(HALVES), 1, ["7.5"], (7.5,), id="score_with_decimals"),
    pytest.param(Score(HALVES), 1, ["0"], (0.0,), id="score_bottom"),
    pytest.param(Pair(), 2, ["7", "7"], (7.0, 7.0), id="pair_tie_stays_a_tie"),
    pytest.param(Pair(), 2, ["1", "10"], (1.0, 10.0), id="pair"),
    pytest.param(Listwise(), 2, ["1", "2"], (1.0, 2.0), id="list_of_two"),
    pytest.param(Listwise(), 8, list("12345678"), tuple(float(i) for i in range(1, 9)), id="list_of_eight"),
    pytest.param(Choice(), 4, ["D"], (0.0, 0.0, 0.0, 1.0), id="choice"),
    pytest.param(Relation(), 2, ["[[A>B]]"], (1.0, 0.0), id="first_better"),
    pytest.param(Relation(), 2, ["[[B>A]]"], (0.0, 1.0), id="second_better"),
    pytest.param(Relation(), 2, ["[[A=B=Good]]"], (1.0, 1.0), id="both_good"),
    pytest.param(Relation(), 2, ["[[A=B=Bad]]"], (0.0, 0.0), id="both_bad"),
]

FAILURES = [
    pytest.param(Score(), 1, ["11"], "out_of_range", id="above"),
    pytest.param(Score(), 1, ["0"], "out_of_range", id="below"),
    pytest.param(Score(FIVE), 1, ["6"], "out_of_range", id="above_its_own_scale"),
    pytest.param(Score(), 1, ["7.5"], "malformed", id="decimal_where_whole_numbers_are_asked"),
    pytest.param(Score(HALVES), 1, ["1e39"], "malformed", id="exponent"),
    pytest.param(Score(HALVES), 1, ["inf"], "malformed", id="infinity"),
    pytest.param(Score(HALVES), 1, ["nan"], "malformed", id="nan"),
    pytest.param(Score(HALVES), 1, ["-0.5"], "out_of_range", id="negative"),
    pytest.param(Score(HALVES), 1, ["7."], "malformed", id="dot_at_the_end"),
    pytest.param(Score(), 1, ["７"], "malformed", id="full_width_digit"),
    pytest.param(Score(), 1, ["7", "7"], "wrong_count", id="two_scores_for_one"),
    pytest.param(Pair(), 2, ["7"], "wrong_count", id="one_score_for_two"),
    pytest.param(Pair(), 2, ["7", "x"], "malformed", id="second_is_no_number"),
    pytest.param(Pair(), 2, ["70", "x"], "out_of_range", id="the_first_fault_is_named"),
    pytest.param(Listwise(), 3, ["7", "7"], "wrong_count", id="two_scores_for_three"),
    pytest.param(Choice(), 2, ["C"], "out_of_range", id="no_such_option"),
    pytest.param(Choice(), 2, ["a"], "malformed", id="small_letter"),
    pytest.param(Choice(), 2, ["AB"], "malformed", id="two_letters"),
    pytest.param(Choice(), 2, [""], "malformed", id="no_letter"),
    pytest.param(Choice(), 2, ["А"], "malformed", id="cyrillic_letter"),
    pytest.param(Choice(), 2, ["A", "B"], "wrong_count", id="two_choices"),
    pytest.param(Relation(), 2, ["A>B"], "malformed", id="without_brackets"),
    pytest.param(Relation(), 2, ["[[A=B]]"], "malformed", id="unknown_option_is_not_both_bad"),
    pytest.param(Relation(), 2, ["[[A>B]]", "[[B>A]]"], "wrong_count", id="two_relations"),
]


@pytest.mark.parametrize(("format", "count", "answers", "scores"), SCORES)
def test_answers_become_scores(format: Score, count: int, answers: list[str], scores: tuple[float, ...]) -> None:
    generation = reply(*answers)
    verdict = format.read(example(count), [generation])
    assert verdict == Verdict(scores, None, format.scale(example(count)), "because", (generation,))


@pytest.mark.parametrize(("format", "count", "answers", "kind"), FAILURES)
def test_wrong_answers_become_failures(format: Score, count: int, answers: list[str], kind: str) -> None:
    verdict = format.read(example(count), [reply(*answers)])
    assert verdict.scores is None
    assert isinstance(verdict.failure, Failure)
    assert verdict.failure.kind == kind
    assert verdict.reasoning == "because"
    assert verdict.generations == (reply(*answers),)


def test_a_failed_reply_keeps_its_failure_and_its_reasoning() -> None:
    cut = Generation("<think>so far", "length")
    verdict = Pair().read(example(2), [cut])
    assert verdict.failure is not None
    assert (verdict.failure.kind, verdict.reasoning, verdict.generations) == ("truncated", "so far", (cut,))


@pytest.mark.parametrize("name", ["pair", "listwise", "choice"])
def test_swapping_candidates_and_answers_mirrors_the_verdict(name: str) -> None:
    format, count = FORMATS[name](), COUNTS[name]
    for order in itertools.permutations(range(count)):
        if name == "choice":
            here, there = ["A"], ["ABC"[order.index(0)]]
        else:
            here = ["3", "9", "6"][:count]
            there = [here[i] for i in order]
        first = format.read(example(count), [reply(*here)]).scores
        moved = format.read(example(count), [reply(*there)]).scores
        assert first is not None
        assert moved == tuple(first[i] for i in order)


def test_the_rubric_of_an_example_goes_first() -> None:
    mine = example(1, rubric=FIVE)
    assert Score().scale(mine) == FIVE.scale
    assert Score().read(mine, [reply("7")]).failure is not None
    assert "Is it right?" in shown(Score().render(mine)[0])
    assert Choice().scale(example(2, rubric=FIVE)) == Scale(0, 1)


@pytest.mark.parametrize(
    ("format", "count", "said"),
    [
        pytest.param(Score(), 2, "judges 1 candidates at a time, this example has 2", id="score"),
        pytest.param(Pair(), 1, "judges 2 candidates at a time, this example has 1", id="pair"),
        pytest.param(Listwise(), 9, "judges 2 to 8 candidates", id="listwise"),
        pytest.param(Choice(), 0, "judges 2 to 8 candidates", id="choice"),
    ],
)
def test_a_number_of_candidates_that_does_not_fit_is_the_callers_mistake(format: Score, count: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        format.render(example(count))


def test_braces_in_an_answer_stay_braces() -> None:
    (prompt,) = Score().render(Example("{candidate} {low}", ["{question} {{x}} {criteria}"]))
    text = "".join(part for part in flatten(prompt.messages[1]) if isinstance(part, str))
    assert "{candidate} {low}" in text
    assert "{question} {{x}} {criteria}" in text


def test_a_group_shares_the_beginning_of_its_prompts() -> None:
    first, second = (Score().render(Example("the question", [answer]))[0] for answer in ("one", "two"))
    assert first.messages[0] == second.messages[0]
    assert first.messages[1].parts[:3] == second.messages[1].parts[:3]


# ---------------------------------------------------------------- wordings as files

WORDING = {
    "system": "Score it from {low} to {high}. {criteria}",
    "question": "Q {question}",
    "reference": "R {reference}",
    "candidate": "{number}{letter} {candidate}",
    "closing": "{count} {letters}",
}


def toml(**changes: str | None) -> str:
    entries = {**WORDING, **changes}
    return "\n".join(f"{key} = {text!r}" for key, text in entries.items() if text is not None)


def test_a_wording_of_ones_own_is_a_file_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "pair.toml").write_text(toml(), "utf-8")
    of_folder, of_file = Pair(prompts=tmp_path), Score(prompts=tmp_path / "pair.toml")
    assert of_folder.template == of_file.template == Template(**WORDING)
    (prompt,) = of_folder.render(Example("q", ["x", "y"], "r"))
    assert prompt.messages[0].parts == ("Score it from ", "1", " to ", "10", ". ", Rubric.load("helpfulness").criteria)
    assert prompt.messages[1].parts[:4] == ("Q ", "```\n", Quoted("q"), "\n```")
    assert prompt.messages[1].parts[-3:] == ("2", " ", "A, B")


def test_the_version_of_a_wording_is_its_content() -> None:
    texts = {Template.load(wording, name).digest for wording, name in GOLDEN}
    assert len(texts) == len(GOLDEN)
    assert Template(**WORDING).digest == Template.parse(toml(), "x").digest
    moved = {**WORDING, "system": "", "question": WORDING["system"] + WORDING["question"]}
    assert Template(**moved).digest != Template(**WORDING).digest


def test_built_in_wordings_are_listed() -> None:
    assert wordings() == ("flex", "nano")
    assert set(KEYS) == set(WORDING)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("system = ", "not valid TOML", id="no_toml"),
        pytest.param(toml(closing=None), "'closing' is missing", id="missing"),
        pytest.param(toml(extra="x"), "unknown entry 'extra'", id="unknown"),
        pytest.param(toml(system="{question}"), r"'system' has the placeholder \{question\}", id="wrong_place"),
        pytest.param(toml(candidate="x"), r"'candidate' needs the placeholder \{candidate\}", id="nowhere_to_put_it"),
    ],
)
def test_a_wrong_wording_is_refused_by_name(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "score.toml").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=said):
        Score(prompts=tmp_path)


def test_a_missing_wording_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"score\.toml, a file or one of flex, nano"):
        Score(prompts=tmp_path)
    with pytest.raises(ConfigError, match="'nano' has no text for the format 'relation'"):
        Relation(prompts="nano")


def test_what_fills_a_place_is_not_filled_again() -> None:
    assert fill("a{x}b", {"x": "{x}"}) == ("a", "{x}", "b")
    assert fill("{x}{x}", {"x": ("1", Quoted("2"))}) == ("1", Quoted("2"), "1", Quoted("2"))
    assert fill("", {}) == ()
