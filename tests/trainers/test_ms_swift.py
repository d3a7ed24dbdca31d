"""ms-swift 4.6: the real `swift rlhf --rlhf_type grpo` trains the embedded policy with a judge on a reward server."""

from __future__ import annotations

import json
from pathlib import Path
from zlib import crc32

import pytest

from flexjudge_reward import Generation, Judge, Pointwise, Request, RewardSession, ScriptedEngine
from support.judging import candidates, tags
from support.serving import Serving
from support.swift_runs import batches, train, trl_rewards
from support.trainer_checks import Record, no_advantage, same_rewards


@pytest.mark.timeout(590)
@pytest.mark.parametrize("ranks", [1, 2])
def test_ms_swift_trains_with_the_rewards_that_trl_gets(ranks: int, tmp_path: Path, record_property: Record) -> None:
    settings = {"model": "nano", "format": "listwise", "cache": str(tmp_path / "cache.sqlite")}
    flags = f"""--num_generations 4 --per_device_train_batch_size {8 if ranks == 1 else 6} --max_steps 2
        --gradient_accumulation_steps 1 --learning_rate 2e-4 --save_strategy no"""
    with Serving(RewardSession(settings=settings)) as serving:
        said = train(tmp_path, serving.url, ranks, 24, *flags.split())
        # ms-swift's own figure of the reward is the mean of what the adapter gave.
        assert "rewards/FlexJudge/mean" in said
        called = batches(tmp_path, ranks, 2)
        again = [number for batch in called for number in trl_rewards(batch, serving.session, 4)]
    given = [row[3] for batch in called for row in batch]
    same_rewards(record_property, given, again, 0.5)
    assert len(set(given)) > 1


def answer(request: Request) -> str | Generation:
    """A score by the letters of an answer; one in four cannot be judged."""
    letters = crc32(candidates(request)[0].encode())
    return tags(1 + letters % 10) if letters % 4 else Generation.failed("transport", "no route")


@pytest.mark.timeout(590)
def test_a_failed_row_has_no_advantage(tmp_path: Path, record_property: Record) -> None:
    session = RewardSession(Judge(Pointwise(), ScriptedEngine(answer)), {"max_failure_rate": 1.0})
    flags = """--num_generations 8 --per_device_train_batch_size 64 --max_steps 1 --gradient_accumulation_steps 1
        --learning_rate 2e-4 --save_strategy no --log_completions true --temperature 2"""
    with Serving(session) as serving:
        train(tmp_path, serving.url, 1, 24, *flags.split(), FLEXJUDGE_MAX_FAILURE_RATE="1")
        (batch,) = batches(tmp_path, 1, 1)
        same_rewards(record_property, [row[3] for row in batch], trl_rewards(batch, serving.session, 8), 0.5)
    (log,) = tmp_path.glob("out/*/completions.jsonl")
    logged = json.loads(log.read_text().splitlines()[0])  # it logs its last step again
    lost = {row[2]: crc32(row[2].encode()) % 4 == 0 for row in batch}
    assert sorted(logged["completion"]) == sorted(row[2] for row in batch)
    no_advantage(record_property, logged["advantages"], [lost[text] for text in logged["completion"]])
