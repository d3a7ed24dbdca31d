"""Servers that answer as vendors do, and a judge behind them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from flexjudge_reward import Example, Format, Judge, Pointwise, Sampling, ServerEngine, Verdict
from support.fault_server import Fault, FaultServer, reply

GOOD = "<think>fine</think><answer>7</answer>"
Answer = Callable[[dict[str, Any]], Fault | None]


class Vendor(FaultServer):
    """A server whose answer depends on the body of the request; None is a good reply."""

    def __init__(self, answer: Answer, **options: Any) -> None:
        super().__init__(**options)
        self.answer = answer

    def respond(self, name: str, body: dict[str, Any]) -> Fault:
        return self.answer(body) or Fault(body=reply(GOOD))


def error(status: int, message: str, **more: Any) -> Fault:
    return Fault(status=status, body=json.dumps({"error": {"message": message, **more}}))


def text_of(body: Mapping[str, Any]) -> str:
    return json.dumps(body["messages"])


def judged(
    server: FaultServer, count: int = 6, format: Format | None = None, sampling: Sampling = Sampling(), **options: Any
) -> list[Verdict]:
    rows = [Example("q", [f"answer {n}"]) for n in range(count)]
    with ServerEngine(server.url, "judge", **options) as engine:
        return Judge(format or Pointwise(), engine, sampling)(rows)


def kinds(verdicts: list[Verdict]) -> list[str | None]:
    return [verdict.failure.kind if verdict.failure else None for verdict in verdicts]
