"""The pairs of a row's candidates: who wins, which are kept, and how they are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

from flexjudge_reward.data.cells import MEDIA_COLUMNS, Clip
from flexjudge_reward.data.content import apart, is_conversation, is_tool_result, kind_and_source
from flexjudge_reward.data.rows import Row
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.base import Format
from flexjudge_reward.formats.groups import GroupFormat, Tournament
from flexjudge_reward.formats.swap import PositionSwap
from flexjudge_reward.judge.groups import GroupResult
from flexjudge_reward.media.base import KINDS, Media
from flexjudge_reward.types import NOT_SHOWN, Content, Example, Failure, FailureKind, Verdict

Which = Literal["best", "all"]
SkipReason = Literal["tie", "order_inconsistent", "below_margin", "identical", "not_selected", "row"] | FailureKind


@dataclass(frozen=True)
class Pair:
    """Two candidates of a row, compared."""

    winner: int
    loser: int
    """Indices into the row's candidates; of a pair without a winner, in the order of the row."""
    scores: tuple[float, float] | None  # of winner and loser, on the format's scale
    why: SkipReason | None = None  # None for a win; else why the pair is skipped
    detail: str = ""
    reasoning: tuple[str, ...] = ()
    """The judge's, of winner and loser; of two that were compared, one text for both."""

    @property
    def gap(self) -> float:
        """How far apart the scores are."""
        return self.scores[0] - self.scores[1] if self.scores else 0.0

    def skipped(self, why: SkipReason) -> Pair:
        """The same pair, skipped for this reason."""
        detail = f"{self.scores[0]:g} against {self.scores[1]:g}" if self.scores else ""
        return replace(self, why=why, detail=detail)


def pair_format(format: Format) -> Format:
    """`format` for all pairs of a row, or those of its schedule, in both orders; pointwise formats stay as they are.

    Raises ConfigError if it cannot judge two candidates.
    """
    if format.max_candidates == 1:
        return format
    inner = format.inner if isinstance(format, GroupFormat) else format
    if not inner.min_candidates <= 2 <= inner.max_candidates:
        low, high = inner.min_candidates, inner.max_candidates
        raise ConfigError(f"pairs need a format for one or two candidates, this one judges {low:g} to {high:g}")
    if not any(isinstance(layer, PositionSwap) for layer in inner.layers()):
        inner = PositionSwap(inner)
    if isinstance(format, Tournament):
        return Tournament(inner, format.schedule, format.budget, format.score, format.seed)
    return Tournament(inner)


def pairs_of(example: Example, result: GroupResult) -> list[Pair]:
    """Every two candidates that were compared, from their own scores or side by side."""
    # A candidate that cannot be shown has no content, and equals no other.
    contents = [
        index if isinstance(outcome, Failure) and outcome.kind in NOT_SHOWN else example.candidates[index]
        for index, outcome in enumerate(result.outcomes)
    ]
    first = [contents.index(content) for content in contents]  # identical candidates are compared once
    compared = {}
    for one in result.verdicts[0].comparisons:
        scores = one.verdict.scores
        compared[one.first, one.second] = one.verdict
        compared[one.second, one.first] = replace(one.verdict, scores=None if scores is None else scores[::-1])
    pairs = []
    for i, j in combinations(range(len(first)), 2):
        if first[i] == first[j]:
            pairs.append(Pair(i, j, None, "identical"))
        elif together := compared.get((first[i], first[j])):
            pairs.append(replace(_pair(i, j, together), reasoning=(together.reasoning,)))
        elif apart := _apart(result, i, j):
            pair = _pair(i, j, apart)
            sides = () if pair.why else (pair.winner, pair.loser)
            pairs.append(replace(pair, reasoning=tuple(result.verdicts[side].reasoning for side in sides)))
    return pairs


def _apart(result: GroupResult, i: int, j: int) -> Verdict | None:
    """The verdict on two candidates that were not judged side by side; None if their schedule left them out."""
    failures = [one for one in (result.outcomes[i], result.outcomes[j]) if isinstance(one, Failure)]
    group = result.verdicts[0] if len(result.verdicts) == 1 else None
    own = [failure for failure in failures if group is None or failure is not group.failure]
    if own:
        return Verdict.failed(own[0])
    if group is not None:
        return Verdict.failed(failures[0]) if failures and not group.comparisons else None
    return Verdict((*(result.verdicts[i].scores or ()), *(result.verdicts[j].scores or ())))


