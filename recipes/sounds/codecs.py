"""How a language model writes sounds: what it continues, what ends it, and what its tokens sound like.

nano      the settings of a synthesiser (`recipes/nano/sound_generator.py`); it continues the request itself
xcodec2   the speech tokens of Llasa, played by the package `xcodec2` and the model HKUSTAudio/xcodec2
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from flexjudge_recipes.nano import sound_generator

import torch

from flexjudge_reward import ConfigError, Media

RATE = 16_000  # of both
_SPEECH = re.compile(r"<\|s_(\d+)\|>")


@dataclass(frozen=True)
class Codec:
    """One way to write sounds."""

    prompt: Callable[[str], Any]
    """The prompt for a request: a text that is continued, or messages whose last one is continued."""
    samples: Callable[[str], Any]
    """An array for a completion, or None for what is no sound."""
    end: str | None = None
    """The token that ends a sound, where it is not the tokenizer's."""

    def sound(self, completion: str) -> Media | None:
        """What a completion sounds like; None if it is no sound."""
        samples = self.samples(completion)
        return None if samples is None else Media.audio((samples, RATE))


def codec(name: str) -> Codec:
    """The codec of this name. Raises ConfigError."""
    if name not in CODECS:
        raise ConfigError(f"codec is one of {', '.join(CODECS)}, found {name!r}")
    return CODECS[name]


def text_of(completion: Any) -> str:
    """A completion as a trainer gives it: a text, or a list with one message."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


@torch.no_grad()
def written(model: Any, tokenizer: Any, prompts: Sequence[Any], longest: int, seed: int, batch: int = 128) -> list[str]:
    """A completion for each prompt, drawn at temperature 1; the same for a seed. The caller's random state is kept."""
    texts, training = list[str](), model.training
    chat = not isinstance(prompts[0], str)  # whose template writes the opening tokens itself
    begun = [_begun(tokenizer, prompt) if chat else prompt for prompt in prompts]
    how = {"padding": True, "padding_side": "left", "add_special_tokens": not chat, "return_tensors": "pt"}
    draw = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "max_new_tokens": longest}
    draw |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    model.eval()
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(begun), batch):
            inputs = tokenizer(begun[start : start + batch], **how).to(model.device)
            inputs.pop("token_type_ids", None)  # of a plain tokenizer
            tokens = model.generate(**inputs, **draw)
            texts += tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    model.train(training)
    return texts


def _begun(tokenizer: Any, messages: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True))


# ----------------------------------------------------------------------------------------------------------- codecs


def _llasa(text: str) -> list[dict[str, str]]:
    """As the model card of Llasa has it: the reply has begun."""
    asked = f"Convert the text to speech:<|TEXT_UNDERSTANDING_START|>{text}<|TEXT_UNDERSTANDING_END|>"
    return [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": "<|SPEECH_GENERATION_START|>"},
    ]


def _speech(completion: str) -> Any:
    codes = [int(number) for number in _SPEECH.findall(completion)]
    if not codes:
        return None
    model = _xcodec2()
    with torch.no_grad():
        played = model.decode_code(torch.tensor(codes, device=model.device)[None, None])
    return played[0, 0].float().cpu().numpy().clip(-1, 1)


@cache
def _xcodec2() -> Any:
    try:
        from xcodec2.modeling_xcodec2 import XCodec2Model
    except ImportError:
        raise ConfigError("the codec xcodec2 needs its package: pip install xcodec2") from None
    model = XCodec2Model.from_pretrained("HKUSTAudio/xcodec2").eval()
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


CODECS = {
    "nano": Codec(lambda request: request, sound_generator.recording),
    "xcodec2": Codec(_llasa, _speech, "<|SPEECH_GENERATION_END|>"),
}
