"""ServerEngine: faults that pass and faults that stay, time limits, requests as sent, replies of every form."""

from __future__ import annotations

import json
import logging
import pickle
import random
import threading
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Mapping
from email.utils import formatdate
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from flexjudge_reward import (
    BudgetForcing,
    CachedEngine,
    ConfigError,
    EngineError,
    Example,
    ExpectedScore,
    Format,
    Generation,
    Judge,
    Loaded,
    Media,
    Message,
    Modality,
    Pointwise,
    Prompt,
    Request,
    Sampling,
    ServerEngine,
    Untrusted,
)
from flexjudge_reward.engines import http, model, throttle
from flexjudge_reward.engines.room import Room
from flexjudge_reward.errors import MediaError
from flexjudge_reward.judge.groups import judge_groups
from flexjudge_reward.judge.rewards import rewards
from flexjudge_reward.media.base import KINDS
from support import sounds
from support.fault_server import Fault, FaultServer, reply


def item(name: object, *parts: Untrusted | Media, sampling: Sampling = Sampling()) -> Request:
    messages = (Message("system", ("Judge.",)), Message("user", (Untrusted(f"item {name} "), *parts)))
    return Request(Prompt(messages), sampling)


def generate(server: FaultServer, count: int = 6, **options: Any) -> list[Generation]:
    with ServerEngine(server.url, **options) as engine:
        return engine.generate([item(n) for n in range(count)])


def texts(generations: list[Generation]) -> list[str]:
    assert [generation.failure for generation in generations] == [None] * len(generations)
    return [generation.text for generation in generations]


def expected(count: int) -> list[str]:
    return [f"<think>item {n}</think><answer>7</answer>" for n in range(count)]


def kinds(generations: list[Generation]) -> list[str | None]:
    return [generation.failure.kind if generation.failure else None for generation in generations]


def detail(generation: Generation) -> str:
    assert generation.failure is not None
    return generation.failure.detail


def at_item_3(fault: Fault) -> Callable[[str, int], Fault | None]:
    return lambda name, nth: fault if name == "item 3" else None


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """No waiting between attempts; what the server demanded for each."""
    demanded: list[float | None] = []
    for module in (http, throttle):
        monkeypatch.setattr(module, "_pause", lambda attempt, pause: demanded.append(pause) or 0.001)
    return demanded


# ---- faults

