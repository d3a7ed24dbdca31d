"""Cached engines whose replies repeat the request, and cache files that are filled and looked at."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexjudge_reward import CachedEngine, Message, Prompt, Request, Sampling, ScriptedEngine, Untrusted
from flexjudge_reward.engines.cache.store import Row

FORK = multiprocessing.get_context("fork")  # the imports of a fresh interpreter would take longer than the tests
LIMIT = 1 << 30
NAMES = [f"name {i}" for i in range(60)]


def ask(name: str, sampling: Sampling = Sampling()) -> Request:
    return Request(Prompt((Message("user", ("The answer: ", Untrusted(name))),)), sampling)


def echo(request: Request) -> str:
    """The only right reply to a request: it repeats the name and the seed."""
    part = request.prompt.messages[0].parts[1]
    assert isinstance(part, Untrusted)
    return f"<think>{part.text}, seed {request.sampling.seed}{' because' * 40}</think><answer>7</answer>"


def cached(path: Path, replies: Any = echo) -> tuple[CachedEngine, ScriptedEngine]:
    """A cached engine at `path`, and the engine inside it."""
    engine = ScriptedEngine(replies)
    return CachedEngine(engine, path), engine


def ask_all(engine: CachedEngine, names: Sequence[str]) -> int:
    """How many of `names` came from the cache. Every reply must be right."""
    requests = [ask(name) for name in names]
    replies = engine.generate(requests)
    assert [reply.text for reply in replies] == [echo(request) for request in requests]
    return sum(reply.cached for reply in replies)


def use(path: Path, names: Sequence[str]) -> int:
    """As `ask_all`, with an engine of its own."""
    with cached(path)[0] as engine:
        return ask_all(engine, names)


def set_aside(path: Path) -> list[str]:
    """The names of the damaged files beside `path`."""
    return sorted(p.name for p in path.parent.glob("*.damaged-*") if not p.name.endswith(("-wal", "-shm")))


def row(number: int, size: int = 100) -> Row:
    return Row(number.to_bytes(32, "big"), b"v" * size, b"r", "m")
