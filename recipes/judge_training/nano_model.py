"""What the embedded judge is made of: tokenizer, chat template, processor settings, architecture. No training here.

The architecture is Qwen2.5-VL's own, only small, so that every engine that runs Flex-VL-7B runs this too.
`nano.py` trains it. The judge that hears, too, is in `omni_model.py`.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexjudge_recipes.nano import traces
from flexjudge_recipes.nano.world import SHAPES, World, question

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
SPECIAL += ("<|image_pad|>", "<|video_pad|>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
WIDTH = 160  # of the language model
VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_heads": 3,
    "out_hidden_size": WIDTH,
}
VISION |= {"fullatt_block_indexes": [0, 1]}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# ---------------------------------------------------------------------------------------------------- tokenizer


def make_tokenizer(worlds: tuple[World, ...] = (SHAPES,), special: Sequence[str] = SPECIAL) -> Tokenizer:
    """Byte-level BPE in which every word of the worlds, with and without a space before it, is one token."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"\n?`{3,}\n?| ?\p{L}+(?:-\p{L}+)*| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}`]| ?`+|\n|\s+")
    split = pre_tokenizers.Split(words, "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    texts = [
        "system user assistant Score Choose the best of from to A B C D E F G H 1 2 3 4 5 6 7 8 9 10 0 Reference"
    ] * 9
    texts += [
        "\n```\n",
        "```\n",
        "\n```",
        " near other unclear a is in and the shape answer Think first Read it",
    ] * 9
    texts += ["List Name Look at Restate steps"] * 9
    for world in worlds * 3000:
        asked = question(rng, world.scene(rng))
        replies = [asked.truth, asked.truth, ""]
        texts += [asked.text, asked.truth, traces.reasoning(asked, replies, "choice")]
    texts += [text.replace(" ", "\n") for text in texts]  # words at the start of a line have no space before them
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1400, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    return tokenizer


CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'video' or 'video' in part -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}{{ part['text'] }}{%- endif -%}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""


def save_processor(folder: Path, tokenizer: Tokenizer) -> None:
    """The tokenizer, chat template and image settings that `AutoProcessor` and vLLM read."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(SPECIAL[1:]),
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "processor_class": "Qwen2_5_VLProcessor",
    }
    image = {
        "processor_class": "Qwen2_5_VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 56 * 56, "longest_edge": 56 * 56},
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": MEAN,
        "image_std": STD,
        "rescale_factor": 1 / 255,
    }
    video = {
        **image,
        "video_processor_type": "Qwen2VLVideoProcessor",
        "min_frames": 2,
        "max_frames": 8,
        "cap_pixels_per_frame": False,
    }
    video["size"] = {"shortest_edge": 56 * 56, "longest_edge": 8 * 56 * 56}
    del video["image_processor_type"]
    for name, value in (
        ("tokenizer_config", settings),
        ("preprocessor_config", image),
        ("video_preprocessor_config", video),
    ):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


# -------------------------------------------------------------------------------------------------------- model


def make_model(tokenizer: Tokenizer, width: int = WIDTH) -> Qwen2_5_VLForConditionalGeneration:
    """About two million parameters; with twice the width seven."""
    token = tokenizer.token_to_id
    ids = {"image": "<|image_pad|>", "video": "<|video_pad|>", "vision_start": "<|vision_start|>"}
    ids |= {"vision_end": "<|vision_end|>"}
    config = Qwen2_5_VLConfig(
        text_config=text_config(tokenizer, width),
        vision_config=VISION | {"tokens_per_second": 1, "out_hidden_size": width},
        **{f"{name}_token_id": token(value) for name, value in ids.items()},
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    start_weights(model)
    set_ends(model, tokenizer)
    return model


def text_config(tokenizer: Tokenizer, width: int = WIDTH) -> dict[str, Any]:
    """The language model; heads of 32, which every attention kernel of the engines knows."""
    return {
        "vocab_size": 64 * math.ceil(tokenizer.get_vocab_size() / 64),
        "hidden_size": width,
        "intermediate_size": width * 14 // 5,
        "num_hidden_layers": 5,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 32,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
    }


def set_ends(model: Any, tokenizer: Tokenizer) -> None:
    """What ends a reply, in the model's generation settings."""
    model.generation_config.eos_token_id = tokenizer.token_to_id("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.token_to_id("<|endoftext|>")


@torch.no_grad()
def start_weights(model: torch.nn.Module) -> None:
    """Random weights in proportion to the width; the fixed 0.02 of large models is too little for so small a model."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv3d):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.5)


def vision_features(visual: Any, patches: torch.Tensor) -> torch.Tensor:
    """The vision tower for images of one size, all at once: (n, 16, 1176) -> (n, 4, width).

    transformers runs its attention once per image; that loop alone took half of a training step. The numbers
    are equal (`tests/recipes/test_nano.py` compares them).
    """
    n, size, heads = patches.shape[0], patches.shape[1], visual.config.num_heads
    hidden = F.linear(patches, visual.patch_embed.proj.weight.flatten(1))
    y, x = (torch.tensor(list(side), device=hidden.device) for side in zip(*_patch_order(), strict=True))
    cos, sin = (part[None, :, None, :] for part in visual.rotary_pos_emb(hidden, torch.stack([y, x], -1)))
    for block in visual.blocks:
        q, k, v = (part.view(n, size, heads, -1) for part in _qkv(block.attn, block.norm1(hidden)))
        q, k = (
            t * cos + torch.cat((-t[..., t.shape[-1] // 2 :], t[..., : t.shape[-1] // 2]), -1) * sin for t in (q, k)
        )
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        hidden = hidden + block.attn.proj(mixed.transpose(1, 2).reshape(n, size, -1))
        hidden = hidden + block.mlp(block.norm2(hidden))
    return visual.merger(hidden.view(n * size, -1)).view(n, size // 4, -1)


def _qkv(attention: Any, hidden: torch.Tensor) -> Sequence[torch.Tensor]:
    """Queries, keys and values: one matrix in a Qwen2.5-VL, three in a Qwen2.5-Omni."""
    if hasattr(attention, "qkv"):
        return attention.qkv(hidden).chunk(3, -1)
    return attention.q(hidden), attention.k(hidden), attention.v(hidden)


def _patch_order() -> list[tuple[int, int]]:
    """(row, column) of the 16 patches, the four of one cell after another, as the processor lays them out."""
    return [(2 * i + k, 2 * j + m) for i, j, k, m in itertools.product(range(2), repeat=4)]


def to_patches(frames: list[Image.Image]) -> np.ndarray:
    """One image or an even number of frames -> (frame pairs, 16, 1176), as the processor makes them."""
    frames = frames * 2 if len(frames) == 1 else frames
    pixels = np.stack([np.asarray(frame, dtype=np.float32) for frame in frames]) / 255
    pixels = (pixels - np.float32(MEAN)) / np.float32(STD)
    parts = pixels.reshape(
        -1, 2, 2, 2, 14, 2, 2, 14, 3
    )  # pair, frame, cell row, row, y, cell column, column, x, channel
    return parts.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, 16, 1176)


def save(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """A complete checkpoint folder that every user can read."""
    save_processor(folder, tokenizer)
    model.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)
