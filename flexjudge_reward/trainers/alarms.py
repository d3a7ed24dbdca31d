"""Quiet trouble, made loud: what trains a policy on noise without an error.

    no variance    the judge gives all candidates of a group one score, for `FLAT_GROUPS` groups in a row: no gradient
    failures       more than half of what stops the run

Each is one warning in the log when it begins, again when it begins again, and a count in the run's summary.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Sequence

from flexjudge_reward.judge.rewards import Outcome
from flexjudge_reward.types import Failure

FLAT_GROUPS = 20
_WINDOW, _LEAST = 500, 100  # rows over which failures are counted


class Alarms:
    """What was seen so far, over all ranks."""

    def __init__(self, limit: float) -> None:
        """`limit` is the share of failures that stops the run, 0 to 1."""
        self.limit, self.flat = limit, 0
        self._recent: deque[bool] = deque(maxlen=_WINDOW)
        self._on: set[str] = set()

    def look(self, outcomes: Sequence[Outcome], groups: Sequence[Hashable]) -> dict[str, str]:
        """The warnings that begin with these rows, by the name of the trouble."""
        scores: dict[Hashable, list[float]] = defaultdict(list)
        for outcome, group in zip(outcomes, groups, strict=True):
            # A thought that the trainer cut is the policy's: no judge has failed.
            self._recent.append(isinstance(outcome, Failure) and outcome.kind != "unfinished")
            if not isinstance(outcome, Failure):
                scores[group].append(outcome)
        for judged in scores.values():
            if len(judged) > 1:
                self.flat = self.flat + 1 if len(set(judged)) == 1 else 0
        rate = sum(self._recent) / len(self._recent) if len(self._recent) >= _LEAST else 0.0
        troubles = {}
        if self.flat >= FLAT_GROUPS:
            troubles["no_variance"] = (
                f"the judge gave every candidate the same score in the last {self.flat} groups, so they train nothing:"
                " is it a judge of this kind of data, and does its format or rubric tell good from better?"
            )
        if rate > self.limit / 2:
            stop = f"{self.limit:.1%} stop the run"
            troubles["failures"] = f"{rate:.1%} of the last {len(self._recent)} rows have no score; {stop}"
        begun = {name: said for name, said in troubles.items() if name not in self._on}
        self._on = set(troubles)
        return begun
