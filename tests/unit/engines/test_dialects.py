"""ServerEngine with the servers that people have: what they refuse, what they call things, and how they reply."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flexjudge_reward import (
    BudgetForcing,
    EngineError,
    Example,
    ExpectedScore,
    Format,
    Judge,
    Media,
    MultipleChoice,
    Pairwise,
    Pointwise,
    Record,
    Sampling,
    ServerEngine,
    read_record,
)
from flexjudge_reward.engines import http, throttle
from support.fault_server import Fault, FaultServer, reply
from support.vendors import GOOD, Answer, Vendor, error, judged, kinds, text_of


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (http, throttle):
        monkeypatch.setattr(module, "_pause", lambda attempt, demanded: 0.001)


# ---- the refusal of one row is that row's, whatever its status

REFUSALS = {
    "moderation, 403": error(403, "the input was flagged by moderation: violence", code=403),
    "firewall, 403 html": Fault(status=403, body="<html>Request blocked</html>"),
    "moderation, 400": error(400, "content management policy", code="content_filter"),
    "no such route for it, 404": error(404, "no endpoint supports this input"),
    "401 of a gateway": error(401, "policy"),
    "too large, 413": Fault(status=413, body="Request Entity Too Large"),
    "no images, 415": error(415, "images are not supported by this model"),
    "422 of a list": Fault(status=422, body=json.dumps({"detail": [{"msg": "invalid", "loc": ["body", "messages"]}]})),
    "451": error(451, "unavailable for legal reasons"),
    "501": error(501, "this input is not implemented"),
    "redirect": Fault(status=302, headers={"Location": "https://elsewhere/"}),
    "error in a 200": Fault(body=json.dumps({"error": {"code": 403, "message": "flagged"}})),
    "error in the choice": Fault(body=json.dumps({"choices": [{"error": {"code": 400, "message": "flagged"}}]})),
    "words about a field": error(403, "your prompt asks to stop the seed of a temperature"),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("flagged", [0, 2])
@pytest.mark.parametrize("concurrency", [1, 64])
def test_a_refused_row_fails_alone(refusal: Fault, flagged: int, concurrency: int) -> None:
    """Also the first one, and with its own reason: the API key is not to blame."""
    with Vendor(lambda body: refusal if f"answer {flagged}" in text_of(body) else None) as server:
        verdicts = judged(server, concurrency=concurrency)
    assert kinds(verdicts) == ["refused" if n == flagged else None for n in range(6)]
    assert "API key" not in str(verdicts[flagged].failure)
    assert len(server.requests) <= 6 + 2  # the refused one once, and at most one harmless request whole and bare


UNUSABLE = {
    "key, 401": (error(401, "wrong"), "rejected the API key .401."),
    "key, 403": (error(403, "not permitted here"), "403: not permitted here.*look at the API key .pass api_key="),
    "model, 404": (error(404, "no such model"), "no such model. It lists the models: judge"),
    "model, 400": (error(400, "the model does not exist"), "the model does not exist"),
    "credit, 402": (error(402, "insufficient balance"), "insufficient balance"),
    "credit, 429": (error(429, "you exceeded your quota", code="insufficient_quota"), "exceeded your quota"),
    "moved, 301": (Fault(status=301, headers={"Location": "https://new.example/v1"}), "redirects to https://new.ex"),
    "not here, 405": (Fault(status=405, body="method not allowed"), "405"),
}


@pytest.mark.parametrize(("fault", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_server_that_serves_nothing_stops_the_run(fault: Fault, message: str) -> None:
    if "insufficient_quota" in fault.body:
        fault = error(429, "you exceeded your quota: insufficient_quota")
    with Vendor(lambda body: fault) as server, pytest.raises(EngineError, match=message):
        judged(server, 20)
    assert len(server.requests) <= 20 + 2


# ---- a field that a server does not know is left out from then on


def takes_no(*fields: str, say: Callable[[str], Fault]) -> Answer:
    return lambda body: next((say(name) for name in fields if name in body), None)


def together(body: dict[str, Any]) -> Fault | None:
    both = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
    return error(400, both) if {"temperature", "top_p"} <= body.keys() else None


NAMED = {
    "OpenAI's param": (("seed",), lambda name: error(400, f"Unsupported parameter: '{name}'", param=name)),
    "only its param": (("top_p",), lambda name: error(400, "invalid request", param=name)),
    "FastAPI's list": (
        ("seed",),
        lambda name: Fault(
            status=422,
            body=json.dumps({"detail": [{"type": "extra_forbidden", "loc": ["body", name], "msg": "extra"}]}),
        ),
    ),
    "only in the message": (("seed", "top_p"), lambda name: error(400, f"Unrecognized request argument: {name}")),
    "a plain text": (("temperature",), lambda name: Fault(status=400, body=f"{name} is not supported by this model")),
    "as a 500": (("seed",), lambda name: error(500, f"unexpected keyword argument '{name}'")),
    "as a 404": (("seed",), lambda name: error(404, f"No endpoints found that support {name}: it is not supported")),
    "as an error in a 200": (
        ("top_p",),
        lambda name: Fault(body=json.dumps({"error": {"code": 400, "message": f"unknown field {name}"}})),
    ),
    "without a name": (("seed",), lambda name: error(400, "bad request")),
    "two without a name": (("seed", "top_p"), lambda name: error(400, "bad request")),
    "nothing but a status": (("temperature",), lambda name: Fault(status=400)),
}


@pytest.mark.parametrize(("fields", "say"), NAMED.values(), ids=NAMED)
def test_an_unknown_field_is_left_out(
    fields: tuple[str, ...], say: Callable[[str], Fault], caplog: pytest.LogCaptureFixture
) -> None:
    """From then on, in later calls, too; one warning says so."""
    with Vendor(takes_no(*fields, say=say)) as server, ServerEngine(server.url, "judge", concurrency=1) as engine:
        judge = Judge(Pointwise(), engine)
        first = judge([Example("q", [f"answer {n}"]) for n in range(4)])
        asked = len(server.requests)
        second = judge([Example("q", [f"answer {n}"]) for n in range(4, 8)])
        assert kinds(first + second) == [None] * 8
        assert len(server.requests) - asked == 4  # nothing is refused any more
    for name in fields:
        assert [name in record.message for record in caplog.records].count(True) == 1
    assert not {*fields} & server.requests[-1].keys() and "max_tokens" in server.requests[-1]


@pytest.mark.parametrize(
    "quoted",
    [
        pytest.param("temperature is not supported", id="field"),
        pytest.param("'seed' is an unknown parameter", id="another"),
        pytest.param("System role not supported", id="system-turn"),
        pytest.param("Use max_completion_tokens instead; max_tokens is unsupported", id="limit"),
        pytest.param("roles must alternate", id="roles"),
    ],
)
def test_a_refusal_that_quotes_a_candidate_teaches_nothing(quoted: str) -> None:
    """Else an answer could change what the judge is sent for all others."""

    def answer(body: dict[str, Any]) -> Fault | None:
        return error(400, f"flagged: {quoted}") if "answer 1" in text_of(body) else None

    with Vendor(answer) as server:
        assert kinds(judged(server, concurrency=1)) == [None, "refused", None, None, None, None]
    last = server.requests[-1]
    assert {"temperature", "seed", "max_tokens"} <= last.keys() and last["messages"][0]["role"] == "system"


def test_two_fields_that_exclude_each_other() -> None:
    with Vendor(together) as server:
        assert kinds(judged(server, concurrency=1)) == [None] * 6
    assert len(server.requests) <= 9 and "temperature" in server.requests[-1]


@pytest.mark.parametrize(
    "say",
    [
        pytest.param("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", id="named"),
        pytest.param("max_tokens is not supported with this model", id="other-name-not-said"),
        pytest.param("bad request", id="nothing-said"),
        pytest.param("max_tokens: Extra inputs are not permitted", id="pydantic"),
        pytest.param("Unrecognized request argument supplied: max_tokens", id="unrecognized"),
        pytest.param("'max_tokens' is deprecated in favor of 'max_completion_tokens'", id="deprecated"),
    ],
)
def test_a_limit_under_another_name(say: str) -> None:
    """A reply is limited all the same, and requests are not sent twice."""
    with Vendor(takes_no("max_tokens", say=lambda name: error(400, say))) as server:
        assert kinds(judged(server, 12, sampling=Sampling(max_tokens=500), concurrency=1)) == [None] * 12
    assert [body.get("max_completion_tokens") for body in server.requests[-11:]] == [500] * 11
    assert len(server.requests) <= 12 + 10


PREFILL = {
    "unknown field": error(400, "Unrecognized request argument: continue_final_message"),
    "no prefill": error(400, "The conversation must end with a user message."),
    "extra field": Fault(
        status=422,
        body=json.dumps({"detail": [{"type": "extra_forbidden", "loc": ["body", "continue_final_message"]}]}),
    ),
    "roles": error(400, "the last message must be from the user"),
    "refused without a reason": error(400, "bad request"),
    "another status": error(501, "prefill is not implemented"),
}


@pytest.mark.parametrize("refusal", PREFILL.values(), ids=PREFILL)
def test_a_reply_that_cannot_be_continued_stays_cut(refusal: Fault) -> None:
    """What went wrong is the token limit: that is the failure, with its advice."""
    cut = Fault(body=reply("<think>first I look at", "length"))
    with Vendor(lambda body: refusal if body["messages"][-1]["role"] == "assistant" else cut) as server:
        assert kinds(judged(server, 3, BudgetForcing(Pointwise(), 16), concurrency=1)) == ["truncated"] * 3


def test_log_probabilities_that_a_server_does_not_know_are_unsupported_by_name() -> None:
    with Vendor(takes_no("logprobs", say=lambda name: error(400, f"{name} is not supported"))) as server:
        verdicts = judged(server, 3, ExpectedScore(Pointwise()))
    assert kinds(verdicts) == ["unsupported"] * 3 and "logprobs" in str(verdicts[0].failure)


@pytest.mark.parametrize(
    "say",
    [
        pytest.param("System role not supported", id="gemma"),
        pytest.param("Conversation roles must alternate user/assistant/user/assistant", id="mistral"),
        pytest.param("'messages[0].role' does not support 'system' with this model.", id="openai"),
        pytest.param("bad request", id="nothing-said"),
    ],
)
def test_a_server_without_a_system_turn_gets_the_instructions_with_the_question(say: str) -> None:
    with Vendor(lambda body: error(400, say) if body["messages"][0]["role"] == "system" else None) as server:
        assert kinds(judged(server, concurrency=1)) == [None] * 6
    (message,) = server.requests[-1]["messages"]
    assert message["role"] == "user" and "judge" in message["content"].lower() and "answer 5" in message["content"]


# ---- a reply in any dialect is read once


def choice(message: Mapping[str, Any], finish: str | None = "stop") -> Fault:
    return Fault(body=json.dumps({"choices": [{"finish_reason": finish, "message": message}]}))


def events(*deltas: Mapping[str, Any], finish: str | None = "stop") -> Fault:
    chunks = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({"choices": [{"delta": {}, "finish_reason": finish}]})
    return Fault(body="".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n")


THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "fine"}]}
TEXT = {"type": "text", "text": "<answer>7</answer>"}
DIALECTS = {
    "text": choice({"content": GOOD}),
    "thought and text": choice({"content": [THOUGHT, TEXT]}),
    "a thought that is a text": choice({"content": [{"type": "thinking", "thinking": "fine"}, TEXT]}),
    "a chunk of reasoning": choice({"content": [{"type": "reasoning", "text": "fine"}, TEXT]}),
    "text chunks only": choice({"content": [{"type": "text", "text": GOOD[:9]}, {"type": "text", "text": GOOD[9:]}]}),
    "output_text": choice({"content": [{"type": "output_text", "text": GOOD}]}),
    "a list of texts": choice({"content": [GOOD]}),
    "one chunk": choice({"content": {"type": "text", "text": GOOD}}),
    "reasoning": choice({"content": "<answer>7</answer>", "reasoning": "fine"}),
    "reasoning_content": choice({"content": "<answer>7</answer>", "reasoning_content": "fine"}),
    "thinking": choice({"content": "<answer>7</answer>", "thinking": "fine"}),
    "reasoning twice": choice({"content": [THOUGHT, TEXT], "reasoning": "fine"}),
    "end_turn": choice({"content": GOOD}, "end_turn"),
    "STOP": choice({"content": GOOD}, "STOP"),
    "eos": choice({"content": GOOD}, "eos"),
    "no finish reason": choice({"content": GOOD}, None),
    "201": Fault(status=201, body=reply(GOOD)),
    "a stream of events": events({"role": "assistant", "content": GOOD[:8]}, {"content": GOOD[8:]}),
    "a stream with reasoning": events(
        {"reasoning_content": "fi"}, {"reasoning_content": "ne"}, {"content": TEXT["text"]}
    ),
}


@pytest.mark.parametrize("answer", DIALECTS.values(), ids=DIALECTS)
def test_a_reply_in_any_dialect_is_read_and_paid_once(answer: Fault) -> None:
    with Vendor(lambda body: answer) as server:
        (verdict,) = judged(server, 1)
    assert (verdict.scores, verdict.reasoning) == ((7.0,), "fine") and len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        pytest.param(choice({"content": "<think>so"}, "MAX_TOKENS"), "truncated", id="max-tokens"),
        pytest.param(choice({"content": "<think>so"}, "model_length"), "truncated", id="model-length"),
        pytest.param(choice({"content": [THOUGHT]}, "length"), "truncated", id="cut-in-a-chunk"),
        pytest.param(choice({"content": "no"}, "SAFETY"), "refused", id="safety"),
        pytest.param(choice({"content": None, "refusal": "no"}), "refused", id="refusal-field"),
        pytest.param(choice({"content": None, "tool_calls": [{}]}, "tool_calls"), "engine", id="tool-call"),
        pytest.param(choice({"content": None}), "empty", id="nothing"),
        pytest.param(choice({"content": [7]}), "engine", id="chunk-of-no-kind"),
        pytest.param(choice({"content": "<answer>7</answer>"}, None), "malformed", id="no-finish-and-cut"),
    ],
)
def test_a_reply_without_a_score_is_typed_and_paid_once(answer: Fault, kind: str) -> None:
    with Vendor(lambda body: answer) as server:
        assert kinds(judged(server, 1)) == [kind]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(events({"content": GOOD[:12]}, finish=None), id="cut"),
        pytest.param(Fault(body='data:{"choices":1}'), id="no-list"),
        pytest.param(Fault(body='data:{"choices":[null]}'), id="no-choice"),
        pytest.param(Fault(body='data:{"choices":[{"delta":10}]}'), id="no-delta"),
        pytest.param(Fault(body="data: nothing"), id="no-json"),
    ],
)
def test_a_broken_stream_is_asked_again(broken: Fault) -> None:
    answers = iter([broken, Fault(body=reply(GOOD))])
    with Vendor(lambda body: next(answers)) as server:
        assert kinds(judged(server, 1)) == [None]


@pytest.mark.parametrize("size", [10**6, 2**25])
def test_an_answer_without_end_is_not_read(size: int) -> None:
    """A reply is a few kilobytes; memory is not filled with more than 16 MiB of it."""
    long = "<think>" + "x" * size + "</think><answer>7</answer>"
    with Vendor(lambda body: Fault(body=reply(long)) if "answer 1" in text_of(body) else None) as server:
        assert kinds(judged(server, 3)) == [None, None if size < 2**24 else "refused", None]


# ---- the judge saw what was sent


@pytest.mark.parametrize(
    ("tokens", "candidate", "failed"),
    [
        pytest.param(2050, "The quick brown fox jumps over the lazy dog. " * 2000, True, id="ollama"),
        pytest.param(4096, "word " * 6000, True, id="small-context"),
        pytest.param(6300, "word " * 6000, False, id="whole"),
        pytest.param(0, "word " * 6000, False, id="not-reported"),
        pytest.param(900, "x" * 6000, False, id="one-long-word"),
        pytest.param(900, "。" * 6000, False, id="no-spaces"),
        pytest.param(60, "a short answer of a few words", False, id="made-up-number"),
        pytest.param(1026, "word " * 1500, True, id="half-of-a-short-context"),
    ],
)
def test_a_prompt_that_the_server_cut_is_a_failure(tokens: int, candidate: str, failed: bool) -> None:
    body = json.loads(reply(GOOD)) | {"usage": {"prompt_tokens": tokens, "completion_tokens": 9}}
    with Vendor(lambda _: Fault(body=json.dumps(body))) as server, ServerEngine(server.url, "judge") as engine:
        (verdict,) = Judge(Pointwise(), engine)([Example("Is it a good text?", [candidate])])
    assert (verdict.failure.kind if verdict.failure else None) == ("prompt_cut" if failed else None)


@pytest.mark.parametrize("reported", [True, False])
@pytest.mark.parametrize("calls", [1, 40])
def test_a_server_that_drops_the_system_turn_gets_the_instructions_with_the_question(
    reported: bool, calls: int, tmp_path: Path
) -> None:
    """Where it counts its tokens, this is found out: before a batch of 32, or once 32 rows were judged."""

    def answer(body: dict[str, Any]) -> Fault:
        read = sum(len(message["content"].split()) for message in body["messages"] if message["role"] != "system")
        usage = {"prompt_tokens": 2 * read + 20 if reported else 0, "completion_tokens": 5}
        return Fault(body=json.dumps(json.loads(reply(GOOD)) | {"usage": usage}))

    rows = [Example("q " * 400, [f"answer {n}"]) for n in range(40)]
    with Vendor(answer) as server, ServerEngine(server.url, "judge") as engine:
        judge = Judge(Pointwise(), engine, record=Record(tmp_path / "record.jsonl"))
        for call in range(calls):
            judge(rows[call::calls])
    assert len(server.requests) == 40 + (2 if reported else 1)
    assert (
        [message["role"] for message in server.requests[-1]["messages"]] == ["user"] if reported else ["system", "user"]
    )
    last = list(read_record(tmp_path / "record.jsonl"))[-1]
    assert last["judge"]["system_turn"] is not reported


def test_a_single_row_without_its_instructions_is_noticed() -> None:
    def answer(body: dict[str, Any]) -> Fault:
        read = sum(len(message["content"].split()) for message in body["messages"] if message["role"] != "system")
        usage = {"prompt_tokens": int(1.3 * read) + 10, "completion_tokens": 5}
        return Fault(body=json.dumps(json.loads(reply(GOOD)) | {"usage": usage}))

    with Vendor(answer) as server:
        assert kinds(judged(server, 1)) == [None]
    assert [len(body["messages"]) for body in server.requests] == [2, 2, 1, 1]  # the two in between count tokens


@pytest.mark.parametrize("format", [MultipleChoice(), Pairwise()])
def test_every_image_is_named_in_the_text(format: Format) -> None:
    """Many servers put all images of a prompt before its text."""
    red, green, blue = (Media.image(Image.new("RGB", (32, 32), colour)) for colour in ("red", "green", "blue"))
    answer = "A" if isinstance(format, MultipleChoice) else "7</answer><answer>5"
    said = Fault(body=reply(f"<think>x</think><answer>{answer}</answer>"))
    with Vendor(lambda body: said) as server, ServerEngine(server.url, "judge") as engine:
        Judge(format, engine)([Example([red, "Which is the same colour, only lighter?"], [green, blue])])
    parts = server.requests[0]["messages"][-1]["content"]
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    assert re.findall(r"image (\d) of (?:the )?(\w+)", text) == [("1", "question"), ("2", "answer"), ("3", "answer")]
    before = [parts[n - 1].get("text", "") for n, part in enumerate(parts) if part["type"] == "image_url"]
    assert [re.search(r"image (\d) of", text[-40:]) is not None for text in before] == [True] * 3


# ---- rate limits


class Limited:
    """Serves one request per interval and answers 429, or `status`, to all others."""

    def __init__(self, seconds: float, status: int = 429, **fault: Any) -> None:
        self.seconds, self.next, self.lock, self.fault = seconds, 0.0, threading.Lock(), fault | {"status": status}

    def __call__(self, body: dict[str, Any]) -> Fault | None:
        with self.lock:
            if monotonic() < self.next:
                return Fault(**{"body": '{"error": {"message": "rate limit reached"}}'} | self.fault)
            self.next = monotonic() + self.seconds
        return None


@pytest.mark.parametrize(
    ("headers", "attempts"),
    [
        pytest.param({}, 5, id="no-header"),
        pytest.param({"Retry-After": "0.02"}, 5, id="seconds"),
        pytest.param({"Retry-After-Ms": "20"}, 5, id="milliseconds"),
        pytest.param({"Retry-After": "0"}, 5, id="zero"),
        pytest.param({}, 1, id="one-attempt"),
    ],
)
def test_a_steady_rate_limit_loses_no_row(
    headers: dict[str, str], attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "_pause", lambda nth, demanded: 0.01 if demanded is None else demanded)
    with Vendor(Limited(0.02, headers=headers)) as server:
        assert kinds(judged(server, 32, max_attempts=attempts)) == [None] * 32


@pytest.mark.parametrize(
    "busy",
    [
        pytest.param({"body": "<html><h1>503 Service Temporarily Unavailable</h1></html>"}, id="nginx"),
        pytest.param({"body": "upstream connect error. reset reason: overflow"}, id="envoy"),
        pytest.param({"body": "", "headers": {"Retry-After": "0.02"}}, id="with-a-pause"),
        pytest.param({"body": '{"error": "Model too busy, unable to get response"}'}, id="hugging-face"),
        pytest.param({"status": 200, "body": '{"error": {"code": 503, "message": "no slot"}}'}, id="in-a-200"),
    ],
)
def test_a_503_for_what_is_over_a_limit_loses_no_row(busy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """nginx's own status for it. Attempts alone lost a third of these rows."""
    for module in (http, throttle):
        monkeypatch.setattr(module, "_pause", lambda nth, demanded: 0.01 if demanded is None else demanded)
    with Vendor(Limited(0.02, **{"status": 503} | busy)) as server:
        assert kinds(judged(server, 32, concurrency=8)) == [None] * 32


