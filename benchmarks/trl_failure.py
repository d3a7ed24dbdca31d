"""Which advantage a row with a failed judgement gets in TRL's GRPOTrainer, beside a second reward.

    python benchmarks/trl_failure.py

A tiny text policy, two aggregation modes, 20 steps of four groups of eight each; one judgement in five fails in one of
six ways that no candidate causes (never finished, cut, lost, late, broken, prompt cut); the other reward is constant.
`breaking.py` has those that a candidate causes. The same again with every prompt twice in a batch, since the reward is
not given the group size (`num_generations`). The trainer's own advantages are read. Records
`trl.failed_row_advantage_max` and `trl.failed_row_advantage_max_repeated`.
"""

from __future__ import annotations

import random
import tempfile
from typing import Any

import torch
from datasets import Dataset
from figures import record
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from flexjudge_reward import FlexJudgeReward, Generation, Judge, Pointwise, Request, ScriptedEngine, nano
from flexjudge_reward.types import FailureKind

STEPS, GROUPS, SIZE = 20, 4, 8
KINDS: tuple[FailureKind, ...] = ("transport", "timeout", "engine", "prompt_cut")
FAILED = ["<think>never done", Generation("<think>cut", "length"), *(Generation.failed(kind, "") for kind in KINDS)]
MODES = ("sum_then_normalize", "normalize_then_sum")


class Replies:
    """A script that fails one time in five, and records when."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.failed: list[bool] = []

    def __call__(self, request: Request) -> Generation | str:
        self.failed.append(self.rng.random() < 0.2)
        return (
            self.rng.choice(FAILED)
            if self.failed[-1]
            else f"<think>x</think><answer>{self.rng.randint(1, 10)}</answer>"
        )


def constant(completions: list[Any], **columns: Any) -> list[float]:
    """The second reward."""
    return [0.25] * len(completions)


def policy() -> tuple[Any, Any]:
    """A tiny text model, and the embedded model's tokenizer."""
    words = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(nano.path("base") / "tokenizer.json"), **words)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **size, **ids)
    return Qwen2ForCausalLM(config), tokenizer


class Advantages(GRPOTrainer):  # type: ignore[misc]
    """Keeps the advantages of every step; the trainer's own log holds the last ones only."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        found = super()._generate_and_score_completions(inputs)
        self.seen = [*getattr(self, "seen", []), *found["advantages"].tolist()]
        return found


def measure(mode: str, seed: int, prompts: int) -> tuple[list[float], int]:
    """The advantages of the failed rows, and how many rows there were; with so many different prompts."""
    replies = Replies(seed)
    reward = FlexJudgeReward(Judge(Pointwise(), ScriptedEngine(replies)), max_failure_rate=1)
    model, tokenizer = policy()
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            multi_objective_aggregation=mode,
            max_steps=STEPS,
            per_device_train_batch_size=GROUPS * SIZE,
            num_generations=SIZE,
            max_completion_length=4,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=STEPS,
            shuffle_dataset=False,
        )
        rows = Dataset.from_list([{"prompt": f"Question {n % prompts}?"} for n in range(64)])
        trainer = Advantages(model, [reward, constant], args=config, train_dataset=rows, processing_class=tokenizer)
        trainer.train()
    return [value for value, failed in zip(trainer.seen, replies.failed, strict=True) if failed], len(trainer.seen)


def main() -> None:
    """Measures both modes, with each prompt once and twice in a batch, and records the largest advantages."""
    for prompts, name in ((64, "trl.failed_row_advantage_max"), (GROUPS // 2, "trl.failed_row_advantage_max_repeated")):
        worst, failed, rows = 0.0, 0, 0
        for seed, mode in enumerate(MODES):
            advantages, count = measure(mode, seed, prompts)
            largest = max(map(abs, advantages))
            print(f"{mode}: {len(advantages)} failed rows of {count}, largest advantage {largest:.2e}")
            worst, failed, rows = max(worst, largest), failed + len(advantages), rows + count
        note = f"{failed} failed of {rows} rows, both aggregation modes, six kinds of failure, constant second reward"
        record(name, worst, unit="advantage", target="<= 1e-06", note=note)


if __name__ == "__main__":
    main()
