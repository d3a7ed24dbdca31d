"""The files of a run as groups of judged candidates, whatever wrote them: a record, `score`, `rerank` or `annotate`.

Promised: a line is data. Whatever it holds, wrong types and damaged text included, becomes plain text, finite numbers
and names of a closed list here, or is left out; no path leaves the folders that the caller gave (`pictures.py`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from flexjudge_reward.data.cells import MEDIA_COLUMNS
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.judge.record import read_lines, record_files
from flexjudge_reward.media.base import KINDS
from flexjudge_reward.types import FailureKind

Kind = Literal["record", "scores", "pairs"]
FAILURES = get_args(FailureKind)
SKIPPED = ("tie", "order_inconsistent", "below_margin", "identical", "not_selected", *FAILURES)
LONGEST = 8_000  # characters of one text on the page
_DEEPEST, _MOST_SETTINGS = 2, 40  # folders below the one that is given; of a judge


@dataclass(frozen=True)
class Seen:
    """A media item: its kind, and what finds its picture: a digest, a path, or a text such as a SMILES."""

    kind: str
    source: str
    text: str = ""


Parts = list[str | Seen]


@dataclass
class Candidate:
    """A judged answer; `score` is on the judge's scale and `unit` in [0, 1], both None with a failure."""

    parts: Parts
    score: float | None
    unit: float | None
    failure: tuple[str, str] | None  # kind and detail
    replies: list[str]
    label: str = ""


@dataclass
class Group:
    """Candidates that answer one question, or a part of them: lines about one `key` belong together."""

    key: tuple[object, ...]
    name: str
    file: Path
    candidates: dict[Any, Candidate]  # by their place; a later line about a place replaces an earlier one
    step: int | None = None
    question: Parts = field(default_factory=list)
    reference: Parts = field(default_factory=list)
    rubric: str = ""
    judge: str = ""  # its settings, as JSON
    replies: list[str] = field(default_factory=list)  # on the whole group
    tokens: int = 0
    calls: int = 0
    cached: int = 0
    pair: str = ""  # "kept", or why it was not; "" for what is no pair
    detail: str = ""
    margin: float | None = None
    scale: tuple[float, float] | None = None  # of the scores
    row: str = ""  # the id of the row of the input, as JSON
    repeated: bool = False  # a later run of the same record went back and judged this step again
    pair_of: tuple[object, ...] = ()  # places in that row
    probe: str = ""  # the kind of a probe of a training (`trainers/probes.py`), whose score was no reward
    alarm: str = ""  # what an alarm of a training said; then there is nothing else


def files_of(source: Path) -> list[tuple[Kind, Path]]:
    """The files with judgements: that of `source`, or those of a folder, where a record replaces outputs of `score`.

    Raises ConfigError: there is nothing at `source`.
    """
    if not source.is_dir():
        skipped = source.with_suffix(".skipped.jsonl")
        names = (
            *record_files(source),
            *(name for name in (_partial(source), skipped, _partial(skipped)) if name.exists()),
        )
        if not names:
            raise ConfigError(f"there is no file or folder {source}: give a record of judgements or an output of score")
        return [(kind, file) for file in dict.fromkeys(names) if (kind := _kind(file))]
    patterns = [f"{'*/' * depth}*.jsonl{end}" for depth in range(_DEEPEST + 1) for end in ("", ".partial")]
    found = sorted(file for pattern in patterns for file in source.glob(pattern) if file.is_file())
    known = [(kind, file) for file in found if (kind := _kind(file))]
    recorded = any(kind == "record" for kind, _ in known)
    return [(kind, file) for kind, file in known if kind != "scores" or not recorded]


def groups_of(kind: Kind, file: Path) -> Iterator[Group]:
    """A group, or a part of one, for each line that is understood."""
    make = {"record": _recorded, "scores": _scored, "pairs": _paired}[kind]
    later = _later_runs(file) if kind == "record" else []
    for number, line in enumerate(read_lines(file)):
        if _kind_of(line) != kind:
            continue
        try:
            group = make(line, file, number)
        except RecursionError:  # values inside values that no command writes
            continue
        if (step := group.step) is not None:
            group.repeated = any(number < first and step >= low for first, low in later)
        yield group


def _later_runs(file: Path) -> list[tuple[int, int]]:
    """The first line and the first step of every run in a record but the first: it was resumed, or begun again."""
    found: dict[str, tuple[int, int]] = {}
    for number, line in enumerate(read_lines(file)):
        step, run = _whole(line.get("step")), line.get("run")
        if step is not None and isinstance(run, str):
            first, low = found.get(run, (number, step))
            found[run] = first, min(low, step)
    return list(found.values())[1:]


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _kind(file: Path) -> Kind | None:
    return next((kind for _, line in zip(range(20), read_lines(file), strict=False) if (kind := _kind_of(line))), None)


