"""A trainer's rows as Examples: prompts and completions, plain or conversational, with their pictures and clips.

    prompt       a text, or chat messages whose content is a text or a list of text, image, video and molecule parts
    completion   a text, or the messages the policy added (more than one where it called tools)
    columns      what else the data set has: `image`, `images`, `video`, `videos`, and columns named by the user

Trainers hand over the same picture twice, in a column and inside the prompt; it is counted once. A lone user message is
the question as it stands; longer conversations become one text in which each turn stands, with its role, between lines
of backticks that no turn can contain, so that a turn cannot forge another one.

Wrong shapes raise here, before any model loads. A picture that cannot be used does not: it fails its row when judged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flexjudge_reward.errors import ConfigError, MediaError
from flexjudge_reward.media.base import Media
from flexjudge_reward.prompts.quoting import fence
from flexjudge_reward.rubric import Rubric, Scale, rubric_names
from flexjudge_reward.types import Content, Example

Kind = Literal["image", "video"]
KINDS: tuple[Kind, ...] = ("image", "video")
_KINDS = ("text", "image", "video", "molecule")
_Turn = tuple[str, list[Any]]
"""A role and its parts: texts, media, and a `_Hole` for each picture or clip that stands in a column."""


@dataclass(frozen=True)
class Columns:
    """Which columns of the data set the judge sees, and where media files may be."""

    question: str | None = None
    """A column with the question's text, to be shown instead of the prompt's; its media stay."""
    reference: str | None = None
    """A column with a reference answer: a text, a number, or None for a row without one."""
    rubric: str | None = None
    """A column with a row's own rubric: criteria in words, a built-in name, a Rubric, or None."""
    media_root: Path | None = None


def examples(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Any],
    names: Columns,
    scale: Callable[[], Scale],
) -> list[Example]:
    """One example with one candidate per row.

    Args:
        scale: gives the scale of a rubric that a column has as words only; asked for only then.

    Raises:
        ConfigError: no rows, unequal lengths, a missing column, or a row that is not of a known form; it names the row.
    """
    _check_lengths(prompts, completions, columns, names)
    reader = _Reader(names)
    found = []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        cells = {name: values[row] for name, values in columns.items() if name in _used(names)}
        try:
            found.append(reader.example(prompt, completion, cells, scale))
        except ConfigError as error:
            raise ConfigError(f"row {row}: {error}") from error
    return found


def text_of(example: Example) -> str:
    """The one candidate of a row as text, which is what travels between ranks.

    Raises:
        ConfigError: it holds a picture, a clip or a molecule.
    """
    (candidate,) = example.candidates
    if any(isinstance(part, Media) for part in candidate):
        raise ConfigError("a group format compares texts; a completion with media parts needs format='score'")
    return "".join(str(part) for part in candidate)


def group_key(example: Example) -> str:
    """What the rows of one group share, as a hash: question, reference and rubric, pictures included."""
    parts: list[list[str]] = []
    for part in (*example.question, "\x00", *(example.reference or ())):
        parts.append(["text", part] if isinstance(part, str) else ["media", _identity(part)])
    return hashlib.sha256(json.dumps([parts, repr(example.rubric)]).encode()).hexdigest()


def _identity(media: Media) -> str:
    try:
        return media.digest
    except MediaError as error:
        return f"unusable {error}"


def _used(names: Columns) -> set[str]:
    named = {name for name in (names.question, names.reference, names.rubric) if name is not None}
    return named | {"image", "images", "video", "videos"}


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
    for name in _used(names) & set(columns):
        if len(columns[name]) != len(completions):
            raise ConfigError(f"column {name!r} has {len(columns[name])} entries for {len(completions)} completions")


