"""DPO on a vision-language model, from its own answers as a judge prefers them.

    python recipes/dpo_vlm.py --config recipes/configs/dpo_nano.yaml

Two CPU cores, nothing to download, a few minutes: the embedded base model answers questions about pictures of coloured
shapes with bad habits, four times each and at two temperatures; the embedded judge, which never sees a right answer,
says which answer is better; DPO makes that one likelier. Expect 38 % of held-out pictures right before and about 64 %
after (three seeds).

    CUDA_VISIBLE_DEVICES=0 vllm serve jongwooko/Flex-VL-7B --port 8001 --limit-mm-per-prompt '{"image": 4}'
    CUDA_VISIBLE_DEVICES=1 python recipes/dpo_vlm.py --config recipes/configs/dpo_qwen2.5_vl_7b.yaml --prepare_only true
    accelerate launch --num_processes 8 recipes/dpo_vlm.py --config recipes/configs/dpo_qwen2.5_vl_7b.yaml

Three steps, each of which finds what the one before left in `output_dir`, so that a run that was cut off goes on:
candidates.jsonl (sampled answers), pairs.jsonl (`flexjudge annotate`), and the trained model. Answers of other settings
are an error, pairs of another judge or margin are judged again. Every flag of TRL's DPOConfig and ModelConfig works, in
the file or on the command line, such as --use_peft and --report_to wandb.

The loss is sigmoid and SFT together: sigmoid alone also pushes down the chosen answers, and a small policy ends up
saying nothing that can be read while its preference accuracy is perfect.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from common import (
    Noted,
    Restored,
    card,
    check_trackers,
    checkpoint,
    data_of,
    digest,
    judge_named,
    judged,
    loading,
    model_of,
    publish,
    sampled,
    training,
)
from datasets import Dataset, Image, List, load_dataset
from nano_task import KINDS, HeldOut, pictures_only
from policy_answers import written
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, ModelConfig, TrlParser, get_peft_config

from flexjudge_reward import (
    ConfigError,
    Engine,
    FlexJudgeError,
    JudgeConfig,
    Media,
    Message,
    Prompt,
    Quoted,
    Sampling,
    TransformersEngine,
    VLLMEngine,
)
from flexjudge_reward.nano import path, world
from flexjudge_reward.offline.annotate import annotate_file

TEMPERATURES = (0.8, 1.2)  # as in Flex-Judge, appendix B.4.2
_DATA = ("dataset_name", "dataset_train_split", "question_column", "image_column")
_SAMPLED = (*_DATA, "questions", "answers", "answer_tokens")  # the options that decide the samples


@dataclass
class RecipeArguments:
    """What is asked, and who judges. The judge's other settings can come from FLEXJUDGE_* (see the README)."""

    dataset_name: str = field(
        default="nano", metadata={"help": "A data set's name or folder, or 'nano' for the embedded world."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "The split whose questions are asked."})
    question_column: str = field(default="problem", metadata={"help": "Holds the question."})
    image_column: str = field(default="image", metadata={"help": "Holds the picture."})
    judge_model: str | None = field(default=None, metadata={"help": "A model name or folder, or 'nano'."})
    judge_base_url: str | None = field(default=None, metadata={"help": "The judge server, http://host:8001/v1."})
    judge_format: str = field(default="score", metadata={"help": "score, or pair, listwise, choice in both orders."})
    judge_rubric: str | None = field(default=None, metadata={"help": "A built-in rubric's name, or a TOML file."})
    judge_cache: str | None = field(default=None, metadata={"help": "The file of judge replies, or 'off'."})
    questions: int = field(default=600, metadata={"help": "How many questions are asked."})
    answers: int = field(default=4, metadata={"help": "How many answers to each are sampled."})
    answer_tokens: int = field(default=256, metadata={"help": "Longest answer."})
    policy_memory: float = field(default=0.85, metadata={"help": "Share of the GPU's memory for sampling the policy."})
    margin: float = field(default=1.0, metadata={"help": "Least difference of the scores of a pair."})
    fewest_pairs: int = field(default=50, metadata={"help": "With fewer pairs nothing is trained."})
    prepare_only: bool = field(default=False, metadata={"help": "Sample and judge, and train another time."})
    held_out: int = field(default=400, metadata={"help": "How many held-out questions measure it (nano only)."})


def check_options(options: RecipeArguments) -> None:
    """Raises ConfigError for what would be found only after hours of sampling: no pairs of answers, no such judge."""
    if options.answers < 2 or options.answers % len(TEMPERATURES):
        heats = len(TEMPERATURES)
        raise ConfigError(f"answers are sampled at {heats} temperatures: ask for 2, 4 or so, not {options.answers}")
    judge_settings(options)


