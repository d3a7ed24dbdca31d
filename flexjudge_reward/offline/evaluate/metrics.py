"""Readings of stored verdicts: accuracy, correlation, edit distance and the Ties score, each with an interval.

A row was judged in two orders, maybe several times (draws). Every published way to count is a choice of:

    orders   pooled (both, each by itself), drawn (the random one), listed (that of the data set), both (right only if
             right in both), sum (JudgeBench: +1 right, -1 wrong, 0 else; right if the sum is above 0)
    draws    each (each by itself), majority (as `MajorityVote`), vote (the most common, the first on a draw), sum (the
             sign of the sum), average (of the scores), prefixes (the first, the first two, ...: the median, of a
             distance the largest)
    failed   wrong, left_out, half (a coin's expectation), tie, chance (1 of the number of candidates)
    ties     of the judge: wrong, left_out, half
    labels   tied labels: left_out, or a class of their own

Sources: judge-training.md 4.1 and papers.md 1.7 of this project's notes, which name the released scorers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any, Literal, get_args, get_origin, get_type_hints

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.offline.evaluate import formulas

Scores = tuple[float | None, ...]


@dataclass(frozen=True)
class Judgement:
    """One stored reply or, of a format for one candidate, one per candidate."""

    scores: Scores | None
    """One per candidate, in the row's own order; None for all or for one that failed."""
    failure: str | None = None
    """The kind of the first failure."""
    tokens: int = 0
    forced: int = 0
    cached: bool = False
    why: str | None = None
    """What the first failure says. `cached`, whether all its replies came from the cache, is not stored."""

    @property
    def whole(self) -> tuple[float, ...] | None:
        """The scores, if every candidate has one."""
        if self.scores is None or any(score is None for score in self.scores):
            return None
        return tuple(score for score in self.scores if score is not None)


@dataclass(frozen=True)
class Judged:
    """One row with its label and all that a judge said of it."""

    id: object
    part: str
    merits: tuple[float, ...]
    """What the label says: a number per candidate, higher is better; of a single candidate, its score."""
    groups: Mapping[str, str]
    draws: tuple[tuple[Judgement, ...], ...]
    """Per draw one judgement per order; a format for one candidate has one order."""
    listed: int = 0
    """Which of the orders is that of the data set."""

    @property
    def judgements(self) -> list[Judgement]:
        """All of them."""
        return [one for draw in self.draws for one in draw]


@dataclass(frozen=True)
class Metric:
    """One reading; see above."""

    name: str
    of: Literal["accuracy", "options", "best", "first", "pairs", "pearson", "spearman", "distance", "ties", "average"]
    reading: str = ""
    """Whose it is: the paper's, the released code's, ours."""
    by: str | None = None
    """A grouping: the value is the mean over its groups, and `name/group` that of each."""
    parts: Sequence[str] | None = None
    orders: Literal["pooled", "drawn", "listed", "both", "sum"] = "pooled"
    draws: Literal["each", "majority", "vote", "sum", "average", "prefixes"] = "each"
    failed: Literal["wrong", "left_out", "half", "tie", "chance", "worst"] = "wrong"
    ties: Literal["wrong", "left_out", "half"] = "wrong"
    labels: Literal["left_out", "class"] = "left_out"
    system: str | None = None
    """A grouping whose means are compared, such as the speech system."""
    over: Sequence[str] = ()
    """Of an average: the metrics, with `weights`."""
    weights: Sequence[float] = ()

    def __post_init__(self) -> None:
        for field, options in _OPTIONS.items():
            if getattr(self, field) not in options:
                raise ConfigError(f"metric {self.name!r}: {field} is one of {', '.join(options)}")


_SHARES = ("accuracy", "options", "best", "first", "pairs")
_OPTIONS = {name: get_args(hint) for name, hint in get_type_hints(Metric).items() if get_origin(hint) is Literal}


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, and how many rows it is of, without those left out; NaN where there is none."""

    value: float
    low: float
    high: float
    rows: int

    def as_dict(self) -> dict[str, float | int | None]:
        """As JSON."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if math.isnan(one) else one for name, one in numbers.items()} | {"rows": self.rows}


