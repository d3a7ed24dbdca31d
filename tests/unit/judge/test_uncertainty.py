"""How sure a judge is: spread over votes, orders and distributions, min_confidence, shrink, Cascade."""

from __future__ import annotations

import math
import pickle

import pytest

from flexjudge_reward import (
    Cascade,
    ConfigError,
    Example,
    ExpectedScore,
    Failure,
    FlexJudgeReward,
    Format,
    Generation,
    Judge,
    JudgeConfig,
    MajorityVote,
    MinConfidence,
    MultipleChoice,
    Pairwise,
    Pointwise,
    PositionSwap,
    Sampling,
    ScriptedEngine,
    TokenLogprob,
    Verdict,
    judge_groups,
)
from flexjudge_reward.judge.rewards import FailureWatch, shrunk

ONE, TWO = Example("q", ["a"]), Example("q", ["a", "b"])


def says(*answers: object) -> str:
    return "<think>x</think>" + "".join(f"<answer>{answer}</answer>" for answer in answers)


def judge(format: Format, *replies: str | Generation) -> Judge:
    return Judge(format, ScriptedEngine(list(replies)), Sampling(1.0))


SPREADS = [
    pytest.param(MajorityVote(Pointwise(), 3, "mean"), [[4], [7], [10]], (math.sqrt(6),), id="votes"),
    pytest.param(MajorityVote(Pointwise(), 3), [[7], [7]], (0.0,), id="votes_that_agree"),
    pytest.param(MajorityVote(Pairwise(), 2, "mean"), [[1, 5], [10, 5]], (4.5, 0.0), id="votes_on_a_pair"),
    pytest.param(MajorityVote(MultipleChoice(), 3), [["A"], ["B"], ["A"]], (2**0.5 / 3,) * 2, id="ballots"),
    pytest.param(MajorityVote(Pointwise(), 1), [[7]], (), id="one_vote"),
    pytest.param(MajorityVote(Pointwise(), 3, "mean"), [[7], [], []], (), id="one_readable_vote"),
    pytest.param(MajorityVote(MultipleChoice(), 3), [["A"], [], []], (), id="one_readable_ballot"),
    pytest.param(PositionSwap(Pairwise()), [[8, 2], [2, 8]], (0.0, 0.0), id="orders_that_agree"),
    pytest.param(PositionSwap(Pairwise()), [[8, 2], [8, 2]], (3.0, 3.0), id="orders_that_do_not"),
    pytest.param(PositionSwap(Pairwise(), 1), [[8, 2]], (), id="only_one_order"),
    pytest.param(Pointwise(), [[7]], (), id="a_single_answer"),
]


@pytest.mark.parametrize(("format", "replies", "spread"), SPREADS)
def test_spread(format: Format, replies: list[list[object]], spread: tuple[float, ...]) -> None:
    example = TWO if format.max_candidates > 1 else ONE
    (verdict,) = judge(format, *(says(*reply) for reply in replies))([example])
    assert verdict.spread == pytest.approx(spread)


def distributed(chances: dict[str, float]) -> Generation:
    text = says(max(chances, key=lambda digit: chances[digit]))
    head, tail = text.split("</think>")[0] + "</think><answer>", "</answer>"
    tops = {digit: math.log(chance) for digit, chance in chances.items()}
    answer = TokenLogprob(text.removeprefix(head).removesuffix(tail), 0.0, tops)
    return Generation(text, logprobs=(TokenLogprob(head, 0.0), answer, TokenLogprob(tail, 0.0)))


def test_spread_of_a_distribution_alone_and_over_votes() -> None:
    half = distributed({"4": 0.5, "8": 0.5})
    (verdict,) = judge(ExpectedScore(Pointwise()), half)([ONE])
    assert verdict.scores == (6.0,) and verdict.spread == (2.0,)
    assert verdict.confidence == pytest.approx(1 - 2 / 4.5)
    voting = MajorityVote(ExpectedScore(Pointwise()), 2, "mean")
    (both,) = judge(voting, half, distributed({"4": 1.0}))([ONE])
    assert both.scores == (5.0,) and both.spread == pytest.approx((math.sqrt(1 + 2),))  # between and within


@pytest.mark.parametrize(
    ("replies", "least", "failed"),
    [
        pytest.param([[7], [7]], 1.0, False, id="sure"),
        pytest.param([[1], [10]], 0.01, True, id="both_ends"),
        pytest.param([[7], [8]], 0.8, False, id="nearly"),
        pytest.param([[7], []], 0.01, True, id="one_readable_vote"),
    ],
)
def test_min_confidence_is_a_typed_failure(replies: list[list[object]], least: float, failed: bool) -> None:
    format = MinConfidence(MajorityVote(Pointwise(), 2, "mean"), least)
    (result,) = judge_groups(judge(format, *(says(*reply) for reply in replies)), [ONE], again=True)
    (outcome,) = result.outcomes
    assert isinstance(outcome, Failure) is failed
    if isinstance(outcome, Failure):
        assert outcome.kind == "uncertain" and "min_confidence=0.01" in outcome.detail
        FailureWatch(0.0).add([outcome])  # stops no run