PASSING = {
    "408": Fault(status=408),
    "409": Fault(status=409),
    "425": Fault(status=425),
    "500": Fault(status=500, body='{"error": {"message": "out of memory"}}'),
    "503": Fault(status=503, body="<html>loading</html>"),
    "reset": Fault("reset"),
    "cut body": Fault("cut"),
    "200 with error": Fault(body='{"error": {"message": "engine died"}}'),
    "broken json": Fault(body='{"choices": ['),
    "deep json": Fault(body="[" * 100_000),
    "no choice": Fault(body='{"choices": []}'),
    "content is no text": Fault(body='{"choices": [{"message": {"content": 7}}]}'),
    "empty body": Fault(body=""),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_fault_is_retried_and_fails_alone_if_it_stays(fault: Fault, pauses: list[float | None]) -> None:
    def plan(name: str, nth: int) -> Fault | None:
        return fault if name == "item 4" or (name == "item 3" and nth < 2) else None

    with FaultServer(plan) as server:
        generations = generate(server, max_attempts=3)
    assert kinds(generations) == [None, None, None, None, "transport", None]
    assert [g.text for g in generations[:4]] == expected(4) and "after 3 attempts" in detail(generations[4])
    more = server.attempts["item 4"] - 3 if fault.status == 503 else 0  # which may mean too many requests
    assert server.attempts == Counter({f"item {n}": 1 for n in range(6)} | {"item 3": 3, "item 4": 3 + more})
    assert 0 <= more <= 8


def breaks(body: str = "", status: int = 500, how: str = "", at: Callable[[str], bool] = lambda text: "item 3" in text):
    """A server that fails at some rows, by their text."""
    return at, Fault(how, status, body=body)


def said(message: str) -> str:
    return json.dumps({"error": {"message": message}})


BREAKS = {
    # What the server does at which rows, and what the third of six rows is then; all others are judged.
    "500": (breaks(), "refused"),
    "500 with a message": (breaks(said("Internal server error")), "refused"),
    "a message that quotes the answer": (breaks(said("unexpected token 'item 3'")), "refused"),
    "a text": (breaks("Traceback (most recent call last)"), "refused"),
    "only what is long": (breaks(at=lambda text: len(text) > 3000), "transport"),
    "memory": (breaks(said("CUDA out of memory")), "transport"),
    "a reply past the context": (breaks(said("Context size has been exceeded.")), "transport"),
    "a proxy's time limit": (breaks(said("upstream request timeout")), "transport"),
    "502": (breaks(status=502), "transport"),
    "503": (breaks(status=503), "transport"),
    "504": (breaks(status=504), "transport"),
    "reset": (breaks(how="reset"), "transport"),
    "cut": (breaks(how="cut"), "transport"),
}


class Breaking(FaultServer):
    """Breaks at what it is made to break at."""

    def __init__(self, at: Callable[[str], bool], fault: Fault) -> None:
        super().__init__()
        self.at, self.fault = at, fault

    def respond(self, name: str, body: dict[str, Any]) -> Fault | None:
        return self.fault if self.at(body["messages"][-1]["content"]) else Fault(body=reply(GOOD))


GOOD = "<think>x</think><answer>7</answer>"


@pytest.mark.parametrize(("broken", "kind"), BREAKS.values(), ids=BREAKS)
def test_an_answer_that_breaks_the_server_is_refused(
    broken: tuple[Callable[[str], bool], Fault], kind: str, pauses: list[float | None]
) -> None:
    """Where harmless text of its length is served; else the trouble is the server's, and the longest rows are lost."""
    row = item(3, Untrusted("🦜 so " * 600))
    with Breaking(*broken) as server, ServerEngine(server.url, max_attempts=3) as engine:
        generations = engine.generate([row if n == 3 else item(n) for n in range(6)])
        last = server.requests[-1]["messages"][-1]["content"]
    assert kinds(generations) == [None, None, None, kind, None, None]
    harmless = "🦜" not in last and "item" not in last and len(last) >= 7 * 600
    assert harmless or kind == "transport"


@pytest.mark.parametrize(
    ("at", "number"),
    [
        pytest.param(lambda text: "🦜" in text, 2 / 9, id="at-this-answer"),
        pytest.param(lambda text: len(text) > 3000, 5 / 9, id="at-the-longest"),
        pytest.param(
            lambda text: ("item" in text and "🦜" in text) or "1 2 3" in text, 5 / 9, id="at-harmless-text-too"
        ),
    ],
)
def test_nothing_is_gained_by_an_answer_that_breaks_the_server_and_nothing_lost_by_length(
    at: Callable[[str], bool], number: float, pauses: list[float | None]
) -> None:
    """It has the lowest score of its group; what the server loses for its length has their mean, and no advantage."""
    group = ["item 3", "item 9", "item 🦜 " * 600]

    class Scores(Breaking):
        def respond(self, name: str, body: dict[str, Any]) -> Fault | None:
            score = {"item 3": "3", "item 9": "9"}.get(name, "5")
            return super().respond(name, body) if at(body["messages"][-1]["content"]) else scored(score)

    def scored(score: str) -> Fault:
        return Fault(body=reply(f"<think>x</think><answer>{score}</answer>"))

    with Scores(*breaks(at=at)) as server, ServerEngine(server.url, max_attempts=2) as engine:
        (result,) = judge_groups(Judge(Pointwise(), engine), [Example("q", group)], again=True)
    assert rewards(result.outcomes, [0, 0, 0]) == pytest.approx([2 / 9, 8 / 9, number])


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        pytest.param("2.5", 2.5, 2.5, id="seconds"),
        pytest.param("{in_an_hour}", 3000, 3600, id="date"),
        pytest.param("soon", None, None, id="neither"),
    ],
)
def test_the_server_demands_a_pause(
    status: int, header: str, low: float | None, high: float | None, pauses: list[float | None]
) -> None:
    # The date is made here: among the parameters it would be as old as the suite has been running.
    header = header.format(in_an_hour=formatdate(time() + 3600, usegmt=True))
    with FaultServer(
        lambda name, nth: Fault(status=status, headers={"Retry-After": header}) if nth < 2 else None
    ) as server:
        texts(generate(server, 1))
    assert len(pauses) == 2
    assert all(pause is None if low is None else pause and low <= pause <= high for pause in pauses)


