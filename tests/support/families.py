"""Two small tokenizers built here, one of each great family, with chat templates: what S1 is measured on.

* "chatml": byte-level BPE, NFC, special and non-special added tokens, as in Qwen2.5-VL and Qwen3.
* "metaspace": BPE over `▁`, NFKC, added tokens matched before and after normalisation, with strip flags, as in the
  Llama, Mistral and Gemma families.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flexjudge_reward.engines.model import Chat, Source

_TEXT = [
    "You are a fair and careful judge. Write your reasoning, then the score of each answer from 1 to 10.",
    "assistant user system question answer reference image video think thing im start end tool call response turn",
    "def f(x): return x < 3 and [INST] or <b>bold</b> | a <| b |> c /think /answer ``` ``` 漢字 é naïve",
]

_CHATML = """{%- for message in messages %}<|im_start|>{{ message.role }}
{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}
{%- elif part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% endif %}{% endfor %}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
_TURNS = """{{ '<s>' }}{%- for message in messages %}{% if message.role == 'system' %}<start_of_turn>system
{{ message.content }}<end_of_turn>
{% else %}[INST] {{ message.content }} [/INST]{% endif %}{% endfor %}"""

CHATML_SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
CHATML_PLAIN = "<think> </think> <tool_call> </tool_call> <tool_response> </tool_response> <|fim_prefix|>".split()


@dataclass
class Family:
    """A tokenizer with the chat renderer that the engines use."""

    name: str
    chat: Chat

    @cached_property
    def controls(self) -> dict[int, str]:
        """The added tokens that control something, by id: all but indentation."""
        added = self.chat.tokenizer.get_added_vocab()
        return {index: token for token, index in added.items() if token.replace("▁", " ").strip()}

    def sequences(self, texts: list[str]) -> list[tuple[int, ...]]:
        """The ids of the added tokens in each rendered prompt, in order."""
        tokenizer = self.chat.tokenizer.backend_tokenizer
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        return [tuple(index for index in one.ids if index in self.controls) for one in encoded]


def chatml() -> Family:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_TEXT * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in CHATML_SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in CHATML_PLAIN])
    tokenizer.add_tokens([AddedToken(" " * n, normalized=False) for n in (4, 8)])
    return Family("chatml", Chat(_wrapped(tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"), _CHATML))


def metaspace() -> Family:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizer
    trained.train_from_iterator(_TEXT * 3, trainers.BpeTrainer(vocab_size=700, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    # Bytes are part of the vocabulary, not added tokens: characters that were not seen are no control tokens.
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocabulary = {word: index for index, word in enumerate(words)}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>", "<pad>", "[IMG]", "[TOOL_CALLS]")]
        + [AddedToken("<mask>", lstrip=True, normalized=False), AddedToken("<image>", rstrip=True, normalized=False)]
    )
    tokenizer.add_tokens(
        [AddedToken(token, normalized=True) for token in ("[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>")]
        + [AddedToken(token, normalized=True) for token in ("<think>", "</think>", "<tool call>", "<｜turn▁end｜>")]
        + [AddedToken("<unit>", single_word=True, normalized=True), AddedToken("<sep>", lstrip=True, normalized=True)]
        + [AddedToken("\n\n", normalized=False), AddedToken("▁▁", normalized=True)]
    )
    return Family("metaspace", Chat(_wrapped(tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"), _TURNS))


def _wrapped(tokenizer: Any, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def nano() -> Family:
    """The tokenizer and template of the embedded judge; `load_tokenizer` gives the same one, and imports torch."""
    from transformers import PreTrainedTokenizerFast

    source = Source.find("nano", None, False)
    return Family("nano", Chat(PreTrainedTokenizerFast.from_pretrained(source.model), source.template()))
