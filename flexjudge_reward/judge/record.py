"""A record of every judgement: append-only JSONL, one line per judgement.

    FlexJudgeReward(record="runs/x/judgements.jsonl")         # or FLEXJUDGE_RECORD, or --record

    {"time", "judge", "question", "candidates", "reference", "rubric", "scores", "scale", "failure", "cause",
     "replies", "counters", "seconds", "batch", ...}

Texts are whole, media are {kind: digest}. `cause` is who caused the failure (`rewards.py`). `replies` holds every
reply with its tokens; `time` is when the line was written, `seconds` is how long the whole batch of `batch` judgements
took. Trainers add `step`, `rank`, `group` and `rows`, and `candidate` where one of a group is judged alone; jobs the
row's id. Judging that passed a reward's `deadline` is recorded when it ends: a line with more seconds than that was no
answer, and its rows are `timeout` failures.

Promised: a line is written whole or, after a kill, completed by the next writer's line break, and `read_record` skips
it. Several processes may append to one file of a local disk; training ranks above 0 write files of their own beside it
(judgements.rank3.jsonl). A file that cannot be written costs one warning with the reason.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from glob import escape
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from flexjudge_reward.errors import MediaError
from flexjudge_reward.judge.rewards import cause_of
from flexjudge_reward.media.base import Media
from flexjudge_reward.types import Content, Example, Failure, Generation, PairVerdict, Verdict

_log = logging.getLogger("flexjudge_reward")
_appending = threading.Lock()


class Record:
    """The file of one run. Thread-safe; pickles; opened for each batch, so that a fork or a kill leaves it usable."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self._warned = Path(path), False

    def add(
        self,
        judge: Mapping[str, object],
        examples: Sequence[Example],
        verdicts: Sequence[Verdict],
        labels: Sequence[Mapping[str, object]],
        seconds: float,
    ) -> None:
        """Appends one line per judgement. Never raises for a file that cannot be written."""
        shared = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "judge": dict(judge)}
        cost = {"seconds": round(seconds, 3), "batch": len(examples)}
        lines = [
            json_line({**shared, **_asked(example), **_replied(verdict), **cost, **label})
            for example, verdict, label in zip(examples, verdicts, labels, strict=True)
        ]
        try:
            with _appending:
                _append(_own_file(self.path), "".join(lines).encode())
        except OSError as error:
            if not self._warned:
                _log.warning("judgements are not recorded: %s cannot be written (%s)", self.path, error)
            self._warned = True


def read_record(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The judgements of a record, those of all ranks, without lines that a kill cut. Raises FileNotFoundError."""
    path = Path(path)
    others = sorted(path.parent.glob(f"{escape(path.stem)}.rank*{escape(path.suffix)}"))
    files = [file for file in (path, *others) if file.exists()]
    if not files:
        raise FileNotFoundError(f"there is no record of judgements at {path}")
    for file in files:
        with file.open("rb") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict):
                    yield entry


def json_line(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON that can be encoded as UTF-8; a number that JSON does not have, such as NaN, is null."""
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        row = _with_nulls(row)
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can only hold escaped
        text = json.dumps(row, allow_nan=False, default=str)
    return text + "\n"


def _with_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _with_nulls(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def failure_entry(failure: Failure | None) -> dict[str, str] | None:
    """A failure as JSON."""
    return None if failure is None else {"kind": failure.kind, "detail": failure.detail}


def _own_file(path: Path) -> Path:
    """The file of this process: training ranks above 0 have their own, because locks may not hold between machines."""
    rank = os.environ.get("RANK", "")
    return path.with_name(f"{path.stem}.rank{rank}{path.suffix}") if rank.isdecimal() and int(rank) else path


def _append(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file closes
        end = file.seek(0, os.SEEK_END)
        if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
            data = b"\n" + data  # a kill cut the last line
        file.write(data)


def _asked(example: Example) -> dict[str, object]:
    return {
        "question": _parts(example.question),
        "candidates": [_parts(candidate) for candidate in example.candidates],
        "reference": None if example.reference is None else _parts(example.reference),
        "rubric": None if example.rubric is None else example.rubric.criteria,
    }


def _parts(content: Content) -> list[object]:
    return [_digest(part) if isinstance(part, Media) else part for part in content]


def _digest(media: Media) -> dict[str, str]:
    try:
        return {media.kind: media.digest}
    except MediaError as error:
        return {media.kind: f"unusable: {error}"}


def _replied(verdict: Verdict) -> dict[str, object]:
    return {
        "scores": None if verdict.scores is None else list(verdict.scores),
        "scale": [verdict.scale.low, verdict.scale.high],
        "failure": failure_entry(verdict.failure),
        "cause": None if verdict.failure is None else cause_of(verdict.failure),
        "replies": [_reply(generation) for generation in verdict.generations],
        "counters": dict(verdict.counters),
        **({"comparisons": [_compared(pair) for pair in verdict.comparisons]} if verdict.comparisons else {}),
    }


def _compared(pair: PairVerdict) -> dict[str, object]:
    scores, failure = pair.verdict.scores, failure_entry(pair.verdict.failure)
    return {"first": pair.first, "second": pair.second, "scores": scores, "failure": failure}


def _reply(generation: Generation) -> dict[str, object]:
    names = ("text", "finish_reason", "prompt_tokens", "completion_tokens", "cached")
    failure = {} if generation.failure is None else {"failure": failure_entry(generation.failure)}
    return {**{name: getattr(generation, name) for name in names}, **failure}
