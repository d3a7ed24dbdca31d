"""The transfer study: cells differ in one thing, a finished cell is not run again, and the table says what is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flexjudge_recipes.judge_training.study import measure, study, table
from flexjudge_recipes.judge_training.study.cells import CELLS, Cell, items, rows, trace

import pytest

from flexjudge_reward import ConfigError, Engine, Example, Generation, Pairwise, Request, Rubric, Scale, ScriptedEngine
from flexjudge_reward.formats.builtin import FORMATS
from support.late import late, needs

needs("trl")
datasets = late("datasets")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

SETTINGS = {"steps": 2, "batch": 4, "count": 2}
SHORT = ["--steps", "2", "--batch", "4", "--count", "2"]

# ------------------------------------------------------------------------------------------------------------ cells


def parts(name: str, count: int = 40) -> list[dict[str, Any]]:
    """The first traces of a cell."""
    return [trace(CELLS[name], 1, number) for number in range(count)]


def agrees(row: dict[str, Any]) -> bool:
    """Whether the reply's verdict is the one of the shared setting, which is right."""
    return any(row["reply"].endswith(one["reply"].partition("</think>")[2]) for one in parts("text") if same(one, row))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return (one["candidates"], one["high"]) == (other["candidates"], other["high"])


def test_every_trace_can_be_read_in_its_format() -> None:
    for cell in CELLS.values():
        for number in range(8):
            row = trace(cell, 1, number)
            asked = FORMATS[row["format"]](Rubric(row["criteria"], Scale(row["low"], row["high"])), "nano")
            verdict = asked.read(Example(row["question"], row["candidates"]), [Generation(row["reply"])])
            assert verdict.scores is not None, (cell, verdict.failure)


def test_cells_of_a_seed_share_their_prompts() -> None:
    text, image = parts("text"), parts("image_text")
    for one, other in zip(text, image, strict=True):
        assert one["candidates"] == other["candidates"] and one["reply"] == other["reply"]
        assert one["question"].endswith("\n" + other["question"]) and "image" in other and "image" not in one
    assert [row["candidates"] for row in parts("shortest")] == [row["candidates"] for row in text]
    assert {row["format"] for row in text} == {"pairwise", "pointwise"} and {row["high"] for row in text} == {5, 10}
    assert {(row["format"], row["high"]) for row in parts("pairs")} == {("pairwise", 10)}
    assert len({row["format"] for row in parts("four_formats")}) == 4


def test_what_the_filters_would_have_removed_is_there() -> None:
    assert all(map(agrees, parts("shortest")))
    assert 10 <= sum(map(agrees, parts("no_agreement"))) <= 30
    lengths = [sum(len(row["reply"]) for row in parts(name)) for name in ("shortest", "any_length", "text")]
    assert lengths == sorted(lengths) and lengths[0] < lengths[1] < lengths[2]


@pytest.mark.parametrize(
    ("traces", "distinct"),
    [pytest.param(3, 3, id="few_again_and_again"), pytest.param(64, 12, id="more_than_are_shown")],
)
def test_all_trainings_have_the_same_length(traces: int, distinct: int) -> None:
    shown = list(rows(Cell("", traces=traces), 1, steps=3, batch=4))
    assert len(shown) == 12 and len({row["question"] for row in shown}) == distinct


def test_items_for_rl_are_on_other_prompts_and_have_one_best_answer() -> None:
    made = list(items(1, 20))
    assert all(len(set(row["scores"])) == 2 for row in made)
    assert not {row["question"] for row in made} & {row["question"] for row in parts("text")}


# ----------------------------------------------------------------------------------------------------- measurements


def test_pairs_are_counted_by_hand() -> None:
    case = measure.Case(Example("q", ["a", "b"]), (10.0, 5.0))
    given: list[measure.Scores] = [(10.0, 5.0), (9.0, 1.0), (5.0, 5.0), (5.0, 10.0), None]
    assert measure.shares([case] * 5, given, "pair") == {"pair_better": 0.4, "pair_exact": 0.2, "pair_formed": 0.8}


