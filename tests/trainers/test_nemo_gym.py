"""NeMo Gym 0.4: its own resources server verifies rollouts with the judge, on a reward server."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.stars import expected, rolled_out
from support.trainer_checks import Record, same_rewards

JOB = Path(__file__).with_name("nemo_gym_job.py")


@pytest.mark.timeout(300)
def test_a_resources_server_verifies_with_the_judge(tmp_path: Path, record_property: Record) -> None:
    found, engine = rolled_out("nemo_gym", JOB, tmp_path)
    assert [status for status, _ in found] == [200, 500, 200, 200]
    same_rewards(record_property, [number for _, number in found if number is not None], expected(), 0.5)
    for prompt in engine.prompts:
        assert len(prompt.media) == 1 and "the left" in str(prompt) and "I look." not in str(prompt)
