"""Go or no-go before GPU-hours: is this judge good enough on labels of one's own, and how should it be asked?

    diagnosis = doctor("labelled.jsonl", lambda format, budget: Judge.load(format=format, max_tokens=budget))
    print(diagnosis)

Every format and budget is tried on the same rows. Of the settings that pass the thresholds the best is found, and of
those that are not worse by the interval of their difference the one with the fewest tokens is recommended:

    failed <= max_failed                  judgements that cannot be read
    flips <= max_flips                    pairs decided by their order alone; a position swap makes ties of them
    unread <= max_unread                  answers that are as good with one to another question after them
                                          (`endings.py`), by the lower end of its interval
    lower end of the interval >= minimum  of the agreement; a half is what a coin gets

The verdict is go, no-go, or undecided: good enough, but there are too few labels for the interval to say so.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flexjudge_reward.errors import ConfigError, need
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.offline.evaluate.endings import with_unread
from flexjudge_reward.offline.evaluate.formulas import labels_needed, wilson
from flexjudge_reward.offline.evaluate.judging import check_rows, judged, plain_judge
from flexjudge_reward.offline.evaluate.labels import user_rows
from flexjudge_reward.offline.evaluate.metrics import Judged
from flexjudge_reward.offline.evaluate.planted import planted_rows
from flexjudge_reward.offline.evaluate.rows import Labelled
from flexjudge_reward.offline.evaluate.settings import Setting, clustered, clusters, compared, pairs_of, settings_of

Outcome = Literal["go", "no-go", "undecided"]
FEWEST = 20  # labelled pairs below which an interval says nothing
_VARIED = ("format", "max_tokens", "rubric")  # between settings
_NOISE = 0.1  # how far the first place may be from winning a half, where an unstable judge is not a biased one


@dataclass(frozen=True)
class Thresholds:
    """What a setting has to pass; shares of 1."""

    min_agreement: float = 0.6
    max_failed: float = 0.05
    max_flips: float = 0.2
    max_unread: float = 0.5

    def __post_init__(self) -> None:
        """Raises ConfigError: one is no share, such as a percentage."""
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is a share from 0 to 1, found {value:g}")


@dataclass(frozen=True)
class Diagnosis:
    """What was found, and what to do."""

    outcome: Outcome
    recommended: Setting | None
    """The setting to use; of a no-go None."""
    reasons: tuple[str, ...]
    settings: tuple[Setting, ...]
    labels: int
    """Pairs of candidates whose labels differ."""
    needed: int
    """Labels that decide, where the outcome is undecided; else 0."""
    judge: Mapping[str, object]
    """Who was asked, with what its probes found of its template, such as whether it takes a system turn."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON; a number that is not known is None."""
        named = [_row(setting) for setting in self.settings]
        recommended = None if self.recommended is None else self.recommended.name
        return asdict(self) | {"settings": named, "recommended": recommended}

    def __str__(self) -> str:
        biases = ("longer", "styled", "unread", "consistency")
        columns = ("agreement", "failed", "flips", "first_place", "ties", "cycles", *biases)
        lines = ["| setting | " + " | ".join([*columns, "forced", "tokens/1k", "seconds/1k"]) + " |"]
        lines.append("|---" * (len(columns) + 4) + "|")
        for one in self.settings:
            cells = [_interval(one), *(_percent(getattr(one, name)) for name in columns[1:]), _percent(one.forced)]
            lines.append(f"| {one.name} | " + " | ".join([*cells, _number(one.tokens), _number(one.seconds)]) + " |")
        who = ", ".join(f"{name} {value}" for name, value in self.judge.items() if value is not None)
        return "\n".join([*lines, "", f"judge: {who}", f"{self.outcome}: {self.labels} labelled pairs", *self.reasons])


def doctor(
    source: str,
    judge: Callable[[str, int | None], Judge],
    *,
    formats: Sequence[str] = ("pointwise", "pairwise"),
    budgets: Sequence[int | None] = (None,),
    planted: bool = False,
    thresholds: Thresholds = Thresholds(),
    seed: int = 0,
    **options: Any,
) -> Diagnosis:
    """Examines a judge on labelled rows with two or more candidates each (`labels.py`).

    Args:
        judge: the judge of a format and a limit of tokens (None: its own). With votes, each setting is tried with them.
        planted: `source` has no labels; worse answers of known order are made from it (`planted.py`).
        options: how the source is read; see `data/rows.py`. A `limit` draws rows at random, by `seed`.

    Raises:
        ConfigError: fewer than 20 labelled pairs, with how many it takes; no row, no label, no setting: nothing was
            loaded. Or media of more than a few rows cannot be read.
        EngineError: the model answers nothing. A row without an answer, in two attempts, is a failed judgement.
    """
    rows = labelled_rows(source, planted, seed, **options)
    check_labels(source, rows, FEWEST)
    return examination(rows, judge, formats, budgets, thresholds, seed)