def _pair(i: int, j: int, verdict: Verdict) -> Pair:
    if verdict.failure is not None:
        return Pair(i, j, None, verdict.failure.kind, verdict.failure.detail)
    one, other = verdict.scores or ()
    if one == other:
        agreed = verdict.counters.get("swaps_agreed") == verdict.counters.get("swaps")
        return Pair(i, j, (one, other), "tie" if agreed else "order_inconsistent")
    return Pair(i, j, (one, other)) if one > other else Pair(j, i, (other, one))


def select(pairs: Sequence[Pair], which: Which, margin: float) -> list[Pair]:
    """The same pairs with a reason for each that is not kept; the first of several equally far apart is kept."""
    kept = [pair if pair.why or pair.gap >= margin else pair.skipped("below_margin") for pair in pairs]
    wins = [pair for pair in kept if not pair.why]
    if which == "all" or not wins:
        return kept
    best = max(wins, key=lambda pair: pair.gap)
    return [pair if pair.why or pair is best else pair.skipped("not_selected") for pair in kept]


@dataclass(frozen=True)
class PairWriter:
    """Makes the rows of a file of pairs, in which question and answers are as the input gives them."""

    store: Callable[[Media | Clip], str]  # keeps an image or a clip that the input itself held, and returns its path
    read: Callable[[str, Any], Media] | None = None
    """Reads a media item of this kind that the input has by its path, so that it is stored, too; None leaves paths."""

    def row(self, row: Row, pair: Pair) -> dict[str, Any]:
        """The row of a pair that is kept or skipped."""
        numbers = [pair.winner, pair.loser]
        if pair.why:
            return {"id": row.id, "pair": numbers, "why": pair.why, "detail": pair.detail}
        question, answers = row.entry["question"], [row.entry["candidates"][number] for number in numbers]
        if (form := form_of(row)) != "messages":
            prompt = self._content(question) if form == "images of a prompt" else self._messages(question, "user")
            chosen, rejected = (self._content(answer)[0]["image"] for answer in answers)
        else:
            prompt = self._messages(question, "user")
            chosen, rejected = (self._messages(answer, "assistant") for answer in answers)
        said = {"id": row.id, "prompt": prompt, "chosen": chosen, "rejected": rejected}
        columns = [f"{kind}s" for kind in MEDIA_COLUMNS if row.entry.get(f"{kind}s")]
        media = {column: [self._path(column[:-1], one) for one in row.entry[column]] for column in columns}
        return {**said, **media, "scores": pair.scores, "pair": numbers, "reasoning": pair.reasoning}

    def _messages(self, value: Any, role: str) -> list[dict[str, Any]]:
        messages = value if is_conversation(value) else [{"role": role, "content": value}]
        return [
            message if is_tool_result(message) else {**message, "content": self._content(message.get("content"))}
            for message in messages
        ]

    def _content(self, value: Any) -> Any:
        """Texts as one text; a list of parts with media as content blocks."""
        parts = [_named(part) for part in _parts(value)]
        if all(kind == "text" for kind, _ in parts):
            return "".join(apart([part for _, part in parts]))
        return [
            {"type": kind, kind: part if kind == "text" else self._path(kind, part)}
            if part is not None
            else {"type": kind}
            for kind, part in parts
        ]

    def _path(self, kind: str, value: Any) -> Any:
        """A path or a data URI as it is, unless it is read; of what the input held, the path under which it is kept."""
        if isinstance(value, list):  # the frames of a video
            return [self._path("image", frame) for frame in value]
        if isinstance(value, bytes | Mapping):
            value = Media.image(value)
        elif self.read is not None and isinstance(value, str):
            value = self.read(kind, value)
        return self.store(value) if isinstance(value, Media | Clip) else value


def form_of(row: Row) -> str:
    """What the pairs of a row are: messages; or images, of a prompt that is a text or of a conversation."""
    if not all(map(_is_image, row.example.candidates)):
        return "messages"
    question = row.entry["question"]
    alone = not is_conversation(question) and all(kind == "text" for kind, _ in map(_named, _parts(question)))
    return "images of a prompt" if alone else "images of a conversation"


def _is_image(candidate: Content) -> bool:
    return len(candidate) == 1 and isinstance(candidate[0], Media) and candidate[0].kind == "image"


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _named(part: Any) -> tuple[str, Any]:
    """The kind of a part, and its text, path or image; what a policy writes as text, such as a molecule, is a text."""
    if isinstance(part, str | int | float) or part is None:
        return "text", "" if part is None else str(part)
    if isinstance(part, Media | Clip):
        return (part.media if isinstance(part, Clip) else part).kind, part
    kind, source = kind_and_source(part)
    if kind in KINDS and KINDS[kind].channel:
        return kind, source
    return "text", source if isinstance(source, str) else json.dumps(source, ensure_ascii=False)
