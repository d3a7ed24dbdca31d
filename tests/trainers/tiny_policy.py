"""A text policy for trainers that take a folder: untrained, a few thousand parameters, the embedded tokenizer."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from flexjudge_reward.nano import path


def policy(folder: Path) -> str:
    """The folder, with the model in it."""
    words = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path("base") / "tokenizer.json"), **words)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **size, **ids)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return str(folder)
