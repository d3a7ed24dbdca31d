"""Which part of a completion is judged: the answer after the policy's own reasoning, or all of it.

    answer    without the thought at the beginning of each turn of the policy (the default)
    all       with it

A thought is the text between `<think>` and `</think>`, or another family's marks (`prompts/thoughts.py`), at the
beginning, everything before a `</think>` that a prompt opened, a field of a message (`reasoning_content`, `reasoning`,
`thinking`), or a part of the type "thinking" or "reasoning". A completion that ends inside its thought has no answer:
it is `Unfinished`, which no judge is asked about.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flexjudge_reward.prompts.thoughts import closing_of, ending_of, names_more, opening_of
from flexjudge_reward.types import Unfinished

Completion = Literal["answer", "all"]

_BLANK = re.compile(r"\s*")
_GPT_OSS = re.compile(r"\s*analysis(?!\s).*?assistantfinal", re.DOTALL)  # as trainers decode it, without control tokens
_FIELDS = ("reasoning_content", "reasoning", "thinking")
_PARTS = ("thinking", "reasoning")
_Place = tuple[int, int]  # a part, and a character in it


def judged_part(parts: Sequence[Any], thought: str, completion: Completion, opened: str = "") -> list[Any]:
    """The parts of one turn of the policy that are shown: texts and media, or one `Unfinished`.

    Args:
        thought: what the policy thought according to a field of its message.
        opened: the mark of an open thought that the prompt ends with.
    """
    if completion == "all":
        return [f"<think>\n{thought}\n</think>\n\n", *parts] if thought else list(parts)
    rest = _after_thoughts(parts, opened)
    if rest is None:
        return [Unfinished("".join(part for part in parts if isinstance(part, str)))]
    if thought and not any(part.strip() if isinstance(part, str) else True for part in rest):
        return [Unfinished(thought)]
    return rest


def thought_of(message: Mapping[str, Any]) -> str:
    """What a message holds of the policy's reasoning beside its content, or as parts of it."""
    own = [message[name] for name in _FIELDS if message.get(name)][:1]  # vLLM writes two names with one text
    content = message.get("content")
    if not isinstance(content, str) and isinstance(content, Sequence):
        own += [part.get(part["type"]) or part.get("text") for part in content if is_thought(part)]
    return "\n".join(filter(None, map(_text, own)))


def is_thought(part: Any) -> bool:
    """Whether a content part is a thought."""
    return isinstance(part, Mapping) and part.get("type") in _PARTS


def open_thought(prompt: Any) -> str:
    """The mark of an open thought that a prompt ends with, so that the completion begins inside it; "" if none."""
    if isinstance(prompt, Sequence) and not isinstance(prompt, str) and prompt and isinstance(prompt[-1], Mapping):
        prompt = prompt[-1].get("content")
    return ending_of(prompt) if isinstance(prompt, str) else ""


def _after_thoughts(parts: Sequence[Any], opened: str) -> list[Any] | None:
    """The parts behind the thoughts at the beginning; None if the last of them never closes."""
    text = "".join(part for part in parts if isinstance(part, str))
    close, opening = text.find("</think>"), text.find("<think>")
    place: _Place | None = (0, 0)
    if not opened and parts and isinstance(parts[0], str) and (decoded := _GPT_OSS.match(parts[0])):
        place = (0, decoded.end())
    elif opened or (close >= 0 and not 0 <= opening < close):
        place = _behind(parts, closing_of(opened or "<think>"), (0, 0))
    # By places, not by what is left: a policy can write 10,000 thoughts in a row.
    while place is not None and (tag := _opening(parts, place)):
        behind = _behind(parts, closing_of(tag), place)
        if behind is not None and names_more(tag) and _is_end(parts, behind):
            break  # the answer is in the tag
        place = behind
    if place is None or place == (0, 0):
        return None if place is None else list(parts)
    part, at = place
    return [parts[part][at:].lstrip(), *parts[part + 1 :]]


def _opening(parts: Sequence[Any], place: _Place) -> str:
    """The tag that opens a thought at a place, behind blanks; "" if something else is there."""
    first, at = place
    for index in range(first, len(parts)):
        part = parts[index]
        if not isinstance(part, str):
            break
        at = _BLANK.match(part, at).end()  # type: ignore[union-attr]
        if at < len(part):
            return opening_of(part, at)
        at = 0
    return ""


def _behind(parts: Sequence[Any], closing: str, place: _Place) -> _Place | None:
    """The place behind the next occurrence of a closing tag."""
    first, at = place
    for index in range(first, len(parts)):
        found = parts[index].find(closing, at) if isinstance(parts[index], str) else -1
        if found >= 0:
            return index, found + len(closing)
        at = 0
    return None


def _is_end(parts: Sequence[Any], place: _Place) -> bool:
    """Whether only blanks are behind a place."""
    first, at = place
    left = ((parts[index], at if index == first else 0) for index in range(first, len(parts)))
    return all(isinstance(part, str) and _BLANK.fullmatch(part, begin) for part, begin in left)


def _text(thought: Any) -> str:
    if isinstance(thought, str):
        return thought.strip()
    parts = thought if isinstance(thought, Sequence) else [thought]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return "\n".join(text.strip() for text in texts if isinstance(text, str))
