"""ms-swift 4.6: the real `swift rlhf --rlhf_type grpo` trains the embedded policy with a judge on a reward server."""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path
from typing import Any

from flexjudge_recipes.nano import shapes

import pytest

from flexjudge_reward import FlexJudgeReward, RewardSession
from flexjudge_reward.nano import path
from support.serving import Serving
from support.trainer_venvs import ROOT, run

PLUGIN = ROOT / "flexjudge_reward" / "trainers" / "ms_swift" / "flexjudge_ms_swift.py"
WATCH = Path(__file__).parent / "swift" / "nano_policy.py"


def rows(folder: Path, count: int) -> Path:
    """Questions about images, in ms-swift's form."""
    rng = random.Random("swift")
    lines = []
    for number in range(count):
        question = shapes.question(rng, shapes.scene(rng), ("what", "count"))
        file = folder / "images" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        shapes.draw(question.scene, rng).save(file)
        lines.append({"messages": [{"role": "user", "content": f"<image>{question.text}"}], "images": [str(file)]})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "rows.jsonl"


def trl_rewards(calls: list[Any], session: RewardSession) -> list[float | None]:
    """What the same completions get in TRL."""
    questions = [messages[-2]["content"].removeprefix("<image>") for messages, *_ in calls]
    prompts = [[{"role": "user", "content": question}] for question in questions]
    images = [[one["path"]] for _, (one,), *_ in calls]
    reward = FlexJudgeReward(judge=session.judge, num_generations=4, media_root="/")
    return reward(prompts, [completion for _, _, completion, _ in calls], images=images)


@pytest.mark.timeout(590)
@pytest.mark.parametrize("ranks", [1, 2])
def test_ms_swift_trains_with_the_rewards_that_trl_gets(ranks: int, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {"model": "nano", "format": "listwise", "cache": str(tmp_path / "cache.sqlite")}
    words = f"""rlhf --rlhf_type grpo --model {path("base")} --model_type qwen2_5_vl --template qwen2_5_vl
        --dataset {rows(tmp_path, 24)} --external_plugins {PLUGIN} {WATCH} --reward_funcs flexjudge --num_generations 4
        --per_device_train_batch_size {8 if ranks == 1 else 6} --gradient_accumulation_steps 1 --max_completion_length 8
        --max_steps 2 --torch_dtype float32 --bf16 false --use_vllm false --attn_impl sdpa --use_cpu true
        --report_to none --save_strategy no --dataset_num_proc 1 --dataloader_num_workers 0 --learning_rate 2e-4
        --max_length 512 --logging_steps 1 --output_dir out {"--ddp_backend gloo" if ranks == 2 else ""}"""
    with Serving(RewardSession(settings=settings)) as serving:
        several = {"NPROC_PER_NODE": "2", "MASTER_PORT": port} if ranks == 2 else {}
        server = {"FLEXJUDGE_REWARD_SERVER": serving.url, "FLEXJUDGE_MEDIA_ROOT": str(tmp_path)}
        said = run("swift", ["swift", *words.split()], tmp_path, **several, **server)
        # ms-swift's own figure of the reward is the mean of what the adapter gave.
        assert "rewards/FlexJudge/mean" in said
        calls = [
            [json.loads(line) for line in (tmp_path / f"calls.{rank}.jsonl").read_text().splitlines()]
            for rank in range(ranks)
        ]
        share = len(calls[0]) // 2
        batches = [[row for own in calls for row in own[n * share : (n + 1) * share]] for n in range(2)]
        scores: set[float] = set()
        for batch in batches:
            scores |= {row[3] for row in batch}
            assert [row[3] for row in batch] == trl_rewards(batch, serving.session)
        assert len(scores) > 1
