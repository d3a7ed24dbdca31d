"""Real trainings of ms-swift with the embedded policy, and what its reward got and gave; the judge is on a server."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexjudge_recipes.nano import shapes

from flexjudge_reward import FlexJudgeReward, RewardSession
from flexjudge_reward.nano import path
from support.trainer_venvs import ROOT, run

PLUGIN = ROOT / "flexjudge_reward" / "trainers" / "ms_swift" / "flexjudge_ms_swift.py"
WATCH = ROOT / "tests" / "trainers" / "swift" / "nano_policy.py"


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


def train(folder: Path, url: str, ranks: int, count: int, *flags: str, timeout: float = 540, **variables: str) -> str:
    """What `swift rlhf --rlhf_type grpo` says, on so many rows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = f"""rlhf --rlhf_type grpo --model {path("base")} --model_type qwen2_5_vl --template qwen2_5_vl
        --dataset {rows(folder, count)} --external_plugins {PLUGIN} {WATCH} --reward_funcs flexjudge
        --max_completion_length 8 --torch_dtype float32 --bf16 false --use_vllm false --attn_impl sdpa --use_cpu true
        --report_to none --dataset_num_proc 1 --dataloader_num_workers 0 --split_dataset_ratio 0
        --max_length 512 --logging_steps 1 --output_dir out {"--ddp_backend gloo" if ranks > 1 else ""}"""
    several = {"NPROC_PER_NODE": str(ranks), "MASTER_PORT": port} if ranks > 1 else {}
    server = {"FLEXJUDGE_REWARD_SERVER": url, "FLEXJUDGE_MEDIA_ROOT": str(folder)}
    return run("swift", ["swift", *words.split(), *flags], folder, timeout, **several, **server, **variables)


def batches(folder: Path, ranks: int, count: int) -> list[list[Any]]:
    """What the reward got and gave, in each of `count` batches over all ranks: messages, images, completion, reward."""
    files = [folder / f"calls.{rank}.jsonl" for rank in range(ranks)]
    calls = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    share = len(calls[0]) // count
    return [[row for own in calls for row in own[n * share : (n + 1) * share]] for n in range(count)]


def trl_rewards(batch: Sequence[Any], session: RewardSession, size: int) -> list[float | None]:
    """What the same completions get in TRL, in groups of `size`."""
    questions = [messages[-2]["content"].removeprefix("<image>") for messages, *_ in batch]
    prompts = [[{"role": "user", "content": question}] for question in questions]
    images = [[one["path"]] for _, (one,), *_ in batch]
    reward = FlexJudgeReward(judge=session.judge, num_generations=size, media_root="/", max_failure_rate=1.0)
    return reward(prompts, [completion for _, _, completion, _ in batch], images=images)