@pytest.mark.parametrize(
    ("attempt", "demanded", "low", "high"),
    [
        pytest.param(0, None, 0.25, 0.5, id="first"),
        pytest.param(3, None, 2, 4, id="grows"),
        pytest.param(50, None, 4, 8, id="stops growing"),
        pytest.param(0, 3.0, 3, 3.3, id="as demanded"),
        pytest.param(0, 9000.0, 30, 33, id="up to a limit"),
        pytest.param(0, -5.0, 0, 0, id="date in the past"),
        pytest.param(0, float("nan"), 0, 33, id="not a number"),
    ],
)
def test_pauses(attempt: int, demanded: float | None, low: float, high: float) -> None:
    assert all(low <= http._pause(attempt, demanded) <= high for _ in range(50))


def test_a_rejected_request_is_not_retried(pauses: list[float | None]) -> None:
    with FaultServer(at_item_3(Fault(status=400, body='{"error": {"message": "bad image"}}'))) as server:
        generations = generate(server)
    assert kinds(generations) == [None, None, None, "refused", None, None]
    assert "400: bad image" in detail(generations[3]) and server.attempts["item 3"] == 1


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        pytest.param({"message": "max_tokens is too large: 5000"}, id="too_large"),
        pytest.param({"message": "max_tokens=5000 cannot be greater than max_model_len=2048"}, id="greater_than"),
        pytest.param({"message": "This model's maximum context length is 2048 tokens"}, id="context"),
        pytest.param({"message": "max_completion_tokens must be less than 2048"}, id="less_than"),
        pytest.param({"message": "Bad value: 5000", "param": "max_tokens"}, id="only_the_field_is_named"),
    ],
)
def test_a_token_limit_beyond_the_context_is_left_out(fits: bool, error: dict[str, str]) -> None:
    """vLLM rejects a limit that does not fit beside the prompt; without one it cuts the reply there."""
    too_long = Fault(status=400, body=json.dumps({"error": error}))
    with FaultServer(lambda name, nth: None if not name or (fits and nth) else too_long) as server:
        (generation,) = generate(server, 1)
    assert kinds([generation]) == [None if fits else "refused"]
    limits = [body.get("max_tokens") for body in server.requests]
    assert [limit for limit in limits if limit != 16] == [2048, 2048, None]  # the second is harmless, and is served


def test_a_key_that_is_revoked_keeps_the_replies_before_it() -> None:
    with FaultServer(lambda name, nth: Fault(status=401) if name in ("item 3", "") else None) as server:
        generations = generate(server, concurrency=1)
    assert kinds(generations) == [None] * 3 + ["engine"] * 3
    assert all("rejected the API key (401)" in detail(generation) for generation in generations[3:])
    assert server.attempts == Counter(
        {f"item {n}": 1 for n in range(4)} | {"": 2}
    )  # a harmless request, whole and bare


def test_hundreds_of_requests_through_a_storm(pauses: list[float | None]) -> None:
    """Every fourth attempt fails in some way; every reply belongs to its request; the concurrency holds."""
    faults, rng = list(PASSING.values()), random.Random(1)
    with FaultServer(lambda name, nth: rng.choice(faults) if rng.random() < 0.25 else None, delay=0.02) as server:
        generations = generate(server, 400, concurrency=32, max_attempts=12)
    assert texts(generations) == expected(400)
    assert 16 < server.most_in_flight <= 32 and 440 < server.attempts.total() < 700


def test_no_server_names_the_address_and_the_command(pauses: list[float | None]) -> None:
    with FaultServer() as server:
        pass
    message = rf"no server answers at {server.url}.*`vllm serve my/judge --port {server.port}`"
    with pytest.raises(EngineError, match=message):
        ServerEngine(server.url, "my/judge").generate([item(1)])
    assert len(pauses) == 2, "a server that is about to listen is waited for"


def test_a_server_that_dies_keeps_what_was_finished(pauses: list[float | None]) -> None:
    with FaultServer(lambda name, nth: Fault("die") if name == "item 30" else None) as server:
        engine = ServerEngine(server.url, concurrency=4)
        generations = engine.generate([item(n) for n in range(60)])
    assert kinds(generations[:27]) == [None] * 27
    assert set(kinds(generations)) == {None, "transport"} and kinds(generations[34:]) == ["transport"] * 26
    with pytest.raises(EngineError, match="no server answers"):  # at once, not after another round of attempts
        engine.generate([item(1)])
    with FaultServer(port=server.port), engine:
        assert texts(engine.generate([item(n) for n in range(3)])) == expected(3)


