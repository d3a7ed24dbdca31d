"""What differs between text-to-image models when their denoiser is trained: one class per family of pipelines.

    UNet              Stable Diffusion 1.x and 2.x: predicts the noise, or the velocity, of a diffusion process
    UNetXL            Stable Diffusion XL: two text encoders, and the size of the image as a condition
    FlowTransformer   Stable Diffusion 3 and 3.5: predicts the straight line from an image to noise
    Flux              FLUX: the same, with packed latents and distilled guidance

A family encodes images and prompts for the denoiser, adds noise, and computes the target of the prediction. The loss is
in `trainer.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from PIL.Image import Image, Resampling

from flexjudge_reward import ConfigError

Conditions = dict[str, Any]


def load_pipeline(name: str, dtype: torch.dtype) -> DiffusionPipeline:
    """A pipeline by its Hub id or folder, without its safety checker, which would blank images."""
    parts = DiffusionPipeline.load_config(name)
    # diffusers saves a missing part as two nulls, and then requires it when it loads.
    missing = {part: None for part, value in parts.items() if value == [None, None] or part == "safety_checker"}
    return DiffusionPipeline.from_pretrained(name, dtype=dtype, **missing)


class Family(ABC):
    """A pipeline, and what training its denoiser needs."""

    denoiser_name = ""
    """The pipeline's attribute with the network that is trained."""
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self.pipe = pipe

    @property
    def denoiser(self) -> torch.nn.Module:
        """The network that is trained."""
        network: torch.nn.Module = getattr(self.pipe, self.denoiser_name)
        return network

    def lora_layers(self) -> list[str]:
        """Those of `lora_targets` that the denoiser has."""
        names = [name for name, _ in self.denoiser.named_modules()]
        return sorted(target for target in self.lora_targets if any(name.endswith(f".{target}") for name in names))

    @property
    def latent_size(self) -> int:
        """The side of the latents that the denoiser was trained on."""
        return int(self.denoiser.config.sample_size)

    def image_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width in pixels; by default the pipeline's own.

        Raises:
            ConfigError: a size that the VAE and the denoiser cannot divide.
        """
        default, step = self.latent_size * self.pipe.vae_scale_factor, self.pipe.vae_scale_factor
        if self.denoiser_name == "transformer":
            step *= 2
        height, width = height or default, width or default
        if height % step or width % step:
            raise ConfigError(f"images of {width} x {height}: this pipeline needs multiples of {step} pixels")
        return height, width

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image], height: int, width: int) -> torch.Tensor:
        """The mode of the VAE's posterior, scaled as the denoiser expects it: (n, channels, h, w)."""
        vae = self.pipe.vae
        pixels = np.stack([_pixels(image, height, width) for image in images])
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(vae.device, vae.dtype)
        latents = vae.encode(tensor / 127.5 - 1).latent_dist.mode()
        return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    @property
    def call_arguments(self) -> dict[str, Any]:
        """Further arguments of the pipeline's call and of its text encoding."""
        return {}

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str], height: int, width: int) -> Conditions:
        """The denoiser's keyword arguments for these prompts and this size of image."""

    @abstractmethod
    def sample_timesteps(self, count: int, generator: torch.Generator | None) -> torch.Tensor:
        """Random timesteps, sampled on the CPU so that they are the same on every device."""

    @abstractmethod
    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy latents, and the target of the prediction.

        Computed in float32, then cast to the type of `latents`: in bfloat16 the first timesteps would have no noise.
        """

    @abstractmethod
    def predict(
        self, network: Any, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Mapping[str, Any]
    ) -> torch.Tensor:
        """The network's prediction, in the shape of `noisy`."""


def _pixels(image: Image, height: int, width: int) -> np.ndarray:
    if image.size != (width, height):
        if image.width * height != image.height * width:
            shape = f"{image.width} x {image.height}"
            raise ConfigError(f"an image of {shape} for a pipeline of {width} x {height}: the shape must be the same")
        image = image.resize((width, height), Resampling.LANCZOS)
    return np.asarray(image.convert("RGB"), dtype=np.float32)


# ------------------------------------------------------------------------------------------------------------ UNets


