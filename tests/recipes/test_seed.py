"""The recipe `judge_training/seed`: format diversity of traces of pairs, and a whole run with the embedded judge."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import flexjudge_recipes
from flexjudge_recipes.judge_training.seed.diversity import FIRST, SECOND, Diversity, choice, halve, single

import pytest

from flexjudge_reward import ConfigError
from flexjudge_reward.nano import path
from support.late import late, needs

needs("trl")
make = late("flexjudge_recipes.judge_training.seed.make")
sft_data = late("flexjudge_recipes.judge_training.sft.data")

FOLDER = Path(flexjudge_recipes.__file__).parent / "judge_training" / "seed"
PATTERNS = (FIRST, SECOND)


def pair(thought: str, first: float = 7, second: float = 4, **fields: Any) -> dict[str, Any]:
    reply = f"<think>{thought}</think><answer>{first:g}</answer><answer>{second:g}</answer>"
    row = {"format": "pairwise", "candidates": ["a", "b"], "low": 1.0, "high": 10.0, "reply": reply}
    return row | {"scores": [first, second], "tokens": len(reply.split())} | fields


ONE, OTHER = "Assistant 1 is right. It is short.", "Assistant 2 is not."
CUT = [
    pytest.param(f"{ONE} {OTHER}", ONE, id="turn"),
    pytest.param(f"Both answers are short. {ONE} {OTHER}", ONE, id="introduction"),
    pytest.param(f"I read.\nThe first answer is right!\n{OTHER}", "I read.\nThe first answer is right!", id="ordinal"),
    pytest.param(f"Response 1 is ok. Unlike Response 2. {ONE} Response 2 has none.", ONE, id="longest"),
    pytest.param("Assistant 1 beats Assistant 2.", None, id="one_sentence"),
    pytest.param(ONE, None, id="never_the_second"),
    pytest.param(f"{OTHER} So it loses.", None, id="never_the_first"),
]


@pytest.mark.parametrize(("thought", "left"), CUT)
def test_a_single_score_has_only_the_reasoning_on_its_answer(thought: str, left: str | None) -> None:
    row = single(pair(thought), PATTERNS)
    if left is None:
        assert row is None
        return
    assert row is not None and row["reply"] == f"<think>{left}</think><answer>7</answer>"
    assert (row["format"], row["candidates"], row["scores"]) == ("pointwise", ["a"], [7])


@pytest.mark.parametrize(
    ("thought", "named"),
    [
        pytest.param("a score of 9, not 10/10", "a score of 5, not 5/5", id="score_of"),
        pytest.param("It gets 7 out of 10; 3 / 10 is rare.", "It gets 4 out of 5; 2 / 5 is rare.", id="out_of"),
        pytest.param("In 2010 it had 2 cats.", "In 2010 it had 2 cats.", id="other_numbers"),
        pytest.param("The score for Assistant 2 is 8.", "The score for Assistant 2 is 4.", id="after_a_label"),
        pytest.param("I rate Assistant 2 an 8, Answer 1 low.", "I rate Assistant 2 a 4, Answer 1 low.", id="labels"),
        pytest.param("The rating of Answer 2 is lower.", "The rating of Answer 2 is lower.", id="label_alone"),
        pytest.param("It gets 3 of the 4 facts right.", "It gets 3 of the 4 facts right.", id="count_of_parts"),
        pytest.param("It gets 3 facts, deserves 6.", "It gets 3 facts, deserves 3.", id="count"),
        pytest.param("scores: 8 and 6", "scores: 4 and 3", id="two_scores"),
        pytest.param(
            "A red red yes score 10 B no score 1.", "A red red yes score 5 B no score 1.", id="embedded_judge"
        ),
    ],
)
def test_a_halved_scale_is_halved_in_the_reasoning_too(thought: str, named: str) -> None:
    row = pair(thought, 10, 7)
    halve(row)
    assert row["reply"] == f"<think>{named}</think><answer>5</answer><answer>4</answer>"
    assert (row["low"], row["high"], row["scores"]) == (1, 5, [5, 4])


def test_every_score_of_ten_has_its_half_rounded_up() -> None:
    rows = [pair("so", score, score) for score in range(1, 11)]
    for row in rows:
        halve(row)
    assert [row["scores"][0] for row in rows] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_another_scale_stays() -> None:
    row = pair("score 3", 3, 2, high=5.0)
    assert not halve(row) and row == pair("score 3", 3, 2, high=5.0)


@pytest.mark.parametrize(
    "thought",
    [
        pytest.param("Assistant 1: 8, Assistant 2: 4", id="no_name_of_a_score"),
        pytest.param("I rate Assistant 2 an 8, Answer 1 a 9.", id="one_of_two"),
        pytest.param("Assistant 1: 5", id="a_score_of_the_verdict"),
        pytest.param("It is rated 7.5.", id="fraction"),
        pytest.param("It gets points for naming 10 items.", id="count"),
        pytest.param("A score of eight.", id="word"),
    ],
)
def test_a_trace_stays_where_a_number_may_be_a_score(thought: str) -> None:
    row = pair(thought, 5, 3)
    assert not halve(row) and row == pair(thought, 5, 3)


def test_a_choice_names_the_better_answer_and_a_tie_none() -> None:
    made = [choice(pair("so", *scores), PATTERNS) for scores in ((7, 4), (4, 7), (4, 4))]
    assert [row and (row["reply"].partition("</think>")[2], row["scores"]) for row in made] == [
        ("<answer>A</answer>", [1, 0]),
        ("<answer>B</answer>", [0, 1]),
        None,
    ]


def test_the_mix_has_its_shares_the_longest_pairs_and_no_trace_twice() -> None:
    text = "Assistant 1 is right. " + "It is. " * 20 + "Assistant 2 is not."
    traces = [pair(text, id=number, tokens=100 + number) for number in range(100)]
    mixed = Diversity(40, {"pairwise": 0.25, "pointwise": 0.5, "multiple_choice": 0.25}, 110, 30, seed=3)
    chosen, counts = mixed(traces, lambda text: len(text.split()))
    assert Counter(row["format"] for row in chosen) == {"pairwise": 10, "pointwise": 20, "multiple_choice": 10}
    assert {row["id"] for row in chosen if row["format"] == "pairwise"} == set(range(90, 100))
    assert len({row["id"] for row in chosen}) == 40 and counts["pointwise, of 20 wanted"] == 20
    assert 8 <= counts["on the scale 1-5"] == sum(row["high"] == 5 for row in chosen) <= 22
    assert mixed(traces, lambda text: len(text.split()))[0] == chosen and traces[0]["high"] == 10
    assert mixed(traces, lambda text: 30)[1]["pointwise, of 20 wanted"] == 0


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        pytest.param({"mix": {"essay": 1.0}}, "mix names 'essay'", id="format"),
        pytest.param({"mix": {"pairwise": 0.5}}, "add up to 1", id="shares"),
        pytest.param({"sise": 3}, "mix has no setting 'sise'", id="setting"),
        pytest.param({"mix": {}}, "is a share of each format", id="nothing"),
        pytest.param({"mix": {"pairwise": "half"}}, "pairwise='half', which is no number", id="no_share"),
        pytest.param({"size": "x"}, "size='x', which is no number", id="no_size"),
        pytest.param({"first": "("}, "is no regular expression", id="no_pattern"),
    ],
)
def test_wrong_mixes(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        make.diversity(settings)


def run(monkeypatch: pytest.MonkeyPatch, output: Path, *words: str) -> None:
    words = ("--config", str(FOLDER / "nano.yaml"), "--output_dir", str(output), *words)
    monkeypatch.setattr(sys, "argv", ["make.py", *words])
    make.main()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_whole_run_makes_rows_that_a_judge_can_be_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, tmp_path / "seed", "--limit", "40", "--seeds", "13")
    rows = list(sft_data.stored(str(tmp_path / "seed" / "seed.parquet")))
    assert len({row["format"] for row in rows}) > 1 and {row["high"] for row in rows} == {5, 10}
    data, skipped = sft_data.Renderer.of(str(path("base")), None, prompt_set="nano", max_length=1024).dataset(rows)
    assert len(data) == len(rows) and not skipped
    card = (tmp_path / "seed" / "README.md").read_text()
    assert "Apache-2.0" in card and "| rows | 40 |" in card and f"| in all | {len(rows)} |" in card
    assert (tmp_path / "seed" / "traces.md").exists()


def test_a_teacher_file_without_scores_is_an_error_before_a_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"question_id": 1, "question_body": "q", "answer1_body": "a", "answer2_body": "b"}
    (tmp_path / "teacher.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr("flexjudge_reward.TransformersEngine.complete", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigError, match="the entry 'score' with the teacher's scores is missing"):
        run(monkeypatch, tmp_path / "seed", "--teacher_file", str(tmp_path / "teacher.jsonl"))


def test_a_file_with_other_columns_is_read_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {}

    def traced(*words: Any, **rows: Any) -> Any:
        found.update(rows)
        raise ConfigError("read")

    monkeypatch.setattr(make, "traces_file", traced)
    names = {"question": "prompt", "candidates": ["response_a", "response_b"]}
    with pytest.raises(ConfigError, match="read"):
        run(monkeypatch, tmp_path / "seed", "--teacher_file", "rows.jsonl", "--columns", json.dumps(names))
    assert found["columns"] == {"question": ["prompt"], "candidates": ["response_a", "response_b"]}
    with pytest.raises(ConfigError, match="columns are names by entry"):
        run(monkeypatch, tmp_path / "seed", "--teacher_file", "rows.jsonl", "--columns", '{"question": 3}')


@pytest.mark.parametrize(
    ("name", "text", "kept"),
    [
        pytest.param("notes.txt", "mine", True, id="another_file"),
        pytest.param("README.md", "# My project", True, id="another_readme"),
        pytest.param("README.md", "# Seed data of a judge\n", False, id="its_own_card"),
        pytest.param("traces.skipped.jsonl.partial", "", False, id="a_run_that_was_cut_off"),
    ],
)
def test_a_folder_with_other_files_stays_as_it_is(
    name: str, text: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(make, "traces_file", lambda *_, **__: pytest.fail("made") if kept else Counter(traces=0))
    with pytest.raises(Exception, match="that are not of this recipe" if kept else "traces.parquet"):
        run(monkeypatch, tmp_path, "--limit", "2")
    assert (tmp_path / name).read_text() == text


def test_the_real_configuration_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    from trl import TrlParser

    words = ["--config", str(FOLDER / "judgelm.yaml")]
    (options,) = TrlParser((make.RecipeArguments,)).parse_args_and_config(words, fail_with_unknown_args=True)
    mixed = make.diversity(options.mix)
    assert (mixed.size, mixed.pair_tokens, mixed.single_tokens, options.seeds) == (1000, 750, 375, [13, 79])
    assert make.JudgeConfig.resolve({"format": "pairwise"} | options.judge).temperature == 0.1
