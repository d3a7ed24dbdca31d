"""Scripted judges of candidates whose text is their quality, for the tests of formats."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from flexjudge_reward import Example, Format, Judge, Request, Sampling, ScriptedEngine, Untrusted, Verdict


def candidates(request: Request) -> list[str]:
    """The candidates of a request, in its order: untrusted texts after the question."""
    return [part.text for part in request.prompt.messages[1].parts if isinstance(part, Untrusted)][1:]


def tags(*answers: object) -> str:
    return "<think>so</think>" + "".join(f"<answer>{answer}</answer>" for answer in answers)


def grade(text: str) -> int:
    """The quality of a scripted candidate: its text is a number, maybe with a name behind it; a probe's is 1."""
    return int(text.split()[0]) if text[:1].isdigit() else 1


def scores(request: Request) -> str:
    return tags(*(grade(text) for text in candidates(request)))


def judged(format: Format, replies: object, *groups: Sequence[str], sampling: Sampling = Sampling()) -> list[Verdict]:
    engine = ScriptedEngine(replies)  # type: ignore[arg-type]
    return Judge(format, engine, sampling)([Example("q", list(group)) for group in groups])


class Served(ScriptedEngine):
    """Takes requests of several calls at once; every seventh request takes longer."""

    remote = True
    in_flight = 16  # type: ignore[assignment]

    def __init__(self, reply: Any = scores) -> None:
        super().__init__(reply)
        self.calls = self.most = 0
        self.number = 0
        self.counting = threading.Lock()

    def identity(self) -> dict[str, object]:
        return {"engine": "served"}

    def complete(self, requests: Any) -> Any:
        with self.counting:
            self.calls += 1
            self.number += 1
            self.most, slow = max(self.most, self.calls), self.number % 7 == 1
        time.sleep(0.02 if slow else 0.002)
        try:
            return super().complete(requests)
        finally:
            with self.counting:
                self.calls -= 1
