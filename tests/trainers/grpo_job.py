"""A GRPO training on a CPU in TRL, or in axolotl with its own loader of rewards; run with the trainer's packages.

python grpo_job.py trl|axolotl RESULT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from tiny_policy import policy


def parts(trainer: str) -> tuple[Any, Any, Any]:
    """The judge, the configuration and the trainer."""
    if trainer == "axolotl":
        from axolotl.core.trainers.grpo import GRPOStrategy
        from axolotl.core.trainers.grpo.args import AxolotlGRPOConfig
        from axolotl.core.trainers.grpo.trainer import AxolotlGRPOTrainer

        reward = GRPOStrategy.get_reward_func("flexjudge_reward.trainers.trl.flexjudge")
        return reward, AxolotlGRPOConfig, AxolotlGRPOTrainer
    from trl import GRPOConfig, GRPOTrainer

    from flexjudge_reward.trainers.trl import flexjudge

    return flexjudge, GRPOConfig, GRPOTrainer


def main() -> None:
    """Trains a step of four groups of four."""
    reward, config, trainer = parts(sys.argv[1])
    args = config(
        output_dir="out", use_cpu=True, bf16=False, max_steps=1, per_device_train_batch_size=16, num_generations=4,
        max_completion_length=4, report_to="none", save_strategy="no", gradient_checkpointing=False,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": f"What is {place}?"} for place in ("here", "there", "up", "down")])
    training = trainer(policy(Path("policy")), [reward], args=args, train_dataset=rows)
    training.train()
    found = {name: list(training._logs[name]) for name in ("prompt", "completion", "advantages")}
    Path(sys.argv[2]).write_text(json.dumps({**found, "rewards": list(training._logs["rewards"]["flexjudge"])}))


if __name__ == "__main__":
    main()