def test_a_limit_that_never_ends_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "PATIENCE", 6)
    with Vendor(lambda body: error(429, "slow down")) as server:
        verdicts = judged(server, 5)
    assert kinds(verdicts) == ["transport"] * 5 and "slow down" in str(verdicts[0].failure)


# ---- the environment


def set_environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"HTTP_PROXY": "URL", "http_proxy": "URL"}, id="both-cases"),
        pytest.param({"http_proxy": "URL"}, id="lower-case"),
        pytest.param({"ALL_PROXY": "URL", "all_proxy": "URL"}, id="all"),
        pytest.param({"http_proxy": "LOGIN"}, id="login"),
    ],
)
def test_a_judge_behind_the_proxy_of_the_environment(values: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer() as proxy:
        url = proxy.url.removesuffix("/v1")
        known = {"URL": url, "LOGIN": url.replace("//", "//canary-user:canary-password@")}
        set_environment(monkeypatch, **{name: known[value] for name, value in values.items()})
        with ServerEngine("http://judge.invalid/v1", "judge", max_attempts=1, timeout=10) as engine:
            Judge(Pointwise(), engine)([Example("q", ["item 1"])])
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("excepted", ["127.0.0.1,localhost", "*", "127.0.0.1"])
def test_a_judge_on_the_own_machine_goes_past_the_proxy(excepted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, http_proxy="http://127.0.0.1:9", no_proxy=excepted)
    with FaultServer() as local:
        judged(local, 1)
    assert len(local.requests) == 1


def test_headers_of_a_gateway(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Azure's key is in a header of its own; a value may name a variable, and shows nowhere."""
    monkeypatch.setenv("GATEWAY_KEY", "canary-secret")
    caplog.set_level(logging.DEBUG)
    with Vendor(lambda body: error(403, "canary-secret is wrong") if "answer 1" in text_of(body) else None) as server:
        verdicts = judged(server, 3, headers={"api-key": "$GATEWAY_KEY", "x-team": "a"})
    assert server.headers["api-key"] == "canary-secret" and server.headers["x-team"] == "a"
    assert kinds(verdicts) == [None, "refused", None] and "canary" not in str(verdicts) + caplog.text


# ---- images on their way


def photo(width: int = 3000, height: int = 2000) -> bytes:
    import io

    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 255, (height // 16, width // 16, 3), np.uint8)).resize((width, height))
    grain = np.asarray(rough, np.int16) + rng.normal(0, 4, (height, width, 1)).astype(np.int16)
    out = io.BytesIO()
    Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=88)
    return out.getvalue()


@pytest.mark.parametrize(
    ("options", "kind", "most"),
    [
        pytest.param({}, "image/jpeg", 2.0, id="as-it-was"),
        pytest.param({"image_format": "png"}, "image/png", 12.0, id="without-loss"),
        pytest.param({"max_pixels": 100_000}, "image/jpeg", 0.5, id="smaller"),
        pytest.param({"image_format": "jpeg"}, "image/jpeg", 2.0, id="as-jpeg"),
        pytest.param({"image_format": "png", "max_pixels": 100_000}, "image/png", 3.0, id="smaller-without-loss"),
        pytest.param({"max_pixels": 10**9}, "image/jpeg", 2.0, id="small-enough"),
    ],
)
def test_a_photograph_is_sent_about_as_large_as_it_is(options: dict[str, Any], kind: str, most: float) -> None:
    data = photo(900, 600)
    with Vendor(lambda body: None) as server, ServerEngine(server.url, "judge", **options) as engine:
        Judge(Pointwise(), engine)([Example([Media.image(data), "What is it?"], ["a"])])
    (url,) = [part["image_url"]["url"] for part in server.requests[0]["messages"][1]["content"] if "image_url" in part]
    assert url.startswith(f"data:{kind};base64,") and len(url) < most * len(data)


@pytest.mark.parametrize(
    ("each", "shown", "kind"),
    [
        pytest.param(0, False, "unsupported", id="dropped"),
        pytest.param(64, False, None, id="read-as-tokens"),
        pytest.param(0, True, None, id="shown-and-not-counted"),
        pytest.param(None, False, None, id="nothing-counted"),
    ],
)
@pytest.mark.parametrize("part", ["image_url", "input_audio"])
def test_a_server_that_drops_images_or_sounds_gives_no_score(
    part: str, each: int | None, shown: bool, kind: str | None
) -> None:
    """A judge that reads text only would score a picture that it was never shown, or a sound."""

    def answer(body: dict[str, Any]) -> Fault:
        contents = [message["content"] for message in body["messages"]]
        parts = [
            one for held in contents for one in ([{"type": "text", "text": held}] if isinstance(held, str) else held)
        ]
        media = [str(one[part]) for one in parts if one["type"] == part]
        tokens = sum(len(one.get("text", "").split()) for one in parts) + len(media) * (each or 0) + 30
        said = GOOD.replace("fine", json.dumps(media)[1:-1].replace('"', "")) if shown else GOOD
        usage = {"prompt_tokens": 0 if each is None else 2 * tokens, "completion_tokens": 5}
        return Fault(body=json.dumps(json.loads(reply(said)) | {"usage": usage}))

    image, sound = part == "image_url", part == "input_audio"
    media = (
        [Media.image(Image.new("RGB", (32, 32), (9 * n, 0, 0))) for n in range(4)]
        if image
        else [Media.audio((np.full(800, 0.1 * n), 16_000)) for n in range(4)]
    )
    with Vendor(answer) as server, ServerEngine(server.url, "judge") as engine:
        verdicts = Judge(Pointwise(), engine)(
            [*(Example([one, "Is it red?"], ["yes"]) for one in media), Example("q", ["a"])]
        )
    assert kinds(verdicts) == [kind] * 4 + [None]
    assert kind is None or f"shows its model no {'sounds' if sound else 'images'}" in str(verdicts[0].failure)
    assert len(server.requests) == 5 + {None: 0, 64: 2, 0: 3}[each]  # asked once
