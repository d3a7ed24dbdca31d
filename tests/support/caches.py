"""A cached engine whose replies say what was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flexjudge_reward import Message, Prompt, Quoted
from flexjudge_reward.engines.cache.engine import CachedEngine
from flexjudge_reward.engines.scripted import ScriptedEngine


def ask(text: str, sample: int = 0) -> Prompt:
    return Prompt((Message("system", ("Judge.",)), Message("user", ("The answer: ", Quoted(text)))), sample)


def echo(prompt: Prompt) -> str:
    part = prompt.messages[1].parts[1]
    return f"<think>{getattr(part, 'text', part)}, draw {prompt.sample}</think><answer>7</answer>"


def cached(path: Path, replies: Any = echo) -> tuple[CachedEngine, ScriptedEngine]:
    engine = ScriptedEngine(replies)
    return CachedEngine(engine, path), engine
