"""A JSONL file of examples, scored or ranked: one row in, one row out, in the same order.

An input row:

    {"id": 7, "question": "What is top left?", "answer": "a cat", "images": ["pics/7.png"], "reference": "a dog"}

`answer` is one candidate, `candidates` a list of them. A question, candidate or reference is a text or a list of parts:
a text, {"text": ..}, {"image": path}, {"video": path} or {"molecule": SMILES}. `images` and `videos` go before the
question. Paths are relative to the media root and may not leave it. `rubric` is a built-in name, or an object with
criteria, low, high and decimals. Other entries are ignored.

A row of `score_file`: {"line", "id", "scores", "failure", "reasoning", "cached"}; scores or failure is null.
A row of `rerank_file`: {"line", "id", "order", "best", "scores", "failures", "reasoning"}; `order` has every candidate
by its index, best first; `scores` are in [0, 1], null where `failures` says why. Here ids are needed, and differ.

The whole file is checked before any model loads; a wrong row stops the run and names its line. A picture that cannot be
used fails its row only. The output appears under its name when it is complete; a run that was cut off starts again, and
what was judged before comes from the cache.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats import group_size
from flexjudge_reward.judge import Judge
from flexjudge_reward.media import Media
from flexjudge_reward.rerank import Ranking, rerank
from flexjudge_reward.rubric import Rubric, rubric_names
from flexjudge_reward.types import Example, Failure, Verdict

BATCH = 256  # rows per engine call: enough to fill a GPU, little enough to lose on an interruption


@dataclass(frozen=True)
class Row:
    """One example of the file, with what names it in the output."""

    line: int
    """From 1."""
    id: object
    example: Example
    entry: Mapping[str, Any]
    """The row as it stands in the file."""


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


def score_file(source: Path, judge: Judge, output: Path | None = None, media_root: Path | None = None) -> Summary:
    """Judges every row of `source` and writes the verdict rows to `output`, or to standard output.

    Raises:
        ConfigError: the file is missing, empty, has a wrong row, or a row that does not fit the format.
        EngineError: the judge can answer nothing; rows already judged are in the cache.
    """
    fewest, most = group_size(judge.format)

    def check(row: Row) -> None:
        count = len(row.example.candidates)
        if not fewest <= count <= most:
            raise ConfigError(f"the format judges {fewest:g} to {most:g} candidates at a time, this row has {count}")

    def answer(rows: Sequence[Row]) -> Iterator[tuple[dict[str, object], Sequence[Verdict]]]:
        for row, verdict in zip(rows, judge([row.example for row in rows]), strict=True):
            yield _verdict_row(row, verdict), [verdict]

    return _file(source, output, media_root, check, answer)


def rerank_file(
    source: Path, judge: Judge, output: Path | None = None, media_root: Path | None = None, seed: int = 0
) -> Summary:
    """Puts the candidates of every row of `source` in order; see `rerank.py`.

    Raises:
        ConfigError: as `score_file`, or a row with fewer than two candidates, without an id, or with one seen before.
        EngineError: the judge can answer nothing; what was judged is in the cache.
    """
    seen: dict[str, int] = {}

    def check(row: Row) -> None:
        if len(row.example.candidates) < 2:
            raise ConfigError(f"ranking needs at least two candidates, found {len(row.example.candidates)}")
        check_id(row, seen)

    def answer(rows: Sequence[Row]) -> Iterator[tuple[dict[str, object], Sequence[Verdict]]]:
        for row, ranking in zip(rows, rerank([row.example for row in rows], judge, seed), strict=True):
            yield _ranking_row(row, ranking), ranking.verdicts

    return _file(source, output, media_root, check, answer)


def check_id(row: Row, seen: dict[str, int]) -> None:
    """That the row has an id and no row before it has the same; `seen` keeps the line of each.

    Raises:
        ConfigError: it has none, or one seen before.
    """
    if row.id is None:
        raise ConfigError("the entry 'id' is missing")
    name = json.dumps(row.id, sort_keys=True)
    if name in seen:
        raise ConfigError(f"the id {row.id!r} stands in line {seen[name]} already")
    seen[name] = row.line


Answer = Callable[[Sequence[Row]], Iterator[tuple[dict[str, object], Sequence[Verdict]]]]
"""Judges a batch of rows: per row what is written, and the verdicts behind it."""


def _file(
    source: Path, output: Path | None, media_root: Path | None, check: Callable[[Row], None], answer: Answer
) -> Summary:
    count = check_rows(source, media_root, check)
    rows = read_rows(source, media_root)
    if output is None:
        return _answered(rows, count, answer, sys.stdout)
    partial = output.with_name(output.name + ".partial")
    with partial.open("w", encoding="utf-8") as sink:
        summary = _answered(rows, count, answer, sink)
    partial.replace(output)
    return summary


def check_rows(source: Path, media_root: Path | None, check: Callable[[Row], None]) -> int:
    """The number of rows, after reading every one; nothing is generated and no media is opened.

    Raises:
        ConfigError: no rows, or one that is wrong or that `check` refuses, named by its line.
    """
    count = 0
    for row in read_rows(source, media_root):
        try:
            check(row)
        except ConfigError as error:
            raise ConfigError(f"{source}, line {row.line}: {error}") from None
        count += 1
    if not count:
        raise ConfigError(f"{source} has no rows")
    return count


def read_rows(source: Path, media_root: Path | None) -> Iterator[Row]:
    """The rows of a file, one at a time; blank lines are skipped.

    Raises:
        ConfigError: no such file, or a wrong row, named by its line.
    """
    if not source.is_file():
        raise ConfigError(f"no file {str(source)!r}")
    with source.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield _row(number, json.loads(line), media_root)
            except (ValueError, RecursionError) as error:  # ConfigError and JSON and UTF-8 errors are all ValueErrors
                raise ConfigError(f"{source}, line {number}: {error}") from None


def _answered(rows: Iterator[Row], count: int, answer: Answer, sink: TextIO) -> Summary:
    from tqdm import tqdm

    summary = Summary()
    with tqdm(total=count, unit="row", desc="judging", file=sys.stderr, disable=None) as bar:
        while batch := list(islice(rows, BATCH)):
            for written, verdicts in answer(batch):
                sink.write(json.dumps(written, ensure_ascii=False) + "\n")
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
        "line": row.line,
        "id": row.id,
        "scores": None if verdict.scores is None else list(verdict.scores),
        "failure": None if failure is None else {"kind": failure.kind, "detail": failure.detail},
        "reasoning": verdict.reasoning,
        "cached": bool(verdict.generations) and all(generation.cached for generation in verdict.generations),
    }


def _ranking_row(row: Row, ranking: Ranking) -> dict[str, object]:
    failures = [found if isinstance(found, Failure) else None for found in ranking.outcomes]
    return {
        "line": row.line,
        "id": row.id,
        "order": list(ranking.order),
        "best": ranking.best,
        "scores": [None if isinstance(found, Failure) else found for found in ranking.outcomes],
        "failures": [None if one is None else {"kind": one.kind, "detail": one.detail} for one in failures],
        "reasoning": [verdict.reasoning for verdict in ranking.verdicts],
    }


def _row(number: int, entry: Any, media_root: Path | None) -> Row:
    if not isinstance(entry, dict):
        raise ConfigError(f"expected a JSON object, found {type(entry).__name__}")
    if "question" not in entry:
        raise ConfigError("the entry 'question' is missing")
    if ("answer" in entry) == ("candidates" in entry):
        raise ConfigError("give either 'answer' or 'candidates'")
    candidates = [entry["answer"]] if "answer" in entry else entry["candidates"]
    if not isinstance(candidates, list):
        raise ConfigError(f"'candidates' must be a list, found {type(candidates).__name__}")
    shown = [_media(kind, path, media_root) for kind in ("image", "video") for path in _paths(entry, f"{kind}s")]
    reference = entry.get("reference")
    example = Example(
        [*shown, *_content(entry["question"], media_root)],
        [_content(candidate, media_root) for candidate in candidates],
        None if reference is None else _content(reference, media_root),
        _rubric(entry.get("rubric")),
    )
    return Row(number, entry.get("id"), example, entry)


def _paths(entry: dict[str, Any], name: str) -> Sequence[Any]:
    paths = entry.get(name, [])
    if not isinstance(paths, list):
        raise ConfigError(f"{name!r} must be a list of paths, found {type(paths).__name__}")
    return paths


def _content(value: Any, media_root: Path | None) -> list[str | Media]:
    return [_part(part, media_root) for part in (value if isinstance(value, list) else [value])]


def _part(part: Any, media_root: Path | None) -> str | Media:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        for kind in ("text", "image", "video", "molecule"):
            if isinstance(part.get(kind), str):
                return str(part[kind]) if kind == "text" else _media(kind, part[kind], media_root)
    known = "{'text': ..}, {'image': path}, {'video': path} or {'molecule': SMILES}"
    raise ConfigError(f"a part is a text, {known}, found {part!r:.80}")


def _media(kind: str, path: Any, media_root: Path | None) -> Media:
    if not isinstance(path, str):
        raise ConfigError(f"an {kind} is given by its path, found {path!r:.80}")
    if kind == "molecule":
        return Media.molecule(path)
    if media_root is None:
        raise ConfigError(f"{kind} {path!r} needs a folder that files may be read from: give --media-root DIR")
    make: dict[str, Callable[..., Media]] = {"image": Media.image, "video": Media.video}
    return make[kind](Path(path), roots=[media_root])  # a relative path starts at the root


def _rubric(value: Any) -> Rubric | None:
    if value is None:
        return None
    if isinstance(value, dict):
        return Rubric.of(value)
    # A row is data: it may name a built-in rubric but never a file.
    if value in rubric_names():
        return Rubric.load(value)
    raise ConfigError(
        f"'rubric' is an object with 'criteria', or one of {', '.join(rubric_names())}; found {value!r:.80}"
    )
