"""A record of judgements as rows: the candidates of one question, as they were shown to a judge.

A line of a record is one judgement (`judge/record.py`). Here the lines about one question become one row:

    a training run     the completions of one prompt in one step; its id is "step 7, group 3f2a90c1b4d5e6f7"
    score, annotate..  the candidates of one row of the input, under its id; another question is another row

A judgement that was made again replaces the earlier one; of one row, only the last run of each rank counts. A
candidate that no judge was shown, since its image could not be used or its thought had no end, is in no line about its
group, so the row lacks it.

Promised: a line is data. Only files named by a digest in the record's own folder of media are opened. What was not kept
of a media item is an error of its row, before anything is judged; one whose files are not what was judged is a `media`
failure. Lines are read one at a time; in memory are their places only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from flexjudge_reward.data.content import rubric
from flexjudge_reward.data.lines import permutation
from flexjudge_reward.data.rows import Row, Rows
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.judge.record import read_lines, record_files
from flexjudge_reward.media.base import Media
from flexjudge_reward.types import Content, Example, Unfinished

_DIGEST = re.compile("[0-9a-f]{64}")
_MOST_FRAMES = 64


@dataclass
class Recorded:
    """The lines about one question, put together."""

    id: object
    line: Mapping[str, Any]
    """The last of them, which has the question, the reference and the rubric."""
    candidates: dict[Any, Any] = field(default_factory=dict)
    """By their places."""
    scores: dict[Any, float | None] = field(default_factory=dict)
    """As the judge gave them; None for a failure."""


class RecordedRows(Rows):
    """The rows of a record, of all its ranks; each pass reads it anew."""

    def __init__(
        self,
        record: str | Path,
        limit: int | None = None,
        strict: bool = False,
        thumbnails: bool = False,
        own_rubrics: bool = True,
    ) -> None:
        """
        Args:
            limit: the most rows.
            thumbnails: judge the thumbnail of an image that was not kept whole.
            own_rubrics: rows keep the rubric of their own that they had.

        Raises ConfigError: there is no such record, or no judgement in it.
        """
        self._thumbnails, self._own_rubrics = thumbnails, own_rubrics
        super().__init__(record, limit=limit, strict=strict)
        self._folder = Path(record).with_suffix(".media")

    def check_output_path(self, output: Path) -> None:
        """Raises ConfigError if `output` would overwrite a file of the record."""
        if output.resolve() in {file.resolve() for file in record_files(self.name)}:
            raise ConfigError(f"the output {str(output)!r} would overwrite the record; give another place")

    def _open(self, source: Path) -> Any:
        return _Source(source)

    def _entry(self, given: Any) -> Any:
        return given

    def _row(self, number: int, entry: Any) -> Row:
        line = entry.line
        question, reference = self._content(line.get("question")), line.get("reference")
        candidates = [self._content(one) for one in entry.candidates.values()]
        own = rubric(line.get("rubric")) if self._own_rubrics else None
        example = Example(question, candidates, None if reference is None else self._content(reference), own)
        return Row(number, entry.id, example, line)

    def _id(self, number: int, given: Any) -> object:
        return given.id

    def _content(self, parts: Any) -> Content:
        if not isinstance(parts, list):
            raise ConfigError(f"a content is a list of parts, found {parts!r:.80}")
        return tuple(part if isinstance(part, str) else self._media(part) for part in parts)

    def _media(self, part: Any) -> Media:
        kind, digest = next(iter(part.items()), ("", None)) if isinstance(part, dict) else ("", None)
        if not isinstance(digest, str):
            raise ConfigError(f"a part is a text or a media item with its digest, found {part!r:.80}")
        if not _DIGEST.fullmatch(digest):  # it could not be used then, and cannot now
            return Media.of(kind, b"")
        text, fps, graph = part.get("content") or "", part.get("fps") or 0.0, str(part.get("graph") or "")
        heard = kind == "audio" and (self._folder / f"{digest}.wav").is_file()
        frames = part.get("frames") or (0 if text or heard else 1 if kind == "image" else None)
        if not isinstance(text, str) or not isinstance(frames, int | None) or not _is_rate(fps):
            raise ConfigError(f"the {kind} has a wrong text or number of frames")
        if frames == 0 or (frames and (self._folder / f"{digest}-0.png").is_file()):
            return Media.recorded(kind, digest, self._folder, min(frames, _MOST_FRAMES), float(fps), text, graph)
        has_thumbnail = kind == "image" and (self._folder / f"{digest}.jpg").is_file()
        if has_thumbnail and self._thumbnails:
            return Media.image(Path(f"{digest}.jpg"), [self._folder])
        instead = "; --thumbnails judges its thumbnail instead" if has_thumbnail else ""
        raise ConfigError(f"the {kind} was not kept whole: record with --record-media whole to judge it again{instead}")


def _is_rate(fps: object) -> bool:
    return isinstance(fps, int | float) and 0 <= fps < 1e6


def is_record(path: Path) -> bool:
    """Whether a file has a judgement among its first lines."""
    return any(is_judgement(line) for line in islice(read_lines(path), 20))


def recorded(path: Path) -> Iterator[tuple[int, Recorded]]:
    """What a record's own judge said, a row at a time, with its number. Raises ConfigError: there is no judgement."""
    return _Source(path).numbered()


