"""The engine contract on a real in-process vLLM; equal verdicts from vLLM, a real vLLM server and transformers."""

from __future__ import annotations

import functools
import gc
import importlib
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator

from flexjudge_recipes.nano import shapes

import pytest

from flexjudge_reward import (
    BudgetForcing,
    Engine,
    EngineError,
    Example,
    ExpectedScore,
    Judge,
    Media,
    Message,
    Pointwise,
    Prompt,
    Request,
    Sampling,
    ServerEngine,
    TransformersEngine,
    Untrusted,
    VLLMEngine,
)
from flexjudge_reward.engines.colocated import ColocatedEngine
from flexjudge_reward.engines.memory import gpu_memory
from flexjudge_reward.engines.vllm import _watched
from support import cpu_vllm, real
from support.engine_contract import TOO_LONG, ModelContract, item, judgement, texts
from support.late import needs

needs("torch", "vllm")


@pytest.fixture(scope="module")
def nano_vllm() -> Iterator[VLLMEngine]:
    """The embedded judge on a real in-process vLLM; at the end its process must be gone."""
    engine = VLLMEngine("nano", dtype="float32", enforce_eager=True)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # vLLM and what it imports use deprecated parts of torch
        patch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)  # in GiB, and it would count
        patch.setattr("vllm.LLM", functools.partial(importlib.import_module("vllm").LLM, **cpu_vllm.LIGHT))
        engine.generate([Request(Prompt((Message("user", ("What is top-left?",)),)), Sampling(max_tokens=4))])
    assert len(real.engine_processes()) == 1
    yield engine
    engine.close()
    engine.close()
    assert real.engine_processes(patience=10) == []  # a killed one takes a moment to go


@pytest.fixture(scope="module")
def nano_colocated() -> Iterator[ColocatedEngine]:
    """The embedded judge on a vLLM server that can sleep, as beside a policy; at the end its process must be gone."""
    options = ("--dtype", "float32", "--enforce-eager", "--served-model-name", "nano")
    engine = ColocatedEngine("nano", server=(sys.executable, "-W", "ignore", cpu_vllm.__file__), options=options)
    engine.generate([judgement(0, "words", 1)])
    assert engine._process is not None
    keeper = engine._process._process
    yield engine
    engine.close()
    assert keeper.poll() is not None


@pytest.fixture
def nano_server(nano_colocated: ColocatedEngine) -> Iterator[str]:
    """The address of a real vLLM server that has the embedded judge as "nano"."""
    assert nano_colocated._process is not None
    yield nano_colocated._process.base_url


@pytest.fixture(scope="module")
def nano_transformers() -> Iterator[TransformersEngine]:
    with TransformersEngine("nano", dtype="float32", device="cpu", batch_size=8) as engine:
        yield engine


class TestVLLM(ModelContract):
    @pytest.fixture
    def engine(self, nano_vllm: VLLMEngine) -> Engine:
        return nano_vllm


def test_engines_agree(nano_vllm: VLLMEngine, nano_server: str, nano_transformers: TransformersEngine) -> None:
    """In words, images and videos."""
    requests = [judgement(n, medium, 1 + n % 2) for n in range(4) for medium in ("words", "image", "video")]
    with ServerEngine(nano_server) as server:
        served = texts(server.generate(requests))
        # A limit beyond the model's context is lowered to it; a prompt beyond it fails alone.
        large = [request.changed(max_tokens=5000) for request in (requests[0], item(1, Untrusted(TOO_LONG)))]
        whole, too_long = server.generate(large)
        assert server.identity()["model"] == "nano"
    assert whole.text == served[0] and too_long.failure is not None and too_long.failure.kind == "refused"
    assert served == texts(nano_vllm.generate(requests))
    plain = texts(nano_transformers.generate(requests))
    assert [text for n, text in enumerate(served) if n % 3 != 2] == [text for n, text in enumerate(plain) if n % 3 != 2]
    # Videos go through another resizing there, so that a long trace may part at a tie (`benchmarks/agreement.py` counts
    # how often); their transcription is the same.
    assert [text.split(".")[0] for text in served[2::3]] == [text.split(".")[0] for text in plain[2::3]]


