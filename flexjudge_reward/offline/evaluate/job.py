"""A judge on a benchmark, or on a user's labelled file: every reading from the verdicts that one pass stored.

    evaluate("nano_world", Judge.load(model="nano", format="pairwise"), Path("runs/check"))

In the folder of the output, per judge:

    NAME.JUDGE.jsonl    {"run"}, then the stored verdicts (`judging.py`); a killed run continues there
    NAME.JUDGE.json     the judge, the version of the data, every metric with its interval, what stands beside them
    NAME.md, NAME.png   all judges of the folder in one table beside published figures, and a plot of the first metric;
                        one that judged other rows, such as fewer, has a warning below it

A finished run that is repeated judges nothing: its figures are computed again from the stored verdicts.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from flexjudge_reward.errors import ConfigError, EngineError, need
from flexjudge_reward.judge.cascade import Cascade
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.record import read_lines
from flexjudge_reward.offline.annotate import layer_settings
from flexjudge_reward.offline.evaluate import table
from flexjudge_reward.offline.evaluate.benchmark import Benchmark, Part, benchmark_names
from flexjudge_reward.offline.evaluate.doctor import FEWEST
from flexjudge_reward.offline.evaluate.formulas import labels_needed
from flexjudge_reward.offline.evaluate.judging import (
    check_rows,
    entry_of,
    judged,
    judged_of,
    plain_judge,
    unanswered,
)
from flexjudge_reward.offline.evaluate.labels import user_rows
from flexjudge_reward.offline.evaluate.metrics import Estimate, Judged, Metric, always, measure
from flexjudge_reward.offline.evaluate.rows import BenchmarkRows, Labelled
from flexjudge_reward.offline.evaluate.settings import failures_of
from flexjudge_reward.offline.journal import Journal
from flexjudge_reward.offline.output import owned

JudgeOf = Judge | Callable[[str, str], Judge]
BATCH = 64  # rows that are judged together, and that a killed run judges again
_DIRECTION = Metric("", "pairs", ties="left_out", failed="left_out")
_MOST_BELOW = 30  # decided rows from which a share below chance is said to be a reversed label


@dataclass(frozen=True)
class Evaluation:
    """What a judge is worth on a benchmark."""

    benchmark: Benchmark
    judge: Mapping[str, object]
    name: str
    metrics: Mapping[str, Estimate]
    always: Mapping[str, float]
    """Rows, failed, ties, swap_consistent, first_place, forced, tokens; see `metrics.always`."""
    data: str
    """The version of the rows."""
    warnings: tuple[str, ...]
    rows: tuple[Judged, ...]
    files: tuple[Path, ...]


def evaluate(
    benchmark: str | Path,
    judge: JudgeOf,
    output: Path,
    *,
    data: Path | None = None,
    media_root: Path | None = None,
    revision: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    resamples: int = 1000,
    name: str | None = None,
    **options: Any,
) -> Evaluation:
    """Judges a benchmark and writes its figures.

    Args:
        benchmark: a built-in name, a .toml file, or a labelled file as `data/rows.py` reads it, with `options`.
        judge: for all rows; or a function of the format and the rubric that a part of the benchmark names.
        output: a folder, which is made.
        data: a file or folder in place of the Hub's data of `revision`; media files are below `media_root`.
        limit: the most rows of each part, drawn at random; `seed` is of that draw and of the candidates' order.
        name: of the judge, in files and tables; by default its model, format and a hash of its settings.

    Raises:
        ConfigError: no such benchmark or data, an unknown schema or label, a judge or format that cannot answer it.
        EngineError: no answer, or none to some rows: the next run asks these again, and then they are failures.
    """
    own = str(benchmark) in benchmark_names() or Path(benchmark).suffix == ".toml"
    read = _published if own else _labelled
    known, rows, version, skipped = read(benchmark, data, media_root, revision, seed, limit, options)
    judges, part = _judges(judge, known), known.parts[0].name
    check_rows(judges[part][0], [] if own else rows)  # all, or one at the end would stop the run there
    described, settings = judges[part][0].described(), _settings(judges)
    name = name or _name(described, known.parts[0].format if own else described["format"], settings)
    file = _made(output) / f"{known.name}.{_slug(name)}.jsonl"
    run = _hash((version, settings, known.parts, known.groups, seed, limit))
    with owned(file):
        stored = _stored(file, run, iter(rows), judges, seed, skipped)
        figures = measure(known.metrics, stored, resamples, seed)
        warnings = (*_warnings(known, stored, version), *_unknown(known, stored, figures))
        found = Evaluation(known, described, name, figures, always(stored), version, warnings, tuple(stored), (file,))
        table.write(found, output)
    return found


def _check_options(own: bool, others: Mapping[str, object]) -> None:
    """Raises ConfigError for an option of the other kind of source, which would be ignored."""
    if given := next((name for name, value in others.items() if value), ""):
        what = "a labelled file; a benchmark says itself how it is read" if own else "a benchmark, not a labelled file"
        raise ConfigError(f"{given!r} is for {what}")


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"the output {str(folder)!r} is a file, or below one: give a folder") from None
    return folder


def _name(judge: Mapping[str, object], format: object, settings: str) -> str:
    """Judges of other settings must not overwrite each other's verdicts."""
    return _slug(f"{judge['model'] or 'served'}-{format}-{_hash(settings)[:6]}")


