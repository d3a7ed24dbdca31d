"""Verdicts become numbers in one place, and a failure never becomes a score."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexjudge_reward import ConfigError, Failure, JudgementFailed, Scale, Verdict
from flexjudge_reward.judge.rewards import FailureWatch, causes, group_ids, rewards, unit_score

CUT = Failure("truncated", "cut")
ODD = Failure("malformed", "no answer tag")


@pytest.mark.parametrize(
    ("score", "scale", "expected"),
    [
        pytest.param(1.0, Scale(1, 10), 0.0, id="lowest"),
        pytest.param(10.0, Scale(1, 10), 1.0, id="highest"),
        pytest.param(4.0, Scale(1, 5), 0.75, id="one-to-five"),
        pytest.param(0.0, Scale(-1, 1), 0.5, id="negative-scale"),
        pytest.param(7, Scale(0, 10), 0.7, id="an-int"),
    ],
)
def test_scores_move_linearly_to_the_unit_range(score: float, scale: Scale, expected: float) -> None:
    found = unit_score(Verdict((score,), scale=scale))
    assert isinstance(found, float) and found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("score", "scale"),
    [
        pytest.param(math.inf, Scale(), id="inf"),
        pytest.param(-math.inf, Scale(), id="minus-inf"),
        pytest.param(math.nan, Scale(), id="nan"),
        pytest.param(1e39, Scale(), id="1e39-is-inf-in-float32"),
        pytest.param(10.5, Scale(1, 10), id="above"),
        pytest.param(0.999, Scale(1, 10), id="below"),
        pytest.param(True, Scale(0, 1), id="bool"),
        pytest.param("7", Scale(), id="text"),
        pytest.param(None, Scale(), id="none"),
    ],
)
def test_what_is_no_finite_number_on_the_scale_is_a_failure(score: Any, scale: Scale) -> None:
    found = unit_score(Verdict((score,), scale=scale))
    assert isinstance(found, Failure) and found.kind == "out_of_range"


def test_a_failed_verdict_keeps_its_failure_and_a_missing_candidate_is_one() -> None:
    assert unit_score(Verdict.failed(CUT)) is CUT
    missing = unit_score(Verdict((1.0,)), candidate=1)
    assert isinstance(missing, Failure) and missing.kind == "wrong_count"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        pytest.param("group_mean", [0.2, 0.4, 0.6, None, None], id="group-mean"),
        pytest.param("abstain", [0.2, None, 0.6, None, None], id="abstain"),
    ],
)
def test_policies(policy: Any, expected: list[float | None]) -> None:
    assert rewards([0.2, CUT, 0.6, ODD, CUT], ["a", "a", "a", "b", "b"], policy) == pytest.approx(expected)


BROKEN, REFUSED = Failure("malformed", "?", "candidate"), Failure("refused", "no", "candidate")
NO_IMAGE, LOST = Failure("media", "broken", "candidate"), Failure("transport", "lost")


@pytest.mark.parametrize(
    ("outcomes", "lowest", "average", "none"),
    [
        pytest.param([0.2, BROKEN, 0.6], [0.2, 0.2, 0.6], [0.2, 0.4, 0.6], [0.2, None, 0.6], id="one"),
        pytest.param(
            [0.2, BROKEN, NO_IMAGE, 0.6], [0.2, 0.2, 0.2, 0.6], [0.2, 0.4, 0.4, 0.6], [0.2, None, None, 0.6], id="two"
        ),
        pytest.param(
            [0.2, BROKEN, LOST, 0.8], [0.2, 0.2, 0.4, 0.8], [0.2, 0.5, 0.5, 0.8], [0.2, None, 0.5, 0.8], id="mixed"
        ),
        pytest.param([BROKEN, NO_IMAGE], [0.0, 0.0], [None, None], [None, None], id="all-theirs"),
        pytest.param([BROKEN, LOST, CUT], [0.0, 0.0, 0.0], [None] * 3, [None] * 3, id="all-failed"),
        pytest.param([LOST, CUT], [None, None], [None, None], [None, None], id="all-ours"),
        pytest.param([BROKEN], [0.0], [None], [None], id="alone"),
        pytest.param([LOST], [None], [None], [None], id="alone-ours"),
        pytest.param([ODD, 0.4, 0.6], [0.5, 0.4, 0.6], [0.5, 0.4, 0.6], [0.5, 0.4, 0.6], id="unclear-is-ours"),
        pytest.param(
            [REFUSED, 0.4, 0.6], [0.4, 0.4, 0.6], [0.5, 0.4, 0.6], [None, 0.4, 0.6], id="refused-beside-others"
        ),
        pytest.param([REFUSED, REFUSED], [None, None], [None, None], [None, None], id="all-refused-is-the-question's"),
        pytest.param([0.7, BROKEN], [0.7, 0.7], [0.7, 0.7], [0.7, None], id="one-score"),
    ],
)
def test_a_candidate_that_breaks_the_judge_gets_what_the_setting_says(
    outcomes: Any, lowest: list[float], average: list[float], none: list[float]
) -> None:
    groups = ["g"] * len(outcomes)
    for policy, expected in (("lowest", lowest), ("mean", average), ("abstain", none)):
        assert rewards(outcomes, groups, "group_mean", policy) == pytest.approx(expected), policy  # type: ignore[arg-type]


failure = st.sampled_from([BROKEN, REFUSED, NO_IMAGE, LOST, CUT, ODD])
group = st.lists(st.one_of(st.floats(0, 1), failure), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(group, min_size=1, max_size=4), st.sampled_from(["lowest", "mean", "abstain"]), st.randoms())
def test_a_failed_row_moves_no_baseline(groups: list[list[Any]], policy: Any, rng: Any) -> None:
    """In mixed groups, in groups that failed whole, in groups of one, and however the rows are mixed."""
    rows = [(number, outcome) for number, outcomes in enumerate(groups) for outcome in outcomes]
    rng.shuffle(rows)
    found = rewards([outcome for _, outcome in rows], [number for number, _ in rows], "group_mean", policy)
    for number in range(len(groups)):
        own = [(value, outcome) for value, (group, outcome) in zip(found, rows, strict=True) if group == number]
        caused = causes([outcome for _, outcome in own], [0] * len(own))
        known = [value for (value, _), cause in zip(own, caused, strict=True) if value is not None and cause != "ours"]
        judged = [outcome for _, outcome in own if not isinstance(outcome, Failure)]
        low, high = (min(judged), max(judged)) if judged else (0.0, 0.0)
        for (value, outcome), cause in zip(own, caused, strict=True):
            if cause is None:
                assert value == outcome
            elif cause == "ours":
                assert value == pytest.approx(sum(known) / len(known)) if known else value is None
            assert value is None or low <= value <= high
            if cause == "candidate" and policy == "lowest":
                assert value == low
                again = [low if one is outcome else one for _, one in own]  # as if the judge had given that score
                assert rewards(again, [0] * len(own), "group_mean", policy) == pytest.approx([v for v, _ in own])


def test_unknown_policies_for_candidates() -> None:
    with pytest.raises(ConfigError, match="on_candidate_failure must be one of lowest, mean, abstain, found 'zero'"):
        rewards([0.5], "a", "group_mean", "zero")  # type: ignore[arg-type]


def test_the_policy_raise_names_the_row_and_the_reason() -> None:
    assert rewards([0.2, 0.3], "ab", "raise") == [0.2, 0.3]
    with pytest.raises(JudgementFailed, match=r"1 of 2 judgements failed.*Row 1: truncated: cut.*group_mean"):
        rewards([0.2, CUT], "aa", "raise")


def test_the_mean_of_equal_scores_is_that_score() -> None:
    for score in (1 / 3, 0.7, 0.1, 8 / 9):
        assert rewards([score] * 6 + [CUT], "g" * 7)[-1] == score


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match="on_failure must be one of group_mean, abstain, raise, found 'zero'"):
        rewards([0.5], "a", "zero")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="2 outcomes but 1 groups"):
        rewards([0.5, 0.5], "a")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        pytest.param("aabb", "0011", id="one-per-prompt"),
        pytest.param("abab", "0101", id="interleaved"),
        pytest.param("aabbaa", "001122", id="a-prompt-twice-is-two-groups"),
        pytest.param("aabbaabb", "00112233", id="every-prompt-twice"),
        pytest.param("aabbbbaa", "00112233", id="one-of-them-adjacent"),
        pytest.param("aaabbbaaabbbaaabbb", "000111222333444555", id="every-prompt-thrice"),
        pytest.param("aaaabbbb", "00001111", id="adjacent-in-all-prompts-looks-like-one"),
        pytest.param("abbaab", "011001", id="mixed"),
        pytest.param("aaaabb", "001122", id="twice-in-a-row"),
        pytest.param("aab", "001", id="no-common-size-keeps-keys"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_groups(keys: str, expected: str) -> None:
    found = group_ids(keys)
    numbered = {group: str(index) for index, group in enumerate(dict.fromkeys(found))}
    assert "".join(numbered[group] for group in found) == expected


@pytest.mark.parametrize(
    ("keys", "size", "expected"),
    [
        pytest.param("aaaa", 2, "0011", id="one-prompt-alone"),
        pytest.param("aaaabbbb", 2, "00112233", id="every-prompt-twice"),
        pytest.param("aabb", 4, "0011", id="an-evaluation-with-fewer"),
        pytest.param("aaa", 2, "000", id="no-multiple"),
        pytest.param("aaaabbbb", 4, "00001111", id="as-it-is"),
    ],
)
def test_groups_of_the_trainers_size(keys: str, size: int, expected: str) -> None:
    found = group_ids(keys, size)
    numbered = {group: str(index) for index, group in enumerate(dict.fromkeys(found))}
    assert "".join(numbered[group] for group in found) == expected


def test_the_watch_trips_exactly_when_a_whole_window_is_over_the_limit() -> None:
    watch = FailureWatch(0.05, window=100)
    watch.add([CUT] * 5)
    watch.add([0.5] * 200)
    watch.add([CUT] * 3 + [ODD] * 2)
    with pytest.raises(JudgementFailed) as caught:
        watch.add([ODD])
    message = str(caught.value)
    assert "6 of the last 100 judgements failed (truncated 3, malformed 3)" in message
    assert "5.0% of 100 (max_failure_rate=0.05)" in message
    assert "Latest truncated: cut" in message and "max_tokens" in message


def test_old_failures_leave_the_window() -> None:
    watch = FailureWatch(0.05, window=20)
    for _ in range(50):
        watch.add([CUT] + [0.5] * 19)


@pytest.mark.parametrize("limit", [pytest.param(0.0, id="first-failure"), pytest.param(1.0, id="never")])
def test_the_ends_of_the_limit(limit: float) -> None:
    watch = FailureWatch(limit)
    watch.add([0.5] * 10)
    if limit == 1.0:
        watch.add([CUT] * 1000)
    else:
        with pytest.raises(JudgementFailed):
            watch.add([CUT])


@pytest.mark.parametrize("limit", [-0.1, 1.1, math.nan, True, "5%"])
def test_a_limit_outside_its_range(limit: Any) -> None:
    with pytest.raises(ConfigError, match="max_failure_rate must be a share from 0 to 1"):
        FailureWatch(limit)


def test_an_empty_window() -> None:
    with pytest.raises(ConfigError, match="at least one judgement"):
        FailureWatch(0.1, window=0)
