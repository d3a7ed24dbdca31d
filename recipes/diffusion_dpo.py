"""Diffusion-DPO on a text-to-image model, from its own pictures as a judge prefers them.

    pip install 'flexjudge-reward[trl,diffusers]'
    python recipes/diffusion_dpo.py --config recipes/configs/diffusion_dpo_nano_unet.yaml     # or .._nano_flow.yaml

Two CPU cores, nothing to download: a tiny text-to-image model of the embedded world, trained first if it is not there
yet (`diffusion_nano.py`, about six minutes), draws what it is asked for with bad habits; the embedded judge, which
never sees the truth, says which of two pictures is nearer to the prompt; a LoRA makes that one likelier. Expect 20 % of
the pictures just as asked for before and 79 % after (UNet), 27 and 83 % (flow transformer), three seeds.

    vllm serve jongwooko/Flex-VL-7B --port 8001 --limit-mm-per-prompt '{"image": 4}'          # on a GPU of its own
    accelerate launch recipes/diffusion_dpo.py --config recipes/configs/diffusion_dpo_sd3.5.yaml --prepare_only true
    accelerate launch recipes/diffusion_dpo.py --config recipes/configs/diffusion_dpo_sd3.5.yaml

Stable Diffusion 1.x, 2.x, XL, 3, 3.5 and FLUX (`diffusion_families.py`). Each step finds what the one before left in
`output_dir`, so that a run that was cut off goes on: pictures/, candidates.jsonl, pairs.jsonl (`flexjudge annotate`),
checkpoint-N/, and at the end the LoRA in diffusers' format. Every flag of transformers' TrainingArguments works, in the
file or on the command line, such as --report_to wandb and --resume_from_checkpoint true.

The loss (Diffusion-DPO, arXiv 2311.12908) compares the denoising errors of both pictures, under the same noise and
time, with those of the model before training. It only asks the loser to get worse faster than the winner, and is
satisfied by a model that draws everything worse. So the winner's own error is lowered beside it (`anchor`, as the SFT
term in DPO of language models), the loser's gradient is cut back where it would push the winner's error up (`guarded`),
and picture quality stands beside every preference accuracy.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import diffusion_nano
import torch
import torch.nn.functional as F
from accelerate import PartialState
from common import checkpoint
from datasets import Dataset, load_dataset
from diffusion_families import Family, family, load
from diffusion_report import Shown, report
from huggingface_hub import upload_folder
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from PIL import Image
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from trl import TrlParser

from flexjudge_reward import ConfigError, FlexJudgeError, Judge, JudgeConfig, Sampling, TransformersEngine
from flexjudge_reward.annotate import annotate_file
from flexjudge_reward.cache import CachedEngine

BATCH = 32  # pictures drawn at a time
DRAWS = 8  # of noise and time, for each held-out pair


@dataclass
class RecipeArguments:
    """What is drawn, who judges, how it is learned. The judge's other settings can come from FLEXJUDGE_*."""

    model_name_or_path: str = field(
        default="nano-unet", metadata={"help": "A diffusers pipeline, or nano-unet or nano-flow."}
    )
    dataset_name: str = field(default="nano", metadata={"help": "A data set's name or folder, or 'nano'."})
    dataset_train_split: str = field(default="train", metadata={"help": "The split whose prompts are drawn."})
    prompt_column: str = field(default="prompt", metadata={"help": "Holds the prompt."})
    prompts: int = field(default=256, metadata={"help": "How many prompts are drawn for training."})
    pictures: int = field(default=2, metadata={"help": "How many pictures of each."})
    denoising_steps: int = field(default=30, metadata={"help": "Of the pipeline, per picture."})
    guidance: float = field(default=5.0, metadata={"help": "Guidance scale of the pipeline."})
    height: int | None = field(default=None, metadata={"help": "In pixels; by default the pipeline's own."})
    width: int | None = field(default=None, metadata={"help": "In pixels; by default the pipeline's own."})
    judge_model: str | None = field(default=None, metadata={"help": "A model name or folder, or 'nano'."})
    judge_base_url: str | None = field(default=None, metadata={"help": "The judge server, http://host:8001/v1."})
    judge_format: str = field(default="pair", metadata={"help": "score, or pair, choice, relation in both orders."})
    judge_rubric: str = field(default="image-quality", metadata={"help": "A built-in rubric's name, or a TOML file."})
    judge_cache: str | None = field(default=None, metadata={"help": "The file of judge replies, or 'off'."})
    margin: float = field(default=1.0, metadata={"help": "Least difference of the scores of a pair."})
    fewest_pairs: int = field(default=50, metadata={"help": "With fewer pairs nothing is trained."})
    prepare_only: bool = field(default=False, metadata={"help": "Draw and judge, and train another time."})
    held_out_share: float = field(default=0.15, metadata={"help": "Of the prompts, kept for the implicit accuracy."})
    held_out_prompts: int = field(default=64, metadata={"help": "Drawn before and after, for the win rates."})
    beta: float = field(default=2000.0, metadata={"help": "Strength of the preference; 2000 to 5000 for real models."})
    safeguard: float = field(
        default=0.9, metadata={"help": "Largest share of the winner's gradient that the loser's may undo; 0 is none."}
    )
    anchor: float = field(
        default=1.0, metadata={"help": "Weight of the winner's own error beside the preference; 0 is none."}
    )
    lora_r: int = field(default=8, metadata={"help": "Rank of the LoRA."})


