"""Quiet trouble is loud: one warning each time it begins."""

from __future__ import annotations

import logging

import pytest

from flexjudge_reward import Failure, FlexJudgeReward, Judge, Pointwise, ScriptedEngine
from flexjudge_reward.judge.rewards import Outcome
from flexjudge_reward.trainers.alarms import FLAT_GROUPS, Alarms

FLAT, GOOD, ALONE = [0.5, 0.5], [0.5, 0.6], [0.5]
BAD = Failure("malformed", "x")


def began(groups: list[list[Outcome]], limit: float = 0.05) -> list[str]:
    """The troubles that began, in order, with a call per group."""
    alarms = Alarms(limit)
    return [name for group in groups for name in alarms.look(group, [0] * len(group))]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        pytest.param([FLAT] * (FLAT_GROUPS - 1), [], id="one-less"),
        pytest.param([FLAT] * FLAT_GROUPS, ["no_variance"], id="begins"),
        pytest.param([FLAT] * 3 * FLAT_GROUPS, ["no_variance"], id="once"),
        pytest.param(([FLAT] * FLAT_GROUPS + [GOOD]) * 2, ["no_variance"] * 2, id="begins-again"),
        pytest.param([FLAT, GOOD] * FLAT_GROUPS, [], id="half"),
        pytest.param([ALONE] * 3 * FLAT_GROUPS, [], id="groups-of-one"),
        pytest.param([[BAD, 0.5]] * 40, [], id="too-few-to-tell"),
        pytest.param([[BAD, *[0.5, 0.6] * 10]] * 20, ["failures"], id="failures"),
        pytest.param([[BAD, *[0.5, 0.6] * 30]] * 20, [], id="few-failures"),
        pytest.param([[Failure("unfinished", "x"), *[0.5, 0.6] * 3]] * 40, [], id="cut-thoughts"),
    ],
)
def test_a_trouble_is_said_when_it_begins(groups: list[list[Outcome]], expected: list[str]) -> None:
    assert began(groups) == expected


def test_it_is_in_the_log_and_in_the_summary(caplog: pytest.LogCaptureFixture) -> None:
    one = FlexJudgeReward(Judge(Pointwise(), ScriptedEngine(lambda _: "<think>x</think><answer>7</answer>")))
    for step in range(FLAT_GROUPS + 5):
        one([f"q{step}"] * 2, ["a", "b"])
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "the same score in the last 20 groups" in caplog.text
    assert one.summary.alarms == {"no_variance": 1} and "WARNING: no variance" in str(one.summary)
