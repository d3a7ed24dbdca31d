"""Diffusion-DPO (arXiv 2311.12908) as a transformers Trainer: a LoRA on the denoiser, trained on pairs of images.

The loss compares the denoising errors of both images, at the same noise and timestep, with those of the model before
training. It only requires the loser's error to grow faster than the winner's, which a model also satisfies by denoising
everything worse. Two terms prevent that: the winner's own error is lowered too (`sft_weight`, as the SFT term in DPO of
language models), and the loser's gradient is scaled down where it would raise the winner's error (`safeguard`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexjudge_recipes.diffusion_dpo.families import Family

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

NOISE_SAMPLES = 8  # of noise and timestep, per evaluated pair


@dataclass
class DiffusionDPOConfig(TrainingArguments):
    """TrainingArguments and the settings of the loss."""

    beta: float = field(default=2000.0, metadata={"help": "Strength of the preference; 2000 to 5000 for real models."})
    sft_weight: float = field(default=1.0, metadata={"help": "Weight of the winner's own error; 0 for none."})
    safeguard: float = field(
        default=0.9, metadata={"help": "Largest share of the winner's gradient that the loser's may undo; 0 for none."}
    )
    lora_r: int = field(default=8, metadata={"help": "Rank of the LoRA."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "False: the loss reads all columns."})
    hub_strategy: str = field(default="end", metadata={"help": "When to push, if push_to_hub is set."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_seed is None:  # else each process would shuffle the pairs by the seed of its own noise
            self.data_seed = self.seed


# ------------------------------------------------------------------------------------------------------------- loss


def preference_loss(
    errors: torch.Tensor, reference: torch.Tensor, beta: float, safeguard: float, sft_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss per pair, and its margin: by how much the loser's squared error grew more than the winner's.

    Args:
        errors: predictions minus targets of the policy: the winners of n pairs, then their losers.
        reference: the same of the model before training.
        sft_weight: weight of the winners' own errors, in the unit that they have in the preference.
    """
    won, lost = errors.flatten(1).chunk(2)
    reference_won, reference_lost = reference.flatten(1).square().mean(1).chunk(2)
    loser = scaled_loser_error(won, lost, safeguard) if safeguard else lost.square().mean(1)
    growth = won.square().mean(1) - reference_won
    margin = (loser - reference_lost) - growth
    return -F.logsigmoid(beta / 2 * margin) + sft_weight * beta / 2 * growth, margin.detach()


def scaled_loser_error(won: torch.Tensor, lost: torch.Tensor, share: float) -> torch.Tensor:
    """The losers' squared errors, with gradients scaled down where they point along the winners'.

    Raising the loser's error along the winner's direction raises the winner's error too. At least 1 - `share` of the
    winner's descent remains, to first order in the prediction. The values do not change.
    """
    error = lost.square().mean(1)
    with torch.no_grad():
        along = (won * lost).sum(1)
        scale = (share * won.square().sum(1) / along.clamp_min(1e-12)).clamp(max=1.0)
        scale = torch.where(along > 0, scale, torch.ones_like(scale))
    return scale * error + (1 - scale) * error.detach()


def accuracy(margins: torch.Tensor) -> torch.Tensor:
    """The share of positive margins; a tie counts half."""
    return ((margins > 0).float() + (margins == 0).float() / 2).mean()


# ---------------------------------------------------------------------------------------------------------- trainer