# ------------------------------------------------------------------------------------------------------- the pictures


def asked(options: RecipeArguments, seed: int) -> tuple[list[str], list[str]]:
    """Prompts to train on, and prompts that are held out."""
    count = options.prompts + options.held_out_prompts
    if options.dataset_name == "nano":
        found = diffusion_nano.prompts(seed, count)
    else:
        rows = load_dataset(options.dataset_name, split=options.dataset_train_split)
        if options.prompt_column not in rows.column_names:
            known = ", ".join(rows.column_names)
            raise ConfigError(f"{options.dataset_name} has no column {options.prompt_column!r}; it has {known}")
        if len(rows) < count:
            raise ConfigError(f"{options.dataset_name} has {len(rows)} rows, {count} prompts are wanted")
        found = [str(text) for text in rows.shuffle(seed=seed).select(range(count))[options.prompt_column]]
    return found[: options.prompts], found[options.prompts :]


def draw(own: Family, prompts: Sequence[str], files: Sequence[Path], options: RecipeArguments, seed: int) -> None:
    """Draws each prompt to its file, with a seed of its own; files that are there are kept, ranks share the work."""
    state = PartialState()
    height, width = own.size((options.height, options.width))
    own.pipe.set_progress_bar_config(disable=True)
    mine = [i for i in range(len(files)) if i % state.num_processes == state.process_index and not files[i].exists()]
    from tqdm import tqdm

    with tqdm(total=len(mine), desc="drawing", unit="picture", disable=not state.is_main_process) as bar:
        for start in range(0, len(mine), BATCH):
            part = mine[start : start + BATCH]
            drawn = own.pipe(
                [prompts[i] for i in part],
                num_inference_steps=options.denoising_steps,
                guidance_scale=options.guidance,
                generator=[torch.Generator().manual_seed(seed * 1_000_003 + i) for i in part],
                height=height,
                width=width,
                **own.drawing,
            ).images
            for index, picture in zip(part, drawn, strict=True):
                fresh = files[index].with_suffix(".new")
                picture.save(fresh, format="PNG")
                fresh.replace(files[index])
            bar.update(len(part))
    state.wait_for_everyone()


