"""Diffusion-DPO on a text-to-image model, from its own pictures as a judge prefers them.

    pip install 'flexjudge-reward[trl,diffusers]'
    python recipes/diffusion_dpo.py --config recipes/configs/diffusion_dpo_nano_unet.yaml     # or .._nano_flow.yaml

Two CPU cores, nothing to download: a tiny text-to-image model of the embedded world, trained first if it is not there
yet (`diffusion_nano.py`, about six minutes), draws what it is asked for with bad habits; the embedded judge, which
never sees the truth, says which of two pictures is nearer to the prompt; a LoRA makes that one likelier. Expect 26 % of
the pictures just as asked for before and 74 % after (UNet), 26 and 83 % (flow transformer), on prompts that were not
trained on, three seeds.

    CUDA_VISIBLE_DEVICES=0 vllm serve jongwooko/Flex-VL-7B --port 8001 --limit-mm-per-prompt '{"image": 4}'
    CUDA_VISIBLE_DEVICES=1,2,3,4,5,6,7 accelerate launch --num_processes 7 \\
        recipes/diffusion_dpo.py --config recipes/configs/diffusion_dpo_sd3.5.yaml

Stable Diffusion 1.x, 2.x, XL, 3, 3.5 and FLUX (`diffusion_families.py`). Each step finds what the one before left in
`output_dir`, so that a run that was cut off goes on: pictures/ and pairs.jsonl (`diffusion_pairs.py`), checkpoint-N/,
and at the end the LoRA in diffusers' format. --prepare_only true stops before the training. Every flag of transformers'
TrainingArguments works, in the file or on the command line, such as --report_to wandb and --resume_from_checkpoint
true.

The loss (Diffusion-DPO, arXiv 2311.12908) compares the denoising errors of both pictures, under the same noise and
time, with those of the model before training. It only asks the loser to get worse faster than the winner, and is
satisfied by a model that draws everything worse. So the winner's own error is lowered beside it (`anchor`, as the SFT
term in DPO of language models), the loser's gradient is cut back where it would push the winner's error up (`guarded`),
and picture quality stands beside every preference accuracy.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import diffusion_nano
import diffusion_pairs
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import set_seed
from common import Noted, begin_again, check_trackers, checkpoint, model_of, publish
from datasets import Dataset
from diffusion_families import Family, family, load
from diffusion_pairs import PairArguments
from diffusion_report import Shown, report
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from PIL import Image
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from trl import TrlParser

from flexjudge_reward import FlexJudgeError

DRAWS = 8  # of noise and time, for each held-out pair


@dataclass
class RecipeArguments(PairArguments):
    """What is drawn, who judges (`diffusion_pairs.py`), how it is learned."""

    prepare_only: bool = field(default=False, metadata={"help": "Draw and judge, and train another time."})
    held_out_share: float = field(default=0.15, metadata={"help": "Of the prompts, kept for the implicit accuracy."})
    beta: float = field(default=2000.0, metadata={"help": "Strength of the preference; 2000 to 5000 for real models."})
    safeguard: float = field(
        default=0.9, metadata={"help": "Largest share of the winner's gradient that the loser's may undo; 0 is none."}
    )
    anchor: float = field(
        default=1.0, metadata={"help": "Weight of the winner's own error beside the preference; 0 is none."}
    )
    lora_r: int = field(default=8, metadata={"help": "Rank of the LoRA."})


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
        noise = torch.randn(clean[:n].shape, generator=generator).to(clean.device).repeat(2, 1, 1, 1)
        times = self.own.times(n, generator).to(clean.device).repeat(2)
        noisy, target = self.own.noised(clean, noise, times)
        with torch.no_grad():
            conditions = self.own.conditions(rows["prompt"] * 2, *self.size)
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
        size = self.args.per_device_eval_batch_size
        self.model.eval()
        for _ in range(DRAWS):
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                found = preference_loss(*self.errors(self.model, part, generator), self.options.beta, 0.0, 0.0)[1]
                margins[start : start + size] += found.cpu()
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
    training, measured_on = diffusion_pairs.split(pairs, options.held_out_share, args.seed)
    settings = fixed(options, args, folder)
    begun = checkpoint(args, settings)
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
    trainer.add_callback(Noted(settings))
    set_seed(args.seed, device_specific=True)  # each process has noise and times of its own
    trainer.train(resume_from_checkpoint=begun)
    accuracy = trainer.implicit_accuracy(measured_on)
    if trainer.is_world_process_zero():
        save(own, network, config, folder)
    PartialState().wait_for_everyone()  # the others will load what the first one has saved
    return {
        "pairs": len(pairs),
        "held_out_pairs": len(measured_on),
        "implicit_accuracy": accuracy,
        "log": trainer.state.log_history,
    }


def fixed(options: RecipeArguments, args: TrainingArguments, folder: Path) -> dict[str, Any]:
    """What must be the same when a run goes on from a checkpoint."""
    names = ("model_name_or_path", "lora_r", "beta", "safeguard", "anchor", "height", "width", "held_out_share")
    pairs = hashlib.sha256((folder / "pairs.jsonl").read_bytes()).hexdigest()[:12]
    fixed = {name: getattr(options, name) for name in names} | {"seed": args.seed, "pairs.jsonl": pairs}
    return fixed | {"model_name_or_path": model_of(options.model_name_or_path)}


def save(own: Family, network: PeftModel, config: LoraConfig, folder: Path) -> None:
    """The LoRA in diffusers' format."""
    weights = get_peft_model_state_dict(network)
    layers = {name.removeprefix("base_model.model."): weight for name, weight in weights.items()}
    how = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    own.pipe.save_lora_weights(
        folder,
        **{f"{own.denoiser}_lora_layers": layers, f"{own.denoiser}_lora_adapter_metadata": how},
    )


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
    check_trackers(args)
    diffusion_pairs.settings_of(options)  # a judge that cannot be is found before a picture is drawn
    args.remove_unused_columns = False
    if args.data_seed is None:  # else each process would shuffle the pairs by the seed of its own noise
        args.data_seed = args.seed
    push, args.push_to_hub = args.push_to_hub, False  # the trainer would push the whole folder, at every checkpoint
    folder = Path(args.output_dir)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    prompts, held_out = diffusion_pairs.asked(options, args.seed)
    diffusion_pairs.check_pictures(options, folder, args.seed)
    own = pipeline_of(options.model_name_or_path, folder, args)
    batch = args.per_device_eval_batch_size
    pairs = diffusion_pairs.pairs_of(options, own, prompts, folder, args.seed, batch)
    if options.prepare_only:
        return
    shown = [
        Shown(text, *(folder / "pictures" / f"{when}-{n}.png" for when in ("before", "after")))
        for n, text in enumerate(held_out)
    ]
    diffusion_pairs.draw(own, held_out, [one.before for one in shown], options, args.seed + 1, batch)
    found = train(options, args, own, pairs, folder)
    own.pipe.to("cpu")
    draw_after(options, args, shown, folder)
    if PartialState().is_main_process:
        measured(found, shown, options, folder)
        if push:
            publish(args, folder)
    PartialState().wait_for_everyone()


