"""One contract, four engines; and what a server can do to a batch."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.fault_server import FaultServer

from flexjudge_reward import (
    ConfigError,
    Engine,
    EngineError,
    Example,
    Generation,
    Judge,
    Media,
    Message,
    MissingExtra,
    Pair,
    Prompt,
    Quoted,
    Sampling,
    Score,
)
from flexjudge_reward.engines import ScriptedEngine, ServerEngine, TransformersEngine, VLLMEngine
from flexjudge_reward.formats.adaptive import Forced
from flexjudge_reward.formats.expected import Expected
from flexjudge_reward.nano import path, world

GREEDY, SHORT = Sampling(max_tokens=160), Sampling(max_tokens=12)
TOO_LONG = "What is top-left? " * 1500


def item(name: object, *parts: Quoted | Media, sample: int = 0) -> Prompt:
    return Prompt((Message("system", ("Judge.",)), Message("user", (Quoted(f"item {name} "), *parts))), sample)


def judged(seed: int, medium: str = "words", candidates: int = 1) -> Prompt:
    """A prompt of the embedded judge's world."""
    rng = random.Random(seed)
    asked = world.question(rng, world.scene(rng, held_out=True))
    shown: Any = {
        "words": asked.scene.told(rng) + "\n",
        "picture": Media.image(world.draw(asked.scene, rng)),
        "clip": Media.video(world.clip(asked.scene, rng)),
    }[medium]
    example = Example((shown, asked.text), world.candidates(rng, asked, candidates))
    return (Score if candidates == 1 else Pair)(prompts="nano").render(example)[0]


def texts(generations: list[Generation]) -> list[str]:
    assert [generation.failure for generation in generations] == [None] * len(generations)
    return [generation.text for generation in generations]


# ------------------------------------------------------------------------------------------- the contract, over all


@pytest.fixture(scope="session")
def nano_transformers() -> Iterator[TransformersEngine]:
    engine = TransformersEngine("nano", dtype="float32", device="cpu", batch_size=8)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def loopback() -> Iterator[ServerEngine]:
    """A ServerEngine on a good server that answers each item with its name."""
    with FaultServer() as server:
        engine = ServerEngine(server.url)
        yield engine
        engine.close()


def scripted() -> ScriptedEngine:
    return ScriptedEngine(echo)


def echo(prompt: Prompt) -> str | Generation:
    try:
        for media in prompt.media:
            media.load()
    except Exception as error:
        return Generation.failed("media", str(error))
    return "".join(part.text for part in prompt.messages[1].parts if isinstance(part, Quoted))


ENGINES = [
    pytest.param("scripted"),
    pytest.param("server"),
    pytest.param("transformers"),
    pytest.param("vllm", marks=pytest.mark.engine),
]
MODELS = ENGINES[2:]  # those that load a real model


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Engine:
    name = request.param
    if name == "scripted":
        return scripted()
    fixtures = {"server": "loopback", "transformers": "nano_transformers", "vllm": "nano_vllm"}
    found: Engine = request.getfixturevalue(fixtures[name])
    return found


over = pytest.mark.parametrize("engine", ENGINES, indirect=True)
over_models = pytest.mark.parametrize("engine", MODELS, indirect=True)


@over
def test_one_reply_per_prompt_in_order(engine: Engine) -> None:
    prompts = [item(n, Quoted("x" * (n * 37 % 50))) for n in range(9)]
    together = texts(engine.generate(prompts, SHORT))
    assert together == [texts(engine.generate([prompt], SHORT))[0] for prompt in prompts]
    assert engine.generate([], GREEDY) == []


@over
def test_bad_media_fails_alone(engine: Engine) -> None:
    picture = Media.image(world.draw(world.scene(random.Random(1)), random.Random(1)))
    generations = engine.generate([item(0, picture), item(1, Media.image(b"broken")), item(2)], GREEDY)
    assert [g.failure.kind if g.failure else None for g in generations] == [None, "media", None]
    assert generations[2] == engine.generate([item(2)], GREEDY)[0]


@over
def test_identity_is_json_and_stable(engine: Engine) -> None:
    identity = engine.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert pickle.loads(pickle.dumps(engine)).identity() == identity == engine.identity()
    assert identity["engine"] in ("scripted", "server", "transformers", "vllm")


@over
def test_threads_get_their_own_replies(engine: Engine) -> None:
    prompts = [[item(f"{thread}x{n}") for n in range(6)] for thread in range(4)]
    expected = [texts(engine.generate(batch, SHORT)) for batch in prompts]
    found: dict[int, list[str]] = {}

    def ask(thread: int) -> None:
        found[thread] = texts(engine.generate(prompts[thread], SHORT))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(4)] == expected


@over
def test_works_inside_a_running_event_loop(engine: Engine) -> None:
    async def inside() -> list[str]:
        return texts(engine.generate([item(1)], GREEDY))

    assert asyncio.run(inside()) == texts(engine.generate([item(1)], GREEDY))


