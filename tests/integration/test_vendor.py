"""VendorEngine on a loopback server that speaks Anthropic's protocol, through the vendor's own package."""

from __future__ import annotations

import asyncio
import json
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from flexjudge_reward import (
    ConfigError,
    EngineError,
    Example,
    ExpectedScore,
    Judge,
    JudgeConfig,
    MissingExtra,
    Pointwise,
)
from flexjudge_reward.engines import http, throttle
from flexjudge_reward.engines.vendor import VendorEngine

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the vendors' packages
Answer = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


def message(text: str = "<answer>7</answer>", stop: str = "end_turn") -> tuple[int, dict[str, Any]]:
    content = [{"type": "thinking", "thinking": "fine", "signature": "s"}, {"type": "text", "text": text}]
    usage = {"input_tokens": 400, "output_tokens": 5}
    whole = {"id": "m", "type": "message", "role": "assistant", "model": "judge", "stop_reason": stop}
    return 200, {**whole, "content": content, "usage": usage}


def error(status: int, kind: str, said: str) -> tuple[int, dict[str, Any]]:
    return status, {"type": "error", "error": {"type": kind, "message": said}}


@contextmanager
def served(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of the server, and the bodies that it gets."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = answer(bodies[-1])
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", bodies
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key")
    for module in (http, throttle):
        monkeypatch.setattr(module, "_pause", lambda attempt, demanded: 0.001)
    monkeypatch.setattr(throttle, "PATIENCE", 6)


def judged(answer: Answer, count: int = 3, **options: Any) -> tuple[list[Any], list[dict[str, Any]]]:
    with served(answer) as (url, bodies), VendorEngine("anthropic:judge", api_base=url, **options) as engine:
        verdicts = Judge(Pointwise(), engine)([Example("q", [f"answer {n}"]) for n in range(count)])
    return verdicts, bodies


def test_a_judge_of_another_protocol() -> None:
    """What its package does not take is left out; thoughts come as chunks; the instructions are its system text."""
    verdicts, bodies = judged(lambda body: message())
    assert [(verdict.scores, verdict.reasoning) for verdict in verdicts] == [((7.0,), "fine")] * 3
    assert len(bodies) == 3 and "careful judge" in json.dumps(bodies[0]["system"]) and bodies[0]["max_tokens"] == 2048


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        pytest.param(error(400, "invalid_request_error", "prompt is too long"), "refused", id="too-long"),
        pytest.param(error(413, "request_too_large", "too large"), "refused", id="too-large"),
        pytest.param(error(529, "overloaded_error", "overloaded"), "transport", id="overloaded"),
        pytest.param(error(429, "rate_limit_error", "slow down"), "transport", id="rate-limit-that-stays"),
        pytest.param(message("<think>so", "max_tokens"), "truncated", id="cut"),
    ],
)
def test_a_row_that_fails_fails_alone(fault: tuple[int, dict[str, Any]], kind: str) -> None:
    verdicts, _ = judged(lambda body: fault if "answer 1" in json.dumps(body) else message(), max_attempts=2)
    assert [verdict.failure and verdict.failure.kind for verdict in verdicts] == [None, kind, None]


def test_a_trouble_that_passes_costs_no_row() -> None:
    attempts: list[str] = []

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        attempts.append(json.dumps(body))
        return error(529, "overloaded_error", "overloaded") if attempts.count(attempts[-1]) < 2 else message()

    assert [verdict.scores for verdict in judged(answer)[0]] == [(7.0,)] * 3


def failing(monkeypatch: pytest.MonkeyPatch, how: Callable[[Any, Any], Exception | None]) -> list[Any]:
    """Lets the vendor's package raise what `how` gives for a request and its options; the requests so far."""
    from any_llm.providers.anthropic.base import BaseAnthropicProvider

    send, sent = BaseAnthropicProvider._acompletion, []

    async def acompletion(self: Any, params: Any, **options: Any) -> Any:
        sent.append(params)
        if (error := how(params, options)) is not None:
            raise error
        return await send(self, params, **options)

    monkeypatch.setattr(BaseAnthropicProvider, "_acompletion", acompletion)
    return sent


def test_a_steady_rate_limit_loses_no_row() -> None:
    """One of two requests is served, however few attempts each row may have."""
    sent: list[Any] = []

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        sent.append(body)
        return error(429, "rate_limit_error", "slow down") if len(sent) % 2 else message()

    verdicts, _ = judged(answer, 40, max_attempts=1, concurrency=4)
    assert [verdict.scores for verdict in verdicts] == [(7.0,)] * 40


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_key_that_is_refused_stops_the_run(status: int) -> None:
    with pytest.raises(EngineError, match="invalid x-api-key" if status == 400 else "set ANTHROPIC_API_KEY"):
        judged(lambda body: error(status, "authentication_error", "invalid x-api-key"))


class GoogleError(Exception):
    """As that of `google.genai`."""

    def __init__(self, code: int, details: dict[str, Any]) -> None:
        super().__init__(f"{code} {details}")
        self.code, self.details = code, details


class BedrockError(Exception):
    """As that of `botocore`."""

    def __init__(self, code: str, status: int = 400) -> None:
        super().__init__(f"An error occurred ({code})")
        self.response = {
            "Error": {"Code": code, "Message": "said"},
            "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {}},
        }


