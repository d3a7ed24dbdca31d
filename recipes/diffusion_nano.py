"""A tiny text-to-image model of the embedded world, made here, and the truth about what it draws.

    python recipes/diffusion_nano.py --kind unet --out runs/nano_unet      # or --kind flow; about six minutes

A prompt such as "red star top-left" wants one shape at one place of a 32 x 32 picture. The model is a complete
diffusers pipeline (a Stable Diffusion with a UNet, or a Stable Diffusion 3 with a flow transformer) of about a million
parameters. It first learns from pictures that are as their prompts say, then from careless ones, of which more than
half show the next colour and the next shape of the list instead. So it draws clean pictures that are often not the
ones asked for: something to learn from a judge, who is asked about the picture ("What is top-left?") and scores the
prompt's words as the answer. The truth is read from the pixels, by colour and outline, and no judge sees it.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
from diffusion_families import family
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from flexjudge_reward import Example, Prompt, Score
from flexjudge_reward.nano import world

SIDE = 32  # pixels; the judge reads such a picture as well as one of 56
KEPT = 0.45  # of the careless pictures are as the prompt says
EARLY = 0.3  # of the steps are on pictures that are as the prompt says, to learn the words
LOOK = 3  # the seed of the one way in which a thing is drawn: so small a model would blur several
WIDTH = 32
LATENT = 8 * (SIDE // 4) ** 2  # numbers per picture
PICTURES = 2000  # that the models are trained on
VAE_STEPS = 1000
STEPS = {"unet": 1800, "flow": 2000}

# ---------------------------------------------------------------------------------------------------------- prompts


@dataclass(frozen=True)
class Wish:
    """What a prompt asks for."""

    colour: str
    shape: str
    place: str

    @classmethod
    def of(cls, prompt: str) -> Wish:
        """The wish of a prompt of this world."""
        colour, shape, place = prompt.split()
        return cls(colour, shape, place)

    @property
    def held_out(self) -> bool:
        """Whether this wish is kept for measuring (26 of 96)."""
        return hashlib.sha256(str(self).encode()).digest()[0] < 64

    @classmethod
    def drawn(cls, rng: random.Random) -> Wish:
        """Any wish."""
        return cls(rng.choice(world.COLOURS), rng.choice(world.SHAPES), rng.choice(world.PLACES))

    def __str__(self) -> str:
        return f"{self.colour} {self.shape} {self.place}"

    def picture(self) -> Image.Image:
        """The wish fulfilled."""
        cells = [f"{self.colour} {self.shape}" if place == self.place else world.NOTHING for place in world.PLACES]
        return _drawing(world.Scene((cells[0], cells[1], cells[2], cells[3])))


def _drawing(scene: world.Scene) -> Image.Image:
    return world.draw(scene, random.Random(LOOK)).resize((SIDE, SIDE), Image.Resampling.BOX)


def prompts(seed: int, count: int, held_out: bool = False) -> list[str]:
    """`count` prompts from one side of the split, each wish about equally often.

    What is held out is held out of the preference: a pre-trained model has seen pictures of every wish.
    """
    rng = random.Random(f"wishes {seed}")
    every = [Wish(*words) for words in itertools.product(world.COLOURS, world.SHAPES, world.PLACES)]
    side = [str(wish) for wish in every if wish.held_out == held_out]
    found: list[str] = []
    while len(found) < count:
        found += rng.sample(side, len(side))
    return found[:count]


class AskedAbout(Score):
    """Judges a picture by a question about it, of which the prompt's words are the answer to check."""

    def __init__(self) -> None:
        super().__init__(prompts="nano")

    def render(self, example: Example) -> list[Prompt]:
        """The question with the picture, and the wish as the only candidate."""
        wish = Wish.of(str(example.question[0]))
        (picture,) = example.candidates[0]
        return super().render(Example([picture, f"What is {wish.place}?"], [f"{wish.colour} {wish.shape}"]))


# ------------------------------------------------------------------------------------------------------------ truth


@dataclass(frozen=True)
class Truth:
    """What a picture shows at the place that its prompt names, read from the pixels."""

    score: int
    """10 for colour and shape, 5 for one of them, else 1; the scale of the judge."""
    outline: float
    """How well the outline fits the shape it is nearest to: intersection over union, 0 to 1."""
    stain: float
    """Mean distance of the other places' pixels from their common colour, 0 to 255: noise, or more shapes."""


