"""What one rank judges together, and what becomes of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flexjudge_reward.data.messages import Columns
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.judge.config import RewardConfig
from flexjudge_reward.judge.groups import GroupResult
from flexjudge_reward.judge.rewards import Outcome
from flexjudge_reward.media.base import Media
from flexjudge_reward.prompts.quoting import encodable
from flexjudge_reward.trainers.gather import Deadline, RowId, RowResult
from flexjudge_reward.types import Example, Failure, Unfinished


@dataclass(frozen=True)
class Scored:
    """What became of some rows, in their order."""

    rewards: list[float | None]
    """In [0, 1]; None where there is no reward (`judge/rewards.py`)."""
    outcomes: list[Outcome]
    """Each row's score in [0, 1], or why it has none."""
    counted: list[Outcome]
    """The same as the rewards are made of: moved by the setting `shrink`."""
    reasoning: list[str]
    """The judge's, after the failure if there is one."""
    metrics: dict[str, float]
    """Over all ranks."""

    def part(self, rows: slice) -> Scored:
        """The same for some of the rows."""
        return Scored(self.rewards[rows], self.outcomes[rows], self.counted[rows], self.reasoning[rows], self.metrics)


@dataclass(frozen=True)
class Task:
    """What is judged together."""

    key: str
    """Of the group, for the record."""
    rows: tuple[RowId, ...]
    """One per candidate."""
    example: Example
    failure: Failure | None = None
    """Why it is not judged."""


def read_columns(config: RewardConfig) -> Columns:
    """The columns of a trainer's rows that the judge sees."""
    root = None if config.media_root is None else Path(config.media_root)
    named = (config.question_column, config.reference_column, config.rubric_column)
    ignored = frozenset(name.strip() for name in (config.ignored_columns or "").split(","))
    return Columns(*named, root, ignored, config.completion)


def key_of(row: Example) -> str:
    """The group of a row: the same for equal prompts on all ranks. Images are not decoded for it, other media are."""
    return row.with_candidates([]).digest(by_source=True)


def keys_of(rows: Sequence[Example], deadline: Deadline) -> tuple[str, ...] | None:
    """The group of each row. None, and no more media are read, once the deadline has passed."""
    keys = []
    for row in rows:
        if not deadline.left:
            return None
        keys.append(key_of(row))
    return tuple(keys)


def keys_of_texts(rows: Sequence[Example]) -> tuple[str, ...]:
    """The group of each row whose media were not read in time."""
    shown = [[part if isinstance(part, str) else part.kind for part in row.question] for row in rows]
    return tuple(Example(["unread", *parts], []).digest() for parts in shown)


def too_late(what: str, deadline: Deadline) -> Failure:
    """The failure of what was not done in time."""
    return Failure("timeout", f"{what} took longer than the deadline of {deadline.seconds:g} s")


def text_of(row: Example) -> str:
    """The one candidate of a row as text, which is what travels between ranks. Raises ConfigError for media."""
    (candidate,) = row.candidates
    if any(isinstance(part, Media) for part in candidate):
        raise ConfigError("a group format compares texts; a completion with media parts needs format='pointwise'")
    unfinished = next((part for part in candidate if isinstance(part, Unfinished)), None)
    return unfinished if unfinished is not None else "".join(str(part) for part in candidate)


def row_result(result: GroupResult, index: int, example: Example) -> RowResult:
    """What becomes of one candidate of a judged group."""
    outcome, verdict = result.outcomes[index], result.verdict_of(index)
    failure = f"[{outcome.kind}: {outcome.detail}] " if isinstance(outcome, Failure) else ""
    length = sum(len(part) for part in example.candidates[index] if isinstance(part, str))
    # A trainer writes it as UTF-8 and parquet, which half a surrogate pair of a server's JSON would end.
    return RowResult(outcome, encodable(failure + verdict.reasoning), length, verdict.cached, result.spread(index))
