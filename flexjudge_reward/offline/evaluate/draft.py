"""A checklist drafted from labelled rows: the judge proposes statements, and those that tell good from bad are kept.

    found = draft("labelled.jsonl", Judge.load(model=..., format="checklist"), Path("rubric.toml"))

One half of the rows (`proposals.py: halves`) is for this:

    1. a few rows at a time, the proposer sees a best and a worst answer and writes statements
    2. the judge answers each statement of each of these answers, in a call of its own and without a label
    3. a statement is kept where the difference of its yeses, better less worse, is at least `_LEAST` and three standard
       errors: as "should", or, where worse answers meet it more often, as "must not"; that difference is its weight
    4. of statements with the same answers only one is kept, and the best `most` of all

The checklist as a whole is then judged on the other half: does its score order the two answers as the label does?

It takes statements x rows calls of the judge for 2. All replies are in the cache, so a run that was ended continues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flexjudge_reward.errors import ConfigError, EngineError
from flexjudge_reward.formats.checklist import Checklist
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.offline.evaluate.doctor import labelled_rows
from flexjudge_reward.offline.evaluate.judging import check_rows, judged, plain_judge
from flexjudge_reward.offline.evaluate.metrics import Estimate
from flexjudge_reward.offline.evaluate.proposals import (
    check_new,
    check_rubrics,
    halves,
    plain,
    preferences,
    replies,
    with_rubric,
    write_rubric,
)
from flexjudge_reward.offline.evaluate.rows import Labelled
from flexjudge_reward.offline.evaluate.settings import clustered, clusters, compared, settings_of
from flexjudge_reward.offline.output import owned
from flexjudge_reward.rubric import Criterion, Rubric

FEWEST = 20  # preferences of each half
_REQUESTS, _STATEMENTS = 8, 24  # most of each
_LEAST, _ERRORS = 0.1, 3.0
_SAME = 0.95  # share of equal answers from which two statements are one
_UNREAD = 0.2  # share of rows without an answer above which a statement is dropped
_LONGEST = 200  # characters of a statement
_BATCH = 256  # rows judged at once, and that a killed run judges again
_TASK = "Answers to questions such as these are judged."
Met = tuple[float, float] | None  # 1 or 0 for the better and the worse answer; None where one has no answer


@dataclass(frozen=True)
class Kept:
    """A statement that tells the better answers from the worse."""

    criterion: Criterion
    better: float
    """The share of the better answers that meet it, on the rows that it was chosen by."""
    worse: float
    edge: Estimate
    """Their difference."""


@dataclass(frozen=True)
class Draft:
    """A checklist, and what it is worth on rows that it was not made from."""

    kept: tuple[Kept, ...]
    proposed: int
    rows: int
    """Preferences that it was made from."""
    agreement: Estimate | None
    """Of its order with the labels of the other rows; None where no statement was kept."""
    failed: float
    output: Path

    @property
    def useful(self) -> bool:
        """Whether it orders the other rows better than a coin, by its interval."""
        return self.agreement is not None and self.agreement.low > 0.5

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        kept = [
            {**one.criterion.entries, "better": one.better, "worse": one.worse, "edge": vars(one.edge)}
            for one in self.kept
        ]
        agreement = None if self.agreement is None else vars(self.agreement)
        own = {"proposed": self.proposed, "rows": self.rows, "failed": self.failed, "useful": self.useful}
        return {"kept": kept, "agreement": agreement, **own, "output": str(self.output) if self.kept else None}

    def __str__(self) -> str:
        lines = [f"{self.proposed} statements proposed, {len(self.kept)} kept, from {self.rows} preferences"]
        lines += [f"  {one.criterion.need}: {one.criterion.text} ({_note(one)})" for one in self.kept]
        if self.agreement is None:
            return "\n".join([*lines, "none tells the better answers from the worse: nothing was written"])
        lines += [_of_held_out(self.agreement, self.failed), f"edit {self.output}, and use it with --format checklist"]
        return "\n".join(lines)


def draft(
    source: str,
    judge: Judge,
    output: Path,
    *,
    proposer: Judge | None = None,
    task: str = "",
    most: int = 8,
    seed: int = 0,
    **options: Any,
) -> Draft:
    """Drafts a checklist from labelled rows with two or more candidates, and writes it as TOML.

    Args:
        judge: of the format "checklist"; its rubric is not used.
        proposer: writes the statements; by default the judge.
        task: what the answers are for, in words that the proposer sees.
        most: criteria, at least 1.
        options: how the source is read; see `data/rows.py`. A `limit` draws rows at random, by `seed`.

    Raises:
        ConfigError: another format, an output that exists, fewer than 40 preferences. Nothing was loaded.
        EngineError: the proposer or the judge gives no answers, or no statement that can be read.
    """
    plain_one, votes = plain_judge(judge)
    if not isinstance(plain_one.format.innermost(), Checklist):
        raise ConfigError(f"a checklist is drafted with format='checklist', found {judge.format.described()}")
    if most < 1:
        raise ConfigError(f"a checklist needs at least 1 criterion, found most={most}")
    check_new(output)
    check_rubrics(rows := preferences(labelled_rows(source, False, seed, **options)))
    check_rows(plain_one, rows)
    tuning, held = halves(rows, seed)
    if min(len(tuning), len(held)) < FEWEST:
        raise ConfigError(
            f"{source}: {len(rows)} rows have two candidates whose labels differ; drafting takes at least"
            f" {2 * FEWEST} with different questions, half to draft from and half to report"
        )
    with owned(output):
        texts = _statements(replies("criteria", proposer or judge, tuning, task.strip() or _TASK, _REQUESTS))
        if not texts:
            name = (proposer or judge).described()["model"]
            raise EngineError(f"{name or 'the model'} wrote no statement that can be used: give another --proposer")
        kept = chosen(texts, tuning, _answers(plain_one, votes, tuning, texts, seed), most, seed)
        return _reported(kept, len(texts), len(tuning), held, (plain_one, votes), output, seed)


def _statements(said: Sequence[str]) -> list[str]:
    """The different lines of all replies, in turn."""
    lists = [[line for line in map(_statement, text.splitlines()) if line] for text in said]
    in_turn = [own[place] for place in range(max(map(len, lists), default=0)) for own in lists if place < len(own)]
    first: dict[str, str] = {}
    for line in in_turn:
        first.setdefault(line.casefold(), line)
    return list(first.values())[:_STATEMENTS]


def _statement(line: str) -> str:
    """A line that is an item of a list; others, such as a heading, are no statements."""
    mark, _, text = line.strip().partition(" ")
    listed = mark in ("-", "*", "•") or mark.rstrip(".)").isdigit()
    return plain(text, _LONGEST).rstrip(".") if listed else ""


def _answers(judge: Judge, votes: int, rows: Sequence[Labelled], texts: Sequence[str], seed: int) -> list[list[Met]]:
    """Per statement and row what the judge says of the two answers."""
    asked = [one for text in texts for one in with_rubric(rows, Rubric(items=(Criterion(text, 1.0),)))]
    found: list[Met] = []
    for start in range(0, len(asked), _BATCH):
        for row in judged(judge, asked[start : start + _BATCH], votes, seed):
            read = [draw[0].whole for draw in row.draws]
            said = [one for one in read if one is not None]
            found.append((_share(said, 0), _share(said, 1)) if said else None)
    return [found[start : start + len(rows)] for start in range(0, len(found), len(rows))]


def _share(said: Sequence[tuple[float, ...]], place: int) -> float:
    return sum(one[place] for one in said) / len(said)


def chosen(
    texts: Sequence[str], rows: Sequence[Labelled], answers: Sequence[Sequence[Met]], most: int, seed: int
) -> list[Kept]:
    """The statements that reproduce the labels, the clearest first, with their needs and weights."""
    rated, together = [], clusters(rows)
    for text, own in zip(texts, answers, strict=True):
        read = [(member, met) for member, met in zip(together, own, strict=True) if met is not None]
        if len(read) < (1 - _UNREAD) * len(rows):
            continue
        edge = clustered([member for member, _ in read], [met[0] - met[1] for _, met in read], seed)
        error = (edge.high - edge.low) / (2 * 1.96)
        if abs(edge.value) >= max(_LEAST, _ERRORS * error):
            need = "should" if edge.value > 0 else "must not"
            criterion = Criterion(text, round(10 * abs(edge.value), 1), need)  # type: ignore[arg-type]
            better, worse = (sum(met[place] for _, met in read) / len(read) for place in (0, 1))
            rated.append((Kept(criterion, better, worse, edge), own))
    rated.sort(key=lambda one: -abs(one[0].edge.value))
    different: list[tuple[Kept, Sequence[Met]]] = []
    for one in rated:
        if not any(_same(one[1], other[1], one[0].criterion.need != other[0].criterion.need) for other in different):
            different.append(one)
    return [kept for kept, _ in different[:most]]


def _same(one: Sequence[Met], other: Sequence[Met], opposite: bool) -> bool:
    """Whether two statements say the same of nearly all answers; `opposite`: one says yes where the other says no."""
    both = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    equal = sum(a[place] == (1 - b[place] if opposite else b[place]) for a, b in both for place in (0, 1))
    return equal >= _SAME * 2 * len(both)


def _reported(
    kept: Sequence[Kept],
    proposed: int,
    rows: int,
    held: Sequence[Labelled],
    judge: tuple[Judge, int],
    output: Path,
    seed: int,
) -> Draft:
    """The checklist judged on the other half, and written."""
    nothing = Draft(tuple(kept), proposed, rows, None, 0.0, output)
    if not kept:
        return nothing
    if all(one.criterion.need == "must not" for one in kept):
        raise EngineError(
            "only faults tell the better answers from the worse, and a checklist needs something that an answer should"
            f" meet; found: {'; '.join(one.criterion.text for one in kept)}. Write one by hand, or try other rows"
        )
    rubric = Rubric(items=tuple(one.criterion for one in kept))
    asked = with_rubric(held, rubric)
    found = judged(judge[0], asked, judge[1], seed)
    worth = settings_of("checklist", 0, compared(asked, found), found, 2 * len(asked), 0.0, seed)[-1]
    said = _of_held_out(worth.agreement, worth.failed)
    head = [f"Drafted from {rows} preferences; {said}.", "Edit it: words, weights, and need: must, should, must not."]
    write_rubric(output, rubric, head, [_note(one) for one in kept])
    return replace(nothing, agreement=worth.agreement, failed=worth.failed)


def _note(one: Kept) -> str:
    return f"true of {one.better:.0%} of the better and {one.worse:.0%} of the worse answers"


def _of_held_out(agreement: Estimate, failed: float) -> str:
    better = "" if agreement.low > 0.5 else ", no better than a coin"
    return (
        f"on {agreement.rows} other preferences it agrees with {agreement.value:.1%}"
        f" [{agreement.low:.1%}, {agreement.high:.1%}] of the labels{better}; {failed:.1%} have no score"
    )
