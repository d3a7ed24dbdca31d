"""A trainer's rows as Examples: prompts and completions, plain or conversational, with their media.

    prompt       a text, also in a chat template (`templated.py`), a list of parts, or chat messages whose content is
                 one of these (`content.py`)
    completion   a text, or the messages the policy added (more than one where it called tools); without its reasoning,
                 unless the setting `completion` says "all" (`completion.py`)
    columns      `image`, `images`, `video`, `videos`, `audio`, `audios`, and the columns that the user names

Trainers pass the same image twice, in a column and inside the prompt; it is counted once. Wrong shapes raise here,
before any model loads, and so does a column with media that the judge would not see. An image that cannot be used does
not: it fails its row when judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexjudge_reward.data.cells import MEDIA_COLUMNS, columns_of, held_media, plain_text
from flexjudge_reward.data.completion import Completion, open_thought
from flexjudge_reward.data.content import (
    completion_of,
    content_of,
    is_conversation,
    options_of,
    reference_of,
    rubric,
)
from flexjudge_reward.data.templated import messages_of
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.media.base import Media
from flexjudge_reward.media.source import same_as
from flexjudge_reward.types import Example


@dataclass(frozen=True)
class Columns:
    """Which columns of the data set the judge sees, and where media files may be."""

    question: str | None = None  # a column whose text is shown instead of the prompt's; the prompt's media stay
    reference: str | None = None  # a column with a reference answer: texts or numbers, or None for a row without one
    rubric: str | None = None  # a column with a row's own rubric (`content.rubric`)
    media_root: Path | None = None
    ignored: frozenset[str] = frozenset()  # columns that may hold media which the judge does not see
    completion: Completion = "answer"

    @property
    def used(self) -> set[str]:
        """The columns that are read."""
        named = {name for name in (self.question, self.reference, self.rubric) if name is not None}
        return named | {name for kind in MEDIA_COLUMNS for name in (kind, f"{kind}s")}


def examples(
    prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any], names: Columns
) -> list[Example]:
    """One example with one candidate per row. Raises ConfigError, which names the row or the column that is wrong."""
    _check_lengths(prompts, completions, columns, names)
    _check_seen(columns, names)
    reader, used = _Reader(names), names.used
    read = {name: values for name, values in columns.items() if name in used}
    rows = []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        cells = {name: values[row] for name, values in read.items()}
        try:
            rows.append(reader.example(prompt, completion, cells))
        except ConfigError as error:
            raise ConfigError(f"row {row}: {error}") from error
    return rows


def _check_lengths(
    prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any], names: Columns
) -> None:
    for what, values in (("prompts", prompts), ("completions", completions)):
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ConfigError(f"{what} must be a list with one entry per row, found {type(values).__name__}")
    if len(prompts) != len(completions):
        raise ConfigError(f"{len(prompts)} prompts but {len(completions)} completions; give one prompt per completion")
    if not completions:
        raise ConfigError("nothing to judge: the batch is empty")
    for name in (names.question, names.reference, names.rubric):
        if name is not None and name not in columns:
            known = ", ".join(sorted(key for key, value in columns.items() if isinstance(value, list))) or "none"
            raise ConfigError(f"the data set has no column {name!r}; the columns that reached the reward are {known}")
    for name in names.used & set(columns):
        if len(columns[name]) != len(completions):
            raise ConfigError(f"column {name!r} has {len(columns[name])} entries for {len(completions)} completions")


def _check_seen(columns: Mapping[str, Any], names: Columns) -> None:
    """Raises ConfigError for media in a column that is not read: a score would be of a question without them."""
    for name in sorted(columns.keys() - names.used - names.ignored):
        values = columns[name]
        kind = next(filter(None, map(held_media, values)), "") if isinstance(values, list) else ""
        if kind:
            raise ConfigError(
                f"column {name!r} holds {kind}s, which the judge would not see: rename it to {kind + 's'!r}, or set"
                f" ignored_columns={name!r} if they are not for the judge"
            )


class _Reader:
    """Reads the rows of one call. Equal sources are one `Media`, however many rows hold them, and are read once.

    Trainers repeat a prompt for each completion, and some, such as TRL, give each row an image object of its own.
    """

    def __init__(self, names: Columns) -> None:
        self.names = names
        self.roots = () if names.media_root is None else (names.media_root,)
        self.media: dict[tuple[str, Any, str], tuple[Any, Media]] = {}  # with the source, so that its id stays its own

    def example(self, prompt: Any, completion: Any, cells: Mapping[str, Any]) -> Example:
        """One row."""
        names = self.names
        _check_form(prompt, "prompt")
        _check_form(completion, "completion")
        media = [(kind, [self._make(kind, source, {}) for source in columns_of(kind, cells)]) for kind in MEDIA_COLUMNS]
        asked = messages_of(prompt) if isinstance(prompt, str) else prompt
        question = content_of(asked, "prompt", self._make, media, repeated=True)
        if names.question is not None:
            shown = [part for part in question if isinstance(part, Media)]
            question = (*shown, plain_text(cells[names.question], f"column {names.question!r}"))
        answer = completion_of(completion, "completion", self._make, names.completion, open_thought(prompt))
        return Example(
            question,
            [answer],
            reference=None if names.reference is None else reference_of(cells[names.reference], self._make),
            rubric=None if names.rubric is None else rubric(cells[names.rubric]),
        )

    def _make(self, kind: str, source: Any, part: Mapping[str, Any]) -> Media:
        if isinstance(source, Media):
            return source
        options = options_of(kind, part)
        key = (kind, same_as(source), repr(options))
        if key not in self.media:
            self.media[key] = (source, Media.of(kind, source, self.roots, **options))
        return self.media[key][1]


def _check_form(value: Any, what: str) -> None:
    known = f"a {what} must be a text or a list of messages"
    if isinstance(value, bytes) or not isinstance(value, Sequence):
        raise ConfigError(f"{known}, found {type(value).__name__}")
    parts = not isinstance(value, str) and not is_conversation(value) and value
    # Numbers are token ids that were not decoded; bare texts in a list may be rows that were not taken apart.
    if parts and not (what == "prompt" and any(isinstance(part, Mapping | Media) for part in parts)):
        raise ConfigError(f"{known} with 'role' and 'content', found {value[0]!r:.80} in the list")
