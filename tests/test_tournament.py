"""Tournaments: who meets whom, and what the results say."""

from __future__ import annotations

import random

import pytest

from flexjudge_reward import ConfigError
from flexjudge_reward.formats.pairings import (
    Comparison,
    Schedule,
    bradley_terry,
    fixed_pairs,
    swiss_budget,
    swiss_pairs,
    win_rates,
)


@pytest.mark.parametrize("members", range(2, 10))
@pytest.mark.parametrize(
    ("schedule", "count"),
    [
        pytest.param("all", lambda n: n * (n - 1) // 2, id="all"),
        pytest.param("ring", lambda n: n if n > 2 else 1, id="ring"),
        pytest.param("anchor", lambda n: n - 1, id="anchor"),
    ],
)
def test_a_schedule_has_its_number_of_pairs_and_none_twice(members: int, schedule: Schedule, count: object) -> None:
    pairs = fixed_pairs(schedule, members)
    assert len(pairs) == len({frozenset(pair) for pair in pairs}) == count(members)  # type: ignore[operator]
    assert {member for pair in pairs for member in pair} == set(range(members))


@pytest.mark.parametrize("members", range(2, 10))
def test_under_a_budget_everybody_is_still_compared(members: int) -> None:
    for budget in range((members + 1) // 2, members * (members - 1) // 2 + 1):
        pairs = fixed_pairs("all", members, budget, seed=budget)
        met = [sum(member in pair for pair in pairs) for member in range(members)]
        assert len(pairs) == budget and min(met) >= 1 and max(met) - min(met) <= 2


@pytest.mark.parametrize("members", range(2, 13))
@pytest.mark.parametrize("schedule", ["all", "ring", "swiss"])
def test_every_budget_that_is_accepted_leaves_nobody_out(members: int, schedule: Schedule) -> None:
    for budget in range((members + 1) // 2, members * (members - 1) // 2 + 1):
        for seed in range(5):
            played: list[Comparison] = []
            while schedule == "swiss" and (pairs := swiss_pairs(members, played, budget - len(played), seed)):
                played += [Comparison(a, b, float(a > b)) for a, b in pairs]
            if schedule != "swiss":
                played = [Comparison(a, b, 0.5) for a, b in fixed_pairs(schedule, members, budget, seed)]
            assert len(played) <= budget
            assert {member for one in played for member in (one.first, one.second)} == set(range(members))


@pytest.mark.parametrize("seed", range(20))
def test_members_with_equal_results_tie_wherever_they_stand(seed: int) -> None:
    qualities = [9, 9, 9, 3, 1]
    played = [
        Comparison(a, b, 0.5 if qualities[a] == qualities[b] else float(qualities[a] > qualities[b]))
        for a, b in fixed_pairs("all", 5, seed=seed)
    ]
    assert len({bradley_terry(5, played)[member] for member in range(3)}) == 1


def test_a_seed_fixes_the_order_and_the_sides_are_even() -> None:
    assert fixed_pairs("all", 6, seed=1) == fixed_pairs("all", 6, seed=1) != fixed_pairs("all", 6, seed=2)
    first = sum(pair[0] < pair[1] for seed in range(200) for pair in fixed_pairs("all", 4, seed=seed))
    assert 500 < first < 700  # of 1,200


@pytest.mark.parametrize("members", range(2, 12))
def test_swiss_never_repeats_a_pair_and_finds_the_best(members: int) -> None:
    played: list[Comparison] = []
    while len(played) < swiss_budget(members):
        pairs = swiss_pairs(members, played, swiss_budget(members) - len(played), seed=3)
        if not pairs:
            break
        played += [Comparison(a, b, float(a > b)) for a, b in pairs]
    assert len({frozenset((one.first, one.second)) for one in played}) == len(played)
    scores = [score if score is not None else 0.0 for score in bradley_terry(members, played)]
    assert scores.index(max(scores)) == members - 1


def test_win_rates_and_members_nobody_met() -> None:
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
        pytest.param("all", 5, 2, "needs at least 3", id="all_budget"),
        pytest.param("anchor", 5, 3, "needs at least 4", id="anchor_budget"),
        pytest.param("knockout", 4, None, "must be one of all, ring", id="unknown"),
    ],
)
def test_what_cannot_be_played(schedule: Schedule, members: int, budget: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fixed_pairs(schedule, members, budget)
