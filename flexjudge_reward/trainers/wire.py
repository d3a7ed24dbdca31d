"""The JSON of a reward server's `/judge`: rows to it, scores and failures from it. Pure; both ends use it.

    {"groups": [{"question": CONTENT, "candidates": [CONTENT], "reference"?, "rubric"?, "completion"?, "group"?}]}
    {"groups": [{"scores": [NUMBER | null], "rewards": [NUMBER | null], "failures": [null | FAILURE], "reasoning": []}]}

CONTENT is a text, a list of parts or chat messages (`data/content.py`); a part is a text, {"image": BASE64},
{"audio": BASE64}, {"video": BASE64 or a list of frames} or {"molecule": SMILES}. `completion` says "all" or "answer"
(`completion.py`).
`group` is {"id": text, "size": number}: the candidates are some of a group whose others come in other requests. A score
is the judge's, a reward what the server's policy makes of it (`judge/rewards.py`), FAILURE {"kind", "detail", "cause"}.

Promised: media come as bytes only. A path or an address is a ConfigError; nothing is opened or fetched.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from flexjudge_reward.data.completion import Completion, open_thought
from flexjudge_reward.data.content import completion_of, content_of, options_of, reference_of, rubric
from flexjudge_reward.errors import ConfigError, CostLimitReached, JudgementFailed, MediaError
from flexjudge_reward.judge.rewards import Outcome
from flexjudge_reward.media.base import KINDS, Media
from flexjudge_reward.rubric import Rubric
from flexjudge_reward.types import Cause, Content, Example, Failure, FailureKind, Unfinished

if TYPE_CHECKING:
    from flexjudge_reward.trainers.rendezvous import RowScore

STOPPED = {CostLimitReached: 402, JudgementFailed: 409}
"""The status of an answer after the server's session has stopped; to ask again is of no use."""
_ENTRIES = {"question", "candidates", "reference", "rubric", "completion", "group"}


def rows_of(entry: Any, completion: Completion) -> tuple[list[Example], str | None, int]:
    """One group of a request: its rows, the id of a group that other requests share or None, and the group's size.

    Args:
        completion: which part of a candidate is judged, where the group does not say it.

    Raises ConfigError: another form, or media that are no bytes.
    """
    if not isinstance(entry, Mapping) or not {"question", "candidates"} <= entry.keys() <= _ENTRIES:
        raise ConfigError(f"a group is an object with question, candidates and maybe {_optional()}")
    candidates = entry["candidates"]
    if not isinstance(candidates, list) or not candidates:
        raise ConfigError("'candidates' must be a list with at least one candidate")
    completion = entry.get("completion") or completion
    if completion not in get_args(Completion):
        raise ConfigError(f"'completion' must be one of {', '.join(get_args(Completion))}")
    question = content_of(entry["question"], "question", media_of)
    opened = open_thought(entry["question"])
    shared = reference_of(entry.get("reference"), media_of), rubric(entry.get("rubric"))
    rows = [Example(question, [_candidate(one, completion, opened)], *shared) for one in candidates]
    return rows, *_group(entry.get("group"), len(rows))


