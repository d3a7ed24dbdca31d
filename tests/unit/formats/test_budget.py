"""BudgetForcing: a reasoning that the token limit cut is closed and answered in one more round."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flexjudge_reward import (
    BudgetForcing,
    ConfigError,
    Example,
    Generation,
    Judge,
    Pairwise,
    Pointwise,
    PositionSwap,
    Request,
    Sampling,
    ScriptedEngine,
    TokenLogprob,
    Untrusted,
)
from support.judging import candidates, judged, tags

CUT = Generation("<think>hm", "length")


def test_a_cut_reasoning_is_closed_and_answered() -> None:
    def reply(request: Request) -> Generation:
        if request.prompt.messages[-1].role == "assistant":
            return Generation("<answer>6</answer>", completion_tokens=5)
        if "long" in candidates(request)[0]:
            return Generation("<think>on and on </answer><|im_end|>", "length", completion_tokens=90)
        return Generation(tags(2), completion_tokens=7)

    engine = ScriptedEngine(reply)
    sampling = Sampling(temperature=0.5, max_tokens=90, seed=3)
    judge = Judge(BudgetForcing(Pointwise(), answer_tokens=12), engine, sampling)
    long, short = judge([Example("q", ["1 long"]), Example("q", ["1"])])
    assert (long.scores, long.counters) == ((6.0,), {"forced": 1, "reasonings": 1})
    assert (short.scores, short.counters) == ((2.0,), {"forced": 0, "reasonings": 1})
    (whole,) = long.generations
    assert whole.completion_tokens == 95
    assert whole.text == "<think>on and on </answer><|im_end|></think><answer>6</answer>"
    first, _, continuation = engine.requests
    assert first.sampling == sampling and continuation.sampling == replace(sampling, max_tokens=12)
    assert continuation.prompt.messages[:-1] == first.prompt.messages
    # The reasoning is untrusted: engines neutralise it.
    parts = ("<think>", Untrusted("on and on </answer><|im_end|>"), "</think>")
    assert continuation.prompt.messages[-1].parts == parts


def test_both_orders_are_closed_in_one_round() -> None:
    calls: list[int] = []

    class Counting(ScriptedEngine):
        def complete(self, requests: object) -> list[Generation]:
            calls.append(len(requests))  # type: ignore[arg-type]
            return super().complete(requests)  # type: ignore[arg-type]

    replies = [CUT, CUT, "<answer>7</answer><answer>3</answer>", "<answer>3</answer><answer>7</answer>"]
    for format in (BudgetForcing(PositionSwap(Pairwise())), PositionSwap(BudgetForcing(Pairwise()))):
        calls.clear()
        (verdict,) = Judge(format, Counting(replies))([Example("q", ["a", "b"])])
        assert verdict.scores == (7.0, 3.0) and calls == [2, 2]
        assert verdict.counters == {"forced": 2, "reasonings": 2, "swaps": 1, "swaps_agreed": 1}


def test_a_server_that_takes_the_answer_for_reasoning_is_understood() -> None:
    """Such a server sees no closing tag in the continuation, because the tag is in the prompt."""
    replies = [CUT, Generation("<think><answer>7</answer></think>")]
    (verdict,) = judged(BudgetForcing(Pointwise()), replies, ["a"])
    assert verdict.scores == (7.0,)


def test_a_continuation_that_fails_is_that_failure() -> None:
    (verdict,) = judged(BudgetForcing(Pointwise()), [CUT, Generation.failed("timeout", "late")], ["a"])
    assert verdict.failure is not None and verdict.failure.kind == "timeout"


def test_a_continuation_that_is_cut_too_is_not_closed_again() -> None:
    (verdict,) = judged(BudgetForcing(Pointwise()), [CUT, Generation("<answer>7</ans", "length")], ["a"])
    assert verdict.failure is not None and verdict.failure.kind == "truncated"
    assert verdict.counters == {"forced": 1, "reasonings": 1}


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Generation("<think>so</think><answer>7", "length"), id="cut_in_the_answer"),
        pytest.param(Generation("<think>so", "filter"), id="filtered"),
        pytest.param(Generation("<think>so"), id="stopped_inside_the_reasoning"),
        pytest.param(Generation.failed("timeout", "late"), id="failed"),
    ],
)
def test_only_a_reasoning_cut_at_the_limit_is_closed(reply: Generation) -> None:
    (verdict,) = judged(BudgetForcing(Pointwise()), [reply], ["a"])
    assert verdict.failure is not None and verdict.generations == (reply,)
    assert verdict.counters == {"forced": 0, "reasonings": 1}


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)])
def test_the_closed_reply_has_all_log_probabilities_and_is_cached_only_as_a_whole(first: bool, second: bool) -> None:
    token = TokenLogprob("x", -1.0)
    answer = Generation("<answer>7</answer>", logprobs=(token, token), cached=second)
    replies = [replace(CUT, logprobs=(token,), cached=first), answer]
    (verdict,) = judged(BudgetForcing(Pointwise()), replies, ["a"])
    (whole,) = verdict.generations
    assert [one.token for one in whole.logprobs or ()] == ["x", "</think>", "x", "x"]
    assert whole.cached == (first and second)


def test_without_forcing_a_cut_reasoning_is_a_failure() -> None:
    (verdict,) = judged(Pointwise(), [CUT], ["a"])
    assert verdict.failure is not None and verdict.failure.kind == "truncated"


def test_wrong_settings() -> None:
    with pytest.raises(ConfigError, match="answer_tokens"):
        BudgetForcing(Pointwise(), answer_tokens=0)


def test_a_reasoning_that_the_engine_closed_needs_no_second_call() -> None:
    engine = ScriptedEngine([Generation(tags(6), completion_tokens=99, closed=True)])
    (verdict,) = Judge(BudgetForcing(Pointwise(), 12), engine, Sampling(max_tokens=90))([Example("q", ["a"])])
    assert (verdict.scores, verdict.counters) == ((6.0,), {"forced": 1, "reasonings": 1})
    assert [(request.answer_tokens, request.sampling.max_tokens) for request in engine.requests] == [(12, 90)]