def _kind_of(line: Mapping[str, Any]) -> Kind | None:
    if (isinstance(line.get("replies"), list) and isinstance(line.get("candidates"), list)) or "alarm" in line:
        return "record"
    if isinstance(line.get("scores"), list) and isinstance(line.get("failures"), list):
        return "scores"
    return "pairs" if "pair" in line and ("chosen" in line or "why" in line) else None


def _recorded(line: dict[str, Any], file: Path, number: int) -> Group:
    if "alarm" in line:
        when = f"step {line['step']}: " if isinstance(line.get("step"), int) else ""
        return Group((file.name, "alarm", number), "", file, {}, alarm=when + _text(line.get("said")))
    given, replies = line["candidates"], _dicts(line["replies"])
    said, alone = [_said(reply) for reply in replies], len(given) == 1
    judge = _settings(line.get("judge"))
    key, name, places = _labels(line, file, number)
    scores = [*_list(line.get("scores")), *[None] * len(given)]
    failed, scale, own = _failure(line.get("failure")), line.get("scale"), said if alone else []
    judged = zip(places, given, scores, strict=False)
    return Group(
        (*key, judge),
        name,
        file,
        {place: _candidate(answer, score, scale, failed, own) for place, answer, score in judged},
        step=_whole(line.get("step")),
        question=_parts(line.get("question")),
        reference=_parts(line.get("reference")),
        rubric=_criteria(line.get("rubric")),
        judge=judge,
        probe=_text(line.get("probe")),
        row=_row(line),
        replies=[] if alone else said,
        scale=_scale(scale),
        detail="\n".join(
            [*map(_compared, _dicts(line.get("comparisons"))), *map(_answered, _dicts(line.get("criteria")))]
        ),
        tokens=sum(_whole(reply.get("completion_tokens")) or 0 for reply in replies),
        calls=len(replies),
        cached=sum(reply.get("cached") is True for reply in replies),
    )


def _criteria(rubric: Any) -> str:
    """A row's own rubric in words, a line per criterion of a list; one with a scale is an object."""
    criteria = rubric.get("criteria") if isinstance(rubric, dict) else rubric
    if not isinstance(criteria, list):
        return _text(criteria)
    named = [[_text(one.get(name)) for name in ("need", "weight", "text")] for one in _dicts(criteria)]
    return "\n".join(f"{text} ({need}, weight {weight})" for need, weight, text in named)


def _settings(judge: Any) -> str:
    """A judge's settings as texts, as JSON."""
    named = list(judge.items())[:_MOST_SETTINGS] if isinstance(judge, dict) else []
    return json.dumps({_text(name): _text(value) for name, value in named if value is not None})


def _labels(line: Mapping[str, Any], file: Path, number: int) -> tuple[tuple[object, ...], str, list[object]]:
    """What a line of a record belongs to, the name of that, and the places of the line's candidates in it."""
    count, first, group = len(line["candidates"]), line.get("candidate"), line.get("group")
    if group is None:
        start = first if isinstance(first, int) else 0  # one call writes a question's candidates one after the other
        return *_named(line, file, number - start), [start + index for index in range(count)]
    # A group is named by its question, or, where groups arrive whole, by its number in a call.
    step, written = line.get("step"), _text(line.get("time"))
    key = ("group", _text(group), _text(line.get("question")), written if step is None else _text(step))
    rows = [*_list(line.get("rows")), *[None] * count][:count]
    return key, f"group {_text(group)[:8]}", [(written, index, _text(row)) for index, row in enumerate(rows)]


def _compared(comparison: Mapping[str, Any]) -> str:
    first, second = (1 + (_whole(comparison.get(name)) or 0) for name in ("first", "second"))
    scores, failure = [_number(score) for score in _list(comparison.get("scores"))], _failure(comparison.get("failure"))
    result = " to ".join(f"{score:.3g}" for score in scores if score is not None)
    return f"candidate {first} against {second}: {result if failure is None else ' '.join(failure)}"


def _answered(criterion: Mapping[str, Any]) -> str:
    need, text, by = (_text(criterion.get(name)) for name in ("need", "text", "by"))
    return f"{'yes' if criterion.get('met') is True else 'no'}: {text} ({need}, by the {by})"


def _said(reply: Mapping[str, Any]) -> str:
    failure = _failure(reply.get("failure"))
    cut = "\n[cut by the token limit]" if reply.get("finish_reason") == "length" else ""
    return _text(reply.get("text")) + cut if failure is None else f"[{failure[0]}: {failure[1]}]"


