"""Rollouts about red stars for environments of other packages, which are judged on a reward server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flexjudge_reward import FlexJudgeReward, Generation, Judge, Pointwise, Request, RewardSession, ScriptedEngine
from support.judging import tags
from support.serving import Serving
from support.trainer_venvs import run


def answer(request: Request) -> str | Generation:
    """The score of an answer is its number; 2 cannot be judged."""
    number = next(number for number in range(1, 5) if f"red star {number}" in str(request.prompt))
    return Generation.failed("transport", "no route") if number == 2 else tags(number)


def rolled_out(trainer: str, job: Path, folder: Path) -> tuple[Any, ScriptedEngine]:
    """What a job wrote to result.json in a trainer's environment, and the engine that judged its rollouts."""
    engine = ScriptedEngine(answer)
    with Serving(RewardSession(Judge(Pointwise(), engine))) as serving:
        run(trainer, ["python", str(job), "result.json"], folder, FLEXJUDGE_REWARD_SERVER=serving.url)
    return json.loads((folder / "result.json").read_text()), engine


def expected() -> list[float | None]:
    """The rewards of the rollouts that can be judged, in one process."""
    reward = FlexJudgeReward(Judge(Pointwise(), ScriptedEngine(answer)))
    return list(reward(["What is top left?"] * 3, [f"red star {number}" for number in (1, 3, 4)]))
