"""Qwen2.5-Omni of a few hundred thousand parameters, with random weights: whole, or its Thinker as a judge."""

from __future__ import annotations

import json
from pathlib import Path

from flexjudge_reward.nano import path
from support.late import late

torch = late("torch")
transformers = late("transformers")
safe = late("safetensors.torch")

_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}
_HEADS = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "rope_parameters": _ROPE}
_PLACES = ("vision_bos", "vision_eos", "audio_bos", "audio_eos", "image", "video", "audio")
_TOKENS = {name: f"<|{name}|>" for name in _PLACES}
_NANO = {"vision_bos": "<|vision_start|>", "vision_eos": "<|vision_end|>", "image": "<|image_pad|>"}
_HEARD = "{%- elif part['type'] == 'audio' -%}<|audio_bos|><|audio|><|audio_eos|>\n{%- elif 'text' in part -%}"
LONGEST_S = 4


def hearing(folder: Path) -> None:
    """A judge that hears, sees and reads: the Thinker in a config of the whole, as vLLM and transformers read it."""
    torch.manual_seed(0)
    tokens = {**_TOKENS, **_NANO, "video": "<|video_pad|>"}
    tokenizer, template = _tokenizer(tokens)
    config = _config(tokenizer, tokens).thinker_config
    model = transformers.Qwen2_5OmniThinkerForConditionalGeneration(config)
    for value in model.parameters():
        value.data *= 6 if value.ndim > 1 else 1  # far from a uniform choice of tokens, so that engines must agree
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"thinker.{name}": value.contiguous() for name, value in model.state_dict().items()}
    safe.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    inner = {name: value for name, value in config.to_dict().items() if name not in ("architectures", "dtype")}
    whole = {"architectures": ["Qwen2_5OmniForConditionalGeneration"], "model_type": "qwen2_5_omni"}
    whole |= {"enable_audio_output": False, "dtype": "float32", "thinker_config": inner}
    (folder / "config.json").write_text(json.dumps(whole))
    _processor(tokenizer, template.replace("{%- elif 'text' in part -%}", _HEARD)).save_pretrained(folder)


def write(folder: Path) -> None:
    """A folder as it is published: weights, processor with the embedded judge's tokenizer, spk_dict.pt."""
    torch.manual_seed(0)
    tokenizer, template = _tokenizer(_TOKENS)
    model = transformers.Qwen2_5OmniForConditionalGeneration(_config(tokenizer, _TOKENS))
    model.save_pretrained(folder)
    _processor(tokenizer, template).save_pretrained(folder)
    torch.save({"voice": torch.zeros(2)}, folder / "spk_dict.pt")


def _tokenizer(tokens: dict[str, str]) -> tuple[transformers.PreTrainedTokenizerFast, str]:
    """That of the embedded judge with these tokens, and its chat template."""
    base = transformers.AutoTokenizer.from_pretrained(path("base"))
    named = {f"{name}_token": token for name, token in tokens.items()}
    ends = {"eos_token": base.eos_token, "pad_token": base.pad_token, "extra_special_tokens": named}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=base.backend_tokenizer, **ends), base.chat_template


def _processor(tokenizer: transformers.PreTrainedTokenizerFast, template: str) -> transformers.Qwen2_5OmniProcessor:
    size = {"shortest_edge": 56 * 56, "longest_edge": 8 * 56 * 56}
    patches = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "size": size}
    image = transformers.Qwen2VLImageProcessor(**patches)
    clip = transformers.Qwen2VLVideoProcessor(**patches)
    ear = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=LONGEST_S)
    return transformers.Qwen2_5OmniProcessor(image, clip, ear, tokenizer, chat_template=template)


def _config(tokenizer: transformers.PreTrainedTokenizerBase, tokens: dict[str, str]) -> transformers.Qwen2_5OmniConfig:
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    text = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 64, **_HEADS}
    text |= {"tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": end, "pad_token_id": pad}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
    audio = {"num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    audio |= {"d_model": 32, "max_source_positions": 100, "n_window": 50, "output_dim": 64}
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    thinker = {"text_config": text, "vision_config": vision, "audio_config": audio, "user_token_id": 5}
    thinker |= {f"{name}_token_index": ids[name] for name in ("image", "video", "audio")}
    thinker |= {"audio_start_token_id": ids["audio_bos"], "audio_end_token_id": ids["audio_eos"]}
    thinker |= {"vision_start_token_id": ids["vision_bos"], "vision_end_token_id": ids["vision_eos"]}
    talker = {"vocab_size": 128, "embedding_size": 64, "hidden_size": 64, "intermediate_size": 64, "head_dim": 32}
    names = ("start", "end", "pad", "mask")
    talker |= {f"tts_codec_{name}_token_id": 120 + number for number, name in enumerate(names)}
    talker |= {f"tts_text_{name}_token_id": number for number, name in enumerate(names[:3])} | _HEADS
    dit = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "enc_dim": 16, "emb_dim": 32}
    dit |= {"head_dim": 64, "num_embeds": 128, "mel_dim": 80, "look_ahead_layers": [0], "look_backward_layers": [0]}
    dit |= {"enc_emb_dim": 16, "enc_channels": [16, 16, 16, 16, 48], "enc_attention_channels": 8, "enc_se_channels": 8}
    sound = {"dit_config": dit | {"enc_lin_neurons": 16, "enc_res2net_scale": 2}}
    sound["bigvgan_config"] = {"upsample_initial_channel": 64}
    return transformers.Qwen2_5OmniConfig(thinker_config=thinker, talker_config=talker, token2wav_config=sound)