BUSY = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "x", "details": [{"retryDelay": "0.01s"}]}}
RAISED = {
    "Google's refusal": (GoogleError(400, {"error": {"code": 400, "message": "too long"}}), "refused"),
    "Google's limit": (GoogleError(429, BUSY), None),
    "Google's overload": (GoogleError(503, {"error": {"code": 503, "message": "The model is overloaded."}}), None),
    "Bedrock's refusal": (BedrockError("ValidationException"), "refused"),
    "Bedrock's limit": (BedrockError("ThrottlingException"), None),
    "Bedrock's model is not ready": (BedrockError("ModelNotReadyException", 429), None),
    "Bedrock's end": (BedrockError("InternalServerException", 500), None),
    "a lost connection": (ConnectionError("connection reset"), None),
    "a timeout": (TimeoutError(), None),
    "a field of its own": (TypeError("create() got an unexpected keyword argument 'x'"), "refused"),
    "not there": (NotImplementedError("images"), "refused"),
}


@pytest.mark.parametrize(("raised", "kind"), RAISED.values(), ids=RAISED)
def test_each_package_has_its_own_errors(raised: Exception, kind: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is refused is not asked again, and what passes costs no row."""
    counts: list[Any] = []

    def how(params: Any, options: Any) -> Exception | None:
        counts.extend(["answer 1"] if (there := "answer 1" in str(params)) else [])
        return raised if there and (kind or len(counts) < 3) else None

    failing(monkeypatch, how)
    verdicts, _ = judged(lambda body: message(), concurrency=1)
    assert [verdict.failure and verdict.failure.kind for verdict in verdicts] == [None, kind, None]
    assert len(counts) == (1 if kind else 3)


def test_a_package_that_takes_no_timeout_is_used_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure's."""
    from any_llm.exceptions import UnsupportedParameterError

    takes_none = UnsupportedParameterError("timeout", "azure")
    failing(monkeypatch, lambda params, options: takes_none if "timeout" in options else None)
    assert [verdict.scores for verdict in judged(lambda body: message())[0]] == [(7.0,)] * 3


def test_an_attempt_ends_where_the_package_knows_no_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    from any_llm.providers.anthropic.base import BaseAnthropicProvider

    async def acompletion(self: Any, params: Any, **options: Any) -> Any:
        await asyncio.sleep(60)

    monkeypatch.setattr(BaseAnthropicProvider, "_acompletion", acompletion)
    (verdict,), _ = judged(lambda body: message(), 1, timeout=0.2, max_attempts=1)
    assert verdict.failure.kind == "transport" and "TimeoutError" in verdict.failure.detail


@pytest.mark.parametrize(
    ("model", "said"),
    [
        pytest.param("anthropic:judge", "set the ANTHROPIC_API_KEY", id="key"),
        pytest.param("nobody:judge", "is not a supported provider", id="vendor"),
        pytest.param("gemini:judge", "genai", id="package"),
    ],
)
def test_what_is_missing_here_is_said_before_anything_is_sent(
    model: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with VendorEngine(model) as engine, pytest.raises(EngineError, match=said):
        Judge(Pointwise(), engine).score("q", "a")


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_row_whose_answer_alone_is_forbidden_does_not_stop_the_run(status: int) -> None:
    """Also where it is the first one: a harmless request is served."""
    fault = error(status, "permission_error", "this content is not allowed")
    verdicts, _ = judged(lambda body: fault if "answer 0" in json.dumps(body) else message(), concurrency=1)
    assert [verdict.failure and verdict.failure.kind for verdict in verdicts] == ["refused", None, None]


@pytest.mark.parametrize(
    "quoted",
    [
        pytest.param("temperature is not supported", id="field"),
        pytest.param("max_tokens is an unknown parameter", id="limit"),
        pytest.param("Use max_completion_tokens instead; max_tokens is unsupported", id="other-name"),
        pytest.param("System role not supported", id="system-turn"),
        pytest.param("roles must alternate", id="roles"),
    ],
)
def test_an_error_that_quotes_a_candidate_teaches_nothing(quoted: str) -> None:
    """Else an answer could change what the judge is sent for all others."""
    fault = error(400, "invalid_request_error", f"flagged: {quoted}")
    verdicts, bodies = judged(lambda body: fault if "answer 0" in json.dumps(body) else message(), concurrency=1)
    assert [verdict.failure and verdict.failure.kind for verdict in verdicts] == ["refused", None, None]
    assert {"temperature", "max_tokens", "system"} <= bodies[-1].keys() and bodies[-1].keys() == bodies[0].keys()


def test_what_a_vendor_refuses_of_a_harmless_request_is_left_out_for_all() -> None:
    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        known = "temperature" not in body
        return message() if known else error(400, "invalid_request_error", "temperature is not supported")

    with served(answer) as (url, bodies), VendorEngine("anthropic:judge", api_base=url, concurrency=1) as engine:
        copy = pickle.loads(pickle.dumps(engine))
        for one in (engine, copy):
            verdicts = Judge(Pointwise(), one)([Example("q", [f"answer {n}"]) for n in range(3)])
            assert [verdict.scores for verdict in verdicts] == [(7.0,)] * 3
            assert "temperature" in one.findings()["lacking"]
    assert sum("temperature" in body for body in bodies) == 4  # of each engine, the first request and the harmless one


def test_what_a_vendor_does_not_have_is_unsupported_by_name() -> None:
    with served(lambda body: message()) as (url, _), VendorEngine("anthropic:judge", api_base=url) as engine:
        (verdict,) = Judge(ExpectedScore(Pointwise()), engine)([Example("q", ["a"])])
    assert verdict.failure.kind == "unsupported" and "logprobs" in verdict.failure.detail


def test_settings_and_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="vendor:model"):
        VendorEngine("judge")
    config = JudgeConfig.resolve({"engine": "vendor", "model": "anthropic:judge", "cache": "off", "concurrency": 3}, {})
    with config.build(processes=8) as judge:
        assert isinstance(judge.engine, VendorEngine) and judge.engine.concurrency == 3
        monkeypatch.setitem(sys.modules, "any_llm", None)
        with pytest.raises(MissingExtra, match=r"flexjudge-reward\[vendors\]"):
            judge.score("q", "a")
