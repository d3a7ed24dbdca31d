"""The file that a job writes: one writer, looked at before anything is judged, valid JSON whatever is in it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import (
    ConfigError,
    FlexJudgeReward,
    Generation,
    Judge,
    Pointwise,
    ScriptedEngine,
    annotate_file,
    read_record,
    rerank_file,
    score_file,
)
from flexjudge_reward.judge.record import Record, json_line
from flexjudge_reward.offline.output import owned
from support.judging import scores, tags
from support.late import needs

needs("datasets")

RUNS: list[Any] = [score_file, rerank_file, annotate_file]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    row = {"id": 1, "question": "0 q", "candidates": ["9 a", "3 b"]}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path / "in.jsonl"


def judge(reply: Any = scores) -> Judge:
    return Judge(Pointwise(), ScriptedEngine(reply))


# ---------------------------------------------------------------- one writer


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("other", RUNS)
def test_a_second_run_on_one_output_is_refused_with_the_process_of_the_first(
    source: Path, run: Any, other: Any
) -> None:
    output, refused = source.with_name("out.jsonl"), []

    def reply(request: Any) -> str:
        with pytest.raises(ConfigError, match=rf"'.*out\.jsonl' is being written by process {os.getpid()}: wait"):
            other(source, judge([]), output)
        refused.append(True)
        return scores(request)

    run(source, judge(reply), output)
    assert refused and len(output.read_text().splitlines()) == 1
    other(source, judge(), output)
    assert not output.with_name("out.jsonl.lock").exists()


def test_outputs_of_other_names_are_written_at_once(source: Path) -> None:
    with owned(source.with_name("a.jsonl")), owned(source.with_name("b.jsonl")):
        score_file(source, judge(), source.with_name("c.jsonl"))


def test_a_link_in_place_of_the_lock_is_not_followed(source: Path) -> None:
    victim, output = source.with_name("victim"), source.with_name("out.jsonl")
    victim.write_text("whole")
    output.with_name("out.jsonl.lock").symlink_to(victim)
    with pytest.raises(ConfigError, match="cannot be written"):
        score_file(source, judge([]), output)
    assert victim.read_text() == "whole"


# ---------------------------------------------------------------- places that cannot be written


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("none/out.jsonl", "there is no folder '.*none' for the output: make it", id="no_folder"),
        pytest.param("in.jsonl/out.jsonl", "there is no folder|would change", id="a_file_for_a_folder"),
        pytest.param("folder.jsonl", "is a folder: give the file to write", id="a_folder"),
        pytest.param("folder.jsonl/..", "is a folder|has other files in it", id="no_name"),
        pytest.param("pipe.jsonl", "is no regular file", id="a_pipe"),
        pytest.param("link.jsonl", "is no regular file", id="a_link_to_a_pipe"),
        pytest.param("x" * 300 + ".jsonl", "cannot be written: File name too long", id="long_name"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_before_anything_is_judged(
    source: Path, run: Any, name: str, message: str
) -> None:
    folder = source.parent
    (folder / "folder.jsonl").mkdir()
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "link.jsonl").symlink_to(folder / "pipe.jsonl")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ConfigError, match=message):
        run(source, judge([]), folder / name)
    assert sorted(path.name for path in folder.iterdir()) == before


# ---------------------------------------------------------------- numbers that JSON does not have

NUMBERS: dict[str, tuple[Any, Any]] = {
    "nan": (math.nan, None),
    "infinity": (math.inf, None),
    "minus_infinity": (-math.inf, None),
    "in_a_list": ([1.5, math.nan], [1.5, None]),
    "in_a_tuple": ((math.inf, 2), [None, 2]),
    "in_an_object": ({"a": {"b": math.nan}}, {"a": {"b": None}}),
    "beside_half_a_character": (["\ud83d", math.nan], ["\ud83d", None]),
    "finite": (1e308, 1e308),
}


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(("value", "expected"), NUMBERS.values(), ids=NUMBERS)
def test_a_line_is_valid_json(value: Any, expected: Any) -> None:
    line = json_line({"value": value})
    assert strict_json(line) == {"value": expected} and line.encode().endswith(b"\n")


@pytest.mark.parametrize("run", RUNS)
def test_an_id_that_is_no_number_of_json_is_written_as_null(tmp_path: Path, run: Any) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": NaN, "question": "0 q", "candidates": ["9 a", "3 b"]}\n')
    run(tmp_path / "in.jsonl", judge(), tmp_path / "out.jsonl")
    assert strict_json((tmp_path / "out.jsonl").read_text())["id"] is None


# ---------------------------------------------------------------- half a character

HALVES = {
    "first_half": "\ud83d",
    "second_half": "\udc81",
    "halves_in_wrong_order": "\udc81\ud83d",
    "between_letters": "a\ud83db",
    "many": "\ud800" * 50,
    "beside_a_whole_one": "😀\ud83d",
}


@pytest.mark.parametrize("place", ["thought", "answer", "detail", "completion"])
@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_half_a_character_reaches_no_trainers_log_and_no_file_as_bytes(source: Path, half: str, place: str) -> None:
    def reply(request: Any) -> Any:
        if place == "detail":
            return Generation.failed("engine", f"the server said {half}")
        if place == "answer":
            return f"<think>nice</think><answer>7{half}</answer>"
        return f"<think>nice {half}</think><answer>7</answer>" if place == "thought" else tags(7)

    logged: dict[str, Any] = {}
    made = Judge(Pointwise(), ScriptedEngine(reply), record=Record(source.with_name("record.jsonl")))
    reward = FlexJudgeReward(made, name="judge", max_failure_rate=1)
    completions = [half, "b"] if place == "completion" else ["a", "b"]
    # An answer whose judgement fails twice gets the low end; a failure of the engine gives no reward.
    expected = {"detail": None, "answer": 0.0}.get(place, pytest.approx(2 / 3))
    assert reward(["q", "q"], completions, log_extra=logged.__setitem__) == [expected, expected]
    for texts in logged.values():
        assert "".join(texts).encode() and all(isinstance(text, str) for text in texts)
    assert len(list(read_record(source.with_name("record.jsonl")))) == 2
    for run in RUNS:
        output = source.with_name(f"{run.__name__}.jsonl")
        run(source, made, output)
        assert [strict_json(line) for line in output.read_text("utf-8").splitlines()] or run is annotate_file