@pytest.mark.parametrize(
    ("server", "options", "message"),
    [
        pytest.param(FaultServer(key="right"), {"api_key": "wrong-canary"}, "rejected the API key .401.", id="key"),
        pytest.param(FaultServer(models=404), {}, "lists no models; give model=", id="no models"),
        pytest.param(
            FaultServer(lambda name, nth: Fault(status=404, body='{"error": "no such model"}')),
            {"model": "other"},
            "no such model. It lists the models: judge",
            id="unknown model",
        ),
    ],
)
def test_a_server_that_can_answer_nothing(server: FaultServer, options: dict[str, Any], message: str) -> None:
    with server, pytest.raises(EngineError, match=message) as raised:
        generate(server, **options)
    assert "canary" not in str(raised.value)


# ---- time limits. The short ones are a hundred times what the loopback server takes.


def warm(server: FaultServer, **options: Any) -> ServerEngine:
    """An engine whose imports and connections take no part of a time limit."""
    engine = ServerEngine(server.url, **options)
    texts(engine.generate([item("first")]))
    return engine


def test_a_request_without_a_reply_fails_alone() -> None:
    with FaultServer(at_item_3(Fault("hang"))) as server, warm(server, stall_timeout=1.5) as engine:
        generations = engine.generate([item(n) for n in range(6)])
    assert kinds(generations) == [None, None, None, "timeout", None, None]
    assert "none to any other request for 1.5 s" in detail(generations[3])


def test_a_failed_attempt_is_no_reply() -> None:
    """A server that answers nothing is given up after `stall_timeout`, not after every attempt of every request."""

    def plan(name: str, nth: int) -> Fault | None:
        return None if name == "item first" else Fault("hang")

    with FaultServer(plan) as server:
        engine = warm(server, concurrency=2, stall_timeout=0.8, timeout=0.3, max_attempts=1)
        start = monotonic()
        generations = engine.generate([item(n) for n in range(80)])
        waited = monotonic() - start
        engine.close()
    assert set(kinds(generations)) == {"timeout", "transport"}
    assert 0.8 <= waited < 12  # eighty attempts, two at a time, would take 12 s


def test_a_batch_may_take_longer_than_the_limit_while_replies_come() -> None:
    with FaultServer(delay=0.2) as server, warm(server, stall_timeout=1.5, concurrency=1) as engine:
        start = monotonic()
        assert texts(engine.generate([item(n) for n in range(8)])) == expected(8)
        assert monotonic() - start > 1.5


@pytest.mark.parametrize("concurrency", [1, 6])
def test_an_attempt_that_takes_too_long_is_retried(concurrency: int, pauses: list[float | None]) -> None:
    """Also the second time, and behind requests that were in time."""
    hangs = {"item 3": 1, "item 4": 2}
    with FaultServer(lambda name, nth: Fault("hang") if nth < hangs.get(name, 0) else None) as server:
        start = monotonic()
        assert texts(generate(server, timeout=0.3, concurrency=concurrency)) == expected(6)
        waited = monotonic() - start
    assert server.attempts["item 3"] >= 2 and server.attempts["item 4"] >= 3
    assert waited >= (0.9 if concurrency == 1 else 0.6)