# ------------------------------------------------------------------------------------------------- the three steps


def sample_answers(options: RecipeArguments, policy: str, folder: Path, seed: int, revision: str | None = None) -> Path:
    """Step 1: pictures/ and candidates.jsonl, the policy's answers to every question."""
    file = folder / "candidates.jsonl"
    settings = {name: getattr(options, name) for name in _SAMPLED} | {"dataset_name": data_of(options.dataset_name)}
    if sampled(file, {"model_name_or_path": model_of(policy, revision), "seed": seed} | settings):
        return file
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    asked = []
    for number, (question, picture) in enumerate(questions(options, seed)):
        picture.convert("RGB").save(folder / "pictures" / f"{number}.png")
        asked.append((question, f"pictures/{number}.png"))
    engine = policy_engine(policy, revision, options.policy_memory)
    answers = _answers(options, engine, folder, seed, asked)
    engine.close()
    rows = [
        {"id": number, "question": question, "images": [name], "candidates": row}
        for number, ((question, name), row) in enumerate(zip(asked, answers, strict=True))
        if len(row) > 1
    ]
    fresh = file.with_suffix(".new")
    fresh.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    fresh.replace(file)
    return file


def policy_engine(policy: str, revision: str | None, share: float) -> Engine:
    """What the policy is sampled with: vLLM with that share of the device, which nothing else uses then."""
    if not torch.cuda.is_available():
        return TransformersEngine(policy, revision=revision)
    # Room for one picture and no clip: what vLLM sets aside for clips is as large as a model.
    return VLLMEngine(policy, revision=revision, gpu_memory_utilization=share, images_per_prompt=1, videos_per_prompt=0)


def _answers(
    options: RecipeArguments, engine: Engine, folder: Path, seed: int, asked: list[tuple[str, str]]
) -> list[list[str]]:
    """What the policy answers to each question about a picture, at both temperatures."""
    answers: list[list[str]] = [[] for _ in asked]
    each = options.answers // len(TEMPERATURES)
    for heat in TEMPERATURES:
        prompts = [
            Prompt((Message("user", (Media.image(name, roots=[folder]), Quoted(question))),), sample=draw)
            for question, name in asked
            for draw in range(each)
        ]
        sampling = Sampling(temperature=heat, max_tokens=options.answer_tokens, seed=seed)
        for row, texts in zip(answers, written(engine.generate(prompts, sampling), each), strict=True):
            row += texts
    return answers


def questions(options: RecipeArguments, seed: int) -> Iterator[tuple[str, Any]]:
    """Questions with a picture each. Nothing here holds the truth."""
    if options.dataset_name == "nano":
        rng = random.Random(f"dpo {seed}")
        for _ in range(options.questions):
            one = world.question(rng, world.scene(rng), KINDS)
            yield one.text, world.draw(one.scene, rng)
        return
    rows = load_dataset(options.dataset_name, split=options.dataset_train_split)
    for name in (options.question_column, options.image_column):
        if name not in rows.column_names:
            raise ConfigError(f"{options.dataset_name} has no column {name!r}; it has {', '.join(rows.column_names)}")
    for row in rows.shuffle(seed=seed).select(range(min(options.questions, len(rows)))):
        yield row[options.question_column], row[options.image_column]


def judge_settings(options: RecipeArguments) -> JudgeConfig:
    """Who judges."""
    names = ("format", "model", "base_url", "rubric", "cache")
    return JudgeConfig.resolve({name: getattr(options, f"judge_{name}") for name in names})


def judged_pairs(options: RecipeArguments, candidates: Path, folder: Path) -> Dataset:
    """Step 2: pairs.jsonl, what the judge prefers; as rows for DPOTrainer."""
    file, settings = folder / "pairs.jsonl", judge_settings(options)
    if not judged(file, settings, options.margin, candidates):
        judge = settings.build()
        try:
            counts = annotate_file(candidates, judge, file, margin=options.margin, media_root=folder)
        finally:
            judge.close()
        print(f"judge          {dict(counts)}", flush=True)
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    if len(lines) < options.fewest_pairs:
        raise ConfigError(
            f"{len(lines)} pairs are too few to train on (fewest_pairs={options.fewest_pairs}):"
            f" {file.with_suffix('.md')} counts why the others were skipped."
            " Lower the margin, or ask more questions or for more answers in another output_dir"
        )
    kept = [
        {name: row[name] for name in ("prompt", "chosen", "rejected")}
        | {"images": [str(folder / picture) for picture in row["images"]]}
        for row in lines
    ]
    return Dataset.from_list(kept).cast_column("images", List(Image()))


