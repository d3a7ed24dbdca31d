"""A record of every judgement: append-only JSONL, one line per judgement.

    FlexJudgeReward(record="runs/x/judgements.jsonl")         # or FLEXJUDGE_RECORD, or --record

    {"time", "judge", "question", "candidates", "reference", "rubric", "scores", "scale", "failure", "cause",
     "replies", "counters", "own_answer", "criteria", "seconds", "batch", "run", ...}

Texts are whole, media are {kind: digest}, with "content" where a judge reads a text of them, "frames" and "fps" of all
but lone images, "seconds" of sounds, and "graph" of molecules as tokens. A rubric of the row's own is its criteria in
words or as a list, or an object with its scale.
`cause` is who caused the failure (`rewards.py`). `replies` holds every reply with its tokens; `time` is when the line
was written, `seconds` how long its batch of `batch` judgements took, and `run` is the same in all that one process
writes. Trainers add `step`, `rank`, `group` and `rows`, and `candidate` where one of a group is judged alone; for a
probe (`trainers/probes.py`) `step`, `rank` and `probe`, its kind. Jobs add the row's id. Judging that passed a
`deadline` is recorded when it ends: a line with more seconds than that was no answer, and its rows are `timeout`
failures. A line with "alarm", "said" and "step" in place of a judgement is an alarm of a training.

The folder judgements.media beside it has DIGEST.jpg, a thumbnail of each image and video and the waveform of each
sound, for `flexjudge report`, and sounds of at most ten seconds as DIGEST.wav. With `record_media` "whole" it also has
every longer sound, and every frame of every media item as PNG, DIGEST-0.png and so on, so that `flexjudge rejudge`
shows another judge exactly what this one saw and heard.

Promised: a line is written whole or, after a kill, completed by the next writer's line break, and `read_record` skips
it. Several processes may append to one file of a local disk; training ranks above 0 write files of their own beside it
(judgements.rank3.jsonl) and share the thumbnails, which appear whole. What cannot be written costs one warning
with the reason.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any, Literal

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from flexjudge_reward.errors import MediaError
from flexjudge_reward.judge.rewards import cause_of
from flexjudge_reward.media import audio, image
from flexjudge_reward.media.base import Media
from flexjudge_reward.types import Content, CriterionAnswer, Example, Failure, Generation, PairVerdict, Verdict

_log = logging.getLogger("flexjudge_reward")
_appending = threading.Lock()
_written = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str).encode
# Ends of lines for `str.splitlines` and JavaScript, which JSON leaves as they are within a text.
_ENDS = {one: f"\\u{ord(one):04x}" for one in "\x85\u2028\u2029"}
_RUN = secrets.token_hex(4)
_SHORT_S = 10.0  # seconds of a sound that is kept in any case
_MOST_MEDIA = 100_000  # that one process keeps, so that a long run does not fill a disk with small files
RecordMedia = Literal["thumbnails", "whole", "off"]


class Record:
    """The file of one run. Thread-safe; pickles; opened for each batch, so that a fork or a kill leaves it usable."""

    def __init__(self, path: str | os.PathLike[str], media: RecordMedia = "thumbnails") -> None:
        """`media` says what is kept of images, videos and drawings beside the file."""
        self.path, self._media, self._warned = Path(path), media, False
        self._drawn: set[str] = set()

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
        cost = {"seconds": round(seconds, 3), "batch": len(examples), "run": _RUN}
        begun = json_line(shared)[:-2]  # the same in all lines, and as long as the rest
        lines = [
            f"{begun}, {json_line({**asked_entry(example), **_replied(verdict), **cost, **label})[1:]}"
            for example, verdict, label in zip(examples, verdicts, labels, strict=True)
        ]
        drawn = (
            {media for example in examples for media in example.media if media.is_usable}
            if self._media != "off"
            else ()
        )
        self._write("".join(lines), drawn)

    def note(self, entries: Mapping[str, object]) -> None:
        """Appends one line that is no judgement, such as an alarm. Never raises, as `add`."""
        self._write(
            json_line({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **entries, "run": _RUN}), ()
        )

    def _write(self, lines: str, drawn: Collection[Media]) -> None:
        try:
            with _appending:
                _append(_own_file(self.path), lines.encode())
                for media in drawn:
                    with suppress(MediaError):  # no memory to decode it again: a thumbnail less, not a lost batch
                        self._keep(media)
        except OSError as error:
            if not self._warned:
                _log.warning("judgements are not recorded: %s cannot be written (%s)", self.path, error)
            self._warned = True

    def _keep(self, media: Media) -> None:
        folder = self.path.with_suffix(".media")
        if media.digest in self._drawn or len(self._drawn) >= _MOST_MEDIA:
            return
        loaded = media.load()
        files: dict[str, Callable[[], bytes]] = {} if loaded.text else {f"{media.digest}.jpg": media.thumbnail}
        if loaded.samples and (self._media == "whole" or audio.seconds(loaded.samples) <= _SHORT_S):
            files[f"{media.digest}.wav"] = partial(audio.wav, loaded.samples)
        if self._media == "whole":
            for number, frame in enumerate(loaded.frames):
                files[f"{media.digest}-{number}.png"] = partial(image.encode, frame)
        for name, encoded in files.items():
            if not (folder / name).exists():
                folder.mkdir(exist_ok=True)
                fresh = folder / f"{name}.{os.getpid()}"  # several ranks may keep it at once
                fresh.write_bytes(encoded())
                fresh.replace(folder / name)
        self._drawn.add(media.digest)


def read_record(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The judgements of a record, those of all ranks, without lines that a kill cut. Raises FileNotFoundError."""
    files = record_files(path)
    if not files:
        raise FileNotFoundError(f"there is no record of judgements at {path}")
    for file in files:
        yield from read_lines(file)


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of one file of lines, without lines that are none."""
    with file.open("rb") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict):
                yield entry


def record_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files of a record, one for each rank that has one."""
    path = Path(path)
    others = sorted(path.parent.glob(f"{escape(path.stem)}.rank*{escape(path.suffix)}"))
    return [file for file in (path, *others) if file.exists()]


