"""SFT of a judge on text-only reasoning traces (Flex-Judge): think first, then score; the encoders stay as they are.

    python recipes/judge_training/sft/train.py --config recipes/judge_training/sft/nano.yaml

Two CPU cores, nothing to download: the embedded base model becomes a judge of scenes in words, and judges images it has
never judged. The run ends with the share of held-out pairs with both scores right, in words and as images.

    flexjudge traces rows.jsonl -o traces.parquet --model jongwooko/Flex-VL-7B --format pairwise
    accelerate launch --config_file recipes/judge_training/sft/accelerate/zero3.yaml \\
        recipes/judge_training/sft/train.py --config recipes/judge_training/sft/qwen2.5_vl_7b.yaml

`output_dir` is then the judge: `FlexJudgeReward(model="runs/sft_qwen2.5_vl_7b")` asks it in the words that it was
trained with, which are in its folder `prompts`. Every flag of TRL's SFTConfig and ModelConfig works, in the file or on
the command line. A run that was cut off continues with --resume true.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from flexjudge_recipes.common import Restored, begin, loading, parsed, plot, publish
from flexjudge_recipes.judge_training.sft import models
from flexjudge_recipes.judge_training.sft.data import Renderer, stored
from flexjudge_recipes.nano import judge_traces, vlm_task
from flexjudge_recipes.program import run

from datasets import Dataset
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config

from flexjudge_reward import ConfigError
from flexjudge_reward.prompts.template import copy_prompt_set, prompt_sets

_NANO = ("nano", "nano_second")  # the traces of the embedded judge, which are made for the run

# ------------------------------------------------------------------------------------------------------- arguments


@dataclass
class RecipeArguments:
    """What the judge learns from, and in which words it is asked."""

    dataset_name: str = field(
        default="nano", metadata={"help": "Traces: a .parquet file, a folder, org/name, nano, nano_second."}
    )
    dataset_train_split: str | None = field(default=None, metadata={"help": "The split, if there are several."})
    rows: int | None = field(default=None, metadata={"help": "The most traces; by default all."})
    prompt_set: str = field(default="flex", metadata={"help": "The judge's wording: flex, nano, or a folder."})
    answer_first: bool = field(default=False, metadata={"help": "Ablation: the verdict before the reasoning."})
    measure: int = field(default=200, metadata={"help": "Held-out judgements after training (nano only)."})
    resume: bool = field(default=False, metadata={"help": "Continue the run in output_dir."})


# ------------------------------------------------------------------------------------------------------------ data


def training_data(options: RecipeArguments, args: SFTConfig, renderer: Renderer) -> tuple[Dataset, Counter[str]]:
    """Prompts and completions, and why rows were left out."""
    if options.dataset_name in _NANO:
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        rows: Any = judge_traces.rows(args.seed, args.max_steps, batch, options.dataset_name == "nano_second")
    else:
        rows = stored(options.dataset_name, options.dataset_train_split)
    return renderer.dataset(islice(rows, options.rows))


def check(options: RecipeArguments, args: SFTConfig) -> None:
    """Raises ConfigError for arguments that TRL takes and that would train something else in silence."""
    if options.prompt_set not in prompt_sets() and not Path(options.prompt_set).is_dir():
        known = ", ".join(prompt_sets())
        raise ConfigError(f"prompt_set is one of {known}, or a folder of your own, found {options.prompt_set!r}")
    if options.measure < 0 or (options.rows is not None and options.rows < 1):
        raise ConfigError(f"rows is at least 1, and measure at least 0: found {options.rows} and {options.measure}")
    if args.packing or args.padding_free:
        raise ConfigError("packing and padding_free let the sequences of a vision model see each other: leave them out")
    if not args.max_length:
        raise ConfigError("max_length is needed: it says which traces do not fit; 4096 in Flex-Judge")
    if args.assistant_only_loss or args.completion_only_loss is False:
        raise ConfigError("the loss is on the completion, from the think tag on: leave out assistant_only_loss")


# --------------------------------------------------------------------------------------------------------- trainer


def main() -> None:
    """Reads the arguments, renders the traces, trains, writes the judge."""
    options, args, model_args = parsed((RecipeArguments, SFTConfig, ModelConfig))
    check(options, args)
    checkpoint = begin(args, options.resume)
    nano = model_args.model_name_or_path == "nano"
    base, revision = vlm_task.policy() if nano else model_args.model_name_or_path, model_args.model_revision
    models.model_class(models.read_config(base, revision))
    wording = {"prompt_set": options.prompt_set, "answer_first": options.answer_first}
    renderer = Renderer.of(base, revision, args.eos_token, max_length=args.max_length, **wording)
    args.eos_token = renderer.end  # so that TRL makes it an end of generation, too
    rows, skipped = training_data(options, args, renderer)
    print(f"traces         {len(rows)}; left out: {dict(skipped) or 'none'}", flush=True)
    if "images" in rows.column_names:
        args.max_length = None  # else TRL cuts inside an image
    how = {name: value for name, value in loading(model_args).items() if name != "revision"}
    model = models.load(base, revision, how)
    if model_args.use_peft:
        model_args.lora_target_modules = model_args.lora_target_modules or models.lora_targets(model)
    else:
        print(f"frozen         {', '.join(models.freeze_encoders(model)) or 'nothing'}", flush=True)
    trainer = SFTTrainer(
        model=model,
        processing_class=models.load_processor(base, revision),
        args=args,
        train_dataset=rows,
        peft_config=get_peft_config(model_args),
        callbacks=[Restored(checkpoint)],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    models.save_judge(trainer, base, revision, how)
    if trainer.accelerator.is_main_process:
        copy_prompt_set(options.prompt_set, Path(args.output_dir))
        report(trainer, options, skipped)


# ---------------------------------------------------------------------------------------------------------- report


def report(trainer: SFTTrainer, options: RecipeArguments, skipped: Counter[str]) -> None:
    """Prints what was learned; writes report.json, curve.png and the model card."""
    folder, log = Path(trainer.args.output_dir), trainer.state.log_history
    curves = {
        name: {entry["step"]: entry[name] for entry in log if name in entry} for name in ("loss", "mean_token_accuracy")
    }
    ends = {name: (values[min(values)], values[max(values)]) for name, values in curves.items() if values}
    rows = [(name.replace("_", " "), f"{before:.3f}", f"{after:.3f}") for name, (before, after) in ends.items()]
    results: dict[str, Any] = {"traces": len(trainer.train_dataset), "left_out": dict(skipped), "log": log}
    if options.dataset_name in _NANO and options.measure:
        results["held_out"] = judge_traces.measured(folder, options.measure)
        rows += [(f"both scores right, {what}", "", f"{share:.1%}") for what, share in results["held_out"].items()]
    for what, before, after in rows:
        print(f"{what}   {before} -> {after}")
    (folder / "report.json").write_text(json.dumps(results, indent=2) + "\n")
    plot(folder / "curve.png", f"SFT on {len(trainer.train_dataset)} traces", {n: {n: v} for n, v in curves.items()})
    publish(trainer, rows, "trained here")
    print(f"judge          {folder}")


if __name__ == "__main__":
    run("sft", main)
