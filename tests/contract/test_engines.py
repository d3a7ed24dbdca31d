"""One contract for every engine; vLLM and its server are in tests/integration/test_vllm.py."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flexjudge_reward import (
    ConfigError,
    Engine,
    EngineError,
    Generation,
    MissingExtra,
    Request,
    ScriptedEngine,
    ServerEngine,
    TransformersEngine,
    Untrusted,
    VLLMEngine,
)
from flexjudge_reward.nano import path
from support.engine_contract import EngineContract, ModelContract, item, texts
from support.fault_server import FaultServer


def echo(request: Request) -> str:
    return "".join(part.text for part in request.prompt.messages[1].parts if isinstance(part, Untrusted))


@pytest.fixture(scope="module")
def loopback() -> Iterator[ServerEngine]:
    """A ServerEngine on a good server that answers each item with its name."""
    with FaultServer() as server, ServerEngine(server.url) as engine:
        yield engine


@pytest.fixture(scope="module")
def nano_transformers() -> Iterator[TransformersEngine]:
    with TransformersEngine("nano", dtype="float32", device="cpu", batch_size=8) as engine:
        yield engine


class TestScripted(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return ScriptedEngine(echo)


class TestServer(EngineContract):
    @pytest.fixture
    def engine(self, loopback: ServerEngine) -> Engine:
        return loopback


class TestTransformers(ModelContract):
    @pytest.fixture
    def engine(self, nano_transformers: TransformersEngine) -> Engine:
        return nano_transformers


@pytest.mark.parametrize("name", ["scripted", "server", "transformers"])
def test_closes_twice_and_opens_again(name: str, loopback: ServerEngine) -> None:
    engine: Engine = {
        "scripted": lambda: ScriptedEngine(echo),
        "server": lambda: pickle.loads(pickle.dumps(loopback)),
        "transformers": lambda: TransformersEngine("nano", device="cpu"),
    }[name]()
    engine.close()
    before = texts(engine.generate([item(1)]))
    engine.close()
    engine.close()
    assert texts(engine.generate([item(1)])) == before
    engine.close()


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


def no_weights(folder: Path) -> str:
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"")
    return str(folder)


def no_template(folder: Path) -> str:
    for file in path("judge").iterdir():
        if file.name != "chat_template.jinja":
            (folder / file.name).symlink_to(file)
    return str(folder)


@pytest.mark.parametrize("engine", [VLLMEngine, TransformersEngine])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param(lambda _: "nobody/nothing", "no model 'nobody/nothing'", id="unknown"),
        pytest.param(lambda _: "/no/such/folder", "no model '/no/such/folder'", id="no_folder"),
        pytest.param(no_weights, "no .safetensors", id="pickled_weights_only"),
        pytest.param(no_template, "no chat template", id="not_a_chat_model"),
    ],
)
def test_a_model_that_cannot_judge(
    engine: type[VLLMEngine | TransformersEngine], model: Callable[[Path], str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=message):
        engine(model(tmp_path)).generate([item(1)])


@pytest.mark.parametrize("revision", [None, "main", "abc123"])
def test_code_of_a_model_runs_only_pinned(revision: str | None) -> None:
    for engine in (VLLMEngine, TransformersEngine):
        with pytest.raises(ConfigError, match="40 hex digits"):
            engine("some/model", trust_remote_code=True, revision=revision)
        engine("some/model", trust_remote_code=True, revision="0123456789abcdef" * 2 + "01234567")


@pytest.mark.parametrize(
    ("engine", "module", "extra"), [(VLLMEngine, "vllm", "vllm"), (TransformersEngine, "torch", "transformers")]
)
def test_a_missing_extra_names_the_command(
    engine: type[VLLMEngine | TransformersEngine], module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'flexjudge-reward\[{extra}\]'"):
        engine("nano").generate([item(1)])


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