@pytest.mark.parametrize("encoding", [False, True])
def test_closing_ends_what_is_running(encoding: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a thread encodes a large image, which cannot be interrupted."""
    over, started = threading.Event(), threading.Event()

    def encode(media: Media, **options: object) -> str:
        started.set()
        over.wait(60)
        return ""

    monkeypatch.setattr(Media, "data_uri", encode)
    parts = [Media.image(Image.new("RGB", (32, 32)))] if encoding else []
    problems: list[Exception] = []

    def work() -> None:
        try:
            engine.generate([item(1, *parts)])
        except EngineError as error:
            problems.append(error)

    with FaultServer(lambda name, nth: Fault("hang")) as server:
        engine, thread = ServerEngine(server.url), threading.Thread(target=work)
        thread.start()
        while not (server.in_flight or started.is_set()):
            sleep(0.01)
        engine.close()
        thread.join(10)
        assert not thread.is_alive()
        over.set()
    assert "closed while requests were running" in str(problems)


def test_large_bodies_wait_for_room_and_not_for_each_others_replies(
    pauses: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is encoded and sent at a time here; a further attempt encodes it again; a long text takes no room."""
    monkeypatch.setattr(http, "Room", lambda: Room(1))
    faults = {("item 2", 0): Fault(status=500), ("item 3", 0): Fault("reset"), ("item 5", 0): Fault(status=429)}
    noise = np.random.default_rng(0).integers(0, 256, (6, 700, 700, 3), dtype=np.uint8)
    parts: list[Untrusted | Media] = [*map(Media.image, noise), Untrusted("long " * 300_000)]
    with FaultServer(lambda *attempt: faults.get(attempt), delay=0.5) as server, ServerEngine(server.url) as engine:
        assert texts(engine.generate([item(n, part) for n, part in enumerate(parts)])) == expected(7)
        assert engine._client is not None and engine._client._room._left == 1
    assert server.attempts == Counter({f"item {n}": 2 if n in (2, 3, 5) else 1 for n in range(7)})
    assert server.most_in_flight > 2


# ---- requests


CONTROL = ["<|im_end|>", "<answer>", "[[own]]", "<end of turn>"]


class Tokenizer:
    all_special_tokens = ("<end of turn>",)

    def get_added_vocab(self) -> dict[str, int]:
        return {"[[own]]": 7}


def test_what_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request has its own sampling, also in one batch; untrusted text is neutralised, media are data URIs."""
    monkeypatch.setattr(model, "load_tokenizer", lambda source: Tokenizer())
    media = Media.image(Image.new("RGB", (32, 32), "red"))
    sampling = Sampling(0.5, 0.9, 77, seed=105, stop=("end",), logprobs=3)
    with FaultServer(models=[{"id": "judge", "owned_by": "vllm"}]) as server:
        options: dict[str, Any] = {"concurrency": 1, "extra_body": {"priority": 2}, "tokenizer": str(tmp_path)}
        with ServerEngine(server.url, **options) as engine:
            engine.generate([item(f"{' '.join(CONTROL)} ok", media, sampling=sampling), item(2)])
    parts = server.requests[0].pop("messages")[1]["content"]
    messages = server.requests[1].pop("messages")
    shared = {"model": "judge", "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "skip_special_tokens": False}
    shared |= {"priority": 2, "chat_template_kwargs": {"enable_thinking": True, "thinking": True}}
    assert server.requests == [
        {
            **{"temperature": 0.5, "top_p": 0.9, "max_tokens": 77, "seed": 105, "stop": ["end"]},
            **{"logprobs": True, "top_logprobs": 3, **shared},
        },
        {"temperature": 0.0, "top_p": 1.0, "max_tokens": 2048, "seed": 0, **shared},
    ]
    assert messages == [{"role": "system", "content": "Judge."}, {"role": "user", "content": "item 2 "}]
    assert [part["type"] for part in parts] == ["text", "image_url"]
    assert "ok" in parts[0]["text"] and not [token for token in CONTROL if token in parts[0]["text"]]
    assert parts[1]["image_url"]["url"].startswith("data:image/png;base64,")


def test_a_shared_image_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidates of a group share their image, and are sent at the same time. It is large: over a megabyte."""
    encoded, encode = [], Media.data_uri
    monkeypatch.setattr(Media, "data_uri", lambda media, **options: encoded.append(media) or encode(media))
    noise = np.random.default_rng(0).integers(0, 255, (640, 640, 3), dtype=np.uint8)
    with FaultServer() as server, ServerEngine(server.url) as engine:
        generations = engine.generate([item(n, Media.image(noise.copy())) for n in range(6)])
    assert texts(generations) == expected(6) and len(encoded) == 1
    urls = {body["messages"][1]["content"][1]["image_url"]["url"] for body in server.requests}
    assert len(urls) == 1 and len(urls.pop()) > 1 << 20


class Huge(Modality):
    """A modality of a user's own, whose drawing passes the limit of an image."""

    name: ClassVar[str] = "huge"

    def load(self, source: object, options: Mapping[str, Any], roots: Any, limits: Any) -> Loaded:
        return Loaded((Image.new("RGB", (5000, 5000)),))


def test_media_that_cannot_be_sent_fail_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "huge", Huge())
    broken = [Media.of("huge", "x"), Media.image(b"broken"), Media.audio(b"sound")]
    with FaultServer() as server, ServerEngine(server.url) as engine:
        generations = engine.generate([item(0), *(item(n, media) for n, media in enumerate(broken, 1)), item(4)])
    assert kinds(generations) == [None, "media", "media", "media", None]
    assert len(server.requests) == 2


