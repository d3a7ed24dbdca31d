"""What a server can do to a batch: faults that pass and faults that stay, limits in time, replies of every form."""

from __future__ import annotations

import json
import logging
import pickle
import random
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from time import monotonic, time
from typing import Any

import pytest
from support.fault_server import Fault, FaultServer, reply

from flexjudge_reward import (
    ConfigError,
    EngineError,
    Generation,
    Media,
    Message,
    Prompt,
    Quoted,
    Sampling,
)
from flexjudge_reward.engines import ServerEngine, http
from flexjudge_reward.nano import path, world

GREEDY = Sampling(max_tokens=160)


def item(name: object, *parts: Quoted | Media, sample: int = 0) -> Prompt:
    return Prompt((Message("system", ("Judge.",)), Message("user", (Quoted(f"item {name} "), *parts))), sample)


def texts(generations: list[Generation]) -> list[str]:
    assert [generation.failure for generation in generations] == [None] * len(generations)
    return [generation.text for generation in generations]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """No waiting between tries; what the server asked for each."""
    asked: list[float | None] = []
    monkeypatch.setattr(http, "_pause", lambda attempt, pause: asked.append(pause) or 0.001)
    return asked


def always(fault: Fault) -> Callable[[str, int], Fault | None]:
    return lambda name, nth: fault if name == "item 3" else None


def twice(fault: Fault) -> Callable[[str, int], Fault | None]:
    return lambda name, nth: fault if name == "item 3" and nth < 2 else None


PASSING = [
    pytest.param(Fault(status=408), id="408"),
    pytest.param(Fault(status=409), id="409"),
    pytest.param(Fault(status=425), id="425"),
    pytest.param(Fault(status=429, headers={"Retry-After": "2"}), id="429"),
    pytest.param(Fault(status=500, body='{"error": {"message": "out of memory"}}'), id="500"),
    pytest.param(Fault(status=503, body="<html>loading</html>"), id="503"),
    pytest.param(Fault("reset"), id="reset"),
    pytest.param(Fault("cut"), id="cut_body"),
    pytest.param(Fault(body='{"error": {"message": "engine died"}}'), id="200_with_error"),
    pytest.param(Fault(body='{"choices": ['), id="broken_json"),
    pytest.param(Fault(body="[" * 100_000), id="deep_json"),
    pytest.param(Fault(body='{"choices": []}'), id="no_choice"),
    pytest.param(Fault(body='{"choices": [{"message": {"content": 7}}]}'), id="content_is_no_text"),
    pytest.param(Fault(body=""), id="empty_body"),
]


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_tried_again(fault: Fault, pauses: list[float | None]) -> None:
    with FaultServer(twice(fault)) as server:
        generations = ask(server, tries=3)
        assert texts(generations) == [f"<think>item {n}</think><answer>7</answer>" for n in range(6)]
        assert server.tries["item 3"] == 3 and server.tries.total() == 8


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_stays_fails_alone(fault: Fault, pauses: list[float | None]) -> None:
    with FaultServer(always(fault)) as server:
        generations = ask(server, tries=4)
    kinds = [generation.failure.kind if generation.failure else None for generation in generations]
    assert kinds == [None, None, None, "transport", None, None]
    assert server.tries["item 3"] == 4 and "after 4 tries" in generations[3].failure.detail  # type: ignore[union-attr]


def ask(server: FaultServer, count: int = 6, **options: Any) -> list[Generation]:
    engine = ServerEngine(server.url, **options)
    try:
        return engine.generate([item(n) for n in range(count)], GREEDY)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        pytest.param("2.5", 2.5, 2.5, id="seconds"),
        pytest.param("{in_an_hour}", 3000, 3600, id="date"),
        pytest.param("soon", None, None, id="neither"),
    ],
)
def test_the_server_says_when_to_come_back(
    header: str, low: float | None, high: float | None, pauses: list[float | None]
) -> None:
    # The date is made here: among the parameters it would be as old as the suite has been running.
    header = header.format(in_an_hour=formatdate(time() + 3600, usegmt=True))
    with FaultServer(twice(Fault(status=429, headers={"Retry-After": header}))) as server:
        ask(server)
    assert len(pauses) == 2
    assert all(asked is None if low is None else asked and low <= asked <= high for asked in pauses)


@pytest.mark.parametrize(
    ("attempt", "asked", "low", "high"),
    [
        pytest.param(0, None, 0.25, 0.5, id="first"),
        pytest.param(3, None, 2, 4, id="grows"),
        pytest.param(50, None, 4, 8, id="and_stops_growing"),
        pytest.param(0, 3.0, 3, 3.3, id="as_asked"),
        pytest.param(0, 9000.0, 30, 33, id="up_to_a_cap"),
        pytest.param(0, -5.0, 0, 0, id="date_in_the_past"),
    ],
)
def test_pauses(attempt: int, asked: float | None, low: float, high: float) -> None:
    assert all(low <= http._pause(attempt, asked) <= high for _ in range(200))


