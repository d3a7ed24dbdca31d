"""The engine contract on the embedded judge in transformers; what a model that cannot judge gets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flexjudge_reward import Engine, EngineError, Generation, MissingExtra, TransformersEngine, VLLMEngine
from flexjudge_reward.nano import path
from support.engine_contract import ModelContract, closes_and_opens, item
from support.late import needs

needs("torch", "transformers")


@pytest.fixture(scope="module")
def nano_transformers() -> Iterator[TransformersEngine]:
    with TransformersEngine("nano", dtype="float32", device="cpu", batch_size=8) as engine:
        yield engine


class TestTransformers(ModelContract):
    @pytest.fixture
    def engine(self, nano_transformers: TransformersEngine) -> Engine:
        return nano_transformers


def test_closes_twice_and_opens_again() -> None:
    closes_and_opens(TransformersEngine("nano", device="cpu"))


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


@pytest.mark.parametrize(
    ("engine", "module", "extra"), [(VLLMEngine, "vllm", "vllm"), (TransformersEngine, "torch", "transformers")]
)
def test_a_missing_extra_names_the_command(
    engine: type[VLLMEngine | TransformersEngine], module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'flexjudge-reward\[{extra}\]'"):
        engine("nano").generate([item(1)])


@pytest.mark.parametrize("error", ["PanicException", "ValueError"])
def test_a_panic_of_the_tokenizer_fails_one_request(error: str) -> None:
    """In PyO3 it is a BaseException; one text with it must not end the run."""
    base = BaseException if error == "PanicException" else ValueError
    panic = type(error, (base,), {})

    def reply(batch: list[str], requests: Any) -> list[Generation]:
        if "bad" in batch:
            raise panic("index out of range")
        return [Generation("fine") for _ in batch]

    engine = TransformersEngine("nano")
    found = engine._run(
        SimpleNamespace(reply=reply), [0, 1, 2], {0: "a", 1: "bad", 2: "b"}, [item(n) for n in range(3)]
    )  # type: ignore[arg-type]
    assert {index: one.failure and one.failure.kind for index, one in found.items()} == {0: None, 1: "engine", 2: None}
    panic = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        engine._run(SimpleNamespace(reply=reply), [1], {1: "bad"}, [item(1)] * 2)  # type: ignore[arg-type]