def test_an_image_that_is_gone_when_it_is_sent_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    gone, encode = Media.image(Image.new("RGB", (8, 8))), Media.data_uri

    def data_uri(media: Media, **options: Any) -> str:
        if media == gone:
            raise MediaError("it could be read before")
        return encode(media, **options)

    monkeypatch.setattr(Media, "data_uri", data_uri)
    with FaultServer() as server, ServerEngine(server.url) as engine:
        generations = engine.generate([item(0), item(1, gone), item(2)])
    assert kinds(generations) == [None, "media", None] and texts(generations[::2]) == expected(3)[::2]


CLIPS = [Media.video([Image.new("RGB", (8, 8), (n, 0, 0)) for n in range(3)], fps=fps) for fps in (1.0, 4.0, 9.0)]
OWNED = {"id": "judge", "root": "/weights", "owned_by": "vllm"}


def test_a_sound_goes_as_input_audio() -> None:
    """As 16-bit WAV; to vLLM as floats, which it reads right without soundfile, too."""
    for models, size in (([{"id": "judge"}], 2), ([OWNED], 4)):
        with FaultServer(models=models) as server, ServerEngine(server.url) as engine:
            assert kinds(engine.generate([item(0, Media.audio(sounds.wav(0.1)))])) == [None]
        (part,) = [one for one in server.requests[0]["messages"][-1]["content"] if one["type"] == "input_audio"]
        data = b64decode(part["input_audio"]["data"])
        assert part["input_audio"]["format"] == "wav" and len(data) == 44 + 1600 * size
        assert size == 4 or data == sounds.wav(0.1)


@pytest.mark.parametrize(
    ("served", "clips", "sent", "field"),
    [
        pytest.param({"id": "judge"}, CLIPS[:1], "image_url", None, id="another-server"),
        pytest.param(OWNED, CLIPS[:1], "video_url", None, id="the-rate-vLLM-assumes"),
        pytest.param(OWNED, CLIPS[1:2], "video_url", ("media_io_kwargs", {"video": {"fps": 4.0}}), id="another-rate"),
        pytest.param(OWNED, CLIPS[1:], "image_url", None, id="two-rates"),
        pytest.param(
            {**OWNED, "id": "my-Omni"}, CLIPS[:1], "video_url", ("mm_processor_kwargs", {"fps": 1.0}), id="an-Omni"
        ),
    ],
)
def test_a_video_keeps_its_rate_or_goes_as_images(served: Any, clips: Any, sent: str, field: Any) -> None:
    with FaultServer(models=[served]) as server, ServerEngine(server.url) as engine:
        assert kinds(engine.generate([item(0, *clips)])) == [None]
        stills = engine.findings().get("videos") == "frames as images"
    (body,) = server.requests
    parts = [one for one in body["messages"][-1]["content"] if one["type"] != "text"]
    assert {one["type"] for one in parts} == {sent} and stills == (sent == "image_url")
    assert len(parts) == (3 if stills else 1) * len(clips)
    rates = {name: body[name] for name in body if name in ("mm_processor_kwargs", "media_io_kwargs")}
    assert rates == dict([field] if field else [])
    texts = "".join(one["text"] for one in body["messages"][-1]["content"] if one["type"] == "text")
    assert all((f"A video of 3 frames, {clip.fps:g} per second:" in texts) == stills for clip in clips)


class Distrusting(FaultServer):
    """Takes no frame rate."""

    def respond(self, name: str, body: dict[str, Any]) -> Fault | None:
        said = "Per-request media_io_kwargs are disabled by default because they can change much."
        refusal = Fault(status=400, body=json.dumps({"error": {"message": said, "param": "media_io_kwargs"}}))
        return refusal if "media_io_kwargs" in body else None


def test_a_server_that_takes_no_rate_gets_images_from_then_on() -> None:
    with Distrusting(models=[OWNED]) as server, ServerEngine(server.url) as engine:
        assert kinds(engine.generate([item(0, CLIPS[1])])) == [None]
        assert kinds(engine.generate([item(1, CLIPS[2]), item(2, CLIPS[0])])) == [None, None]
        found = engine.findings()
    assert found["videos"] == "frames as images" and "media_io_kwargs" in found["lacking"]  # type: ignore[operator]
    last = [{one["type"] for one in body["messages"][-1]["content"]} for body in server.requests[-2:]]
    assert sorted("video_url" in types for types in last) == [False, True]  # one frame per second needs no field


