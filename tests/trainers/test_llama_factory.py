"""LLaMA-Factory 0.9: its own PPO training on a CPU asks the reward server for its rewards."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flexjudge_reward import Judge, Pointwise, Request, RewardSession, ScriptedEngine, Untrusted
from support.judging import candidates, tags
from support.serving import Serving
from support.trainer_venvs import place, run_in

JOB = Path(__file__).with_name("llama_factory_job.py")


def answer(request: Request) -> str:
    return tags(1 + len(candidates(request)[0]) % 10)


@pytest.mark.timeout(300)
def test_ppo_trains_with_the_judge(tmp_path: Path) -> None:
    engine, folder = ScriptedEngine(answer), place("llama_factory")
    session = RewardSession(Judge(Pointwise(), engine))
    with Serving(session, token="secret") as serving:
        url = serving.url.replace("://", "://any:secret@") + "/scores"
        said = run_in([sys.executable, str(JOB), url], tmp_path, folder, DISABLE_VERSION_CHECK="1")
    assert "reward" in said and len(engine.prompts) == 8
    for request in engine.requests:
        (wrote,) = candidates(request)
        parts = [part.text for part in request.prompt.messages[1].parts if isinstance(part, Untrusted)]
        assert sum("What is in place" in part for part in parts) == 1 and "What is in place" not in wrote
