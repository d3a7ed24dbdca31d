"""What one way of asking is worth on labelled rows: agreement, flips, cycles, ties, biases and cost.

One pass over the rows (both orders, k votes) gives several settings: each format plain (one order, one vote), with
position swap, and with the majority of the votes. A pair of candidates whose labels differ agrees with 1 if the judge
orders it as the labels do, with a half if it ties, and with 0 if it does not or fails.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import Any

from flexjudge_reward.errors import printable
from flexjudge_reward.offline.evaluate.formulas import majority, wilson
from flexjudge_reward.offline.evaluate.metrics import Estimate, Judged, Judgement, first_place
from flexjudge_reward.offline.evaluate.rows import Labelled
from flexjudge_reward.types import Example

Sign = int | None  # 1 if the first of a pair is better, -1 if the second is, 0 for a tie, None for a failure
_MARKDOWN = re.compile(r"\*\*|^#+ |^\s*[-*] |`|\|", re.MULTILINE)


@dataclass(frozen=True)
class Pair:
    """Two candidates of a row; `gold` is what the labels say, `said` the sign of each order in each draw."""

    row: int
    cluster: int
    """Of the row; see `clusters`."""
    first: int
    second: int
    gold: int
    said: tuple[tuple[Sign, ...], ...]
    longer: int
    """1 if the first is longer, -1 if the second is."""
    styled: int
    """The same for marks of Markdown."""


@dataclass(frozen=True)
class Setting:
    """A way of asking, and what it is worth."""

    format: str
    position_swap: bool
    votes: int
    max_tokens: int
    agreement: Estimate
    values: tuple[float, ...]
    """Of each labelled pair, for comparisons on the same rows."""
    failed: float
    failures: str
    """See `failures_of`."""
    ties: float
    flips: float
    """Of pairs that were read in both orders, the share whose outcome differs; NaN where there is one order."""
    first_place: float
    cycles: float
    """Of three candidates that are all compared, the share that beats each other in a circle; NaN without any."""
    longer: float
    """How much more often the longer of two is preferred than the labels do, -1 to 1; NaN where they never differ."""
    styled: float
    """The same for marks of Markdown."""
    consistency: float
    """The share of votes that are their majority's; NaN for one vote."""
    forced: float
    tokens: float
    """Per 1,000 rollouts."""
    seconds: float
    """Per 1,000 rollouts, as measured here; NaN where replies came from the cache."""
    unread: float = math.nan
    """How often an answer with one to another question after it is as good to the judge; NaN without such pairs."""
    unread_of: int = 0
    """Pairs that this was asked of."""

    @property
    def name(self) -> str:
        """Such as "pairwise + position swap"."""
        more = [" + position swap"] * self.position_swap + [f" + {self.votes} votes"] * (self.votes > 1)
        return f"{self.format}{''.join(more)} ({self.max_tokens} tokens)"


def pairs_of(rows: Sequence[Labelled]) -> list[Labelled]:
    """All pairs of each row as rows of their own, for a format that takes two."""
    return [
        replace(
            row,
            id=(row.id, i, j),
            merits=(row.merits[i], row.merits[j]),
            example=row.example.with_candidates([row.example.candidates[i], row.example.candidates[j]]),
        )
        for row in rows
        for i, j in combinations(range(len(row.merits)), 2)
    ]


def compared(asked: Sequence[Labelled], judged: Sequence[Judged]) -> list[Pair]:
    """The pairs of all rows, from what was judged: pairs by themselves (`pairs_of`), or whole rows."""
    found = []
    for one, judgement, cluster in zip(asked, judged, clusters(asked), strict=True):
        for i, j in combinations(range(len(one.merits)), 2):
            first, second = one.id[1:] if isinstance(one.id, tuple) else (i, j)
            gold = (one.merits[i] > one.merits[j]) - (one.merits[i] < one.merits[j])
            said = tuple(tuple(_sign(order, i, j) for order in draw) for draw in judgement.draws)
            texts = [_text(one, k) for k in (i, j)]
            longer = (len(texts[0]) > len(texts[1])) - (len(texts[0]) < len(texts[1]))
            marks = [len(_MARKDOWN.findall(text)) for text in texts]
            styled = (marks[0] > marks[1]) - (marks[0] < marks[1])
            found.append(Pair(one.number, cluster, first, second, gold, said, longer, styled))
    return found


def clusters(rows: Sequence[Labelled]) -> list[int]:
    """Per row a number that it shares with the rows that it depends on: those with an answer to a question in common.

    So six pairs of four answers say as much as one row with these four, and a row that is there twice says it once.
    """
    parent, seen = list(range(len(rows))), dict[str, int]()

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = place = parent[parent[place]]
        return place

    for place, row in enumerate(rows):
        for candidate in row.example.candidates:
            shown = Example(row.example.question, [candidate]).digest()
            parent[root(place)] = root(seen.setdefault(shown, place))
    return [root(place) for place in range(len(rows))]


def settings_of(
    format: str,
    max_tokens: int,
    pairs: Sequence[Pair],
    judged: Sequence[Judged],
    rollouts: int,
    seconds: float,
    seed: int = 0,
) -> list[Setting]:
    """The settings that one pass gives: plain, with position swap, with votes."""
    draws, orders = len(judged[0].draws), max(len(draw) for row in judged for draw in row.draws)
    share = seconds / sum(len(row.judgements) for row in judged)
    made: list[tuple[bool, int, Callable[[Pair], Sign], list[Judgement]]] = [
        (False, 1, lambda pair: pair.said[0][0], [row.draws[0][0] for row in judged])
    ]
    if orders == 2:
        made.append((True, 1, lambda pair: _swapped(pair.said[0]), [one for row in judged for one in row.draws[0]]))
    if draws > 1:
        used = [draw[0] for row in judged for draw in row.draws]
        made.append((False, draws, lambda pair: majority([draw[0] for draw in pair.said]), used))
    fresh = not any(one.cached for row in judged for one in row.judgements)
    return [
        _setting(
            _Asked(format, swap, votes, max_tokens), pairs, [said(pair) for pair in pairs], used, judged, rollouts,
            share * len(used) if fresh else math.nan, seed,
        )
        for swap, votes, said, used in made
    ]  # fmt: skip


