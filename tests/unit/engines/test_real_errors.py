"""Errors as real servers send them: vLLM, SGLang, llama.cpp, TGI, OpenRouter, Azure, Gemini, Bedrock and others.

Their forms are from public reports, in words of our own where these do not matter.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest

from flexjudge_reward import EngineError
from flexjudge_reward.engines import http, throttle
from support.fault_server import Fault
from support.vendors import Answer, Vendor, judged, kinds, text_of


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (http, throttle):
        monkeypatch.setattr(module, "_pause", lambda attempt, demanded: 0.001)
    monkeypatch.setattr(throttle, "PATIENCE", 8)


def said(status: int, body: Any) -> Fault:
    return Fault(status=status, body=body if isinstance(body, str) else json.dumps(body))


def passed_on(code: int, raw: Any, status: int | None = None) -> Fault:
    """OpenRouter's form: what the server behind it said is a text in the metadata."""
    metadata = {"raw": raw if isinstance(raw, str) else json.dumps(raw), "provider_name": "X"}
    error = {"message": "Provider returned error", "code": code, "metadata": metadata}
    return said(status or code, {"error": error, "user_id": "u"})


TOO_LONG = {"type": "exceed_context_size_error", "message": "the request exceeds the context", "n_ctx": 256}
TGI_LONG = "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 1024. Given: 900 and 2048"
AFFORD = (
    "This request requires more credits, or fewer max_tokens. You requested up to 2048 tokens, but can only afford 333"
)
ROWS = {
    "OpenRouter's moderation": (
        said(403, {"error": {"code": 403, "message": "flagged", "metadata": {"reasons": ["violence"]}}}),
        "refused",
    ),
    "OpenRouter passes on": (passed_on(400, {"error": {"message": "at most 1 image per prompt"}}), "refused"),
    "Azure's filter": (
        said(400, {"error": {"message": "filtered", "param": "prompt", "code": "content_filter", "innererror": {}}}),
        "refused",
    ),
    "DashScope's filter": (said(400, {"error": {"code": "data_inspection_failed", "message": "unsafe"}}), "refused"),
    "Zhipu's filter": (
        said(400, {"contentFilter": [{"level": 1}], "error": {"code": "1301", "message": "x"}}),
        "refused",
    ),
    "xAI's filter": (said(403, {"code": "no permission", "error": "Failed check: SAFETY_CHECK_TYPE_BIO"}), "refused"),
    "Mistral's detail": (
        said(422, {"object": "error", "message": {"detail": [{"type": "too_long", "loc": ["body", "messages"]}]}}),
        "refused",
    ),
    "TGI, too long": (said(422, {"error": TGI_LONG, "error_type": "validation"}), "refused"),
    "TGI, in a 200": (said(200, {"error": "Input validation error", "error_type": "validation"}), "refused"),
    "llama.cpp, too long, 400": (said(400, {"error": {"code": 400, **TOO_LONG}}), "refused"),
    "llama.cpp, too long, 500": (said(500, {"error": {"code": 500, **TOO_LONG}}), "refused"),
    "llama.cpp, too long, in a 200": (said(200, {"error": {"code": 400, **TOO_LONG}}), "refused"),
    "SGLang, too long": (
        said(400, {"object": "error", "message": "longer than the model's context length", "code": 400}),
        "refused",
    ),
    "vLLM, too long": (
        said(400, {"error": {"message": "maximum context length is 2048 tokens", "param": "input_tokens"}}),
        "refused",
    ),
    "Groq, larger than a minute": (
        said(413, {"error": {"message": "Request too large: tokens per minute", "code": "rate_limit_exceeded"}}),
        "refused",
    ),
    "Gemini's list": (
        said(400, [{"error": {"code": 400, "message": "image", "status": "INVALID_ARGUMENT"}}]),
        "refused",
    ),
    "Bedrock's message": (said(400, {"message": "Input is too long for requested model."}), "refused"),
    "Cloudflare's list": (said(400, {"errors": [{"message": "AiError", "code": 5006}], "success": False}), "refused"),
    # What is left of a credit pays for short rows only: no answer is worse for it.
    "OpenRouter, credit": (said(402, {"error": {"message": AFFORD, "code": 402}}), "engine"),
    "credit": (said(402, {"error": {"message": "this request exceeds your remaining credit"}}), "engine"),
}


