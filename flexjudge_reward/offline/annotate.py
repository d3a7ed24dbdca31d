"""Questions with candidate answers become preference pairs, for DPO and its relatives.

The input is a file or data set as `rows.py` reads it: rows with a question, two or more `candidates`, and `images` or
`videos`; those of a file of lines also need an id. A molecule comes out as the text it was given by, which is what a
policy writes. The output:

    pairs.jsonl            {"id", "prompt", "chosen", "rejected", "images", "scores", "pair"}: what DPOTrainer reads
    pairs.skipped.jsonl    {"id", "pair", "why", "detail"}: every pair that was judged and not kept
    pairs.md               a card: where the pairs come from, and the counts
    pairs.media/           the pictures of these pairs that the input held itself, as PNG

Prompt and answers are messages, as TRL has them. Where the candidates are pictures, `prompt` is the question itself,
and `chosen` and `rejected` are the paths of two pictures: what a trainer of diffusion models reads. The path of a
picture in `pairs.media` starts where pairs.jsonl lies; any other is that of the input, below its media root.

A format for one candidate gives each its score. Any other format is asked for two candidates at a time, in both orders,
and only a winner that both orders name is kept. Why a pair is skipped: `tie`; `order` (the winner changes with the
order); `margin` (too close); `same` (the candidates are equal); `other` (a pair further apart was kept for the row); or
the kind of the failure. Nothing is guessed.

A run that was killed goes on where it was: the files are those of an unbroken run, and at most one batch is judged
again. So it does when its judge went away: rows that found no server, or one too slow, are asked once more, and are
written as such once a later batch shows that somebody answers; a batch of which nothing is answered stops the run. A
judge that refuses all of the first batch stops it, too: a server that cannot be shown pictures is found so. Not known
here: how candidates are made, and what a trainer does with the pairs.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import Any, Literal, Unpack

from flexjudge_reward.data.rows import Row, RowOptions, Rows
from flexjudge_reward.errors import ConfigError, EngineError, MediaError
from flexjudge_reward.formats.adaptive import Swapped
from flexjudge_reward.formats.builtin import group_size, steps
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.media.base import Media
from flexjudge_reward.offline.journal import Journal
from flexjudge_reward.types import Content, Example, Verdict

BATCH = 64  # rows that are judged together, and that a killed run judges again

Which = Literal["best", "all"]


@dataclass(frozen=True)
class Compared:
    """What came of two candidates of a row."""

    winner: int
    loser: int
    """Indices into the row's candidates; of a pair without a winner, in the order of the row."""
    scores: tuple[float, float] | None
    """Of winner and loser, on the format's scale."""
    why: str = ""
    """Empty for a win; else the reason of being skipped."""
    detail: str = ""


def annotate_file(
    source: str | Path,
    judge: Judge,
    output: Path,
    which: Which = "best",
    margin: float = 0.0,
    **options: Unpack[RowOptions],
) -> Counter[str]:
    """Writes the preference pairs of `source` to `output`, beside it what was skipped, a card, and pictures.

    Args:
        which: "best" keeps the pair furthest apart of each row, "all" every pair with a winner.
        margin: the least difference of the two scores, on the format's scale; a difference of 0 is always a tie.
        options: how the source is read; see `rows.py`.

    Returns:
        Counts: `rows`, `pairs`, and each reason for which pairs were skipped.

    Raises:
        ConfigError: a margin below 0, an output that is no .jsonl file or would change the input, a source that lacks a
            column, a wrong row (named by its number), a format that cannot compare two candidates, a judge that cannot
            be shown what is compared, or an unfinished run of other settings at `output`.
        EngineError: the judge can answer nothing; what was judged is kept for the next run.
    """
    _check_settings(judge, output, which, margin)
    rows = Rows(source, **options)
    rows.keep_off(output)

    def check(row: Row) -> None:
        _check(row, judge)

    total = rows.verify(check, unique=True)
    first = next(rows.read(check)).example
    asked = judge if group_size(judge.format)[1] == 1 else Judge(Swapped(judge.format), judge.engine, judge.sampling)
    with Journal(output, _fingerprint(rows, asked, first, which, margin)) as journal:
        left = islice(rows.read(check, unique=True), journal.counts["rows"], None)
        _annotate(left, total, asked, which, margin, journal)
        journal.finish(_card(rows, judge, which, margin, journal.counts))
    return journal.counts


def _check_settings(judge: Judge, output: Path, which: Which, margin: float) -> None:
    if not margin >= 0:
        raise ConfigError(f"margin must be at least 0, found {margin!r}")
    if which not in ("best", "all"):
        raise ConfigError(f"pairs are 'best' or 'all', found {which!r}")
    if output.suffix != ".jsonl":
        raise ConfigError(f"the pairs go to a .jsonl file, found {str(output)!r}")
    fewest, most = group_size(judge.format)
    if most > 1 and not fewest <= 2 <= most:
        raise ConfigError(f"pairs need a format for one or two candidates, this one judges {fewest:g} to {most:g}")