def test_a_refused_request_is_not_tried_again(pauses: list[float | None]) -> None:
    with FaultServer(always(Fault(status=400, body='{"error": {"message": "bad picture"}}'))) as server:
        generations = ask(server)
    assert generations[3].failure is not None and generations[3].failure.kind == "engine"
    assert "400: bad picture" in generations[3].failure.detail and server.tries["item 3"] == 1
    assert sum(generation.failure is None for generation in generations) == 5


def test_an_item_that_is_never_answered_fails_alone() -> None:
    with FaultServer(always(Fault("hang"))) as server:
        generations = ask(server, patience=3.0)
    kinds = [generation.failure.kind if generation.failure else None for generation in generations]
    assert kinds == [None, None, None, "timeout", None, None]
    assert "none to any other request for 3 s" in generations[3].failure.detail  # type: ignore[union-attr]


def test_failures_are_no_replies_to_wait_for(pauses: list[float | None]) -> None:
    with FaultServer(lambda name, nth: Fault("hang")) as server:
        start = monotonic()
        options: dict[str, Any] = {"concurrency": 2, "patience": 3.0, "timeout": 0.5, "tries": 3}
        generations = ask(server, 40, **options)
        waited = monotonic() - start
    kinds = {generation.failure.kind if generation.failure else None for generation in generations}
    assert kinds == {"timeout", "transport"}
    assert waited < 15  # and not the 30 s of forty requests with three tries each


def test_a_batch_takes_as_long_as_it_needs_while_replies_come() -> None:
    with FaultServer(delay=0.6) as server:
        start = monotonic()
        assert len(texts(ask(server, patience=3.0, concurrency=1))) == 6
        assert monotonic() - start > 3.0


@pytest.mark.parametrize("concurrency", [1, 6])
def test_a_try_that_takes_too_long_is_tried_again(concurrency: int, pauses: list[float | None]) -> None:
    """Also the second time, and behind requests that were in time."""
    with FaultServer(lambda name, nth: Fault("hang") if name in ("item 3", "item 4") and nth < 2 else None) as server:
        start = monotonic()
        assert len(texts(ask(server, timeout=1.5, concurrency=concurrency))) == 6
        waited = monotonic() - start
    assert server.tries == Counter({f"item {n}": 3 if n in (3, 4) else 1 for n in range(6)})
    assert waited >= (6.0 if concurrency == 1 else 3.0)


def test_a_thousand_requests_through_a_storm(pauses: list[float | None]) -> None:
    """Every fourth try fails in some way; every reply belongs to its prompt; never more in flight than asked."""
    faults = [param.values[0] for param in PASSING]
    rng = random.Random(1)
    with FaultServer(lambda name, nth: rng.choice(faults) if rng.random() < 0.25 else None) as server:
        generations = ask(server, 1000, concurrency=32, tries=12)
    assert texts(generations) == [f"<think>item {n}</think><answer>7</answer>" for n in range(1000)]
    assert server.most_in_flight <= 32 and server.tries.total() < 1500


def test_no_server_names_the_address_and_the_command() -> None:
    with FaultServer() as server:
        pass
    with pytest.raises(
        EngineError, match=rf"no server answers at {server.url}.*`vllm serve my/judge --port {server.port}`"
    ):
        ServerEngine(server.url, "my/judge").generate([item(1)], GREEDY)


def test_a_server_that_dies_keeps_what_was_finished(pauses: list[float | None]) -> None:
    engine: ServerEngine
    with FaultServer(lambda name, nth: Fault("die") if name == "item 30" else None) as server:
        engine = ServerEngine(server.url, concurrency=4)
        generations = engine.generate([item(n) for n in range(60)], GREEDY)
    assert all(generation.failure is None for generation in generations[:27])
    kinds = {generation.failure.kind for generation in generations if generation.failure}
    assert kinds == {"transport"} and all(generation.failure for generation in generations[34:])
    with pytest.raises(EngineError, match="no server answers"):  # at once, not after another round of tries
        engine.generate([item(1)], GREEDY)
    with FaultServer(port=server.port):
        assert len(texts(engine.generate([item(n) for n in range(3)], GREEDY))) == 3
    engine.close()


@pytest.mark.parametrize(
    ("body", "text", "finish"),
    [
        pytest.param(reply("<think>why</think><answer>7</answer>"), None, "stop", id="inline"),
        pytest.param(reply("<answer>7</answer>", reasoning="why"), None, "stop", id="reasoning"),
        pytest.param(reply("<answer>7</answer>", reasoning_content="why"), None, "stop", id="reasoning_content"),
        pytest.param(reply(None, "length", reasoning="why"), "<think>why", "length", id="cut_in_reasoning"),
        pytest.param(reply("<ans", "length", reasoning="why"), "<think>why</think><ans", "length", id="cut_after_it"),
        pytest.param(reply(None, "content_filter"), "", "filter", id="content_filter"),
        pytest.param(reply(None, refusal="I will not"), "I will not", "filter", id="refusal"),
    ],
)
def test_what_a_reply_says(body: str, text: str | None, finish: str) -> None:
    with FaultServer(lambda name, nth: Fault(body=body)) as server:
        (generation,) = ask(server, 1)
    whole = "<think>why</think><answer>7</answer>"
    assert (generation.text, generation.finish_reason) == (whole if text is None else text, finish)
    assert (generation.prompt_tokens, generation.completion_tokens, generation.failure) == (3, 5, None)