def test_an_uncertain_row_gets_its_siblings_mean_and_shrink_moves_it() -> None:
    replies = [says(one) for one in (9, 9, 1, 1, 1, 10)]

    def reward(**settings: object) -> FlexJudgeReward:
        voting = MajorityVote(Pointwise(), 2, "mean")
        format = MinConfidence(voting, 0.5) if settings.pop("strict", False) else voting
        return FlexJudgeReward(judge(format, *replies), **settings)

    logged: dict[str, float] = {}
    got = reward(strict=True)(["q"] * 3, ["a", "b", "c"], log_metric=logged.__setitem__)
    assert got == pytest.approx([8 / 9, 0, 4 / 9])
    assert next(value for name, value in logged.items() if name.endswith("failed_uncertain")) == pytest.approx(1 / 3)
    plain, moved = (reward(shrink=shrink)(["q"] * 3, ["a", "b", "c"]) for shrink in (False, True))
    assert plain == pytest.approx([8 / 9, 0, 0.5])
    assert moved[:2] == plain[:2] and 4 / 9 < (moved[2] or 0) < 0.5


def test_shrunk_by_hand() -> None:
    failure = Failure("timeout")
    # group g: mean 0.5, variance 0.25
    moved = shrunk([0.0, 1.0, failure, 0.7], [0.0, 0.5, 0.0, 0.5], ["g", "g", "g", "h"])
    assert moved == [0.0, 0.75, failure, 0.7]


UNFIT = [
    pytest.param({"min_confidence": 0.5}, "min_confidence needs to know how sure", id="min_confidence"),
    pytest.param({"min_confidence": 1.5}, "must be from 0 to 1", id="out_of_range"),
]


@pytest.mark.parametrize(("settings", "said"), UNFIT)
def test_settings_that_do_not_fit(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        JudgeConfig.resolve({"model": "nano", **settings})


def test_what_does_not_say_how_sure_it_is_is_refused() -> None:
    plain = judge(Pointwise())
    with pytest.raises(ConfigError, match="Pointwise does not say how sure it is"):
        MinConfidence(Pointwise(), 0.5)
    with pytest.raises(ConfigError, match="the small judge's Pointwise"):
        Cascade(plain, plain, 0.5)
    with pytest.raises(ConfigError, match="Tournament"):
        FlexJudgeReward(Cascade(judge(PositionSwap(Pairwise())), judge(Pairwise()), 0.5))
    with pytest.raises(ConfigError, match=r"the large judge's Tournament\(Pairwise\) cannot judge"):
        Cascade(judge(MajorityVote(Pointwise(), 2)), judge(Pairwise()), 0.5)
    with pytest.raises(ConfigError, match="the large judge's Pointwise cannot judge"):
        Cascade(judge(MajorityVote(Pairwise(), 2)), plain, 0.5)
    with pytest.raises(ConfigError, match="unsure must be a confidence"):
        Cascade(judge(MajorityVote(Pointwise(), 2)), plain, 80)
    with pytest.raises(ConfigError, match="shrink needs to know how sure"):
        FlexJudgeReward(plain, shrink=True)(["q"], ["a"])
    resolved = JudgeConfig.resolve({"model": "nano", "min_confidence": 0.5, "expected_score": True, "cache": "off"})
    assert resolved.build(1).format.described() == "MinConfidence(BudgetForcing(ExpectedScore(Pointwise)))"


def test_a_cascade_asks_the_large_judge_only_where_the_small_one_is_unsure() -> None:
    small = judge(MajorityVote(Pointwise(), 2, "mean"), *(says(one) for one in (9, 9, 1, 10)), *["no"] * 4)
    large = judge(Pointwise(), says(4), says(6))
    cascade = Cascade(small, large, 0.8)
    sure, unsure, unread = cascade([ONE.with_candidates([one]) for one in "abc"])
    assert (sure.scores, sure.counters["votes"]) == ((9.0,), 2) and "asked_large" not in sure.counters
    assert unsure.scores == (4.0,) and unsure.counters["asked_large"] == 1 and len(unsure.generations) == 3
    assert unread.scores == (6.0,) and None in unread.outcomes
    assert "large" in cascade.described() and cascade.with_format(cascade.format).unsure == 0.8
    cascade.close()


def test_one_readable_vote_is_no_certainty() -> None:
    voting = MajorityVote(Pointwise(), 5, "mean")
    cascade = Cascade(judge(voting, says(9), *["no"] * 4), judge(Pointwise(), says(4)), 0.1)
    assert cascade([ONE])[0].scores == (4.0,)
    (result,) = judge_groups(judge(voting, says(9), *["no"] * 4), [ONE])
    assert result.spread(0) == 0.5


def test_a_cascade_is_a_reward_and_pickles() -> None:
    small = judge(MajorityVote(Pointwise(), 2, "mean"), *(says(one) for one in (9, 9, 1, 10)))
    reward = FlexJudgeReward(Cascade(small, judge(Pointwise(), says(4)), 0.8))
    assert pickle.loads(pickle.dumps(reward))(["q"] * 2, ["a", "b"]) == pytest.approx([8 / 9, 3 / 9])


def test_confidence() -> None:
    assert Verdict((5.0,)).confidence is None
    assert Verdict((5.0,), spread=(4.5,)).confidence == 0.0
    assert Verdict((5.0, 5.0), spread=(0.0, 0.9)).confidence == pytest.approx(0.8)


@pytest.mark.parametrize("least", [-0.1, 1.1, True])
def test_a_confidence_is_from_0_to_1(least: float) -> None:
    with pytest.raises(ConfigError, match="the least confidence must be from 0 to 1"):
        MinConfidence(MajorityVote(Pointwise(), 2, "mean"), least)
