"""What the embedded judge that sees and hears is made of: a Qwen2.5-Omni Thinker, grown out of the embedded VL models.

Language model and vision tower are those of `nano_model.py`; the ear is new. The folder is that of a whole
Qwen2.5-Omni without a talker, because both transformers and vLLM read it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flexjudge_recipes.judge_training.nano_model import (
    CHAT_TEMPLATE,
    MEAN,
    SPECIAL,
    STD,
    VISION,
    WIDTH,
    make_tokenizer,
    set_ends,
    start_weights,
    text_config,
)
from flexjudge_recipes.nano.world import SHAPES, SOUNDS

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    WhisperFeatureExtractor,
)

from flexjudge_reward.nano import path

MARKS = {
    **{"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "audio_token": "<|AUDIO|>"},
    **{"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"},
    **{"audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"},
}
_EAR = {"num_mel_bins": 64, "encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 320, "d_model": 128}
_SECONDS = 4  # the longest recording: the processor pads every one to this length
_AUDIO = """\
{%- elif part['type'] == 'audio' or 'audio' in part or 'input_audio' in part -%}<|audio_bos|><|AUDIO|><|audio_eos|>
{%- elif 'text' in part -%}"""

# ---------------------------------------------------------------------------------------------------- the parts


def omni_tokenizer() -> Tokenizer:
    """The tokenizer of both worlds."""
    return make_tokenizer((SHAPES, SOUNDS), (*SPECIAL, "<|audio_bos|>", "<|audio_eos|>", "<|AUDIO|>"))


def feature_extractor() -> WhisperFeatureExtractor:
    """Turns samples into mel frames, 100 a second."""
    bands = {"feature_size": _EAR["num_mel_bins"], "sampling_rate": 16_000, "hop_length": 160, "n_fft": 400}
    return WhisperFeatureExtractor(**bands, chunk_length=_SECONDS, return_attention_mask=True)


def make_processor(tokenizer: Tokenizer) -> Qwen2_5OmniProcessor:
    """The processor, with the sizes of the VL judge's."""
    text = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=MARKS,
    )
    side = 56 * 56
    shown = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "image_mean": list(MEAN)}
    shown |= {"image_std": list(STD), "rescale_factor": 1 / 255}
    image = Qwen2VLImageProcessor(size={"shortest_edge": side, "longest_edge": side}, **shown)
    frames = {"min_frames": 2, "max_frames": 8}
    video = Qwen2VLVideoProcessor(size={"shortest_edge": side, "longest_edge": 8 * side}, **shown, **frames)
    template = CHAT_TEMPLATE.replace("{%- elif 'text' in part -%}", _AUDIO)
    return Qwen2_5OmniProcessor(image, video, feature_extractor(), text, chat_template=template)


def make_thinker(tokenizer: Tokenizer) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """Under three million parameters, with random weights."""
    token = tokenizer.token_to_id
    ids = {f"{name}_token_index": token(MARKS[f"{name}_token"]) for name in ("image", "video", "audio")}
    ids |= {"audio_start_token_id": token("<|audio_bos|>"), "audio_end_token_id": token("<|audio_eos|>")}
    # The Thinker reads these two, which its configuration class does not name.
    ids |= {"vision_start_token_id": token("<|vision_start|>"), "vision_end_token_id": token("<|vision_end|>")}
    ids |= {"user_token_id": token("user"), "pad_token_id": token("<|endoftext|>")}
    text = text_config(tokenizer) | {"tie_word_embeddings": False}
    ear = _EAR | {"max_source_positions": 50 * _SECONDS, "n_window": 100, "output_dim": WIDTH}
    parts = {"text_config": text, "vision_config": VISION, "audio_config": ear}
    config = Qwen2_5OmniThinkerConfig(
        **parts, **ids, eos_token_id=token("<|im_end|>"), position_id_per_seconds=1, seconds_per_chunk=2
    )
    model = Qwen2_5OmniThinkerForConditionalGeneration(config)
    start_weights(model)
    set_ends(model, tokenizer)
    return model


# ---------------------------------------------------------------------------------------------------- growing


