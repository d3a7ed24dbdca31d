"""The families of pipelines that diffusion-DPO trains: what each predicts, and what it is conditioned on."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from flexjudge_recipes.nano.images import Spec

import pytest
from PIL import Image

from flexjudge_reward import ConfigError
from support.late import late, needs

needs("trl", "diffusers")
families = late("flexjudge_recipes.diffusion_dpo.families")
nano = late("flexjudge_recipes.nano.image_generator")
torch = late("torch")
diffusers = late("diffusers")
peft = late("peft")
transformers = late("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def xl_pipeline() -> Any:
    """A Stable Diffusion XL of the nano parts."""
    unet = diffusers.UNet2DConditionModel(
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
    return diffusers.StableDiffusionXLPipeline(
        vae=nano.vae(),
        text_encoder=nano.text_encoder(transformers.CLIPTextModel),
        text_encoder_2=nano.text_encoder(transformers.CLIPTextModelWithProjection),
        tokenizer=nano.tokenizer(),
        tokenizer_2=nano.tokenizer(),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(),
        add_watermarker=False,
    )


def flux_pipeline() -> Any:
    """A FLUX of the nano parts, with a tiny T5."""
    transformer = diffusers.FluxTransformer2DModel(
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
    t5 = transformers.T5Config(
        vocab_size=32, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=nano.vae(),
        text_encoder=nano.text_encoder(transformers.CLIPTextModel),
        tokenizer=nano.tokenizer(),
        text_encoder_2=transformers.T5EncoderModel(t5),
        tokenizer_2=nano.tokenizer(),
        transformer=transformer,
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "Stable Diffusion": lambda: nano.unet_pipeline(),
    "Stable Diffusion XL": xl_pipeline,
    "Stable Diffusion 3": lambda: nano.flow_pipeline(),
    "FLUX": flux_pipeline,
}


@pytest.mark.parametrize("name", PIPELINES)
def test_every_family_trains_a_lora_on_an_image(name: str) -> None:
    """The LoRA lowers the error on one image: conditions, timesteps, targets and predictions belong together."""
    torch.manual_seed(0)
    pipe = PIPELINES[name]()
    pipe.vae.register_to_config(shift_factor=0.0)
    family = families.family_of(pipe)
    latents = family.encode_images([Spec("red", "star", "top-left").image()] * 8, 32, 32)
    assert latents.shape == (8, 8, 8, 8)
    family.denoiser.requires_grad_(False)
    network = peft.get_peft_model(family.denoiser, peft.LoraConfig(r=4, target_modules=family.lora_layers()))
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 2e-2)
    with torch.no_grad():
        conditions = family.encode_prompts(["red star top-left"] * 8, 32, 32)
    losses = []
    for _ in range(25):
        generator = torch.Generator().manual_seed(1)
        noise, timesteps = torch.randn(latents.shape, generator=generator), family.sample_timesteps(8, generator)
        noisy, target = family.add_noise(latents, noise, timesteps)
        loss = (family.predict(network, noisy, timesteps, conditions) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_flux_packs_and_unpacks_latents_as_its_pipeline() -> None:
    family = families.family_of(flux_pipeline())
    noisy = torch.randn(2, 8, 8, 8)
    seen: dict[str, Any] = {}

    def network(row: torch.Tensor, **given: Any) -> Any:
        seen.update(given, row=row)
        return SimpleNamespace(sample=row)

    assert torch.equal(family.predict(network, noisy, torch.tensor([0.1, 0.9]), {}), noisy)
    assert torch.equal(seen["row"], diffusers.FluxPipeline._pack_latents(noisy, 2, 8, 8, 8))
    positions = diffusers.FluxPipeline._prepare_latent_image_ids(2, 4, 4, torch.device("cpu"), torch.float32)
    assert torch.equal(seen["img_ids"], positions) and seen["guidance"].tolist() == [1.0, 1.0]


def test_xl_has_the_conditions_of_its_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """At another height and width than the pipeline's own, which are inputs of its UNet."""
    pipe = xl_pipeline()
    pipe.set_progress_bar_config(disable=True)
    seen: dict[str, Any] = {}
    forward = pipe.unet.forward

    def recorded(*args: Any, **given: Any) -> Any:
        seen.update(given)
        return forward(*args, **given)

    monkeypatch.setattr(pipe.unet, "forward", recorded)
    pipe(["red star top-left"], height=24, width=48, num_inference_steps=1, guidance_scale=1.0)
    own = families.family_of(pipe).encode_prompts(["red star top-left"], 24, 48)
    assert torch.equal(own["encoder_hidden_states"], seen["encoder_hidden_states"])
    for name in ("text_embeds", "time_ids"):
        assert torch.equal(own["added_cond_kwargs"][name], seen["added_cond_kwargs"][name])
    assert own["added_cond_kwargs"]["time_ids"].tolist() == [[24, 48, 0, 0, 24, 48]]


@pytest.mark.parametrize("name", ["Stable Diffusion", "Stable Diffusion 3"])
def test_the_first_timesteps_have_noise_in_bfloat16_too(name: str) -> None:
    family = families.family_of(PIPELINES[name]())
    clean, noise = torch.zeros(1, 8, 8, 8, dtype=torch.bfloat16), torch.randn(1, 8, 8, 8)
    time = torch.tensor([0]) if name == "Stable Diffusion" else torch.tensor([0.001])
    noisy, target = family.add_noise(clean, noise, time)
    exact, same = family.add_noise(clean.float(), noise, time)
    assert noisy.dtype == torch.bfloat16 and noisy.std() > 0 and torch.allclose(noisy.float(), exact, rtol=0.01)
    assert torch.equal(target, same)


def test_another_pipeline_size_or_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match="SimpleNamespace is not supported; supported are StableDiffusionPipeline"):
        families.family_of(SimpleNamespace())
    family = families.family_of(nano.flow_pipeline())
    with pytest.raises(ConfigError, match="images of 30 x 32: this pipeline needs multiples of 8 pixels"):
        family.image_size(32, 30)
    with pytest.raises(ConfigError, match="an image of 64 x 32 for a pipeline of 32 x 32"):
        family.encode_images([Image.new("RGB", (64, 32))], 32, 32)