_Source = tuple[Benchmark, Iterable[Labelled], str, list[dict[str, Any]]]  # skipped rows with their reasons at the end


def _published(
    benchmark: str | Path,
    data: Path | None,
    root: Path | None,
    revision: str | None,
    seed: int,
    limit: int | None,
    options: Mapping[str, Any],
) -> _Source:
    _check_options(True, options)
    known = Benchmark.load(benchmark)
    source = BenchmarkRows(known, data, root, revision, seed, limit)
    source.check()
    drawn = "" if limit is None else f", at most {limit} rows of each part, drawn with seed {seed}"
    return known, source.read(), source.version + drawn, []


def _labelled(
    file: str | Path,
    data: Path | None,
    root: Path | None,
    revision: str | None,
    seed: int,
    limit: int | None,
    options: Mapping[str, Any],
) -> _Source:
    _check_options(False, {"data": data, "revision": revision})
    reader, found, bad = user_rows(file, media_root=root, limit=limit, shuffle_seed=seed, **options)
    skipped = [{reader.unit: one.number, "id": one.id, "detail": one.why} for one in bad]
    return user_benchmark(str(file), found), found, reader.fingerprint(), skipped


def _judges(judge: JudgeOf, known: Benchmark) -> dict[str, tuple[Judge, int]]:
    """Per part the judge and its number of votes. Raises ConfigError: it cannot hear, see or answer the benchmark."""
    need("numpy", "evaluate")  # for the metrics
    made = judge if isinstance(judge, Judge) else cache(judge)
    found = {}
    for part in known.parts:
        found[part.name] = plain_judge(made if isinstance(made, Judge) else made(part.format, part.rubric))
        found[part.name][0].check_kinds(known.kinds)
        format = found[part.name][0].format.innermost()
        if known.formats and format.name not in known.formats:
            wanted = " or ".join(known.formats)
            raise ConfigError(f"{known.title} needs the format {wanted}, and the judge's is {format.name!r}")
    return found


def _stored(
    file: Path,
    run: str,
    rows: Iterator[Labelled],
    judges: Mapping[str, tuple[Judge, int]],
    seed: int,
    skipped: Sequence[dict[str, Any]],
) -> list[Judged]:
    """The verdicts of a finished run, or of this one, which continues one that was cut off."""
    if not (file.exists() and next(read_lines(file), {}).get("run") == run):
        with Journal(file, run) as journal:
            if not journal.counts["rows"]:
                journal.add({"run": run})
                for one in skipped:
                    journal.add(one, "row")
            again = _Again(rows, journal.counts["rows"], _unanswered(journal.kept()))
            for batch in _batches(again.fresh()):
                _judge_batch(journal, batch, judges, seed)
                journal.commit(len(batch))
            for batch in _batches(iter(again.found)):
                _judge_batch(journal, batch, judges, seed)
                journal.commit(0)
            _check_answered(_unanswered(journal.kept()))
            said = f"{journal.counts['rows']} rows judged; the table is beside this file.\n"
            journal.finish(file.with_suffix(".md"), said)
    entries = {(entry["part"], entry["row"]): entry for entry in islice(read_lines(file), 1, None)}
    return [judged_of(entry) for entry in entries.values()]


def _judge_batch(
    journal: Journal, batch: Sequence[Labelled], judges: Mapping[str, tuple[Judge, int]], seed: int
) -> None:
    judge, votes = judges[batch[0].part.name]
    for row, found in zip(batch, _judged(judge, batch, votes, seed), strict=True):
        journal.add(entry_of(found, row.number))


class _Again:
    """Rows that are still to be judged, and of those that an earlier run judged the ones to ask again."""

    def __init__(self, rows: Iterator[Labelled], done: int, wanted: Collection[tuple[str, int]]) -> None:
        self._rows, self._done, self._wanted = rows, done, wanted
        self.found: list[Labelled] = []
        """Complete once `fresh` is used up."""

    def fresh(self) -> Iterator[Labelled]:
        """The rows after the first `done`."""
        self.found = [row for row in islice(self._rows, self._done) if (row.part.name, row.number) in self._wanted]
        yield from self._rows


