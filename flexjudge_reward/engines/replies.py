"""A reply as the model wrote it, in one form: thoughts between think tags, and no other control tokens.

Engines decode with control tokens, since the think tags are control tokens of some models. Other families mark a
thought in their own way: gpt-oss as a channel, Magistral in brackets.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from flexjudge_reward.prompts.quoting import TAGS
from flexjudge_reward.prompts.thoughts import closing_of, opening_of

_MARKS = (
    ("<|channel|>analysis<|message|>", "<think>"),
    ("<|end|><|start|>assistant<|channel|>analysis<|message|>", "\n"),
    ("<|end|><|start|>assistant<|channel|>final<|message|>", "</think>"),
    ("<|end|>", "</think>"),
    ("<|start|>assistant", ""),
    ("<|channel|>final<|message|>", ""),
)
_HARMONY = "<|channel|>"
THINKS = {"enable_thinking": True, "thinking": True}
"""Options of chat templates: a judge reasons first, and some templates close the thought at once without one of these
(EXAONE 4, DeepSeek V3.1). A template that knows neither ignores them."""
_CONTROL = re.compile(r"<\|[^<>|\n]{1,64}\|>|</?s>|<(?:eos|end_of_turn)>")


def plain(text: str, special: Collection[str] | None = None) -> str:
    """A decoded reply without control tokens.

    Args:
        special: those of the model's tokenizer; None where only a server knows them.
    """
    if _HARMONY in text:
        for mark, tag in sorted(_MARKS, key=lambda pair: -len(pair[0])):
            text = text.replace(mark, tag)
    text = text.replace("[THINK]", "<think>").replace("[/THINK]", "</think>")
    # Only a reply that begins so: within it, such a mark may be quoted from a candidate.
    opening = opening_of(text.lstrip()[:32])
    if opening and opening != "<think>":
        thought, closed, rest = text.partition(opening)[2].rpartition(closing_of(opening))
        text = f"<think>{thought}</think>{rest}" if closed else f"<think>{rest}"
    if special is None:
        return _CONTROL.sub("", text) if "<" in text else text
    for token in special:
        if token not in TAGS and token in text:
            text = text.replace(token, "")
    return text