def measure(
    metrics: Sequence[Metric], rows: Sequence[Judged], resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Every metric by its name, those of its groups as `name/group`; intervals are those of a bootstrap over rows."""
    import numpy as np

    rng = np.random.default_rng(seed)
    sampled: dict[str, tuple[float, Any, int]] = {}
    for metric in metrics:
        if metric.of == "average":
            weights = metric.weights or [1.0] * len(metric.over)
            value, draws = (np.average([sampled[name][i] for name in metric.over], 0, weights) for i in (0, 1))
            sampled[metric.name] = float(value), draws, sum(sampled[name][2] for name in metric.over)
            continue
        chosen = [row for row in rows if metric.parts is None or row.part in metric.parts]
        groups = _grouped(chosen, metric.by)
        for group, own in groups.items():
            try:
                values = _units(metric, own)
            except (ValueError, LookupError, TypeError) as error:  # such as an accuracy of rows with three candidates
                raise ConfigError(f"metric {metric.name!r}, {metric.of}, does not fit these rows: {error}") from None
            drawn = [_combined(metric, values[rng.integers(0, len(values), len(values))]) for _ in range(resamples)]
            name = f"{metric.name}/{group}" if metric.by else metric.name
            count = int((values[:, 1] > 0).sum()) if metric.of in _SHARES else len(own)
            sampled[name] = _combined(metric, values), np.array(drawn), count
        if metric.by:
            # A group with nothing to count has no value, and takes none from the others.
            whole = [one for group in groups if not math.isnan((one := sampled[f"{metric.name}/{group}"])[0])]
            value = fmean(one[0] for one in whole) if whole else math.nan
            draws = np.mean([one[1] for one in whole] or [np.full(resamples, math.nan)], 0)
            sampled[metric.name] = value, draws, sum(one[2] for one in whole)
        elif not chosen:
            sampled[metric.name] = math.nan, np.full(resamples, math.nan), 0
    kinds = {metric.name: metric.of for metric in metrics}
    return {
        name: Estimate(value, *_interval(draws, value, count, kinds[name.split("/")[0]] in _SHARES), count)
        for name, (value, draws, count) in sampled.items()
    }


def _interval(draws: Any, value: float, count: int, is_share: bool) -> tuple[float, float]:
    """The middle 95 % of the draws; Wilson's interval for a share where all rows are alike."""
    import numpy as np

    kept = np.atleast_1d(draws)
    kept = kept[np.isfinite(kept)]
    if len(kept) < 2:
        return math.nan, math.nan
    low, high = np.percentile(kept, [2.5, 97.5])
    return formulas.wilson(value, count) if is_share and low == high else (float(low), float(high))


def _grouped(rows: Sequence[Judged], by: str | None) -> dict[str, list[Judged]]:
    """Rows by their group; those without one are left out."""
    found: dict[str, list[Judged]] = {}
    for row in rows:
        if by is None or row.groups.get(by):
            found.setdefault("" if by is None else row.groups[by], []).append(row)
    return dict(sorted(found.items()))


# ------------------------------------------------------------------------------------------ from rows to units


def _units(metric: Metric, rows: Sequence[Judged]) -> Any:
    """What is resampled: an array with a line per row, per system, or of the Ties score per prompt."""
    import numpy as np

    if metric.of in ("pearson", "spearman"):
        return np.array(_score_units(metric, rows), float)
    if metric.of == "ties":
        return np.array(_ties_units(rows), float).reshape(-1, 5)
    if metric.of == "distance":
        return np.array([_distances(metric, row) for row in rows], float)
    count = {"best": _best_hits, "first": _first_hits, "pairs": _pair_hits}.get(metric.of, _hits)
    hits = [[one for one in count(metric, row) if one is not None] for row in rows]
    return np.array([(sum(own), len(own)) for own in hits], float)


def _combined(metric: Metric, units: Any) -> float:
    """The value of some units; NaN if there is nothing to count."""
    import numpy as np

    if not len(units):
        return math.nan
    if metric.of in ("pearson", "spearman"):
        compare = formulas.pearson if metric.of == "pearson" else formulas.spearman
        counts = range(1, units.shape[1]) if metric.draws == "prefixes" else [units.shape[1] - 1]
        values = [compare(units[:, :n].T.ravel(), np.tile(units[:, -1], n)) for n in counts]
        return float(np.median(values))
    if metric.of == "ties":
        return formulas.ties_score(units)
    if metric.of == "distance" and metric.draws == "prefixes":
        means = units.mean(0)
        return float(max(means[:n].mean() for n in range(1, len(means) + 1)))
    if metric.of == "distance":
        return float(np.nanmean(units)) if np.isfinite(units).any() else math.nan
    hits, count = units.sum(0)
    return float(hits / count) if count else math.nan


def _selected(metric: Metric, row: Judged) -> list[list[Judgement]]:
    """The draws of each order that counts."""
    orders = list(zip(*row.draws, strict=True))
    if metric.orders in ("pooled", "both", "sum") or len(orders) == 1:
        return [list(order) for order in orders]
    return [list(orders[row.listed if metric.orders == "listed" else 0])]


def outcome(judgement: Judgement, options: bool = False) -> Any:
    """1 if the first of two wins, -1 if the second, 0 for a tie; of options the scores; None if it failed."""
    scores = judgement.whole
    if scores is None or options:
        return scores
    return (scores[0] > scores[1]) - (scores[0] < scores[1])


def _hits(metric: Metric, row: Judged) -> Iterable[float | None]:
    """1, 0 or a half for each outcome of a pair; None for one that is left out."""
    options = metric.of == "options"
    first, second = row.merits
    gold: Any = row.merits if options else (first > second) - (first < second)
    if not options and gold == 0 and metric.labels == "left_out":
        return []
    orders = [[outcome(one, options) for one in order] for order in _selected(metric, row)]
    orders = [_drawn(metric, own) for own in orders]
    if metric.orders == "both":
        return [float(all(one == gold for one in both)) for both in zip(*orders, strict=True)]
    if metric.orders == "sum":
        signed = ([0 if not one else 1 if one == gold else -1 for one in both] for both in zip(*orders, strict=True))
        return [float(sum(both) > 0) for both in signed]
    return [_hit(metric, one, gold, 2) for own in orders for one in own]


def _drawn(metric: Metric, outcomes: list[Any]) -> list[Any]:
    """The outcomes of one order's draws, or what they add up to."""
    if metric.draws == "majority":
        return [formulas.majority(outcomes)]
    if metric.draws == "vote":
        said = [one for one in outcomes if one is not None or metric.failed == "worst"]
        return [Counter(said).most_common(1)[0][0] if said else None]
    if metric.draws == "sum":
        total = sum(one or 0 for one in outcomes)
        return [(total > 0) - (total < 0)]
    return outcomes


def _hit(metric: Metric, one: Any, gold: Any, count: int) -> float | None:
    if one is None and metric.failed == "tie":
        one = 0
    if one is None:
        return {"left_out": None, "half": 0.5, "chance": 1 / count}.get(metric.failed, 0.0)
    if one == 0 and gold != 0 and metric.of != "options":
        return {"left_out": None, "half": 0.5}.get(metric.ties, 0.0)
    return float(one == gold)


def _best_hits(metric: Metric, row: Judged) -> Iterable[float | None]:
    """The share of right candidates among those with the highest score (RewardBench 2).

    Right are the best ones, and rows without a difference are left out; as a class of their own, right is above 0.
    Where failures are left out, so is a lone candidate without a score, and the others compete (PAMPA).
    """
    best = max(row.merits)
    right = {index for index, merit in enumerate(row.merits) if merit == best}
    if metric.labels == "class":
        right = right if best > 0 else set()
    elif len(right) == len(row.merits):
        return []
    hits: list[float | None] = []
    for judgement in (one for order in _selected(metric, row) for one in order):
        scores = (judgement.scores if metric.failed == "left_out" else judgement.whole) or ()
        highest = max((score for score in scores if score is not None), default=math.nan)
        top = [index for index, score in enumerate(scores) if score == highest]
        hits.append(fmean(index in right for index in top) if top else _hit(metric, None, None, len(row.merits)))
    return hits


def _first_hits(metric: Metric, row: Judged) -> Iterable[float | None]:
    """What choosing the first candidate gives, without a judge."""
    return [float(row.merits[0] == max(row.merits) and row.merits[0] > 0)]


def _pair_hits(metric: Metric, row: Judged) -> Iterable[float | None]:
    """As `_hits`, over all pairs of the row's candidates whose labels differ."""
    hits: list[float | None] = []
    for i, j in combinations(range(len(row.merits)), 2):
        gold = (row.merits[i] > row.merits[j]) - (row.merits[i] < row.merits[j])
        for order in _selected(metric, row) if gold else []:
            said = [None if one.scores is None else (one.scores[i], one.scores[j]) for one in order]
            signs = [None if s is None or None in s else (s[0] > s[1]) - (s[0] < s[1]) for s in said]  # type: ignore[operator]
            hits += [_hit(metric, sign, gold, 2) for sign in _drawn(metric, signs)]
    return hits


def _score_units(metric: Metric, rows: Sequence[Judged]) -> list[list[float]]:
    """Per row, or per system, the judge's scores and the label; a failure is left out or -1."""
    units = []
    for row in rows:
        if len(row.merits) != 1:
            raise ValueError("a row has several candidates")
        said = [order.scores[0] if order.scores else None for draw in row.draws for order in draw[:1]]
        if metric.failed == "worst":
            said = [-1.0 if one is None else one for one in said]
        kept = [one for one in said if one is not None]
        mean = [fmean(kept) if kept else math.nan]
        scores = [math.nan if one is None else one for one in said] if metric.draws == "prefixes" else mean
        units.append([*scores, row.merits[0]])
    if metric.system is None:
        return units
    systems: dict[str, list[list[float]]] = {}
    for row, unit in zip(rows, units, strict=True):
        if not math.isnan(unit[0]):
            systems.setdefault(row.groups.get(metric.system, ""), []).append(unit)
    return [[fmean(column) for column in zip(*own, strict=True)] for own in systems.values()]


def _distances(metric: Metric, row: Judged) -> list[float]:
    """Per draw the edit distance of the judge's order to the label's, over the length."""
    label = formulas.order_of(row.merits)
    found = []
    for draw in row.draws:
        own = [draw[row.listed if len(draw) > 1 else 0]] if metric.orders == "listed" else draw
        said = [None if (scores := one.whole) is None else formulas.order_of(scores) for one in own]
        lengths = [1.0 if one is None else formulas.edit_distance(one, label) / len(label) for one in said]
        kept = [one for one, order in zip(lengths, said, strict=True) if order or metric.failed != "left_out"]
        found.append(fmean(kept) if kept else math.nan)
    return found


def _ties_units(rows: Sequence[Judged]) -> list[list[float]]:
    """Per prompt: is the ref right, the tied, the spread of its right answers, and the margins of tied and ref."""
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for row in rows:
        kind, _, number = str(row.id).partition(":")
        scores = row.draws[0][0].scores or (None,) * len(row.merits)
        said = [-1.0 if one is None else one for one in scores]  # as the released code: a failed rating is -1
        right = [one for one, merit in zip(said, row.merits, strict=True) if merit]
        margin = min(right) - max(one for one, merit in zip(said, row.merits, strict=True) if not merit)
        found.setdefault(number, {})[kind] = (float(margin > 0), max(right) - min(right), margin)
    nothing = (math.nan, math.nan, math.nan)
    pairs = [(one.get("ref", nothing), one.get("tied", nothing)) for one in found.values()]
    return [[ref[0], tied[0], tied[1], tied[2], ref[2]] for ref, tied in pairs]


# ------------------------------------------------------------------------------------------ beside every metric


def always(rows: Sequence[Judged]) -> dict[str, float]:
    """What stands beside every figure: failures, ties, flips between the orders, first places, forced, tokens."""
    judgements = [one for row in rows for one in row.judgements]
    pairs = [[outcome(one) for one in draw] for row in rows for draw in row.draws if len(row.merits) == 2]
    said = [one for draw in pairs for one in draw if one is not None]
    both = [draw for draw in pairs if len(draw) == 2 and None not in draw]
    return {
        "rows": len(rows),
        "failed": _share([one.failure is not None for one in judgements]),
        "ties": _share([one == 0 for one in said]),
        "swap_consistent": _share([one == other for one, other in both]),
        "first_place": first_place(rows),
        "forced": _share([bool(one.forced) for one in judgements]),
        "tokens": fmean(one.tokens for one in judgements) if judgements else math.nan,
    }


def first_place(rows: Sequence[Judged]) -> float:
    """How often a winner of two is the one that was shown first: a half without position bias; NaN where none is."""
    first = []
    for row in rows:
        shown_first = [1, -1] if row.listed == 0 else [-1, 1]
        for draw in row.draws:
            if len(row.merits) == 2 and len(draw) == 2:
                signs = [outcome(one) for one in draw]
                first += [sign == place for sign, place in zip(signs, shown_first, strict=True) if sign]
    return _share(first)


def _share(values: Sequence[bool]) -> float:
    return fmean(values) if values else math.nan
