"""Quiet trouble, made loud: what trains a policy on noise, or on a weakness of its judge, without an error.

    no variance    the judge gives all candidates of a group one score, for `FLAT_GROUPS` groups in a row: no gradient
    failures       more than half of what stops the run
    swap_flips     of `_SWAPS` pairs that the judge judges in both orders, the order decides more than half, or a
                   fifth more than of the first ones
    probe_KIND     the judge gets answers of known worth wrong (`probes.py`), or disagrees with itself or another judge
                   (`controls.py`), more often than `_ALLOWED`
    probe_run_on   at the first look (`first_look.py`) the judge does not read to the end

Each is one warning in the log when it begins, again when it begins again, a count in the run's summary, and a line of
the record. For a kind of probe it is a cumulative sum (Page, 1954): each wrong one adds, and each right one takes, the
logarithm of how much likelier it is at a judge that is wrong most of the time than at one that is wrong as often as
allowed. At the allowed share a false alarm comes once in more than e^7, 1,100, probes of a kind. An answer to another
question may be right there, too, where the task has few answers, a second judge has its own opinions, and a
judge at a temperature is no twice the same; so for these the allowed share is that of the first ones, and more.

`run_on` is asked once, so it is a binomial test: as many wrong ones, or more, would come in less than `_BY_CHANCE` of
the looks at a judge that is wrong in half of them.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Hashable, Mapping, Sequence

from flexjudge_reward.judge.rewards import NO_TROUBLE, Outcome
from flexjudge_reward.trainers.probes import RUN_ON, ProbeResult
from flexjudge_reward.types import Failure

FLAT_GROUPS = 20
_WINDOW, _LEAST = 500, 100  # rows over which failures are counted
_SHOWN = 16  # of a kind, that a warning counts
# How many first ones, and how much more is allowed. Of frozen rows these are one round of all that are kept.
_FIRST = {"other_answer": (5, 0.25), "second_judge": (10, 0.25), "frozen": (8, 0.1)}
_SWAPS, _FLIPPED, _RISEN = 200, 0.5, 0.2
# A copy's score may be higher as often as lower, by noise.
_ALLOWED = {"padded": 0.5, "styled": 0.5, "grafted": 0.5, "reference": 0.3, "swapped": 0.2}
_ENOUGH, _SUSPECT, _HIGHEST = 7.0, 1.0, 9.0  # sums: of an alarm, to be probed first, and where it stops growing
_BY_CHANCE = 0.0002  # 21 of 24 and more
_SAID = {
    "padded": "an answer with filler scores higher than without",
    "styled": "an answer dressed in Markdown scores higher than in plain words",
    "reference": "the reference answer scores low",
    "other_answer": "the policy's answers to other questions score high",
    "grafted": "an answer with one to another question after it scores higher than without",
    "half": "half of an answer with one to another question after it scores as high as the whole: the rest is not read",
    "swapped": "the order of two answers decides which one is better",
    "frozen": "it judges rows of the beginning otherwise than then",
    "second_judge": "the second judge orders the answers the other way, more often than at the beginning",
}
_UNREAD = (
    "{failed} of {count} well paid answers are paid as much with an answer to another question after them: the judge"
    " does not read to the end, or what follows an answer does not count. A policy that does not stop is paid as"
    " before, and can lose the truth while the reward stays high. Before GPU-hours are spent: another judge, or a"
    " rubric by which all that is said counts (`flexjudge doctor` shows whether it helps); and apart from the judge a"
    " shorter max_completion_length, or a reward for answers that end. Where only the beginning of an answer is to"
    ' count, set ignored_probes=\'run_on,half\'. The record has the probes under "probe": "run_on"'
)


class Alarms:
    """What was seen so far, over all ranks."""

    def __init__(self, limit: float) -> None:
        """`limit` is the share of failures that stops the run, 0 to 1."""
        self.limit, self.flat = limit, 0
        self._recent: deque[bool] = deque(maxlen=_WINDOW)
        self._probed: dict[str, deque[bool]] = {}
        self._sums: dict[str, float] = {}
        self._run_on: list[bool] = []
        self._first: defaultdict[str, list[bool]] = defaultdict(list)  # of the kinds of `_FIRST`
        self._swaps: deque[tuple[float, float]] = deque()  # of calls, swapped and flipped pairs
        self._usual: float | None = None  # the share of flips in the first window
        self._on: set[str] = set()

    def look(
        self,
        outcomes: Sequence[Outcome],
        groups: Sequence[Hashable],
        probes: Sequence[ProbeResult] = (),
        counters: Mapping[str, float] = {},
    ) -> dict[str, str]:
        """The warnings that begin with these rows, probes and counters (`formats/swap.py`), by the trouble's name."""
        troubles = {**self._rows(outcomes, groups), **self._probes(probes), **self._flips(counters)}
        begun = {name: said for name, said in troubles.items() if name not in self._on}
        self._on = set(troubles)
        return begun

    @property
    def probes_failed(self) -> float | None:
        """The share of the latest probes that the judge got wrong; None before the first."""
        failed = [one for probed in self._probed.values() for one in probed]
        return sum(failed) / len(failed) if failed else None

    @property
    def suspects(self) -> list[str]:
        """Kinds of probes that look wrong, and not yet enough for an alarm."""
        return sorted(kind for kind, total in self._sums.items() if _SUSPECT <= total < _ENOUGH)

    def _take(self, probe: ProbeResult) -> None:
        allowed, first = _ALLOWED.get(probe.kind, 0.1), self._first[probe.kind]
        count, more = _FIRST.get(probe.kind, (0, 0.0))
        if len(first) < count:
            first.append(probe.failed)
            return
        if first:
            allowed = min(0.9, (sum(first) + 1) / (len(first) + 2) + more)
        right = 0.3 * (1 - allowed)  # of a judge that is wrong most of the time
        step = math.log((1 - right) / allowed) if probe.failed else math.log(right / (1 - allowed))
        self._sums[probe.kind] = min(_HIGHEST, max(0.0, self._sums.get(probe.kind, 0.0) + step))
        self._probed.setdefault(probe.kind, deque(maxlen=_SHOWN)).append(probe.failed)

    def _rows(self, outcomes: Sequence[Outcome], groups: Sequence[Hashable]) -> dict[str, str]:
        scores: dict[Hashable, list[float]] = defaultdict(list)
        for outcome, group in zip(outcomes, groups, strict=True):
            # A thought that the trainer cut is the policy's: no judge has failed.
            self._recent.append(isinstance(outcome, Failure) and outcome.kind not in NO_TROUBLE)
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
        return troubles

    def _flips(self, counters: Mapping[str, float]) -> dict[str, str]:
        """The share of flips in the latest window of calls with `_SWAPS` pairs or more."""
        if swaps := counters.get("swaps", 0.0):
            self._swaps.append((swaps, swaps - counters.get("swaps_agreed", 0.0)))
        total = sum(count for count, _ in self._swaps)
        while self._swaps and total - self._swaps[0][0] >= _SWAPS:
            total -= self._swaps.popleft()[0]
        if total < _SWAPS:
            return {}
        share = sum(flipped for _, flipped in self._swaps) / total
        self._usual = share if self._usual is None else self._usual
        if share <= min(_FLIPPED, self._usual + _RISEN):
            return {}
        said = (
            f"the order decides {share:.1%} of the last {total:g} pairs that were judged in both orders,"
            f" {self._usual:.1%} of the first ones: these are ties. Are the answers alike by now, or is the judge lost?"
        )
        return {"swap_flips": said}

    def _probes(self, probes: Sequence[ProbeResult]) -> dict[str, str]:
        for probe in probes:
            if probe.kind == RUN_ON:
                self._run_on.append(probe.failed)
            else:
                self._take(probe)
        troubles = {}
        failed, count = sum(self._run_on), len(self._run_on)
        if _by_chance(failed, count) < _BY_CHANCE:
            troubles[f"probe_{RUN_ON}"] = _UNREAD.format(failed=failed, count=count)
        for kind, results in self._probed.items():
            failed, count = sum(results), len(results)
            if self._sums[kind] >= _ENOUGH:
                said = _SAID.get(kind, "an answer that says nothing scores high")
                troubles[f"probe_{kind}"] = (
                    f"{failed} of the last {count} probes of the judge, {kind}, came out wrong: {said}."
                    ' A policy can learn to be paid for it. The record has them under "probe"; a stricter rubric, a'
                    f" group format or another judge helps. Where that is right, set ignored_probes='{kind}'"
                )
        return troubles


def _by_chance(wrong: int, count: int) -> float:
    """How likely so many wrong ones, or more, are where each is wrong in half of the cases."""
    return math.fsum(math.comb(count, k) / 2**count for k in range(wrong, count + 1))
