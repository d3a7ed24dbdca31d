"""A judge's replies become training traces, for a judge of one's own (Flex-Judge, section 2.2).

The input is a file or data set as `data/rows.py` reads it, texts only. Each row is judged once with every seed. A trace
is kept if the format can read it and, with a `teacher` column, if all its scores are exactly the teacher's; for a
letter, if it is the teacher's best. Of several, the one with the most tokens is kept. The output:

    traces.parquet         a row per trace: "id", "format", "question", "candidates", "reference", "criteria", "low",
                           "high" (the scale), "reply" (the reasoning in its tags, then the answer tags), "scores",
                           "tokens", "seed"
    traces.skipped.jsonl   {"line" or "row", "id", "why", "detail"}: every row without a trace
    traces.md              a card: judge, counts at every filter, examples, licence

Why a row has no trace: `row` (it cannot be used, or its teacher's scores are off the scale), `duplicate` (an equal
row has one), `disagrees`, or the kind of the failure.

The prompt is not in the file: who trains on it renders it in the wording of the judge to be (`prompt_set`). The files
appear under their names when they are complete. A run that was cut off starts again, and finished replies come from the
cache. A batch without any reply stops the run. Two processes never write one output.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Unpack, get_args

from flexjudge_reward.data.rows import BadRow, Row, RowOptions, Rows
from flexjudge_reward.errors import ConfigError, EngineError, MissingExtra
from flexjudge_reward.formats.base import winners
from flexjudge_reward.formats.budget import BudgetForcing
from flexjudge_reward.formats.groups import GroupFormat
from flexjudge_reward.formats.onecall import OneCall
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.record import json_line
from flexjudge_reward.offline.output import owned
from flexjudge_reward.offline.progress import Progress
from flexjudge_reward.rubric import Scale
from flexjudge_reward.types import Example, FailureKind, Verdict

BATCH = 256
_EXAMPLES = 2  # on the card


@dataclass(frozen=True)
class Trace:
    """One row of the output."""

    id: str
    format: str
    question: str
    candidates: tuple[str, ...]
    reference: str | None
    criteria: str
    low: float
    high: float
    reply: str
    scores: tuple[float, ...]
    """On the scale; of a letter 1 for the best and 0 for the others."""
    tokens: int
    seed: int


class TraceCounts(Counter[str]):
    """Counts at every filter: rows, row (bad), replies, failures by kind, disagrees, shorter, duplicate, traces."""

    def __init__(self) -> None:
        super().__init__()
        self.left_out = Counter[str]()
        """Rows without a trace, by the reason in the file of skipped rows; a row has several replies."""

    @property
    def judged(self) -> int:
        """Replies, unreadable ones included."""
        return self["replies"]

    @property
    def failed(self) -> int:
        """Replies that the format cannot read."""
        return sum(self[kind] for kind in get_args(FailureKind))

    def __str__(self) -> str:
        lost = ", ".join(f"{count} {why}" for why, count in sorted(self.left_out.items()))
        return f"{self['traces']} traces from {self['rows']} rows and {self.judged} replies; left out: {lost or 'none'}"


def traces_file(
    source: str | Path,
    judge: Judge,
    output: Path,
    seeds: Sequence[int] = (0,),
    teacher: str | None = None,
    license: str = "",
    **options: Unpack[RowOptions],
) -> TraceCounts:
    """Writes the traces of `judge` on `source`, read with `options`; beside them a card and the rows without one.

    Args:
        judge: its format is one of the built-in ones, asked as it is: no votes, no swapped order, no forced answer.
        seeds: of sampling; the judge judges every row with each.
        teacher: the entry with the scores to agree with, a list with one number per candidate.
        license: of the rows and the judge's replies, for the card.

    Raises:
        ConfigError: an output that is no .parquet file, cannot be written or is being written; seeds without a
            temperature; another format; a source that is missing or has no row that can be used, such as one without
            the teacher's scores.
        EngineError: the judge can answer nothing.
    """
    if output.suffix != ".parquet":
        raise ConfigError(f"the traces go to a .parquet file, found {str(output)!r}")
    if not seeds or len(set(seeds)) < len(seeds) or (len(seeds) > 1 and judge.sampling.temperature == 0):
        raise ConfigError(f"seeds are one or several different numbers, and several need a temperature: found {seeds}")
    judge = judge.with_format(_plain(judge))
    rows = Rows(source, **options)
    rows.check_output_path(output)

    def check(row: Row) -> None:
        _check_text(row.example)
        judge.format.check(row.example)
        if teacher is not None:
            _teacher_scores(row, teacher, judge.format)  # type: ignore[arg-type]

    with owned(output):
        job, files = _Job(judge, tuple(seeds), teacher), _Files(output)
        total = rows.verify(check)
        with files:
            job.run(rows, total, rows.read(check), files)
            files.finish(_card(rows, job, license))
    rows.report(job.counts["row"], job.counts["rows"])
    return job.counts


class _Job:
    """Judges the rows, and counts."""

    def __init__(self, judge: Judge, seeds: tuple[int, ...], teacher: str | None) -> None:
        self.judge, self.seeds, self.teacher = judge, seeds, teacher
        self.counts, self.examples = TraceCounts(), list[Trace]()
        self._kept: set[str] = set()  # digests of the examples that have a trace

    def run(self, rows: Rows, total: int | None, left: Iterator[Row | BadRow], files: _Files) -> None:
        with Progress("tracing", total) as progress:
            while batch := list(islice(left, BATCH)):
                good = [row for row in batch if isinstance(row, Row)]
                drawn = iter(self._drawn([row.example for row in good]))
                for row in batch:
                    found = next(drawn) if isinstance(row, Row) else []
                    self._add(rows.unit, row, found, files)
                files.flush()
                progress.update(len(batch), f"{self.counts['traces']:,} traces, {self.counts.failed:,} failed")

    def _drawn(self, examples: Sequence[Example]) -> list[list[Verdict]]:
        """Per example, a verdict for each seed. Raises EngineError if there is no reply at all."""
        draws = []
        for seed in self.seeds if examples else ():
            sampling = replace(self.judge.sampling, seed=seed)
            draws.append(Judge(self.judge.format, self.judge.engine, sampling, self.judge.record)(examples))
        failures = [verdict.failure for draw in draws for verdict in draw]
        nothing = {"transport", "timeout", *(() if self.counts["rows"] else ("engine",))}
        if len(failures) > 1 and all(failure is not None and failure.kind in nothing for failure in failures):
            raise EngineError(f"the judge answered nothing of {len(examples)} rows: {failures[0].detail}")  # type: ignore[union-attr]
        return [list(verdicts) for verdicts in zip(*draws, strict=True)]

    def _add(self, unit: str, row: Row | BadRow, verdicts: Sequence[Verdict], files: _Files) -> None:
        self.counts["rows"] += 1
        where = {unit: row.number, "id": row.id}
        if isinstance(row, BadRow):
            self.counts["row"] += 1
            self._skip(files, where, "row", row.why)
            return
        reasons = [self._why_not(row, verdict) for verdict in verdicts]
        self.counts["replies"] += len(verdicts)
        self.counts.update(why for why, _ in filter(None, reasons))
        kept = [index for index, reason in enumerate(reasons) if reason is None]
        digest = row.example.digest()
        if not kept or digest in self._kept:
            why, detail = _reason(reasons) if not kept else ("duplicate", "an equal row has a trace")
            self.counts["duplicate"] += why == "duplicate"
            self._skip(files, where, why, detail)
            return
        longest = max(kept, key=lambda index: (verdicts[index].tokens, -index))
        self._kept.add(digest)
        self.counts["shorter"] += len(kept) - 1
        self.counts["traces"] += 1
        trace = _trace(row, self.judge.format, verdicts[longest], self.seeds[longest])  # type: ignore[arg-type]
        self.examples += [trace] if len(self.examples) < _EXAMPLES else []
        files.keep(trace)

    def _skip(self, files: _Files, where: dict[str, object], why: str, detail: str) -> None:
        self.counts.left_out[why] += 1
        files.skip({**where, "why": why, "detail": detail})

    def _why_not(self, row: Row, verdict: Verdict) -> tuple[str, str] | None:
        if verdict.failure is not None:
            return verdict.failure.kind, verdict.failure.detail
        if self.teacher is None or verdict.scores is None:
            return None
        wanted = _teacher_scores(row, self.teacher, self.judge.format)  # type: ignore[arg-type]
        if verdict.scores == wanted:
            return None
        return "disagrees", f"{_shown(verdict.scores)}, and the teacher's are {_shown(wanted)}"


class _Files:
    """The output and the rows without a trace; they get their names when they are complete."""

    def __init__(self, output: Path) -> None:
        try:
            import pyarrow as pa  # type: ignore[import-untyped]
            import pyarrow.parquet as parquet  # type: ignore[import-untyped]
        except ImportError:
            raise MissingExtra("pyarrow", "datasets") from None
        texts, numbers = pa.list_(pa.string()), pa.list_(pa.float64())
        types = {"candidates": texts, "scores": numbers, "tokens": pa.int64(), "seed": pa.int64()}
        types |= dict.fromkeys(("low", "high"), pa.float64())
        names = Trace.__dataclass_fields__
        self._schema = pa.schema([(name, types.get(name, pa.string())) for name in names])
        self._table, self._writer_of = pa.Table, parquet.ParquetWriter
        self._output, self._skipped = output, output.with_suffix(".skipped.jsonl")
        self._held: list[dict[str, Any]] = []

    def __enter__(self) -> _Files:
        self._stack = ExitStack()
        self._lines = self._stack.enter_context(_partial(self._skipped).open("w", encoding="utf-8"))
        self._writer = self._stack.enter_context(self._writer_of(_partial(self._output), self._schema))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def keep(self, trace: Trace) -> None:
        self._held.append(asdict(trace))

    def skip(self, line: dict[str, object]) -> None:
        self._lines.write(json_line(line))

    def flush(self) -> None:
        if self._held:
            self._writer.write_table(self._table.from_pylist(self._held, schema=self._schema))
        self._held.clear()

    def finish(self, card: str) -> None:
        self._stack.close()
        _partial(self._output.with_suffix(".md")).write_text(card, "utf-8")
        for path in (self._skipped, self._output.with_suffix(".md"), self._output):
            _partial(path).replace(path)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _plain(judge: Judge) -> OneCall:
    """The judge's own format, without what changes or repeats its replies."""
    plain = judge.format.innermost()
    layers = judge.format.layers()[:-1]
    if other := [type(layer).__name__ for layer in layers if not isinstance(layer, BudgetForcing | GroupFormat)]:
        raise ConfigError(f"a trace is one reply as the judge wrote it: leave out what {other[0]} is for")
    if not isinstance(plain, OneCall):
        raise ConfigError(f"traces are replies of the built-in formats, found {plain.described()}")
    return plain


