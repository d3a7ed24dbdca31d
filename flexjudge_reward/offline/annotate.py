"""Questions with candidate answers become preference pairs, for DPO and its relatives.

The input is a file or data set as `data/rows.py` reads it: rows with a question and two or more `candidates`; those of
a file of lines also need an id. A molecule is written as the text it was given by, which is what a policy writes. The
output:

    pairs.jsonl            {"id", "prompt", "chosen", "rejected", "images", "scores", "pair"}: what DPOTrainer reads
    pairs.skipped.jsonl    {"id", "pair", "why", "detail"}: every judged pair that was not kept; and every row that
                           cannot be used: {"line", "id", "why": "row", "detail"} ("row" for "line" in a data set)
    pairs.md               a card: source, judge, counts
    pairs.media/           the images of these pairs that the input itself held, as PNG, and its clips as they were

Prompt and answers are messages, as TRL has them. Where the candidates are images, `prompt` is the question itself, and
`chosen` and `rejected` are the paths of two images: what a trainer of diffusion models reads. The path of an image in
`pairs.media` is relative to the folder of pairs.jsonl; any other is that of the input, below its media root.

A format for one candidate gives each its score. Any other format compares two candidates in both orders, all pairs of a
row or those of its schedule, and only a winner that both orders name is kept. Why a pair is skipped: `tie`;
`order_inconsistent` (the winner changes with the order); `below_margin`; `identical` (the candidates are equal);
`not_selected` (a pair further apart was kept for the row); or the kind of the failure. Nothing is guessed. Two
processes never write one output.

A killed run continues where it was: the files are those of an unbroken run, and at most one batch is judged again.
Transport failures and timeouts are retried once. They are written only after a later batch succeeds; a batch without
any reply stops the run. A judge that rejects all of the first batch stops it, too: so a server that cannot be shown
images is detected.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Unpack

from flexjudge_reward.data.rows import BadRow, Row, RowOptions, Rows
from flexjudge_reward.errors import ConfigError, EngineError
from flexjudge_reward.formats.base import Format
from flexjudge_reward.judge.groups import check_fits, judge_groups
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.offline.journal import Journal
from flexjudge_reward.offline.output import owned
from flexjudge_reward.offline.pairs import Pair, PairWriter, Which, pair_format, pairs_of, select
from flexjudge_reward.prompts.template import Template
from flexjudge_reward.rubric import Rubric
from flexjudge_reward.types import Content

MOST_CANDIDATES = {"all": 64, "best": 256}  # of a row, whose pairs grow as their square: 2,000 would be 2 million pairs
BATCH = 64  # rows that are judged together, and that a killed run judges again


def annotate_file(
    source: str | Path,
    judge: Judge,
    output: Path,
    which: Which = "best",
    margin: float = 0.0,
    **options: Unpack[RowOptions],
) -> Counter[str]:
    """Writes the preference pairs of `source` to `output`, beside it the skipped pairs, a card, and images.

    Args:
        which: "best" keeps the pair furthest apart of each row, "all" every pair with a winner.
        margin: the least difference of the two scores, on the format's scale; a difference of 0 is always a tie.
        options: how the source is read; see `data/rows.py`.

    Returns:
        Counts: `rows`, `pairs`, `row` (those that cannot be used), and each reason for which pairs were skipped.

    Raises:
        ConfigError: a margin below 0, an output that is no .jsonl file, cannot be written, is being written by another
            process or would change the input, a source that lacks a column or has no row that can be used (or, with
            `strict`, one that cannot), a format that cannot compare two candidates, or an unfinished run of other
            settings at `output`.
        EngineError: the judge can answer nothing; finished rows are kept for the next run.
    """
    if not margin >= 0:
        raise ConfigError(f"margin must be at least 0, found {margin!r}")
    if which not in ("best", "all"):
        raise ConfigError(f"pairs are 'best' or 'all', found {which!r}")
    if output.suffix != ".jsonl":
        raise ConfigError(f"the pairs go to a .jsonl file, found {str(output)!r}")
    rows = Rows(source, **options)
    rows.check_output_path(output)
    judge = judge.with_format(pair_format(judge.format))

    def check(row: Row) -> None:
        _check_candidates(row.example.candidates, MOST_CANDIDATES[which])
        check_fits(judge, row.example)

    with owned(output):
        total = rows.verify(check, unique=True)
        with Journal(output, _fingerprint(rows, judge, which, margin)) as journal:
            left = islice(rows.read(check, unique=True), journal.counts["rows"], None)
            _annotate(rows.unit, left, total, judge, which, margin, journal)
            journal.finish(_card(rows, judge, which, margin, journal.counts))
    rows.report(journal.counts["row"], journal.counts["rows"])
    return journal.counts


def _check_candidates(candidates: Sequence[Content], most: int) -> None:
    if not 2 <= len(candidates) <= most:
        raise ConfigError(f"a pair needs at least two candidates and a row has at most {most}, found {len(candidates)}")
    kinds = sorted({_kind(candidate) for candidate in candidates})
    if len(kinds) > 1:
        raise ConfigError(f"the candidates are of unequal kind: {' and '.join(kinds)}")


def _kind(candidate: Content) -> str:
    kinds = sorted({"text" if isinstance(part, str) else part.kind for part in candidate})
    return " with ".join(kinds) or "empty"


def _annotate(
    unit: str,
    rows: Iterator[Row | BadRow],
    total: int | None,
    judge: Judge,
    which: Which,
    margin: float,
    journal: Journal,
) -> None:
    from tqdm import tqdm

    def write(compared: Sequence[tuple[Row | BadRow, list[Pair]]]) -> None:
        for row, pairs in compared:
            if isinstance(row, BadRow):
                journal.add({unit: row.number, "id": row.id, "why": "row", "detail": row.why}, "row")
                continue
            for pair in select(pairs, which, margin):
                journal.add(writer.row(row, pair), pair.why or "")
        if compared:
            journal.commit(len(compared))

    writer, done = PairWriter(journal.keep), journal.counts["rows"]
    with tqdm(total=total, initial=done, unit="row", desc="annotating", disable=None) as bar:
        held: list[tuple[Row | BadRow, list[Pair]]] = []
        while batch := list(islice(rows, BATCH)):
            judged = iter(_compare([row for row in batch if isinstance(row, Row)], judge))
            compared = [next(judged) if isinstance(row, Row) else [] for row in batch]
            _check_answered(compared, first=not journal.counts["rows"])
            # Unanswered rows are written once a later batch shows that the server is there.
            write(held)
            held = list(zip(batch, compared, strict=True))
            if not any(map(_unanswered, compared)):
                write(held)
                held = []
            bar.update(len(batch))
        write(held)


def _compare(rows: Sequence[Row], judge: Judge, attempts: int = 2) -> list[list[Pair]]:
    """The pairs of every row; unanswered rows are judged twice, since written rows are final."""
    if not rows:
        return []
    results = judge_groups(judge, [row.example for row in rows], [{"id": row.id} for row in rows])
    compared = [pairs_of(row.example, result) for row, result in zip(rows, results, strict=True)]
    unanswered = [index for index, pairs in enumerate(compared) if _unanswered(pairs)]
    if unanswered and attempts > 1:
        again = _compare([rows[index] for index in unanswered], judge, attempts - 1)
        for index, pairs in zip(unanswered, again, strict=True):
            compared[index] = pairs
    return compared


def _unanswered(pairs: Sequence[Pair]) -> bool:
    """Whether a pair of a row got no reply at all."""
    return any(pair.why in ("transport", "timeout") for pair in pairs)


def _check_answered(compared: Sequence[Sequence[Pair]], first: bool) -> None:
    """Raises EngineError if a batch got no reply, or the first was rejected whole: so would be the rest."""
    judged = [pair for pairs in compared for pair in pairs if pair.why != "identical"]
    nothing = {"transport", "timeout", *(("engine",) if first else ())}
    if len(compared) > 1 and judged and all(pair.why in nothing for pair in judged):
        raise EngineError(f"the judge answered nothing of {len(compared)} rows: {judged[0].detail}")


def _fingerprint(rows: Rows, judge: Judge, which: Which, margin: float) -> str:
    """What must be equal for an unfinished run to be continued: the rows, the format with its texts, the judge."""
    identity = json.dumps(judge.engine.identity(), sort_keys=True, default=str)
    layers = [_settings(layer) for layer in judge.format.layers()]
    run = repr((rows.fingerprint(), layers, judge.sampling, identity, which, margin))
    return hashlib.sha256(run.encode("utf-8", "surrogatepass")).hexdigest()


def _settings(layer: Format) -> tuple[str, list[tuple[str, object]]]:
    """The class of a format or wrapper, with its own settings: schedule, votes, rubric, prompt texts."""
    plain = (str, int, float, type(None), Rubric, Template)
    settings = [(name, value) for name, value in vars(layer).items() if isinstance(value, plain)]
    return type(layer).__name__, sorted(settings)


def _card(rows: Rows, judge: Judge, which: Which, margin: float, counts: Counter[str]) -> str:
    lines = [
        f"# Preference pairs of {rows}",
        "",
        f"{counts['pairs']} pairs from {counts['rows']} rows; {'the best of each row' if which == 'best' else 'all'}",
        f"with a margin of at least {margin:g}.",
        "",
        *(f"* {name}: {value}" for name, value in judge.described().items() if value is not None),
        "",
        "| skipped because | pairs |",
        "|---|---|",
        *(f"| {why} | {count} |" for why, count in sorted(counts.items()) if why not in ("rows", "pairs")),
    ]
    return "\n".join(lines) + "\n"