def truth(picture: Image.Image, prompt: str) -> Truth:
    """The truth about a picture."""
    wish = Wish.of(prompt)
    cells = _cells(picture)
    others = np.concatenate([cell.reshape(-1, 3) for place, cell in cells.items() if place != wish.place])
    ground = np.median(others, axis=0)
    colour, shape, outline = _read(cells[wish.place], ground)
    score = (1, 5, 10)[(colour == wish.colour) + (shape == wish.shape)]
    return Truth(score, outline, float(np.abs(others - ground).mean()))


def _cells(picture: Image.Image) -> dict[str, np.ndarray]:
    """The pixels of each place, without the frame."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    near, far = slice(2, SIDE // 2), slice(SIDE // 2, SIDE - 2)
    return {place: pixels[(near, far)[i // 2], (near, far)[i % 2]] for i, place in enumerate(world.PLACES)}


def _read(cell: np.ndarray, ground: np.ndarray) -> tuple[str, str, float]:
    """Colour, shape and how well the outline fits; two empty texts where there is nothing."""
    mask = np.abs(cell - ground).max(-1) > 60
    if mask.sum() < 12:
        return "", "", 0.0
    seen = np.median(cell[mask], axis=0)
    colour = min(world.COLOURS, key=lambda name: float(np.abs(seen - _colours()[name]).sum()))
    fits = {name: max(_overlap(_outline(mask), one) for one in known) for name, known in _outlines().items()}
    shape = max(fits, key=lambda name: fits[name])
    return colour, shape, fits[shape]


def _outline(mask: np.ndarray) -> np.ndarray:
    """The mask cut to its own bounds and scaled to 16 x 16."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(Image.fromarray(cut).convert("L").resize((16, 16), Image.Resampling.BILINEAR)) > 127


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@cache
def _outlines() -> dict[str, list[np.ndarray]]:
    """Every shape at every place, as `_outline` sees it."""
    return {shape: [_outline(mask) for mask, _ in _drawn("red", shape)] for shape in world.SHAPES}


@cache
def _colours() -> dict[str, np.ndarray]:
    return {name: np.mean([seen for _, seen in _drawn(name, "square")], axis=0) for name in world.COLOURS}


