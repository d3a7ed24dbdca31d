"""Replicas behind one address that serve different models are noticed, and named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flexjudge_reward import EngineError, Message, Prompt, Request, ServerEngine
from flexjudge_reward.engines.replicas import Replicas
from support.fault_server import Fault, FaultServer, reply

A, B = ({"id": name, "root": f"/weights/{name}", "owned_by": "vllm"} for name in ("one", "two"))
REQUESTS = [Request(Prompt((Message("user", (f"item {n} ",)),))) for n in range(8)]


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        pytest.param([[A], [A], [A]], "", id="equal"),
        pytest.param([[A, B], [B, A]], "", id="another_order"),
        pytest.param([[A], [B]], "one has one (/weights/one) and another two (/weights/two)", id="other_models"),
        pytest.param([[A], [{**A, "root": "/old"}]], "one has one (/old) and another one (/weights/one)", id="weights"),
        pytest.param([[A, B], [A]], "one has one (/weights/one) and another one (/weights/one), two", id="an_adapter"),
        pytest.param([[{"id": "a"}], [{"id": "a"}, {"id": "b"}]], "", id="a_vendor"),
    ],
)
def test_lists(lists: list[list[dict[str, Any]]], said: str) -> None:
    problem = Replicas("http://judge").listed(lists)
    assert said in problem and bool(said) == bool(problem)


class TwoModels(FaultServer):
    """Every other list, or every other reply, is that of another replica."""

    asked = 0

    async def _models(self, request: Any) -> Any:
        self.asked += 1
        if isinstance(self.other, list) and self.asked % 2:
            self.models, self.other = self.other, self.models  # type: ignore[assignment]
        return await super()._models(request)

    def __init__(self, other: Any) -> None:
        super().__init__(models=[A])
        self.other = other

    def respond(self, name: str, body: dict[str, Any]) -> Fault | None:
        if not isinstance(self.other, Fault) or name not in ("item 5", "item 6"):
            message = json.loads(reply(f"<think>{name}</think><answer>7</answer>"))
            return Fault(body=json.dumps({**message, "model": "one"}))
        return self.other


@pytest.mark.parametrize(
    ("other", "said"),
    [
        pytest.param([B], "one has one", id="lists"),
        pytest.param(Fault(body=json.dumps({**json.loads(reply("x")), "model": "two"})), "one and two", id="replies"),
        pytest.param(
            Fault(status=404, body='{"error": {"message": "The model `one` does not exist."}}'),
            "one that serves one has replied, and another says: The model `one` does not exist.",
            id="refusals",
        ),
    ],
)
def test_a_batch_of_two_judges_is_an_error(other: Any, said: str) -> None:
    with (
        TwoModels(other) as server,
        ServerEngine(server.url, "one", concurrency=2) as engine,
        pytest.raises(EngineError, match="serve different models") as found,
    ):
        engine.generate(REQUESTS)
    assert said in str(found.value)


def test_one_judge_is_not_suspected() -> None:
    with TwoModels(None) as server, ServerEngine(server.url) as engine:
        assert all(one.failure is None for one in engine.generate(REQUESTS))
