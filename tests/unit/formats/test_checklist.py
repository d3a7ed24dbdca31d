"""Checklist: what is asked, how answers become a score, checks beside the judge, criteria from files, rows and code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from flexjudge_reward import (
    Checklist,
    ConfigError,
    Criterion,
    Example,
    Failure,
    FlexJudgeReward,
    Judge,
    MajorityVote,
    Message,
    Pointwise,
    Record,
    Request,
    Rubric,
    Sampling,
    Scale,
    ScriptedEngine,
    Untrusted,
    judge_groups,
    read_record,
)
from flexjudge_reward.judge.config import JudgeConfig

ASKED = Example("What is shown?", ["A red star."])
THREE = Rubric(
    items=(
        Criterion("names the colour", 2, "must", name="colour"),
        Criterion("names the shape", 1),
        Criterion("names a second shape", 1.5, "must not"),
    )
)


def says(*answers: str) -> str:
    return "<think>because</think>" + "".join(f"<answer>{answer}</answer>" for answer in answers)


def shown(message: Message) -> str:
    return "".join(part.text if isinstance(part, Untrusted) else str(part) for part in message.parts)


def judged(rubric: Rubric, *answers: str, per_call: int | None = None) -> Judge:
    """A judge where each call gets as many of `answers` as it has criteria."""
    left = list(answers)

    def reply(request: Request) -> str:
        text = shown(request.prompt.messages[-1])
        count = int(text.rpartition(" in all")[0].rpartition(" ")[2])
        return says(*[left.pop(0) for _ in range(min(count, len(left)))])

    return Judge(Checklist(rubric, per_call=per_call), ScriptedEngine(reply))


SCORES = [
    pytest.param(["yes", "yes", "no"], 1.0, id="all"),
    pytest.param(["yes", "no", "no"], 2 / 3, id="a_should_is_missing"),
    pytest.param(["no", "yes", "no"], 0.0, id="a_must_is_missing"),
    pytest.param(["yes", "yes", "yes"], 0.5, id="what_must_not_be_takes_its_weight"),
    pytest.param(["yes", "no", "yes"], 0.5 / 3, id="both"),
    pytest.param(["no", "no", "yes"], 0.0, id="never_below_zero"),
    pytest.param(["Yes", "YES", " No "], 1.0, id="capitals"),
]


@pytest.mark.parametrize("per_call", [None, 1, 2])
@pytest.mark.parametrize(("answers", "score"), SCORES)
def test_the_score_is_the_weighted_share(answers: list[str], score: float, per_call: int | None) -> None:
    (verdict,) = judged(THREE, *answers, per_call=per_call)([ASKED])
    assert verdict.scores == (pytest.approx(score),) and (verdict.scale.low, verdict.scale.high) == (0, 1)
    assert [one.met for one in verdict.answers] == [answer.strip().lower() == "yes" for answer in answers]
    assert [one.criterion for one in verdict.answers] == list(THREE.items)
    assert len(verdict.generations) == {None: 1, 1: 3, 2: 2}[per_call]


FAILURES = [
    pytest.param(["yes", "maybe", "no"], None, "out_of_range", "criterion 2: expected yes or no", id="no_option"),
    pytest.param(["yes", "no", "7"], 1, "out_of_range", "criterion 3: expected yes or no", id="a_number"),
    pytest.param(["yes", "no"], None, "wrong_count", "expected 3 answers, one per criterion, found 2", id="too_few"),
    pytest.param(["yes", "no"], 1, "empty", "nothing follows", id="one_call_of_three_fails"),
]


@pytest.mark.parametrize(("answers", "per_call", "kind", "said"), FAILURES)
def test_answers_that_cannot_be_read_fail(answers: list[str], per_call: int | None, kind: str, said: str) -> None:
    (verdict,) = judged(THREE, *answers, per_call=per_call)([ASKED])
    assert verdict.failure is not None and verdict.failure.kind == kind and said in verdict.failure.detail
    assert verdict.answers == ()


def test_the_judge_sees_statements_without_weights_after_the_candidate() -> None:
    one, two = Checklist(THREE, per_call=2).render(ASKED)
    first, second = (shown(prompt.messages[1]) for prompt in (one, two))
    assert "1. names the colour\n2. names the shape\n" in first and "1. names a second shape" in second
    assert "weight" not in first + second and "must" not in first + second
    shared = first[: first.index("1. names")]
    assert second.startswith(shared) and "A red star." in shared and one.messages[0] == two.messages[0]
    everything = shown(Pointwise(THREE).render(ASKED)[0].messages[0])  # the implicit aggregation
    assert "1. (must, weight 2) names the colour" in everything


def _raises(example: Example) -> bool:
    raise ValueError("no such answer")


CHECKS = [
    pytest.param(lambda e: "star" in str(e.candidates[0][0]), "should", ["yes"], 1.0, 1, id="yes"),
    pytest.param(lambda e: False, "should", ["yes"], 0.5, 1, id="its_no_is_a_no"),
    pytest.param(lambda e: False, "must", [], 0.0, 0, id="no_to_a_must_asks_no_judge"),
    pytest.param(lambda e: True, "must not", ["yes"], 0.0, 1, id="what_must_not_be"),
    pytest.param(_raises, "must", [], "its check raised ValueError: no such answer", 0, id="raises"),
    pytest.param(lambda e: "yes", "must", [], "must return True or False, found 'yes'", 0, id="no_yes_or_no"),
    pytest.param(lambda e: None, "should", [], "must return True or False, found None", 0, id="nothing"),
]


@pytest.mark.parametrize(("check", "need", "answers", "expected", "calls"), CHECKS)
def test_checks_stand_beside_judged_criteria(
    check: Callable[[Example], bool], need: str, answers: list[str], expected: float | str, calls: int
) -> None:
    rubric = Rubric(items=(Criterion("is checked", 1, need, check=check), Criterion("is judged", 1)))  # type: ignore[arg-type]
    (verdict,) = judged(rubric, *answers)([ASKED])
    assert len(verdict.generations) == calls
    if isinstance(expected, str):
        assert verdict.failure is not None and verdict.failure.kind == "check"
        assert "criterion 1: " in verdict.failure.detail and expected in verdict.failure.detail
    else:
        assert verdict.scores == (expected,)


def test_a_check_that_one_candidate_breaks_is_that_candidates_failure_and_no_others() -> None:
    rubric = Rubric(
        items=(Criterion("starts well", 1, check=lambda e: e.candidates[0][0][0] == "A"), Criterion("x", 1))
    )
    judge = judged(rubric, "yes", "yes")
    (result,) = judge_groups(judge, [ASKED.with_candidates(["A", "", "B"])], again=True)
    assert [one if isinstance(one, float) else (one.kind, one.cause) for one in result.outcomes] == [
        1.0,
        ("check", "candidate"),
        0.5,
    ]
    with pytest.raises(ConfigError, match="format='checklist' runs it"):
        Judge(Pointwise(rubric), judge.engine)([ASKED])


def test_a_reward_takes_criteria_of_each_row_and_logs_them(tmp_path: Path) -> None:
    rows = [
        [
            {"text": "names the colour", "weight": 3, "need": "must", "name": "colour"},
            {"text": "is short", "weight": 1},
        ],
        [
            {"text": "is polite", "weight": 1, "need": None, "name": None},
            {"text": "rambles", "weight": 1, "need": "must not"},
        ],
        "Is it right?",
    ]
    judge = judged(THREE, "yes", "no", "yes", "yes", "yes")
    judge.record = Record(tmp_path / "record.jsonl")
    logged: dict[str, float] = {}
    reward = FlexJudgeReward(judge, rubric_column="criteria")
    got = reward(["q1", "q2", "q3"], ["a", "b", "c"], criteria=rows, log_metric=logged.__setitem__)
    assert got == [0.75, 0.0, 1.0]
    found = {name.partition("/met_")[2]: value for name, value in logged.items() if "/met_" in name}
    assert found == {"must": 1.0, "colour": 1.0, "should": 2 / 3, "must_not": 1.0}
    line = next(read_record(tmp_path / "record.jsonl"))
    assert line["criteria"][0] == {"text": "names the colour", "need": "must", "weight": 3, "met": True, "by": "judge"}


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(
            [
                {"criterion": "names the drug", "points": 5, "tags": ["axis:accuracy"]},
                {"criterion": "is short", "points": 3, "tags": []},
                {"criterion": "names another", "points": -4.0},
            ],
            id="HealthBench",
        ),
        pytest.param(
            [
                {"description": "Essential: names the drug", "weight": 5, "title": "Drug"},
                {"description": "Optional: is short", "weight": 3, "title": None},
                {"description": "Pitfall: names another", "weight": -4, "title": "Other"},
            ],
            id="Rubrics as Rewards",
        ),
    ],
)
@pytest.mark.parametrize(("answers", "score"), [(("yes", "yes", "yes"), 4 / 8), (("yes", "no", "no"), 5 / 8)])
def test_the_lists_of_other_data_sets_are_read_as_they_are(
    cell: list[object], answers: tuple[str, ...], score: float
) -> None:
    reward = FlexJudgeReward(judged(THREE, *answers), rubric_column="rubric")
    assert reward(["q"], ["a"], rubric=[cell]) == [pytest.approx(score)]


BAD_ROWS = [
    pytest.param([{"text": "a"}], "row 1: rubric: criterion 1: it has no 'weight'", id="no_weight"),
    pytest.param(
        [{"text": "a", "weight": 1}, {"weight": 1}], "row 1: rubric: criterion 2: it has no 'text'", id="no_text"
    ),
    pytest.param(
        [{"text": "a", "weight": -1}], "criterion 1: weight must be a number above 0, found -1", id="negative"
    ),
    pytest.param([{"text": "a", "weight": "2"}], "criterion 1: weight must be a number", id="weight_as_text"),
    pytest.param([{"text": "a", "weight": float("nan")}], "criterion 1: weight must be", id="not_a_number"),
    pytest.param([{"text": "a", "weight": 1, "need": "may"}], "need must be one of must, should, must not", id="need"),
    pytest.param([{"text": "a", "weight": 1, "name": "a b"}], "name must be 1 to 40", id="name"),
    pytest.param([{"text": "a", "weight": 1, "name": "must"}], "name must be 1 to 40", id="name_of_a_need"),
    pytest.param([{"text": "a", "weight": 1, "check": "os:abort"}], "unknown entry 'check'", id="data_names_no_code"),
    pytest.param([{"text": "a", "weight": 1, "need": "must not"}], "no answer could score", id="nothing_to_gain"),
    pytest.param([{"criterion": "a", "points": 0}], "weight must be a number above 0, found 0", id="no_points"),
    pytest.param([{"criterion": "a", "points": "5"}], "weight must be a number above 0", id="points_as_text"),
    pytest.param([{"criterion": "a", "points": 5, "check": "os:abort"}], "unknown entry", id="another_s_check"),
    pytest.param(["names the colour"], "criterion 1: expected an object with text and weight", id="no_object"),
]


@pytest.mark.parametrize(("cell", "said"), BAD_ROWS)
def test_a_bad_criterion_is_named_by_row_and_number(cell: list[object], said: str) -> None:
    good = [{"text": "a", "weight": 1}]
    with pytest.raises(ConfigError, match="row 1: ") as error:
        FlexJudgeReward(judged(THREE), rubric_column="c")(["q", "q"], ["a", "b"], c=[good, cell])
    assert said in str(error.value)


TOML = """
[[criteria]]
text = "is short"
weight = 2
check = "my_checks:is_short"
[[criteria]]
text = "rambles"
weight = 1
need = "must not"
"""


def test_criteria_come_from_a_file_with_functions_for_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_checks.py").write_text("def is_short(example):\n    return len(example.candidates[0][0]) < 20\n")
    (tmp_path / "c.toml").write_text(TOML)
    (tmp_path / "c.json").write_text(json.dumps([{"text": "is short", "weight": 2}, {"text": "is kind", "weight": 1}]))
    monkeypatch.delitem(sys.modules, "my_checks", raising=False)
    with pytest.raises(ConfigError, match=r"criterion 1: check 'my_checks:is_short' cannot be imported"):
        Rubric.load(tmp_path / "c.toml")
    settings = {"model": "nano", "prompt_set": "flex", "format": "checklist", "criteria_per_call": 1, "cache": "off"}
    plugins = {"plugins": str(tmp_path / "my_checks.py"), "rubric": str(tmp_path / "c.toml")}
    try:
        format = JudgeConfig.resolve({**settings, **plugins}).build().format.innermost()
        assert isinstance(format, Checklist) and format.per_call == 1
        (verdict,) = Judge(format, ScriptedEngine([says("no")]))([ASKED])
        assert verdict.scores == (1.0,)
    finally:
        sys.modules.pop("my_checks", ModuleType("my_checks"))
    assert [item.text for item in Rubric.load(tmp_path / "c.json").items] == ["is short", "is kind"]


BAD_FILES = [
    pytest.param("c.json", "[1", "not valid JSON", id="json"),
    pytest.param("c.json", "7", "expected an object or a list", id="json_number"),
    pytest.param("c.json", "[]", "the list 'criteria' is empty", id="empty"),
    pytest.param("c.toml", "criteria = 3", "neither a text nor a list", id="number"),
    pytest.param("c.toml", TOML.replace("my_checks:is_short", "os:nothing"), "cannot be imported", id="no_function"),
    pytest.param("c.toml", TOML.replace("my_checks:is_short", "math:pi"), "must name a function", id="no_callable"),
    pytest.param("c.toml", TOML.replace("my_checks:is_short", "math.pi.hex"), "must name a function", id="no_colon"),
]


@pytest.mark.parametrize(("name", "text", "said"), BAD_FILES)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as error:
        Rubric.load(tmp_path / name)
    assert said in str(error.value) and name in str(error.value)


def test_votes_and_settings_that_do_not_fit() -> None:
    replies = iter([says("yes", "no", "no"), says("yes", "yes", "no"), says("yes", "yes", "no")])
    voting = Judge(MajorityVote(Checklist(THREE), 3), ScriptedEngine(lambda _: next(replies)), Sampling(1.0))
    (verdict,) = voting([ASKED])
    assert verdict.scores == (1.0,) and len(verdict.answers) == 9
    assert verdict.counters["criteria_colour"] == 3 and verdict.counters["met_should"] == 2
    with pytest.raises(ConfigError, match="criteria_per_call is for checklists"):
        JudgeConfig.resolve({"model": "nano", "criteria_per_call": 2})
    with pytest.raises(ConfigError, match="per_call must be None or at least 1"):
        Checklist(THREE, per_call=0)
    assert not isinstance(Failure("check"), float)


def test_its_scale_is_that_of_shares_whatever_the_rubric_says() -> None:
    assert Checklist(THREE).scale(ASKED) == Scale(0, 1, decimals=True)