@pytest.mark.parametrize("name", ["scripted", "server", "transformers"])
def test_closes_twice_and_opens_again(name: str, loopback: ServerEngine) -> None:
    engine: Engine = {
        "scripted": scripted,
        "server": lambda: pickle.loads(pickle.dumps(loopback)),
        "transformers": lambda: TransformersEngine("nano", device="cpu"),
    }[name]()
    engine.close()
    before = texts(engine.generate([item(1)], GREEDY))
    engine.close()
    engine.close()
    assert texts(engine.generate([item(1)], GREEDY)) == before
    engine.close()


@pytest.mark.parametrize("kind", [TransformersEngine, VLLMEngine])
def test_closing_does_not_wait_for_ever_for_a_judgement_that_hangs(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[kind.__module__], "_CLOSE_S", 0.1)
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
    asked: list[int] = []
    loads = SimpleNamespace(LLM=lambda *, max_model_len, **settings: asked.append(max_model_len))
    monkeypatch.setitem(sys.modules, "vllm", loads)
    for given in (None, 512):
        VLLMEngine("nano", max_model_len=given)._loaded()
    assert asked == [-1, 512]


@over_models
def test_the_embedded_judge_sees(engine: Engine) -> None:
    """Each medium gives a reply in the judge's form, and another picture another reply."""
    prompts = [judged(seed, medium) for seed in (1, 2, 3) for medium in ("words", "picture", "clip")]
    replies = texts(engine.generate(prompts, GREEDY))
    assert all(reply.startswith("<think>") and reply.endswith("</answer>") for reply in replies)
    assert len(set(replies[1::3])) == 3


@over_models
def test_a_prompt_that_is_too_long_fails_alone(engine: Engine) -> None:
    prompts = [judged(1), item(1, Quoted(TOO_LONG)), judged(2)]
    generations = engine.generate(prompts, GREEDY)
    assert generations[1].failure is not None and generations[1].failure.kind == "engine"
    assert generations[::2] == engine.generate(prompts[::2], GREEDY)


@over_models
def test_how_a_reply_ends(engine: Engine) -> None:
    whole, cut, stopped = (
        engine.generate([judged(4)], sampling)[0]
        for sampling in (GREEDY, Sampling(max_tokens=5), Sampling(max_tokens=160, stop=("</think>",)))
    )
    assert (whole.finish_reason, cut.finish_reason, stopped.finish_reason) == ("stop", "length", "stop")
    assert whole.text.startswith(cut.text) and cut.completion_tokens == 5
    assert whole.text.startswith(stopped.text) and "</think>" not in stopped.text
    assert whole.prompt_tokens == cut.prompt_tokens > 0 < whole.completion_tokens


@over_models
def test_samples_are_draws_of_their_own(engine: Engine) -> None:
    drawn = Sampling(temperature=1.5, top_p=0.95, max_tokens=40, seed=7)
    prompts = [item("a", sample=n) for n in range(8)]
    first = texts(engine.generate(prompts, drawn))
    assert len(set(first)) > 4
    assert texts(engine.generate(prompts[3:5], drawn)) == first[3:5]
    assert texts(engine.generate([item("a", sample=2)], Sampling(1.5, 0.95, 40, seed=8))) == [first[3]]


@over_models
def test_logprobs_come_with_each_token(engine: Engine) -> None:
    (generation,) = engine.generate([judged(5)], Sampling(max_tokens=160, logprobs=2))
    assert generation.logprobs is not None and len(generation.logprobs) == generation.completion_tokens
    assert all(len(token.top) == 2 and max(token.top.values()) == token.logprob for token in generation.logprobs)
    assert "".join(token.token for token in generation.logprobs).startswith(generation.text)


@pytest.mark.engine
def test_engines_agree(nano_vllm: VLLMEngine, nano_server: str, nano_transformers: TransformersEngine) -> None:
    """In-process vLLM, a real server and plain transformers say the same, in words, pictures and clips."""
    prompts = [judged(n, medium, 1 + n % 2) for n in range(4) for medium in ("words", "picture", "clip")]
    server = ServerEngine(nano_server)
    said = texts(server.generate(prompts, GREEDY))
    assert said == texts(nano_vllm.generate(prompts, GREEDY))
    plain = texts(nano_transformers.generate(prompts, GREEDY))
    assert [text for n, text in enumerate(said) if n % 3 != 2] == [text for n, text in enumerate(plain) if n % 3 != 2]
    # Clips go through another resizing there, so that a long trace may part at a tie (`benchmarks/agreement.py` counts
    # how often); what is seen in them is the same.
    assert [text.split(".")[0] for text in said[2::3]] == [text.split(".")[0] for text in plain[2::3]]
    # A limit beyond the model's context is lowered to it; a prompt beyond it fails alone.
    long = server.generate([prompts[0], item(1, Quoted(TOO_LONG))], Sampling(max_tokens=5000))
    assert long[0].text == said[0] and long[1].failure is not None and long[1].failure.kind == "engine"
    assert server.identity()["model"] == "nano"
    server.close()