def labelled_rows(source: str, planted: bool, seed: int, **options: Any) -> list[Labelled]:
    """The rows with two or more candidates. Takes its arguments and raises as `doctor`."""
    need("numpy", "evaluate")
    if options.get("limit") is not None:
        options = {"shuffle_seed": seed, **options}
    rows = planted_rows(source, seed, **options) if planted else user_rows(source, **options)[1]
    return [row for row in rows if len(row.merits) > 1]


def check_labels(source: str, rows: Sequence[Labelled], fewest: int) -> None:
    """Raises ConfigError for rows with fewer than `fewest` labelled pairs."""
    labels = len(clusters_of_pairs(rows))
    if not rows:
        raise ConfigError(
            f"{source}: every row has one candidate, and what is asked here is which of several is better: give rows"
            " with 'candidates'; flexjudge evaluate takes single ones"
        )
    if labels < fewest:
        needed = labels_needed(0.75, 0.1)
        raise ConfigError(
            f"{source}: {labels} pairs of candidates have labels that differ, and an interval needs at least {fewest};"
            f" for plus or minus 10 points label about {needed} pairs"
        )


def examination(
    rows: Sequence[Labelled],
    judge: Callable[[str, int | None], Judge],
    formats: Sequence[str],
    budgets: Sequence[int | None],
    thresholds: Thresholds,
    seed: int,
) -> Diagnosis:
    """The diagnosis of each format and budget on rows that are read. Raises as `doctor`."""
    judges = [(format, judge(format, budget)) for format in formats for budget in budgets]
    if not judges:
        raise ConfigError("there is nothing to compare: name a format and a budget")
    for _, own in judges:  # before one of them is asked
        check_asked(own, rows)
    found = [setting for format, own in judges for setting in examined(own, format, rows, seed)]
    shown = {name: value for name, value in judges[0][1].described().items() if name not in _VARIED}
    pairs = clusters_of_pairs(rows)
    return diagnosed(found, len(pairs), thresholds, shown, pairs, seed)


def clusters_of_pairs(rows: Sequence[Labelled]) -> list[int]:
    """The cluster of each labelled pair, in the order of `Setting.values`: for intervals of differences."""
    together = zip(rows, clusters(rows), strict=True)
    return [own for row, own in together for one, other in itertools.combinations(row.merits, 2) if one != other]


def examined(given: Judge, format: str, rows: Sequence[Labelled], seed: int) -> list[Setting]:
    """The settings of one format and budget. Raises ConfigError: many rows have media that cannot be read."""
    judge, votes = plain_judge(given)
    asked = _asked(judge, rows)
    start = time.perf_counter()
    found = judged(judge, asked, votes, seed)
    seconds = time.perf_counter() - start
    _check_shown(asked, found)
    rollouts = sum(len(row.merits) for row in rows)
    pairs = compared(asked, found)
    settings = settings_of(format, judge.sampling.max_tokens, pairs, found, rollouts, seconds, seed)
    return with_unread(settings, judge, votes, rows, seed)


def _check_shown(rows: Sequence[Labelled], found: Sequence[Judged]) -> None:
    """Raises ConfigError for more unreadable media than a judge may have failures: that says nothing of the judge."""
    every = [(row, one) for row, own in zip(rows, found, strict=True) for one in own.judgements]
    unseen = [(row, one) for row, one in every if one.failure == "media"]
    if len(unseen) > Thresholds.max_failed * len(every):
        row, first = unseen[0]
        raise ConfigError(
            f"{len(unseen)} of {len(every)} judgements have media that cannot be read, first row {row.number}:"
            f" {first.why}. That says nothing of the judge: mend the rows, or give the folder of the files (media_root)"
        )


def check_asked(given: Judge, rows: Sequence[Labelled]) -> None:
    """Raises ConfigError for a row that the judge cannot be shown, or its format cannot judge."""
    judge, _ = plain_judge(given)
    check_rows(judge, _asked(judge, rows))


def _asked(judge: Judge, rows: Sequence[Labelled]) -> list[Labelled]:
    """The rows as the judge is asked: pair by pair, if its format takes two."""
    return list(rows) if judge.format.max_candidates != 2 else pairs_of(rows)


