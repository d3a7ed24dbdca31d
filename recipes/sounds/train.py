"""GRPO of a generator of sounds, with a judge that hears as the reward.

    python recipes/sounds/train.py --config recipes/sounds/grpo.yaml

Two CPU cores, nothing to download: a tiny language model writes recordings of four sounds for requests such as "shrill
chirp third", six in ten of them with a fault, and learns better ones from the embedded judge that hears. The judge
never sees the settings that a recording was made from; by these the share of right ones is measured all the same.

    CUDA_VISIBLE_DEVICES=0 vllm serve jongwooko/Flex-Omni-7B --port 8001
    CUDA_VISIBLE_DEVICES=1 accelerate launch --num_processes 1 \\
        recipes/sounds/train.py --config recipes/sounds/grpo_llasa_1b.yaml

A completion that is no sound gets 0, as a fact, without a judge call; any other the judge's score between 0 and 1.
Every flag of TRL's GRPOConfig and ModelConfig works, in the file or on the command line. A run that was cut off
continues with --resume true.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from flexjudge_recipes.common import begin, loading, mapping, parsed, plot, publish, say
from flexjudge_recipes.nano import sound_generator
from flexjudge_recipes.program import run
from flexjudge_recipes.sounds.codecs import RATE, Codec, codec, text_of, written

from accelerate import PartialState
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, ModelConfig, get_peft_config

from flexjudge_reward import ConfigError, FlexJudgeReward, Media
from flexjudge_reward.data.tables import Table

# ------------------------------------------------------------------------------------------------------- arguments


@dataclass
class RecipeArguments:
    """What is asked for, how the model writes sounds, and who judges."""

    dataset_name: str = field(default="nano", metadata={"help": "Requests: a data set's name or folder, or nano."})
    dataset_train_split: str = field(default="train", metadata={"help": "The split to train on."})
    text_column: str = field(default="text", metadata={"help": "The request, such as the text to speak."})
    codec: str = field(default="nano", metadata={"help": "How the model writes sounds: nano or xcodec2."})
    prepared: str = field(default="runs/sounds", metadata={"help": "The folder of the tiny generator."})
    judge: dict[str, Any] | str | None = field(default=None, metadata={"help": "The reward's settings, as JSON."})
    requests: int = field(default=1600, metadata={"help": "Training requests (nano only)."})
    measure_every: int = field(default=20, metadata={"help": "Steps between two measurements (nano only)."})
    measured: int = field(default=400, metadata={"help": "Recordings of a measurement (nano only)."})
    resume: bool = field(default=False, metadata={"help": "Continue the run in output_dir."})

    def __post_init__(self) -> None:
        for name in ("requests", "measure_every", "measured"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is at least 1, found {getattr(self, name)}")


def training_data(options: RecipeArguments, kind: Codec, seed: int, most: int | None = None) -> Dataset:
    """Rows, at `most` so many, with the request as `text` and what the model continues as `prompt`.

    Raises ConfigError: no such data set or column, or a request is no text.
    """
    if options.dataset_name == "nano":
        texts = sound_generator.requests(f"grpo {seed}", options.requests)
    else:
        table = Table.open(options.dataset_name, options.dataset_train_split)
        if options.text_column not in table.columns:
            known = ", ".join(table.columns)
            raise ConfigError(f"{options.dataset_name} has no column {options.text_column!r}; it has {known}")
        texts = [row[options.text_column] for row in islice(table.rows(), most)]
        if odd := [number for number, text in enumerate(texts) if not isinstance(text, str) or not text]:
            raise ConfigError(f"{options.dataset_name}: {options.text_column!r} of row {odd[0]} is no text")
    return Dataset.from_list([{"prompt": kind.prompt(text), "text": text} for text in texts])


# ---------------------------------------------------------------------------------------------------------- reward


class SoundReward:
    """A reward function for TRL, around a judge: the sound of each completion, for the request of its row."""

    __name__ = "sound"

    def __init__(self, judge: FlexJudgeReward, kind: Codec) -> None:
        self.judge, self.kind = judge, kind

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], *, text: Sequence[str], **columns: Any
    ) -> list[float | None]:
        """One reward per completion, in order."""
        sounds = [self.kind.sound(text_of(completion)) for completion in completions]
        whole = [(asked, sound) for asked, sound in zip(text, sounds, strict=True) if sound is not None]
        given = {name: columns[name] for name in ("log_metric", "trainer_state") if columns.get(name) is not None}
        if log_metric := given.get("log_metric"):
            log_metric("sound/whole", len(whole) / len(sounds))
        scores = iter(self._scores(whole, given))
        return [0.0 if sound is None else next(scores) for sound in sounds]

    def _scores(self, whole: list[tuple[str, Media]], given: dict[str, Any]) -> list[float | None]:
        if not whole and PartialState().num_processes == 1:
            return []
        # A process without any sound asks about silence: all processes take part in every exchange.
        asked = whole or [("(none)", Media.audio(([0.0] * RATE, RATE)))]
        prompts = [[{"role": "user", "content": request}] for request, _ in asked]
        replies = [[{"role": "assistant", "content": [{"type": "audio", "audio": sound}]}] for _, sound in asked]
        return self.judge(prompts, replies, **given)[: len(whole)]


# --------------------------------------------------------------------------------------------------------- measuring


class Measure(TrainerCallback):  # type: ignore[misc]
    """The truth about fresh recordings of the tiny generator: before, every so many steps, and after."""

    def __init__(self, every: int, count: int, longest: int) -> None:
        """
        Args:
            every: steps between two measurements.
            count: recordings of a measurement.
            longest: tokens of a recording.
        """
        self.every, self.longest = every, longest
        self.asked = sound_generator.requests("measured", count)
        self.right: dict[int, float] = {}

    def share(self, model: Any, tokenizer: Any) -> float:
        """The share of right recordings."""
        texts = written(model, tokenizer, self.asked, self.longest, seed=0)
        pairs = zip(self.asked, texts, strict=True)
        return sum(sound_generator.is_right(request, text) for request, text in pairs) / len(texts)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.right = {entry["step"]: entry["right"] for entry in state.log_history if "right" in entry}
        if state.global_step == 0:
            self._measure(state, kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._measure(state, kwargs)

    def _measure(self, state: Any, kwargs: dict[str, Any]) -> None:
        if state.is_world_process_zero:
            right = self.share(kwargs["model"], kwargs["processing_class"])
            self.right[state.global_step] = right
            state.log_history.append({"step": state.global_step, "right": right})
            print(f"step {state.global_step:3}   right {right:.1%}", flush=True)


# ---------------------------------------------------------------------------------------------------------- program


def load_tokenizer(policy: str, revision: str | None, kind: Codec) -> Any:
    """The policy's tokenizer, with the token that ends a sound."""
    tokenizer = AutoTokenizer.from_pretrained(policy, revision=revision)
    tokenizer.eos_token = kind.end or tokenizer.eos_token
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def main() -> None:
    """Reads the arguments, trains, reports."""
    options, args, model_args = parsed((RecipeArguments, GRPOConfig, ModelConfig))
    kind = codec(options.codec)
    checkpoint = begin(args, options.resume)
    args.model_init_kwargs = loading(model_args, args.model_init_kwargs)
    record = str(Path(args.output_dir, "judgements.jsonl"))  # flexjudge report plays them
    settings = {"num_generations": args.num_generations, "record": record} | mapping(options.judge)
    with closing(FlexJudgeReward(name="judge", **settings)) as reward:
        judge = reward.session.judge.described()  # wrong settings are an error before the first sample
        policy = sound_generator.folder_of(model_args.model_name_or_path, Path(options.prepared), args.seed)
        trainer = GRPOTrainer(
            model=policy,
            processing_class=load_tokenizer(policy, model_args.model_revision, kind),
            reward_funcs=[SoundReward(reward, kind)],
            args=args,
            train_dataset=training_data(options, kind, args.seed),
            peft_config=get_peft_config(model_args),
        )
        measure = None
        if options.dataset_name == "nano":
            measure = Measure(options.measure_every, options.measured, args.max_completion_length)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(measure)
        say("training", f"`flexjudge report {args.output_dir} --serve` plays the recordings meanwhile")
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        if trainer.accelerator.is_main_process:
            report(trainer, reward, measure, str(judge["model"]))


