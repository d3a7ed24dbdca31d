"""Groups to a page's data: counts and curves over all judgements, and the groups that the page holds.

Promised: groups are taken one by one, and memory grows with their number, not with their texts. Beyond `MOST`
judgements or `MOST_TEXT` bytes the page holds a sample of whole groups, chosen by their names alone, so that the same
groups stay while a run grows; counts and curves are of all.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from flexjudge_reward.report.lines import Candidate, Group, Seen

MOST, MOST_TEXT = 20_000, 26_000_000  # judgements, and bytes of their texts, of a page
BINS = 10  # of a histogram: a bar for each whole score from 1 to 10
_MOST_JUDGES, _MOST_ALARMS = 20, 50
_FRAME = 100  # bytes of what surrounds the texts of a candidate or a group


@dataclass
class Step:
    """What was judged in one step of a training."""

    judged: int = 0
    scored: int = 0
    total: float = 0.0  # of the scores in [0, 1]
    by_judge: dict[int, tuple[int, float]] = field(default_factory=dict)  # scored, and their total
    failures: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    calls: int = 0
    cached: int = 0
    groups: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0, 0.0]))

    @property
    def mean(self) -> float | None:
        """Of the scores, in [0, 1]."""
        return self.total / self.scored if self.scored else None

    def mean_of(self, judge: int) -> float | None:
        """Of the scores of one judge, by its number."""
        scored, total = self.by_judge.get(judge, (0, 0.0))
        return total / scored if scored else None

    @property
    def spread(self) -> float | None:
        """The standard deviation of the scores within a group, averaged over the groups with two scores or more."""
        spreads = self._spreads
        return sum(spreads) / len(spreads) if spreads else None

    @property
    def flat(self) -> tuple[int, int]:
        """The groups whose scores are all equal, which train nothing, and the groups with two scores or more."""
        spreads = self._spreads
        return sum(spread < 1e-6 for spread in spreads), len(spreads)

    @property
    def _spreads(self) -> list[float]:
        several = [(count, total, squares) for count, total, squares in self.groups.values() if count > 1]
        return [math.sqrt(max(0.0, squares / n - (total / n) ** 2)) for n, total, squares in several]


class Page:
    """All that a page shows, before it is drawn."""

    def __init__(self, groups: Iterable[Group] = (), most: int = MOST, most_text: int = MOST_TEXT) -> None:
        self.judged = self.groups = self.repeated = self.probes = 0
        self.alarms: list[str] = []
        self.steps: defaultdict[int, Step] = defaultdict(Step)
        self.scores = [0] * BINS
        self.margins: dict[bool, list[float]] = {True: [], False: []}  # of pairs that were kept, and that were not
        self.judges: dict[str, int] = {}  # the settings of each as JSON, with its number
        self.pairs: Counter[str] = Counter()
        self.everything = Step()
        self._names: set[int] = set()
        self._held: dict[int, Group] = {}
        self._order: list[int] = []  # a heap of the held groups' hashes, negated: the largest goes first
        self._most, self._most_text, self._rows, self._text = most, most_text, 0, 0
        self._limit = 1 << 64
        for group in groups:
            self._add(group)

    @property
    def held(self) -> list[Group]:
        """The groups that the page holds, by step; a pair that was not kept has its texts from the record, if there."""
        rows = {group.row: group for group in self._held.values() if group.row and not group.pair}
        for pair in self._held.values():
            row = rows.get(pair.row)
            if row is None or pair.candidates or self._text > self._most_text:
                continue
            judged = {place: row.candidates[place] for place in pair.pair_of if place in row.candidates}
            pair.question, pair.candidates = row.question, judged
            self._text += _length(pair)
        return sorted(self._held.values(), key=lambda group: -1 if group.step is None else group.step)

    @property
    def shown(self) -> int:
        """Judgements that the page holds."""
        return sum(len(group.candidates) for group in self._held.values() if not group.pair)

    @property
    def shown_pairs(self) -> int:
        """Pairs that the page holds."""
        return sum(bool(group.pair) for group in self._held.values())

    def _add(self, group: Group) -> None:
        if group.alarm or group.probe:
            self.probes += bool(group.probe)
            self.alarms += [group.alarm] * bool(group.alarm and len(self.alarms) < _MOST_ALARMS)
            return
        if group.repeated:
            self.repeated += len(group.candidates)
            return
        name = int.from_bytes(hashlib.blake2b(repr(group.key).encode(), digest_size=8).digest())
        if group.judge and len(self.judges) < _MOST_JUDGES:
            self.judges.setdefault(group.judge, len(self.judges))
        if group.pair:
            self.pairs[group.pair] += 1
            if group.margin is not None:
                self.margins[group.pair == "kept"].append(group.margin)
        else:
            self._count(group, name)
        if name not in self._names:
            self._names.add(name)
            self.groups += not group.pair
        if name < self._limit:
            self._hold(group, name)

    def _count(self, group: Group, name: int) -> None:
        self.judged += len(group.candidates)
        judge = self.judges.get(group.judge, -1)
        for step in (self.everything, *([] if group.step is None else [self.steps[group.step]])):
            step.judged += len(group.candidates)
            step.tokens += group.tokens
            step.calls += group.calls
            step.cached += group.cached
            for candidate in group.candidates.values():
                if candidate.failure is not None:
                    step.failures[candidate.failure[0]] += 1
                elif candidate.unit is not None:
                    step.scored, step.total = step.scored + 1, step.total + candidate.unit
                    scored, total = step.by_judge.get(judge, (0, 0.0))
                    step.by_judge[judge] = scored + 1, total + candidate.unit
                    within = step.groups[name]
                    within[:] = within[0] + 1, within[1] + candidate.unit, within[2] + candidate.unit**2
        for candidate in group.candidates.values():
            if candidate.unit is not None:
                self.scores[min(BINS - 1, int(candidate.unit * BINS))] += 1

    def _hold(self, group: Group, name: int) -> None:
        """Keeps the group, or adds it to what is held of it; then drops groups until the page is small enough."""
        held = self._held.get(name)
        if held is None:
            self._held[name] = group
            heapq.heappush(self._order, -name)
            self._rows, self._text = self._rows + len(group.candidates), self._text + _length(group)
        else:
            for place, candidate in group.candidates.items():
                old = held.candidates.get(place)
                self._rows += old is None
                self._text += _weight(candidate) - (0 if old is None else _weight(old))
            held.candidates |= group.candidates
            held.replies += group.replies
            self._text += _size(group.replies)
        while (self._rows > self._most or self._text > self._most_text) and len(self._held) > 1:
            self._limit = -heapq.heappop(self._order)
            dropped = self._held.pop(self._limit)
            self._rows, self._text = self._rows - len(dropped.candidates), self._text - _length(dropped)


def _length(group: Group) -> int:
    """Roughly, in bytes of the page."""
    own = [*group.question, *group.reference, *group.replies, group.rubric, group.detail]
    return _FRAME + _size(own) + sum(map(_weight, group.candidates.values()))


def _weight(candidate: Candidate) -> int:
    return _FRAME + _size([*candidate.parts, *candidate.replies, *(candidate.failure or ())])


def _size(parts: Iterable[str | Seen]) -> int:
    texts = [part if isinstance(part, str) else part.text + part.source + "x" * 50 for part in parts]
    return sum(len(text) if text.isascii() else len(text.encode()) for text in texts)
