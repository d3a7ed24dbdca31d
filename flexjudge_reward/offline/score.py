"""A file, data set or record of examples, scored or ranked: one row in, one row out, in the same order.

`data/rows.py` describes the input. A row of `score_file`:

    {"line", "id", "question", "candidates", "scores", "failures", "scale", "reasoning", "cached"}

with one entry per candidate: `scores` on `scale` ([low, high]), null where `failures` says why; `reasoning` has one
entry per candidate, or one for the group. A row of `rerank_file`:

    {"line", "id", "question", "candidates", "order", "best", "scores", "failures", "scale", "reasoning"}

`question` and `candidates` have texts and {kind: digest of a media item}, as the record of judgements; `reference` and
`rubric` are there where the row has them. `order` has every candidate by its index, best first; `scores` are in [0, 1].
Here ids are required and unique. The rows of a data set have "row", its index, for "line", and by default it is their
id.

A row that cannot be used is {"line", "id", "error", "scores": [], "failures": []} in its place, and the next one comes;
`strict` makes it the end of the run, before any model loads if the source is local. An image that cannot be used fails
its candidate only. Two processes never write one output. It appears under its name when it is complete; a run that was
cut off starts again, and finished judgements come from the cache.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TextIO, Unpack

from flexjudge_reward.data.rows import BadRow, Row, RowOptions, Rows
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.judge.groups import GroupResult, check_fits, judge_groups
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.record import asked_entry, failure_entry, json_line
from flexjudge_reward.judge.summary import RunSummary
from flexjudge_reward.judge.window import in_order
from flexjudge_reward.offline.output import owned
from flexjudge_reward.offline.progress import Progress
from flexjudge_reward.offline.recorded import RecordedRows
from flexjudge_reward.offline.rerank import ranked
from flexjudge_reward.rubric import Scale
from flexjudge_reward.types import Failure

Entries = Callable[[Row, GroupResult], dict[str, object]]  # what an output row says of a judged row
BATCH = 256  # rows per call of a judge in this process: enough to fill a GPU, little enough to lose on an interruption
_NO_LINES = (".csv", ".tsv", ".parquet", ".html", ".gz", ".zst")  # what would then be read as something else
_counting = threading.Lock()  # of batches that are judged side by side


def score_file(
    source: str | Path, judge: Judge, output: Path | None = None, **options: Unpack[RowOptions]
) -> RunSummary:
    """Judges every row of `source`, read with `options`, and writes the rows to `output`, or to standard output.

    Raises:
        ConfigError: the source is missing, empty, lacks a column, or has no row that can be used and fits the format
            and the judge (or, with `strict`, one that does not); the output cannot be written, or another process
            writes it.
        EngineError: the judge can answer nothing; rows already judged are in the cache.
    """
    return _file(Rows(source, **options), judge, output, score_entries, ranks=False)


def rerank_file(
    source: str | Path, judge: Judge, output: Path | None = None, seed: int = 0, **options: Unpack[RowOptions]
) -> RunSummary:
    """Ranks the candidates of every row of `source`; see `rerank.py`.

    Raises as `score_file`. A row with fewer than two candidates, no id or a repeated one cannot be used.
    """
    return _file(Rows(source, **options), judge, output, partial(rank_entries, seed), ranks=True)


def rejudge_file(
    record: str | Path,
    judge: Judge,
    output: Path | None = None,
    *,
    limit: int | None = None,
    strict: bool = False,
    thumbnails: bool = False,
    own_rubrics: bool = True,
) -> RunSummary:
    """Judges the candidates of a record of judgements again, without generating; writes rows as `score_file`.

    Args:
        record: what `--record` or `FlexJudgeReward(record=...)` wrote; `recorded.py` says what its rows are.
        limit: the most rows.
        strict: a row that cannot be judged, such as one whose images were not kept, ends the run.
        thumbnails: judge the thumbnail of an image that was not kept whole.
        own_rubrics: rows with a rubric of their own keep it; else the judge's rubric is for all.

    Raises as `score_file`; and ConfigError where the judge would append to this record.
    """
    rows = RecordedRows(record, limit, strict, thumbnails, own_rubrics)
    if judge.record is not None and judge.record.path.resolve() == Path(record).resolve():
        raise ConfigError(f"the judge's own record is {str(record)!r}, which is read: give another one, or none")
    return _file(rows, judge, output, score_entries, ranks=False)


def _file(rows: Rows, judge: Judge, output: Path | None, entries: Entries, ranks: bool) -> RunSummary:
    done, start, check = 0, time.perf_counter(), partial(check_row, judge, ranks)
    if output is not None:
        if output.suffix.lower() in _NO_LINES:
            raise ConfigError(
                f"the output has JSON lines, and {str(output)!r} names another kind of file: give"
                f" {output.with_suffix('.jsonl').name!r}"
            )
        rows.check_output_path(output)
    with nullcontext() if output is None else owned(output):
        total, left, summary = rows.verify(check, ranks), rows.read(check, ranks), RunSummary()
        with _complete(output) as sink, Progress("judging", total) as progress:

            def judged(batch: list[Row | BadRow]) -> list[dict[str, object]]:
                return list(judged_batch(batch, judge, entries, summary))

            for batch, found in in_order(left, judged, judge, BATCH, lambda row: row.example):
                for row, entry in zip(batch, found, strict=True):
                    sink.write(json_line({rows.unit: row.number, "id": row.id, **entry}))
                sink.flush()
                progress.update(len(batch), f"{summary.failed:,} of {summary.judged:,} judgements failed")
                done += len(batch)
    summary.seconds = min(summary.seconds, time.perf_counter() - start)  # of batches side by side it is their sum
    rows.report(summary.skipped, done)
    return summary


def check_row(judge: Judge, ranks: bool, row: Row) -> None:
    """Raises ConfigError for a row that cannot be scored or, with `ranks`, ranked."""
    if ranks and len(row.example.candidates) < 2:
        raise ConfigError(f"ranking needs at least two candidates, found {len(row.example.candidates)}")
    check_fits(judge, row.example)


def judged_batch(
    batch: Sequence[Row | BadRow], judge: Judge, entries: Entries, summary: RunSummary
) -> Iterator[dict[str, object]]:
    """What the output says of each row."""
    good = [row for row in batch if isinstance(row, Row)]
    start = time.perf_counter()
    results = judge_groups(judge, [row.example for row in good], [{"id": row.id} for row in good]) if good else []
    with _counting:
        summary.add(results, time.perf_counter() - start)
        summary.skipped += len(batch) - len(good)
    judged = iter(results)
    for row in batch:
        if isinstance(row, Row):
            asked = {name: value for name, value in asked_entry(row.example).items() if value is not None}
            yield {**asked, **entries(row, next(judged))}
        else:
            yield {"error": row.why, "scores": [], "failures": []}


@contextmanager
def _complete(output: Path | None) -> Iterator[TextIO]:
    """A file that gets its name when it is complete; None is standard output."""
    if output is None:
        yield sys.stdout
        return
    partial = output.with_name(output.name + ".partial")
    with partial.open("w", encoding="utf-8") as sink:
        yield sink
    partial.replace(output)


def score_entries(row: Row, result: GroupResult) -> dict[str, object]:
    """What an output row of `score_file` says."""
    scores = [result.raw_score(candidate) for candidate in range(len(result.outcomes))]
    scale = next((verdict.scale for verdict in result.verdicts if verdict.scores), result.verdicts[0].scale)
    return {**_judged(result, scores, scale), "cached": all(verdict.cached for verdict in result.verdicts)}


def rank_entries(seed: int, row: Row, result: GroupResult) -> dict[str, object]:
    """What an output row of `rerank_file` says."""
    ranking = ranked(row.example, result, seed)
    scores = [None if isinstance(outcome, Failure) else outcome for outcome in result.outcomes]
    return {"order": ranking.order, "best": ranking.best, **_judged(result, scores, Scale(0.0, 1.0))}


def _judged(result: GroupResult, scores: Sequence[float | None], scale: Scale) -> dict[str, object]:
    return {
        "scores": scores,
        "failures": [failure_entry(one) if isinstance(one, Failure) else None for one in result.outcomes],
        "scale": [scale.low, scale.high],
        "reasoning": [verdict.reasoning for verdict in result.verdicts],
    }