def report(trainer: GRPOTrainer, reward: FlexJudgeReward, measure: Measure | None, judge: str) -> None:
    """Prints what the policy learned; writes report.json, curve.png and the model card."""
    folder, log = Path(trainer.args.output_dir), trainer.state.log_history
    lines = {"reward": {entry["step"]: entry["reward"] for entry in log if "reward" in entry}}
    results: dict[str, Any] = {"reward": lines["reward"], "judge": reward.summary.as_dict()}
    if measure is not None:
        lines["right, by the truth"] = right = measure.right
        results |= {"right": right, "right_before": right[min(right)], "right_after": right[max(right)]}
    rows = []
    for name, values in lines.items():
        if values:
            rows.append((name, f"{values[min(values)]:.3f}", f"{values[max(values)]:.3f}"))
    print(f"judge          {reward.summary}")
    for what, before, after in rows:
        print(f"{what}   {before} -> {after}")
    (folder / "report.json").write_text(json.dumps(results, indent=2) + "\n")
    plot(folder / "curve.png", f"GRPO, groups of {trainer.num_generations}", {"share": lines})
    publish(trainer, rows, judge)
    print(f"report         flexjudge report {folder}   (recordings with their scores and reasoning)")


if __name__ == "__main__":
    run("sounds", main)
