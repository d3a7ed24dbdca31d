"""A prompt in its policy's chat template, as the messages that it was made of.

slime, OpenRLHF and unsloth hand over what their policy is shown; TRL and ms-swift hand over messages. A judge sees the
same question in all of them. Templates: ChatML (Qwen and many others), Llama 3, Gemma. Promised: a text that is not
wholly of this form, with an open turn of the policy at its end, stays as it is. Nothing of a turn's text is lost, but
for the system turn that Qwen's template adds to messages without one.
"""

from __future__ import annotations

import re
from typing import Any

_TEMPLATES = (
    ("<|im_start|>", "\n", "<|im_end|>"),
    ("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"),
    ("<start_of_turn>", "\n", "<end_of_turn>"),
)
"""What begins a turn, what ends the name of its role, and what ends the turn."""
_ADDED = ("You are a helpful assistant.", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
_POLICY = ("assistant", "model")
_BEFORE = re.compile(r"\s*(<[\w|]{1,40}>)?\s*")  # such as <|begin_of_text|>
_OPEN = re.compile(r"\s*(<think>\s*(</think>\s*)?)?")
_PLACE = re.compile(r"<\|vision_start\|>(?:<\|(image|video)_pad\|>)+<\|vision_end\|>|<start_of_(image)>")


def messages_of(prompt: str) -> str | list[dict[str, Any]]:
    """The turns before the policy's, with `<image>` where Qwen's or Gemma's template places one; or the text itself."""
    for begin, named, end in _TEMPLATES:
        before, *turns = prompt.split(begin)
        *asked, opened = [turn.partition(named) for turn in turns] or [("", "", "")]
        if asked and opened[0] in _POLICY and _BEFORE.fullmatch(before) and _OPEN.fullmatch(opened[2]):
            cut = [(role, *text.partition(end)) for role, _, text in asked]
            if all(role.isidentifier() and ended and not rest.strip() for role, _, ended, rest in cut):
                if len(cut) > 1 and cut[0][0] == "system" and cut[0][1] in _ADDED:
                    del cut[0]
                return [{"role": _role(role), "content": _PLACE.sub(_mark, text)} for role, text, *_ in cut]
    return prompt


def _role(name: str) -> str:
    return "assistant" if name in _POLICY else name


def _mark(place: re.Match[str]) -> str:
    return f"<{place[1] or place[2]}>"
