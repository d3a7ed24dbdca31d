"""Pairings: which members of a group are compared, and what the results say about them."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexjudge_reward import ConfigError
from flexjudge_reward.formats.pairings import (
    Comparison,
    Pairing,
    all_pairs,
    bradley_terry,
    check_budget,
    swiss_budget,
    swiss_pairs,
    win_rates,
)

few = settings(max_examples=60, deadline=None, derandomize=True)
MEMBERS = st.integers(2, 12)
SEEDS = st.integers(0, 10_000)


@st.composite
def budgeted(draw: st.DrawFn) -> tuple[int, int]:
    """A number of members, and a budget that may be accepted for it or is larger than needed."""
    members = draw(MEMBERS)
    return members, draw(st.integers(math.ceil(members / 2), members * (members - 1) // 2 + 3))


def swiss(members: int, budget: int, seed: int, result: Callable[[int, int], float]) -> list[Comparison]:
    """A whole Swiss tournament."""
    played: list[Comparison] = []
    while pairs := swiss_pairs(members, played, budget - len(played), seed):
        played += [Comparison(a, b, result(a, b)) for a, b in pairs]
    return played


def check_pairs(pairs: Sequence[Pairing], members: int) -> None:
    """No pair occurs twice and no member is left out."""
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    assert all(first != second for first, second in pairs)
    assert {member for pair in pairs for member in pair} == set(range(members))


@given(members=MEMBERS, seed=SEEDS)
@few
def test_all_compares_every_pair_once(members: int, seed: int) -> None:
    pairs = all_pairs(members, seed=seed)
    assert len(pairs) == members * (members - 1) // 2
    check_pairs(pairs, members)
    assert pairs == all_pairs(members, seed=seed)


@given(case=budgeted(), seed=SEEDS)
@few
def test_under_a_budget_all_members_are_compared_about_equally_often(case: tuple[int, int], seed: int) -> None:
    members, budget = case
    pairs = all_pairs(members, budget, seed)
    assert len(pairs) == min(budget, members * (members - 1) // 2)
    check_pairs(pairs, members)
    counts = Counter(member for pair in pairs for member in pair)
    assert max(counts.values()) - min(counts.values()) <= 2


@given(case=budgeted(), seed=SEEDS, rng=st.randoms(use_true_random=False))
@few
def test_swiss_leaves_no_member_out_whatever_the_results(case: tuple[int, int], seed: int, rng: random.Random) -> None:
    members, budget = case
    played = swiss(members, budget, seed, lambda a, b: rng.choice([0.0, 0.5, 1.0]))
    assert len(played) <= budget
    check_pairs([(one.first, one.second) for one in played], members)
    scores = bradley_terry(members, played)
    assert all(score is not None and 0 < score < 1 for score in scores)


def test_swiss_finds_the_best() -> None:
    for members in range(2, 12):
        played = swiss(members, swiss_budget(members), 3, lambda a, b: float(a > b))
        scores = [score or 0.0 for score in bradley_terry(members, played)]
        assert scores.index(max(scores)) == members - 1
        rounds = math.ceil(math.log2(members)) + 1
        assert len(played) <= members // 2 * rounds


@given(qualities=st.lists(st.integers(1, 5), min_size=2, max_size=7), seed=SEEDS)
@few
def test_scores_are_in_the_order_of_the_qualities_and_equals_tie(qualities: list[int], seed: int) -> None:
    """Whatever the index of a member and the order of its comparisons."""
    played = [
        Comparison(a, b, 0.5 if qualities[a] == qualities[b] else float(qualities[a] > qualities[b]))
        for a, b in all_pairs(len(qualities), seed=seed)
    ]
    for scores in (bradley_terry(len(qualities), played), win_rates(len(qualities), played)):
        by_quality = dict(zip(qualities, scores, strict=True))
        assert [by_quality[quality] for quality in qualities] == scores
        ordered = [by_quality[quality] or 0.0 for quality in sorted(by_quality)]
        assert ordered == sorted(set(ordered))


def test_a_seed_fixes_the_order_and_the_sides_are_even() -> None:
    assert all_pairs(6, seed=1) == all_pairs(6, seed=1) != all_pairs(6, seed=2)
    first = sum(pair[0] < pair[1] for seed in range(200) for pair in all_pairs(4, seed=seed))
    assert 500 < first < 700  # of 1,200
    sides = [swiss_pairs(2, [], 1, seed)[0] for seed in range(200)]
    assert 60 < sides.count((0, 1)) < 140


def test_a_member_without_a_comparison_has_no_score() -> None:
    played = [Comparison(0, 1, 1.0), Comparison(1, 2, 0.5)]
    assert win_rates(4, played) == [1.0, 0.25, 0.5, None]
    assert bradley_terry(4, played)[3] is None


def test_bradley_terry_is_symmetric_and_knows_the_opponents() -> None:
    played = [Comparison(0, 1, 1.0), Comparison(1, 2, 1.0), Comparison(2, 3, 1.0)]
    scores = [score or 0.0 for score in bradley_terry(4, played)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] + scores[3] == pytest.approx(1) and scores[1] + scores[2] == pytest.approx(1)
    assert scores[1] > scores[2]  # each won one and lost one; 1 lost to the better member
    assert win_rates(4, played)[1] == win_rates(4, played)[2]


def test_bradley_terry_recovers_known_strengths() -> None:
    rng = random.Random(0)
    chance = [0.2, 0.4, 0.6, 0.8]  # to beat an average member: strength p / (1 - p)
    strength = [p / (1 - p) for p in chance]
    played = []
    for _ in range(4000):
        a, b = rng.sample(range(4), 2)
        played.append(Comparison(a, b, float(rng.random() < strength[a] / (strength[a] + strength[b]))))
    assert bradley_terry(4, played) == pytest.approx(chance, abs=0.05)


@pytest.mark.parametrize(
    ("schedule", "members", "budget", "message"),
    [
        pytest.param("all", 1, None, "at least two members", id="one_member"),
        pytest.param("all", 5, 2, "must be at least 3", id="all_budget"),
        pytest.param("swiss", 6, 2, "must be at least 3", id="swiss_budget"),
        pytest.param("knockout", 4, None, "must be one of all, swiss", id="unknown"),
    ],
)
def test_impossible_schedules_are_refused(schedule: str, members: int, budget: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_budget(schedule, members, budget)  # type: ignore[arg-type]


def test_pairs_are_never_drawn_under_an_impossible_budget() -> None:
    with pytest.raises(ConfigError, match="must be at least 3"):
        all_pairs(5, 2)
