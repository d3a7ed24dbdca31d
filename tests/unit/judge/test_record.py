"""The record of judgements: what a line holds, and what kills, full disks, several writers and odd texts leave."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pickle
import signal
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flexjudge_reward import (
    BudgetForcing,
    CachedEngine,
    Example,
    FlexJudgeReward,
    Format,
    Generation,
    Judge,
    Listwise,
    Media,
    Pairwise,
    Pointwise,
    Record,
    Request,
    Rubric,
    Sampling,
    ScriptedEngine,
    for_group_size,
    judge_groups,
    read_record,
)
from flexjudge_reward.cli.main import main
from flexjudge_reward.judge.record import _append
from support.fault_server import FaultServer
from support.judging import scores, tags


def judge(record: Record | None, replies: Any = scores, format: Format | None = None) -> Judge:
    return Judge(format or Pointwise(), ScriptedEngine(replies), Sampling(seed=5), record)


def note(path: Path, *answers: str) -> None:
    """Judges and records some answers."""
    judge(Record(path), lambda request: tags(7))([Example("q", [answer]) for answer in answers])


def answers(path: Path) -> list[str]:
    return [line["candidates"][0][0] for line in read_record(path)]


# ---- a line


SHORT = {"criteria": "Is it short?", "low": 1.0, "high": 10.0, "decimals": False}


def test_a_line_has_everything_about_its_judgement(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "x" / "judgements.jsonl"  # its folders are made
    replies = [Generation(tags(7), prompt_tokens=30, completion_tokens=9), Generation("<think>hm", "length")]
    examples = [
        Example(["look ", "here"], ["7 a"], reference="six", rubric=Rubric("Is it short?")),
        Example("q", ["8 b"]),
    ]
    judge(Record(path), replies)(examples, [{"step": 3}, {"id": "row 9"}])
    good, cut = read_record(path)
    assert datetime.fromisoformat(good["time"]).utcoffset() is not None and good["time"] == cut["time"]
    assert good["run"] == cut["run"] and len(good["run"]) == 8
    assert good["judge"]["format"] == "Pointwise" and good["judge"]["engine"] == "scripted"
    assert (good["judge"]["seed"], good["judge"]["temperature"], good["judge"]["max_tokens"]) == (5, 0.0, 2048)
    assert good["judge"]["rubric"] == Rubric.load("helpfulness").criteria
    assert (good["question"], good["candidates"], good["reference"]) == (["look ", "here"], [["7 a"]], ["six"])
    assert (good["rubric"], cut["rubric"], cut["reference"]) == (SHORT, None, None)
    assert (good["scores"], good["scale"], good["failure"]) == ([7.0], [1.0, 10.0], None)
    assert cut["scores"] is None and cut["failure"]["kind"] == "truncated" and cut["failure"]["detail"]
    tokens = {"prompt_tokens": 30, "completion_tokens": 9, "cached": False}
    assert good["replies"] == [{"text": tags(7), "finish_reason": "stop", **tokens}]
    assert (cut["replies"][0]["text"], cut["replies"][0]["finish_reason"]) == ("<think>hm", "length")
    assert good["counters"] == {} and good["batch"] == 2 and good["seconds"] >= 0
    assert (good["step"], cut["id"]) == (3, "row 9") and "step" not in cut


def test_a_line_has_every_reply_counter_and_comparison(tmp_path: Path) -> None:
    def cut_once(request: Request) -> Generation | str:
        if request.prompt.messages[-1].role == "assistant":
            return "<answer>3</answer><answer>7</answer>"
        return Generation("<think>hm", "length", completion_tokens=5)

    path = tmp_path / "record.jsonl"
    format = for_group_size(BudgetForcing(Pairwise()))
    judge_groups(judge(Record(path), cut_once, format), [Example("q", ["1 a", "2 b", "3 c"])])
    (line,) = read_record(path)
    assert line["counters"] == {"forced": 3, "reasonings": 3, "comparisons": 3}
    assert len(line["replies"]) == 3 and line["replies"][0]["text"].startswith("<think>hm</think>")
    pairs = line["comparisons"]
    assert {frozenset((pair["first"], pair["second"])) for pair in pairs} == set(
        map(frozenset, [(0, 1), (0, 2), (1, 2)])
    )
    assert all(pair["scores"] == [3.0, 7.0] and pair["failure"] is None for pair in pairs)


def test_cached_and_failed_replies_say_so(tmp_path: Path) -> None:
    engine = CachedEngine(
        ScriptedEngine([tags(7), Generation.failed("timeout", "no reply in 3 s")]), tmp_path / "replies.sqlite"
    )
    with Judge(Pointwise(), engine, record=Record(tmp_path / "record.jsonl")) as judge:
        for answer in ("a", "a", "b"):
            judge([Example("q", [answer])])
    new, cached, failed = read_record(tmp_path / "record.jsonl")
    assert [line["replies"][0]["cached"] for line in (new, cached, failed)] == [False, True, False]
    assert failed["replies"][0]["failure"] == failed["failure"] == {"kind": "timeout", "detail": "no reply in 3 s"}


def test_media_are_noted_by_digest(tmp_path: Path) -> None:
    image, broken = Media.image(Image.new("RGB", (8, 8), "red")), Media.image(b"no image")
    path = tmp_path / "record.jsonl"
    judge(Record(path), [tags(7)])([Example([image, "q"], ["a"]), Example([broken, "q"], [["b ", image]])])
    good, bad = read_record(path)
    assert good["question"] == [{"image": image.digest}, "q"]
    assert bad["question"][0]["image"].startswith("unusable: image") and bad["failure"]["kind"] == "media"
    assert bad["candidates"] == [["b ", {"image": image.digest}]] and bad["replies"] == []
    assert b"IHDR" not in path.read_bytes() and path.stat().st_size < 4000


def test_an_image_that_cannot_be_decoded_again_costs_its_thumbnail_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, shown = tmp_path / "record.jsonl", [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    bad, good = map(Media.image, shown)
    monkeypatch.setattr(Media, "thumbnail", lambda self: b"jpeg" if self is good else Media.image(b"x").file())
    verdicts = judge(Record(path), lambda request: tags(7))([Example([image, "q"], ["a"]) for image in (bad, good)])
    assert [verdict.scores for verdict in verdicts] == [(7.0,)] * 2 and len(list(read_record(path))) == 2
    assert [file.name for file in path.with_suffix(".media").iterdir()] == [f"{good.digest}.jpg"]


@pytest.mark.parametrize(
    "text",
    ["half \ud83d of a pair", "line\nbreak\r\u2028\u2029\x85 and \x00", "蓝色 🌟 é", '"quotes" \\ud83d', ""],
    ids=["half-a-pair", "line-breaks", "unicode", "escapes", "empty"],
)
def test_odd_texts_come_back_as_they_were(text: str, tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    judge(Record(path), [Generation(text), tags(7)])([Example(text, [text]), Example("q", ["b"])], [{"id": text}, {}])
    first, second = read_record(path)
    assert (first["question"], first["candidates"], first["id"]) == ([text], [[text]], text)
    assert first["replies"][0]["text"] == text and second["scores"] == [7.0]
    assert len(path.read_text("utf-8").splitlines()) == 2  # UTF-8 for any reader, whatever ends a line for it


def test_labels_may_be_anything(tmp_path: Path) -> None:
    judge(Record(tmp_path / "r.jsonl"))([Example("q", ["1"])], [{"step": None, "path": Path("a"), "set": {1}}])
    (line,) = read_record(tmp_path / "r.jsonl")
    assert (line["step"], line["path"], line["set"]) == (None, "a", "{1}")


# ---- kills, several writers, several ranks


@settings(max_examples=30, deadline=None, derandomize=True)
@given(cut=st.integers(0, 10**6))
def test_a_file_that_was_cut_anywhere_is_completed_by_the_next_writer(cut: int, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("cut") / "record.jsonl"
    note(path, "one", "蓝 two")
    whole = path.read_bytes()
    cut %= len(whole) + 1
    path.write_bytes(whole[:cut])
    left = [json.loads(line) for line in whole.splitlines() if cut >= whole.index(line) + len(line)]
    assert answers(path) == [line["candidates"][0][0] for line in left]
    note(path, "three")
    assert answers(path) == [line["candidates"][0][0] for line in left] + ["three"]


def test_a_child_that_was_forked_meanwhile_blocks_no_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, pread, children = tmp_path / "r.jsonl", os.pread, list[int]()

    def forking(*given: Any) -> bytes:
        if not (child := os.fork()):
            signal.pause()
        children.append(child)
        return pread(*given)

    file.write_bytes(b"{}\n")
    monkeypatch.setattr(os, "pread", forking)
    try:
        _append(file, b"{}\n")
        with file.open("ab") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert file.read_bytes() == b"{}\n" * 2 and len(children) == 1


def test_ranks_write_files_of_their_own_and_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run[1].jsonl"
    for rank in ("3", "1", "0", "", "none"):
        monkeypatch.setenv("RANK", rank)
        note(path, f"of rank {rank}")
    names = ["run[1].jsonl", "run[1].rank1.jsonl", "run[1].rank3.jsonl"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert answers(path) == ["of rank 0", "of rank ", "of rank none", "of rank 1", "of rank 3"]
    path.unlink()
    assert answers(path) == ["of rank 1", "of rank 3"]


def test_a_record_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no record of judgements at .*none\.jsonl"):
        list(read_record(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("blocked", ["folder", "file-in-the-way", "full-disk"])
def test_a_file_that_cannot_be_written_costs_one_warning(
    blocked: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    paths = {"folder": tmp_path, "file-in-the-way": tmp_path / "file" / "r.jsonl", "full-disk": Path("/dev/full")}
    path = paths[blocked]
    if blocked == "full-disk" and not path.exists():
        pytest.skip("no such device")
    one = judge(Record(path))
    with caplog.at_level(logging.WARNING, "flexjudge_reward"):
        assert [one([Example("q", ["7"])])[0].scores for _ in range(3)] == [(7.0,)] * 3
    (warning,) = caplog.records
    assert str(path) in warning.message and warning.message.startswith("judgements are not recorded")


def test_a_record_pickles_without_its_lock(tmp_path: Path) -> None:
    record = Record(tmp_path / "r.jsonl")
    assert pickle.loads(pickle.dumps(record)).path == record.path


# ---- where a record is set


def test_a_reward_records_step_rank_group_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXJUDGE_RECORD", str(tmp_path / "from_environment.jsonl"))

    class State:
        global_step = 12

    for name, record in (("from_argument", tmp_path / "from_argument.jsonl"), ("from_environment", None)):
        options = {"model": "nano", "engine": "transformers", "format": "listwise", "cache": "off"}
        reward = FlexJudgeReward(record=record, **options)
        reward.session.judge.engine = ScriptedEngine(scores)
        reward(["p", "q", "p", "q"], ["1", "2", "3", "4"], trainer_state=State())
        lines = list(read_record(tmp_path / f"{name}.jsonl"))
        assert [(line["step"], line["rank"], line["rows"]) for line in lines] == [
            (12, 0, [[0, 0], [0, 2]]),
            (12, 0, [[0, 1], [0, 3]]),
        ]
        assert len({line["group"] for line in lines}) == 2 and lines[0]["judge"]["format"].startswith("AnchoredChunks")


def test_the_command_line_records_row_ids(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"id": 7, "question": "item one", "candidates": ["a", "b"]}))
    record, output = tmp_path / "record.jsonl", tmp_path / "out.jsonl"
    with FaultServer() as server:
        words = ["--base-url", server.url, "--record", str(record), "--cache", "off"]
        assert main(["score", str(rows), "-o", str(output), *words]) == 0
    lines = list(read_record(record))
    assert [(line["id"], line["candidate"], line["candidates"]) for line in lines] == [(7, 0, [["a"]]), (7, 1, [["b"]])]
    assert lines[0]["judge"]["model"] == "/weights" and server.url not in record.read_text()
    assert json.loads(output.read_text())["scores"] == [7.0, 7.0]


def test_without_a_record_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    judge(None, format=Listwise())([Example("q", ["1", "2"])])
    assert not list(tmp_path.iterdir())
