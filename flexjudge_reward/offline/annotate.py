"""Questions with candidate answers become preference pairs, for DPO and its relatives.

The input is a file or data set as `data/rows.py` reads it: rows with a question and two or more `candidates`; those of
a file of lines also need an id. A molecule is written as the text it was given by, which is what a policy writes. The
output is a file of lines, or a folder: a data set with the images in it (`dataset.py`), which has these files, too.

    pairs.jsonl            {"id", "prompt", "chosen", "rejected", "images", "scores", "pair", "reasoning"}
    pairs.skipped.jsonl    {"id", "pair", "why", "detail"}: every judged pair that was not kept; and every row that
                           cannot be used: {"line", "id", "why": "row", "detail"} ("row" for "line" in a data set)
    pairs.md               a card (`card.py`); of a folder, README.md
    pairs.media/           the images of these pairs that the input itself held, as PNG or JPEG, and its clips as they
                           were; in a folder, all images of these pairs

Prompt and answers are messages, as TRL has them. Where the candidates are images, a prompt without media is its text,
and `chosen` and `rejected` are the paths of two images: what a trainer of diffusion models reads. A folder holds one
of these forms: a row of another form than the first usable one cannot be used. The path of an image in `pairs.media`
is relative to the folder of pairs.jsonl; any other is that of the input, below its media root.
`reasoning` is the judge's, of chosen and rejected; of two that were compared, one text for both.

A format for one candidate gives each its score. Any other format compares two candidates in both orders, all pairs of a
row or those of its schedule, and only a winner that both orders name is kept. Why a pair is skipped: `tie`;
`order_inconsistent` (the winner changes with the order); `below_margin`; `identical` (the candidates are equal);
`not_selected` (a pair further apart was kept for the row); or the kind of the failure. Nothing is guessed. Two
processes never write one output.

A killed run continues where it was: the files are those of an unbroken run, and only what was under way is judged
again, as far as it is not in the cache: one batch, and of a judge on a server those beside it (`window.py`). Transport
failures and timeouts are retried once. They are written only after a later batch succeeds; a batch without any reply
stops the run. A judge that rejects all of the first batch stops it, too: so a server that cannot be shown images is
detected.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Unpack, get_args

from flexjudge_reward.data.cells import source_media
from flexjudge_reward.data.rows import BadRow, Row, RowOptions, Rows
from flexjudge_reward.errors import ConfigError, EngineError, FlexJudgeError
from flexjudge_reward.formats.base import Format
from flexjudge_reward.judge.groups import check_fits, judge_groups
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.window import in_order
from flexjudge_reward.offline import dataset
from flexjudge_reward.offline.card import Making
from flexjudge_reward.offline.journal import Journal
from flexjudge_reward.offline.output import owned
from flexjudge_reward.offline.pairs import Pair, PairWriter, Which, form_of, pair_format, pairs_of, select
from flexjudge_reward.offline.progress import Progress
from flexjudge_reward.prompts.template import Template
from flexjudge_reward.rubric import Rubric
from flexjudge_reward.types import Content, FailureKind

MOST_CANDIDATES = {"all": 64, "best": 256}  # of a row, whose pairs grow as their square: 2,000 would be 2 million pairs
BATCH = 128  # rows that are written together; of a judge in this process they are judged together, too


def annotate_file(
    source: str | Path,
    judge: Judge,
    output: Path,
    which: Which = "best",
    margin: float = 0.0,
    push_to_hub: str | None = None,
    license: str | None = None,
    **options: Unpack[RowOptions],
) -> Counter[str]:
    """Writes the preference pairs of `source` to `output`, beside it the skipped pairs, a card, and images.

    The counts that it returns: `rows`, `pairs`, `row` (those that cannot be used), and each reason for a skipped pair.

    Args:
        output: a .jsonl file, or a folder, new or of an earlier run: a data set.
        which: "best" keeps the pair furthest apart of each row, "all" every pair with a winner.
        margin: the least difference of the two scores, on the format's scale; a difference of 0 is always a tie.
        push_to_hub: the data set of the Hub that the folder goes to, with its `license`; a new one is private.

    Raises:
        ConfigError: a margin below 0; an output of another form, that cannot be written or is being written, would
            change the input, or has an unfinished run of other settings; wrong or no rows; a wrong format; the Hub.
        EngineError: the judge can answer nothing, or the push failed or has no pairs; finished rows are kept.
    """
    folder = _folder(output, push_to_hub)
    lines = output / "pairs.jsonl" if folder else output
    rows = Rows(source, **options)
    rows.check_output_path(lines)
    judge = judge.with_format(pair_format(judge.format))
    check_settings(which, margin)
    making = Making(rows, judge, which, margin, options, license)
    check = partial(check_row, judge, which, {} if folder else None)
    with _made(folder), owned(lines):
        total = rows.verify(check, unique=True)
        if push_to_hub:
            dataset.reserve(push_to_hub)
        with Journal(lines, _fingerprint(rows, judge, which, margin)) as journal:
            left = islice(rows.read(check, unique=True), journal.counts["rows"], None)
            _annotate(rows.unit, left, total, making, _writer(journal, folder, options.get("media_root")), journal)
            _finish(making, journal, folder)
    rows.report(journal.counts["row"], journal.counts["rows"])
    if folder and push_to_hub:
        dataset.push(folder, push_to_hub, journal.counts["pairs"])
    return journal.counts


def _writer(journal: Journal, folder: Path | None, root: Path | None) -> PairWriter:
    read = partial(source_media, roots=() if root is None else (root,), options={}) if folder else None
    return PairWriter(journal.keep, read)


def check_settings(which: Which, margin: float) -> None:
    if not margin >= 0:
        raise ConfigError(f"margin must be at least 0, found {margin!r}")
    if which not in ("best", "all"):
        raise ConfigError(f"pairs are 'best' or 'all', found {which!r}")


def check_row(judge: Judge, which: Which, forms: dict[str, str] | None, row: Row) -> None:
    """`forms`, of a data set, keeps the form of its first usable row, which the others share: it has one table."""
    _check_candidates(row.example.candidates, MOST_CANDIDATES[which])
    if forms is not None and any(media.kind in ("video", "audio") for media in row.example.media):
        raise ConfigError("a data set of pairs has texts and images only: give a .jsonl file as output")
    check_fits(judge, row.example)
    if forms is not None and (form := form_of(row)) != (first := forms.setdefault("first", form)):
        raise ConfigError(f"its pairs are {form}, those of the first row {first}; a .jsonl file as output takes both")


def _folder(output: Path, push_to_hub: str | None) -> Path | None:
    """The folder of a data set, or None for a file of lines. Raises ConfigError."""
    if output.suffix == ".jsonl":
        if push_to_hub:
            raise ConfigError(f"what is pushed is a folder, found the file {str(output)!r}: give a name without .jsonl")
        return None
    if output.suffix and not output.is_dir():
        raise ConfigError(f"the pairs go to a .jsonl file or a folder, found {str(output)!r}")
    dataset.check_installed()
    if output.is_file():
        raise ConfigError(f"{str(output)!r} is a file: give a .jsonl file or a folder for the pairs")
    if output.is_dir() and any(output.iterdir()) and not any(output.glob("pairs.*")):
        raise ConfigError(f"{str(output)!r} has other files in it: give a new or empty folder for the pairs")
    return output


@contextmanager
def _made(folder: Path | None) -> Iterator[None]:
    """Makes the folder; a run that has left nothing in it removes it."""
    if folder is not None and folder.parent.is_dir():
        folder.mkdir(exist_ok=True)
    try:
        yield
    finally:
        if folder is not None:
            with suppress(OSError):
                folder.rmdir()


def _finish(making: Making, journal: Journal, folder: Path | None) -> None:
    """The data set, if there is to be one; the card; the lines under their names."""
    card = making.card(journal.kept(), journal.counts)
    if folder is None:
        journal.finish(journal.output.with_suffix(".md"), card)
        return
    dataset.write(journal.kept, folder)
    journal.finish(folder / "README.md", making.front_matter(journal.counts["pairs"]) + card)


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
    making: Making,
    writer: PairWriter,
    journal: Journal,
) -> None:
    def write(compared: Sequence[tuple[Row | BadRow, list[Pair]]]) -> None:
        for row, pairs in compared:
            if isinstance(row, BadRow):
                journal.add({unit: row.number, "id": row.id, "why": "row", "detail": row.why}, "row")
                continue
            for pair in select(pairs, making.which, making.margin):
                journal.add(writer.row(row, pair), pair.why or "")
        if compared:
            journal.commit(len(compared))

    with Progress("annotating", total, journal.counts["rows"]) as progress:
        held: list[tuple[Row | BadRow, list[Pair]]] = []
        for batch, compared in _compared(rows, making.judge):
            check_answered(compared, first=not journal.counts["rows"])
            # Unanswered rows are written once a later batch shows that the server is there.
            write(held)
            held = list(zip(batch, compared, strict=True))
            if not any(map(_unanswered, compared)):
                write(held)
                held = []
            failed = sum(journal.counts[kind] for kind in get_args(FailureKind))
            progress.update(len(batch), f"{journal.counts['pairs']:,} pairs, {failed:,} failed")
        write(held)


def _compared(rows: Iterator[Row | BadRow], judge: Judge) -> Iterator[tuple[list[Row | BadRow], list[list[Pair]]]]:
    """Batches of rows and the pairs of each row, in order; what was judged comes before an error."""

    def pairs_of_rows(batch: list[Row | BadRow]) -> list[list[Pair]]:
        judged = iter(compare([row for row in batch if isinstance(row, Row)], judge))
        return [next(judged) if isinstance(row, Row) else [] for row in batch]

    done: list[Row | BadRow] = []
    pairs: list[list[Pair]] = []
    try:
        for batch, found in in_order(rows, pairs_of_rows, judge, BATCH, lambda row: row.example):
            done, pairs = done + batch, pairs + found
            if len(done) >= BATCH:
                yield done, pairs
                done, pairs = [], []
    except FlexJudgeError:
        if done and not any(map(_unanswered, pairs)):
            yield done, pairs
        raise
    if done:
        yield done, pairs


def compare(rows: Sequence[Row], judge: Judge, attempts: int = 2) -> list[list[Pair]]:
    """The pairs of every row; unanswered rows are judged twice, since written rows are final."""
    if not rows:
        return []
    results = judge_groups(judge, [row.example for row in rows], [{"id": row.id} for row in rows])
    compared = [pairs_of(row.example, result) for row, result in zip(rows, results, strict=True)]
    unanswered = [index for index, pairs in enumerate(compared) if _unanswered(pairs)]
    if unanswered and attempts > 1:
        again = compare([rows[index] for index in unanswered], judge, attempts - 1)
        for index, pairs in zip(unanswered, again, strict=True):
            compared[index] = pairs
    return compared


def _unanswered(pairs: Sequence[Pair]) -> bool:
    """Whether a pair of a row got no reply at all."""
    return any(pair.why in ("transport", "timeout") for pair in pairs)


def check_answered(compared: Sequence[Sequence[Pair]], first: bool) -> None:
    """Raises EngineError if a batch got no reply, or the first was rejected whole: so would be the rest."""
    judged = [pair for pairs in compared for pair in pairs if pair.why != "identical"]
    nothing = {"transport", "timeout", *(("engine",) if first else ())}
    if len(compared) > 1 and judged and all(pair.why in nothing for pair in judged):
        raise EngineError(f"the judge answered nothing of {len(compared)} rows: {judged[0].detail}")


def _fingerprint(rows: Rows, judge: Judge, which: Which, margin: float) -> str:
    """What must be equal for an unfinished run to be continued: the rows, the format with its texts, the judge."""
    identity = json.dumps(judge.engine.identity(), sort_keys=True, default=str)
    layers = [layer_settings(layer) for layer in judge.format.layers()]
    run = repr((rows.fingerprint(), layers, judge.sampling, identity, which, margin))
    return hashlib.sha256(run.encode("utf-8", "surrogatepass")).hexdigest()


def layer_settings(layer: Format) -> tuple[str, list[tuple[str, object]]]:
    """The class of a format or wrapper, with its own settings: schedule, votes, rubric, prompt texts."""
    plain = (str, int, float, type(None), Rubric, Template)
    settings = [(name, value) for name, value in vars(layer).items() if isinstance(value, plain)]
    return type(layer).__name__, sorted(settings)
