"""How models of all families begin and end a thought at the beginning of a text: judges' replies and completions alike.

    <think>  [THINK]  <thought>  <seed:think>  <longcat_think>  ◁think▷  gpt-oss's channels  ..

Only at the beginning: further on, such a mark may be quoted.
"""

from __future__ import annotations

import re

_NAMED = re.compile(
    r"<((?:\w{1,16}[:_])?(?:think|thinking|thoughts?)|reason|reasoning|analysis|reflection)>", re.IGNORECASE
)
_MARKS = {
    **{"[THINK]": "[/THINK]", "◁think▷": "◁/think▷", "<|channel>thought": "<channel|>", "<|think|>": "<|/think|>"},
    **{"<|START_THINKING|>": "<|END_THINKING|>", "<|inner_prefix|>": "<|inner_suffix|>"},
    **{"<|begin_of_thought|>": "<|end_of_thought|>", "<|thinking|>": "<|/thinking|>"},
    "<|channel|>analysis<|message|>": "<|channel|>final<|message|>",
}
_OPENINGS = tuple(_MARKS)
_LONGEST = 40  # characters of a mark


def opening_of(text: str, at: int = 0) -> str:
    """The mark that begins a thought at a place of a text; empty if something else is there."""
    if text.startswith(_OPENINGS, at):
        return next(mark for mark in _OPENINGS if text.startswith(mark, at))
    return found[0] if text.startswith("<", at) and (found := _NAMED.match(text, at)) else ""


def ending_of(text: str) -> str:
    """The mark that a text ends with and that begins a thought; empty if there is none."""
    end = text.rstrip()[-_LONGEST:]
    starts = (at for at, character in enumerate(end) if character in "<[◁")
    found = next((end[at:] for at in starts if opening_of(end, at) == end[at:]), "")
    return "" if names_more(found) else found


def closing_of(opening: str) -> str:
    """What ends a thought that began so."""
    return _MARKS.get(opening) or f"</{opening[1:]}"


def names_more(opening: str) -> bool:
    """Whether a mark is a tag that answers in XML have, too, such as `<analysis>`."""
    return _NAMED.fullmatch(opening) is not None and "think" not in opening.lower()