def test_a_verdict_on_images_is_never_one_on_the_video(tmp_path: Path) -> None:
    """Two servers that call themselves the same judge, one of which takes no frame rate, and one cache."""
    asked = [item(0, CLIPS[1]), item(1, CLIPS[0]), item(2)]

    def cached(server: FaultServer, turns: int) -> list[list[bool]]:
        with CachedEngine(ServerEngine(server.url), tmp_path / "cache.sqlite") as engine:
            return [[reply.cached for reply in engine.generate(asked)] for _ in range(turns)]

    with Distrusting(models=[OWNED]) as distrusting, FaultServer(models=[OWNED]) as trusting:
        # The first time its refusal tells that these are images: neither key would be right.
        assert cached(distrusting, 3) == [[False] * 3, [False, True, True], [True] * 3]
        assert cached(trusting, 2) == [[False, True, True], [True] * 3]
        assert cached(distrusting, 2) == [[True] * 3] * 2


def test_a_login_in_the_address_is_sent() -> None:
    basic = f"Basic {b64encode(b'me:p@ss:/word').decode()}"
    echo = Fault(status=400, body=f'{{"error": {{"message": "no {basic}"}}}}')
    with FaultServer(lambda name, nth: echo if name == "item 1" else None, key=basic) as server:
        address = server.url.replace("//", "//me:p%40ss%3A%2Fword@")
        with ServerEngine(address) as engine:
            good, bad = engine.generate([item(0), item(1)])
    assert texts([good]) == expected(1) and "no Basic ***" in detail(bad)