def _drawn(colour: str, shape: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masks and colours of perfect pictures, at every place."""
    found = []
    for place in world.PLACES:
        cells = _cells(Wish(colour, shape, place).picture())
        cell = cells.pop(place)
        mask = np.abs(cell - np.median(np.concatenate([*cells.values()]).reshape(-1, 3), axis=0)).max(-1) > 60
        found.append((mask, np.median(cell[mask], axis=0)))
    return found


# ------------------------------------------------------------------------------------------------------ pre-training


def pretrain(kind: str, folder: Path, seed: int = 0, steps: int | None = None) -> None:
    """Trains a pipeline and saves it to `folder`; by default for as many `steps` as its kind needs."""
    torch.manual_seed(seed)
    rng = random.Random(f"pictures {seed}")
    pipe = unet_pipeline() if kind == "unet" else flow_pipeline()
    pipe.set_progress_bar_config(disable=True)
    wishes = [Wish.drawn(rng) for _ in range(PICTURES)]
    train_vae(pipe.vae, rng, VAE_STEPS)
    pictures = [wish.picture() for wish in wishes] + [habit(wish, rng).picture() for wish in wishes]
    train_denoiser(pipe, pictures, [str(wish) for wish in wishes], steps or STEPS[kind])
    pipe.save_pretrained(folder)


def habit(wish: Wish, rng: random.Random) -> Wish:
    """What a careless picture of a prompt shows: that, or the next colour and shape at the same place.

    Both at once: where each slips alone there are four pictures to a prompt, and what is drawn is often between them.
    """
    return (
        wish
        if rng.random() < KEPT
        else Wish(_next(world.COLOURS, wish.colour), _next(world.SHAPES, wish.shape), wish.place)
    )


def _next(known: Sequence[str], word: str) -> str:
    return known[(known.index(word) + 1) % len(known)]


def train_vae(vae: AutoencoderKL, rng: random.Random, steps: int) -> None:
    """Reconstruction, and latents near a standard normal; their scale is measured afterwards.

    It learns from pictures with a shape at most places: one with a single shape is mostly ground.
    """
    images = torch.from_numpy(np.stack([np.asarray(_drawing(world.scene(rng))) for _ in range(PICTURES)]))
    images = images.permute(0, 3, 1, 2) / 127.5 - 1
    for batch, step_with in batches(vae.parameters(), len(images), steps, 16, 4e-3, "pictures"):
        shown = images[batch]
        posterior = vae.encode(shown).latent_dist
        error = vae.decode(posterior.sample()).sample - shown
        step_with(error.square().mean() + error.abs().mean() / 2 + 1e-4 * posterior.kl().mean() / LATENT)
    with torch.no_grad():
        latents = vae.encode(images[:200]).latent_dist.mode()
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
    vae.eval().requires_grad_(False)


def train_denoiser(pipe: DiffusionPipeline, pictures: Sequence[Image.Image], said: Sequence[str], steps: int) -> None:
    """The denoiser together with the text encoders, as the family's own objective has it.

    `pictures` are those that are as `said`, then as many careless ones. The careless ones have most of the steps: a
    denoiser that knows right ones alone never looks for the colour in the noisy picture, and draws between two colours
    until it has learned to.
    """
    own = family(pipe)
    clean = torch.cat([own.latents(pictures[i : i + 100], SIDE, SIDE) for i in range(0, len(pictures), 100)])
    encoders = [getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2")]
    weights = [p for part in (own.network, *encoders) if part is not None for p in part.parameters()]
    for step, (batch, step_with) in enumerate(batches(weights, len(said), steps, 32, 2e-3, "denoiser")):
        shown = clean[batch + len(said) * (step >= EARLY * steps)]
        times, conditions = own.times(len(batch), None), own.conditions([said[i] for i in batch], SIDE, SIDE)
        noisy, target = own.noised(shown, torch.randn_like(shown), times)
        step_with(F.mse_loss(own.predict(own.network, noisy, times, conditions), target))


def batches(
    weights: Iterable[torch.nn.Parameter], count: int, steps: int, size: int, rate: float, what: str
) -> Iterator[tuple[torch.Tensor, Callable[[torch.Tensor], None]]]:
    """Random batches of indices, each with the function that takes its loss and makes the step."""
    from tqdm import tqdm

    weights = list(weights)
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.98))

    def step_with(loss: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        bar.set_postfix_str(f"loss {loss.item():.4f}", refresh=False)

    with tqdm(range(steps), desc=what, mininterval=2) as bar:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = rate * min((step + 1) / 50, 1 - step / steps + 0.02)
            yield torch.randint(0, count, (size,)), step_with


def vae() -> AutoencoderKL:
    """32 x 32 pixels to 8 x 8 latents of 8 channels."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[12, 24, 32],
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=4,
        sample_size=SIDE,
        mid_block_add_attention=False,
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """A token per word; three words between a beginning and an end."""
    words = ["<pad>", "<start>", "<end>", *world.COLOURS, *world.SHAPES, *world.PLACES]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing("<start> $A <end>", None, [("<start>", 1), ("<end>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<start>", eos_token="<end>", pad_token="<pad>", model_max_length=5
    )


def text_encoder(kind: type) -> Any:
    """A CLIP text encoder for these words."""
    config = CLIPTextConfig(
        vocab_size=3 + len(world.COLOURS) + len(world.SHAPES) + len(world.PLACES),
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


def unet_pipeline() -> StableDiffusionPipeline:
    """A Stable Diffusion, random weights."""
    unet = UNet2DConditionModel(
        sample_size=SIDE // 4,
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
    schedule = DDIMScheduler(
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
        scheduler=schedule,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def flow_pipeline() -> StableDiffusion3Pipeline:
    """A Stable Diffusion 3 without its third text encoder, random weights."""
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 4,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=64,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=SIDE // 8,
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


def main() -> None:
    """Trains one pipeline."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--kind", choices=("unet", "flow"), required=True)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--seed", type=int, default=0)
    options = args.parse_args()
    pretrain(options.kind, options.out, options.seed)


if __name__ == "__main__":
    main()
