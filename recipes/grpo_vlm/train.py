"""GRPO on a vision-language model, with a judge that thinks before it scores as the reward.

    python recipes/grpo_vlm/train.py --config recipes/grpo_vlm/nano.yaml            # or make demo

Two CPU cores, nothing to download, under 2 minutes: the embedded base model answers questions about images of coloured
shapes with bad habits, and learns better ones from the embedded judge. The judge never sees a right answer; accuracy on
held-out images is measured against the truth all the same. Expect 38 % right before, about 61 % after (57 to 64 by
seed).

    CUDA_VISIBLE_DEVICES=0 vllm serve jongwooko/Flex-VL-7B --port 8001 --limit-mm-per-prompt '{"image": 4}'
    CUDA_VISIBLE_DEVICES=1,2,3,4,5,6,7 accelerate launch --num_processes 7 \\
        recipes/grpo_vlm/train.py --config recipes/grpo_vlm/qwen2.5_vl_7b.yaml

Every flag of TRL's GRPOConfig and ModelConfig works, in the file or on the command line, such as --use_peft --lora_r 16
and --report_to wandb. A run that was cut off continues with --resume true.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexjudge_recipes.common import Restored, begin, loading, mapping, parsed, plot, publish, say
from flexjudge_recipes.nano import vlm_task
from flexjudge_recipes.program import run

from datasets import Dataset, load_dataset
from trl import GRPOConfig, GRPOTrainer, ModelConfig, get_peft_config

from flexjudge_reward import ConfigError, FlexJudgeReward

# ------------------------------------------------------------------------------------------------------- arguments


@dataclass
class RecipeArguments:
    """What is trained on, and who judges."""

    dataset_name: str = field(default="nano", metadata={"help": "A data set's name or folder, or nano."})
    dataset_config: str | None = field(default=None, metadata={"help": "The data set's configuration."})
    dataset_train_split: str = field(default="train", metadata={"help": "The split to train on."})
    question_column: str = field(default="problem", metadata={"help": "The question, where there is no 'prompt'."})
    system_prompt: str | None = field(default=None, metadata={"help": "Goes before each question."})
    judge: dict[str, Any] | str | None = field(default=None, metadata={"help": "The reward's settings, as JSON."})
    questions: int = field(default=800, metadata={"help": "Training questions (nano only)."})
    measure_every: int = field(default=8, metadata={"help": "Steps between two measurements (nano only)."})
    resume: bool = field(default=False, metadata={"help": "Continue the run in output_dir."})


# ------------------------------------------------------------------------------------------------------------ data


def training_data(options: RecipeArguments, seed: int) -> Dataset:
    """Rows with a `prompt` and images."""
    if options.dataset_name == "nano":
        return vlm_task.training_rows(options.questions, f"grpo {seed}").remove_columns("question")
    rows = load_dataset(options.dataset_name, options.dataset_config, split=options.dataset_train_split)
    if "prompt" in rows.column_names:
        return rows
    if options.question_column not in rows.column_names:
        known = ", ".join(rows.column_names)
        raise ConfigError(f"{options.dataset_name} has no column {options.question_column!r}; it has {known}")
    system = [{"role": "system", "content": options.system_prompt}] if options.system_prompt else []
    return rows.map(lambda row: {"prompt": [*system, {"role": "user", "content": row[options.question_column]}]})


# --------------------------------------------------------------------------------------------------------- trainer


def main() -> None:
    """Reads the arguments, trains, reports."""
    options, args, model_args = parsed((RecipeArguments, GRPOConfig, ModelConfig))
    checkpoint = begin(args, options.resume)
    args.model_init_kwargs = loading(model_args, args.model_init_kwargs)
    nano = model_args.model_name_or_path == "nano"
    record = str(Path(args.output_dir, "judgements.jsonl"))  # flexjudge report shows it
    settings = {"num_generations": args.num_generations, "record": record} | mapping(options.judge)
    reward = FlexJudgeReward(name="judge", **settings)
    described = reward.session.judge.described()  # wrong settings are an error before the first sample
    format = reward.session.judge.format.innermost().name
    say("judge", f"{described['model']}, {format}; every judgement goes to {record}")
    say("policy", f"loading {model_args.model_name_or_path}; the questions are those of {options.dataset_name}")
    trainer = GRPOTrainer(
        model=vlm_task.policy() if nano else model_args.model_name_or_path,
        processing_class=vlm_task.processor() if nano else None,
        reward_funcs=[reward],
        args=args,
        train_dataset=training_data(options, args.seed),
        peft_config=get_peft_config(model_args),
        callbacks=[Restored(checkpoint)],
    )
    measure = None
    if options.dataset_name == "nano":
        measure = vlm_task.Measure(options.measure_every, {f"rewards/{reward.__name__}/mean": "judge reward"})
        measure.attach(trainer)
    say("training", f"`flexjudge report {args.output_dir} --serve` shows the judgements meanwhile")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        report(trainer, reward, measure, str(described["model"]))
    reward.close()


# ---------------------------------------------------------------------------------------------------------- report


def report(trainer: GRPOTrainer, reward: FlexJudgeReward, measure: vlm_task.Measure | None, judge: str) -> None:
    """Prints what the judge did and what the policy learned; writes report.json, curve.png and the model card."""
    folder, name = Path(trainer.args.output_dir), f"rewards/{reward.__name__}/mean"
    rewards = {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}
    results: dict[str, Any] = {"judge_reward": rewards, "judge": reward.summary.as_dict()}
    lines, rows = {"judge's reward": rewards}, []
    print(f"\njudge          {reward.summary}")
    if rewards:
        values = list(rewards.values())
        rows.append(("judge's reward, 0 to 1", f"{values[0]:.3f}", f"{values[-1]:.3f}"))
    if measure is not None:
        accuracy = measure.accuracy
        before, after = accuracy[min(accuracy)], accuracy[max(accuracy)]
        lines["right on held-out images, by the truth"] = accuracy
        results |= {"accuracy": accuracy, "accuracy_before": before, "accuracy_after": after}
        rows.append(("right on held-out images, by the truth", f"{before:.1%}", f"{after:.1%}"))
    for what, before, after in rows:
        print(f"{what}   {before} -> {after}")
    (folder / "report.json").write_text(json.dumps(results, indent=2) + "\n")
    plot(folder / "curve.png", f"GRPO, groups of {trainer.num_generations}", {"share": lines})
    publish(trainer, rows, judge)
    print(f"curve          {folder / 'curve.png'}")
    print(f"report         flexjudge report {folder}   (completions with their images, scores and reasoning)")


if __name__ == "__main__":
    run("grpo_vlm", main)