def _annotate(
    rows: Iterator[Row], total: int | None, judge: Judge, which: Which, margin: float, journal: Journal
) -> None:
    from tqdm import tqdm

    done = journal.counts["rows"]
    with tqdm(total=total, initial=done, unit="row", desc="annotating", file=sys.stderr, disable=None) as bar:
        held: list[tuple[Row, list[Compared]]] = []
        while batch := list(islice(rows, BATCH)):
            compared = _insisted([row.example for row in batch], judge)
            _check_answered(compared, first=not journal.counts["rows"])
            # Rows that nobody answered are written once a later batch shows that somebody is there.
            _write(held, which, margin, journal)
            held = list(zip(batch, compared, strict=True))
            if not any(map(_silent, compared)):
                _write(held, which, margin, journal)
                held = []
            bar.update(len(batch))
        _write(held, which, margin, journal)


def _write(held: Sequence[tuple[Row, list[Compared]]], which: Which, margin: float, journal: Journal) -> None:
    for row, found in held:
        for one in chosen(found, which, margin):
            journal.add(_skipped_row(row, one) if one.why else _pair_row(row, one, journal), one.why)
    if held:
        journal.commit(len(held))


def _insisted(examples: Sequence[Example], judge: Judge) -> list[list[Compared]]:
    """The examples compared; those that a server did not answer twice, because what is written is not asked again."""
    found = compare(examples, judge)
    silent = [index for index, pairs in enumerate(found) if _silent(pairs)]
    if not silent:
        return found
    again = dict(zip(silent, compare([examples[index] for index in silent], judge), strict=True))
    return [again.get(index, pairs) for index, pairs in enumerate(found)]


def _silent(pairs: Sequence[Compared]) -> bool:
    """Whether a pair of a row was not answered at all."""
    return any(one.why in ("transport", "timeout") for one in pairs)


def _check_answered(compared: Sequence[Sequence[Compared]], first: bool) -> None:
    """Raises EngineError if nothing of a batch was answered, or all of the first refused: so will be the rest."""
    asked = [one for found in compared for one in found if one.why != "same"]
    nothing = {"transport", "timeout", *(("engine",) if first else ())}
    if len(compared) > 1 and asked and all(one.why in nothing for one in asked):
        raise EngineError(f"the judge answered nothing of {len(compared)} rows: {asked[0].detail}")


def compare(examples: Sequence[Example], judge: Judge) -> list[list[Compared]]:
    """Every two candidates of each example, compared: from their own scores, or side by side."""
    if group_size(judge.format)[1] == 1:
        alone = [Example(e.question, [c], e.reference, e.rubric) for e in examples for c in e.candidates]
        verdicts = iter(judge(alone))
        return [_apart([next(verdicts) for _ in example.candidates], example) for example in examples]
    twos = [_twos(example.candidates) for example in examples]
    asked = [
        Example(e.question, [e.candidates[i], e.candidates[j]], e.reference, e.rubric)
        for e, pairs in zip(examples, twos, strict=True)
        for i, j, same in pairs
        if not same
    ]
    verdicts = iter(judge(asked) if asked else ())
    return [
        [Compared(i, j, None, "same") if same else _side_by_side(i, j, next(verdicts)) for i, j, same in pairs]
        for pairs in twos
    ]


def _twos(candidates: Sequence[Content]) -> list[tuple[int, int, bool]]:
    """Every two candidates by their indices, and whether they are equal."""
    places = combinations(range(len(candidates)), 2)
    return [(i, j, _equal(candidates[i], candidates[j])) for i, j in places]


def _equal(one: Content, other: Content) -> bool:
    try:
        return one == other
    except MediaError:  # a picture that cannot be read equals no other; the judge fails it
        return False


def _apart(verdicts: Sequence[Verdict], example: Example) -> list[Compared]:
    found = []
    for i, j in combinations(range(len(verdicts)), 2):
        failure = verdicts[i].failure or verdicts[j].failure
        if failure is not None:
            found.append(Compared(i, j, None, failure.kind, failure.detail))
        elif example.candidates[i] == example.candidates[j]:
            found.append(Compared(i, j, None, "same"))
        else:
            found.append(_won(i, j, (*(verdicts[i].scores or ()), *(verdicts[j].scores or ())), "tie"))
    return found


def _side_by_side(i: int, j: int, verdict: Verdict) -> Compared:
    if verdict.scores is None:
        failure = verdict.failure
        return Compared(i, j, None, failure.kind if failure else "", failure.detail if failure else "")
    agreed = verdict.notes.get("swaps_agreed") == verdict.notes.get("swaps")
    return _won(i, j, verdict.scores, "tie" if agreed else "order")


def _won(i: int, j: int, scores: Sequence[float], even: str) -> Compared:
    one, other = scores
    if one == other:
        return Compared(i, j, (one, other), even)
    return Compared(i, j, (one, other)) if one > other else Compared(j, i, (other, one))


