"""verl's own reward loop, agent loop and v1 queue with the judge as reward; run with verl's environment.

    python verl_job.py loop|agent|queue RESULT.json OVERRIDE...

Only the server of the language model is a stand-in: it answers "red star 1", "red star 2" and so on.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from hydra import compose, initialize_config_module
from PIL import Image
from transformers import AutoTokenizer
from verl import DataProto

from flexjudge_reward.nano import path

BASE = str(path("base"))
UIDS, NUMBERS = "abcabcabcabc", (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 2, 3)  # a group goes over both workers


class Policy:
    """Stands for verl's client of the language model's server."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.count = tokenizer, 0

    async def generate(self, request_id: str, *, prompt_ids: Any, sampling_params: Any, **_: Any) -> Any:
        """The next answer as tokens."""
        from verl.workers.rollout.replica import TokenOutput

        self.count += 1
        text = f"red star {self.count}"
        ids = [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
        steps = {"min_global_steps": 0, "max_global_steps": 0}
        return TokenOutput(token_ids=ids, log_probs=[0.0] * len(ids), extra_fields=steps)


def objects(values: list[Any]) -> Any:
    """An array of Python objects, which may be lists."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def columns(count: int, uids: str = "") -> dict[str, Any]:
    """The columns of so many rows; those of one `uid` have one image."""
    images = bool(uids)
    texts = [{"type": "text", "text": "What is top left?"}]
    shown = [[{"type": "image", "image": Image.new("RGB", (56, 56), (ord(uid), 0, 0))}] for uid in uids or "a" * count]
    contents = [[*image, *texts] if images else "What is top left?" for image in shown]
    return {
        "raw_prompt": objects([[{"role": "user", "content": content}] for content in contents]),
        "data_source": objects(["nano"] * count),
        "reward_model": objects([{"style": "rule", "ground_truth": "red star"}] * count),
        "extra_info": objects([{"index": n, "question": "What is top left?"} for n in range(count)]),
        "index": np.arange(count),
    }


def loop(config: Any, tokenizer: Any) -> Any:
    """`compute_rm_score` over two workers, groups split between them."""
    from verl.experimental.reward_loop import RewardLoopManager
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    texts = [f"red star {number}" for number in NUMBERS]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    width = max(map(len, ids))
    responses = torch.tensor([one + [tokenizer.pad_token_id] * (width - len(one)) for one in ids])
    mask = torch.tensor([[1] * (3 + len(one)) + [0] * (width - len(one)) for one in ids])
    prompts = torch.ones(len(texts), 3, dtype=torch.long)
    tensors = {"prompts": prompts, "responses": responses, "attention_mask": mask}
    tensors["input_ids"] = torch.cat([prompts, responses], 1)
    rows = {**columns(len(texts), UIDS), "uid": objects([*UIDS])}
    manager = RewardLoopManager(config)
    out = manager.compute_rm_score(DataProto.from_dict(tensors, non_tensors=rows))
    notes = {name: value.tolist() for name, value in out.non_tensor_batch.items()}
    rewards = out.batch["rm_scores"]
    response = mask[:, 3:]
    advantages, _ = compute_grpo_outcome_advantage(rewards.clone(), response, rows["uid"])
    moved = (advantages.sum(1) / response.sum(1)).tolist()
    return {"scores": rewards.sum(1).tolist(), "notes": notes, "texts": texts, "uids": UIDS, "advantages": moved}


def agent(config: Any, tokenizer: Any) -> Any:
    """The agent loop with images."""
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
    from verl.experimental.reward_loop import RewardLoopManager

    manager = RewardLoopManager(config)
    worker = AgentLoopWorker(config, Policy(tokenizer), reward_loop_worker_handles=manager.reward_loop_worker_handles)
    rows = {**columns(4, "aabb"), "uid": objects([*"aabb"])}
    batch = DataProto(batch=None, non_tensor_batch=rows, meta_info={"global_steps": 0, "validate": False})
    out = asyncio.run(worker.generate_sequences(batch))
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in out.batch["responses"]]
    return {"scores": out.batch["rm_scores"].sum(1).tolist(), "texts": texts, "keys": sorted(out.non_tensor_batch)}


def queue(config: Any, tokenizer: Any) -> Any:
    """The v1 trainer's queue: which trajectories are left."""
    import transfer_queue
    from verl.experimental.reward_loop import RewardLoopManager
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
    from verl.utils import tensordict_utils

    transfer_queue.init(config.transfer_queue)
    manager = RewardLoopManager(config)
    worker = AgentLoopWorkerTQ.remote(config, Policy(tokenizer), None, manager.reward_loop_worker_handles)
    uids = objects([str(uuid.uuid4())])
    batch = tensordict_utils.get_tensordict({**columns(1), "index": objects([0]), "uid": uids})
    tensordict_utils.assign_non_tensor_data(batch, "global_steps", 0)
    tags = [{"is_prompt": True, "status": "pending", "global_steps": 0}]
    transfer_queue.kv_batch_put(keys=list(uids), partition_id="train", tags=tags)
    ray.get(worker.generate_sequences.remote(batch))
    for _ in range(90):
        time.sleep(1)
        found = transfer_queue.kv_list(partition_id="train")
        found = found.get("train", found)
        if any(tag.get("status") in ("finished", "failure") for tag in found.values()):
            break
    return {"tags": list(found.values()), "left": sum(not tag.get("is_prompt") for tag in found.values())}


def main() -> None:
    """Runs one of them; writes what came of it."""
    what, result, *overrides = sys.argv[1:]
    settings = {
        "actor_rollout_ref.model.path": BASE,
        "actor_rollout_ref.rollout.name": "vllm",
        "actor_rollout_ref.rollout.n": {"loop": 4, "agent": 2, "queue": 3}[what],
        "actor_rollout_ref.rollout.prompt_length": 64,
        "actor_rollout_ref.rollout.response_length": 16,
        "data.max_prompt_length": 64,
        "data.max_response_length": 16,
        "reward.num_workers": 2,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
    }
    with initialize_config_module("verl.trainer.config", version_base=None):
        named = [f"{name}={value}" for name, value in settings.items()]
        config = compose("ppo_trainer", overrides=[*named, *overrides])
    workers = {
        "env_vars": {name: value for name, value in os.environ.items() if name.startswith(("FLEXJUDGE", "PYTHONP"))}
    }
    ray.init(num_cpus=12, include_dashboard=False, runtime_env=workers)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    found = {"loop": loop, "agent": agent, "queue": queue}[what](config, tokenizer)
    Path(result).write_text(json.dumps(found, default=str))
    ray.shutdown()


if __name__ == "__main__":
    main()
