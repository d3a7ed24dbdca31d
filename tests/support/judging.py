"""Scripted judges of candidates whose text is their quality, for the tests of formats around formats."""

from __future__ import annotations

from collections.abc import Sequence

from flexjudge_reward import Example, Judge, Prompt, Sampling
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.types import Format, Verdict


def candidates(prompt: Prompt) -> list[str]:
    """The candidates of a prompt, in its order: quoted texts after the question."""
    return [part.text for part in prompt.messages[1].parts if hasattr(part, "text")][1:]


def tags(*answers: object) -> str:
    return "<think>so</think>" + "".join(f"<answer>{answer}</answer>" for answer in answers)


def grade(text: str) -> int:
    """The quality of a scripted candidate: its text is a number, maybe with a name behind it."""
    return int(text.split()[0])


def scores(prompt: Prompt) -> str:
    return tags(*(grade(text) for text in candidates(prompt)))


def judged(format: Format, replies: object, *groups: Sequence[str], sampling: Sampling = Sampling()) -> list[Verdict]:
    engine = ScriptedEngine(replies)  # type: ignore[arg-type]
    return Judge(format, engine, sampling)([Example("q", list(group)) for group in groups])