class DiffusionDPOTrainer(Trainer):  # type: ignore[misc]
    """Rows have a `prompt` and two images, `chosen` and `rejected`."""

    def __init__(self, family: Family, args: DiffusionDPOConfig, train_dataset: Dataset, size: tuple[int, int]) -> None:
        """
        Args:
            size: height and width of the images.
        """
        self.family, self.size = family, size
        family.denoiser.requires_grad_(False)
        if args.gradient_checkpointing:  # diffusers has its own method for it
            family.denoiser.enable_gradient_checkpointing()
            args.gradient_checkpointing = False
        self.lora = LoraConfig(r=args.lora_r, lora_alpha=args.lora_r, target_modules=family.lora_layers())
        set_seed(args.seed)  # the LoRA's initial weights are random
        super().__init__(
            model=get_peft_model(family.denoiser, self.lora),
            args=args,
            train_dataset=train_dataset,
            data_collator=lambda rows: {name: [row[name] for row in rows] for name in rows[0]},
        )
        self.model_accepts_loss_kwargs = False  # the loss is the mean of its batch, whatever is accumulated
        self.remove_callback(PrinterCallback)
        self.add_callback(Progress())
        self._metrics: dict[str, list[float]] = defaultdict(list)
        set_seed(args.seed, device_specific=True)  # each process has its own noise and timesteps

    def denoising_errors(
        self, network: Any, rows: dict[str, list[str]], generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prediction errors of policy and reference on the same noisy images, winners first."""
        images = [*rows["chosen"], *rows["rejected"]]
        latents = self.family.encode_images(images, *self.size)
        count = len(rows["prompt"])
        noise = torch.randn(latents[:count].shape, generator=generator).to(latents.device).repeat(2, 1, 1, 1)
        timesteps = self.family.sample_timesteps(count, generator).to(latents.device).repeat(2)
        noisy, target = self.family.add_noise(latents, noise, timesteps)
        with torch.no_grad():
            conditions = self.family.encode_prompts(rows["prompt"] * 2, *self.size)
            policy: PeftModel = self.accelerator.unwrap_model(network)
            with policy.disable_adapter():
                reference = self.family.predict(policy, noisy, timesteps, conditions) - target
        errors = self.family.predict(network, noisy, timesteps, conditions) - target
        return errors.float(), reference.float()

    def compute_loss(
        self, model: Any, inputs: dict[str, list[str]], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The mean loss of a batch."""
        errors, reference = self.denoising_errors(model, inputs)
        args = self.args
        losses, margins = preference_loss(errors, reference, args.beta, args.safeguard, args.sft_weight)
        growth = errors.detach().flatten(1).square().mean(1) - reference.flatten(1).square().mean(1)
        won, lost = growth.chunk(2)
        for name, value in (("accuracy", accuracy(margins)), ("error_won", won.mean()), ("error_lost", lost.mean())):
            self._metrics[name].append(value.item())
        return losses.mean()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the means since the last log: the share of pairs ordered correctly, and the growth of both errors."""
        if "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self._metrics.items()}
            self._metrics.clear()
        super().log(logs, *args, **kwargs)

    @torch.no_grad()
    def implicit_accuracy(self, rows: Dataset) -> float:
        """The share of pairs ordered correctly by the sum of their margins over NOISE_SAMPLES samples."""
        generator, margins = torch.Generator().manual_seed(0), torch.zeros(len(rows))
        size = self.args.per_device_eval_batch_size
        self.model.eval()
        for _ in range(NOISE_SAMPLES):
            for start in range(0, len(rows), size):
                errors, reference = self.denoising_errors(self.model, rows[start : start + size], generator)
                margins[start : start + size] += preference_loss(errors, reference, self.args.beta, 0, 0)[1].cpu()
        return float(accuracy(margins))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint as PEFT saves it; without a folder, the finished LoRA as `load_lora_weights` reads it."""
        if output_dir is not None:
            super().save_model(output_dir, _internal_call)
            return
        if self.is_world_process_zero():
            weights = get_peft_model_state_dict(self.accelerator.unwrap_model(self.model))
            layers = {name.removeprefix("base_model.model."): weight for name, weight in weights.items()}
            config = {k: sorted(v) if isinstance(v, set) else v for k, v in self.lora.to_dict().items()}
            name = self.family.denoiser_name
            self.family.pipe.save_lora_weights(
                self.args.output_dir, **{f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": config}
            )
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def create_model_card(self, **given: Any) -> None:
        """The trainer's card, with the metadata of a LoRA of diffusers."""
        base = str(self.family.pipe.config._name_or_path)
        base = Path(base).name if Path(base).is_dir() else base
        super().create_model_card(**{"finetuned_from": base, "tags": ["lora", "diffusion-dpo"], **given})
        if self.is_world_process_zero():
            file = Path(self.args.output_dir, "README.md")
            card = ModelCard.load(file)
            card.data.library_name = "diffusers"
            card.save(file)


class Progress(TrainerCallback):  # type: ignore[misc]
    """One short line per log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            growth = f"error {logs['error_won']:+.4f} chosen, {logs['error_lost']:+.4f} rejected"
            line = f"step {state.global_step:4}   loss {logs['loss']:.3f}   accuracy {logs['accuracy']:.0%}   {growth}"
            print(line, flush=True)
