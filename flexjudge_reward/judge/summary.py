"""RunSummary: what a run has judged so far in this process, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from flexjudge_reward.formats.base import add_counters
from flexjudge_reward.judge.groups import GroupResult
from flexjudge_reward.types import Failure


@dataclass
class RunSummary:
    """Counts of candidates: each has a score or a failure."""

    calls: int = 0
    judged: int = 0
    """Candidates with a score or a failure."""
    cached: int = 0
    """Those whose replies all came from the cache."""
    failures: dict[str, int] = field(default_factory=dict)
    """By kind."""
    skipped: int = 0
    """Rows that could not be used; none of their candidates was judged."""
    seconds: float = 0.0
    tokens: int = 0
    """Of the judge's replies, cached ones included."""
    cost: float = 0.0
    """Of a trainer's reward with prices: of new replies, over all ranks (`trainers/cost.py`)."""
    counters: dict[str, float] = field(default_factory=dict)
    """Votes, swaps, forced answers and comparisons; see `formats/`."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of a trainer's reward: the mean over the calls that had it, over all ranks (`trainers/metrics.py`)."""
    alarms: dict[str, int] = field(default_factory=dict)
    """Of a trainer's reward: how often each quiet trouble began (`trainers/alarms.py`)."""
    _calls: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def new(self) -> int:
        """Candidates whose judgement did not come from the cache."""
        return self.judged - self.cached

    @property
    def failed(self) -> int:
        """Candidates without a score."""
        return sum(self.failures.values())

    def add(self, results: Sequence[GroupResult], seconds: float = 0.0) -> None:
        """Counts one call."""
        outcomes = [outcome for result in results for outcome in result.outcomes]
        verdicts = [verdict for result in results for verdict in result.verdicts]
        self.calls += 1
        self.seconds += seconds
        self.judged += len(outcomes)
        self.cached += sum(result.verdict_of(i).cached for result in results for i in range(len(result.outcomes)))
        for failure in (outcome for outcome in outcomes if isinstance(outcome, Failure)):
            self.failures[failure.kind] = self.failures.get(failure.kind, 0) + 1
        self.tokens += sum(verdict.tokens for verdict in verdicts)
        self.counters = add_counters(self.counters, *(verdict.counters for verdict in verdicts))

    def add_metrics(self, metrics: dict[str, float]) -> None:
        """Takes the metrics of one call into the means."""
        for name, value in metrics.items():
            self._calls[name] = self._calls.get(name, 0) + 1
            before = self.metrics.get(name, 0.0)
            self.metrics[name] = before + (value - before) / self._calls[name]

    def as_dict(self) -> dict[str, Any]:
        """What a report holds: every field, and `new`."""
        return {name: value for name, value in asdict(self).items() if name != "_calls"} | {"new": self.new}

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.failures.items()))
        counters = [f", {name.replace('_', ' ')} {count}" for name, count in sorted(self.counters.items()) if count]
        return (
            f"{self.judged} judged ({self.cached} from the cache, {self.new} new), {self.failed} failed"
            + (f" ({kinds})" if kinds else "")
            + (f", {self.skipped} rows skipped" if self.skipped else "")
            + f"{''.join(counters)}; {self.seconds:.1f} s, {self.tokens} tokens"
            + (f", cost {self.cost:.4g}" if self.cost else "")
            + "".join(f"; WARNING: {name.replace('_', ' ')}" for name in sorted(self.alarms))
        )
