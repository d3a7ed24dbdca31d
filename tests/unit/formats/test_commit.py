"""CommitFirst: the judge's own answer comes first, is the reference, and is in the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexjudge_reward import (
    Checklist,
    CommitFirst,
    ConfigError,
    Criterion,
    Example,
    Failure,
    Format,
    Generation,
    Judge,
    JudgeConfig,
    MajorityVote,
    Pairwise,
    Pointwise,
    PositionSwap,
    Record,
    Request,
    Rubric,
    Sampling,
    ScriptedEngine,
    judge_groups,
    read_record,
)
from flexjudge_reward.judge.rewards import causes, rewards
from flexjudge_reward.prompts.quoting import flatten


def shown(request: Request) -> str:
    return "".join(str(flatten(message)) for message in request.prompt.messages)


ASKED = Example("What is 2 + 2?", ["5"])
VERDICT = "<think>y</think><answer>3</answer>"


def test_the_own_answer_comes_before_the_candidates(tmp_path: Path) -> None:
    engine = ScriptedEngine(["<think>x</think>\n4, since <answer>9</answer>", VERDICT])
    record = Record(tmp_path / "r.jsonl")
    (verdict,) = Judge(CommitFirst(Pointwise()), engine, record=record)([ASKED])
    assert verdict.scores == (3.0,) and verdict.own_answer == "4, since <answer>9</answer>"
    assert len(verdict.generations) == 2
    first, second = (shown(request) for request in engine.requests)
    assert "What is 2 + 2?" in first and "5" not in first
    assert second.index("4, since") < second.index("Assistant 1's Answer")
    assert next(read_record(tmp_path / "r.jsonl"))["own_answer"] == verdict.own_answer


def test_a_reference_is_better_than_an_own_answer() -> None:
    engine = ScriptedEngine([VERDICT])
    (verdict,) = Judge(CommitFirst(Pointwise()), engine)([Example("q", ["5"], "4")])
    assert verdict.own_answer == "" and len(engine.requests) == 1


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        pytest.param("<think>x</think>  ", "empty", id="nothing"),
        pytest.param("<think>x</think>" + "a" * 10_001, "malformed", id="too_long"),
        pytest.param(Generation("<think>x", "length"), "truncated", id="cut"),
        pytest.param("I am sorry, no.", "refused", id="refused"),
        pytest.param(Generation.failed("timeout", "late"), "timeout", id="not_reached"),
    ],
)
def test_without_an_own_answer_the_judgement_fails(reply: str | Generation, kind: str) -> None:
    (verdict,) = Judge(CommitFirst(Pointwise()), ScriptedEngine([reply]))([ASKED])
    assert verdict.failure is not None and verdict.failure.kind == kind and len(verdict.generations) == 1


@pytest.mark.parametrize(
    ("format", "kinds"),
    [
        pytest.param(CommitFirst(Pointwise()), ["malformed"] * 3, id="alone"),
        pytest.param(MajorityVote(CommitFirst(Pointwise()), 2), ["malformed"] * 3, id="votes"),
        pytest.param(PositionSwap(CommitFirst(Pairwise())), ["malformed"] * 3, id="pairs"),
    ],
)
def test_no_candidate_causes_what_no_candidate_was_shown_for(format: Format, kinds: list[str]) -> None:
    judge = Judge(format, ScriptedEngine(lambda request: "no tags"), Sampling(1.0)).for_group_size()
    (result,) = judge_groups(judge, [Example("q", ["a", "b", "c"])], again=True)
    failures = [one for one in result.outcomes if isinstance(one, Failure)]
    assert [one.kind for one in failures] == kinds
    assert set(causes(result.outcomes, "ggg")) == {"ours"} and rewards(result.outcomes, "ggg") == [None] * 3


def test_the_own_answer_is_asked_once_more() -> None:
    engine = ScriptedEngine(["no tags", "<think>x</think>4", VERDICT])
    (result,) = judge_groups(Judge(CommitFirst(Pointwise()), engine), [ASKED], again=True)
    assert result.raw_score(0) == 3.0 and len({request.sampling.seed for request in engine.requests}) == 2


def test_a_check_sees_no_own_answer_as_the_reference() -> None:
    seen: list[object] = []

    def named(example: Example) -> bool:
        seen.append(example.reference)
        return True

    rubric = Rubric(items=(Criterion("named", 1.0, check=named), Criterion("kind", 1.0)))
    engine = ScriptedEngine(["<think>x</think>my own", "<think>x</think><answer>yes</answer>"] * 2)
    judge = Judge(CommitFirst(Checklist(rubric)), engine)
    assert judge.score("q", "a").scores == (1.0,) and "my own" in shown(engine.requests[1])
    assert seen == [None]
    judge.score("q", "a", "truth")
    assert seen == [None, ("truth",)]


def test_it_works_inside_other_wrappers_and_as_a_setting() -> None:
    def reply(request: Request) -> str:
        return "<think>x</think>4" if "own answer" in shown(request) else VERDICT + "<answer>7</answer>"

    format = PositionSwap(CommitFirst(Pairwise()))
    (verdict,) = Judge(format, ScriptedEngine(reply))([Example("q", ["a", "b"])])
    assert verdict.own_answer == "4" and verdict.scores == (5.0, 5.0)
    settings = {"model": "nano", "cache": "off", "commit_first": True}
    built = JudgeConfig.resolve({**settings, "prompt_set": "flex"}).build(1)
    assert built.format.described() == "BudgetForcing(CommitFirst(Pointwise))"
    with pytest.raises(ConfigError, match="prompt set 'nano' has no text for the format 'answer'"):
        JudgeConfig.resolve(settings).build(1)