@pytest.mark.parametrize(("fault", "kind"), ROWS.values(), ids=ROWS)
def test_an_error_about_one_row_is_that_rows(fault: Fault, kind: str) -> None:
    """It is not asked again, but without the limit of its reply where that may help."""
    with Vendor(lambda body: fault if "answer 1" in text_of(body) else None) as server:
        assert kinds(judged(server, 3, concurrency=1)) == [None, kind, None]
    assert sum("answer 1" in text_of(body) for body in server.requests) <= 2


def no_field(name: str, fault: Fault) -> Answer:
    return lambda body: fault if name in body else None


def only(name: str, value: Any, fault: Fault) -> Answer:
    return lambda body: fault if body.get(name, value) != value else None


FIELDS = {
    "OpenRouter passes on, JSON": no_field(
        "seed", passed_on(400, {"error": {"message": "Unsupported parameter: 'seed'", "param": "seed"}})
    ),
    "OpenRouter passes on, only param": no_field("seed", passed_on(400, {"error": {"message": "no", "param": "seed"}})),
    "OpenRouter passes on, text": no_field("top_p", passed_on(400, "top_p is not supported by this model")),
    "TGI's range": no_field(
        "top_p", said(422, {"error": "`top_p` must be > 0.0 and < 1.0", "error_type": "validation"})
    ),
    "OpenAI's value": only(
        "temperature",
        1,
        said(400, {"error": {"message": "Unsupported value: does not support 0.0", "param": "temperature"}}),
    ),
    "Kimi's value": only("temperature", 1, said(400, {"error": {"message": "invalid temperature: only 1 is allowed"}})),
    "Gemini's unknown name": no_field(
        "seed", said(400, [{"error": {"code": 400, "message": 'Unknown name "seed": Cannot find field.'}}])
    ),
    "Mistral's detail": no_field(
        "seed", said(422, {"object": "error", "message": {"detail": [{"type": "extra_forbidden", "loc": ["seed"]}]}})
    ),
    "Fireworks": no_field("seed", said(400, {"error": {"message": "Extra inputs are not permitted, field: 'seed'"}})),
    "Groq": no_field(
        "seed", said(400, {"error": {"message": "property 'seed' is unsupported, did you mean 'speed'?"}})
    ),
    "xAI": no_field("seed", said(400, {"code": "invalid", "error": "Argument not supported on this model: seed"})),
    "Cloudflare": no_field("seed", said(400, {"errors": [{"message": "oneOf at '/' not met: '/seed'"}]})),
    "LiteLLM": no_field(
        "seed", said(400, {"error": {"message": "does not support parameters: ['seed']", "code": "400"}})
    ),
    "Bedrock, two samplers": lambda body: (
        said(400, {"message": "`temperature` and `top_p` cannot both be specified"})
        if {"temperature", "top_p"} <= body.keys()
        else None
    ),
}


@pytest.mark.parametrize("answer", FIELDS.values(), ids=FIELDS)
def test_an_error_about_a_field_costs_no_row(answer: Answer) -> None:
    """It is learned once: from then on nothing is refused."""
    with Vendor(answer) as server:
        assert kinds(judged(server, 9, concurrency=1)) == [None] * 9
    assert len(server.requests) <= 9 + 9 and all(answer(body) is None for body in server.requests[-8:])


def test_a_template_that_takes_no_options_costs_no_row() -> None:
    """vLLM with Mistral's own tokenizer refuses `chat_template_kwargs`, and names another field."""
    message = {"message": "chat_template is not supported for Mistral tokenizers.", "param": "chat_template"}
    models = [{"id": "judge", "root": "/weights", "owned_by": "vllm"}]
    with Vendor(no_field("chat_template_kwargs", said(400, {"error": message})), models=models) as server:
        assert kinds(judged(server, 9, concurrency=1)) == [None] * 9
    assert "chat_template_kwargs" in server.requests[0]
    assert all("chat_template_kwargs" not in body and "top_k" in body for body in server.requests[-9:])