class _Source:
    """The lines of a record by what they are about. Raises ConfigError: it cannot be read, or has none."""

    local, total, unit = True, None, "row"

    def __init__(self, record: Path) -> None:
        self._files = [] if record.is_dir() else record_files(record)
        if not self._files:
            raise ConfigError(f"there is no record of judgements at {record}: give the file that --record wrote")
        self._places: dict[str, list[tuple[int, int]]] = {}  # in which files, and where there
        for number, file in enumerate(self._files):
            try:
                self._index(number, file)
            except OSError as error:
                raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
        if not self._places:
            raise ConfigError(f"{record} has no judgement: it is no record as --record writes it")

    def numbered(self, seed: int | None = None) -> Iterator[tuple[int, Recorded]]:
        """The rows with their numbers from 0."""
        places = list(self._places.values())
        opened = [file.open("rb") for file in self._files]
        try:
            for number in range(len(places)) if seed is None else permutation(len(places), seed):
                lines = []
                for index, begin in places[number]:
                    opened[index].seek(begin)
                    lines.append(json.loads(opened[index].readline()))
                yield number, _together(lines)
        finally:
            for file in opened:
                file.close()

    def _index(self, number: int, file: Path) -> None:
        begin, count = 0, 0
        runs: dict[str, object] = {}
        with file.open("rb") as lines:
            for text in lines:
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError):  # a kill cut it
                    line = None
                if is_judgement(line) and not _is_aside(line):
                    key = _key(line, number, count)
                    if runs.setdefault(key, line.get("run")) != line.get("run"):  # its group may have been a larger one
                        self._places[key] = [place for place in self._places[key] if place[0] != number]
                        runs[key] = line.get("run")
                    self._places.setdefault(key, []).append((number, begin))
                begin, count = begin + len(text), count + 1


def is_judgement(line: Any) -> bool:
    """Whether it is a line of a record."""
    if not isinstance(line, dict) or not all(isinstance(line.get(name), list) for name in ("replies", "candidates")):
        return False
    kinds = {"scores": list | None, "candidate": int | None, "rows": list | None}
    whole = all(isinstance(line.get(name), kind) for name, kind in kinds.items())
    return whole and bool(line["candidates"]) and all(isinstance(one, list) for one in line["candidates"])


def _is_aside(line: Mapping[str, Any]) -> bool:
    """Whether a candidate is judged beside its own copy (`judge/groups.py`), or is a probe of a training."""
    return line.get("probe") is not None or (line.get("candidate") is not None and len(line["candidates"]) != 1)


def _key(line: Mapping[str, Any], file: int, count: int) -> str:
    """What a line is about. Jobs whose rows have the same ids may share a record, so an id needs its question."""
    if line.get("group") is not None:
        # A group is named by its prompt, or, where groups arrive whole, by its number in a call.
        step = line.get("step")
        return json.dumps([line["group"], line.get("question"), line.get("time") if step is None else step])
    if line.get("id") is not None:
        return json.dumps(["id", line["id"], line.get("question"), line.get("reference")], sort_keys=True)
    return json.dumps([file, count - (line.get("candidate") or 0)])  # one call writes its candidates one by one


def _together(lines: Sequence[Mapping[str, Any]]) -> Recorded:
    """The candidates of all lines about one question, each at its place."""
    last = lines[-1]
    name = last.get("id")
    if last.get("group") is not None:
        name = f"step {last.get('step')}, group {last['group']}"
        name = name if last.get("step") is not None else f"{last.get('time')}, group {last['group']}"
    found = Recorded(name, last)
    for line in lines:
        given, failure = line["candidates"], line.get("failure")
        scores = line.get("scores") or [None] * len(given)
        if isinstance(failure, dict) and failure.get("kind") == "unfinished" and len(given) == 1:
            given = [[Unfinished("".join(part for part in given[0] if isinstance(part, str)))]]
        for place, candidate, score in zip(_places(line, found), given, scores, strict=False):
            found.candidates[place], found.scores[place] = candidate, score
    return found


def _places(line: Mapping[str, Any], found: Recorded) -> list[Any]:
    """What the candidates of a line are named by: a trainer's rows, or their numbers."""
    given, rows = line["candidates"], line.get("rows")
    first = line.get("candidate") or 0
    places = [str(row) for row in rows] if isinstance(rows, list) else [first + n for n in range(len(given))]
    left = iter(places)
    matched = [next((place for place in left if found.candidates.get(place) == one), None) for one in given]
    # Where the places are more than the candidates, some had failed and the others were judged once more.
    return places if len(places) <= len(given) or None in matched else matched
