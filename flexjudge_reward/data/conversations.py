"""Candidates that are whole conversations: the beginning that they share belongs to the prompt, the rest is judged.

    {"prompt": "hi", "chosen": [user "hi", assistant "a"], "rejected": [user "hi", assistant "b"]}

The prompt may be a text, the whole beginning, its last turns, or left out. Candidates that begin with a turn of the
policy or of a tool are what the policy added: they stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flexjudge_reward.data.content import is_conversation

MISSING = object()
"""In place of a question that a row does not have."""
_Turn = Mapping[str, Any]
_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}


def with_roles(value: Any) -> Any:
    """A conversation as ShareGPT has it, {"from", "value"}, as messages; everything else as it is.

    One message alone, as LLaMA-Factory has `chosen`, is a conversation of one.
    """
    if isinstance(value, Mapping) and (value.keys() >= {"from", "value"} or value.keys() >= {"role", "content"}):
        value = [value]
    old = isinstance(value, list) and value and all(isinstance(turn, Mapping) and "from" in turn for turn in value)
    if not old:
        return value
    return [{"role": _ROLES.get(turn["from"], turn["from"]), "content": turn.get("value")} for turn in value]


def split(question: Any, candidates: Sequence[Any]) -> tuple[Any, list[Any]]:
    """The question with the shared beginning, and what follows it; unchanged where the candidates share none."""
    count = _shared(candidates)
    if not count:
        return question, list(candidates)
    beginning = list(candidates[0][:count])
    whole = _joined(question, beginning)
    if whole is None and len(candidates) > 1:
        whole = [*_turns(question), *beginning]
    return (question, list(candidates)) if whole is None else (whole, [list(one[count:]) for one in candidates])


def _shared(candidates: Sequence[Any]) -> int:
    """How many turns all candidates begin with; none if one begins with a turn of the policy, and never all of one."""
    if not candidates or not all(is_conversation(one) and isinstance(one[0], Mapping) for one in candidates):
        return 0
    if any(one[0].get("role") in ("assistant", "tool") for one in candidates):
        return 0
    if len(candidates) == 1:
        asked = [n for n, turn in enumerate(candidates[0]) if isinstance(turn, Mapping) and turn.get("role") == "user"]
        return min(asked[-1] + 1 if asked else 0, len(candidates[0]) - 1)
    most = min(map(len, candidates)) - 1
    return next((n for n in range(most) if any(one[n] != candidates[0][n] for one in candidates)), most)


def _joined(question: Any, beginning: list[Any]) -> Any:
    """The prompt, where the question is the beginning or a part of it, or the other way round; else None."""
    if question is MISSING:
        return beginning
    given = _turns(question)
    here, there = [_compared(turn) for turn in given], [_compared(turn) for turn in beginning]
    if here == there:
        return given if is_conversation(question) else beginning  # which may have the places of images
    if len(here) < len(there) and (there[: len(here)] == here or there[-len(here) :] == here):
        return beginning
    return given if here[-len(there) :] == there else None


def _turns(question: Any) -> list[Any]:
    return list(question) if is_conversation(question) else [{"role": "user", "content": question}]


def _compared(turn: Any) -> tuple[Any, list[Any]]:
    """The role of a turn, and its texts; the media of a column stand as mere places in one and as images in another."""
    content = turn.get("content") if isinstance(turn, Mapping) else turn
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    role = turn.get("role") if isinstance(turn, Mapping) else None
    return role, [text.strip() for text in texts if isinstance(text, str) and text.strip()]
