"""A rubric in better words: proposed from the judge's errors, and kept only if it agrees more on rows never looked at.

    found = tune("labelled.jsonl", judge, Path("rubric.toml"))       # `judge` as for `doctor`
    print(found)

The rows are split in two by the question (`proposals.py: halves`). On the reported half runs `doctor`, and the setting
that it recommends, or else the one that agrees most, is tuned on the other half, `ROUNDS` times:

    1. a few at a time, the proposer sees pairs that the judge gets wrong and writes criteria in other words
    2. each proposal is judged on all rows of this half, and the best one is the rubric of the next round

Then the best one is judged once on the reported half. Its file is written only if the interval of the difference, over
the same pairs, is above zero; then the diagnosis counts it as a setting of its own. Since nothing was chosen by the
reported half but the setting, which flatters what the proposal has to beat, no figure of it is tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flexjudge_reward.errors import ConfigError, EngineError
from flexjudge_reward.formats.checklist import Checklist
from flexjudge_reward.formats.onecall import OneCall
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.offline.evaluate.doctor import (
    FEWEST,
    Diagnosis,
    Thresholds,
    check_asked,
    check_labels,
    clusters_of_pairs,
    diagnosed,
    examination,
    examined,
    labelled_rows,
)
from flexjudge_reward.offline.evaluate.metrics import Estimate
from flexjudge_reward.offline.evaluate.proposals import (
    check_new,
    check_rubrics,
    halves,
    plain,
    preferences,
    replies,
    with_rubric,
    write_rubric,
)
from flexjudge_reward.offline.evaluate.rows import Labelled
from flexjudge_reward.offline.evaluate.settings import Setting, clustered, pairs_of
from flexjudge_reward.offline.output import owned
from flexjudge_reward.rubric import Rubric

ROUNDS, _REQUESTS = 2, 6
_LONGEST = 1500  # characters of criteria
JudgeOf = Callable[[str, int | None], Judge]


@dataclass(frozen=True)
class Tuning:
    """What became of a rubric, and the diagnosis on the rows that it was not tuned on."""

    diagnosis: Diagnosis
    """With the tuned rubric as a setting of its own, if it was kept."""
    setting: str
    """The one that was tuned."""
    proposed: int
    rows: int
    """That it was tuned on."""
    criteria: str
    """The best proposal; nothing where none was better on the rows that it was tuned on."""
    gain: Estimate | None
    """Of agreement on the other rows; None without a proposal that was judged there."""
    output: Path

    @property
    def kept(self) -> bool:
        """Whether it is better on rows that it was not tuned on, by its interval."""
        return self.gain is not None and self.gain.low > 0

    def as_dict(self) -> dict[str, Any]:
        """As JSON: the diagnosis, and the tuning beside it."""
        own = {"setting": self.setting, "proposed": self.proposed, "rows": self.rows, "criteria": self.criteria}
        gain = None if self.gain is None else vars(self.gain)
        written = str(self.output) if self.kept else None
        return {**self.diagnosis.as_dict(), "tuning": {**own, "kept": self.kept, "gain": gain, "output": written}}

    def __str__(self) -> str:
        said = f"tuned {self.setting} on {self.rows} other rows: {self.proposed} proposals"
        if self.gain is None:
            return f"{self.diagnosis}\n{said}, none better than the rubric there; nothing was written"
        gain = f"{100 * self.gain.value:+.1f} points [{100 * self.gain.low:+.1f}, {100 * self.gain.high:+.1f}]"
        end = f"written to {self.output}" if self.kept else "not better by its interval, so nothing was written"
        return f"{self.diagnosis}\n{said}, the best gains {gain} on the rows above; {end}"


def tune(
    source: str,
    judge: JudgeOf,
    output: Path,
    *,
    proposer: Judge | None = None,
    formats: Sequence[str] = ("pointwise", "pairwise"),
    budgets: Sequence[int | None] = (None,),
    thresholds: Thresholds = Thresholds(),
    seed: int = 0,
    **options: Any,
) -> Tuning:
    """Examines a judge as `doctor` does, on half of the rows, and improves its rubric by the other half.

    Args:
        output: the TOML file of the improved rubric, which must be new.
        proposer: writes the proposals; by default the judge.

    Raises:
        ConfigError: as `doctor`, with 20 labelled pairs in each half; a format without criteria in words; rows with
            rubrics of their own; an output that exists. Nothing was loaded.
        EngineError: as `doctor`; or the proposer answers nothing.
    """
    check_new(output)
    rows = labelled_rows(source, False, seed, **options)
    check_rubrics(rows)
    own, held = halves(rows, seed)
    for half in (own, held):
        check_labels(f"half of {source}", half, FEWEST)
    for format in formats:
        _rubric_of(built := judge(format, None))
        check_asked(built, rows)
    with owned(output):
        diagnosis = examination(held, judge, formats, budgets, thresholds, seed)
        present = diagnosis.recommended or max(diagnosis.settings, key=lambda one: one.agreement.value)
        tuner = _Tuner(judge(present.format, present.max_tokens), present, proposer, seed)
        criteria = tuner.best(own)
        found = Tuning(diagnosis, present.name, tuner.proposed, len(own), criteria, None, output)
        return _reported(found, tuner, held, thresholds, seed) if criteria else found


def _reported(found: Tuning, tuner: _Tuner, held: Sequence[Labelled], thresholds: Thresholds, seed: int) -> Tuning:
    """The best proposal judged on the reported half, and written if it is better there."""
    after, numbers, before = tuner.setting(held, found.criteria), clusters_of_pairs(held), found.diagnosis
    gained = [new - old for new, old in zip(after.values, tuner.present.values, strict=True)]
    found = replace(found, gain=clustered(numbers, gained, seed))
    if not found.kept:
        return found
    write_rubric(found.output, Rubric(found.criteria, tuner.rubric.scale), _head(found))
    more = [*before.settings, replace(after, format=f"{after.format} with {found.output.name}")]
    return replace(found, diagnosis=diagnosed(more, before.labels, thresholds, before.judge, numbers, seed))


def _head(found: Tuning) -> list[str]:
    assert found.gain is not None
    gain = f"{100 * found.gain.value:+.1f} points [{100 * found.gain.low:+.1f}, {100 * found.gain.high:+.1f}]"
    return [f"Tuned on {found.rows} labelled rows for {found.setting}; {gain} on {found.gain.rows} pairs of others."]


def _rubric_of(judge: Judge) -> Rubric:
    """The rubric to tune. Raises ConfigError for a format that has none in words."""
    format = judge.format.innermost()
    if isinstance(format, Checklist):
        raise ConfigError("a checklist is drafted, not tuned: flexjudge rubric draft labelled.jsonl -o rubric.toml")
    if not isinstance(format, OneCall):
        raise ConfigError(f"{judge.format.described()} has no rubric in words that could be tuned")
    return format.rubric


class _Tuner:
    """One setting, examined with other criteria."""

    def __init__(self, judge: Judge, present: Setting, proposer: Judge | None, seed: int) -> None:
        self.judge, self.present, self.seed = judge, present, seed
        self.proposer, self.rubric, self.proposed = proposer or judge, _rubric_of(judge), 0

    def setting(self, rows: Sequence[Labelled], criteria: str = "") -> Setting:
        """The setting on `rows`, with other criteria than the judge's if there are any."""
        shown = with_rubric(rows, Rubric(criteria, None)) if criteria else rows
        found = examined(self.judge, self.present.format, shown, self.seed)
        alike = (self.present.position_swap, self.present.votes)
        return next(one for one in found if (one.position_swap, one.votes) == alike)

    def best(self, rows: Sequence[Labelled]) -> str:
        """The criteria that agree most with the labels of `rows`; nothing where that is the judge's own rubric."""
        best, criteria = self.setting(rows), ""
        for _ in range(ROUNDS):
            tried = {text: self.setting(rows, text) for text in self._proposals(rows, best, criteria)}
            self.proposed += len(tried)
            top = max(tried, key=lambda text: _agreement(tried, text), default="")
            if not top or _agreement(tried, top) <= best.agreement.value:
                break
            best, criteria = tried[top], top
        return criteria

    def _proposals(self, rows: Sequence[Labelled], best: Setting, criteria: str) -> list[str]:
        """Criteria in other words, from pairs that the judge gets wrong; none where it gets all right."""
        pairs = preferences(pairs_of(rows))
        wrong = [pair for pair, value in zip(pairs, best.values, strict=True) if value < 1]
        if not wrong:
            return []
        present = criteria or self.rubric.criteria
        said = replies("wording", self.proposer, wrong, present, _REQUESTS)
        found = dict.fromkeys(filter(None, (plain(text, _LONGEST) for text in said)))
        found.pop(present, None)
        if not found and not self.proposed:
            name = self.proposer.described()["model"]
            raise EngineError(f"{name or 'the model'} wrote no criteria that can be used: give another --proposer")
        return list(found)


def _agreement(found: Mapping[str, Setting], text: str) -> float:
    return found[text].agreement.value