class UNet(Family):
    """Stable Diffusion 1.x and 2.x."""

    denoiser_name = "unet"

    def __init__(self, pipe: DiffusionPipeline) -> None:
        super().__init__(pipe)
        self.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        if self.scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise ConfigError(f"a UNet that predicts {self.scheduler.config.prediction_type!r} is not supported")

    def encode_prompts(self, prompts: Sequence[str], height: int, width: int) -> Conditions:
        text, _ = self.pipe.encode_prompt(list(prompts), self.pipe.device, 1, False)
        return {"encoder_hidden_states": text}

    def sample_timesteps(self, count: int, generator: torch.Generator | None) -> torch.Tensor:
        return torch.randint(0, self.scheduler.config.num_train_timesteps, (count,), generator=generator)

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        exact, noise = latents.float(), noise.float()
        noisy = self.scheduler.add_noise(exact, noise, timesteps).to(latents.dtype)
        if self.scheduler.config.prediction_type == "epsilon":
            return noisy, noise
        return noisy, self.scheduler.get_velocity(exact, noise, timesteps)

    def predict(
        self, network: Any, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Mapping[str, Any]
    ) -> torch.Tensor:
        return network(noisy, timesteps, **conditions).sample


class UNetXL(UNet):
    """Stable Diffusion XL."""

    def encode_prompts(self, prompts: Sequence[str], height: int, width: int) -> Conditions:
        text, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), device=self.pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        sizes = torch.tensor([[height, width, 0, 0, height, width]] * len(text), device=text.device, dtype=text.dtype)
        return {"encoder_hidden_states": text, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}


# ------------------------------------------------------------------------------------------------ flow transformers


class FlowTransformer(Family):
    """Stable Diffusion 3 and 3.5: noisy = (1 - t) latents + t noise, target = noise - latents, t logit-normal."""

    denoiser_name = "transformer"
    lora_targets = (*Family.lora_targets, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    t5_name = "text_encoder_3"

    @property
    def call_arguments(self) -> dict[str, Any]:
        """Without a T5 the pipeline would append 256 empty tokens."""
        return {"max_sequence_length": 256 if getattr(self.pipe, self.t5_name) is not None else 1}

    def encode_prompts(self, prompts: Sequence[str], height: int, width: int) -> Conditions:
        text, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts),
            None,
            None,
            device=self.pipe.device,
            do_classifier_free_guidance=False,
            **self.call_arguments,
        )
        return {"encoder_hidden_states": text, "pooled_projections": pooled}

    def sample_timesteps(self, count: int, generator: torch.Generator | None) -> torch.Tensor:
        return torch.sigmoid(torch.randn(count, generator=generator))

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        exact, noise, share = latents.float(), noise.float(), timesteps.float().view(-1, 1, 1, 1)
        return ((1 - share) * exact + share * noise).to(latents.dtype), noise - exact

    def predict(
        self, network: Any, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Mapping[str, Any]
    ) -> torch.Tensor:
        return network(noisy, timestep=timesteps.to(noisy.device) * 1000, **conditions).sample


class Flux(FlowTransformer):
    """FLUX: the latents are a sequence of 2 x 2 patches with their positions; distilled guidance is an input."""

    t5_name = "text_encoder_2"

    @property
    def latent_size(self) -> int:
        return int(self.pipe.default_sample_size)

    def encode_prompts(self, prompts: Sequence[str], height: int, width: int) -> Conditions:
        text, pooled, positions = self.pipe.encode_prompt(list(prompts), None, self.pipe.device, **self.call_arguments)
        return {"encoder_hidden_states": text, "pooled_projections": pooled, "txt_ids": positions}

    def predict(
        self, network: Any, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Mapping[str, Any]
    ) -> torch.Tensor:
        n, channels, height, width = noisy.shape
        patches = noisy.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        positions = torch.zeros(height // 2, width // 2, 3)
        positions[..., 1] = torch.arange(height // 2)[:, None]
        positions[..., 2] = torch.arange(width // 2)[None, :]
        output = network(
            patches.reshape(n, -1, channels * 4),
            timestep=timesteps.to(noisy),
            img_ids=positions.view(-1, 3).to(noisy),
            guidance=torch.ones(n).to(noisy) if self.denoiser.config.guidance_embeds else None,
            **conditions,
        ).sample
        unpacked = output.view(n, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return unpacked.reshape(n, channels, height, width)


FAMILIES: dict[str, type[Family]] = {
    "StableDiffusionPipeline": UNet,
    "StableDiffusionXLPipeline": UNetXL,
    "StableDiffusion3Pipeline": FlowTransformer,
    "FluxPipeline": Flux,
}


def family_of(pipe: DiffusionPipeline) -> Family:
    """The family of a pipeline. Raises ConfigError for a pipeline of no known family."""
    name = type(pipe).__name__
    if name not in FAMILIES:
        raise ConfigError(f"{name} is not supported; supported are {', '.join(FAMILIES)}")
    return FAMILIES[name](pipe)