def judged(rows: Sequence[tuple[str, Sequence[str]]], file: Path, judge: Judge, margin: float) -> list[dict[str, Any]]:
    """Every pair of pictures with a winner: {"prompt", "chosen", "rejected", ..}; `file`.md counts the others."""
    source = file.with_suffix(".candidates.jsonl")
    lines = [
        {"id": number, "question": prompt, "candidates": [{"image": name} for name in names]}
        for number, (prompt, names) in enumerate(rows)
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    counts = annotate_file(source, judge, file, which="all", margin=margin, media_root=file.parent)
    print(f"judged         {file.name}: {dict(counts)}", flush=True)
    return read(file)


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of lines."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def judge_of(options: RecipeArguments) -> Judge:
    """The judge of two pictures; the embedded one is asked about each (`diffusion_nano.AskedAbout`)."""
    settings = JudgeConfig.resolve(
        {
            "model": options.judge_model,
            "base_url": options.judge_base_url,
            "format": options.judge_format,
            "rubric": options.judge_rubric,
            "cache": options.judge_cache,
        }
    )
    if options.dataset_name != "nano":
        return settings.build()
    engine = TransformersEngine("nano")
    cached = engine if settings.cache == "off" else CachedEngine(engine, settings.cache)
    return Judge(diffusion_nano.AskedAbout(), cached, Sampling(max_tokens=96))


def pairs_of(options: RecipeArguments, own: Family, prompts: Sequence[str], folder: Path, seed: int) -> Dataset:
    """Draws the candidates and has them judged, as far as that is not done yet."""
    file = folder / "pairs.jsonl"
    names = [[f"pictures/{n}-{k}.png" for k in range(options.pictures)] for n in range(len(prompts))]
    if not file.exists():
        repeated = [prompt for prompt in prompts for _ in range(options.pictures)]
        draw(own, repeated, [folder / name for row in names for name in row], options, seed)
        if PartialState().is_main_process:
            judged(list(zip(prompts, names, strict=True)), file, judge_of(options), options.margin)
        PartialState().wait_for_everyone()
    lines = read(file)
    if len(lines) < options.fewest_pairs:
        raise ConfigError(
            f"{len(lines)} pairs are too few to train on (fewest_pairs={options.fewest_pairs}):"
            f" {file.with_suffix('.md')} counts why the others were skipped."
            " Draw more prompts, more pictures of each, or lower the margin"
        )
    return Dataset.from_list([{name: line[name] for name in ("id", "prompt", "chosen", "rejected")} for line in lines])


def split(pairs: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Pairs to train on, and those of other prompts to measure on: pairs of one prompt have pictures in common."""
    ids = sorted(set(pairs["id"]))
    kept = set(random.Random(f"held out {seed}").sample(ids, max(1, math.ceil(share * len(ids)))))
    return pairs.filter(lambda row: row["id"] not in kept), pairs.filter(lambda row: row["id"] in kept)


# ----------------------------------------------------------------------------------------------------------- training


def preference_loss(
    errors: torch.Tensor, reference: torch.Tensor, beta: float, safeguard: float, anchor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss per pair, and how much likelier than before the winner is against the loser (0 at the start).

    Args:
        errors: predictions minus targets of the policy: the winners of n pairs, then their losers.
        reference: the same of the model before training.
        anchor: the weight of the winners' own errors, in the unit that they have in the preference.
    """
    won, lost = errors.flatten(1).chunk(2)
    before_won, before_lost = reference.flatten(1).square().mean(1).chunk(2)
    loser = guarded(won, lost, safeguard) if safeguard else lost.square().mean(1)
    grown = won.square().mean(1) - before_won
    margin = (loser - before_lost) - grown
    return -F.logsigmoid(beta / 2 * margin) + anchor * beta / 2 * grown, margin.detach()


def guarded(won: torch.Tensor, lost: torch.Tensor, share: float) -> torch.Tensor:
    """The losers' squared errors, with gradients cut back where they point along the winners'.

    Making the loser's error larger along the winner's own direction makes the winner's larger too. The cut leaves at
    least 1 - `share` of the winner's descent, to first order in the prediction. Values are as they were.
    """
    value = lost.square().mean(1)
    with torch.no_grad():
        along = (won * lost).sum(1)
        scale = (share * won.square().sum(1) / along.clamp_min(1e-12)).clamp(max=1.0)
        scale = torch.where(along > 0, scale, torch.ones_like(scale))
    return scale * value + (1 - scale) * value.detach()


class DiffusionTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer on pairs of pictures."""

    def __init__(self, own: Family, options: RecipeArguments, folder: Path, **given: Any) -> None:
        super().__init__(data_collator=lambda rows: {key: [row[key] for row in rows] for key in rows[0]}, **given)
        self.own, self.options, self.folder = own, options, folder
        self.size = own.size((options.height, options.width))
        self.model_accepts_loss_kwargs = False  # the loss is a mean of its batch, whatever is accumulated
        self.found: dict[str, list[float]] = {}

    def errors(
        self, network: Any, rows: dict[str, list[str]], generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prediction errors of policy and reference on the same noisy pictures, winners first."""
        files = [self.folder / name for name in (*rows["chosen"], *rows["rejected"])]
        clean = self.own.latents([Image.open(file) for file in files], *self.size)
        n = len(rows["prompt"])
        noise = torch.randn(clean[:n].shape, generator=generator).to(clean).repeat(2, 1, 1, 1)
        times = self.own.times(n, generator).to(clean.device).repeat(2)
        noisy, target = self.own.noised(clean, noise, times)
        with torch.no_grad():
            conditions = self.own.conditions(rows["prompt"] * 2)
            plain: PeftModel = self.accelerator.unwrap_model(network)
            with plain.disable_adapter():
                reference = self.own.predict(plain, noisy, times, conditions) - target
        return (self.own.predict(network, noisy, times, conditions) - target).float(), reference.float()

    def compute_loss(
        self, model: Any, inputs: dict[str, list[str]], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The mean loss of a batch; what is logged is kept until then."""
        errors, reference = self.errors(model, inputs, None)
        how = self.options
        losses, margins = preference_loss(errors, reference, how.beta, how.safeguard, how.anchor)
        worse = (errors.detach().flatten(1).square().mean(1) - reference.flatten(1).square().mean(1)).chunk(2)
        shares = (margins > 0).float() + (margins == 0).float() / 2
        for name, value in (("accuracy", shares), ("error_won", worse[0]), ("error_lost", worse[1])):
            self.found.setdefault(name, []).append(value.mean().item())
        return losses.mean()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the means since the last log: pairs in the right order, and how much both errors grew."""
        if "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self.found.items()}
            self.found = {}
        super().log(logs, *args, **kwargs)

    @torch.no_grad()
    def implicit_accuracy(self, rows: Dataset) -> float:
        """The share of pairs whose winner became likelier than its loser, over DRAWS draws; a tie counts half."""
        generator, margins = torch.Generator().manual_seed(0), torch.zeros(len(rows))
        self.model.eval()
        for _ in range(DRAWS):
            for start in range(0, len(rows), BATCH):
                part = rows[start : start + BATCH]
                found = preference_loss(*self.errors(self.model, part, generator), self.options.beta, 0.0, 0.0)[1]
                margins[start : start + BATCH] += found.cpu()
        return float(((margins > 0).float() + (margins == 0).float() / 2).mean())


class Progress(TrainerCallback):  # type: ignore[misc]
    """One short line per log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            grown = f"errors {logs['error_won']:+.4f} won, {logs['error_lost']:+.4f} lost"
            print(
                f"step {state.global_step:4}   loss {logs['loss']:.3f}   right order {logs['accuracy']:.0%}   {grown}",
                flush=True,
            )


def train(
    options: RecipeArguments, args: TrainingArguments, own: Family, pairs: Dataset, folder: Path
) -> dict[str, Any]:
    """Trains the LoRA and saves it as diffusers reads it; what is known of the held-out pairs."""
    training, measured_on = split(pairs, options.held_out_share, args.seed)
    config = LoraConfig(r=options.lora_r, lora_alpha=options.lora_r, target_modules=own.layers())
    own.network.requires_grad_(False)
    if args.gradient_checkpointing:  # diffusers has its own name for it
        own.network.enable_gradient_checkpointing()
        args.gradient_checkpointing = False
    set_seed(args.seed)  # the LoRA starts at random, before there is a trainer that would seed it
    network = get_peft_model(own.network, config)
    trainer = DiffusionTrainer(own, options, folder, model=network, args=args, train_dataset=training)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress())
    begun = checkpoint(args)
    check_resume(options, args, folder, begun is not None)
    trainer.train(resume_from_checkpoint=begun)
    accuracy = trainer.implicit_accuracy(measured_on)
    if trainer.is_world_process_zero():
        weights = get_peft_model_state_dict(network)
        layers = {name.removeprefix("base_model.model."): weight for name, weight in weights.items()}
        how = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
        own.pipe.save_lora_weights(
            folder,
            **{f"{own.denoiser}_lora_layers": layers, f"{own.denoiser}_lora_adapter_metadata": how},
        )
    return {
        "pairs": len(pairs),
        "held_out_pairs": len(measured_on),
        "implicit_accuracy": accuracy,
        "log": trainer.state.log_history,
    }


def check_resume(options: RecipeArguments, args: TrainingArguments, folder: Path, resumed: bool) -> None:
    """Writes the settings that a checkpoint belongs to, or compares them.

    Raises:
        ConfigError: the run to go on with has other settings or pairs.
    """
    file = folder / "settings.json"
    fixed = ("model_name_or_path", "lora_r", "beta", "safeguard", "anchor", "height", "width", "held_out_share")
    pairs = hashlib.sha256((folder / "pairs.jsonl").read_bytes()).hexdigest()[:12]
    now = {name: asdict(options)[name] for name in fixed} | {"seed": args.seed, "pairs.jsonl": pairs}
    if resumed and file.exists():
        before = json.loads(file.read_text())
        if changed := [name for name in now if now[name] != before.get(name)]:
            name = changed[0]
            raise ConfigError(
                f"the checkpoints in {folder} are of another run: {name} was {before.get(name)!r} and is {now[name]!r}."
                " Set it back, or give another output_dir"
            )
    if PartialState().is_main_process:
        file.write_text(json.dumps(now, indent=2) + "\n")


# --------------------------------------------------------------------------------------------------------------- main


def pipeline_of(name: str, folder: Path, args: TrainingArguments) -> Family:
    """The family of the pipeline; a nano pipeline that is not there yet is trained first, beside `folder`."""
    if name.startswith("nano-"):
        path = folder.parent / name
        with PartialState().main_process_first():
            if not path.exists():
                print(f"pretraining    {path}", flush=True)
                diffusion_nano.pretrain(name.removeprefix("nano-"), path)
        name = str(path)
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    return family(load(name, dtype).to(args.device))


def main() -> None:
    """Reads the arguments, draws, judges, trains, draws again, reports."""
    parser = TrlParser((RecipeArguments, TrainingArguments))
    options, args = parser.parse_args_and_config()
    args.remove_unused_columns = False
    folder = Path(args.output_dir)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    prompts, held_out = asked(options, args.seed)
    own = pipeline_of(options.model_name_or_path, folder, args)
    pairs = pairs_of(options, own, prompts, folder, args.seed)
    if options.prepare_only:
        return
    shown = [
        Shown(text, *(folder / "pictures" / f"{when}-{n}.png" for when in ("before", "after")))
        for n, text in enumerate(held_out)
    ]
    draw(own, held_out, [one.before for one in shown], options, args.seed + 1)
    found = train(options, args, own, pairs, folder)
    own.pipe.to("cpu")
    fresh = pipeline_of(options.model_name_or_path, folder, args)  # what is measured is the LoRA as it was saved
    fresh.pipe.load_lora_weights(folder)
    for one in shown:
        one.after.unlink(missing_ok=True)
    draw(fresh, held_out, [one.after for one in shown], options, args.seed + 1)
    if PartialState().is_main_process:
        measured(found, shown, options, folder)
    if args.push_to_hub:
        upload_folder(
            repo_id=args.hub_model_id or folder.name, folder_path=folder, allow_patterns=["*.safetensors", "*.md"]
        )


def measured(found: dict[str, Any], shown: list[Shown], options: RecipeArguments, folder: Path) -> None:
    """Has the held-out pictures judged, and reports."""
    judge = judge_of(options)
    rows = [(one.prompt, [f"pictures/{one.before.name}", f"pictures/{one.after.name}"]) for one in shown]
    judged(rows, folder / "held_out.jsonl", judge, 0.0)
    who = f"{judge.engine.identity().get('model')}, format {type(judge.format).__name__}"
    nano = options.dataset_name == "nano"
    who += ", asked what the picture shows" if nano else f", rubric {options.judge_rubric}"
    report(found | {"base": options.model_name_or_path, "settings": asdict(options)}, shown, who, folder, nano)


if __name__ == "__main__":
    try:
        main()
    except FlexJudgeError as error:
        raise SystemExit(f"diffusion_dpo: {error}") from None
