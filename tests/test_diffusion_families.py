"""The families of pipelines that diffusion-DPO trains: what each predicts, is conditioned on, and saves."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trl")
pytest.importorskip("diffusers")

from support.real import prepare

prepare()

RECIPES = Path(__file__).parent.parent / "recipes"
pytestmark = [
    pytest.mark.trainer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def recipe() -> Any:
    """recipes/diffusion_dpo.py as a module; its neighbours are found beside it."""
    sys.path.insert(0, str(RECIPES))
    yield importlib.import_module("diffusion_dpo")
    sys.path.remove(str(RECIPES))


def xl_pipeline(nano: Any) -> Any:
    """A Stable Diffusion XL of the nano parts."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=2,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    return StableDiffusionXLPipeline(
        vae=nano.vae(),
        text_encoder=nano.text_encoder(CLIPTextModel),
        text_encoder_2=nano.text_encoder(CLIPTextModelWithProjection),
        tokenizer=nano.tokenizer(),
        tokenizer_2=nano.tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(),
        add_watermarker=False,
    )


def flux_pipeline(nano: Any) -> Any:
    """A FLUX of the nano parts, with a tiny T5."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5Config, T5EncoderModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=32,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    t5 = T5Config(vocab_size=32, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=nano.vae(),
        text_encoder=nano.text_encoder(CLIPTextModel),
        tokenizer=nano.tokenizer(),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=nano.tokenizer(),
        transformer=transformer,
    )


PIPELINES: dict[str, Callable[[Any], Any]] = {
    "Stable Diffusion": lambda nano: nano.unet_pipeline(),
    "Stable Diffusion XL": xl_pipeline,
    "Stable Diffusion 3": lambda nano: nano.flow_pipeline(),
    "FLUX": flux_pipeline,
}


@pytest.mark.parametrize("name", PIPELINES)
def test_every_family_trains_a_lora_on_its_own_pictures(name: str, recipe: Any) -> None:
    """The LoRA lowers the error on one picture: conditions, times, targets and predictions belong together."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    pipe = PIPELINES[name](recipe.diffusion_nano)
    pipe.vae.register_to_config(shift_factor=0.0)
    own = recipe.family(pipe)
    picture = recipe.diffusion_nano.Wish("red", "star", "top-left").picture()
    clean = own.latents([picture] * 8, 32, 32)
    assert clean.shape == (8, 8, 8, 8)
    own.network.requires_grad_(False)
    network = get_peft_model(own.network, LoraConfig(r=4, target_modules=own.layers()))
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 2e-2)
    with torch.no_grad():
        conditions = own.conditions(["red star top-left"] * 8, 32, 32)
    found = []
    for _ in range(25):
        generator = torch.Generator().manual_seed(1)
        noise, times = torch.randn(clean.shape, generator=generator), own.times(8, generator)
        noisy, target = own.noised(clean, noise, times)
        loss = (own.predict(network, noisy, times, conditions) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < found[0]


def test_flux_latents_go_in_and_come_out_as_its_pipeline_packs_them(recipe: Any) -> None:
    import torch
    from diffusers import FluxPipeline

    own = recipe.family(flux_pipeline(recipe.diffusion_nano))
    noisy = torch.randn(2, 8, 8, 8)
    seen: dict[str, Any] = {}

    def network(row: torch.Tensor, **given: Any) -> Any:
        seen.update(given, row=row)
        return SimpleNamespace(sample=row)

    assert torch.equal(own.predict(network, noisy, torch.tensor([0.1, 0.9]), {}), noisy)
    assert torch.equal(seen["row"], FluxPipeline._pack_latents(noisy, 2, 8, 8, 8))
    places = FluxPipeline._prepare_latent_image_ids(2, 4, 4, torch.device("cpu"), torch.float32)
    assert torch.equal(seen["img_ids"], places) and seen["guidance"].tolist() == [1.0, 1.0]


def test_xl_is_conditioned_on_what_its_pipeline_conditions_it_on(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where height and width are not those of the pipeline: they are inputs of its UNet."""
    import torch

    pipe = xl_pipeline(recipe.diffusion_nano)
    pipe.set_progress_bar_config(disable=True)
    seen: dict[str, Any] = {}
    forward = pipe.unet.forward

    def watched(*args: Any, **given: Any) -> Any:
        seen.update(given)
        return forward(*args, **given)

    monkeypatch.setattr(pipe.unet, "forward", watched)
    pipe(["red star top-left"], height=24, width=48, num_inference_steps=1, guidance_scale=1.0)
    own = recipe.family(pipe).conditions(["red star top-left"], 24, 48)
    assert torch.equal(own["encoder_hidden_states"], seen["encoder_hidden_states"])
    for name in ("text_embeds", "time_ids"):
        assert torch.equal(own["added_cond_kwargs"][name], seen["added_cond_kwargs"][name])
    assert own["added_cond_kwargs"]["time_ids"].tolist() == [[24, 48, 0, 0, 24, 48]]


@pytest.mark.parametrize("name", ["Stable Diffusion", "Stable Diffusion 3"])
def test_the_first_times_have_noise_in_bfloat16_too(name: str, recipe: Any) -> None:
    import torch

    own = recipe.family(PIPELINES[name](recipe.diffusion_nano))
    clean, noise = torch.zeros(1, 8, 8, 8, dtype=torch.bfloat16), torch.randn(1, 8, 8, 8)
    time = torch.tensor([0]) if name == "Stable Diffusion" else torch.tensor([0.001])
    noisy, target = own.noised(clean, noise, time)
    exact, same = own.noised(clean.float(), noise, time)
    assert noisy.dtype == torch.bfloat16 and noisy.std() > 0 and torch.allclose(noisy.float(), exact, rtol=0.01)
    assert torch.equal(target, same)


def test_a_pipeline_of_another_kind_is_refused(recipe: Any) -> None:
    from flexjudge_reward import ConfigError

    with pytest.raises(ConfigError, match="SimpleNamespace is not known here; known are StableDiffusionPipeline"):
        recipe.family(SimpleNamespace())
    own = recipe.family(recipe.diffusion_nano.flow_pipeline())
    with pytest.raises(ConfigError, match="pictures of 30 x 32: this pipeline draws multiples of 8 pixels"):
        own.size((32, 30))
    from PIL import Image

    with pytest.raises(ConfigError, match="a picture of 64 x 32 for a pipeline of 32 x 32"):
        own.latents([Image.new("RGB", (64, 32))], 32, 32)
