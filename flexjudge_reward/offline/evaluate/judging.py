"""Rows judged once in both orders, each verdict stored, so that every reading is computed from the same verdicts.

A line of the store:

    {"row", "id", "part", "merits", "groups", "listed", "draws": [[JUDGEMENT, ...]]}
    JUDGEMENT = {"scores", "failure", "why", "tokens", "forced"}

A row that got no answer has a second line once it was asked again, which counts.

`draws` has an entry per sample (`votes` of the judge), and in it one per order: a random one, drawn by the seed and the
content of the row, and its reverse; a format for one candidate has one. `listed` says which is that of the data set.
Scores are in the order of the data set, whatever order was shown.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from flexjudge_reward.engines.base import Engine
from flexjudge_reward.engines.probes import HARMLESS
from flexjudge_reward.errors import ConfigError, EngineError, FlexJudgeError
from flexjudge_reward.formats.base import Format
from flexjudge_reward.formats.groups import GroupFormat
from flexjudge_reward.formats.swap import PositionSwap
from flexjudge_reward.formats.votes import MajorityVote
from flexjudge_reward.judge.cascade import Cascade
from flexjudge_reward.judge.groups import check_fits, judge_groups
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.window import side_by_side
from flexjudge_reward.offline.evaluate.metrics import Judged, Judgement
from flexjudge_reward.offline.evaluate.rows import Labelled
from flexjudge_reward.types import Failure, Verdict


def plain_judge(judge: Judge) -> tuple[Judge, int]:
    """The judge without what `judged` does itself (groups, both orders, votes), and how many votes it takes.

    A cascade stays as it is: by its votes its small judge knows when to ask the large one.
    """
    if isinstance(judge, Cascade):
        return judge, 1
    format: Format = judge.format
    votes = 1
    while isinstance(format, GroupFormat | MajorityVote | PositionSwap):
        votes = format.k if isinstance(format, MajorityVote) else votes
        format = format.inner
    return judge.with_format(format), votes


def judged(judge: Judge, rows: Sequence[Labelled], votes: int = 1, seed: int = 0) -> list[Judged]:
    """Every row judged `votes` times in both orders, vote by vote; unanswered rows are judged twice.

    A row that stays unanswered while the model answers a harmless request has a timeout or transport failure.

    Raises ConfigError: votes at temperature 0, a row that does not fit the format. Raises EngineError as the judge; or
    a row stays unanswered and so does a harmless request, because an outage says nothing about the judge.
    """
    if votes > 1 and judge.sampling.temperature == 0:
        raise ConfigError(f"{votes} votes at temperature 0 are one vote: set temperature, such as 1.0")
    found = _attempt(judge, rows, votes, seed)
    if again := [place for place, row in enumerate(found) if unanswered(row)]:
        for place, row in zip(again, _attempt(judge, [rows[place] for place in again], votes, seed), strict=True):
            found[place] = row
    if (left := [row for row in found if unanswered(row)]) and not _alive(judge.engine):
        raise EngineError(
            f"the judge gave no answer to {len(left)} of {len(rows)} rows, the first with id {left[0].id!r}"
            f" ({unanswered(left[0])}), and answers nothing now: see that it runs, and run this again"
        )
    return found


def unanswered(row: Judged) -> str | None:
    """Why a judgement of a row got no reply at all; None if all have one."""
    return next((one.failure for one in row.judgements if one.failure in ("transport", "timeout")), None)


def _alive(engine: Engine) -> bool:
    """Whether the model answers now; the cache would answer for it."""
    try:
        return engine.innermost().generate([HARMLESS])[0].failure is None
    except FlexJudgeError:
        return False


def _attempt(judge: Judge, rows: Sequence[Labelled], votes: int, seed: int) -> list[Judged]:
    alone = judge.format.max_candidates == 1
    orders = [_orders(row, seed, alone) for row in rows]
    draws: list[list[tuple[Judgement, ...]]] = [[] for _ in rows]
    for vote in range(votes):
        own = judge.with_sampling(replace(judge.sampling, seed=judge.sampling.seed + vote))
        for index, draw in enumerate(_draw(own, rows, orders, alone)):
            draws[index].append(draw)
    return [
        Judged(row.id, row.part.name, row.merits, row.groups, tuple(draws[i]), _listed(orders[i]))
        for i, row in enumerate(rows)
    ]


def _orders(row: Labelled, seed: int, alone: bool) -> list[list[int]]:
    """A random order of the candidates that their content and the seed decide, and its reverse."""
    given = list(range(len(row.example.candidates)))
    if alone or len(given) == 1:
        return [given]
    drawn = random.Random(row.example.digest(("order", seed))).sample(given, len(given))
    return [drawn, drawn[::-1]]


def _listed(orders: Sequence[Sequence[int]]) -> int:
    return next((place for place, order in enumerate(orders) if list(order) == sorted(order)), 0)


def _draw(
    judge: Judge, rows: Sequence[Labelled], orders: Sequence[Sequence[Sequence[int]]], alone: bool
) -> list[tuple[Judgement, ...]]:
    """One judgement per row and order."""
    shown = [(row, order) for row, own in zip(rows, orders, strict=True) for order in own]
    examples = [row.example.with_candidates([row.example.candidates[i] for i in order]) for row, order in shown]
    marks: list[Mapping[str, object]] = [{"id": row.id, "order": list(order)} for row, order in shown]
    if alone:
        found = side_by_side(judge, examples, marks, partial(judge_groups, judge))
        results = iter([_of_each(result.outcomes, result.verdicts) for batch in found for result in batch])
    else:
        verdicts = [verdict for batch in side_by_side(judge, examples, marks, judge) for verdict in batch]
        results = iter([_of_group(verdict, order) for verdict, (_, order) in zip(verdicts, shown, strict=True)])
    return [tuple(next(results) for _ in own) for own in orders]


def _of_each(outcomes: Sequence[object], verdicts: Sequence[Verdict]) -> Judgement:
    """The scores of candidates that were judged each by itself."""
    failures = [one for one in outcomes if isinstance(one, Failure)]
    scores = tuple(None if verdict.scores is None else verdict.scores[0] for verdict in verdicts)
    tokens = sum(verdict.tokens for verdict in verdicts)
    forced = sum(verdict.counters.get("forced", 0) for verdict in verdicts)
    cached = all(verdict.cached for verdict in verdicts)
    kind, why = _said(failures[0] if failures else None)
    return Judgement(scores, kind, tokens, int(forced), cached, why)


def _of_group(verdict: Verdict, order: Sequence[int]) -> Judgement:
    scores = None
    if verdict.scores is not None:
        scores = tuple(verdict.scores[order.index(candidate)] for candidate in range(len(order)))
    kind, why = _said(verdict.failure)
    return Judgement(scores, kind, verdict.tokens, int(verdict.counters.get("forced", 0)), verdict.cached, why)


def _said(failure: Failure | None) -> tuple[str | None, str | None]:
    return (None, None) if failure is None else (failure.kind, failure.detail)


def entry_of(row: Judged, number: int) -> dict[str, Any]:
    """A line of the store."""
    draws = [[_stored(one) for one in draw] for draw in row.draws]
    return {"row": number, **asdict(row), "draws": draws}


def _stored(one: Judgement) -> dict[str, Any]:
    left_out = {"cached", *["why"] * (one.why is None)}
    return {name: value for name, value in asdict(one).items() if name not in left_out}


def judged_of(entry: Mapping[str, Any]) -> Judged:
    """The row of a line of the store."""
    draws = tuple(tuple(_judgement(one) for one in draw) for draw in entry["draws"])
    merits = tuple(map(float, entry["merits"]))
    return Judged(entry["id"], entry["part"], merits, entry["groups"], draws, entry["listed"])


def _judgement(entry: Mapping[str, Any]) -> Judgement:
    scores = entry["scores"]
    known = None if scores is None else tuple(scores)
    return Judgement(known, entry["failure"], entry["tokens"], entry["forced"], why=entry.get("why"))


def check_rows(judge: Judge, rows: Iterable[Labelled]) -> None:
    """Raises ConfigError for a row that the judge cannot be shown, or its format cannot judge."""
    for row in rows:
        try:
            check_fits(judge, row.example)
        except ConfigError as error:
            raise ConfigError(f"row {row.number} (id {row.id!r}): {error}") from None
