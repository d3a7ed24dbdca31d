"""Environments in TRL's real GRPOTrainer: its loop of tools with images, and both ways to judge what came of it.

The policy is the embedded one, with TRL's template for tools; what it writes is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import FlexJudgeReward, Generation, Judge, Pointwise, Request, RewardSession, ScriptedEngine, nano
from flexjudge_reward.trainers import rows
from flexjudge_reward.trainers.environment import JudgedEnvironment
from support.images import noise
from support.judging import tags
from support.late import late, needs

needs("trl")
datasets, trl, templates = late("datasets"), late("trl"), late("trl.chat_template_utils")
vlm_task = late("flexjudge_recipes.nano.vlm_task")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Board(JudgedEnvironment):
    """A board that is looked at."""

    def reset(self, **row: Any) -> str:
        return " Look, then answer."

    def look(self, place: str) -> list[dict[str, Any]]:
        """
        Shows a place.

        Args:
            place: which one.
        """
        return [{"type": "image", "image": noise(56, 56)}, {"type": "text", "text": f"the {place}"}]

    async def answer(self, text: str) -> str:
        """
        Takes the answer.

        Args:
            text: what is there.
        """
        return "thanks"


def call(name: str, **arguments: str) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call><|im_end|>"


def grade(request: Request) -> Generation | str:
    text = str(request.prompt)
    return Generation.failed("transport", "no route") if "blue" in text else tags(9 if "red star" in text else 3)


def writing(tokenizer: Any) -> Callable[..., Any]:
    """Stands for the generation of a policy: it looks, answers, and says what it did."""
    turns = [[call("look", place="left")] * 3]
    turns += [[call("answer", text=text) for text in ("red star", "cat", "blue")], ["That was all.<|im_end|>"] * 3]

    def turn(prompts: Sequence[Any], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        return [tokenizer(text, add_special_tokens=False).input_ids for text in turns.pop(0)[: len(prompts)]], None

    return turn


def test_rollouts_are_judged_whole_as_a_reward_and_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    engine = ScriptedEngine(grade)
    monkeypatch.setattr(RewardSession, "judge", Judge(Pointwise(), engine))
    monkeypatch.setenv("FLEXJUDGE_PROBES", "0")
    rows._shared.cache_clear()
    processor = vlm_task.processor()
    processor.chat_template = templates.qwen3_vl_chat_template
    config = trl.GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, max_steps=1, num_generations=3,
        per_device_train_batch_size=3, max_completion_length=400, report_to="none", save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    data = datasets.Dataset.from_list([{"prompt": [{"role": "user", "content": "What is top left?"}]}])
    trainer = trl.GRPOTrainer(
        str(nano.path("base")), [FlexJudgeReward(max_failure_rate=1)], args=config, train_dataset=data,
        processing_class=processor, environment_factory=Board,
    )  # fmt: skip
    trainer._generate_single_turn = writing(processor.tokenizer)
    trainer.train()
    rows.meeting().close()
    rows._shared.cache_clear()
    assert [len(prompt.media) for prompt in engine.prompts] == [1] * 6
    for whole, asked in ((True, engine.prompts[:3]), (False, engine.prompts[3:])):  # the reward function goes first
        shown = str(asked[0])
        steps = ["Look, then answer.", '"place": "left"', "Media image", "the left", '"text": "red star"', "thanks"]
        assert sorted(steps, key=shown.index) == steps
        assert ("That was all." in shown) == whole
    for column in trainer._logs["rewards"].values():
        assert list(column) == pytest.approx([8 / 9, 2 / 9, 5 / 9])
    assert list(trainer._logs["advantages"])[2] == pytest.approx(0, abs=1e-6)
