"""Questions with candidate answers become preference pairs, for DPO and its relatives.

The input is a file as `scoring.py` reads it: rows with an id, a question, two or more `candidates`, and `images` or
`videos`. A molecule comes out as the text it was given by, which is what a policy writes. The output are three files:

    pairs.jsonl            {"id", "prompt", "chosen", "rejected", "images", "scores", "pair"}: what DPOTrainer reads
    pairs.skipped.jsonl    {"id", "pair", "why", "detail"}: every pair that was judged and not kept
    pairs.md               a card: where the pairs come from, and the counts

A format for one candidate gives each its score. Any other format is asked for two candidates at a time, in both orders,
and only a winner that both orders name is kept. Why a pair is skipped: `tie`; `order` (the winner changes with the
order); `margin` (too close); `same` (the candidates are equal); `other` (a pair further apart was kept for the row); or
the kind of the failure. Nothing is guessed.

A run that was killed goes on where it was: the files are those of an unbroken run, and at most one batch is judged
again. Not known here: how candidates are made, and what a trainer does with the pairs.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import Any, Literal

from flexjudge_reward.adaptive import Swapped
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats import group_size, steps
from flexjudge_reward.judge import Judge
from flexjudge_reward.scoring import Row, check_id, check_rows, read_rows
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
    source: Path,
    judge: Judge,
    output: Path,
    which: Which = "best",
    margin: float = 0.0,
    media_root: Path | None = None,
) -> Counter[str]:
    """Writes the preference pairs of `source` to `output`, beside it what was skipped and a card.

    Args:
        which: "best" keeps the pair furthest apart of each row, "all" every pair with a winner.
        margin: the least difference of the two scores, on the format's scale; a difference of 0 is always a tie.

    Returns:
        Counts: `rows`, `pairs`, and each reason for which pairs were skipped.

    Raises:
        ConfigError: a margin below 0, an output that is no .jsonl file or the input, a wrong row (named by its line), a
            format that cannot compare two candidates, or an unfinished run of other settings at `output`.
        EngineError: the judge can answer nothing; what was judged is kept for the next run.
    """
    if not margin >= 0:
        raise ConfigError(f"margin must be at least 0, found {margin!r}")
    if which not in ("best", "all"):
        raise ConfigError(f"pairs are 'best' or 'all', found {which!r}")
    if output.suffix != ".jsonl" or output.resolve() == source.resolve():
        raise ConfigError(f"the pairs go to a .jsonl file of their own, found {str(output)!r}")
    fewest, most = group_size(judge.format)
    if most > 1 and not fewest <= 2 <= most:
        raise ConfigError(f"pairs need a format for one or two candidates, this one judges {fewest:g} to {most:g}")
    seen: dict[str, int] = {}
    total = check_rows(source, media_root, lambda row: _check(row, seen))
    first = next(read_rows(source, media_root))
    asked = judge if most == 1 else Judge(Swapped(judge.format), judge.engine, judge.sampling)
    run = _fingerprint(source, asked, first.example, which, margin)
    with _Journal(output, run) as journal:
        rows = islice(read_rows(source, media_root), journal.counts["rows"], None)
        _annotate(rows, total, asked, which, margin, journal)
        journal.finish(_card(source, judge, which, margin, journal.counts))
    return journal.counts


def _annotate(rows: Iterator[Row], total: int, judge: Judge, which: Which, margin: float, journal: _Journal) -> None:
    from tqdm import tqdm

    done = journal.counts["rows"]
    with tqdm(total=total, initial=done, unit="row", desc="annotating", file=sys.stderr, disable=None) as bar:
        while batch := list(islice(rows, BATCH)):
            for row, compared in zip(batch, compare([row.example for row in batch], judge), strict=True):
                for one in chosen(compared, which, margin):
                    journal.add(_skipped_row(row, one) if one.why else _pair_row(row, one), one.why)
            journal.commit(len(batch))
            bar.update(len(batch))


def compare(examples: Sequence[Example], judge: Judge) -> list[list[Compared]]:
    """Every two candidates of each example, compared: from their own scores, or side by side."""
    if group_size(judge.format)[1] == 1:
        alone = [Example(e.question, [c], e.reference, e.rubric) for e in examples for c in e.candidates]
        verdicts = iter(judge(alone))
        return [_apart([next(verdicts) for _ in example.candidates], example) for example in examples]
    asked = [
        Example(e.question, [e.candidates[i], e.candidates[j]], e.reference, e.rubric)
        for e in examples
        for i, j in _different(e.candidates)
    ]
    verdicts = iter(judge(asked) if asked else ())
    return [
        [
            _side_by_side(i, j, next(verdicts)) if e.candidates[i] != e.candidates[j] else Compared(i, j, None, "same")
            for i, j in combinations(range(len(e.candidates)), 2)
        ]
        for e in examples
    ]


def _different(candidates: Sequence[Content]) -> list[tuple[int, int]]:
    return [(i, j) for i, j in combinations(range(len(candidates)), 2) if candidates[i] != candidates[j]]


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


def _check(row: Row, seen: dict[str, int]) -> None:
    kinds = [_kind(candidate) for candidate in row.example.candidates]
    if len(kinds) < 2:
        raise ConfigError(f"a pair needs at least two candidates, found {len(kinds)}")
    if len(set(kinds)) > 1:
        raise ConfigError(f"the candidates are of unequal kind: {' and '.join(sorted(set(kinds)))}")
    check_id(row, seen)


def _kind(candidate: Content) -> str:
    kinds = sorted({"text" if isinstance(part, str) else part.kind for part in candidate})
    return " with ".join(kinds) or "empty"


def _pair_row(row: Row, one: Compared) -> dict[str, Any]:
    """In the conversational form of TRL: texts as they are, paths of pictures apart."""
    entry = row.entry
    candidates = entry["candidates"]
    media = {name: entry[name] for name in ("images", "videos") if entry.get(name)}
    return {
        "id": row.id,
        "prompt": [{"role": "user", "content": _said(entry["question"])}],
        "chosen": [{"role": "assistant", "content": _said(candidates[one.winner])}],
        "rejected": [{"role": "assistant", "content": _said(candidates[one.loser])}],
        **media,
        "scores": one.scores,
        "pair": [one.winner, one.loser],
    }


def _said(value: Any) -> Any:
    """A text or a molecule as it is; a list of parts as content blocks."""
    if isinstance(value, str):
        return value
    parts = [_plain(part) for part in (value if isinstance(value, list) else [value])]
    if all(isinstance(part, str) for part in parts):
        return "".join(parts)
    return [_block(part) for part in parts]


def _plain(part: Any) -> Any:
    """The text of a part that is one."""
    if isinstance(part, str):
        return part
    kind = next(name for name in ("text", "image", "video", "molecule") if isinstance(part.get(name), str))
    return part[kind] if kind in ("text", "molecule") else part


def _block(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = "image" if isinstance(part.get("image"), str) else "video"
    return {"type": kind, kind: part[kind]}


def _skipped_row(row: Row, one: Compared) -> dict[str, Any]:
    return {"id": row.id, "pair": [one.winner, one.loser], "why": one.why, "detail": one.detail}


# --------------------------------------------------------------------------------------------------------- journal


def _fingerprint(source: Path, judge: Judge, first: Example, which: Which, margin: float) -> str:
    """What must be equal for an unfinished run to go on: the rows, how the judge is asked, who it is."""
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    one = Example(first.question, first.candidates[: _asked(judge)], first.reference, first.rubric)
    asked = next(steps(judge.format, one))
    who = json.dumps(judge.engine.identity(), sort_keys=True, default=str)
    digest.update(repr((asked, judge.sampling, who, which, margin)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _asked(judge: Judge) -> int:
    return 1 if group_size(judge.format)[1] == 1 else 2


class _Journal:
    """The two files being written, and how far they are sound: `OUTPUT.progress`, replaced after every batch."""

    def __init__(self, output: Path, run: str) -> None:
        self.output, self._run = output, run
        self._finals = (output, output.with_suffix(".skipped.jsonl"))
        self._partials = tuple(path.with_name(path.name + ".partial") for path in self._finals)
        self._state = output.with_name(output.name + ".progress")
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> _Journal:
        state = self._read()
        for partial, final, size in zip(self._partials, self._finals, state["sizes"], strict=True):
            if self._state.exists() and not partial.exists() and final.exists():
                final.replace(partial)  # killed between renaming the one and the other
            with partial.open("ab") as file:
                file.truncate(size)
        self.counts.update(state["counts"])
        self._files = [partial.open("ab") for partial in self._partials]
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self._state.read_text())
        except FileNotFoundError:
            return {"sizes": [0, 0], "counts": {}}
        except ValueError:
            raise ConfigError(f"{self._state} is damaged; remove it to begin again") from None
        if state["run"] != self._run:
            raise ConfigError(
                f"{self._state} belongs to an unfinished run of other rows or settings:"
                " finish that one, remove the file to begin again, or give another output"
            )
        return state

    def add(self, row: dict[str, Any], why: str) -> None:
        self._files[bool(why)].write(_line(row))
        self.counts[why or "pairs"] += 1

    def commit(self, rows: int) -> None:
        """What was added is now safe from a kill and from a power cut."""
        self.counts["rows"] += rows
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        sizes = [file.tell() for file in self._files]
        _replaced(self._state, json.dumps({"run": self._run, "sizes": sizes, "counts": self.counts}))

    def finish(self, card: str) -> None:
        """The files under their names; what belonged to the run is removed last."""
        _replaced(self.output.with_suffix(".md"), card)
        for partial, final in zip(self._partials, self._finals, strict=True):
            partial.replace(final)
        self._state.unlink(missing_ok=True)


def _line(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can only hold escaped
        return json.dumps(row).encode() + b"\n"


def _replaced(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _card(source: Path, judge: Judge, which: Which, margin: float, counts: Counter[str]) -> str:
    skipped = sorted((why, count) for why, count in counts.items() if why not in ("rows", "pairs"))
    lines = [
        f"# Preference pairs of {source.name}",
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