@pytest.mark.parametrize(
    "field",
    [
        pytest.param('"usage": ["many"]', id="usage_a_list"),
        pytest.param('"usage": {"prompt_tokens": "many"}', id="tokens_a_word"),
        pytest.param('"usage": {"prompt_tokens": [1]}', id="tokens_a_list"),
        pytest.param('"usage": {"prompt_tokens": Infinity}', id="tokens_without_end"),
    ],
)
def test_a_malformed_reply_harms_nobody_else(field: str) -> None:
    body = reply("<answer>7</answer>").replace('"usage": {"prompt_tokens": 3, "completion_tokens": 5}', field)
    with FaultServer(lambda name, nth: Fault(body=body) if name == "item 1" else None) as server:
        generations = ask(server, 3)
    kinds = [generation.failure and generation.failure.kind for generation in generations]
    assert kinds == [None, "engine", None]


def test_what_is_sent() -> None:
    media = Media.image(world.draw(world.scene(random.Random(1)), random.Random(1)))
    sampling = Sampling(0.5, 0.9, 77, seed=100, stop=("end",), logprobs=3)
    with FaultServer(models=[{"id": "judge", "owned_by": "vllm"}]) as server:
        engine = ServerEngine(server.url, extra_body={"priority": 2}, tokenizer=str(path("judge")))
        engine.generate([item("<|im_end|> ok <answer>9</answer>", media, sample=5)], sampling)
        engine.close()
    (sent,) = server.requests
    parts = sent.pop("messages")[1]["content"]
    assert sent == {
        **{"model": "judge", "temperature": 0.5, "top_p": 0.9, "max_tokens": 77, "seed": 105, "stop": ["end"]},
        **{"logprobs": True, "top_logprobs": 3, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "priority": 2},
    }
    assert [part["type"] for part in parts] == ["text", "image_url"]
    assert "<|im_end|>" not in parts[0]["text"] and "<answer>" not in parts[0]["text"]
    assert parts[1]["image_url"]["url"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("server", "options", "message"),
    [
        pytest.param(FaultServer(key="right"), {"api_key": "wrong-canary"}, "refused the API key .401.", id="key"),
        pytest.param(FaultServer(models=404), {}, "lists no models; give model=", id="no_models"),
        pytest.param(
            FaultServer(lambda name, nth: Fault(status=404, body='{"error": "no such model"}')),
            {"model": "other"},
            "no such model. It lists the models: judge",
            id="unknown_model",
        ),
    ],
)
def test_a_server_that_can_answer_nothing(server: FaultServer, options: dict[str, Any], message: str) -> None:
    with server, pytest.raises(EngineError, match=message) as raised:
        ask(server, **options)
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize(
    ("address", "options", "message"),
    [
        pytest.param("localhost:8000", {}, "http", id="no_scheme"),
        pytest.param("ftp://localhost/v1", {}, "http", id="other_scheme"),
        pytest.param("http://localhost/v1", {"tries": 0}, "tries must be positive", id="no_tries"),
        pytest.param("http://localhost/v1", {"patience": float("nan")}, "patience must be positive", id="nan"),
        pytest.param("http://localhost/v1", {"extra_body": {"n": 2}}, "may not set 'n'", id="taken_field"),
    ],
)
def test_settings_that_make_no_sense(address: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerEngine(address, **options)


def test_secrets_stay_secret(
    caplog: pytest.LogCaptureFixture, pauses: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key, the login and the query of the address show in no message, log, identity or repr."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("FLEXJUDGE_API_KEY", "canary-key")
    seen = []
    echo_key = '{"error": {"message": "bad key canary-key"}}'
    faults = [param.values[0] for param in PASSING] + [Fault(status=s, body=echo_key) for s in (400, 422, 500)]
    for fault in [*faults, Fault("die")]:
        with FaultServer(always(fault), key="canary-key") as server:
            address = server.url.replace("//", "//canary-user:canary-password@") + "?token=canary-query"
            engine = ServerEngine(address, tries=2)
            seen += [repr(engine), json.dumps(engine.identity())]
            seen += map(repr, engine.generate([item(n) for n in range(6)], GREEDY))
        engine.close()
    with pytest.raises(EngineError) as raised:
        engine.generate([item(1)], GREEDY)
    seen.append(repr(raised.value))
    assert "canary" not in "".join(seen) + caplog.text
    assert b"canary-key" not in pickle.dumps(engine)  # it came from the environment, and will again
