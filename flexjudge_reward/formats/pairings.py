"""Which pairs of a group to compare, and what the comparisons say about its members. Pure arithmetic.

A comparison is (first, second, result): two members by index, and 1 if the first is better, 0 if the second is, 0.5 for
a tie. Members are scored in [0, 1]: 0.5 is an average member, higher is better.

    schedule  comparisons of G members      rounds  note
    all       G (G - 1) / 2                 1       every pair once
    ring      G (2: 1)                      1       each member meets two others
    anchor    G - 1                         1       each member meets member 0
    swiss     about G / 2 per round         log2 G  each round pairs members that stand close; never the same pair twice
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from flexjudge_reward.errors import ConfigError

Schedule = Literal["all", "ring", "anchor", "swiss"]
Pairing = tuple[int, int]


@dataclass(frozen=True)
class Comparison:
    """One judged pair: `result` is 1, 0.5 or 0 for the member `first`."""

    first: int
    second: int
    result: float


def fixed_pairs(schedule: Schedule, members: int, budget: int | None = None, seed: int | str = 0) -> list[Pairing]:
    """The pairs of a schedule that does not look at results, each once, in an order and with sides drawn by `seed`.

    Args:
        budget: the most comparisons; None for the schedule's own number.

    Raises:
        ConfigError: fewer than two members, or a budget under which a member would never be compared.
    """
    check_budget(schedule, members, budget)
    if schedule == "anchor":
        pairs = [(0, other) for other in range(1, members)]
    else:
        pairs = list(itertools.combinations(range(members), 2))
    rng = random.Random(f"{seed} {members}")
    chosen = _around(members, budget, rng) if schedule == "ring" else _spread(pairs, members, budget, rng)
    return [pair if rng.random() < 0.5 else pair[::-1] for pair in chosen]


def swiss_pairs(members: int, played: Sequence[Comparison], most: int, seed: int | str = 0) -> list[Pairing]:
    """The next round: members with close results meet, no pair twice; at most `most` pairs, none when all have met.

    Who has met nobody yet comes first, so that a small budget leaves no one out.
    """
    points = [0.0] * members
    for game in played:
        points[game.first] += game.result
        points[game.second] += 1 - game.result
    met = {frozenset((game.first, game.second)) for game in played}
    rng = random.Random(f"{seed} {members} {len(played)}")
    known = {member for pair in met for member in pair}
    order = sorted(range(members), key=lambda member: (member in known, -points[member], rng.random()))
    pairs: list[Pairing] = []
    while len(order) > 1:
        one = order.pop(0)
        rival = next((other for other in order if frozenset((one, other)) not in met), None)
        if rival is not None:
            order.remove(rival)
            pairs.append((one, rival) if rng.random() < 0.5 else (rival, one))
    return pairs[:most]


def swiss_budget(members: int) -> int:
    """The comparisons of a whole Swiss tournament: enough rounds to tell the best apart."""
    return min(members // 2 * math.ceil(math.log2(members) + 1), members * (members - 1) // 2)


def check_budget(schedule: Schedule, members: int, budget: int | None) -> None:
    """Raises ConfigError if the schedule cannot be played."""
    if schedule not in get_args(Schedule):
        raise ConfigError(f"the schedule must be one of {', '.join(get_args(Schedule))}, found {schedule!r}")
    if members < 2:
        raise ConfigError(f"a tournament needs at least two members, found {members}")
    fewest = members - 1 if schedule == "anchor" else math.ceil(members / 2)
    if budget is not None and budget < fewest:
        raise ConfigError(
            f"a budget of {budget} comparisons leaves members of a group of {members} without any:"
            f" the schedule {schedule!r} needs at least {fewest}"
        )


def win_rates(members: int, played: Sequence[Comparison]) -> list[float | None]:
    """The mean result of each member, None for one without a comparison."""
    results: list[list[float]] = [[] for _ in range(members)]
    for one in played:
        results[one.first].append(one.result)
        results[one.second].append(1 - one.result)
    return [math.fsum(found) / len(found) if found else None for found in results]


def bradley_terry(members: int, played: Sequence[Comparison], prior: float = 0.25) -> list[float | None]:
    """The chance of each member to beat an average one of the group, by a Bradley-Terry fit; ties count half each way.

    Unlike win rates it knows whom a member met, so it is fair where members met different opponents.

    Args:
        prior: virtual comparisons won and lost against an average member, which keeps a member that won (or lost)
            everything finite, and members of separate parts comparable.
    """
    strength = [1.0] * members
    won = [prior] * members
    for one in played:
        won[one.first] += one.result
        won[one.second] += 1 - one.result
    for _ in range(200):
        # Minorisation-maximisation (Hunter 2004, equation 3), with the virtual member of strength 1.
        weight = [2 * prior / (value + 1.0) for value in strength]
        for one in played:
            share = 1 / (strength[one.first] + strength[one.second])
            weight[one.first] += share
            weight[one.second] += share
        updated = [wins / total for wins, total in zip(won, weight, strict=True)]
        # Only ratios are determined by results: the average member is put at strength 1.
        mean = math.exp(math.fsum(map(math.log, updated)) / members)
        updated = [value / mean for value in updated]
        moved = max(abs(math.log(new / old)) for new, old in zip(updated, strength, strict=True))
        strength = updated
        if moved < 1e-10:
            break
    met = {member for one in played for member in (one.first, one.second)}
    # Rounded to what the iteration has settled: members with equal results must tie, wherever they stand.
    return [round(value / (value + 1.0), 9) if member in met else None for member, value in enumerate(strength)]


def _around(members: int, budget: int | None, rng: random.Random) -> list[Pairing]:
    """At most `budget` neighbours on a circle drawn by `rng`; every other pair first, so that half of them has all."""
    circle = rng.sample(range(members), members)
    pairs = [(circle[one], circle[(one + 1) % members]) for one in range(members if members > 2 else 1)]
    return (pairs[::2] + pairs[1::2])[:budget]


def _spread(pairs: list[Pairing], members: int, budget: int | None, rng: random.Random) -> list[Pairing]:
    """At most `budget` of the pairs, so chosen that everybody is compared about equally often."""
    rng.shuffle(pairs)
    if budget is None or budget >= len(pairs):
        return pairs
    met = [0] * members
    chosen: list[Pairing] = []
    while len(chosen) < budget:
        # The rarest member first, by its rarest rival: a plain cut of the shuffled list would leave some out.
        best = min(pairs, key=lambda pair: (min(met[pair[0]], met[pair[1]]), max(met[pair[0]], met[pair[1]])))
        pairs.remove(best)
        chosen.append(best)
        for member in best:
            met[member] += 1
    return chosen
