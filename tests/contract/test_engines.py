"""One contract for every engine; real models have it in tests/integration (test_transformers.py, test_vllm.py)."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flexjudge_reward import (
    ConfigError,
    Engine,
    EngineError,
    Generation,
    Request,
    ScriptedEngine,
    ServerEngine,
    TransformersEngine,
    Untrusted,
    VLLMEngine,
)
from flexjudge_reward.nano import path
from support.engine_contract import EngineContract, closes_and_opens, item, texts
from support.fault_server import FaultServer


def echo(request: Request) -> str:
    return "".join(part.text for part in request.prompt.messages[1].parts if isinstance(part, Untrusted))


@pytest.fixture(scope="module")
def loopback() -> Iterator[ServerEngine]:
    """A ServerEngine on a good server that answers each item with its name."""
    with FaultServer() as server, ServerEngine(server.url) as engine:
        yield engine


class TestScripted(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return ScriptedEngine(echo)


class TestServer(EngineContract):
    @pytest.fixture
    def engine(self, loopback: ServerEngine) -> Engine:
        return loopback


@pytest.mark.parametrize("name", ["scripted", "server"])
def test_closes_twice_and_opens_again(name: str, loopback: ServerEngine) -> None:
    closes_and_opens(ScriptedEngine(echo) if name == "scripted" else pickle.loads(pickle.dumps(loopback)))


@pytest.mark.parametrize("kind", [TransformersEngine, VLLMEngine])
def test_closing_does_not_wait_forever_for_a_judgement_that_hangs(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexjudge_reward.engines.local._CLOSE_S", 0.1)
    engine, held, over = kind("nano"), threading.Event(), threading.Event()

    def hang() -> None:
        with engine._lock:
            held.set()
            over.wait(60)

    thread = threading.Thread(target=hang)
    thread.start()
    held.wait(60)
    engine.close()
    assert thread.is_alive()
    over.set()
    thread.join()
    engine.close()
    assert not engine._lock.locked()


def test_vllm_takes_the_longest_context_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts: list[int] = []
    fake = SimpleNamespace(LLM=lambda *, max_model_len, **settings: contexts.append(max_model_len))
    monkeypatch.setitem(sys.modules, "vllm", fake)
    for given in (None, 512):
        VLLMEngine("nano", max_model_len=given)._start()
    assert contexts == [-1, 512]


# ------------------------------------------------------------------------------------------------ the test double


def test_a_script_is_used_up_in_order_and_its_end_is_an_error() -> None:
    cut = Generation("<think>", "length")
    engine = ScriptedEngine(["a", cut])
    assert engine.generate([item(1), item(2)]) == [Generation("a"), cut]
    assert engine.requests == [item(1), item(2)] and engine.prompts == [item(1).prompt, item(2).prompt]
    with pytest.raises(EngineError, match="has 2 replies and this is request number 3"):
        engine.generate([item(3)])
    with pytest.raises(EngineError, match="one text"):
        ScriptedEngine("a")
    assert ScriptedEngine(["a"]).identity() != ScriptedEngine(["b"]).identity()


def test_an_engine_that_loses_a_reply_is_an_error() -> None:
    class Short(Engine):
        def complete(self, requests: Any) -> list[Generation]:
            return [Generation("a")] * (len(requests) - 1)

    with pytest.raises(ConfigError, match="1 replies for 2 requests"):
        Short().generate([item(1), item(2)])


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("revision", [None, "main", "abc123"])
def test_code_of_a_model_runs_only_pinned(revision: str | None) -> None:
    for engine in (VLLMEngine, TransformersEngine):
        with pytest.raises(ConfigError, match="40 hex digits"):
            engine("some/model", trust_remote_code=True, revision=revision)
        engine("some/model", trust_remote_code=True, revision="0123456789abcdef" * 2 + "01234567")


def test_other_weights_have_another_identity(tmp_path: Path) -> None:
    for file in path("judge").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    same = TransformersEngine(str(tmp_path)).identity()["weights"]
    assert same == TransformersEngine("nano").identity()["weights"]
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert TransformersEngine(str(tmp_path)).identity()["weights"] != same


def test_a_forked_child_has_connections_of_its_own(loopback: ServerEngine) -> None:
    requests = [item(1), item(2)]
    expected = texts(loopback.generate(requests))
    child = os.fork()
    if child == 0:
        os._exit(0 if texts(loopback.generate(requests)) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert texts(loopback.generate(requests)) == expected