class _Reader:
    """Reads the rows of one call, opening each picture object once however many rows hold it."""

    def __init__(self, names: Columns) -> None:
        self.names = names
        self.roots = () if names.media_root is None else (names.media_root,)
        self.media: dict[tuple[Kind, int], tuple[Any, Media]] = {}  # keeps the source, so that its id stays its own

    def example(self, prompt: Any, completion: Any, cells: Mapping[str, Any], scale: Callable[[], Scale]) -> Example:
        """One row."""
        names = self.names
        question = self._question(prompt, cells)
        if names.question is not None:
            media = [part for part in question if isinstance(part, Media)]
            question = (*media, _plain(cells[names.question], f"column {names.question!r}"))
        reference = None if names.reference is None else cells[names.reference]
        return Example(
            question,
            [self._completion(completion)],
            reference=None if reference is None else _plain(reference, f"column {names.reference!r}"),
            rubric=None if names.rubric is None else _rubric(cells[names.rubric], names.rubric, scale),
        )

    def _question(self, prompt: Any, cells: Mapping[str, Any]) -> Content:
        turns: list[_Turn] = [("user", [prompt])] if isinstance(prompt, str) else self._turns(prompt, "prompt")
        for kind in KINDS:
            self._place(turns, kind, self._column(kind, cells))
        return _joined(turns, alone="user")

    def _completion(self, completion: Any) -> Content:
        if isinstance(completion, str):
            return (completion,)
        turns = self._turns(completion, "completion")
        for kind in KINDS:
            self._place(turns, kind, [])
        return _joined(turns, alone="assistant") if turns else ("",)

    def _turns(self, messages: Any, what: str) -> list[_Turn]:
        known = f"a {what} must be a text or a list of messages"
        if isinstance(messages, bytes) or not isinstance(messages, Sequence):
            raise ConfigError(f"{known}, found {type(messages).__name__}")
        turns: list[_Turn] = []
        for message in messages:
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise ConfigError(f"{known} with 'role' and 'content', found {_shown(message)} in the list")
            turns.append((message["role"], self._parts(message)))
        return turns

    def _parts(self, message: Mapping[str, Any]) -> list[Any]:
        content = message.get("content")
        parts = [content] if isinstance(content, str) else [] if content is None else content
        if not isinstance(parts, Sequence):
            raise ConfigError(f"a message's content must be a text or a list of parts, found {type(parts).__name__}")
        if message["role"] == "tool" and not all(map(_is_part, parts)):
            parts = [json.dumps(content, ensure_ascii=False, default=str)]  # what a tool returned, as TRL hands it on
        found = [part if isinstance(part, str) else self._part(part) for part in parts]
        if message.get("tool_calls"):
            found.append(json.dumps(message["tool_calls"], ensure_ascii=False, default=str))
        return found

    def _part(self, part: Any) -> Any:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            return part["text"]
        if kind == "molecule" and isinstance(part.get("molecule"), str):
            return Media.molecule(part["molecule"])
        if kind in ("image", "video"):
            sources = (part.get(name) for name in (kind, "path", "url"))
            source = next((source for source in sources if source is not None), None)
            return _Hole(kind) if source is None else self._media(kind, source)
        raise ConfigError(f"a part of a message must be text, image, video or molecule, found {_shown(part)}")

    def _column(self, kind: Kind, cells: Mapping[str, Any]) -> list[Media]:
        several, one = cells.get(f"{kind}s"), cells.get(kind)
        if several is None and one is not None:
            # A list under "image" is several pictures; a list under "video" is the frames of one clip.
            several = one if kind == "image" and isinstance(one, list | tuple) else [one]
        return [self._media(kind, source) for source in (several if several is not None else ())]

    def _media(self, kind: Kind, source: Any) -> Media:
        if isinstance(source, Media):
            return source
        key = (kind, id(source))
        if key not in self.media:
            make = Media.image if kind == "image" else Media.video
            self.media[key] = (source, make(source, roots=self.roots))
        return self.media[key][1]

    def _place(self, turns: list[_Turn], kind: Kind, column: list[Media]) -> None:
        """Puts the media of a column into the holes, or before the first user turn, or nowhere if they are there."""
        holes = [(parts, i) for _, parts in turns for i, part in enumerate(parts) if part == _Hole(kind)]
        there = any(isinstance(part, Media) and part.kind == kind for _, parts in turns for part in parts)
        if holes:
            if len(holes) != len(column):
                raise ConfigError(
                    f"the prompt has {len(holes)} {kind} places but the columns '{kind}' and '{kind}s' have"
                    f" {len(column)} for it; give one {kind} for each place"
                )
            for (parts, place), media in zip(holes, column, strict=True):
                parts[place] = media
        elif column and not there:
            first = next((parts for role, parts in turns if role == "user"), turns[-1][1] if turns else [])
            first[:0] = column


@dataclass(frozen=True)
class _Hole:
    """A place in a message where a picture or clip of a column belongs."""

    kind: Kind


def _is_part(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Mapping) and value.get("type") in _KINDS)


def _joined(turns: Sequence[_Turn], alone: str) -> Content:
    """The parts of a lone turn of the role `alone` as they are; else all turns, fenced and with their roles."""
    if len(turns) == 1 and turns[0][0] == alone:
        return tuple(turns[0][1]) or ("",)
    # `fence` chooses a line of backticks that occurs in none of the texts; only its opening line is used.
    line = str(fence(tuple(part for _, parts in turns for part in parts))[0]).rstrip("\n")
    content: list[str | Media] = []
    for role, parts in turns:
        content += [f"{line}{' '.join(role.split())}\n", *parts, f"\n{line}\n"]
    return tuple(content)


def _plain(value: Any, what: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"{what} must hold texts or numbers, found {_shown(value)}")
    return str(value)


def _rubric(value: Any, column: str, scale: Callable[[], Scale]) -> Rubric | None:
    if value is None or isinstance(value, Rubric):
        return value
    if not isinstance(value, str):
        raise ConfigError(f"column {column!r} must hold criteria in words or rubrics, found {_shown(value)}")
    return Rubric.load(value) if value in rubric_names() else Rubric(value, scale())


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