def diagnosed(
    settings: Sequence[Setting],
    labels: int,
    thresholds: Thresholds,
    judge: Mapping[str, object],
    members: Sequence[int],
    seed: int = 0,
) -> Diagnosis:
    """The setting to use with its reasons, or why there is none."""
    faults = {setting.name: faults_of(setting, thresholds) for setting in settings}
    sound = [setting for setting in settings if not faults[setting.name]]
    good = [setting for setting in sound if setting.agreement.low >= thresholds.min_agreement]
    if not good:
        return _refused(settings, sound, faults, labels, thresholds, judge)
    best = max(good, key=lambda setting: setting.agreement.value)
    equal = [setting for setting in good if _behind(best, setting, members, seed)[0] <= 0]
    chosen = min(equal, key=lambda setting: (setting.tokens, -setting.agreement.value))
    reasons = [f"use {chosen.name}: it agrees with {_interval(chosen)} of the labels"]
    for other in settings:
        if faults[other.name]:
            reasons.append(f"not {other.name}: {'; '.join(faults[other.name])}")
        elif other not in equal:
            low, high = _behind(best, other, members, seed)
            reasons.append(f"not {other.name}: {100 * low:.1f} to {100 * high:.1f} points behind {best.name}")
        elif other is not chosen:
            ratio = other.tokens / chosen.tokens if chosen.tokens else 1.0
            reasons.append(f"{other.name} is not better by its interval, for {ratio:.1f} times the tokens")
    return Diagnosis("go", chosen, tuple(reasons), tuple(settings), labels, 0, judge)


def faults_of(setting: Setting, thresholds: Thresholds) -> list[str]:
    """What rules a setting out, whatever its agreement is."""
    found = []
    if setting.failed > thresholds.max_failed:
        most = f"more than {thresholds.max_failed:.1%}"
        found.append(f"{setting.failed:.1%} of the judgements failed, {most} ({setting.failures})")
    if setting.flips > thresholds.max_flips and not setting.position_swap:
        noise = abs(setting.first_place - 0.5) < _NOISE  # a list has no first place: NaN is no noise
        why = "and not for its place, so it is noise: votes" if noise else "position_swap=True makes ties of these"
        found.append(f"the other order has another outcome in {setting.flips:.1%} of the pairs; {why}")
    if setting.unread_of and wilson(setting.unread, setting.unread_of)[0] > thresholds.max_unread:
        found.append(
            f"it does not read to the end: {setting.unread:.1%} of {setting.unread_of} answers are as good to it with"
            " an answer to another question after them, so that a policy is paid for not stopping as before (where only"
            " the beginning of an answer is to count: max_unread 1)"
        )
    return found


def _behind(best: Setting, other: Setting, members: Sequence[int], seed: int) -> tuple[float, float]:
    """The interval of how much less another setting agrees, on the same pairs."""
    difference = [one - two for one, two in zip(best.values, other.values, strict=True)]
    found = clustered(members, difference, seed)
    return found.low, found.high


def _refused(
    settings: Sequence[Setting],
    sound: Sequence[Setting],
    faults: Mapping[str, Sequence[str]],
    labels: int,
    thresholds: Thresholds,
    judge: Mapping[str, object],
) -> Diagnosis:
    """No setting passes: too few labels to say, or the judge is not good enough."""
    reasons = [f"not {name}: {'; '.join(own)}" for name, own in faults.items() if own]
    best = max(sound, key=lambda setting: setting.agreement.value, default=None)
    minimum = thresholds.min_agreement
    if best is not None and best.agreement.value > minimum:
        # By the measured interval: pairs that depend on each other say less. Its width falls with the root.
        value, low = best.agreement.value, best.agreement.low
        needed = math.ceil(labels * ((value - low) / (value - minimum)) ** 2)
        why = (
            f"{best.name} agrees with {_interval(best)} of the labels, and the interval reaches below {minimum:.0%}:"
            f" about {needed} labelled pairs would decide, there are {labels}"
        )
        return Diagnosis("undecided", best, (why, *reasons), tuple(settings), labels, needed, judge)
    for one in sound:
        chance = " (no better than a coin)" if one.agreement.low <= 0.5 else ""
        reasons.append(
            f"not {one.name}: it agrees with {_interval(one)} of the labels{chance}; {minimum:.0%} is wanted"
        )
    reasons.append(
        "do not train with this judge on such data: use a larger one, or one trained for it, and check again"
    )
    return Diagnosis("no-go", None, tuple(reasons), tuple(settings), labels, 0, judge)


def _row(setting: Setting) -> dict[str, Any]:
    known = {name: value for name, value in asdict(setting).items() if name != "values"}
    clean = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in known.items()}
    return {"name": setting.name, **clean}


def _interval(setting: Setting) -> str:
    one = setting.agreement
    return f"{one.value:.1%} [{one.low:.1%}, {one.high:.1%}]"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
