"""A file or data set of examples, scored or ranked: one row in, one row out, in the same order.

What the input may be, and the form of a row, stand in `rows.py`.

A row of `score_file`: {"line", "id", "scores", "failure", "reasoning", "cached"}; scores or failure is null.
A row of `rerank_file`: {"line", "id", "order", "best", "scores", "failures", "reasoning"}; `order` has every candidate
by its index, best first; `scores` are in [0, 1], null where `failures` says why. Here ids are needed, and differ.
The rows of a data set have "row", its index, for "line", and by it an id.

A wrong row stops the run and names its line, before any model loads if the source lies here. A picture that cannot be
used fails its row only. The output appears under its name when it is complete; a run that was cut off starts again, and
what was judged before comes from the cache.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TextIO, Unpack

from flexjudge_reward.data.rows import Row, RowOptions, Rows
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.builtin import group_size
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.offline.journal import line
from flexjudge_reward.offline.rerank import Ranking, rerank
from flexjudge_reward.types import Failure, Verdict

BATCH = 256  # rows per engine call: enough to fill a GPU, little enough to lose on an interruption


@dataclass
class Summary:
    """How a file went."""

    judged: int = 0
    cached: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        failed = ", ".join(f"{count} {kind}" for kind, count in sorted(self.failures.items()))
        return f"{self.judged} judged ({self.cached} from the cache), {self.failures.total()} failed" + (
            f" ({failed})" if failed else ""
        )


def score_file(source: str | Path, judge: Judge, output: Path | None = None, **options: Unpack[RowOptions]) -> Summary:
    """Judges every row of `source` and writes the verdict rows to `output`, or to standard output.

    Args:
        options: how the source is read; see `rows.py`.

    Raises:
        ConfigError: the source is missing, empty, lacks a column, or has a wrong row, or one that does not fit the
            format or the judge.
        EngineError: the judge can answer nothing; rows already judged are in the cache.
    """
    fewest, most = group_size(judge.format)
    rows = Rows(source, **options)

    def check(row: Row) -> None:
        judge.check_media(row.example)
        count = len(row.example.candidates)
        if not fewest <= count <= most:
            raise ConfigError(f"the format judges {fewest:g} to {most:g} candidates at a time, this row has {count}")

    def answer(batch: Sequence[Row]) -> Iterator[tuple[dict[str, object], Sequence[Verdict]]]:
        for row, verdict in zip(batch, judge([row.example for row in batch]), strict=True):
            yield {rows.unit: row.number, **_verdict_row(row, verdict)}, [verdict]

    return _file(rows, output, check, False, answer)


def rerank_file(
    source: str | Path, judge: Judge, output: Path | None = None, seed: int = 0, **options: Unpack[RowOptions]
) -> Summary:
    """Puts the candidates of every row of `source` in order; see `rerank.py`.

    Raises:
        ConfigError: as `score_file`, or a row with fewer than two candidates, without an id, or with one seen before.
        EngineError: the judge can answer nothing; what was judged is in the cache.
    """
    rows = Rows(source, **options)

    def check(row: Row) -> None:
        judge.check_media(row.example)
        count, most = len(row.example.candidates), group_size(judge.format)[1]
        if count < 2:
            raise ConfigError(f"ranking needs at least two candidates, found {count}")
        if 1 < most < count:  # a format for one candidate judges each alone
            raise ConfigError(f"the format judges at most {most:g} candidates at a time, this row has {count}")

    def answer(batch: Sequence[Row]) -> Iterator[tuple[dict[str, object], Sequence[Verdict]]]:
        for row, ranking in zip(batch, rerank([row.example for row in batch], judge, seed), strict=True):
            yield {rows.unit: row.number, **_ranking_row(row, ranking)}, ranking.verdicts

    return _file(rows, output, check, True, answer)


Answer = Callable[[Sequence[Row]], Iterator[tuple[dict[str, object], Sequence[Verdict]]]]
"""Judges a batch of rows: per row what is written, and the verdicts behind it."""


def _file(rows: Rows, output: Path | None, check: Callable[[Row], None], unique: bool, answer: Answer) -> Summary:
    if output is not None:
        rows.keep_off(output)
    total = rows.verify(check, unique)
    if output is None:
        return _answered(rows.read(check, unique), total, answer, sys.stdout)
    partial = output.with_name(output.name + ".partial")
    with partial.open("w", encoding="utf-8") as sink:
        summary = _answered(rows.read(check, unique), total, answer, sink)
    partial.replace(output)
    return summary


def _answered(rows: Iterator[Row], total: int | None, answer: Answer, sink: TextIO) -> Summary:
    from tqdm import tqdm

    summary = Summary()
    with tqdm(total=total, unit="row", desc="judging", file=sys.stderr, disable=None) as bar:
        while batch := list(islice(rows, BATCH)):
            for written, verdicts in answer(batch):
                sink.write(line(written))
                for verdict in verdicts:
                    _count(summary, verdict)
            sink.flush()
            bar.update(len(batch))
    return summary


def _count(summary: Summary, verdict: Verdict) -> None:
    if verdict.failure is not None:
        summary.failures[verdict.failure.kind] += 1
        return
    summary.judged += 1
    summary.cached += all(generation.cached for generation in verdict.generations)


def _verdict_row(row: Row, verdict: Verdict) -> dict[str, object]:
    failure = verdict.failure
    return {
        "id": row.id,
        "scores": None if verdict.scores is None else list(verdict.scores),
        "failure": None if failure is None else {"kind": failure.kind, "detail": failure.detail},
        "reasoning": verdict.reasoning,
        "cached": bool(verdict.generations) and all(generation.cached for generation in verdict.generations),
    }


def _ranking_row(row: Row, ranking: Ranking) -> dict[str, object]:
    failures = [found if isinstance(found, Failure) else None for found in ranking.outcomes]
    return {
        "id": row.id,
        "order": list(ranking.order),
        "best": ranking.best,
        "scores": [None if isinstance(found, Failure) else found for found in ranking.outcomes],
        "failures": [None if one is None else {"kind": one.kind, "detail": one.detail} for one in failures],
        "reasoning": [verdict.reasoning for verdict in ranking.verdicts],
    }