def body_of(raw: bytes | bytearray) -> Mapping[str, Any]:
    """The body of a request. Raises ConfigError."""
    try:
        body = json.loads(raw, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ConfigError("the body is not JSON") from None
    if not isinstance(body, Mapping):
        raise ConfigError("the body is not a JSON object")
    return body


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def group_json(example: Example) -> dict[str, Any]:
    """A whole group for a request. Media go as PNG and WAV, so that the server sees and hears the same.

    Raises ConfigError: its rubric has a check, which is code, or words that its criteria do not say.
    """
    given: dict[str, Any] = {
        "question": _parts(example.question),
        "candidates": [_parts(candidate) for candidate in example.candidates],
        "completion": "all",  # what is not judged of a completion is cut off here
    }
    if example.reference is not None:
        given["reference"] = _parts(example.reference)
    if example.rubric is not None:
        given["rubric"] = _rubric(example.rubric)
    return given


def scores_json(rows: Sequence[RowScore]) -> dict[str, Any]:
    """The scores of a group for an answer."""
    failures = [row.outcome if isinstance(row.outcome, Failure) else None for row in rows]
    return {
        "scores": [None if isinstance(row.outcome, Failure) else row.outcome for row in rows],
        "rewards": [row.reward for row in rows],
        "failures": [one and {"kind": one.kind, "detail": one.detail, "cause": one.cause} for one in failures],
        "reasoning": [row.reasoning for row in rows],
    }


def outcomes_of(answer: Any, count: int) -> list[tuple[Outcome, str]]:
    """The outcome and the reasoning of each row of an answer. Raises ValueError if it has another form."""
    columns = [answer[name] for name in ("scores", "failures", "reasoning")]
    if any(not isinstance(column, list) or len(column) != count for column in columns):
        raise ValueError(f"the answer has not {count} scores, failures and reasonings")
    return [(_outcome(score, failure), str(text)) for score, failure, text in zip(*columns, strict=True)]


def media_of(kind: str, source: Any, part: Mapping[str, Any]) -> Media:
    """A media item of a request. Raises ConfigError: no bytes."""
    options = options_of(kind, part)
    if not KINDS[kind].is_file:
        if not isinstance(source, str):
            raise ConfigError(f"a {kind} is given as a text, found {type(source).__name__}")
        return Media.of(kind, source, **options)
    if kind == "video" and isinstance(source, list):
        return Media.of(kind, [_bytes(kind, frame) for frame in source], **options)
    return Media.of(kind, _bytes(kind, source), **options)


def _bytes(kind: str, source: Any) -> bytes:
    text = source.partition(";base64,")[2] if isinstance(source, str) and source[:5].lower() == "data:" else source
    try:
        if not isinstance(text, str):
            raise ValueError
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        how = "never as a path or an address"
        raise ConfigError(f"the bytes of a {kind} are sent in base64, {how}; found {source!r:.60}") from None


def _candidate(value: Any, completion: Completion, opened: str) -> Content:
    match value:
        case {"unfinished": str(text)}:
            return (Unfinished(text),)
        case Mapping():
            value = [value]
    return completion_of(value, "candidate", media_of, completion, opened)


def _group(value: Any, rows: int) -> tuple[str | None, int]:
    if value is None:
        return None, rows
    match value:
        case {"id": str(name), "size": int(size), **rest} if not rest and name and rows <= size <= 1024:
            return name, size
    raise ConfigError(
        f"'group' is {{'id': text, 'size': number}} with a size from {rows}, its candidates here, to 1024"
    )


def _parts(content: Content) -> Any:
    if content and isinstance(content[0], Unfinished):
        return {"unfinished": str(content[0])}
    return [shown for part in content for shown in ([part] if isinstance(part, str) else _media(part))]


def _media(media: Media) -> list[Any]:
    """A media item as parts; one that cannot be read is sent without bytes, so that its row fails there."""
    try:
        shown = media.as_judge_input()
        return [one if isinstance(one, str) else _encoded(one) for one in shown]
    except MediaError:
        return [{media.kind if KINDS[media.kind].is_file else "image": ""}]


def _encoded(media: Media) -> dict[str, Any]:
    data = media.data_uri(image_format="png").partition("base64,")[2]
    return {media.kind: data.split(","), "fps": media.fps} if media.kind == "video" else {media.kind: data}


def _rubric(own: Rubric) -> Any:
    if any(item.check for item in own.items) or (own.items and own.criteria != Rubric(items=own.items).criteria):
        what = "a row's rubric with a check, or with words beside its criteria, cannot be sent to a reward server"
        raise ConfigError(f"{what}: set it there, or leave out the check and the words")
    return own.cell


def _outcome(score: Any, failure: Any) -> Outcome:
    match failure:
        case None if isinstance(score, int | float) and math.isfinite(score) and 0 <= score <= 1:
            return float(score)
        case {"kind": kind, "detail": str(detail), "cause": cause} if kind in get_args(FailureKind):
            return Failure(kind, detail, cause if cause in get_args(Cause) else None)
    raise ValueError("a row of the answer has neither a score from 0 to 1 nor a failure")


def _optional() -> str:
    return ", ".join(sorted(_ENTRIES - {"question", "candidates"}))
