"""What text from outside may not do: become a control token, an answer tag, a delimiter or a role.

Two guarantees, both structural and independent of any model:

* `neutralise`: after it, none of the given tokens occurs in the text, nor in its compatibility-normalised form without
  invisible characters. Text in which none occurred comes back byte for byte.
* `fence`: the closing line cannot occur inside, because it is a run of backticks longer than any run in the text.

What is not promised: that a model follows the fence. That is a rate, to be measured per model.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence

from flexjudge_reward.media import Media
from flexjudge_reward.types import Content, Message, Part, Quoted

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""The tags of a judge's reply; outside text may not hold them in any case or spelling."""

KNOWN_CONTROL_TOKENS = frozenset(
    "<|im_start|> <|im_end|> <|endoftext|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> "
    "<|audio_start|> <|audio_end|> <|audio_pad|> <|AUDIO|> <|IMAGE|> <|VIDEO|> <|audio_bos|> <|audio_eos|> "
    "<|vision_bos|> <|vision_eos|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> "
    "<|quad_end|> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> <tool_call> "
    "</tool_call> <tool_response> </tool_response> <|begin_of_text|> <|end_of_text|> <|start_header_id|> "
    "<|end_header_id|> <|eot_id|> <|eom_id|> <|python_tag|> <|image|> <|header_start|> <|header_end|> <|eot|> "
    "<start_of_turn> <end_of_turn> <start_of_image> <end_of_image> <image_soft_token> <bos> <eos> <pad> <unk> <mask> "
    "<s> </s> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [IMG] [IMG_BREAK] [IMG_END] [AVAILABLE_TOOLS] "
    "[/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS] <<SYS>> <</SYS>> <|system|> <|user|> <|assistant|> "
    "<|end|> <|placeholder|> <|start|> <|message|> <|channel|> <|return|> <|call|> <image> <video> <audio> <img> </img> "
    "<IMG_CONTEXT> <|eos|> <|bos|> <|pad|> <|unk|> <|sep|> <|turn_start|> <|turn_end|>".split()
)
"""For servers, whose tokenizer is not at hand: the control tokens of the model families that people judge with."""

_BACKTICKS = re.compile("`+")


def neutralise(text: str, tokens: Collection[str] = ()) -> str:
    """`text` with every occurrence of `tokens` and of the judge's answer tags broken by a space.

    Breaking is repeated until none is left, so nested spellings (`<|im_<|im_end|>end|>`) cannot reassemble. Tokens of
    white space alone are left: they are how some tokenizers store indentation, and control nothing.

    Args:
        tokens: the contents of the added tokens of the judge's tokenizer, special or not.
    """
    exact = {token for token in tokens if token.strip()}
    pattern = re.compile(
        "|".join(
            ["(?i:" + "|".join(map(re.escape, TAGS)) + ")"]
            + [re.escape(token) for token in sorted(exact, key=lambda t: (-len(t), t))]
        )
    )
    folded = _folded(text)
    if not (pattern.search(text) or pattern.search(folded)):
        return text
    # Break on the folded copy if only it holds a token: a server may fold the text after us.
    broken = text if not pattern.search(folded) else folded
    while pattern.search(broken) or pattern.search(_folded(broken)):
        if not pattern.search(broken):
            broken = _folded(broken)
        broken = pattern.sub(_break, broken)
    return broken


def _folded(text: str) -> str:
    """What an eager normaliser could make of `text`: NFKC, no format or private characters, no stray controls."""
    plain = unicodedata.normalize("NFKC", text)
    kept = (c for c in plain if c in "\n\t" or unicodedata.category(c) not in {"Cf", "Cc", "Co", "Cs", "Cn"})
    return unicodedata.normalize("NFKC", "".join(kept))


def _break(match: re.Match[str]) -> str:
    token = match.group()
    return f"{token[0]} {token[1:]}" if len(token) > 1 else " "


def fence(parts: Content) -> tuple[Part, ...]:
    """`parts` as quoted text between two lines of backticks, longer than any run of backticks inside."""
    text = "".join(part for part in parts if isinstance(part, str))
    runs = [len(run) for form in (text, _folded(text)) for run in _BACKTICKS.findall(form)]
    ticks = "`" * max([3, *(length + 1 for length in runs)])
    inner = tuple(Quoted(part) if isinstance(part, str) else part for part in parts)
    return (f"{ticks}\n", *inner, f"\n{ticks}")


def flatten(message: Message, tokens: Collection[str] = KNOWN_CONTROL_TOKENS) -> tuple[str | Media, ...]:
    """The parts of `message` as plain text and media, ready for a chat template, quoted text neutralised.

    Neighbouring quoted texts are neutralised as one, so that a token cannot be split across two of them.
    """
    flat: list[str | Media] = []
    for part in _joined(message.parts):
        plain = neutralise(part.text, tokens) if isinstance(part, Quoted) else part
        if isinstance(plain, str) and flat and isinstance(flat[-1], str):
            flat[-1] += plain
        else:
            flat.append(plain)
    return tuple(flat)


def _joined(parts: Sequence[Part]) -> list[Part]:
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, Quoted) and joined and isinstance(joined[-1], Quoted):
            joined[-1] = Quoted(joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined
