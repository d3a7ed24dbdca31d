"""Expected scores: from token distributions to a number, on scripted log probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from flexjudge_reward import (
    BudgetForcing,
    ConfigError,
    Example,
    ExpectedScore,
    Format,
    Generation,
    Judge,
    MajorityVote,
    MultipleChoice,
    Pairwise,
    PairwiseVerdict,
    Pointwise,
    PositionSwap,
    Request,
    Rubric,
    Scale,
    ScriptedEngine,
    TokenLogprob,
    Verdict,
)
from flexjudge_reward.judge.rewards import unit_score
from support import judging

Spread = Mapping[str, float]


def reply(*tokens: str | tuple[str, Spread]) -> Generation:
    """A reply of these tokens; a token with a spread has these probabilities at its place."""
    made = []
    for token in tokens:
        text, spread = token if isinstance(token, tuple) else (token, {token: 1.0})
        made.append(TokenLogprob(text, math.log(spread[text]), {t: math.log(p) for t, p in spread.items()}))
    return Generation("".join(token.token for token in made), logprobs=tuple(made))


def judged(format: Format, replies: object, *candidates: str) -> Verdict:
    (verdict,) = judging.judged(format, replies, candidates)
    return verdict


def prefilled(request: Request) -> str:
    """The beginning of the judge's own reply that a request continues."""
    return "".join(getattr(part, "text", part) for part in request.prompt.messages[-1].parts)  # type: ignore[arg-type]


HEAD = ("<think>", "7 or 8?", "</think>", "<answer>")
END = "</answer>"


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        pytest.param([("7", {"7": 0.6, "8": 0.3, "6": 0.1}), END], 7.2, id="one_digit"),
        pytest.param([("7", {"7": 0.5, " 7": 0.25, "8": 0.25}), END], 7.25, id="white_space_is_one_number"),
        pytest.param([("7", {"7": 0.4, "good": 0.4, "9": 0.1}), END], 7.4, id="what_is_no_number_does_not_count"),
        pytest.param([("7", {"7": 0.5, "0": 0.3, "11": 0.2}), END], 7.0, id="off_the_scale_does_not_count"),
        pytest.param([("10", {"10": 0.5, "9": 0.5}), END], 9.5, id="ten_as_one_token"),
        pytest.param(["1", ("0", {"0": 0.8, END: 0.2}), END], 8.2, id="ten_as_two_tokens"),
        pytest.param([("1", {"1": 0.5, "5": 0.5}), (END, {END: 0.9, "0": 0.1})], 3.45, id="one_that_might_be_ten"),
        pytest.param(["\n", ("7", {"7": 0.5, "8": 0.5}), "\n", END], 7.5, id="white_space_around"),
    ],
)
def test_the_mean_of_the_distribution(tokens: Sequence[str | tuple[str, Spread]], expected: float) -> None:
    verdict = judged(ExpectedScore(Pointwise()), [reply(*HEAD, *tokens)], "a")
    assert verdict.scores == (pytest.approx(expected),)
    assert verdict.scale.decimals and verdict.reasoning == "7 or 8?"


def test_a_judge_that_is_sure_of_the_best_score_stays_on_the_scale() -> None:
    for thousandths in range(1, 1000):
        top = judged(ExpectedScore(Pointwise()), [reply(*HEAD, ("10", {"10": thousandths / 1000}), END)], "a")
        assert unit_score(top) == pytest.approx(1.0)


def test_tokens_of_one_text_are_one_alternative() -> None:
    """Llama's tokenizers have a digit with and without a space before it; decoded, both are the digit."""
    alternatives = [("7", math.log(0.9)), ("2", math.log(0.06)), ("7", math.log(0.03)), ("2", -math.inf), ("x", -900.0)]
    token = TokenLogprob.merged("7", math.log(0.9), alternatives)
    assert {text: round(math.exp(value), 9) for text, value in token.top.items()} == {"7": 0.93, "2": 0.06, "x": 0.0}
    first, _, last = reply("<think></think><answer>", ("7", {"7": 1.0}), "</answer>").logprobs or ()
    written = Generation("<think></think><answer>7</answer>", logprobs=(first, token, last))
    assert judged(ExpectedScore(Pointwise()), [written], "a").scores == pytest.approx([(7 * 0.93 + 2 * 0.06) / 0.99])


def test_a_digit_that_could_begin_a_longer_number_is_followed() -> None:
    engine = ScriptedEngine([reply(*HEAD, ("7", {"7": 0.8, "1": 0.2}), END), reply(("0", {"0": 0.75, END: 0.25}))])
    (verdict,) = Judge(ExpectedScore(Pointwise()), engine)([Example("q", ["a"])])
    assert verdict.scores == (pytest.approx(0.8 * 7 + 0.2 * (0.75 * 10 + 0.25 * 1)),)
    first, second = engine.requests
    assert prefilled(second) == "<think>7 or 8?</think><answer>1"
    assert (first.sampling.logprobs, first.sampling.max_tokens) == (20, 2048)
    assert (second.sampling.logprobs, second.sampling.max_tokens) == (20, 1)