def json_line(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON that can be encoded as UTF-8, one line also for readers that know other ends of lines.

    A number that JSON does not have, such as NaN, is null.
    """
    try:
        text = _written(row)
    except ValueError:
        row = _with_nulls(row)
        text = _written(row)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can only hold escaped
        text = json.dumps(row, allow_nan=False, default=str)
    for end, written in _ENDS.items():
        text = text.replace(end, written)
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
            fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
            data = b"\n" + data  # a kill cut the last line
        file.write(data)
        file.flush()
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_UN)  # a child that was forked meanwhile has the file open, too


def asked_entry(example: Example) -> dict[str, object]:
    """What is judged, as JSON: texts whole, media as {kind: digest}."""
    return {
        "question": _parts(example.question),
        "candidates": [_parts(candidate) for candidate in example.candidates],
        "reference": None if example.reference is None else _parts(example.reference),
        "rubric": None if example.rubric is None else example.rubric.cell,
    }


def _parts(content: Content) -> list[object]:
    return [_digest(part) if isinstance(part, Media) else part for part in content]


def _digest(media: Media) -> dict[str, object]:
    try:
        if media.kind == "image":  # nothing but its digest, which needs no frames
            return {media.kind: media.digest}
        loaded = media.load()
    except MediaError as error:
        return {media.kind: f"unusable: {error}"}
    seen: dict[str, object] = {"content": loaded.text} if loaded.text else {}
    if loaded.frames:
        seen |= {"frames": len(loaded.frames), "fps": loaded.fps}
    if loaded.samples:
        seen["seconds"] = round(audio.seconds(loaded.samples), 3)
    if loaded.graph:
        seen["graph"] = loaded.graph.decode()
    return {media.kind: media.digest, **seen}


def _replied(verdict: Verdict) -> dict[str, object]:
    return {
        "scores": None if verdict.scores is None else list(verdict.scores),
        "scale": [verdict.scale.low, verdict.scale.high],
        "failure": failure_entry(verdict.failure),
        "cause": None if verdict.failure is None else cause_of(verdict.failure),
        "replies": [_reply(generation) for generation in verdict.generations],
        "counters": dict(verdict.counters),
        **({"own_answer": verdict.own_answer} if verdict.own_answer else {}),
        **({"criteria": [_answered(answer) for answer in verdict.answers]} if verdict.answers else {}),
        **({"comparisons": [_compared(pair) for pair in verdict.comparisons]} if verdict.comparisons else {}),
    }


def _compared(pair: PairVerdict) -> dict[str, object]:
    scores, failure = pair.verdict.scores, failure_entry(pair.verdict.failure)
    return {"first": pair.first, "second": pair.second, "scores": scores, "failure": failure}


def _answered(answer: CriterionAnswer) -> dict[str, object]:
    criterion = answer.criterion
    by = "judge" if criterion.check is None else "check"
    return {"text": criterion.text, "need": criterion.need, "weight": criterion.weight, "met": answer.met, "by": by}


def _reply(generation: Generation) -> dict[str, object]:
    names = ("text", "finish_reason", "prompt_tokens", "completion_tokens", "cached")
    failure = {} if generation.failure is None else {"failure": failure_entry(generation.failure)}
    return {**{name: getattr(generation, name) for name in names}, **failure}
