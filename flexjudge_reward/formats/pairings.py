"""Which pairs of a group to compare, and what the comparisons say about its members. Pure arithmetic.

A comparison is (first, second, result): two members by index, and 1 if the first is better, 0 if the second is, 0.5 for
a tie. Members are scored in [0, 1]: 0.5 is an average member, higher is better.

    schedule  comparisons of G members      rounds  note
    all       G (G - 1) / 2                 1       every pair once; with a budget, a balanced subset of the pairs
    swiss     about G / 2 per round         log2 G  each round pairs members of similar results; never a pair twice

Measured (benchmarks/LOG.md): with equal comparisons swiss finds the best member more often than `all` with a budget; a
ring of neighbours equals `all` with that budget, and comparing everybody with one anchor is worse, so neither is here.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Literal, get_args

from flexjudge_reward.errors import ConfigError

Schedule = Literal["all", "swiss"]
Pairing = tuple[int, int]


@dataclass(frozen=True)
class Comparison:
    """One judged pair: `result` is 1, 0.5 or 0 for the member `first`."""

    first: int
    second: int
    result: float


def all_pairs(members: int, budget: int | None = None, seed: int | str = 0) -> list[Pairing]:
    """Every pair once, or a balanced subset of `budget`; `seed` draws order and sides. Raises as `check_budget`."""
    check_budget("all", members, budget)
    pairs = list(itertools.combinations(range(members), 2))
    rng = random.Random(f"{seed} {members}")
    rng.shuffle(pairs)
    if budget is not None and budget < len(pairs):
        pairs = _balanced_subset(pairs, budget)
    return [pair if rng.random() < 0.5 else pair[::-1] for pair in pairs]


def swiss_pairs(members: int, comparisons: Sequence[Comparison], most: int, seed: int | str = 0) -> list[Pairing]:
    """The next round: members with similar results are paired, no pair twice; at most `most` pairs, maybe none.

    Uncompared members are paired first, so that a small budget leaves no member out.
    """
    points, compared = _totals(members, comparisons)
    done = {pair for one in comparisons for pair in ((one.first, one.second), (one.second, one.first))}
    rng = random.Random(f"{seed} {members} {len(comparisons)}")
    order = sorted(range(members), key=lambda member: (member in compared, -points[member], rng.random()))
    pairs: list[Pairing] = []
    while len(order) > 1:
        member = order.pop(0)
        rival = next((other for other in order if (member, other) not in done), None)
        if rival is not None:
            order.remove(rival)
            pairs.append((member, rival) if rng.random() < 0.5 else (rival, member))
    return pairs[:most]


def swiss_budget(members: int) -> int:
    """The comparisons of a whole Swiss tournament: enough rounds to find the best member."""
    return min(members // 2 * math.ceil(math.log2(members) + 1), members * (members - 1) // 2)


def check_budget(schedule: Schedule, members: int, budget: int | None) -> None:
    """Raises ConfigError: an unknown schedule, fewer than two members, or a budget that leaves one uncompared."""
    if schedule not in get_args(Schedule):
        raise ConfigError(f"the schedule must be one of {', '.join(get_args(Schedule))}, found {schedule!r}")
    if members < 2:
        raise ConfigError(f"a tournament needs at least two members, found {members}")
    fewest = math.ceil(members / 2)
    if budget is not None and budget < fewest:
        raise ConfigError(
            f"a budget of {budget} comparisons leaves members of a group of {members} uncompared:"
            f" it must be at least {fewest}"
        )


def win_rates(members: int, comparisons: Sequence[Comparison]) -> list[float | None]:
    """The mean result of each member, None for one without a comparison."""
    points, compared = _totals(members, comparisons)
    return [points[member] / compared[member] if member in compared else None for member in range(members)]


def bradley_terry(members: int, comparisons: Sequence[Comparison], prior: float = 0.25) -> list[float | None]:
    """The probability that each member beats an average one, by a Bradley-Terry fit; ties count half each way.

    Unlike a win rate it accounts for the opponents, so it is fair where members had different ones.

    `prior` is how many virtual comparisons are won and lost against an average member, above 0. They keep the strength
    of a member that won (or lost) everything finite, and members of separate parts comparable.
    """
    points, compared = _totals(members, comparisons)
    strength, won = [1.0] * members, [prior + own for own in points]
    for _ in range(200):  # minorisation-maximisation (Hunter 2004, equation 3); the virtual member has strength 1
        weight = [2 * prior / (value + 1.0) for value in strength]
        for comparison in comparisons:
            share = 1 / (strength[comparison.first] + strength[comparison.second])
            weight[comparison.first] += share
            weight[comparison.second] += share
        updated = [wins / total for wins, total in zip(won, weight, strict=True)]
        mean = geometric_mean(updated)  # only ratios are determined by results: the average member has strength 1
        updated = [value / mean for value in updated]
        moved = max(abs(math.log(new / old)) for new, old in zip(updated, strength, strict=True))
        strength = updated
        if moved < 1e-10:
            break
    # Rounded to what the iteration has settled: members with equal results must tie, whatever their index.
    return [round(value / (value + 1.0), 9) if member in compared else None for member, value in enumerate(strength)]


def _totals(members: int, comparisons: Sequence[Comparison]) -> tuple[list[float], Counter[int]]:
    """The sum of each member's results, and how often it was compared; only those that were."""
    points, compared = [0.0] * members, Counter[int]()
    for comparison in comparisons:
        points[comparison.first] += comparison.result
        points[comparison.second] += 1 - comparison.result
        compared[comparison.first] += 1
        compared[comparison.second] += 1
    return points, compared


def _balanced_subset(pairs: Sequence[Pairing], budget: int) -> list[Pairing]:
    """`budget` of the pairs, chosen so that every member is compared about equally often."""
    count: Counter[int] = Counter()
    # The rarest member first, by its rarest rival: a plain cut of the list would leave members out.
    left = {(0, 0): list(range(len(pairs)))}  # by how often the two were chosen when that was last seen: it grows only
    chosen: list[Pairing] = []
    while len(chosen) < budget:
        rarest = min(left)
        for place in sorted(left.pop(rarest)):  # in one order throughout, which leaves fewer members over
            first, second = pairs[place]
            low, high = sorted((count[first], count[second]))
            if (low, high) != rarest:
                left.setdefault((low, high), []).append(place)
            elif len(chosen) < budget:
                chosen.append(pairs[place])
                count.update(pairs[place])
    return chosen
