"""Diffusion-DPO on a text-to-image model, from its own images as a judge prefers them.

    pip install 'flexjudge-reward[trl,diffusers]'
    python recipes/diffusion_dpo/train.py --config recipes/diffusion_dpo/nano_unet.yaml       # or nano_flow.yaml

Two CPU cores, nothing to download: a tiny text-to-image model is pretrained first, once, in about six minutes, on data
that makes it imperfect (`recipes/nano/image_generator.py`). It generates four images per prompt, the embedded judge
says which are better, and a LoRA learns from the pairs, all in two to four minutes. The judge never sees the truth. On
held-out prompts, expect 26 % correct images before and 74 % after (UNet), 26 % and 83 % (flow transformer), the means
of three seeds.

    CUDA_VISIBLE_DEVICES=0 vllm serve jongwooko/Flex-VL-7B --port 8001 --limit-mm-per-prompt '{"image": 4}'
    CUDA_VISIBLE_DEVICES=1,2,3,4,5,6,7 accelerate launch --num_processes 7 \\
        recipes/diffusion_dpo/train.py --config recipes/diffusion_dpo/sd3.5.yaml

Stable Diffusion 1.x, 2.x, XL, 3, 3.5 and FLUX. Every flag of transformers' TrainingArguments works, in the file or on
the command line, such as --report_to wandb. A run that was cut off continues with --resume true. The output folder has
the LoRA as `load_lora_weights` reads it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexjudge_recipes.common import begin, mapping, parsed, publish
from flexjudge_recipes.diffusion_dpo.families import Family, family_of, load_pipeline
from flexjudge_recipes.diffusion_dpo.pairs import ImageSampler, compare, load_pairs, load_prompts
from flexjudge_recipes.diffusion_dpo.report import HeldOut, judge_metrics, plot_curve, plot_grid, table, truth_metrics
from flexjudge_recipes.diffusion_dpo.trainer import DiffusionDPOConfig, DiffusionDPOTrainer
from flexjudge_recipes.nano.image_generator import pretrained
from flexjudge_recipes.program import run

import torch
from accelerate import PartialState

from flexjudge_reward import Judge

# ------------------------------------------------------------------------------------------------------- arguments


@dataclass
class RecipeArguments:
    """The model, its prompts and images, and who judges."""

    model_name_or_path: str = field(default="nano-unet", metadata={"help": "A pipeline, or nano-unet, nano-flow."})
    dataset_name: str = field(default="nano", metadata={"help": "A data set's name or folder, or nano."})
    dataset_train_split: str = field(default="train", metadata={"help": "The split with the prompts."})
    prompt_column: str = field(default="prompt", metadata={"help": "The column with the prompts."})
    prompts: int = field(default=256, metadata={"help": "Training prompts."})
    images_per_prompt: int = field(default=2, metadata={"help": "Images that are compared with each other."})
    held_out_prompts: int = field(default=64, metadata={"help": "Prompts for the images before and after."})
    inference_steps: int = field(default=30, metadata={"help": "Denoising steps per image."})
    guidance_scale: float = field(default=5.0, metadata={"help": "Of the pipeline."})
    height: int | None = field(default=None, metadata={"help": "In pixels; by default the pipeline's own."})
    width: int | None = field(default=None, metadata={"help": "In pixels; by default the pipeline's own."})
    judge: str | None = field(
        default='{"format": "pairwise", "rubric": "image-quality"}',
        metadata={"help": "Settings of Judge.load: a mapping, here as JSON."},
    )
    margin: float = field(default=1.0, metadata={"help": "Least difference of the scores of a pair."})
    min_pairs: int = field(default=50, metadata={"help": "With fewer pairs nothing is trained."})
    eval_share: float = field(default=0.15, metadata={"help": "Share of the prompts whose pairs are not trained on."})
    prepare_only: bool = field(default=False, metadata={"help": "Generate and judge only; train with --resume true."})
    resume: bool = field(default=False, metadata={"help": "Continue the run in output_dir."})


# ------------------------------------------------------------------------------------------------------------ data


def load_family(name: str, args: DiffusionDPOConfig) -> Family:
    """The pipeline to train; a nano pipeline is pretrained beside the output folder, unless it is there."""
    if name.startswith("nano-"):
        name = str(pretrained(name, Path(args.output_dir).parent))
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    return family_of(load_pipeline(name, dtype).to(args.device))


# --------------------------------------------------------------------------------------------------------- trainer


def main() -> None:
    """Reads the arguments, prepares the pairs, trains, reports. Finished files of an earlier run are kept."""
    options, args = parsed((RecipeArguments, DiffusionDPOConfig))
    checkpoint, work = begin(args, options.resume), Path(args.output_dir, "_work")
    with Judge.load(**mapping(options.judge)) as judge:
        data = (options.dataset_name, options.dataset_train_split, options.prompt_column)
        prompts, held_out = load_prompts(*data, (options.prompts, options.held_out_prompts), args.seed)
        family = load_family(options.model_name_or_path, args)
        size = family.image_size(options.height, options.width)
        sampler = ImageSampler(options.inference_steps, options.guidance_scale, size, args.per_device_eval_batch_size)

        groups = sampler.sample(family, prompts, options.images_per_prompt, work / "train", args.seed)
        compare(judge, prompts, groups, work / "pairs", options.margin)
        training, evaluation = load_pairs(work / "pairs", options.eval_share, args.seed, options.min_pairs)
        if not options.prepare_only:
            before = sampler.sample(family, held_out, 1, work / "before", args.seed + 1)
            trainer = DiffusionDPOTrainer(family, args, training, size)
            trainer.train(resume_from_checkpoint=checkpoint)
            trainer.save_model()
            results = {
                "pairs": len(training) + len(evaluation),
                "eval_pairs": len(evaluation),
                "implicit_accuracy": trainer.implicit_accuracy(evaluation),
                "log": trainer.state.log_history,
            }
            family.pipe.to("cpu")
            after = sample_with_lora(options, args, sampler, held_out)
            images = [HeldOut(prompt, *one, *two) for prompt, one, two in zip(held_out, before, after, strict=True)]
            report(trainer, judge, images, results, nano=options.dataset_name == "nano")


def sample_with_lora(
    options: RecipeArguments, args: DiffusionDPOConfig, sampler: ImageSampler, prompts: list[str]
) -> list[list[Path]]:
    """Images of the saved LoRA. Those of an earlier training are removed, and what the judge said of them."""
    work = Path(args.output_dir, "_work")
    if PartialState().is_main_process:
        for file in (*work.glob("after/*"), *work.glob("comparisons.*")):
            file.unlink()
    PartialState().wait_for_everyone()
    family = load_family(options.model_name_or_path, args)
    family.pipe.load_lora_weights(args.output_dir)
    return sampler.sample(family, prompts, 1, work / "after", args.seed + 1)


# ---------------------------------------------------------------------------------------------------------- report


def report(
    trainer: DiffusionDPOTrainer, judge: Judge, images: list[HeldOut], results: dict[str, Any], nano: bool
) -> None:
    """Has the held-out images judged; prints the table; writes report.json, curve.png, grid.png and the model card."""
    folder = Path(trainer.args.output_dir)
    comparisons = folder / "_work/comparisons.jsonl"
    compare(judge, [row.prompt for row in images], [[row.before, row.after] for row in images], comparisons, margin=0.0)
    if trainer.is_world_process_zero():
        results |= judge_metrics(comparisons) | (truth_metrics(images) if nano else {})
        rows = table(results)
        print("\n".join(f"{name:42} {before:>8} {after:>8}" for name, before, after in rows))
        (folder / "report.json").write_text(json.dumps(results, indent=2) + "\n")
        plot_curve(folder / "curve.png", results)
        plot_grid(folder / "grid.png", images)
        described = judge.described()
        judged = f"{described['model']}, {described['format']}"
        publish(trainer, rows, judged, folder / "_work" / "pairs")
        print(f"images         {folder / 'grid.png'}, {folder / 'curve.png'}")
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    run("diffusion_dpo", main)
