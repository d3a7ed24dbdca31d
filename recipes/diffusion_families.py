"""What differs between text-to-image models when their denoiser is trained: one class per family of pipelines.

    UNets of Stable Diffusion 1.x, 2.x and XL      the noise (or velocity) of a diffusion process
    flow transformers of Stable Diffusion 3, FLUX  the straight line from a picture to noise

A family turns pictures into latents, prompts into what the denoiser is conditioned on, a clean latent into a noisy one
with the target to predict, and knows under which names LoRA layers belong. What is learned from the predictions is in
`diffusion_dpo.py`.
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


def load(name: str, dtype: torch.dtype) -> DiffusionPipeline:
    """A pipeline by its Hub name or folder; its safety checker, which would blank pictures, is left out."""
    parts = DiffusionPipeline.load_config(name)
    # diffusers saves a part that is missing as two nulls, and then asks for it when it loads.
    missing = {part: None for part, found in parts.items() if found == [None, None] or part == "safety_checker"}
    return DiffusionPipeline.from_pretrained(name, torch_dtype=dtype, **missing)


class Family(ABC):
    """The parts of a pipeline that training needs."""

    denoiser = ""
    """The pipeline's name of the network that is trained."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """The layers that get a LoRA."""

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self.pipe = pipe

    @property
    def network(self) -> torch.nn.Module:
        """The denoiser itself."""
        network: torch.nn.Module = getattr(self.pipe, self.denoiser)
        return network

    def layers(self) -> list[str]:
        """Those of `targets` that the denoiser has."""
        names = [name for name, _ in self.network.named_modules()]
        return sorted(target for target in self.targets if any(name.endswith(f".{target}") for name in names))

    @property
    def side(self) -> int:
        """The side of the latents that the denoiser was trained on."""
        return int(self.network.config.sample_size)

    def size(self, options: tuple[int | None, int | None]) -> tuple[int, int]:
        """Height and width in pixels of what the pipeline draws.

        Raises:
            ConfigError: a size that is no multiple of what the VAE and the denoiser divide it by.
        """
        own = self.side * self.pipe.vae_scale_factor
        height, width = (wanted or own for wanted in options)
        step = self.pipe.vae_scale_factor * (2 if self.denoiser == "transformer" else 1)
        if height % step or width % step:
            raise ConfigError(f"pictures of {width} x {height}: this pipeline draws multiples of {step} pixels")
        return height, width

    @torch.no_grad()
    def latents(self, pictures: Sequence[Image], height: int, width: int) -> torch.Tensor:
        """The mode of the VAE's posterior, scaled as the denoiser knows it: (n, channels, h, w)."""
        vae = self.pipe.vae
        pixels = np.stack([_pixels(one, height, width) for one in pictures])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(vae.device, vae.dtype)
        clean = vae.encode(images / 127.5 - 1).latent_dist.mode()
        return (clean - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    @property
    def drawing(self) -> dict[str, Any]:
        """What the pipeline is called with beside prompts, steps and size, in training as in drawing."""
        return {}

    @abstractmethod
    def conditions(self, prompts: Sequence[str], height: int, width: int) -> Conditions:
        """What the denoiser is conditioned on, as its keyword arguments; each has the prompts first.

        Args:
            height: of the pictures, in pixels, as `width`.
        """

    @abstractmethod
    def times(self, count: int, generator: torch.Generator | None) -> torch.Tensor:
        """Random times of the noising process, drawn on the CPU so that they are the same on every device."""

    @abstractmethod
    def noised(
        self, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy latents, and what is to be predicted from them.

        Computed in float32, the noisy ones then cast as `clean` is: in bfloat16 the first times would have no noise.
        """

    @abstractmethod
    def predict(
        self, network: Any, noisy: torch.Tensor, times: torch.Tensor, conditions: Mapping[str, Any]
    ) -> torch.Tensor:
        """The network's prediction, in the form of `noisy`."""


def _pixels(picture: Image, height: int, width: int) -> np.ndarray:
    if picture.size != (width, height):
        shown = f"{picture.width} x {picture.height}"
        if picture.width * height != picture.height * width:
            raise ConfigError(f"a picture of {shown} for a pipeline of {width} x {height}: the shape must be the same")
        picture = picture.resize((width, height), Resampling.LANCZOS)
    return np.asarray(picture.convert("RGB"), dtype=np.float32)


# ------------------------------------------------------------------------------------------------------------ UNets


class Unet(Family):
    """Stable Diffusion 1.x and 2.x."""

    denoiser = "unet"

    def __init__(self, pipe: DiffusionPipeline) -> None:
        super().__init__(pipe)
        self.schedule = DDPMScheduler.from_config(pipe.scheduler.config)
        if self.schedule.config.prediction_type not in ("epsilon", "v_prediction"):
            raise ConfigError(f"a UNet that predicts {self.schedule.config.prediction_type!r} is not known here")

    def conditions(self, prompts: Sequence[str], height: int, width: int) -> Conditions:
        text, _ = self.pipe.encode_prompt(list(prompts), self.pipe.device, 1, False)
        return {"encoder_hidden_states": text}

    def times(self, count: int, generator: torch.Generator | None) -> torch.Tensor:
        return torch.randint(0, self.schedule.config.num_train_timesteps, (count,), generator=generator)

    def noised(
        self, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        exact, noise = clean.float(), noise.float()
        noisy = self.schedule.add_noise(exact, noise, times).to(clean.dtype)
        if self.schedule.config.prediction_type == "epsilon":
            return noisy, noise
        return noisy, self.schedule.get_velocity(exact, noise, times)

    def predict(
        self, network: Any, noisy: torch.Tensor, times: torch.Tensor, conditions: Mapping[str, Any]
    ) -> torch.Tensor:
        return network(noisy, times, **conditions).sample


class UnetXL(Unet):
    """Stable Diffusion XL: two text encoders, and the size of the picture as a condition."""

    def conditions(self, prompts: Sequence[str], height: int, width: int) -> Conditions:
        text, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), device=self.pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        sizes = torch.tensor([[height, width, 0, 0, height, width]] * len(text), device=text.device, dtype=text.dtype)
        return {"encoder_hidden_states": text, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}


# ------------------------------------------------------------------------------------------------ flow transformers


class Flow(Family):
    """Stable Diffusion 3 and 3.5: noisy = (1 - s) clean + s noise, target = noise - clean, s logit-normal."""

    denoiser = "transformer"
    targets = (*Family.targets, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

    @property
    def drawing(self) -> dict[str, Any]:
        """Without a T5 the pipeline would put 256 empty words in its place."""
        t5 = {"StableDiffusion3Pipeline": "text_encoder_3", "FluxPipeline": "text_encoder_2"}[type(self.pipe).__name__]
        return {"max_sequence_length": 256 if getattr(self.pipe, t5) is not None else 1}

    def conditions(self, prompts: Sequence[str], height: int, width: int) -> Conditions:
        text, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts),
            None,
            None,
            device=self.pipe.device,
            do_classifier_free_guidance=False,
            **self.drawing,
        )
        return {"encoder_hidden_states": text, "pooled_projections": pooled}

    def times(self, count: int, generator: torch.Generator | None) -> torch.Tensor:
        return torch.sigmoid(torch.randn(count, generator=generator))

    def noised(
        self, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        exact, noise, share = clean.float(), noise.float(), times.float().view(-1, 1, 1, 1)
        return ((1 - share) * exact + share * noise).to(clean.dtype), noise - exact

    def predict(
        self, network: Any, noisy: torch.Tensor, times: torch.Tensor, conditions: Mapping[str, Any]
    ) -> torch.Tensor:
        return network(noisy, timestep=times.to(noisy.device) * 1000, **conditions).sample


class Flux(Flow):
    """FLUX: latents go in as a row of 2 x 2 blocks with their places; guidance is an input where it was distilled."""

    @property
    def side(self) -> int:
        return int(self.pipe.default_sample_size)

    def conditions(self, prompts: Sequence[str], height: int, width: int) -> Conditions:
        text, pooled, places = self.pipe.encode_prompt(list(prompts), None, self.pipe.device, **self.drawing)
        return {"encoder_hidden_states": text, "pooled_projections": pooled, "txt_ids": places}

    def predict(
        self, network: Any, noisy: torch.Tensor, times: torch.Tensor, conditions: Mapping[str, Any]
    ) -> torch.Tensor:
        n, channels, high, wide = noisy.shape
        blocks = noisy.view(n, channels, high // 2, 2, wide // 2, 2).permute(0, 2, 4, 1, 3, 5)
        places = torch.zeros(high // 2, wide // 2, 3)
        places[..., 1], places[..., 2] = torch.arange(high // 2)[:, None], torch.arange(wide // 2)[None, :]
        guided = self.network.config.guidance_embeds
        row = network(
            blocks.reshape(n, -1, channels * 4),
            timestep=times.to(noisy),
            img_ids=places.view(-1, 3).to(noisy),
            guidance=torch.ones(n).to(noisy) if guided else None,
            **conditions,
        ).sample
        back = row.view(n, high // 2, wide // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return back.reshape(n, channels, high, wide)


FAMILIES: dict[str, type[Family]] = {
    "StableDiffusionPipeline": Unet,
    "StableDiffusionXLPipeline": UnetXL,
    "StableDiffusion3Pipeline": Flow,
    "FluxPipeline": Flux,
}


def family(pipe: DiffusionPipeline) -> Family:
    """The family of a pipeline.

    Raises:
        ConfigError: a pipeline of another kind.
    """
    name = type(pipe).__name__
    if name not in FAMILIES:
        raise ConfigError(f"{name} is not known here; known are {', '.join(FAMILIES)}")
    return FAMILIES[name](pipe)