def chosen(compared: Sequence[Compared], which: Which, margin: float) -> list[Compared]:
    """The same comparisons with a reason for each that is not kept; the first of several equally far apart is kept."""
    kept = [one if one.why or _gap(one) >= margin else _skip(one, "margin") for one in compared]
    wins = [one for one in kept if not one.why]
    if which == "all" or not wins:
        return kept
    best = max(wins, key=_gap)
    return [_skip(one, "other") if not one.why and one is not best else one for one in kept]


def _gap(one: Compared) -> float:
    return one.scores[0] - one.scores[1] if one.scores else 0.0


def _skip(one: Compared, why: str) -> Compared:
    scores = one.scores or (0.0, 0.0)
    return Compared(one.winner, one.loser, one.scores, why, f"{scores[0]:g} against {scores[1]:g}")


# ------------------------------------------------------------------------------------------------------------ rows


def _check(row: Row, judge: Judge) -> None:
    kinds = [_kind(candidate) for candidate in row.example.candidates]
    if len(kinds) < 2:
        raise ConfigError(f"a pair needs at least two candidates, found {len(kinds)}")
    if len(set(kinds)) > 1:
        raise ConfigError(f"the candidates are of unequal kind: {' and '.join(sorted(set(kinds)))}")
    judge.check_media(row.example)


def _kind(candidate: Content) -> str:
    kinds = sorted({"text" if isinstance(part, str) else part.kind for part in candidate})
    return " with ".join(kinds) or "empty"


def _pair_row(row: Row, one: Compared, journal: Journal) -> dict[str, Any]:
    question, candidates = row.entry["question"], row.entry["candidates"]
    won, lost = candidates[one.winner], candidates[one.loser]
    if all(_is_picture(candidate) for candidate in row.example.candidates):
        better, worse = (_said(candidate, journal)[0]["image"] for candidate in (won, lost))
        said = {"prompt": _said(question, journal), "chosen": better, "rejected": worse}
    else:
        said = {
            "prompt": [{"role": "user", "content": _said(question, journal)}],
            "chosen": [{"role": "assistant", "content": _said(won, journal)}],
            "rejected": [{"role": "assistant", "content": _said(lost, journal)}],
        }
    media = {n: [_path(one, journal) for one in row.entry[n]] for n in ("images", "videos") if row.entry.get(n)}
    return {"id": row.id, **said, **media, "scores": one.scores, "pair": [one.winner, one.loser]}


def _is_picture(candidate: Content) -> bool:
    return len(candidate) == 1 and isinstance(candidate[0], Media) and candidate[0].kind == "image"


def _said(value: Any, journal: Journal) -> Any:
    """Texts as one text; a list of parts with media as content blocks."""
    parts = [_named(part) for part in (value if isinstance(value, list) else [value])]
    if all(kind == "text" for kind, _ in parts):
        return "".join(part for _, part in parts)
    return [{"type": kind, kind: _path(part, journal)} for kind, part in parts]


def _named(part: Any) -> tuple[str, Any]:
    """What kind of part it is, and its text, path or picture; a molecule is a text."""
    if isinstance(part, str):
        return "text", part
    if isinstance(part, Media):
        return part.kind, part
    kind = next(name for name in ("text", "image", "video", "molecule") if isinstance(part.get(name), str | Media))
    return ("text" if kind == "molecule" else kind), part[kind]


def _path(value: str | Media, journal: Journal) -> str:
    return journal.picture(value) if isinstance(value, Media) else value


def _skipped_row(row: Row, one: Compared) -> dict[str, Any]:
    return {"id": row.id, "pair": [one.winner, one.loser], "why": one.why, "detail": one.detail}


# ------------------------------------------------------------------------------------------------------------- run


def _fingerprint(rows: Rows, judge: Judge, first: Example, which: Which, margin: float) -> str:
    """What must be equal for an unfinished run to go on: the rows, how the judge is asked, who it is."""
    one = Example(first.question, first.candidates[: _asked(judge)], first.reference, first.rubric)
    asked = next(steps(judge.format, one))
    who = json.dumps(judge.engine.identity(), sort_keys=True, default=str)
    how = repr((rows.fingerprint(), asked, judge.sampling, who, which, margin))
    return hashlib.sha256(how.encode("utf-8", "surrogatepass")).hexdigest()


def _asked(judge: Judge) -> int:
    return 1 if group_size(judge.format)[1] == 1 else 2


def _card(rows: Rows, judge: Judge, which: Which, margin: float, counts: Counter[str]) -> str:
    skipped = sorted((why, count) for why, count in counts.items() if why not in ("rows", "pairs"))
    lines = [
        f"# Preference pairs of {rows}",
        "",
        f"{counts['pairs']} pairs from {counts['rows']} rows; {'the best of each row' if which == 'best' else 'all'}",
        f"with a margin of at least {margin:g}. Judge: {type(judge.format).__name__},",
        f"`{json.dumps(judge.engine.identity(), sort_keys=True, default=str)}`.",
        "",
        "| skipped because | pairs |",
        "|---|---|",
        *(f"| {why} | {count} |" for why, count in skipped),
    ]
    return "\n".join(lines) + "\n"