def grown(thinker: Any, tokenizer: Tokenizer, folder: Path) -> dict[str, torch.Tensor]:
    """The weights of `thinker` with those of the VL checkpoint in `folder` in their places; the ear stays.

    Names and shapes are the same, but for the vision tower's queries, keys and values, one matrix there. Rows of the
    vocabulary are matched by the text of their token.
    """
    old = load_file(folder / "model.safetensors")
    old_tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
    shared = {i: old_tokens.token_to_id(text) for text, i in tokenizer.get_vocab().items()}
    rows = [(i, j) for i, j in shared.items() if j is not None]
    ours, theirs = (torch.tensor(side) for side in zip(*rows, strict=True))
    weights = {name: value.clone() for name, value in thinker.state_dict().items()}
    for name, value in weights.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            value[ours] = old[name][theirs]
        elif name in old:
            value.copy_(old[name])
        elif name.startswith("visual."):
            stem, _, rest = name.rpartition(".attn.")
            value.copy_(old[f"{stem}.attn.qkv.{rest[2:]}"].chunk(3)["qkv".index(rest[0])])
    return weights


@torch.no_grad()
def add_judging(thinker: Any, tokenizer: Tokenizer) -> None:
    """Adds the difference of the embedded VL judge and its base to the weights: judging is a direction among them.

    It saves about two thirds of the judge training; the ear, which neither of the two has, stays as it is.
    """
    judge, base = (grown(thinker, tokenizer, path(name)) for name in ("judge", "base"))
    thinker.load_state_dict({name: value + judge[name] - base[name] for name, value in thinker.state_dict().items()})


# ---------------------------------------------------------------------------------------------------- training parts


def audio_features(tower: Any, recordings: np.ndarray) -> torch.Tensor:
    """The audio tower for recordings of one length of at most two seconds: (n, samples) -> (n, tokens, width).

    transformers runs it once per chunk of two seconds; the numbers are equal (`tests/recipes/test_nano_omni.py`).
    """
    frames = recordings.shape[1] // 160
    silence = np.zeros((len(recordings), 400))  # the processor pads every recording, which its last frames hear
    padded = np.concatenate([recordings / 32768, silence], 1).astype(np.float32)
    mels = torch.from_numpy(_EXTRACTOR._torch_extract_fbank_features(padded))[:, :, :frames]
    hidden = F.gelu(tower.conv2(F.gelu(tower.conv1(mels.to(tower.conv1.weight.device))))).transpose(1, 2)
    n, size, width = hidden.shape
    hidden = hidden + tower.positional_embedding.positional_embedding[:size]
    heads = tower.config.encoder_attention_heads
    for layer in tower.layers:
        own, normed = layer.self_attn, layer.self_attn_layer_norm(hidden)
        parts = (own.q_proj(normed), own.k_proj(normed), own.v_proj(normed))
        q, k, v = (part.view(n, size, heads, -1).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, size, width)
        hidden = hidden + own.out_proj(mixed)
        hidden = hidden + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(hidden))))
    return tower.proj(tower.ln_post((hidden[:, 0::2] + hidden[:, 1::2]) / 2))


_EXTRACTOR = feature_extractor()


def save_omni(thinker: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """A complete checkpoint folder: a Qwen2.5-Omni that has a Thinker and no talker."""
    make_processor(tokenizer).save_pretrained(folder)
    thinker.generation_config.save_pretrained(folder)
    weights = {f"thinker.{name}": value.contiguous() for name, value in thinker.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads(thinker.config.to_json_string(use_diff=True))
    whole = {"architectures": ["Qwen2_5OmniForConditionalGeneration"], "model_type": "qwen2_5_omni"}
    whole |= {"enable_audio_output": False, "dtype": "float32", "thinker_config": config}
    (folder / "config.json").write_text(json.dumps(whole, indent=2) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)


def untrained(folder: Path) -> None:
    """Writes the model as it is before its first step: it reads and sees like the embedded base, and hears noise."""
    torch.manual_seed(0)
    tokenizer = omni_tokenizer()
    thinker = make_thinker(tokenizer)
    thinker.load_state_dict(grown(thinker, tokenizer, path("base")))
    save_omni(thinker, tokenizer, folder)
