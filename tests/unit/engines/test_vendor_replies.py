"""Answers of vendors' servers, byte for byte as they come: whole replies in their dialects, limits, refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from flexjudge_reward import Example, ExpectedScore, Generation, Judge, Pointwise, ScriptedEngine
from flexjudge_reward.engines.answers import Passing, Refusal, Reply, read
from flexjudge_reward.engines.chat_codec import ChatCodec

ANSWER = "<answer>7</answer>"
GOOD = f"<think>fine</think>{ANSWER}"


def completion(message: Mapping[str, Any] | None, finish: Any = "stop", **more: Any) -> str:
    choice = {"index": 0, "finish_reason": finish, "message": message}
    return json.dumps({"choices": [choice], **more}, ensure_ascii=False)


def delta(content: Any, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": content}, "finish_reason": finish}]}


def events(*chunks: Any, before: str = "", between: str = "\n\n") -> str:
    return before + "".join(f"data: {json.dumps(one, ensure_ascii=False)}{between}" for one in chunks) + "data: [DONE]"


def decoded(body: str) -> Generation:
    answer = read(200, {}, body.encode(), str)
    assert isinstance(answer, Reply), answer
    return ChatCodec({"model": "judge"}, frozenset()).decode(answer.body)


THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "fine"}]}
WHOLE = {
    "byte order mark": "\ufeff" + completion({"content": GOOD}),
    "blank lines first": "\n \n" + completion({"content": GOOD}),
    "null for an error": completion({"content": GOOD, "refusal": None, "tool_calls": []}, error=None),
    "usage a text": completion({"content": GOOD}, usage="n/a"),
    "usage a list": completion({"content": GOOD}, usage=["many"]),
    "tokens a word": completion({"content": GOOD}, usage={"prompt_tokens": "n/a"}),
    "tokens NaN": completion({"content": GOOD}, usage={"prompt_tokens": float("nan")}),
    "tokens without end": completion({"content": GOOD}, usage={"completion_tokens": float("inf")}),
    "tokens beyond all floats": completion({"content": GOOD}, usage={"prompt_tokens": 10**400}),
    "tokens below zero": completion({"content": GOOD}, usage={"prompt_tokens": -1, "completion_tokens": -1}),
    "tokens an object": completion({"content": GOOD}, usage={"prompt_tokens": {"text": 3}}),
    "two names, one empty": completion({"content": ANSWER, "reasoning": "", "reasoning_content": "fine"}),
    "a switch of that name": completion({"content": GOOD, "thinking": False, "reasoning": None}),
    "reasoning an object": completion({"content": ANSWER, "reasoning": {"content": "fine"}}),
    "reasoning a list": completion({"content": ANSWER, "reasoning_content": [{"type": "text", "text": "fine"}]}),
    "OpenRouter's details": completion(
        {"content": ANSWER, "reasoning_details": [{"type": "reasoning.text", "text": "fine"}]}
    ),
    "OpenRouter's summary": completion(
        {"content": ANSWER, "reasoning_details": [{"type": "reasoning.summary", "summary": "fine"}]}
    ),
    "LiteLLM's blocks": completion({"content": ANSWER, "thinking_blocks": [{"type": "thinking", "thinking": "fine"}]}),
    "a summary as a chunk": completion(
        {
            "content": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "fine"}]},
                {"type": "output_text", "text": ANSWER},
            ]
        }
    ),
    "Bedrock's chunks": completion(
        {"content": [{"reasoningContent": {"reasoningText": {"text": "fine"}}}, {"text": ANSWER}]}
    ),
    "<thinking>": completion({"content": f"<thinking>fine</thinking>{ANSWER}"}),
    "<thought>": completion({"content": f"<thought>\nfine\n</thought>{ANSWER}"}),
    "<reasoning>": completion({"content": f"\n<reasoning>fine</reasoning>{ANSWER}"}),
    "Seed": completion({"content": f"<seed:think>fine</seed:think>{ANSWER}"}),
    "Kimi": completion({"content": f"◁think▷fine◁/think▷{ANSWER}"}),
    "Gemma 4": completion({"content": f"<|channel>thought\nfine<channel|>{ANSWER}"}),
    "Cohere": completion({"content": f"<|START_THINKING|>fine<|END_THINKING|><|START_RESPONSE|>{ANSWER}"}),
    "OpenThinker": completion({"content": f"<|begin_of_thought|>fine<|end_of_thought|>{ANSWER}"}),
    "LongCat": completion({"content": f"<longcat_think>fine</longcat_think>{ANSWER}"}),
    "<Analysis>": completion({"content": f"<Analysis>fine</Analysis>{ANSWER}"}),
    "<THINK>": completion({"content": f"<THINK>fine</THINK>{ANSWER}"}),
    "a text in place of the message": json.dumps({"choices": [{"text": GOOD, "finish_reason": "stop"}]}),
    "a delta in place of the message": json.dumps(delta(GOOD, "stop")),
    "in an envelope": '{"code": 0, "msg": "ok", "data": ' + completion({"content": GOOD}) + "}",
    "in a list": f"[{completion({'content': GOOD})}]",
    "Ollama's own": json.dumps({"message": {"role": "assistant", "content": GOOD}, "done_reason": "stop"}),
    "Cohere's own": json.dumps(
        {"message": {"role": "assistant", "content": [{"type": "text", "text": GOOD}]}, "finish_reason": "COMPLETE"}
    ),
    "Anthropic's own": json.dumps(
        {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": ANSWER}], "stop_reason": "end_turn"}
    ),
    "a chunk of null": completion({"content": [None, {"type": "text", "text": GOOD}]}),
    "a text as an object": completion({"content": [{"type": "text", "text": {"value": GOOD}}]}),
    "finish done": completion({"content": GOOD}, "done"),
    "a comment, then no stream": ": PROCESSING\n\n" + completion({"content": GOOD}),
    "chunks without their marks": "\n".join(json.dumps(delta(*one)) for one in ((GOOD[:9],), (GOOD[9:], "stop"))),
    "bytes behind the end": completion({"content": GOOD}) + "\0\n<!-- served by x -->",
    "finish as a class": completion({"content": GOOD}, "FinishReason.STOP"),
    "finish in Baidu's words": completion({"content": GOOD}, "normal"),
    "finish an object": completion({"content": GOOD}, {"type": "stop", "matched": 151645}),
    "finish null as a text": completion({"content": GOOD}, "null"),
    "stream, a comment first": events(delta(GOOD), delta("", "stop"), before=": OPENROUTER PROCESSING\n\n"),
    "stream, events named": events(delta(GOOD), delta("", "stop"), before="event: message\n"),
    "stream, numbered": events(delta(GOOD), delta("", "stop"), before="id: 1\n"),
    "stream, blank line first": events(delta(GOOD), delta("", "stop"), before="\n"),
    "stream, byte order mark": events(delta(GOOD), delta("", "stop"), before="\ufeff"),
    "stream, a ping first": events(delta(GOOD), delta("", "stop"), before='event: ping\ndata: {"type": "ping"}\n\n'),
    "stream, CRLF": events(delta(GOOD), delta("", "stop"), between="\r\n\r\n"),
    "stream of chunks": events(delta([THOUGHT]), delta(ANSWER), delta("", "stop")),
    "stream of thoughts": events(delta([THOUGHT]), delta([{"type": "text", "text": ANSWER}]), delta("", "stop")),
    "stream, two replies": events(delta("no", index=1), delta(GOOD), delta("no", "stop", 1), delta("", "stop")),
    "stream, whole message": events({"choices": [{"message": {"content": GOOD}, "finish_reason": "stop"}]}),
    "stream, filter results first": events({"choices": [], "prompt_filter_results": []}, delta(GOOD, "stop")),
}


@pytest.mark.parametrize("body", WHOLE.values(), ids=WHOLE)
def test_a_whole_reply_is_read(body: str) -> None:
    reply = decoded(body)
    verdict = Pointwise().read(Example("q", ["a"]), [reply])
    assert (verdict.scores, verdict.reasoning) == ((7.0,), "fine")
    assert reply.prompt_tokens == 0 and reply.completion_tokens == 0


@pytest.mark.parametrize(
    ("raw", "kind", "thought"),
    [
        pytest.param(completion({"content": GOOD}).encode("utf-16"), "", "fine", id="utf-16"),
        pytest.param(
            completion({"content": GOOD}).replace("fine", "é").encode("latin-1"), "latin-1", "é", id="latin-1"
        ),
        pytest.param(completion({"content": GOOD}).encode(), "none-such", "fine", id="no-encoding"),
        *(
            pytest.param(completion({"content": GOOD}).encode().replace(b"fine", b"\xc3"), name, "\ufffd", id=name)
            for name in ("undefined", "idna", "punycode")  # encodings that raise whatever is to be done with errors
        ),
        pytest.param(
            completion({"content": GOOD}).encode().replace(b"fine", b"\xc3"), "", "\ufffd", id="half-a-letter"
        ),
        pytest.param(
            completion({"content": GOOD}).encode().replace(b"fine", b"a\nb"), "", "a\nb", id="a-bare-line-break"
        ),
    ],
)
def test_a_reply_in_another_encoding_is_paid_once(raw: bytes, kind: str, thought: str) -> None:
    answer = read(200, {"Content-Type": f"application/json; charset={kind}"} if kind else {}, raw, str)
    assert isinstance(answer, Reply)
    verdict = Pointwise().read(Example("q", ["a"]), [ChatCodec({"model": "judge"}, frozenset()).decode(answer.body)])
    assert (verdict.scores, verdict.reasoning) == ((7.0,), thought)


def test_a_line_may_end_only_where_the_stream_says_so() -> None:
    """Text in JSON may hold characters that end lines elsewhere."""
    odd = "a\u2028b\u0085c\x1cd"
    verdict = Pointwise().read(Example("q", ["a"]), [decoded(events(delta(f"<think>{odd}</think>{ANSWER}", "stop")))])
    assert (verdict.scores, verdict.reasoning) == ((7.0,), odd)


UNSEEN = {
    "encrypted details": completion(
        {"content": ANSWER, "reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]}
    ),
    "a redacted chunk": completion(
        {"content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": ANSWER}]}
    ),
    "counted only": completion({"content": ANSWER}, usage={"completion_tokens_details": {"reasoning_tokens": 64}}),
}


@pytest.mark.parametrize("body", UNSEEN.values(), ids=UNSEEN)
def test_a_vendor_may_keep_the_reasoning_to_itself(body: str) -> None:
    verdict = Pointwise().read(Example("q", ["a"]), [decoded(body)])
    assert (verdict.scores, verdict.reasoning) == ((7.0,), "")


FAILED = {
    "no reasoning at all": (
        completion({"content": ANSWER}, usage={"completion_tokens_details": {"reasoning_tokens": 0}}),
        "malformed",
    ),
    "unseen, and more than an answer": (
        completion({"content": f"It is good. {ANSWER}"}, usage={"completion_tokens_details": {"reasoning_tokens": 64}}),
        "malformed",
    ),
    "quoted marks of another family": (completion({"content": f"so </thinking>{ANSWER}"}), "malformed"),
    "an open thought of another family": (completion({"content": f"<thought>so {ANSWER}"}), "truncated"),
    "an open thought, quoted": (completion({"content": f"<think>so <thought></thought>{ANSWER}"}), "truncated"),
    "no choices, counted": ('{"choices": [], "usage": {"prompt_tokens": 9}}', "empty"),
    "no message, counted": (completion(None, usage={"prompt_tokens": 9}), "empty"),
    "Azure's filter, no choices": (
        '{"choices": [], "prompt_filter_results": [{"content_filter_results": {"hate": {"filtered": true}}}]}',
        "refused",
    ),
    "Gemini's filter, no choices": ('{"choices": null, "promptFeedback": {"blockReason": "SAFETY"}}', "refused"),
    "filter without a message": ('{"choices": [{"finish_reason": "content_filter"}]}', "refused"),
    "filter with its reason": (completion({"content": None}, "content_filter: PROHIBITED_CONTENT"), "refused"),
    "SPII": (completion({"content": None}, "SPII"), "refused"),
    "image safety": (completion({"content": ""}, "IMAGE_SAFETY"), "refused"),
    "context full": (completion({"content": "<think>so"}, "model_context_window_exceeded"), "truncated"),
    "Cohere's limit": (completion({"content": "<think>so"}, "ERROR_LIMIT"), "truncated"),
    "a limit under another name": (
        json.dumps({"choices": [{"stop_reason": "max_tokens", "message": {"content": "<think>so</think>"}}]}),
        "truncated",
    ),
    "token limit": (completion({"content": "<think>so"}, "token_limit"), "truncated"),
    "tool call": (completion({"content": GOOD, "tool_calls": [{"id": "1"}]}, "tool_calls"), "engine"),
    "a refusal among chunks": (completion({"content": [{"type": "refusal", "refusal": "no"}]}), "refused"),
    "cut, as an object": (completion({"content": "<think>so"}, {"type": "length", "length": 9}), "truncated"),
    "refusal in a stream": (
        events({"choices": [{"delta": {"refusal": "no"}, "finish_reason": "stop"}]}),
        "refused",
    ),
}


@pytest.mark.parametrize(("body", "kind"), FAILED.values(), ids=FAILED)
def test_a_reply_without_a_score_has_its_kind(body: str, kind: str) -> None:
    verdict = Pointwise().read(Example("q", ["a"]), [decoded(body)])
    assert verdict.failure is not None and verdict.failure.kind == kind


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(completion({"content": GOOD}, "insufficient_system_resource"), id="no-resources"),
        pytest.param(completion({"content": GOOD}, "network_error"), id="network"),
        pytest.param(completion({"content": GOOD}, "abort"), id="abort"),
        pytest.param(completion({"content": GOOD}, "TIMEOUT"), id="timeout"),
        pytest.param(completion({"content": GOOD}, {"type": "abort", "message": "x"}), id="abort-as-an-object"),
        pytest.param('{"choices": null}', id="nothing"),
        pytest.param('{"choices": null, "usage": {}, "base_resp": {"status_code": 1013}}', id="minimax"),
        pytest.param('{"error_code": 336100, "error_msg": "try again"}', id="baidu"),
        pytest.param("<!doctype html><title>maintenance</title>", id="page"),
        pytest.param(events(delta(GOOD)), id="stream-cut-by-a-proxy"),
        pytest.param(json.dumps(delta("")), id="one-chunk-of-a-stream"),
        pytest.param(json.dumps({**delta(GOOD), "usage": {"prompt_tokens": 9}}), id="one-chunk-with-a-count"),
        pytest.param("\n".join(map(json.dumps, (delta(GOOD[:9]), delta(GOOD[9:])))), id="chunks-without-an-end"),
        pytest.param(completion({"content": GOOD})[:-9], id="cut"),
        pytest.param(": PROCESSING\n\n" + completion({"content": GOOD})[:-9], id="cut-behind-a-comment"),
        pytest.param('{"message": {"role": "assistant", "content": "<think>"}, "done": false}', id="ollama-not-done"),
        pytest.param(events(delta("<think>"), {"error": {"code": 502, "message": "upstream"}}), id="error-in-a-stream"),
    ],
)
def test_an_interrupted_reply_is_asked_for_again(body: str) -> None:
    answer = read(200, {}, body.encode(), str)
    assert isinstance(answer, Passing) and not answer.limited


BUSY = {"retryDelay": "13.5s"}
GEMINI = {"code": 429, "message": "You exceeded your current quota, please check your plan and billing details."}
LIMITS = {
    "Gemini's": (429, [{"error": GEMINI | {"status": "RESOURCE_EXHAUSTED", "details": [BUSY]}}], 13.5),
    "Bedrock's, 400": (400, {"__type": "ThrottlingException", "message": "Rate exceeded"}, None),
    "Google's, 403": (403, {"error": {"code": 403, "message": "x", "errors": [{"reason": "rateLimitExceeded"}]}}, None),
    "Anthropic's overload, 529": (529, {"error": {"type": "overloaded_error", "message": "Overloaded"}}, None),
    "Groq's capacity, 498": (498, {"error": {"message": "capacity exceeded"}}, None),
    "Gemini's overload, 503": (503, {"error": {"code": 503, "message": "The model is overloaded."}}, None),
    "in a 200": (200, {"error": {"type": "rate_limit_error", "message": "x"}}, None),
    "a code that is a number": (429, {"error": {"code": "1302", "message": "concurrency"}}, None),
}


@pytest.mark.parametrize(("status", "body", "pause"), LIMITS.values(), ids=LIMITS)
def test_a_rate_limit_in_any_form_costs_no_attempt(status: int, body: Any, pause: float | None) -> None:
    answer = read(status, {}, json.dumps(body).encode(), str)
    assert isinstance(answer, Passing) and answer.limited and answer.pause == pause


REFUSED = {
    "no credit": (429, {"error": GEMINI | {"code": "insufficient_quota"}}),
    "larger than a minute's tokens": (429, {"error": {"code": "rate_limit_exceeded", "message": "Request too large"}}),
    "the same, 413": (413, {"error": {"code": "rate_limit_exceeded", "message": "too many tokens per minute"}}),
    "quotes a candidate": (403, {"error": {"message": "flagged: rate limit, throttling, overloaded"}}),
    "a filter in a 200": (200, {"error": {"code": "content_filter", "message": "flagged"}}),
    "an invalid prompt in a 200": (200, {"error": {"type": "invalid_request_error", "message": "flagged"}}),
    "credit, 400": (400, {"error": {"type": "invalid_request_error", "message": "Your credit balance is too low"}}),
}


@pytest.mark.parametrize(("status", "body"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_is_no_rate_limit(status: int, body: Any) -> None:
    assert isinstance(read(status, {}, json.dumps(body).encode(), str), Refusal)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        pytest.param({"prompt_tokens": 9, "cache_read_input_tokens": 3000}, 3009, id="cached-apart"),
        pytest.param({"prompt_tokens": 40, "prompt_tokens_details": {"cached_tokens": 3000}}, 3040, id="details-apart"),
        pytest.param({"prompt_tokens": 3040, "prompt_tokens_details": {"cached_tokens": 3000}}, 3040, id="included"),
        pytest.param({"input_tokens": 9, "cache_creation_input_tokens": 3000}, 3009, id="anthropic"),
        pytest.param({"prompt_tokens": 40, "prompt_tokens_details": [7]}, 40, id="details-of-no-form"),
    ],
)
def test_tokens_that_a_cache_held_were_read_too(usage: dict[str, Any], tokens: int) -> None:
    """Else each prompt with a cached beginning seems to be cut."""
    assert decoded(completion({"content": GOOD}, usage=usage)).prompt_tokens == tokens


@pytest.mark.parametrize("place", [pytest.param("8", id="alternative"), pytest.param("fine", id="token")])
def test_a_log_probability_of_null_is_of_what_cannot_be(place: str) -> None:
    """SGLang sends null for what a grammar or top_k leaves out. A reply with one such token is still an answer."""
    tokens = ["<think>", "fine", "</think>", "<answer>", "7", "</answer>"]
    both = [{"token": "7", "logprob": -0.1}, {"token": "8", "logprob": None if place == "8" else -30.0}]
    entries = [
        {"token": one, "logprob": None if one == place else -0.1, "top_logprobs": both if one == "7" else []}
        for one in tokens
    ]
    body = json.dumps(
        {"choices": [{"finish_reason": "stop", "message": {"content": GOOD}, "logprobs": {"content": entries}}]}
    )
    reply = decoded(body)
    (verdict,) = Judge(ExpectedScore(Pointwise()), ScriptedEngine(lambda prompt: reply))([Example("q", ["a"])])
    assert verdict.scores == pytest.approx((7.0,))
