"""Whether the rewards are worth training on: what judging cost, what failed, and signs that the signal is weak.

    score                       mean score of the judged rows, 0 to 1
    failure_rate, failed_*      rows without a score, in three kinds
    failed_judgements           share of single judgements that failed; of a row several may be comparisons or votes
    forced                      share of the judge's thoughts that had to be closed
    zero_variance               share of groups in which all scores are equal, so that they give no gradient
    swap_agreed                 share of swapped pairs with the same winner in both orders; only where they are swapped
    score_length                correlation of score and length of the completion, -1 to 1; 0 where one does not vary
    judge_tokens                tokens the judge wrote per reward; cached ones count, because they were paid for once
    judge_seconds               of the slowest rank
    cached                      share of rows whose judgement came whole from the cache

Every rank computes the same numbers from the same shares; none is NaN.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flexjudge_reward.judge.rewards import groups
from flexjudge_reward.trainers.gather import Judged, Place, Share
from flexjudge_reward.types import Failure, FailureKind, Verdict

# Metrics need one fixed set of names on all ranks, and ten kinds of failure would drown the others.
_FAILED: dict[str, tuple[FailureKind, ...]] = {
    "media": ("media",),
    "engine": ("transport", "timeout", "engine"),
    "reply": ("truncated", "malformed", "out_of_range", "wrong_count", "refused", "empty"),
}


@dataclass
class Summary:
    """What one reward has done so far in this process."""

    calls: int = 0
    judgements: int = 0
    """Rows that got a score or a failure here."""
    cached: int = 0
    """Those whose replies came from the cache."""
    failures: dict[FailureKind, int] = field(default_factory=dict)
    seconds: float = 0.0
    """Spent in judging."""
    tokens: int = 0
    """Of the judge's replies, cached ones included."""
    notes: dict[str, int] = field(default_factory=dict)
    """Counts of votes, swaps, forced thoughts and comparisons; see `adaptive.py`."""
    means: dict[str, float] = field(default_factory=dict)
    """The metrics above over all ranks, each the mean of the calls that had it."""
    _counts: dict[str, int] = field(default_factory=dict, repr=False)

    def add(self, rows: Sequence[Judged], notes: Mapping[str, float], seconds: float) -> None:
        """Counts one call."""
        self.calls += 1
        self.judgements += len(rows)
        self.cached += sum(row.cached for row in rows)
        for row in rows:
            if isinstance(row.outcome, Failure):
                self.failures[row.outcome.kind] = self.failures.get(row.outcome.kind, 0) + 1
        self.seconds += seconds
        self.tokens += int(notes.get("tokens", 0))
        for name, value in notes.items():
            if name not in ("tokens", "verdicts"):
                self.notes[name] = self.notes.get(name, 0) + int(value)

    def watch(self, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of one call into the means."""
        for name, value in metrics.items():
            count = self._counts[name] = self._counts.get(name, 0) + 1
            before = self.means.get(name, 0.0)
            self.means[name] = before + (value - before) / count

    @property
    def new(self) -> int:
        """Judgements that were not in the cache."""
        return self.judgements - self.cached

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.failures.items())) or "none"
        did = "".join(f", {name.replace('_', ' ')} {count}" for name, count in sorted(self.notes.items()) if count)
        return (
            f"{self.calls} calls, {self.judgements} judgements ({self.cached} from the cache, {self.new} new),"
            f" failures: {kinds}{did}; {self.seconds:.1f} s, {self.tokens} tokens of reasoning and answers"
        )


def counted(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The notes of all verdicts, summed, with the number of verdicts and of the judge's tokens."""
    found: Counter[str] = Counter(verdicts=len(verdicts))
    for verdict in verdicts:
        found["tokens"] += sum(generation.completion_tokens for generation in verdict.generations)
        for name, value in verdict.notes.items():
            found[name] += int(value)
    return dict(found)


def is_cached(verdict: Verdict) -> bool:
    """Whether nothing was generated for the verdict."""
    return bool(verdict.generations) and all(generation.cached for generation in verdict.generations)


def in_place(shares: Sequence[Share]) -> Iterator[tuple[Place, Judged]]:
    """Every row of the batch in rank order, whoever judged it."""
    judged = {place: row for share in shares for place, row in share.rows.items()}
    for rank, share in enumerate(shares):
        for number in range(len(share.keys)):
            yield (rank, number), judged[rank, number]


def diagnostics(shares: Sequence[Share], size: int | None = None) -> dict[str, float]:
    """The numbers of one call, over all ranks; `size` is that of a group, as in `rewards.groups`."""
    rows = [row for _, row in in_place(shares)]
    kinds: Counter[FailureKind] = Counter(row.outcome.kind for row in rows if isinstance(row.outcome, Failure))
    scored = [(row.outcome, float(row.length)) for row in rows if not isinstance(row.outcome, Failure)]
    notes: Counter[str] = Counter()
    for share in shares:
        notes.update({name: int(value) for name, value in share.notes.items()})
    found = {"score": math.fsum(score for score, _ in scored) / len(scored)} if scored else {}
    found["failure_rate"] = 1 - len(scored) / len(rows)
    for what, members in _FAILED.items():
        found[f"failed_{what}"] = sum(kinds[kind] for kind in members) / len(rows)
    parts = [part for share in shares for part in share.parts]
    found["failed_judgements"] = sum(part is not None for part in parts) / max(1, len(parts))
    found["zero_variance"] = _zero_variance(groups([key for share in shares for key in share.keys], size), rows)
    found["score_length"] = correlation(scored)
    found["forced"] = notes["forced"] / max(1, notes["thoughts"])
    if notes["swaps"]:
        found["swap_agreed"] = notes["swaps_agreed"] / notes["swaps"]
    found["cached"] = sum(row.cached for row in rows) / len(rows)
    found["judge_seconds"] = max(share.seconds for share in shares)
    found["judge_tokens"] = notes["tokens"] / len(rows)
    return found


def _zero_variance(group_of: Sequence[object], rows: Sequence[Judged]) -> float:
    """The share of groups with two or more scores in which these are equal."""
    scores: dict[object, list[float]] = defaultdict(list)
    for group, row in zip(group_of, rows, strict=True):
        if not isinstance(row.outcome, Failure):
            scores[group].append(row.outcome)
    several = [found for found in scores.values() if len(found) > 1]
    return sum(max(found) == min(found) for found in several) / len(several) if several else 0.0


def correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Pearson's, 0 where it is not defined."""
    if len(pairs) < 2:
        return 0.0
    mean = [math.fsum(values) / len(pairs) for values in zip(*pairs, strict=True)]
    centred = [(one - mean[0], other - mean[1]) for one, other in pairs]
    spread = math.fsum(a * a for a, _ in centred) * math.fsum(b * b for _, b in centred)
    return math.fsum(a * b for a, b in centred) / math.sqrt(spread) if spread > 0 else 0.0
