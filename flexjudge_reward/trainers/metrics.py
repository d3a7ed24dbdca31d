"""Reward metrics: failures, signal quality, time; `cost.py` adds tokens and cost.

    score                       mean score of the judged rows, 0 to 1
    failure_rate, failed_*      share of rows without a score, in five kinds
    failed_ours                 share of rows without a score that their candidate did not cause (`judge/rewards.py`)
    failed_candidate            share of rows without a score that their candidate caused
    failed_judgements           share of single judgements that failed; a row may combine several comparisons or votes
    forced                      share of the judge's reasonings that had to be closed
    zero_variance               share of groups in which all scores are equal, so that they give no gradient
    swap_agreed                 share of swapped pairs with the same winner in both orders; only where they are swapped
    met_*                       share of a checklist's answers that are yes, by need and by name; only with a checklist
    score_length                correlation of score and length of what was judged, -1 to 1; 0 where one does not vary
    judge_tokens                tokens the judge wrote per reward, those of cached replies included
    judge_seconds               of the slowest rank
    cached                      share of rows whose judgement came whole from the cache

Every rank computes the same numbers from the same results; none is NaN.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from flexjudge_reward.formats.base import add_counters
from flexjudge_reward.judge.rewards import causes
from flexjudge_reward.trainers.gather import RankResults, RowResult
from flexjudge_reward.types import Failure, FailureKind

# Metrics need one fixed set of names on all ranks, and ten kinds of failure would hide the others.
_FAILED: dict[str, tuple[FailureKind, ...]] = {
    "media": ("media",),
    "unfinished": ("unfinished",),
    "engine": ("transport", "timeout", "engine", "unsupported", "prompt_cut"),
    "reply": ("truncated", "malformed", "out_of_range", "wrong_count", "refused", "empty", "check"),
    "uncertain": ("uncertain",),
}


def metrics(ranks: Sequence[RankResults], rows: Sequence[RowResult], groups: Sequence[Hashable]) -> dict[str, float]:
    """The metrics of one call, with all rows of the batch in rank order, and the group of each."""
    kinds: Counter[FailureKind] = Counter(row.outcome.kind for row in rows if isinstance(row.outcome, Failure))
    scores = [row.outcome for row in rows if not isinstance(row.outcome, Failure)]
    lengths = [row.length for row in rows if not isinstance(row.outcome, Failure)]
    counters = add_counters(*(rank.counters for rank in ranks))
    outcomes = [outcome for rank in ranks for outcome in rank.outcomes]
    values = {"score": math.fsum(scores) / len(scores)} if scores else {}
    values["failure_rate"] = 1 - len(scores) / len(rows)
    for what, members in _FAILED.items():
        values[f"failed_{what}"] = sum(kinds[kind] for kind in members) / len(rows)
    caused = causes([row.outcome for row in rows], groups)
    values["failed_ours"] = caused.count("ours") / len(rows)
    values["failed_candidate"] = caused.count("candidate") / len(rows)
    values["failed_judgements"] = sum(outcome is not None for outcome in outcomes) / max(1, len(outcomes))
    values["zero_variance"] = _zero_variance(groups, rows)
    values["score_length"] = correlation(scores, lengths)
    values["forced"] = counters.get("forced", 0) / max(1, counters.get("reasonings", 0))
    if counters.get("swaps"):
        values["swap_agreed"] = counters["swaps_agreed"] / counters["swaps"]
    for name in (name.removeprefix("criteria_") for name in counters if name.startswith("criteria_")):
        values[f"met_{name}"] = counters[f"met_{name}"] / counters[f"criteria_{name}"]
    values["cached"] = sum(row.cached for row in rows) / len(rows)
    values["judge_seconds"] = max(rank.seconds for rank in ranks)
    values["judge_tokens"] = counters.get("tokens", 0) / len(rows)
    return values


def _zero_variance(groups: Sequence[Hashable], rows: Sequence[RowResult]) -> float:
    """The share of groups with two or more scores in which these are equal."""
    scores: dict[Hashable, list[float]] = defaultdict(list)
    for group, row in zip(groups, rows, strict=True):
        if not isinstance(row.outcome, Failure):
            scores[group].append(row.outcome)
    several = [own for own in scores.values() if len(own) > 1]
    return sum(max(own) == min(own) for own in several) / len(several) if several else 0.0


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Pearson's correlation, 0 where it is not defined."""
    try:
        return statistics.correlation(one, other)
    except statistics.StatisticsError:
        return 0.0