@pytest.mark.parametrize(
    "message",
    [
        pytest.param("Range of max_tokens should be [1, 1024]", id="dashscope"),
        pytest.param("the valid range of max_tokens is [1, 1024]", id="deepseek"),
        pytest.param("max_tokens: 2048 > 1024, the maximum allowed", id="anthropic"),
        pytest.param("max_tokens is too large: 2048. This model supports at most 1,024 tokens", id="openai"),
        pytest.param("`max_tokens` must be less than or equal to `1024`", id="groq"),
        pytest.param("max_tokens: at most 1024. Request 20261127: 7b1500f", id="with-the-number-of-the-request"),
    ],
)
def test_the_longest_reply_is_learned_once(message: str) -> None:
    fault = said(400, {"error": {"message": message}})
    with Vendor(lambda body: fault if body.get("max_tokens", 0) > 1024 else None) as server:
        assert kinds(judged(server, 9, concurrency=1)) == [None] * 9
    assert [body["max_tokens"] for body in server.requests] == [2048, 2048, *[1024] * 10]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(said(422, {"error": TGI_LONG, "error_type": "validation"}), id="tgi"),
        pytest.param(said(400, {"error": {"message": "max_tokens is too large, the maximum is 64"}}), id="no-room"),
        pytest.param(said(400, {"error": {"message": "max_tokens is too large"}}), id="no-number"),
        pytest.param(
            said(400, {"error": {"message": "maximum context length is 1500, you sent max_tokens 2048 and 20 others"}}),
            id="not-served-with-it-either",
        ),
    ],
)
def test_a_limit_that_is_not_known_costs_no_row(fault: Fault) -> None:
    """Such a row is sent once more without a limit."""
    with Vendor(lambda body: fault if body.get("max_tokens", 0) > 200 else None) as server:
        assert kinds(judged(server, 3, concurrency=1)) == [None] * 3
    assert "max_tokens" not in server.requests[-1] and len(server.requests) <= 2 * 3 + 2