def _check_text(example: Example) -> None:
    if example.media:
        raise ConfigError(f"traces are of texts, and this row has media: {example.media[0].kind}")


def _teacher_scores(row: Row, teacher: str, format: OneCall) -> tuple[float, ...]:
    """What the judge's scores must be. Raises ConfigError: the teacher has none, or none that this judge can give."""
    given, example = row.entry.get(teacher), row.example
    if given is None:
        raise ConfigError(f"the entry {teacher!r} with the teacher's scores is missing")
    right = isinstance(given, list) and all(isinstance(one, int | float) and not isinstance(one, bool) for one in given)
    if not right or len(given) != len(example.candidates):
        expected = f"{teacher!r} has a number per candidate"
        raise ConfigError(f"{expected}: expected {len(example.candidates)}, found {given!r:.80}")
    scores = tuple(map(float, given))
    if format.answers == "numbers":
        scale = format.scale(example)
        for one in scores:
            if not scale.low <= one <= scale.high or not (scale.decimals or one.is_integer()):
                raise ConfigError(f"the teacher's scores {_shown(scores)} are off the scale {_shown(_ends(scale))}")
        return scores
    best = winners(scores)
    if format.answers == "letter":
        if len(best) > 1:
            raise ConfigError(f"the teacher's scores {_shown(scores)} have no single best, which a letter names")
        return tuple(float(index in best) for index in range(len(scores)))
    raise ConfigError(f"the format {format.name} has no scores to compare with a teacher's")