def _unanswered(kept: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], Judged]:
    """Rows that got no answer in the one run that asked them, by part and number."""
    seen: set[tuple[str, int]] = set()
    found: dict[tuple[str, int], Judged] = {}
    for entry in islice(kept, 1, None):
        key, row = (entry["part"], entry["row"]), judged_of(entry)
        if unanswered(row) and key not in seen:
            found[key] = row
        else:
            found.pop(key, None)
        seen.add(key)
    return found


def _check_answered(left: Mapping[tuple[str, int], Judged]) -> None:
    """Raises EngineError for rows that the next run has to ask again."""
    if left:
        first = next(iter(left.values()))
        raise EngineError(
            f"the judge gave no answer to {len(left)} rows, the first with id {first.id!r} ({unanswered(first)}); all"
            " others are kept. Run this again: these rows are asked once more, and then count as failed"
        )


def _batches(rows: Iterator[Labelled]) -> Iterator[list[Labelled]]:
    """Rows of one part at a time."""
    held: list[Labelled] = []
    for row in rows:
        if held and (len(held) == BATCH or row.part is not held[0].part):
            yield held
            held = []
        held.append(row)
    if held:
        yield held


def _judged(judge: Judge, batch: Sequence[Labelled], votes: int, seed: int) -> list[Judged]:
    check_rows(judge, batch)
    return judged(judge, batch, votes, seed)


def _warnings(known: Benchmark, rows: Sequence[Judged], version: str) -> Iterator[str]:
    """A judge that is right less often than chance: maybe the labels point the other way."""
    several = [row for row in rows if len(row.merits) > 1]
    found = measure([_DIRECTION], several)[""] if several else None
    if found and found.high < 0.5 and found.rows >= _MOST_BELOW:
        column = known.parts[0].label.get("column", "label")
        yield (
            f"of the pairs that the judge decides it is right in {found.value:.1%}, below chance: is the direction of"
            f" column {column!r} reversed at revision {version[:60]}?"
        )


def _unknown(known: Benchmark, rows: Sequence[Judged], figures: Mapping[str, Estimate]) -> Iterator[str]:
    """Figures that say little or nothing, and why."""
    if said := failures_of([one for row in rows for one in row.judgements]):
        yield f"judgements failed: {said}; each is in the file of the verdicts"
    if len(rows) < FEWEST:
        need = f"label at least {FEWEST}, and about {labels_needed(0.75, 0.1)} for plus or minus 10 points"
        yield f"an interval of {len(rows)} rows says nothing: {need}"
    correlations = [metric.name for metric in known.metrics if metric.of in ("pearson", "spearman")]
    if lacking := [name for name in correlations if name in figures and math.isnan(figures[name].value)]:
        yield f"{' and '.join(lacking)} cannot be computed: the labels, or the scores of the judge, are all alike"


def user_benchmark(source: str, rows: Sequence[Labelled]) -> Benchmark:
    """The benchmark that a labelled file is."""
    single = all(len(row.merits) == 1 for row in rows)
    if not single and any(len(row.merits) == 1 for row in rows):
        raise ConfigError(f"{source}: some rows have one candidate and some several; evaluate them in two files")
    pairs = [
        Metric("agreement", "pairs", "right 1, tie a half, failure 0, both orders", ties="half"),
        Metric("all", "pairs", "ties and failures are wrong"),
        Metric("decided", "pairs", "ties and failures are left out", ties="left_out", failed="left_out"),
        Metric("both_orders", "accuracy", "right in both orders", orders="both"),
    ]
    pairs = [replace(metric, draws="majority") for metric in pairs]  # as a judge with votes is asked elsewhere
    pairs.append(Metric("best", "best", "the highest score is on a best candidate; ties count their share; each vote"))
    scores = [Metric("pearson", "pearson", draws="average"), Metric("spearman", "spearman", draws="average")]
    if any(len(row.merits) != 2 for row in rows):
        pairs = [metric for metric in pairs if metric.name != "both_orders"]
    part, path = Part({}, {}, {}), Path(source)
    task = "score" if single else "list"
    stem = re.sub(r"(\.jsonl|\.csv|\.parquet)?(\.gz|\.zst)?$", "", path.name)  # train.en.jsonl is not train.de.jsonl
    return Benchmark(_slug(stem), path.name, task, (part,), tuple(scores if single else pairs), {})


def _settings(judges: Mapping[str, tuple[Judge, float]]) -> str:
    """What is judged, by which model and with which settings, as a text."""
    own = [
        (part, votes, judge.sampling, [layer_settings(layer) for layer in judge.format.layers()])
        for part, (judge, votes) in judges.items()
    ]
    identities = [json.dumps(judge.engine.identity(), sort_keys=True, default=str) for judge, _ in judges.values()]
    large = {part: (judge.large, judge.unsure) for part, (judge, _) in judges.items() if isinstance(judge, Cascade)}
    return repr((own, identities, *([_settings(large)] if large else [])))


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode("utf-8", "surrogatepass")).hexdigest()


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-").lower() or "judge"
