"""The task of `grpo_vlm` and `dpo_vlm` in miniature: questions about images of coloured shapes, and the truth.

Both recipes train the same policy on the same questions, so that their numbers can be compared. No training row holds
the truth; `Measure` knows it, for held-out images only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flexjudge_recipes.nano import shapes

import torch
import transformers
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from flexjudge_reward.nano import path

KINDS: tuple[shapes.Kind, ...] = ("what", "count")  # the base model's bad habits are in these two


def policy() -> str:
    """The folder of the embedded base model."""
    return str(path("base"))


def processor() -> Any:
    """The policy's processor. Its part for videos needs torchvision, and this task has none."""

    class Qwen2_5_VLProcessor(transformers.Qwen2_5_VLProcessor):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    return Qwen2_5_VLProcessor.from_pretrained(policy())


def training_rows(count: int, seed: str) -> Dataset:
    """Rows with a question and its image, as `prompt`, `question` and `image`."""
    rng = random.Random(seed)
    questions = [shapes.question(rng, shapes.scene(rng), KINDS) for _ in range(count)]
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": question.text}],
                "question": question.text,
                "image": shapes.draw(question.scene, rng),
            }
            for question in questions
        ]
    )


@dataclass(frozen=True)
class HeldOut:
    """Questions about images that no training ever saw, with known answers. Always the same ones."""

    questions: list[shapes.Question]
    images: list[Any]

    @classmethod
    def draw(cls, count: int = 400) -> HeldOut:
        """The first `count` of them."""
        rng = random.Random("held out")
        questions = [shapes.question(rng, shapes.scene(rng, held_out=True), KINDS) for _ in range(count)]
        return cls(questions, [shapes.draw(question.scene, rng) for question in questions])

    def shares(self, model: Any, processor: Any, batch: int = 100) -> tuple[float, float]:
        """The shares of greedy answers that are right, and that are well-formed."""
        replies: list[str] = []
        for start in range(0, len(self.questions), batch):
            part = slice(start, start + batch)
            replies += greedy(model, processor, self.questions[part], self.images[part])
        pairs = list(zip(self.questions, replies, strict=True))
        right = sum(shapes.is_correct(question, reply) for question, reply in pairs)
        formed = sum(shapes.parse(question, reply) is not None for question, reply in pairs)
        return right / len(pairs), formed / len(pairs)


class Measure(TrainerCallback):  # type: ignore[misc]
    """Accuracy on held-out images: before, every so many steps, and after. Between them, one short line per log.

    The measurements are in the trainer's log history, which its checkpoints hold: a resumed run has the earlier ones.
    """

    def __init__(self, every: int, shown: dict[str, str], count: int = 400) -> None:
        """
        Args:
            every: steps between two measurements.
            shown: names in the trainer's log, and what to print for them.
        """
        self.held_out, self.every, self.shown = HeldOut.draw(count), every, shown
        self.accuracy: dict[int, float] = {}
        self.well_formed: dict[int, float] = {}

    def attach(self, trainer: Any) -> None:
        """Replaces the trainer's own printing of thirty numbers a line."""
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        values = [f"{text} {logs[name]:.3f}" for name, text in self.shown.items() if name in (logs or {})]
        if state.is_world_process_zero and values:
            print(f"step {state.global_step:3}   {'   '.join(values)}", flush=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for entry in state.log_history:
            if "held_out/right" in entry:
                self.accuracy[entry["step"]] = entry["held_out/right"]
                self.well_formed[entry["step"]] = entry["held_out/well_formed"]
        if state.global_step == 0:
            self._measure(state, kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._measure(state, kwargs)

    def _measure(self, state: Any, kwargs: dict[str, Any]) -> None:
        if not state.is_world_process_zero:
            return
        right, formed = self.held_out.shares(kwargs["model"], kwargs["processing_class"])
        self.accuracy[state.global_step], self.well_formed[state.global_step] = right, formed
        shares = {"held_out/right": right, "held_out/well_formed": formed}
        state.log_history.append({"step": state.global_step, **shares})
        print(f"step {state.global_step:3}   right on {right:.1%} of held-out images", flush=True)


def greedy(model: Any, processor: Any, questions: Sequence[shapes.Question], images: Sequence[Any]) -> list[str]:
    """Greedy answers to questions about images."""
    messages = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question.text}]}]
        for question, image in zip(questions, images, strict=True)
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