def _trace(row: Row, format: OneCall, verdict: Verdict, seed: int) -> Trace:
    example = row.example
    rubric = example.rubric or format.rubric
    scale = rubric.scale or format.rubric.scale or Scale()
    (generation,) = verdict.generations
    return Trace(
        str(row.number if row.id is None else row.id),
        format.name,
        _text(example.question),
        tuple(map(_text, example.candidates)),
        None if example.reference is None else _text(example.reference),
        rubric.criteria,
        scale.low,
        scale.high,
        generation.text.strip(),
        verdict.scores or (),
        generation.completion_tokens,
        seed,
    )


def _text(content: Sequence[object]) -> str:
    """Text as a file can hold it: half of a surrogate pair becomes a question mark."""
    return "".join(map(str, content)).encode("utf-8", "replace").decode()


def _reason(reasons: Sequence[tuple[str, str] | None]) -> tuple[str, str]:
    """Why a row has no trace: a reply that can be read says more than one that cannot."""
    given = [reason for reason in reasons if reason]
    return next((reason for reason in given if reason[0] == "disagrees"), given[0])


def _ends(scale: Scale) -> tuple[float, float]:
    return scale.low, scale.high


def _shown(scores: Sequence[float]) -> str:
    return ", ".join(f"{score:g}" for score in scores)


def _card(rows: Rows, job: _Job, license: str) -> str:
    judge = {name: value for name, value in job.judge.described().items() if value is not None and name != "seed"}
    counts, unread = job.counts, {kind: job.counts[kind] for kind in get_args(FailureKind) if job.counts[kind]}
    steps = {
        "rows": counts["rows"],
        "rows that cannot be used": counts["row"],
        f"replies, of the seeds {_shown(job.seeds)}": counts["replies"],
        **{f"replies that are {kind}": count for kind, count in unread.items()},
        "replies that disagree with the teacher": counts["disagrees"],
        "shorter replies to a row that has a longer one": counts["shorter"],
        "rows equal to one that has a trace": counts["duplicate"],
        "traces": counts["traces"],
    }
    return "\n".join(
        [
            f"# Judge traces of {rows}",
            "",
            f"Licence: {' '.join(license.split()) or 'not stated; that of the rows and of the judge holds'}",
            "",
            *(f"* {name}: {value}" for name, value in judge.items()),
            "",
            "| filter | count |",
            "|---|---|",
            *(f"| {what} | {count} |" for what, count in steps.items()),
            "",
            *(f"    {json.dumps(asdict(trace))}\n" for trace in job.examples),
        ]
    )