@pytest.mark.parametrize(
    ("address", "options", "message"),
    [
        pytest.param("localhost:8000", {}, "http", id="no scheme"),
        pytest.param("ftp://localhost/v1", {}, "http", id="other scheme"),
        pytest.param("http://[::1/v1", {}, "http", id="broken host"),
        pytest.param("http://localhost:99999/v1", {}, "http", id="no port"),
        pytest.param("http:///v1", {}, "http", id="no host"),
        pytest.param("http://localhost/v1", {"max_attempts": 0}, "max_attempts must be positive", id="no attempts"),
        pytest.param("http://localhost/v1", {"timeout": float("nan")}, "timeout must be positive", id="nan"),
        pytest.param("http://localhost/v1", {"extra_body": {"n": 2}}, "may not set 'n'", id="taken field"),
    ],
)
def test_settings_that_make_no_sense(address: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerEngine(address, **options)


# ---- replies


@pytest.mark.parametrize(
    ("body", "text", "finish"),
    [
        pytest.param(reply("<think>why</think><answer>7</answer>"), None, "stop", id="inline"),
        pytest.param(reply("<answer>7</answer>", reasoning="why"), None, "stop", id="reasoning"),
        pytest.param(reply("<answer>7</answer>", reasoning_content="why"), None, "stop", id="reasoning_content"),
        pytest.param(reply(None, "length", reasoning="why"), "<think>why", "length", id="cut in reasoning"),
        pytest.param(reply("<ans", "length", reasoning="why"), "<think>why</think><ans", "length", id="cut after it"),
        pytest.param(reply(None, "content_filter"), "", "filter", id="content filter"),
        pytest.param(reply(None, refusal="I will not"), "I will not", "filter", id="refusal"),
    ],
)
def test_what_a_reply_says(body: str, text: str | None, finish: str) -> None:
    with FaultServer(lambda name, nth: Fault(body=body)) as server:
        (generation,) = generate(server, 1)
    whole = "<think>why</think><answer>7</answer>"
    assert (generation.text, generation.finish_reason) == (whole if text is None else text, finish)
    assert (generation.prompt_tokens, generation.completion_tokens, generation.failure) == (3, 5, None)


@pytest.mark.parametrize(
    ("field", "malformed"),
    [
        pytest.param('"finish_reason": "stop"', '"finish_reason": "tool_calls"', id="ended otherwise"),
        pytest.param('"index": 0', '"logprobs": {"content": [{"token": "7"}]}', id="token without logprob"),
    ],
)
def test_a_malformed_reply_fails_alone(field: str, malformed: str) -> None:
    body = reply("<answer>7</answer>")
    assert field in body
    fault = Fault(body=body.replace(field, malformed))
    with FaultServer(lambda name, nth: fault if name == "item 1" else None) as server:
        generations = generate(server, 3)
    assert kinds(generations) == [None, "engine", None]


RECORDED = json.loads((Path(__file__).parent / "data" / "vllm-reasoning-parser.json").read_text("utf-8"))
QUESTION = (
    "bottom-left white square bottom-right nothing top-right nothing top-left purple triangle\n",
    "Is there a white square?",
)
REASONING = (
    "top-left purple triangle purple white no triangle square no no top-right nothing no bottom-left white square"
    " white white yes"
)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize(
    ("format", "limit", "replies", "score", "forced"),
    [
        pytest.param(Pointwise(), 160, ["whole"], 10.0, 0, id="whole"),
        pytest.param(BudgetForcing(Pointwise(), 16), 160, ["whole"], 10.0, 0, id="not cut"),
        pytest.param(BudgetForcing(Pointwise(), 16), 20, ["cut", "continuation"], 5.0, 1, id="cut"),
        pytest.param(Pointwise(), 20, ["cut"], None, 0, id="cut and not continued"),
        pytest.param(ExpectedScore(Pointwise()), 160, ["whole"], 9.999997, 0, id="expected score"),
        pytest.param(
            BudgetForcing(ExpectedScore(Pointwise()), 16),
            20,
            ["cut", "continuation", "one token"],
            4.772886,
            1,
            id="cut, expected score",
        ),
    ],
)
def test_recorded_replies_of_a_server_with_a_reasoning_parser(
    format: Format, limit: int, replies: list[str], score: float | None, forced: int, field: str
) -> None:
    """What `vllm serve nano --reasoning-parser deepseek_r1` sent (vLLM 0.32, less the unlikely alternatives).

    The parser takes a whole continuation for reasoning, because the closing tag is in its prompt. The scores are those
    of the same judge in TransformersEngine, without a parser.
    """
    # The prompt was another one, with fewer tokens than this one has words.
    bodies = [json.dumps(RECORDED[name] | {"usage": {}}).replace('"reasoning":', f'"{field}":') for name in replies]
    with FaultServer(lambda name, nth: Fault(body=bodies[nth])) as server, ServerEngine(server.url) as engine:
        (verdict,) = Judge(format, engine, Sampling(max_tokens=limit))([Example(QUESTION, ["yes"])])
    assert verdict.scores == (score and pytest.approx((score,), abs=1e-4))
    assert verdict.failure is None if score else verdict.failure and verdict.failure.kind == "truncated"
    assert verdict.counters.get("forced", 0) == forced
    if "cut" in replies:
        assert verdict.reasoning == REASONING
    if "continuation" in replies:
        assert verdict.generations[0].text == f"<think>{REASONING}</think><answer>5</answer>"
        assert server.requests[1]["messages"][-1] == {"role": "assistant", "content": f"<think>{REASONING}</think>"}
        assert server.requests[1]["continue_final_message"] and not server.requests[1]["add_generation_prompt"]
    assert len(server.requests) == len(replies)


# ---- secrets


def test_secrets_stay_secret(
    caplog: pytest.LogCaptureFixture, pauses: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key, the login and the query of the address show in no message, log, identity or repr."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("FLEXJUDGE_API_KEY", "canary-key")
    shown = []
    echoes = ['{"error": {"message": "bad key canary-key"}}', "no such token: canary-query", 292 * "x" + "canary-key"]
    echoed = [Fault(status=status, body=body) for status in (400, 422, 500) for body in echoes]
    faults = [*PASSING.values(), *echoed, Fault("die")]
    for fault in faults:
        with FaultServer(at_item_3(fault), key="canary-key") as server:
            address = server.url.replace("//", "//canary-user:canary-password@") + "?token=canary-query"
            engine = ServerEngine(address, max_attempts=2)
            shown += [repr(engine), json.dumps(engine.identity())]
            shown += map(repr, engine.generate([item(n) for n in range(6)]))
        if fault.how == "die":
            with pytest.raises(EngineError) as raised:
                engine.generate([item(1)])
            shown.append(repr(raised.value))
        engine.close()
    assert "canary" not in "".join(shown) + caplog.text
    assert b"canary-key" not in pickle.dumps(engine)  # it came from the environment, and will again
