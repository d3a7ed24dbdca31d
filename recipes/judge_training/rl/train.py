"""GRPO on a judge: it is paid for verdicts that are right, not for words. The second stage of MR. Judge, and of MSRL.

    python recipes/judge_training/rl/train.py --config recipes/judge_training/rl/nano.yaml

Two CPU cores, nothing to download: the embedded judge learns to find one planted fault in a description of an image.

    CUDA_VISIBLE_DEVICES=0 python recipes/judge_training/rl/train.py \\
        --config recipes/judge_training/rl/qwen2.5_vl_7b.yaml --dataset_name items.parquet --prepare_only true
    accelerate launch --num_processes 8 recipes/judge_training/rl/train.py \\
        --config recipes/judge_training/rl/qwen2.5_vl_7b.yaml --dataset_name items.parquet --resume true

`items.py` says what a row is; `../mr_judge/make.py` makes them. Every flag of TRL's GRPOConfig and ModelConfig works.
A run that was cut off continues with --resume true. It stops by itself where groups no longer differ.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from flexjudge_recipes.common import Restored, begin, loading, parsed, plot, publish, say
from flexjudge_recipes.dpo_vlm.sampling import policy_engine
from flexjudge_recipes.judge_training.rl import items, nano_items
from flexjudge_recipes.judge_training.rl.rewards import REWARDS
from flexjudge_recipes.judge_training.rl.trl_reward import TrlReward
from flexjudge_recipes.judge_training.sft.models import (
    freeze_encoders,
    load_processor,
    model_class,
    read_config,
    save_judge,
)
from flexjudge_recipes.program import run

from accelerate import PartialState
from datasets import Dataset, Image, List
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer, ModelConfig, get_peft_config

from flexjudge_reward import ConfigError, Engine, Judge, OneCall, Sampling
from flexjudge_reward.data.rows import Rows
from flexjudge_reward.engines.model import Chat, Source, load_tokenizer
from flexjudge_reward.engines.replies import THINKS
from flexjudge_reward.formats.builtin import FORMATS
from flexjudge_reward.nano import path
from flexjudge_reward.prompts.template import copy_prompt_set, own_prompt_set, prompt_sets

# ------------------------------------------------------------------------------------------------------- arguments


@dataclass
class RecipeArguments:
    """What is judged, in which words, and what a verdict earns."""

    dataset_name: str = field(default="nano", metadata={"help": "Items: a file, folder or Hub data set, or nano."})
    dataset_config: str | None = field(default=None, metadata={"help": "The data set's configuration."})
    dataset_train_split: str | None = field(default=None, metadata={"help": "The split to train on."})
    media_root: str | None = field(default=None, metadata={"help": "The folder that image files are read from."})
    stage: str = field(default="media", metadata={"help": "text, caption or media; see items.py."})
    reward: str = field(default="choice", metadata={"help": "choice, both_orders, ranking or teacher; see rewards.py."})
    format: str = field(default="multiple_choice", metadata={"help": "How the judge is asked."})
    prompt_set: str | None = field(default=None, metadata={"help": "flex, nano, a folder; else the judge's own."})
    rubric: str = field(default="helpfulness", metadata={"help": "The name or file of a rubric."})
    pass_draws: int = field(default=8, metadata={"help": "Replies per item that find its pass rate; 0 keeps all."})
    pass_low: float = field(default=0.1, metadata={"help": "Items below are too hard to learn from."})
    pass_high: float = field(default=0.9, metadata={"help": "Items above have nothing left to learn."})
    policy_memory: float = field(default=0.85, metadata={"help": "Share of GPU memory that samples the pass rates."})
    most_without_variance: float = field(default=0.8, metadata={"help": "The run ends above this share of groups."})
    items: int = field(default=600, metadata={"help": "Training items before the filter (nano only)."})
    replay: float = field(default=0.0, metadata={"help": "Share of items of the old task among them (nano only)."})
    measure_every: int = field(default=20, metadata={"help": "Steps between two measurements (nano only)."})
    measured: int = field(default=200, metadata={"help": "Held-out items in a measurement (nano only)."})
    prepare_only: bool = field(default=False, metadata={"help": "Find the pass rates; --resume true trains later."})
    resume: bool = field(default=False, metadata={"help": "Continue the run in output_dir."})

    def __post_init__(self) -> None:
        for name, known in (("reward", REWARDS), ("format", FORMATS), ("stage", get_args(items.Stage))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is one of {', '.join(known)}, found {getattr(self, name)!r}")
        asked = FORMATS[self.format]
        if self.reward in ("ranking", "teacher") and asked.answers != "numbers":
            raise ConfigError(f"the reward {self.reward} needs a format with scores, found {self.format!r}")
        if self.reward != "teacher" and asked.max_candidates == 1:
            raise ConfigError(f"the reward {self.reward} compares candidates, and {self.format!r} judges one at a time")
        if not 0 <= self.pass_low < self.pass_high <= 1:
            raise ConfigError(f"0 <= pass_low < pass_high <= 1, found {self.pass_low} and {self.pass_high}")
        if not 0 <= self.replay <= 1:
            raise ConfigError(f"replay is a share, 0 to 1, found {self.replay}")
        for name, least in (("items", 1), ("measured", 1), ("measure_every", 0), ("pass_draws", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is at least {least}, found {getattr(self, name)}")

    def asked(self, start: str) -> OneCall:
        """The format, in its wording: by default in that of the judge in the folder `start`. Raises ConfigError."""
        own = own_prompt_set(start)
        self.prompt_set = self.prompt_set or str(own or "flex")
        if self.prompt_set not in prompt_sets() and not Path(self.prompt_set).is_dir():
            known = ", ".join(prompt_sets())
            raise ConfigError(f"prompt_set is one of {known}, or a folder of your own, found {self.prompt_set!r}")
        format = FORMATS[self.format](self.rubric, self.prompt_set)
        if own and not format.template.is_of(own, format.name):
            say("other words", f"the judge was trained with those in {own}, and goes on with {self.prompt_set}")
        return format


# ------------------------------------------------------------------------------------------------------------ data


def all_items(options: RecipeArguments, format: OneCall, seed: int) -> list[items.Item]:
    """The items before the filter."""
    if options.dataset_name == "nano":
        media, old = options.stage == "media", round(options.items * options.replay)
        return nano_items.items("hard", options.items - old, f"rl {seed}", media=media) + nano_items.items(
            "old", old, f"rl {seed}", media=media
        )
    where = {"split": options.dataset_train_split, "config_name": options.dataset_config}
    root = Path(options.media_root) if options.media_root else None
    rows = Rows(options.dataset_name, media_root=root, **where)  # type: ignore[arg-type]
    found, left_out = items.read_items(rows, format, options.stage, options.reward)  # type: ignore[arg-type]
    for reason, count in left_out.most_common(3):
        print(f"left out       {count}: {reason}", flush=True)
    return found


def kept(
    options: RecipeArguments, found: list[items.Item], engine: Engine, args: GRPOConfig, format: OneCall
) -> list[items.Item]:
    """The items that the judge gets right sometimes: the others give groups without any difference.

    Raises ConfigError if fewer are left than one batch holds.
    """
    if options.pass_draws:
        file = Path(args.output_dir, "_work", "pass_rates.jsonl")
        sampling = Sampling(args.temperature, max_tokens=args.max_completion_length, seed=args.seed)
        with engine:
            judge = Judge(format, engine, sampling)
            rates = items.pass_rates(found, judge, options.pass_draws, options.reward, file)
        low, high = options.pass_low, options.pass_high
        chosen = [item for item, rate in zip(found, rates, strict=True) if rate is not None and low <= rate <= high]
        print(f"items          {len(chosen)} of {len(found)} have a pass rate of {low} to {high}", flush=True)
        found = chosen
    orders = 2 if options.reward == "both_orders" else 1
    needed = max(2, args.generation_batch_size // args.num_generations) // orders
    if len(found) < needed:
        raise ConfigError(
            f"{len(found)} items are left, and a batch holds {needed}: give more, or widen pass_low and high"
        )
    return found


# --------------------------------------------------------------------------------------------------------- trainer


class Stop(TrainerCallback):  # type: ignore[misc]
    """Ends the run when, over the last logs, more than this share of the groups had equal rewards.

    Such groups have no advantage: the run costs time, and what little gradient is left is noise.
    """

    def __init__(self, most: float, logs: int = 4) -> None:
        self.most, self.last, self.why = most, deque[float](maxlen=logs), ""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "frac_reward_zero_std" not in (logs or {}):
            return
        self.last.append(float(logs["frac_reward_zero_std"]))
        share = sum(self.last) / len(self.last)
        if len(self.last) == self.last.maxlen and share > self.most:
            self.why = f"step {state.global_step}: {share:.0%} of the groups had no variance"
            control.should_training_stop = True


def check(options: RecipeArguments, args: GRPOConfig, model_args: ModelConfig) -> None:
    """Raises ConfigError for arguments that TRL takes and that would end the run, or measure something else, later."""
    drawn, needed = args.per_device_train_batch_size * args.steps_per_generation, 2 * args.num_generations
    if options.reward == "both_orders" and drawn % needed:
        raise ConfigError(
            "both orders of a pair must be in one process: per_device_train_batch_size times steps_per_generation must"
            f" be a multiple of twice num_generations, {needed}: found {drawn}"
        )
    if options.dataset_name == "nano" and options.measure_every and model_args.use_peft:
        raise ConfigError("the nano run measures whole weights: --measure_every 0 with --use_peft true")


def main() -> None:
    """Reads the arguments, filters the items, trains, reports."""
    options, args, model_args = parsed((RecipeArguments, GRPOConfig, ModelConfig))
    check(options, args, model_args)
    checkpoint = begin(args, options.resume)
    nano = model_args.model_name_or_path == "nano"
    start = str(path("judge")) if nano else model_args.model_name_or_path
    format, revision = options.asked(start), model_args.model_revision
    model_class(read_config(start, revision))
    with PartialState().main_process_first():  # one process finds the pass rates, the others read them
        engine = policy_engine(start, revision, options.policy_memory)
        chosen = items.balanced(kept(options, all_items(options, format, args.seed), engine, args, format), args.seed)
    if options.prepare_only:
        return
    trainer, measure, stop = make_trainer(options, args, model_args, start, format, chosen)
    trainer.add_callback(Restored(checkpoint))
    trainer.train(resume_from_checkpoint=checkpoint)
    save_judge(trainer, start, revision, {"dtype": model_args.dtype})
    if trainer.accelerator.is_main_process:
        copy_prompt_set(str(options.prompt_set), Path(args.output_dir))
        report(trainer, options, len(chosen), measure, stop)


def make_trainer(
    options: RecipeArguments,
    args: GRPOConfig,
    model_args: ModelConfig,
    start: str,
    format: OneCall,
    chosen: list[items.Item],
) -> tuple[GRPOTrainer, nano_items.Measure | None, Stop]:
    """The trainer with its callbacks, towers frozen: what the judge sees does not change."""
    args.model_init_kwargs = loading(model_args, args.model_init_kwargs)
    args.shuffle_dataset = False  # the items are in random order, balanced, and twins stay together
    source = Source.find(start, model_args.model_revision, False)
    chat = Chat(load_tokenizer(source), source.template())
    known = {name: value for name, value in THINKS.items() if name in chat.template}  # processors warn of others
    args.chat_template_kwargs = known | (args.chat_template_kwargs or {})
    reward = TrlReward(options.reward, format, args.max_completion_length, chat)
    rows = items.trainer_rows(chosen, format, chat, twins=options.reward == "both_orders")
    trainer = GRPOTrainer(
        model=start,
        processing_class=load_processor(start, model_args.model_revision),
        reward_funcs=[reward],
        args=args,
        train_dataset=data_set(list(rows)),
        peft_config=get_peft_config(model_args),
    )
    check_prompt(trainer, chat.render(format.render(chosen[0].example)[0]))
    freeze_encoders(trainer.model)
    stop = Stop(options.most_without_variance)
    trainer.add_callback(stop)
    measure = None
    if options.dataset_name == "nano" and options.measure_every:
        folder = Path(args.output_dir, "_work", "measured")
        measure = nano_items.Measure(
            format, options.measure_every, options.measured, args.max_completion_length, folder
        )
        measure.attach(trainer)
    return trainer, measure, stop


def data_set(rows: list[dict[str, Any]]) -> Dataset:
    """The rows for the trainer, which wants a model that sees as soon as there is a column of images."""
    made = Dataset.from_list(rows)
    shows = any(row["images"] for row in rows)
    return made.cast_column("images", List(Image())) if shows else made.remove_columns("images")


def check_prompt(trainer: GRPOTrainer, expected: str) -> None:
    """Raises ConfigError: the trainer shows the judge another first prompt than an engine will."""
    options = {"tokenize": False, "add_generation_prompt": True, **trainer.chat_template_kwargs}
    shown = trainer.processing_class.apply_chat_template(trainer.train_dataset[0]["prompt"], **options)
    if shown != expected:
        raise ConfigError(f"the trainer would show this model another prompt than its engines: {shown[:300]!r}")


# ---------------------------------------------------------------------------------------------------------- report


def report(
    trainer: GRPOTrainer, options: RecipeArguments, count: int, measure: nano_items.Measure | None, stop: Stop
) -> None:
    """Prints what the judge learned, by task and letter; writes report.json, curve.png and the model card."""
    folder, name = Path(trainer.args.output_dir), f"rewards/{options.reward}/mean"
    log = [entry for entry in trainer.state.log_history if name in entry]
    rewards = {entry["step"]: entry[name] for entry in log}
    equal = {entry["step"]: entry["frac_reward_zero_std"] for entry in log}
    results: dict[str, Any] = {"items": count, "reward": rewards, "without_variance": equal, "stopped": stop.why}
    panels: dict[str, Any] = {"share": {"reward": rewards, "groups without variance": equal}}
    rows: list[tuple[str, str, str]] = []
    if measure is not None:
        scores = measure.scores
        first, last = scores[min(scores)], scores[max(scores)]
        results["held_out"] = {step: {task: vars(score) for task, score in one.items()} for step, one in scores.items()}
        panels["right on held-out items"] = {
            task: {step: one[task].right for step, one in scores.items()} for task in first
        }
        for task in first:
            rows.append((f"{task} task, right, greedy", f"{first[task].right:.1%}", f"{last[task].right:.1%}"))
            for letter, share in first[task].by_letter.items():
                after = last[task].by_letter[letter]
                rows.append((f"{task} task, where {letter} is best", f"{share:.1%}", f"{after:.1%}"))
    for what, before, after in rows:
        print(f"{what}   {before} -> {after}")
    if stop.why:
        print(f"stopped        {stop.why}")
    (folder / "report.json").write_text(json.dumps(results, indent=2) + "\n")
    plot(folder / "curve.png", f"GRPO on a judge, reward {options.reward}", panels)
    publish(trainer, rows, f"trained here; its reward was {options.reward}, its format {options.format}")


if __name__ == "__main__":
    run("judge_training/rl", main)