def train(
    options: RecipeArguments, args: DPOConfig, model_args: ModelConfig, policy: str, pairs: Dataset
) -> dict[str, Any]:
    """Step 3: DPO; the log, and the ground truth before and after where there is one."""
    settings = training(args, model_args) | {"pairs": digest(Path(args.output_dir, "pairs.jsonl"))}
    begun = checkpoint(args, settings)
    args.model_init_kwargs = loading(model_args, args.model_init_kwargs)
    nano = options.dataset_name == "nano"
    trainer = DPOTrainer(
        model=policy,
        args=args,
        train_dataset=pairs,
        processing_class=pictures_only(policy) if nano else None,
        peft_config=get_peft_config(model_args),
    )
    trainer.add_callback(Noted(settings))
    trainer.add_callback(Restored(begun))
    held_out = HeldOut.draw(options.held_out) if nano else None
    if held_out is not None:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Progress())
    # Before a checkpoint's weights are loaded, so that a resumed run has the same "before".
    shares = [held_out.shares(trainer.model, trainer.processing_class)] if held_out else []
    trainer.train(resume_from_checkpoint=begun)
    trainer.save_model(args.output_dir)
    if held_out is not None:
        shares.append(held_out.shares(trainer.model, trainer.processing_class))
    return {"pairs": len(pairs), "log": trainer.state.log_history, "shares": shares}


class Progress(TrainerCallback):  # type: ignore[misc]
    """One short line per log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            share, loss = logs["rewards/accuracies"], logs["loss"]
            print(f"step {state.global_step:3}   loss {loss:.3f}   pairs in the right order {share:.0%}", flush=True)


def report(found: dict[str, Any], options: RecipeArguments, base: str, folder: Path) -> None:
    """Prints what was learned; writes report.json, curve.png and the model card."""
    print(f"\npairs          {found['pairs']}")
    rows = []
    if found["shares"]:
        (before, formed), (after, formed_after) = found["shares"]
        found |= {"accuracy_before": before, "accuracy_after": after, "well_formed_after": formed_after}
        print(f"ground truth   {before:.1%} -> {after:.1%} of held-out pictures right")
        print(f"well-formed    {formed:.1%} -> {formed_after:.1%}")
        rows += [("held-out pictures right, by the truth", f"{before:.1%}", f"{after:.1%}")]
        rows += [("well-formed answers", f"{formed:.1%}", f"{formed_after:.1%}")]
    (folder / "report.json").write_text(json.dumps(found, indent=2) + "\n")
    draw_curve(found["log"], folder / "curve.png")
    how = f"DPO on {found['pairs']} pairs of its own answers to questions of {options.dataset_name}"
    (folder / "README.md").write_text(card(base, how, judge_named(judge_settings(options)), rows), "utf-8")
    print(f"curve          {folder / 'curve.png'}")


def draw_curve(log: list[dict[str, float]], file: Path) -> None:
    """Loss, and the log-probabilities of both sides: that of the chosen answers must not fall."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in log if "loss" in row]
    steps = [row["step"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), dpi=120)
    left.plot(steps, [row["loss"] for row in rows])
    left.set(xlabel="step", ylabel="loss")
    for side in ("chosen", "rejected"):
        right.plot(steps, [row[f"logps/{side}"] for row in rows], label=side)
    right.set(xlabel="step", ylabel="log-probability of the answer")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(file, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Reads the arguments, samples, judges, trains, reports."""
    parser = TrlParser((RecipeArguments, DPOConfig, ModelConfig))
    options, args, model_args = parser.parse_args_and_config()
    check_trackers(args)
    check_options(options)
    push, args.push_to_hub = args.push_to_hub, False
    policy, folder = model_args.model_name_or_path, Path(args.output_dir)
    if policy == "nano":
        policy = str(path("base"))
    revision = None if model_args.model_revision == "main" else model_args.model_revision
    with PartialState().main_process_first():  # one process samples and judges, the others find its files
        pairs = judged_pairs(options, sample_answers(options, policy, folder, args.seed, revision), folder)
    if options.prepare_only:
        return
    found = train(options, args, model_args, policy, pairs)
    if PartialState().is_main_process:
        report(found, options, model_args.model_name_or_path, folder)
        if push:
            publish(args, folder)


if __name__ == "__main__":
    try:
        main()
    except FlexJudgeError as error:
        raise SystemExit(f"dpo_vlm: {error}") from None