PASSING = {
    # The server's error twice, and how many attempts a row has: a rate limit takes none.
    "Azure's gateway": (
        said(429, {"statusCode": 429, "message": "Rate limit is exceeded. Try again in 1 seconds."}),
        1,
    ),
    "Databricks, 403": (said(403, {"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "Exceeded"}), 1),
    "ByteDance": (said(429, {"error": {"code": "ServerOverloaded", "type": "TooManyRequests"}}), 1),
    "TGI": (said(429, {"error": "Model is overloaded", "error_type": "overloaded"}), 1),
    "TGI, in a 200": (said(200, {"error": "Model is overloaded", "error_type": "overloaded"}), 1),
    "OpenRouter passes on, in a 200": (passed_on(429, "temporarily rate-limited upstream", 200), 1),
    "Cloudflare": (said(429, "error code: 1015"), 1),
    "Cloudflare's time": (said(524, "<html>A timeout occurred</html>"), 3),
    "SiliconFlow": (said(503, {"code": 50603, "message": "System is too busy now.", "data": None}), 3),
    "a model that loads": (said(503, {"error": "Model x is currently loading", "estimated_time": 20.0}), 3),
    "accepted, 202": (said(202, ""), 3),
    "Google's cancelled": (said(499, {"error": {"code": 499, "message": "cancelled", "status": "CANCELLED"}}), 3),
}


@pytest.mark.parametrize(("fault", "attempts"), PASSING.values(), ids=PASSING)
def test_an_error_that_passes_costs_no_row(fault: Fault, attempts: int) -> None:
    faults = iter([fault, fault])
    with Vendor(lambda body: next(faults, None)) as server:
        assert kinds(judged(server, 3, concurrency=1, max_attempts=attempts)) == [None] * 3


BALANCE = {"message": "suspended due to insufficient balance", "type": "exceeded_current_quota_error"}
UNUSABLE = {
    "Moonshot, no credit": (said(429, {"error": BALANCE}), "insufficient balance"),
    "the same, passed on": (passed_on(429, {"error": BALANCE}), "insufficient balance"),
    "Zhipu, no credit": (
        said(429, {"error": {"code": "1113", "message": "余额不足或无可用资源包,请充值。"}}),
        "余额不足",
    ),
    "Gemini's key, 400": (said(400, [{"error": {"code": 400, "message": "API key not valid."}}]), "key not valid"),
    "Azure's key": (said(401, {"statusCode": 401, "message": "Unauthorized."}), "rejected the API key .401.: pass"),
    "Azure's deployment": (
        said(404, {"error": {"code": "DeploymentNotFound", "message": "no deployment"}}),
        "no deployment",
    ),
    "OpenRouter's policy": (
        said(404, {"error": {"message": "No endpoints match your data policy", "code": 404}}),
        "policy",
    ),
    "the country": (passed_on(403, {"error": {"message": "Country not supported"}}), "403: .*Country not supported"),
    "another protocol": (said(400, {"error": {"message": "Please use /v1/responses.", "param": ""}}), "v1/responses"),
}


@pytest.mark.parametrize(("fault", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_error_about_everything_stops_the_run_with_its_own_words(fault: Fault, message: str) -> None:
    with Vendor(lambda body: fault) as server, pytest.raises(EngineError, match=message):
        judged(server, 3, concurrency=1)
    assert len(server.requests) <= 3


STREAMED = "".join(
    f"data: {json.dumps(chunk)}\n\n"
    for chunk in (
        {"choices": [{"delta": {"reasoning_content": "fine"}}]},
        {"choices": [{"delta": {"content": "<answer>7</answer>"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 99, "completion_tokens": 7}},
    )
)


@pytest.mark.parametrize(
    ("message", "unknown"),
    [
        pytest.param("This model only support stream mode, please enable the stream parameter", "", id="qwq"),
        pytest.param("parameter.enable_thinking must be set to false for non-streaming calls", "", id="qwen3"),
        pytest.param("Streaming is required for operations that may take long", "", id="anthropic"),
        pytest.param("stream must be true", "stream_options", id="without-a-count"),
        pytest.param("this endpoint requires stream=true", "seed", id="and-a-field"),
    ],
)
def test_a_server_that_replies_in_streams_only(message: str, unknown: str) -> None:
    def answer(body: dict[str, Any]) -> Fault:
        if unknown in body:
            return said(400, {"error": {"message": f"unknown field {unknown}"}})
        return Fault(body=STREAMED) if body.get("stream") else said(400, {"error": {"message": message}})

    with Vendor(answer) as server:
        assert kinds(judged(server, 6, concurrency=1)) == [None] * 6
    assert len(server.requests) <= 14 and server.requests[-1]["stream"]


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(said(403, {"error": {"message": "Your account has been suspended"}}), id="account"),
        pytest.param(said(403, {"statusCode": 403, "message": "Out of call volume quota."}), id="azure-quota"),
        pytest.param(said(403, "<!DOCTYPE html><title>Just a moment...</title>"), id="cloudflare"),
        pytest.param(said(400, {"error": {"message": "The model has been deprecated"}}), id="model"),
        pytest.param(said(429, {"error": {"code": "insufficient_quota", "message": "quota"}}), id="quota"),
        pytest.param(said(302, ""), id="login-page"),
    ],
)
def test_a_server_that_ends_in_a_run_is_no_answers_fault(end: Fault) -> None:
    """Three refusals in a row may be rows'; then a harmless request decides. What was served before is kept."""
    served = iter([None] * 9)
    with Vendor(lambda body: next(served, end)) as server:
        found = kinds(judged(server, 40, concurrency=1))
    assert found == [None] * 8 + ["refused"] * 3 + ["engine"] * 29 and len(server.requests) <= 16


def test_rows_that_are_refused_one_after_the_other_end_no_run() -> None:
    with Vendor(lambda body: said(403, "flagged") if "answer 1" in text_of(body) else None) as server:
        assert kinds(judged(server, 20, concurrency=1)) == [None, "refused", *[None] * 8, *["refused"] * 10]


def test_one_replica_of_five_that_is_down_slows_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken for a rate limit, it made a run six times as long."""
    slowed: list[Any] = []
    monkeypatch.setattr(throttle.Throttle, "overloaded", lambda *given: slowed.append(given))
    monkeypatch.setattr(http, "_pause", lambda attempt, demanded: 0.01)
    turn = itertools.count(1)
    with Vendor(lambda body: said(503, "no healthy upstream") if next(turn) % 5 == 0 else None) as server:
        assert kinds(judged(server, 40, concurrency=4)) == [None] * 40
    assert not slowed


def test_a_pause_that_one_answer_demands_holds_the_others_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "_OVERLOAD_S", 0.01)

    async def enters() -> None:
        held = throttle.Throttle(2)
        held.overloaded(asyncio.get_running_loop().time(), 30.0)
        async with asyncio.timeout(5):
            await held.enter()

    asyncio.run(enters())


@pytest.mark.parametrize("poison", [1, 3])
def test_a_row_that_always_gets_a_503_ends(poison: int) -> None:
    bad = [f"answer {n}" for n in range(poison)]
    with Vendor(
        lambda body: (
            Fault(status=503)
            if any(f'{one}"' in text_of(body) or f"{one}\\n" in text_of(body) for one in bad)
            else None
        )
    ) as server:
        found = kinds(judged(server, 12, concurrency=4))
    assert found == ["transport"] * poison + [None] * (12 - poison)
    assert len(server.requests) <= 12 + poison * 16
