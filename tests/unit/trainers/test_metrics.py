"""The metrics of a reward: what each counts, and that none is ever missing, NaN or infinite."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexjudge_reward import Failure
from flexjudge_reward.judge.rewards import Outcome
from flexjudge_reward.trainers.gather import RankResults, RowResult
from flexjudge_reward.trainers.metrics import correlation, metrics
from flexjudge_reward.types import FailureKind

CUT = Failure("truncated", "cut")


def measured(
    outcomes: list[Outcome], groups: str = "", lengths: list[int] | None = None, ranks: list[RankResults] | None = None
) -> dict[str, float]:
    sizes = lengths or [3] * len(outcomes)
    rows = [RowResult(outcome, "", length) for outcome, length in zip(outcomes, sizes, strict=True)]
    return metrics(ranks or [RankResults()], rows, groups or "a" * len(outcomes))


def test_scores_and_failures_are_shares_of_all_rows() -> None:
    found = measured([0.5, CUT, 1.0, Failure("media"), Failure("timeout"), Failure("wrong_count"), 0.0, 0.5])
    assert found["score"] == pytest.approx(0.5) and found["failure_rate"] == pytest.approx(0.5)
    assert (found["failed_reply"], found["failed_media"], found["failed_engine"]) == (2 / 8, 1 / 8, 1 / 8)


BROKEN, REFUSED = Failure("malformed", "?", "candidate"), Failure("refused", "no", "candidate")


@pytest.mark.parametrize(
    ("outcomes", "groups", "ours", "theirs"),
    [
        pytest.param([0.5, CUT, BROKEN, Failure("malformed")], "aaaa", 2 / 4, 1 / 4, id="unclear-is-ours"),
        pytest.param([Failure("media", "", "candidate"), Failure("media")], "aa", 1 / 2, 1 / 2, id="whose-image"),
        pytest.param([0.5, REFUSED, REFUSED, CUT], "aabb", 2 / 4, 1 / 4, id="refused-beside-a-score-and-alone"),
        pytest.param([0.5, 0.1], "ab", 0, 0, id="none"),
    ],
)
def test_shares_by_cause(outcomes: list[Outcome], groups: str, ours: float, theirs: float) -> None:
    found = measured(outcomes, groups)
    assert (found["failed_ours"], found["failed_candidate"]) == (ours, theirs)


@pytest.mark.parametrize("kind", get_args(FailureKind))
def test_every_kind_of_failure_is_in_one_class(kind: FailureKind) -> None:
    found = measured([Failure(kind), 0.5])
    assert sorted(found[f"failed_{part}"] for part in ("media", "unfinished", "engine", "reply", "uncertain")) == [
        *[0] * 4,
        0.5,
    ]


@pytest.mark.parametrize(
    ("outcomes", "groups", "expected"),
    [
        pytest.param([0.5, 0.5, 0.1, 0.2], "aabb", 0.5, id="one-of-two"),
        pytest.param([0.5, 0.1, 0.5, 0.1], "abab", 1.0, id="both-interleaved"),
        pytest.param([0.5, CUT, 0.5, 0.6], "aabb", 0.0, id="one-score-is-no-group"),
        pytest.param([0.5, CUT, 0.5], "aaa", 1.0, id="equal-beside-a-failure"),
        pytest.param([0.5, 0.5], "ab", 0.0, id="rows-alone"),
        pytest.param([CUT, CUT], "aa", 0.0, id="nothing-judged"),
    ],
)
def test_zero_variance_is_the_share_of_groups_without_a_gradient(
    outcomes: list[Outcome], groups: str, expected: float
) -> None:
    assert measured(outcomes, groups)["zero_variance"] == expected


@pytest.mark.parametrize(
    ("outcomes", "lengths", "expected"),
    [
        pytest.param([0.1, 0.2, 0.3], [1, 2, 3], 1.0, id="longer-is-better"),
        pytest.param([0.3, 0.2, 0.1], [1, 2, 3], -1.0, id="shorter-is-better"),
        pytest.param([0.1, CUT, 0.3, 0.2], [1, 99, 3, 2], 1.0, id="failures-do-not-count"),
        pytest.param([0.2, 0.2], [1, 2], 0.0, id="equal-scores"),
        pytest.param([0.1, 0.2], [3, 3], 0.0, id="equal-lengths"),
        pytest.param([0.1], [3], 0.0, id="one-row"),
    ],
)
def test_the_correlation_of_score_and_length(outcomes: list[Outcome], lengths: list[int], expected: float) -> None:
    assert measured(outcomes, lengths=lengths)["score_length"] == pytest.approx(expected)


def test_counts_are_over_all_ranks() -> None:
    """Six judgements made four rows, and two of six reasonings were closed; the slowest rank counts."""
    ranks = [
        RankResults(
            counters={"tokens": 30, "forced": 1, "reasonings": 4, "swaps": 2, "swaps_agreed": 1},
            outcomes=(None, CUT, None, None),
            seconds=2.0,
        ),
        RankResults(counters={"tokens": 10, "forced": 1, "reasonings": 2}, outcomes=(None, CUT), seconds=3.5),
    ]
    found = measured([0.1, 0.2, 0.3, CUT], ranks=ranks)
    assert (found["judge_tokens"], found["judge_seconds"]) == (10.0, 3.5)
    assert found["forced"] == pytest.approx(2 / 6) and found["failed_judgements"] == pytest.approx(2 / 6)
    assert found["swap_agreed"] == 0.5 and "swap_agreed" not in measured([0.1])


def test_cached_is_the_share_of_rows_that_came_whole_from_the_cache() -> None:
    rows = [RowResult(0.1, cached=True), RowResult(0.2), RowResult(CUT), RowResult(0.4, cached=True)]
    assert metrics([RankResults()], rows, "aabb")["cached"] == 0.5


outcome = st.one_of(st.floats(0, 1), st.sampled_from([Failure(kind) for kind in get_args(FailureKind)]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(outcome, st.integers(0, 10**9), st.sampled_from("abc")), min_size=1, max_size=12))
def test_all_metrics_are_finite_whatever_happens(rows: list[tuple[Outcome, int, str]]) -> None:
    found = measured([row[0] for row in rows], "".join(row[2] for row in rows), [row[1] for row in rows])
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values()), found
    assert set(found) - {"score"} == set(measured([CUT])) and ("score" in found) == (found["failure_rate"] < 1)
    shares = {name: value for name, value in found.items() if name not in ("judge_seconds", "judge_tokens")}
    assert all(-1.000001 <= value <= 1.000001 for value in shares.values()), shares


def test_the_correlation_of_nothing_is_none() -> None:
    assert correlation([], []) == correlation([1], [2]) == correlation([1, 1], [2, 3]) == 0.0