def test_held_out_scenes_are_measured_and_always_the_same() -> None:
    first, again = (measure.cases(2, "words", 10) for _ in range(2))
    assert [case.example.digest(()) for case in first] == [case.example.digest(()) for case in again]
    assert all(len(set(case.truth)) == 2 for case in first)
    seen = [part for case in first for part in case.example.question if isinstance(part, str)]
    words = [row["question"] for row in parts("traces_10000", 400)]
    assert not any(question.startswith(scene) for scene in seen for question in words if scene.endswith("\n"))


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        pytest.param("10</answer><answer>5</answer><think>a</think>", (10.0, 5.0), id="read"),
        pytest.param("x</answer>", None, id="no_number"),
        pytest.param("3</answer>", None, id="one_of_two"),
        pytest.param("11</answer><answer>0</answer>", None, id="off_the_scale"),
        pytest.param("\u00b2</answer><answer>5</answer>", None, id="a_digit_that_is_no_number"),
    ],
)
def test_the_answer_is_read_before_the_reasons(reply: str, scores: measure.Scores) -> None:
    engine = ScriptedEngine([reply])
    assert measure.first_answers(engine, Pairwise(prompt_set="nano"), [Example("q", ["a", "b"])]) == [scores]
    assert engine.prompts[0].messages[-1].parts == ("<answer>",)


class Waiting(Engine):
    """Changes its mind at each "Wait"."""

    asked = 0

    def complete(self, requests: list[Request]) -> list[Generation]:  # type: ignore[override]
        self.asked += len(requests)
        replies = []
        for request in requests:
            begun = request.prompt.messages[-1]
            rounds = "".join(map(str, begun.parts)).count("Wait") if begun.role == "assistant" else 0
            opened = "" if rounds else "<think>so"
            replies.append(Generation(f"{opened} on</think><answer>{5 + rounds}</answer><answer>5</answer>", "stop"))
        return replies

    def identity(self) -> dict[str, object]:
        return {"engine": "waiting"}


def test_waiting_takes_the_verdict_away_and_continues() -> None:
    engine = Waiting()
    scores = measure.waited(engine, Pairwise(prompt_set="nano"), [Example("q", ["a", "b"])])
    assert scores == [[(5.0 + rounds, 5.0)] for rounds in range(measure.ROUNDS + 1)]
    assert engine.asked == measure.ROUNDS + 1


# ------------------------------------------------------------------------------------------------- results, resuming


def line(cell: str, seed: int, **more: Any) -> str:
    figures = dict.fromkeys(table.COLUMNS, 0.5) | more.pop("figures", {})
    seconds = {"training": 1, "measuring": 1}
    return json.dumps({"cell": cell, "seed": seed, **SETTINGS, "figures": figures, "cpu_seconds": seconds} | more)


def inference(how: str, pairs: float, singles: float, formed: float) -> dict[str, float]:
    found = {f"image_pair_{how}_better": pairs, f"image_single_{how}_exact": singles}
    return found | {f"image_pair_{how}_formed": formed, f"image_single_{how}_formed": 1.0}


