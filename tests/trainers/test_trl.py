"""TRL 1.16, and axolotl 0.21 with its own loader and trainer: GRPO with the judge on a reward server."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from flexjudge_reward import FlexJudgeReward, Generation, Judge, Pointwise, Request, RewardSession, ScriptedEngine
from support.judging import candidates, tags
from support.serving import Serving
from support.trainer_checks import Record, no_advantage, same_rewards
from support.trainer_venvs import place, run_in

JOB = Path(__file__).with_name("grpo_job.py")


def answer(request: Request) -> str | Generation:
    """A score by the letters of an answer; one in three cannot be judged."""
    letters = sum(map(ord, candidates(request)[0]))
    return tags(1 + letters % 10) if letters % 3 else Generation.failed("transport", "no route")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("trainer", ["trl", "axolotl"])
def test_a_failed_row_has_no_advantage(trainer: str, tmp_path: Path, record_property: Record) -> None:
    packages = place("axolotl")  # both run where trainers are wanted: the suite has trainings in TRL of its own
    judge = Judge(Pointwise(), ScriptedEngine(answer))
    given = {"FLEXJUDGE_MAX_FAILURE_RATE": "1", "FLEXJUDGE_COMPLETION": "all"}
    with Serving(RewardSession(judge, {"max_failure_rate": 1.0})) as serving:
        command = [sys.executable, str(JOB), trainer, "result.json"]
        run_in(
            command, tmp_path, packages if trainer == "axolotl" else None, FLEXJUDGE_REWARD_SERVER=serving.url, **given
        )
    found = json.loads((tmp_path / "result.json").read_text())
    engine = ScriptedEngine(answer)
    reward = FlexJudgeReward(Judge(Pointwise(), engine), max_failure_rate=1, completion="all", num_generations=4)
    same_rewards(record_property, found["rewards"], reward(found["prompt"], found["completion"]), float("nan"))
    failed = [isinstance(answer(request), Generation) for request in engine.requests]
    no_advantage(record_property, found["advantages"], failed)