def _scored(line: dict[str, Any], file: Path, number: int) -> Group:
    scores, failures, reasoning = line["scores"], line["failures"], [_text(one) for one in _list(line.get("reasoning"))]
    count = max(len(scores), len(failures))
    given = line.get("candidates") if isinstance(line.get("candidates"), list) else [line.get("answer")]
    answers, alone = [*_list(given), *[None] * count], len(reasoning) == count
    scores, failures = [*scores, *[None] * count], [*failures, *[None] * count]
    key, name = _named(line, file, number)
    scale, own = line.get("scale"), [[one] for one in reasoning] if alone else [[]] * count
    candidates = {i: _candidate(answers[i], scores[i], scale, _failure(failures[i]), own[i]) for i in range(count)}
    best = line.get("best")
    if isinstance(best, int) and 0 <= best < count:
        candidates[best].label = "best"
    question, shared = _parts(line.get("question")), [] if alone else reasoning
    shown = [Seen(kind, _text(one)) for kind in MEDIA_COLUMNS for one in _list(line.get(f"{kind}s"))]
    cached = int(line.get("cached") is True)
    group = Group(key, name, file, candidates, None, [*question, *shown], replies=shared, calls=1, cached=cached)
    group.scale = _scale(scale)
    return group


def _paired(line: dict[str, Any], file: Path, number: int) -> Group:
    (key, name), places = _named(line, file, number), tuple(map(_whole, _list(line["pair"])))
    key = (*key, *places)
    if "why" in line:
        why, detail = line["why"] if line["why"] in SKIPPED else "other", _text(line.get("detail"))
        found = re.fullmatch(r"(\d+\.?\d*) against (\d+\.?\d*)", detail)
        margin = float(found[1]) - float(found[2]) if found else None
        return Group(key, name, file, {}, pair=why, detail=detail, margin=margin, row=_row(line), pair_of=places)
    scores = [_number(score) for score in [*_list(line.get("scores")), None, None][:2]]
    chosen, rejected = scores
    thoughts = [_text(thought) for thought in _list(line.get("reasoning"))]
    own = [[thought] for thought in thoughts] if len(thoughts) == 2 else [[], []]  # else one text of a comparison
    candidates = {
        label: Candidate(_parts(line.get(label)), score, None, None, replies, label)
        for label, score, replies in zip(("chosen", "rejected"), scores, own, strict=True)
    }
    shown = [Seen(kind, _text(one)) for kind in MEDIA_COLUMNS for one in _list(line.get(f"{kind}s"))]
    group = Group(key, name, file, candidates, question=[*_parts(line.get("prompt")), *shown], pair="kept")
    group.margin = None if chosen is None or rejected is None else chosen - rejected
    group.replies = thoughts if len(thoughts) == 1 else []
    return group


def _named(line: Mapping[str, Any], file: Path, number: int) -> tuple[tuple[object, ...], str]:
    if row := _row(line):
        # Jobs that share a record repeat ids, so the question belongs to it.
        return (file.name, "id", row, _text(line.get("question"))), f"row {_text(line['id'])[:80]}"
    return (file.name, "line", number), f"line {number + 1}"


def _row(line: Mapping[str, Any]) -> str:
    return "" if line.get("id") is None else json.dumps(line["id"], sort_keys=True)


def _candidate(parts: Any, score: Any, scale: Any, failure: tuple[str, str] | None, replies: list[str]) -> Candidate:
    value, bounds, unit = _number(score), _scale(scale), None
    if value is None or failure is not None:
        value, failure = None, failure or ("other", "no score")
    elif bounds is not None:
        unit = min(1.0, max(0.0, (value - bounds[0]) / (bounds[1] - bounds[0])))
    return Candidate(_parts(parts), value, unit, failure, replies)


def _scale(scale: Any) -> tuple[float, float] | None:
    low, high = [*map(_number, _list(scale)), None, None][:2]
    return None if low is None or high is None or low >= high or len(_list(scale)) != 2 else (low, high)


def _failure(value: Any) -> tuple[str, str] | None:
    if value is None:
        return None
    kind, detail = (value.get("kind"), value.get("detail")) if isinstance(value, dict) else ("", value)
    return (str(kind), _text(detail)) if kind in FAILURES else ("other", f"{_text(kind)} {_text(detail)}".strip())


def _parts(value: Any) -> Parts:
    """A text, a part, a list of parts or a conversation."""
    if value is None:
        return []
    parts: Parts = []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, dict) and "role" in one:
            turns = isinstance(value, list) and len(value) > 1
            parts += [*([f"{_text(one['role'])}: "] if turns else []), *_parts(one.get("content"))]
        else:
            parts.append(_part(one))
    return parts


def _part(value: Any) -> str | Seen:
    if not isinstance(value, dict):
        return _text(value)
    kind = value.get("type") if value.get("type") in KINDS else next((name for name in KINDS if name in value), None)
    if kind is None:
        return _text(value.get("text", value))
    return Seen(kind, _text(value.get(kind)), _text(value.get("content")))


def _text(value: Any) -> str:
    """Any value as text that can be encoded, cut where it is too long for a page."""
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … [{len(text) - LONGEST:,} more characters]"


def _number(value: Any) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
    return float(value) if fits and math.isfinite(value) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None or number < 0 else int(number)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in _list(value) if isinstance(one, dict)]
