"""Harmless requests, which tell what a server serves and takes: they hold nothing of a judged text."""

from __future__ import annotations

from dataclasses import replace

from flexjudge_reward.types import Message, Prompt, Request, Sampling

_TURNS = (Message("system", ("Answer briefly.",)), Message("user", ("Is 1 + 1 = 2? Reply with yes or no.",)))
_WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen " * 3

HARMLESS = Request(Prompt(_TURNS), Sampling(max_tokens=16))
COUNTED = replace(HARMLESS, prompt=Prompt((Message("system", (_WORDS,)), Message("user", (_WORDS, "Say yes.")))))
"""Its reported tokens show whether a system turn reaches the model."""


def harmless_like(request: Request) -> Request:
    """A harmless request with the same fields as `request`, and a begun reply where that has one."""
    begun = (Message("assistant", ("Yes",)),) if request.prompt.messages[-1].role == "assistant" else ()
    return Request(Prompt((*_TURNS, *begun)), replace(request.sampling, max_tokens=16))