HUNDRED = Pointwise(Rubric("right?", Scale(0, 100)))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        pytest.param(["1", "0", "0", END], 100.0, id="three_tokens"),
        pytest.param(["100", END], 100.0, id="one_token"),
        pytest.param(["0", ("7", {"7": 0.5, "8": 0.5}), END], 7.5, id="a_leading_zero_that_was_written"),
        pytest.param([("0", {"0": 0.75, "4": 0.25}), END], 1.0, id="zero_is_a_number"),
    ],
)
def test_numbers_of_three_digits(tokens: Sequence[str | tuple[str, Spread]], expected: float) -> None:
    # Every follow-up says that the number ends.
    replies = [reply(*HEAD, *tokens), *[reply(END) for _ in range(3)]]
    assert judged(ExpectedScore(HUNDRED), replies, "a").scores == (pytest.approx(expected),)


def test_digits_are_followed_until_no_number_could_be_longer() -> None:
    prefixes = []

    def judge(request: Request) -> Generation:
        if request.prompt.messages[-1].role != "assistant":
            return reply(*HEAD, ("7", {"7": 0.5, "1": 0.5}), ("5", {"5": 1.0}), END)
        prefixes.append(prefilled(request).rpartition("<answer>")[2])
        return {"1": reply(("0", {"0": 0.6, "2": 0.4})), "10": reply(("0", {"0": 0.9, END: 0.1}))}[prefixes[-1]]

    verdict = judged(ExpectedScore(HUNDRED), judge, "a")
    assert prefixes == ["1", "10"]
    assert verdict.scores == (pytest.approx(0.5 * 75 + 0.5 * (0.4 * 12 + 0.6 * (0.9 * 100 + 0.1 * 10))),)
    assert len(verdict.generations) == 3


def test_a_leading_zero_counts_on_a_scale_from_one() -> None:
    assert judged(ExpectedScore(Pointwise()), [reply(*HEAD, "0", "7", END)], "a").scores == (pytest.approx(7.0),)


def test_a_reasoning_that_is_cut_is_closed_with_its_distribution() -> None:
    """The follow-up about a digit is one token by design: budget forcing must not close it."""
    cut = replace(reply("<think>", "hm"), finish_reason="length")
    closed = reply("<answer>", ("7", {"7": 0.8, "1": 0.2}), END)
    last = replace(reply(("0", {"0": 0.75, END: 0.25})), finish_reason="length")
    engine = ScriptedEngine([cut, closed, last])
    (verdict,) = Judge(BudgetForcing(ExpectedScore(Pointwise())), engine)([Example("q", ["a"])])
    assert verdict.scores == (pytest.approx(0.8 * 7 + 0.2 * (0.75 * 10 + 0.25 * 1)),)
    assert verdict.counters == {"forced": 1, "reasonings": 1} and len(engine.requests) == 3
    assert [request.sampling.max_tokens for request in engine.requests] == [2048, 64, 1]
    assert {request.sampling.logprobs for request in engine.requests} == {20}


def test_an_unlikely_digit_is_not_followed() -> None:
    verdict = judged(ExpectedScore(Pointwise()), [reply(*HEAD, ("7", {"7": 0.999, "1": 0.001}), END)], "a")
    assert verdict.scores == (pytest.approx(7, abs=0.01),) and len(verdict.generations) == 1


def test_on_a_scale_to_five_no_digit_is_followed() -> None:
    five = Pointwise(Rubric("right?", Scale(1, 5)))
    verdict = judged(ExpectedScore(five), [reply(*HEAD, ("4", {"4": 0.5, "1": 0.5}), END)], "a")
    assert verdict.scores == (pytest.approx(2.5),)


def test_each_candidate_has_its_own_distribution() -> None:
    tokens = (("3", {"3": 0.5, "4": 0.5}), END, "<answer>", ("8", {"8": 0.9, "9": 0.1}), END)
    assert judged(ExpectedScore(Pairwise()), [reply(*HEAD, *tokens)], "a", "b").scores == pytest.approx((3.5, 8.1))


def test_a_choice_becomes_probabilities() -> None:
    verdict = judged(
        ExpectedScore(MultipleChoice()), [reply(*HEAD, ("B", {"B": 0.6, "A": 0.2, "D": 0.1}), END)], "a", "b", "c"
    )
    assert verdict.scores == pytest.approx((0.25, 0.75, 0.0))


def test_several_reasonings_are_averaged() -> None:
    replies = [reply(*HEAD, (n, {n: 0.5, "5": 0.5}), END) for n in ("6", "8")]
    assert judged(MajorityVote(ExpectedScore(Pointwise()), 2, by="mean"), replies, "a").scores == (pytest.approx(6.0),)


def test_an_answer_quoted_in_the_reasoning_is_not_the_answer() -> None:
    tokens = ("<think>", "it says ", "<answer>", ("9", {"9": 1.0}), END, "</think>", "<answer>", "2", END)
    assert judged(ExpectedScore(Pointwise()), [reply(*tokens)], "a").scores == (pytest.approx(2.0),)


