"""A server that can close a reasoning is given its budget; of others the format asks a second time."""

from __future__ import annotations

from typing import Any

import pytest

from flexjudge_reward import BudgetForcing, CachedEngine, Example, Judge, Pointwise, Sampling, ServerEngine
from support.fault_server import Fault, FaultServer, reply

VLLM = [{"id": "judge", "root": "/weights", "owned_by": "vllm"}]
NOT_CONFIGURED = (
    "thinking_token_budget is set but reasoning_config is not configured. Please set --reasoning-parser and/or"
    " --reasoning-config to use thinking_token_budget."
)


class Thinking(FaultServer):
    """Thinks as long as it may; `closes` says whether it takes a budget for that."""

    def __init__(self, closes: bool, models: Any = VLLM) -> None:
        super().__init__(models=models)
        self.closes, self.budgets = closes, list[tuple[Any, Any]]()

    def respond(self, name: str, body: dict[str, Any]) -> Fault | None:
        budget = body.get("thinking_token_budget")
        self.budgets.append((budget, body["max_tokens"]))
        if budget is not None and not self.closes:
            return Fault(status=400, body=f'{{"error": {{"message": "{NOT_CONFIGURED}"}}}}')
        if body["messages"][-1]["role"] == "assistant":
            return Fault(body=reply("<answer>7</answer>"))
        if budget is None:
            return Fault(body=reply("<think>on and on", "length"))
        text = reply("<think>on and on</think><answer>7</answer>")
        return Fault(body=text.replace('"completion_tokens": 5', f'"completion_tokens": {budget + 6}'))


@pytest.mark.parametrize(
    ("server", "calls", "plain"),
    [
        pytest.param(Thinking(True), 1, 0, id="closed_by_the_server"),
        pytest.param(Thinking(False), 2, 1, id="without_a_reasoning_parser"),
        pytest.param(Thinking(True, [{"id": "judge"}]), 2, 0, id="another_server"),
    ],
)
def test_cut_reasonings_are_closed_in_as_few_calls_as_can_be(
    server: Thinking, calls: int, plain: int, cache_file: Any
) -> None:
    with server, CachedEngine(ServerEngine(server.url), cache_file) as engine:
        judge = Judge(BudgetForcing(Pointwise(), 16), engine, Sampling(max_tokens=40))
        judge([Example("q", ["first"])])  # finds out
        seen = len(server.budgets)
        (verdict,) = judge([Example("q", ["second"])])
        assert (verdict.scores, verdict.counters["forced"]) == ((7.0,), 1)
        assert len(server.budgets) - seen == calls
        expected = (39, 40 + 16 + 8) if calls == 1 else (None, 40)
        assert server.budgets[seen] == expected
        assert engine.stats.stored == (0 if calls == 1 else 2)  # what was cut is not the reply to its request
