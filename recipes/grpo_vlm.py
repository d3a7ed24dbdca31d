"""GRPO on a vision-language model, with a judge that thinks before it scores as the reward.

    python recipes/grpo_vlm.py --config recipes/configs/grpo_nano.yaml

Two CPU cores, nothing to download, a few minutes: the embedded base model answers questions about pictures of coloured
shapes with bad habits, and learns better ones from the embedded judge. The judge never sees a right answer; accuracy on
held-out pictures is measured against the truth all the same. Expect 38 % before and 44 to 65 % after (three seeds).

    CUDA_VISIBLE_DEVICES=0 vllm serve jongwooko/Flex-VL-7B --port 8001 --limit-mm-per-prompt '{"image": 4}'
    CUDA_VISIBLE_DEVICES=1,2,3,4,5,6,7 accelerate launch --num_processes 7 \\
        recipes/grpo_vlm.py --config recipes/configs/grpo_qwen2.5_vl_7b.yaml

Real GPUs: Qwen2.5-VL judged by Flex-VL-7B (see that file). Every flag of TRL's GRPOConfig and ModelConfig works, in the
file or on the command line, such as --use_peft --lora_r 16, --report_to wandb and --resume_from_checkpoint true.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import (
    Noted,
    Restored,
    card,
    check_trackers,
    checkpoint,
    earlier_curve,
    judge_named,
    judged_by,
    keep_curve,
    loading,
    publish,
    training,
)
from datasets import Dataset, load_dataset
from nano_task import KINDS, HeldOut, chat, pictures_only
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, ModelConfig, TrlParser, get_peft_config

from flexjudge_reward import ConfigError, FlexJudgeError, FlexJudgeReward, JudgeConfig
from flexjudge_reward.nano import path, world


@dataclass
class RecipeArguments:
    """What is trained on, and who judges. The judge's other settings can come from FLEXJUDGE_* (see the README)."""

    dataset_name: str = field(
        default="nano", metadata={"help": "A data set's name or folder, or 'nano' for the embedded world."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "The data set's configuration."})
    dataset_train_split: str = field(default="train", metadata={"help": "The split to train on."})
    question_column: str = field(
        default="problem", metadata={"help": "Holds the question, in a data set without a 'prompt' column."}
    )
    system_prompt: str | None = field(default=None, metadata={"help": "Stands before each question."})
    reference_column: str | None = field(
        default=None, metadata={"help": "Holds a reference answer that the judge is to see."}
    )
    judge_model: str | None = field(default=None, metadata={"help": "A model name or folder, or 'nano'."})
    judge_base_url: str | None = field(default=None, metadata={"help": "The judge server, http://host:8001/v1."})
    judge_rubric: str | None = field(default=None, metadata={"help": "A built-in rubric's name, or a TOML file."})
    judge_cache: str | None = field(default=None, metadata={"help": "The file of judge replies, or 'off'."})
    questions: int = field(default=800, metadata={"help": "How many training questions are drawn (nano only)."})
    held_out: int = field(default=400, metadata={"help": "How many held-out questions measure it (nano only)."})
    measure_every: int = field(default=20, metadata={"help": "Steps between two measurements (nano only)."})


# ------------------------------------------------------------------------------------------------------------ data


def training_data(options: RecipeArguments, seed: int) -> Dataset:
    """Rows with a `prompt` and pictures. No column of the nano rows holds the truth."""
    if options.dataset_name == "nano":
        rng = random.Random(f"grpo {seed}")
        asked = [world.question(rng, world.scene(rng), KINDS) for _ in range(options.questions)]
        return Dataset.from_list([{"prompt": chat(one.text), "image": world.draw(one.scene, rng)} for one in asked])
    rows = load_dataset(options.dataset_name, options.dataset_config, split=options.dataset_train_split)
    ready = "prompt" in rows.column_names
    for name in filter(None, (None if ready else options.question_column, options.reference_column)):
        if name not in rows.column_names:
            raise ConfigError(f"{options.dataset_name} has no column {name!r}; it has {', '.join(rows.column_names)}")
    if ready:
        return rows
    return rows.map(lambda row: {"prompt": chat(row[options.question_column], options.system_prompt)})


# --------------------------------------------------------------------------------------------------------- measure


