"""NeMo Gym 0.4: its own resources server verifies rollouts with the judge, on a reward server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flexjudge_reward import FlexJudgeReward, Generation, Judge, Pointwise, Request, RewardSession, ScriptedEngine
from support.judging import tags
from support.serving import Serving
from support.trainer_checks import Record, same_rewards
from support.trainer_venvs import run

JOB = Path(__file__).with_name("nemo_gym_job.py")


def answer(request: Request) -> str | Generation:
    """The score of an answer is its number; 2 cannot be judged."""
    number = next(number for number in range(1, 5) if f"red star {number}" in str(request.prompt))
    return Generation.failed("transport", "no route") if number == 2 else tags(number)


@pytest.mark.timeout(300)
def test_a_resources_server_verifies_with_the_judge(tmp_path: Path, record_property: Record) -> None:
    engine = ScriptedEngine(answer)
    with Serving(RewardSession(Judge(Pointwise(), engine))) as serving:
        run("nemo_gym", ["python", str(JOB), "result.json"], tmp_path, FLEXJUDGE_REWARD_SERVER=serving.url)
    found = json.loads((tmp_path / "result.json").read_text())
    assert [status for status, _ in found] == [200, 500, 200, 200]
    expected = FlexJudgeReward(Judge(Pointwise(), ScriptedEngine(answer)))(
        ["What is top left?"] * 3, [f"red star {number}" for number in (1, 3, 4)]
    )
    same_rewards(record_property, [number for _, number in found if number is not None], expected, 0.5)
    for prompt in engine.prompts:
        assert len(prompt.media) == 1 and "the left" in str(prompt) and "I look." not in str(prompt)
