"""What the recipes share about the embedded world: its questions, a policy's answers to them, and the truth.

`grpo_vlm.py` and `dpo_vlm.py` train the same policy on the same questions, so that their numbers can be compared.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import transformers

from flexjudge_reward.nano import world

KINDS: tuple[world.Kind, ...] = ("what", "count")  # the base model's bad habits are in these two


def chat(question: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversational prompt; TRL puts the row's pictures in."""
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": question}]


@dataclass(frozen=True)
class HeldOut:
    """Questions about pictures that no training ever saw, with known answers."""

    asked: list[world.Question]
    pictures: list[Any]

    @classmethod
    def draw(cls, count: int) -> HeldOut:
        """Always the same ones."""
        rng = random.Random("held out")
        asked = [world.question(rng, world.scene(rng, held_out=True), KINDS) for _ in range(count)]
        return cls(asked, [world.draw(one.scene, rng) for one in asked])

    def accuracy(self, model: Any, processor: Any, batch: int = 100) -> float:
        """The share that greedy decoding answers right."""
        return self.shares(model, processor, batch)[0]

    def shares(self, model: Any, processor: Any, batch: int = 100) -> tuple[float, float]:
        """The shares of greedy answers that are right, and that are of the asked form."""
        replies: list[str] = []
        for start in range(0, len(self.asked), batch):
            part = slice(start, start + batch)
            replies += answer(model, processor, self.asked[part], self.pictures[part])
        pairs = list(zip(self.asked, replies, strict=True))
        right = sum(world.is_correct(one, reply) for one, reply in pairs)
        formed = sum(world.parse(one, reply) is not None for one, reply in pairs)
        return right / len(pairs), formed / len(pairs)


def answer(model: Any, processor: Any, asked: Sequence[world.Question], pictures: Sequence[Any]) -> list[str]:
    """Greedy answers to questions about pictures."""
    import torch

    messages = [
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": one.text}]}]
        for one, picture in zip(asked, pictures, strict=True)
    ]
    inputs = processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    ).to(model.device)
    training = model.training
    model.eval()
    with torch.no_grad():
        written = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    model.train(training)
    return list(processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def pictures_only(folder: str) -> Any:
    """The nano policy's processor. Its part for clips needs torchvision, which two CPU cores have no use for."""

    class Qwen2_5_VLProcessor(transformers.Qwen2_5_VLProcessor):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    return Qwen2_5_VLProcessor.from_pretrained(folder)