class Measure(TrainerCallback):  # type: ignore[misc]
    """Accuracy on held-out pictures: before, every so many steps, and after. Between them, the judge's reward."""

    def __init__(self, held_out: HeldOut, every: int, reward: str, begun: str | None) -> None:
        self.held_out, self.every, self.reward = held_out, every, f"rewards/{reward}/mean"
        self.curve: dict[int, float] = earlier_curve(begun)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs and self.reward in logs:
            print(f"step {state.global_step:3}   judge reward {logs[self.reward]:.3f}", flush=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._measure(args, state, kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._measure(args, state, kwargs)

    def _measure(self, args: Any, state: Any, kwargs: dict[str, Any]) -> None:
        if state.is_world_process_zero:
            self.curve[state.global_step] = self.held_out.accuracy(kwargs["model"], kwargs["processing_class"])
            keep_curve(args.output_dir, self.curve)
            share = f"{self.curve[state.global_step]:.1%}"
            print(f"step {state.global_step:3}   right on {share} of held-out pictures", flush=True)


def report(
    trainer: GRPOTrainer,
    reward: FlexJudgeReward,
    measure: Measure | None,
    options: RecipeArguments,
    base: str,
    folder: Path,
) -> None:
    """Prints what the judge did and what the policy learned; writes report.json, curve.png and the model card."""
    name = f"rewards/{reward.__name__}/mean"
    rewards = {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}
    found: dict[str, Any] = {"judge_reward": rewards, "judge": asdict(reward.summary) | {"new": reward.summary.new}}
    print(f"\njudge          {reward.summary}")
    rows = []
    if rewards:
        values = list(rewards.values())
        rows.append(("judge's reward, 0 to 1", f"{values[0]:.3f}", f"{values[-1]:.3f}"))
        print(f"judge reward   {values[0]:.3f} -> {values[-1]:.3f}")
    if measure is not None:
        before, after = measure.curve.get(0), measure.curve[max(measure.curve)]
        shown = "not measured" if before is None else f"{before:.1%}"
        found |= {"accuracy": measure.curve, "accuracy_before": before, "accuracy_after": after}
        rows.append(("held-out pictures right, by the truth", shown, f"{after:.1%}"))
        print(f"ground truth   {shown} -> {after:.1%} of {len(measure.held_out.asked)} held-out pictures right")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(found, indent=2) + "\n")
    draw_curve(rewards, measure.curve if measure else {}, folder / "curve.png")
    how = f"GRPO on {options.dataset_name} ({trainer.state.global_step} steps, groups of {trainer.num_generations})"
    (folder / "README.md").write_text(card(base, how, judge_named(judge_settings(options)), rows), "utf-8")
    print(f"curve          {folder / 'curve.png'}")


def draw_curve(rewards: dict[int, float], accuracy: dict[int, float], file: Path) -> None:
    """Judge reward and ground truth over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), dpi=120)
    axes.plot(list(rewards), list(rewards.values()), label="judge reward (0 to 1)")
    if accuracy:
        axes.plot(list(accuracy), list(accuracy.values()), "o-", label="accuracy on held-out pictures (truth)")
    axes.set(xlabel="step", ylim=(0, 1.02))
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(file, bbox_inches="tight")
    plt.close(figure)


# ----------------------------------------------------------------------------------------------------------- train


_DATA = ("dataset_name", "dataset_config", "dataset_train_split", "question_column", "reference_column")


def judge_settings(options: RecipeArguments) -> JudgeConfig:
    """Who judges."""
    names = ("model", "base_url", "rubric", "cache")
    return JudgeConfig.resolve({name: getattr(options, f"judge_{name}") for name in names})


def settings_of(options: RecipeArguments, args: GRPOConfig, model_args: ModelConfig) -> dict[str, Any]:
    """What a run that is resumed must have as it had; see `common.checkpoint`."""
    found = {name: getattr(options, name) for name in (*_DATA, "system_prompt")}
    found["dataset_name"] = Path(options.dataset_name).name  # a folder may move
    found |= {"questions": options.questions} if options.dataset_name == "nano" else {}
    return found | training(args, model_args) | judged_by(judge_settings(options))


def make_trainer(
    options: RecipeArguments, args: GRPOConfig, model_args: ModelConfig, reward: FlexJudgeReward
) -> GRPOTrainer:
    """The trainer, with the policy and the rows."""
    args.model_init_kwargs = loading(model_args, args.model_init_kwargs)
    policy, processor = model_args.model_name_or_path, None
    if policy == "nano":
        policy = str(path("base"))
        processor = pictures_only(policy)
    return GRPOTrainer(
        model=policy,
        processing_class=processor,
        reward_funcs=[reward],
        args=args,
        train_dataset=training_data(options, args.seed),
        peft_config=get_peft_config(model_args),
    )


def main() -> None:
    """Reads the arguments, trains, reports."""
    parser = TrlParser((RecipeArguments, GRPOConfig, ModelConfig))
    options, args, model_args = parser.parse_args_and_config()
    check_trackers(args)
    push, args.push_to_hub = args.push_to_hub, False
    settings = settings_of(options, args, model_args)
    begun = checkpoint(args, settings)
    reward = FlexJudgeReward(
        model=options.judge_model,
        base_url=options.judge_base_url,
        rubric=options.judge_rubric,
        cache=options.judge_cache,
        reference_column=options.reference_column,
        num_generations=args.num_generations,
    )
    trainer = make_trainer(options, args, model_args, reward)
    trainer.add_callback(Noted(settings))
    trainer.add_callback(Restored(begun))
    measure = None
    if options.dataset_name == "nano":
        measure = Measure(HeldOut.draw(options.held_out), options.measure_every, reward.__name__, begun)
        trainer.remove_callback(PrinterCallback)  # thirty numbers a line
        trainer.add_callback(measure)

    trainer.train(resume_from_checkpoint=begun)
    trainer.save_model(args.output_dir)
    if trainer.accelerator.is_main_process:
        report(trainer, reward, measure, options, model_args.model_name_or_path, Path(args.output_dir))
        if push:
            publish(args, Path(args.output_dir))
    reward.close()


if __name__ == "__main__":
    try:
        main()
    except FlexJudgeError as error:
        raise SystemExit(f"grpo_vlm: {error}") from None
