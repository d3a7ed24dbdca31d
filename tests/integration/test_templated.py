"""Prompts that transformers wrote in a chat template are the messages that they were made of."""

from __future__ import annotations

from typing import Any

import pytest

from flexjudge_reward.data.templated import messages_of
from flexjudge_reward.nano import path

USER = {"role": "user", "content": "What is\ntop left?"}
SEVERAL = [
    {"role": "system", "content": "Be brief."},
    USER,
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": ""},
]
LLAMA = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}"
    "<|eot_id|>{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
GEMMA = (
    "<bos>{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}"
    "<end_of_turn>\n{% endfor %}<start_of_turn>model\n"
)


@pytest.mark.parametrize("template", [None, LLAMA, GEMMA], ids=["qwen", "llama", "gemma"])
@pytest.mark.parametrize("messages", [[USER], SEVERAL], ids=["one-turn", "several"])
def test_a_templated_prompt_is_its_messages(messages: list[Any], template: str | None) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path("base"))
    asked = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, chat_template=template, enable_thinking=False
    )
    assert messages_of(asked) == messages