def draw_after(options: RecipeArguments, args: TrainingArguments, shown: list[Shown], folder: Path) -> None:
    """The held-out prompts again, with the LoRA as it was saved; those of an earlier training go first."""
    fresh = pipeline_of(options.model_name_or_path, folder, args)
    fresh.pipe.load_lora_weights(folder)
    if PartialState().is_main_process:
        for one in shown:
            one.after.unlink(missing_ok=True)
    PartialState().wait_for_everyone()
    prompts, files = [one.prompt for one in shown], [one.after for one in shown]
    diffusion_pairs.draw(fresh, prompts, files, options, args.seed + 1, args.per_device_eval_batch_size)


def measured(found: dict[str, Any], shown: list[Shown], options: RecipeArguments, folder: Path) -> None:
    """Has the held-out pictures judged, and reports."""
    judge, file = diffusion_pairs.judge_of(options), folder / "held_out.jsonl"
    rows = [(one.prompt, [f"pictures/{one.before.name}", f"pictures/{one.after.name}"]) for one in shown]
    begin_again(file)  # what was begun is of other pictures with these names
    diffusion_pairs.preferred(diffusion_pairs.candidates(rows, file), file, judge, 0.0)
    who = f"{judge.engine.identity().get('model')}, format {type(judge.format).__name__}"
    nano = options.dataset_name == "nano"
    who += ", asked what the picture shows" if nano else f", rubric {options.judge_rubric}"
    report(found | {"base": options.model_name_or_path, "settings": asdict(options)}, shown, who, folder, nano)


if __name__ == "__main__":
    try:
        main()
    except FlexJudgeError as error:
        raise SystemExit(f"diffusion_dpo: {error}") from None
