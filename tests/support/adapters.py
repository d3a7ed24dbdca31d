"""Judges for the files that trainers load, and how trainers load them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import Format, Generation, Judge, Pointwise, Rendezvous, Request, RewardSession, ScriptedEngine
from flexjudge_reward.trainers import rows, verl, verl_actor
from support.judging import candidates, grade, tags

TRAINERS = Path(rows.__file__).parent
Judged = Callable[..., ScriptedEngine]


def answer(request: Request) -> str | Generation:
    texts = [text for text in candidates(request) if not text.startswith("truth")]
    return Generation.failed("transport", "no route") if "broken" in texts else tags(*map(grade, texts))


@contextmanager
def judging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judged]:
    """Makes every judge that a session builds from settings a scripted one."""
    engines: list[ScriptedEngine] = []
    opened: list[Rendezvous] = []

    def judged(format: Format | None = None, **environ: str) -> ScriptedEngine:
        engines.append(ScriptedEngine(answer))
        for name, value in environ.items():
            monkeypatch.setenv(f"FLEXJUDGE_{name}", value)
        judge = Judge(format or Pointwise(), engines[-1]).for_group_size()
        monkeypatch.setattr(RewardSession, "judge", judge)
        return engines[-1]

    start = Rendezvous.__init__

    def noted(self: Rendezvous, *given: Any, **named: Any) -> None:
        start(self, *given, **named)
        opened.append(self)

    monkeypatch.setattr(Rendezvous, "__init__", noted)
    for cached in (rows._shared, verl._client, verl_actor._actor):
        cached.cache_clear()
    yield judged
    for meeting in opened:
        meeting.close()
    for cached in (rows._shared, verl._client, verl_actor._actor):
        cached.cache_clear()


def loaded(file: str, name: str) -> Any:
    """A file as trainers load it: by its path, under another name, without its package."""
    spec = importlib.util.spec_from_file_location(name, TRAINERS / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