@dataclass(frozen=True)
class _Asked:
    format: str
    swap: bool
    votes: int
    max_tokens: int


def _setting(
    asked: _Asked,
    pairs: Sequence[Pair],
    signs: Sequence[Sign],
    used: Sequence[Judgement],
    judged: Sequence[Judged],
    rollouts: int,
    seconds: float,
    seed: int,
) -> Setting:
    labelled = [(pair, sign) for pair, sign in zip(pairs, signs, strict=True) if pair.gold]
    values = tuple(0.0 if sign is None else 0.5 if sign == 0 else float(sign == pair.gold) for pair, sign in labelled)
    orders = [[majority(own) for own in zip(*pair.said[: asked.votes], strict=True)] for pair in pairs]
    both = [own for own in orders if len(own) == 2 and None not in own]
    votes = [[draw[0] for draw in pair.said] for pair in pairs if asked.votes > 1]
    return Setting(
        format=asked.format,
        position_swap=asked.swap,
        votes=asked.votes,
        max_tokens=asked.max_tokens,
        agreement=agreement_of([pair.cluster for pair, _ in labelled], values, seed),
        values=values,
        failed=_mean(sign is None for sign in signs),
        failures=failures_of(used),
        ties=_mean(sign == 0 for sign in signs if sign is not None),
        flips=_mean(one != other for one, other in both),
        first_place=first_place(judged),
        cycles=_cycles(pairs, signs),
        longer=_bias(labelled, lambda pair: pair.longer),
        styled=_bias(labelled, lambda pair: pair.styled),
        consistency=_mean(one == majority(own) for own in votes for one in own if one is not None),
        forced=_mean(bool(one.forced) for one in used),
        tokens=1000 * sum(one.tokens for one in used) / rollouts,
        seconds=1000 * seconds / rollouts,
    )


def clustered(members: Sequence[int], values: Sequence[float], seed: int = 0, resamples: int = 1000) -> Estimate:
    """The mean with an interval of a bootstrap over `clusters`, whose members depend on each other."""
    import numpy as np

    _, place = np.unique(np.array(members), return_inverse=True)
    count = int(place.max()) + 1 if len(members) else 0
    sums, sizes = np.zeros(count), np.zeros(count)
    np.add.at(sums, place, np.array(values))
    np.add.at(sizes, place, 1)
    drawn = np.random.default_rng(seed).integers(0, max(1, count), (resamples, count))
    means = sums[drawn].sum(1) / np.maximum(1, sizes[drawn].sum(1))
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(sums.sum() / max(1, sizes.sum())), float(low), float(high), len(values))


def agreement_of(members: Sequence[int], values: Sequence[float], seed: int) -> Estimate:
    """As `clustered`; Wilson's interval where all clusters are alike, which a few may be by chance."""
    found = clustered(members, values, seed)
    if found.low < found.high:
        return found
    low, high = wilson(found.value, len(set(members)))
    return replace(found, low=low, high=high)


def _sign(judgement: Judgement, i: int, j: int) -> Sign:
    scores = judgement.scores or (None,) * (max(i, j) + 1)
    one, other = scores[i], scores[j]
    return None if one is None or other is None else (one > other) - (one < other)


def _swapped(said: Sequence[Sign]) -> Sign:
    if None in said:
        return None
    return said[0] if len(set(said)) == 1 else 0


def failures_of(used: Sequence[Judgement]) -> str:
    """How many judgements failed of each kind, and what the first failure says; "" for none."""
    counts = Counter(one.failure for one in used if one.failure is not None)
    first = printable(next((one.why for one in used if one.why), ""))[:200]  # it may quote the judge
    said = ", ".join(f"{kind} {count}" for kind, count in counts.most_common())
    return f"{said}; the first: {first}" if first else said


def _cycles(pairs: Sequence[Pair], signs: Sequence[Sign]) -> float:
    beats: dict[int, dict[tuple[int, int], Sign]] = {}
    for pair, sign in zip(pairs, signs, strict=True):
        beats.setdefault(pair.row, {})[pair.first, pair.second] = sign
    circles = []
    for own in beats.values():
        members = sorted({member for pair in own for member in pair})
        for a, b, c in combinations(members, 3):
            three = [own.get((a, b)), own.get((b, c)), own.get((a, c))]
            if None not in three:
                circles.append(three in ([1, 1, -1], [-1, -1, 1]))
    return _mean(circles)


def _bias(labelled: Sequence[tuple[Pair, Sign]], of: Callable[[Pair], int]) -> float:
    decided = [(of(pair), pair.gold, sign) for pair, sign in labelled if sign and of(pair)]
    if not decided:
        return math.nan
    return fmean(side == sign for side, _, sign in decided) - fmean(side == gold for side, gold, _ in decided)


def _text(row: Labelled, candidate: int) -> str:
    return "".join(part for part in row.example.candidates[candidate] if isinstance(part, str))


def _mean(values: Any) -> float:
    kept = [float(value) for value in values]
    return fmean(kept) if kept else math.nan