def test_a_reply_that_cannot_be_read_stays_a_failure() -> None:
    verdict = judged(ExpectedScore(Pointwise()), [reply("<think>", "hm")], "a")
    assert verdict.failure is not None and verdict.failure.kind == "truncated"


def test_tokens_that_straddle_the_answer_are_a_failure() -> None:
    verdict = judged(ExpectedScore(Pointwise()), [reply("<think></think>", "<answer>7", END)], "a")
    assert verdict.failure is not None and verdict.failure.kind == "engine"


def test_only_the_tokens_of_the_answer_must_spell_the_reply() -> None:
    """Half a character is a token of its own in some reasoning, and decodes to another text there."""
    given = reply("<think>", "\ufffd", "\ufffd", "</think>", "<answer>", ("7", {"7": 0.8, "1": 0.2}), END)
    whole = replace(given, text="<think>é</think><answer>7</answer>\n")
    engine = ScriptedEngine([whole, reply((END, {END: 1.0}))])
    (verdict,) = Judge(ExpectedScore(Pointwise()), engine)([Example("q", ["a"])])
    assert verdict.scores == (pytest.approx(0.8 * 7 + 0.2 * 1),)
    assert prefilled(engine.requests[1]) == "<think>é</think><answer>1"
    other = replace(given, text="<think>é</think><answer>8</answer>")
    failed = judged(ExpectedScore(Pointwise()), [other], "a")
    assert failed.failure is not None and "do not spell its answer" in failed.failure.detail


def test_a_follow_up_that_fails_is_that_failure() -> None:
    replies = [reply(*HEAD, ("7", {"7": 0.8, "1": 0.2}), END), Generation.failed("timeout", "late")]
    verdict = judged(ExpectedScore(Pointwise()), replies, "a")
    assert verdict.failure is not None and verdict.failure.kind == "timeout"


def test_an_engine_without_log_probabilities() -> None:
    failed = judged(ExpectedScore(Pointwise()), ["<think></think><answer>7</answer>"], "a")
    assert failed.failure is not None and failed.failure.kind == "unsupported"
    assert "no log probabilities" in failed.failure.detail


def test_formats_and_scales_without_an_expected_score() -> None:
    with pytest.raises(ConfigError, match=r"pointwise, pairwise, listwise, multiple_choice\), found PairwiseVerdict"):
        ExpectedScore(PairwiseVerdict())
    with pytest.raises(ConfigError, match=r"found PositionSwap\(Pairwise\)"):
        ExpectedScore(PositionSwap(Pairwise()))  # type: ignore[arg-type]
    for scale in (Scale(0, 1, decimals=True), Scale(-5, 5), Scale(0.5, 3)):
        with pytest.raises(ConfigError, match="whole numbers, none of them negative"):
            judged(ExpectedScore(Pointwise(Rubric("x", scale))), [], "a")


@pytest.mark.parametrize("scale", [Scale(0, 1, decimals=True), Scale(-5, 5), Scale(0.5, 3)])
def test_a_row_whose_own_scale_does_not_fit_fails_alone(scale: Scale) -> None:
    fits = reply(*HEAD, ("7", {"7": 1.0}), END)
    rows = [Example("q", ["a"], rubric=Rubric("x", scale)), Example("q", ["a"])]
    unfit, other = Judge(ExpectedScore(Pointwise()), ScriptedEngine([fits]))(rows)
    assert unfit.failure is not None and unfit.failure.kind == "unsupported" and other.scores is not None


def test_a_choice_without_any_weight_is_a_failure() -> None:
    never = TokenLogprob("B", -9999.0, {"good": 0.0})
    given = reply(*HEAD, "B", END)
    tokens = (*(given.logprobs or ())[:4], never, *(given.logprobs or ())[5:])
    verdict = judged(ExpectedScore(MultipleChoice()), [replace(given, logprobs=tokens)], "a", "b")
    assert verdict.failure is not None and verdict.failure.kind == "engine"


def test_a_follow_up_that_a_filter_stopped_fails_its_own_row() -> None:
    replies = [reply(*HEAD, ("7", {"7": 0.8, "1": 0.2}), END), Generation("", "filter")]
    verdict = judged(ExpectedScore(Pointwise()), replies, "a")
    assert verdict.failure is not None and "no log probabilities came" in verdict.failure.detail


def test_digits_that_two_tokenisations_reach_are_followed_once() -> None:
    tokens = (("1", {"1": 0.5, "10": 0.5}), ("2", {"2": 0.5, "0": 0.5}), END)
    engine = ScriptedEngine([reply(*HEAD, *tokens), *[reply(END) for _ in range(2)]])
    Judge(ExpectedScore(HUNDRED), engine)([Example("q", ["a"])])
    assert len(engine.prompts) == 2


def test_a_distribution_outside_the_scale_is_a_failure() -> None:
    never = TokenLogprob("7", -1000.0, {"good": 0.0})
    given = reply(*HEAD, "7", END)
    tokens = (*(given.logprobs or ())[:4], never, *(given.logprobs or ())[5:])
    verdict = judged(ExpectedScore(Pointwise()), [replace(given, logprobs=tokens)], "a")
    assert verdict.failure is not None and verdict.failure.kind == "engine"