def test_the_table_has_means_differences_and_gaps(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    lines = [
        line("base", 0, figures={"questions_think": 1.0}),
        line("text", 1, figures={"image_pair_better": 0.7}),
        line("text", 2, figures={"image_pair_better": 0.9}),
        line("answer_first", 2, figures={"image_pair_better": 0.4}),
        line("votes", 1, figures=inference("votes_10", 0.25, 0.7, 1.0)),
        line("wait", 1, figures=inference("budget_8", 0.2, 0.6, 0.75)),
        line("rl", 1, steps=99),
        '{"cell": "wa',
    ]
    file.write_text("\n".join(lines))
    found = table.read(file, SETTINGS)
    assert set(found) == {("base", 0), ("text", 1), ("text", 2), ("answer_first", 2), ("votes", 1), ("wait", 1)}
    by_seed = table.differences(found)
    assert by_seed["reason_first_minus_answer_first_points"] == {2: pytest.approx(50)}
    assert by_seed["forgetting_points_at_1k"] == {1: 50, 2: 50} and by_seed["forgetting_points_at_10k"] == {}
    table.write(file, SETTINGS)
    text = file.with_suffix(".md").read_text()
    assert "| 2 | 50.0 ± 0.0 | 80.0 ± 14.1 |" in text and "| SFT, then GRPO on pairs in words | 0 | - |" in text
    assert "10 vote(s), temperature 1 | 1 | 25.0 | 70.0 | 100.0 |" in text
    assert "reasoning cut at 8 tokens | 1 | 20.0 | 60.0 | 75.0 |" in text
    widths = [[row.count("|") for row in part.splitlines() if row.startswith("|")] for part in text.split("## ")]
    assert all(len(set(width)) <= 1 for width in widths)
    assert "up to 35.4 points (standard error), of a difference of two up to 50.0" in text
    assert file.with_suffix(".png").stat().st_size > 10_000


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The cells that the study wants to train; the judge of each is the base, and measuring is left out."""
    found: list[tuple[str, int]] = []

    def judge(self: study.Study, name: str, seed: int) -> Path:
        found.append((name, seed))
        if name == "rl":
            raise ConfigError("nothing is left")
        return Path()

    def measured(self: study.Study, cell: Cell, judge: Path) -> dict[str, float]:
        return dict.fromkeys(table.COLUMNS, 0.5)

    monkeypatch.setattr(study.Study, "judge", judge)
    monkeypatch.setattr(study.Study, "measured", measured)
    monkeypatch.setattr(table, "plots", lambda found, file: None)
    return found


def test_finished_cells_are_not_run_again_and_one_failure_ends_nothing(
    tmp_path: Path, tried: list[tuple[str, int]]
) -> None:
    made = study.Study(tmp_path, tmp_path / "results.jsonl", **SETTINGS)
    (tmp_path / "results.jsonl").write_text(line("text", 1) + '\n{"cell": "pa')  # a kill cut the second
    with pytest.raises(ConfigError, match="2 cells failed: rl of seed 1: nothing is left; rl of seed 2"):
        made(["base", "text", "rl", "pairs"], [1, 2])
    assert tried == [("base", 0), ("rl", 1), ("pairs", 1), ("text", 2), ("rl", 2), ("pairs", 2)]
    tried.clear()
    with pytest.raises(ConfigError):
        made(["base", "text", "rl", "pairs"], [1, 2])
    assert tried == [("rl", 1), ("rl", 2)]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        pytest.param(["--cells", "tekst"], "there is no cell 'tekst'; there are base, text", id="no_such_cell"),
        pytest.param(["--count", "1"], "count at least 2: found 400, 25, 1", id="too_few_examples"),
        pytest.param(["--steps", "0"], "at least 1, count at least 2: found 0,", id="no_steps"),
    ],
)
def test_wrong_arguments_are_an_error(words: list[str], why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        study.main(words, tmp_path)


def test_a_training_that_was_cut_off_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cell from its traces to its line, through the recipe's own program."""
    cut = tmp_path / "2x4" / "seed_1" / "image_text"
    cut.mkdir(parents=True)
    (cut / "model.safetensors").touch()
    trial = tmp_path / "1x4" / "seed_1" / "image_text"  # whole, and of another length
    trial.mkdir(parents=True)
    (trial / "report.json").touch()
    shown: list[int] = []
    monkeypatch.setattr(measure, "LIMIT", 4)
    monkeypatch.setattr(datasets.Dataset, "to_parquet", _counting(datasets.Dataset.to_parquet, shown))
    study.main([*SHORT, "--seeds", "1", "--cells", "image_text"], tmp_path)
    (entry,) = table.read(tmp_path / "results.jsonl", SETTINGS).values()
    assert set(table.COLUMNS) <= set(entry["figures"]) and shown == [8]
    assert json.loads((cut / "report.json").read_text())["left_out"] == {} and (tmp_path / "results.md").exists()


def _counting(write: Callable[..., int], shown: list[int]) -> Callable[..., int]:
    def counted(self: datasets.Dataset, *given: Any) -> int:
        shown.append(len(self))
        return write(self, *given)

    return counted
