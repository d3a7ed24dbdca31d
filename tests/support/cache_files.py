"""Cache files that are used, filled and looked at, for the tests of the store."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path

from flexjudge_reward import Message, Prompt, Quoted, Sampling
from flexjudge_reward.engines.cache.engine import CachedEngine
from flexjudge_reward.engines.cache.store import Row
from flexjudge_reward.engines.scripted import ScriptedEngine

FORK = multiprocessing.get_context("fork")  # the imports of a fresh interpreter would take longer than the tests
LIMIT = 1 << 30


def ask(name: str) -> Prompt:
    return Prompt((Message("user", (Quoted(name),)),))


def echo(prompt: Prompt) -> str:
    part = prompt.messages[0].parts[0]
    assert isinstance(part, Quoted)
    return f"<think>{part.text}{' because' * 40}</think><answer>7</answer>"


def use(path: Path, names: Sequence[str]) -> int:
    """Judges `names` with the cache at `path`; how many came from it. Every reply must be right."""
    engine = CachedEngine(ScriptedEngine(echo), path)
    served = ask_all(engine, names)
    engine.close()
    return served


def ask_all(engine: CachedEngine, names: Sequence[str]) -> int:
    prompts = [ask(name) for name in names]
    replies = engine.generate(prompts, Sampling())
    assert [reply.text for reply in replies] == [echo(prompt) for prompt in prompts]
    return sum(reply.cached for reply in replies)


NAMES = [f"name {i}" for i in range(60)]


def aside(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.glob("*.damaged-*") if not p.name.endswith(("-wal", "-shm")))


def row(number: int, size: int = 100) -> Row:
    return Row(number.to_bytes(32, "big"), b"v" * size, b"r", "m")
