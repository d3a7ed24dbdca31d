"""Tiny text-to-image models of the world of `images.py`, trained here in about six minutes on one CPU core.

    python recipes/nano/image_generator.py --kind unet --output runs/nano-unet      # or --kind flow

The model is a complete diffusers pipeline (a Stable Diffusion with a UNet, or a Stable Diffusion 3 with a flow
transformer) of about a million parameters. It first learns from correct images, then from a set where more than half
are corrupted: they show the next colour and the next shape of the list. So it generates clean images that are often not
those of the prompt, which a judge can improve.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flexjudge_recipes.diffusion_dpo.families import family_of
from flexjudge_recipes.nano import images, shapes
from flexjudge_recipes.nano.images import SIZE, Spec

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast

UNCORRUPTED = 0.45  # share of the second set that is correct
CORRECT_STEPS = 0.3  # share of the steps on the first set, to learn the words
WIDTH = 32
LATENT = 8 * (SIZE // 4) ** 2  # numbers per image
IMAGES = 2000
VAE_STEPS = 1000
STEPS = {"unet": 1800, "flow": 2000}

# ------------------------------------------------------------------------------------------------------ pretraining


def pretrained(name: str, folder: Path) -> Path:
    """The folder of nano-unet or nano-flow below `folder`; the first process pretrains it unless it is there."""
    path = folder / name
    with PartialState().main_process_first():
        if not path.exists():
            print(f"pretraining    {path}", flush=True)
            pretrain(name.removeprefix("nano-"), path)
    return path


def pretrain(kind: str, folder: Path, seed: int = 0, steps: int | None = None) -> None:
    """Trains a pipeline of the kind "unet" or "flow" and saves it; by default for as many steps as its kind needs."""
    torch.manual_seed(seed)
    rng = random.Random(f"pictures {seed}")
    pipe = unet_pipeline() if kind == "unet" else flow_pipeline()
    pipe.set_progress_bar_config(disable=True)
    specs = [Spec.sample(rng) for _ in range(IMAGES)]
    train_vae(pipe.vae, rng, VAE_STEPS)
    correct = [spec.image() for spec in specs]
    corrupted = [corrupt(spec, rng).image() for spec in specs]
    train_denoiser(pipe, correct, corrupted, [str(spec) for spec in specs], steps or STEPS[kind])
    unfinished = folder.with_name(folder.name + ".new")
    pipe.save_pretrained(unfinished)
    unfinished.rename(folder)


def corrupt(spec: Spec, rng: random.Random) -> Spec:
    """The same, or with the next colour and the next shape at the same place.

    Both change together: if each changed alone there were four images to a prompt, and many generated images would be
    between two of them.
    """
    if rng.random() < UNCORRUPTED:
        return spec
    return Spec(_next(shapes.COLOURS, spec.colour), _next(shapes.SHAPES, spec.shape), spec.place)


def _next(known: Sequence[str], word: str) -> str:
    return known[(known.index(word) + 1) % len(known)]


def train_vae(vae: AutoencoderKL, rng: random.Random, steps: int) -> None:
    """Reconstruction, and latents near a standard normal; their scale is measured afterwards.

    The images have a shape at most places: one with a single shape is mostly background.
    """
    pixels = torch.from_numpy(np.stack([np.asarray(images.draw(shapes.scene(rng))) for _ in range(IMAGES)]))
    pixels = pixels.permute(0, 3, 1, 2) / 127.5 - 1
    for batch, step_with in batches(vae.parameters(), len(pixels), steps, 16, 4e-3, "VAE"):
        targets = pixels[batch]
        posterior = vae.encode(targets).latent_dist
        error = vae.decode(posterior.sample()).sample - targets
        step_with(error.square().mean() + error.abs().mean() / 2 + 1e-4 * posterior.kl().mean() / LATENT)
    with torch.no_grad():
        latents = vae.encode(pixels[:200]).latent_dist.mode()
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
    vae.eval().requires_grad_(False)


def train_denoiser(
    pipe: DiffusionPipeline,
    correct: Sequence[Image.Image],
    corrupted: Sequence[Image.Image],
    prompts: Sequence[str],
    steps: int,
) -> None:
    """The denoiser together with the text encoders, by the family's own objective.

    Corrupted images have most of the steps: a denoiser that knows correct ones alone never looks for the colour in the
    noisy image, and generates mixtures of two colours until it has learned to.
    """
    family, every = family_of(pipe), [*correct, *corrupted]
    latents = torch.cat([family.encode_images(every[i : i + 100], SIZE, SIZE) for i in range(0, len(every), 100)])
    encoders = [getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2")]
    weights = [p for part in (family.denoiser, *encoders) if part is not None for p in part.parameters()]
    for step, (batch, step_with) in enumerate(batches(weights, len(prompts), steps, 32, 2e-3, "denoiser")):
        clean = latents[batch + len(prompts) * (step >= CORRECT_STEPS * steps)]
        timesteps = family.sample_timesteps(len(batch), None)
        conditions = family.encode_prompts([prompts[i] for i in batch], SIZE, SIZE)
        noisy, target = family.add_noise(clean, torch.randn_like(clean), timesteps)
        step_with(F.mse_loss(family.predict(family.denoiser, noisy, timesteps, conditions), target))


def batches(
    parameters: Iterable[torch.nn.Parameter], count: int, steps: int, size: int, rate: float, description: str
) -> Iterator[tuple[torch.Tensor, Callable[[torch.Tensor], None]]]:
    """Random batches of indices, each with the function that takes its loss and makes the step."""
    weights = list(parameters)
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.98))

    def step_with(loss: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        bar.set_postfix_str(f"loss {loss.item():.4f}", refresh=False)

    with tqdm(range(steps), desc=description, mininterval=2) as bar:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = rate * min((step + 1) / 50, 1 - step / steps + 0.02)
            yield torch.randint(0, count, (size,)), step_with


# -------------------------------------------------------------------------------------------------------- pipelines


def unet_pipeline() -> StableDiffusionPipeline:
    """A Stable Diffusion with random weights."""
    unet = UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=8,
        out_channels=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(WIDTH, 2 * WIDTH),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type="v_prediction",
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(CLIPTextModel),
        tokenizer=tokenizer(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def flow_pipeline() -> StableDiffusion3Pipeline:
    """A Stable Diffusion 3 without its third text encoder, with random weights."""
    transformer = SD3Transformer2DModel(
        sample_size=SIZE // 4,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=64,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=SIZE // 8,
    )
    return StableDiffusion3Pipeline(
        vae=vae(),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        text_encoder=text_encoder(CLIPTextModelWithProjection),
        tokenizer=tokenizer(),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection),
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def vae() -> AutoencoderKL:
    """32 x 32 pixels to 8 x 8 latents of 8 channels."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[12, 24, 32],
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=4,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """A token per word; three words between a beginning and an end."""
    words = ["<pad>", "<start>", "<end>", *shapes.COLOURS, *shapes.SHAPES, *shapes.PLACES]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing("<start> $A <end>", None, [("<start>", 1), ("<end>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<start>", eos_token="<end>", pad_token="<pad>", model_max_length=5
    )


def text_encoder(kind: type) -> Any:
    """A CLIP text encoder for these words."""
    config = CLIPTextConfig(
        vocab_size=3 + len(shapes.COLOURS) + len(shapes.SHAPES) + len(shapes.PLACES),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return kind(config)


def main() -> None:
    """Trains one pipeline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("unet", "flow"), required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pretrain(args.kind, args.output, args.seed)


if __name__ == "__main__":
    main()