@pytest.mark.engine
@pytest.mark.parametrize(
    ("form", "limit"),
    [
        pytest.param(lambda: Forced(Score(prompts="nano"), 16), 20, id="a_thought_is_closed"),
        pytest.param(lambda: Expected(Score(prompts="nano")), 160, id="scores_are_expected"),
        pytest.param(lambda: Forced(Expected(Score(prompts="nano")), 16), 20, id="both"),
    ],
)
def test_engines_agree_on_what_goes_on_from_a_thought(
    form: Callable[[], Forced | Expected],
    limit: int,
    nano_vllm: VLLMEngine,
    nano_server: str,
    nano_splitting_server: str,
    nano_transformers: TransformersEngine,
) -> None:
    servers = [ServerEngine(nano_server), ServerEngine(nano_splitting_server)]
    rng = random.Random(3)
    asked = [world.question(rng, world.scene(rng, held_out=True)) for _ in range(6)]
    pictures = [Media.image(world.draw(one.scene, rng)) for one in asked]
    examples = [Example([shown, one.text], [one.truth]) for one, shown in zip(asked, pictures, strict=True)]
    engines: list[Engine] = [nano_transformers, nano_vllm, *servers]
    found = [Judge(form(), engine, Sampling(max_tokens=limit))(examples) for engine in engines]
    for server in servers:
        server.close()
    kinds = [[verdict.failure and verdict.failure.kind for verdict in verdicts] for verdicts in found]
    # The judge may answer a word, and then does so behind all of them.
    assert all(others == kinds[0] for others in kinds) and kinds[0].count(None) > 3
    for verdicts in found[1:]:
        assert [v.scores for v in verdicts] == [v.scores and pytest.approx(v.scores, abs=0.05) for v in found[0]]
    forced = [sum(verdict.notes.get("forced", 0) for verdict in verdicts) for verdicts in found]
    assert forced == [6 if limit < 160 else 0] * len(engines)


# ------------------------------------------------------------------------------------------------ the test double


def test_a_script_is_used_up_in_order_and_says_when_it_ends() -> None:
    cut = Generation("<think>", "length")
    engine = ScriptedEngine(["a", cut])
    assert engine.generate([item(1), item(2)], GREEDY) == [Generation("a"), cut]
    assert engine.prompts == [item(1), item(2)]
    with pytest.raises(EngineError, match="has 2 replies and prompt number 3"):
        engine.generate([item(3)], GREEDY)
    with pytest.raises(EngineError, match="one text"):
        ScriptedEngine("a")
    assert ScriptedEngine(["a"]).identity() != ScriptedEngine(["b"]).identity()


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
        engine(model(tmp_path)).generate([item(1)], GREEDY)


@pytest.mark.parametrize("revision", [None, "main", "abc123"])
def test_code_of_a_model_runs_only_pinned(revision: str | None) -> None:
    for engine in (VLLMEngine, TransformersEngine):
        with pytest.raises(ConfigError, match="40 hex digits"):
            engine("some/model", trust_remote_code=True, revision=revision)
        engine("some/model", trust_remote_code=True, revision="0123456789abcdef" * 2 + "01234567")


@pytest.mark.parametrize(
    ("engine", "module", "extra"), [(VLLMEngine, "vllm", "vllm"), (TransformersEngine, "torch", "transformers")]
)
def test_a_missing_extra_says_what_to_install(
    engine: type[VLLMEngine | TransformersEngine], module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'flexjudge-reward\[{extra}\]'"):
        engine("nano").generate([item(1)], GREEDY)


def test_other_weights_have_another_identity(tmp_path: Path) -> None:
    for file in path("judge").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    same = TransformersEngine(str(tmp_path)).identity()["weights"]
    assert same == TransformersEngine("nano").identity()["weights"]
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert TransformersEngine(str(tmp_path)).identity()["weights"] != same


def test_pictures_need_no_torchvision() -> None:
    code = """
import sys
sys.modules["torchvision"] = None
from test_engines import GREEDY, TransformersEngine, judged
words, picture, clip = TransformersEngine("nano").generate([judged(1, m) for m in ("words", "picture", "clip")], GREEDY)
assert words.failure is None and picture.text.endswith("</answer>"), (words, picture)
assert clip.failure.kind == "engine" and "torchvision" in clip.failure.detail, clip
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def test_a_forked_child_has_connections_of_its_own(loopback: ServerEngine) -> None:
    expected = texts(loopback.generate([item(1), item(2)], GREEDY))
    child = os.fork()
    if child == 0:
        os._exit(0 if texts(loopback.generate([item(1), item(2)], GREEDY)) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert texts(loopback.generate([item(1), item(2)], GREEDY)) == expected