@pytest.mark.parametrize(
    ("format", "limit"),
    [
        pytest.param(lambda: BudgetForcing(Pointwise(prompt_set="nano"), 16), 20, id="cut_reasoning_is_closed"),
        pytest.param(lambda: ExpectedScore(Pointwise(prompt_set="nano")), 160, id="expected_scores"),
        pytest.param(lambda: BudgetForcing(ExpectedScore(Pointwise(prompt_set="nano")), 16), 20, id="both"),
    ],
)
def test_engines_agree_on_continued_replies(
    format: Callable[[], BudgetForcing | ExpectedScore],
    limit: int,
    nano_vllm: VLLMEngine,
    nano_server: str,
    nano_transformers: TransformersEngine,
) -> None:
    rng = random.Random(3)
    questions = [shapes.question(rng, shapes.scene(rng, held_out=True)) for _ in range(6)]
    images = [Media.image(shapes.draw(question.scene, rng)) for question in questions]
    examples = [Example([image, q.text], [q.truth]) for q, image in zip(questions, images, strict=True)]
    with ServerEngine(nano_server) as server:
        engines: list[Engine] = [nano_transformers, nano_vllm, server]
        judged = [Judge(format(), engine, Sampling(max_tokens=limit))(examples) for engine in engines]
    kinds = [[verdict.failure and verdict.failure.kind for verdict in verdicts] for verdicts in judged]
    # The judge may answer with a word, and then does so on every engine.
    assert all(others == kinds[0] for others in kinds) and kinds[0].count(None) > 3
    for verdicts in judged[1:]:
        assert [v.scores for v in verdicts] == [v.scores and pytest.approx(v.scores, abs=0.05) for v in judged[0]]
    forced = [sum(verdict.counters.get("forced", 0) for verdict in verdicts) for verdicts in judged]
    assert forced == [6 if limit < 160 else 0] * len(engines)


def test_a_real_server_sleeps_wakes_and_passes_its_canary(nano_colocated: ColocatedEngine) -> None:
    """What a CPU has of it: the server, its sleep calls, the canary over them. The memory stays where it is."""
    requests = [judgement(n, medium, 1) for n in range(2) for medium in ("words", "image")]
    process = nano_colocated._process
    assert process is not None
    with nano_colocated.window():
        before = texts(nano_colocated.generate(requests))
    for _ in range(2):
        assert process.is_sleeping()
        with nano_colocated.window():
            assert texts(nano_colocated.generate(requests)) == before
            assert not process.is_sleeping() and nano_colocated._process is process
    process.wake(20)
    process.forget()
    nano_colocated._asleep = nano_colocated._shut = False


@pytest.mark.gpu
def test_what_a_sleeping_judge_took_is_free_again() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs an accelerator")
    with ColocatedEngine("nano", gpu_memory_utilization=0.2, options=("--enforce-eager",)) as engine:
        before, total = gpu_memory()
        for n in range(2):
            with engine.window():
                texts(engine.generate([judgement(n, "image", 1)]))
                assert before - gpu_memory()[0] > 0.1 * total
            assert before - gpu_memory()[0] < 0.05 * total


def test_an_engine_that_is_killed_while_it_works_is_an_error(nano_vllm: VLLMEngine) -> None:
    """As the kernel kills for memory. Last here, because the next call would have to start it again."""
    from vllm.v1.engine.exceptions import EngineDeadError

    texts(nano_vllm.generate([item(0)]))
    (process,) = real.engine_processes()
    llm = nano_vllm._llm
    assert llm is not None
    socket = llm.llm_engine.engine_core.input_socket

    def kill() -> None:
        os.kill(int(process.split()[0]), signal.SIGKILL)

    timer = threading.Timer(0.3, kill)
    timer.start()
    start = time.monotonic()
    with pytest.raises(EngineError, match="died"):  # within the adding, which takes some seconds
        nano_vllm.generate([item(n, sampling=Sampling(max_tokens=200, temperature=1.0)) for n in range(2000)])
    timer.join()
    for thread in threading.enumerate():
        if thread.name == "MPClientEngineMonitor":  # vLLM's cleanup; it must not close what another thread sends on
            thread.join(30)
    assert not socket.closed
    with pytest.raises(EngineDeadError), _watched(llm):  # as if it was killed after the adding
        llm.wait_for_completion(use_tqdm=False)
    assert time.monotonic() - start < 60
    del llm
    gc.collect()
    assert socket.closed
