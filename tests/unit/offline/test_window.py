"""A served judge is kept full, and rows come in order all the same."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import ConfigError, EngineError, Judge, Pairwise, Request, ScriptedEngine, annotate_file
from flexjudge_reward.offline.score import rerank_file, score_file
from flexjudge_reward.offline.window import in_order
from support.judging import scores


class Served(ScriptedEngine):
    """Takes requests of several calls at once; every seventh request takes longer."""

    remote = True
    in_flight = 16  # type: ignore[assignment]

    def __init__(self, reply: Any = scores) -> None:
        super().__init__(reply)
        self.calls = self.most = 0
        self.number = 0
        self.counting = threading.Lock()

    def identity(self) -> dict[str, object]:
        return {"engine": "served"}

    def complete(self, requests: Any) -> Any:
        with self.counting:
            self.calls += 1
            self.number += 1
            self.most, slow = max(self.most, self.calls), self.number % 7 == 1
        time.sleep(0.02 if slow else 0.002)
        try:
            return super().complete(requests)
        finally:
            with self.counting:
                self.calls -= 1


def test_batches_come_in_order_and_side_by_side() -> None:
    engine = Served()
    gate = threading.Event()

    def judge(batch: list[int]) -> list[int]:
        if 0 in batch:
            assert gate.wait(20), "others were judged meanwhile"
        if 40 in batch:
            gate.set()
        return [-number for number in batch]

    found = list(in_order(iter(range(101)), judge, engine, 256))
    assert [number for batch, _ in found for number in batch] == list(range(101))
    assert [number for _, result in found for number in result] == [-number for number in range(101)]


def test_few_rows_are_read_before_they_are_needed() -> None:
    read = []

    def rows() -> Iterator[int]:
        for number in range(10_000):
            read.append(number)
            yield number

    batches = in_order(rows(), list, Served(), 256)
    next(batches)
    assert len(read) <= 200
    batches.close()


def test_a_judge_in_this_process_gets_one_batch_at_a_time() -> None:
    assert [len(batch) for batch, _ in in_order(iter(range(600)), list, ScriptedEngine(scores), 256)] == [256, 256, 88]


def test_what_a_batch_raises_comes_behind_those_before_it() -> None:
    def judge(batch: list[int]) -> list[int]:
        if 20 in batch:
            raise EngineError("gone")
        return batch

    found: list[int] = []
    with pytest.raises(EngineError, match="gone"):
        for batch, _ in in_order(iter(range(1000)), judge, Served(), 256):
            found += batch
    assert found == list(range(20))


@pytest.mark.parametrize("last", [0, 20, 99])
def test_rows_before_the_end_of_a_broken_source_are_judged(last: int) -> None:
    def rows() -> Iterator[int]:
        yield from range(last)
        raise ConfigError("broken off")

    found: list[int] = []
    with pytest.raises(ConfigError, match="broken off"):
        for batch, _ in in_order(rows(), list, Served(), 256):
            found += batch
    assert found == list(range(last))


ROWS = [
    {"id": n, "question": "0 q", "candidates": [f"{n % 9 + 1} a", f"{n % 5 + 1} b", f"{n % 7 + 1} c"]}
    for n in range(150)
]


def test_a_served_judge_leaves_the_files_of_one_in_this_process(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS[:60], {"id": "bad"}]))
    for name, engine in (("here", ScriptedEngine(scores)), ("served", Served())):
        folder = tmp_path / name
        folder.mkdir()
        judge = Judge(Pairwise(), engine).for_group_size()
        annotate_file(source, judge, folder / "pairs.jsonl")
        score_file(source, judge, folder / "scores.jsonl")
        summary = rerank_file(source, judge, folder / "ranks.jsonl")
        assert (summary.judged, summary.skipped) == (180, 1)
    assert engine.most > 4
    for file in (tmp_path / "here").glob("*.jsonl"):  # the card names the engine
        assert (tmp_path / "served" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_served_run_that_was_stopped_continues(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({**ROWS[n % 150], "id": n}) + "\n" for n in range(300)))
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    annotate_file(source, Judge(Pairwise(), ScriptedEngine(scores)), whole)
    assert whole.with_suffix(".skipped.jsonl").stat().st_size
    asked = []

    def stopping(request: Request) -> str:
        asked.append(request)
        if len(asked) > 1400:
            raise KeyboardInterrupt
        return scores(request)

    with pytest.raises(KeyboardInterrupt):
        annotate_file(source, Judge(Pairwise(), Served(stopping)), broken)
    assert json.loads((tmp_path / "broken.jsonl.progress").read_text())["counts"]["rows"] >= 128
    annotate_file(source, Judge(Pairwise(), Served()), broken)
    assert broken.read_bytes() == whole.read_bytes()
    assert broken.with_suffix(".skipped.jsonl").read_bytes() == whole.with_suffix(".skipped.jsonl").read_bytes()


def test_what_was_judged_before_the_judge_was_gone_is_kept(tmp_path: Path) -> None:
    source, asked = tmp_path / "in.jsonl", []
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:60]))

    def going(request: Request) -> str:
        asked.append(request)
        if len(asked) > 200:
            raise EngineError("gone")
        return scores(request)

    with pytest.raises(EngineError, match="gone"):
        annotate_file(source, Judge(Pairwise(), Served(going)), tmp_path / "pairs.jsonl")
    assert json.loads((tmp_path / "pairs.jsonl.progress").read_text())["counts"]["rows"] > 0
