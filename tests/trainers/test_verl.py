"""verl 0.9: its own reward loop, agent loop with images and v1 queue, with the judge on a reward server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flexjudge_reward import (
    FlexJudgeReward,
    Format,
    Generation,
    Judge,
    Listwise,
    Pointwise,
    Request,
    RewardSession,
    ScriptedEngine,
)
from support.judging import candidates, tags
from support.serving import Serving
from support.trainer_checks import Record, no_advantage, same_rewards
from support.trainer_venvs import run

JOB = Path(__file__).with_name("verl_job.py")
MODULE = "pkg://flexjudge_reward.trainers.verl"
MANAGER = [
    "reward.reward_manager.source=importlib",
    "reward.reward_manager.name=FlexJudgeRewardManager",
    f"reward.reward_manager.module.path={MODULE}",
]
FUNCTION = [f"reward.custom_reward_function.path={MODULE}", "reward.custom_reward_function.name=compute_score"]


def answer(request: Request) -> str | Generation:
    """The score of an answer is the number at its end; one that ends with 2 cannot be judged."""
    numbers = [int(text.split()[-1]) for text in candidates(request)]
    return Generation.failed("transport", "no route") if 2 in numbers else tags(*numbers)


def job(what: str, format: Format, folder: Path, *overrides: str, **settings: str) -> tuple[Any, ScriptedEngine]:
    """What came of a job in verl's environment, and what the judge was asked."""
    engine, result = ScriptedEngine(answer), folder / "result.json"
    with Serving(RewardSession(Judge(format, engine).for_group_size())) as serving:
        named = {"FLEXJUDGE_REWARD_SERVER": serving.url, "FLEXJUDGE_VERL_IDLE": "60", "RAY_AUTH_MODE": "disabled"}
        run("verl", ["python", str(JOB), what, str(result), *overrides], folder, **named, **settings)
    return json.loads(result.read_text()), engine


@pytest.mark.timeout(590)
@pytest.mark.parametrize("format", [Listwise(), Pointwise()], ids=lambda format: format.name)
def test_groups_that_are_split_over_workers_are_judged_whole(
    format: Format, tmp_path: Path, record_property: Record
) -> None:
    found, engine = job("loop", format, tmp_path, *MANAGER, "trainer.use_v1=false")
    reward = FlexJudgeReward(Judge(format, ScriptedEngine(answer)), num_generations=4, max_failure_rate=1)
    prompts = [[{"role": "user", "content": "What is top left?"}]] * len(found["texts"])
    images = [[Image.new("RGB", (56, 56), (ord(uid), 0, 0))] for uid in found["uids"]]
    expected = reward(prompts, found["texts"], images=images)
    same_rewards(record_property, found["scores"], expected, 0.5)
    lost = [number.endswith(" 2") for number in found["texts"]]
    if format.max_candidates > 1:  # a list that fails has no score for any of its rows
        lost = [uid in {other for other, one in zip(found["uids"], lost, strict=True) if one} for uid in found["uids"]]
    assert found["notes"]["flexjudge_failed"] == lost and "uid" not in found["notes"]
    no_advantage(record_property, found["advantages"], lost)
    assert all(len(prompt.media) == 1 for prompt in engine.prompts)


@pytest.mark.timeout(590)
def test_the_agent_loop_rewards_images(tmp_path: Path) -> None:
    found, engine = job("agent", Pointwise(), tmp_path, *MANAGER, "trainer.use_v1=false")
    numbers = [int(text.split()[-1]) for text in found["texts"]]
    scores = dict(zip(numbers, found["scores"], strict=True))
    assert [scores[n] for n in (1, 3, 4)] == pytest.approx([0, 2 / 9, 3 / 9]) and "flexjudge_score" in found["keys"]
    sibling = numbers[numbers.index(2) ^ 1]
    assert scores[2] == pytest.approx(scores[sibling])
    assert all(len(prompt.media) == 1 for prompt in engine.prompts)


@pytest.mark.timeout(590)
def test_the_v1_queue_leaves_out_a_sample_without_a_reward(tmp_path: Path) -> None:
    found, _ = job("queue", Pointwise(), tmp_path, *FUNCTION)
    assert found["left"] == 2  # of three trajectories
