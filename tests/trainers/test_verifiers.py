"""verifiers 0.4: its own tasks score rollouts with the judge as a plugged reward, on a reward server."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.stars import expected, rolled_out
from support.trainer_checks import Record, same_rewards

JOB = Path(__file__).with_name("verifiers_job.py")


@pytest.mark.timeout(300)
def test_a_task_scores_rollouts_with_the_judge(tmp_path: Path, record_property: Record) -> None:
    found, engine = rolled_out("verifiers", JOB, tmp_path)
    assert found["scores"][1] is None
    same_rewards(record_property, [one for one in found["scores"] if one is not None], expected(), 0.5)
    assert found["rewards"] == pytest.approx([0, 0, 4 / 9, 6 / 9])  # twice, by the weight
    assert ["TaskError" in one and "no route" in one for one in found["errors"]] == [False, True, False, False]
    assert all(len(prompt.media) == 1 and "the left" in str(prompt) for prompt in engine.prompts)
