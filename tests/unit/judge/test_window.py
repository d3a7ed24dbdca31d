"""A served judge is kept full, and rows come in order all the same."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from flexjudge_reward import (
    ConfigError,
    Engine,
    EngineError,
    Example,
    Failure,
    Format,
    Judge,
    Listwise,
    Media,
    Pairwise,
    Pointwise,
    Request,
    ScriptedEngine,
    Untrusted,
    annotate_file,
    judge_groups,
)
from flexjudge_reward.errors import SeveralModels
from flexjudge_reward.judge.window import in_order, judge_side_by_side
from flexjudge_reward.offline.evaluate.benchmark import Part
from flexjudge_reward.offline.evaluate.judging import judged
from flexjudge_reward.offline.evaluate.rows import Labelled
from flexjudge_reward.offline.rerank import rerank
from flexjudge_reward.offline.score import rerank_file, score_file
from support.images import noise
from support.judging import Served, scores

T = TypeVar("T")


def batches(rows: Iterator[int], work: Callable[[list[int]], T], engine: Engine | None = None) -> Iterator[Any]:
    return in_order(rows, work, Judge(Pointwise(), engine or Served()), 256, lambda row: None)


def test_batches_come_in_order_and_side_by_side() -> None:
    gate = threading.Event()

    def judge(batch: list[int]) -> list[int]:
        if 0 in batch:
            assert gate.wait(20), "others were judged meanwhile"
        if 40 in batch:
            gate.set()
        return [-number for number in batch]

    found = list(batches(iter(range(101)), judge))
    assert [number for batch, _ in found for number in batch] == list(range(101))
    assert [number for _, result in found for number in result] == [-number for number in range(101)]


def test_few_rows_are_read_before_they_are_needed() -> None:
    read = []

    def rows() -> Iterator[int]:
        for number in range(10_000):
            read.append(number)
            yield number

    judged = batches(rows(), list)
    next(judged)
    assert len(read) <= 200
    judged.close()


def test_a_judge_in_this_process_gets_one_batch_at_a_time() -> None:
    assert [len(batch) for batch, _ in batches(iter(range(600)), list, ScriptedEngine(scores))] == [256, 256, 88]


def test_what_a_batch_raises_comes_behind_those_before_it() -> None:
    def judge(batch: list[int]) -> list[int]:
        if 20 in batch:
            raise EngineError("gone")
        return batch

    found: list[int] = []
    with pytest.raises(EngineError, match="gone"):
        for batch, _ in batches(iter(range(1000)), judge):
            found += batch
    assert found == list(range(20))


def test_media_are_read_in_the_order_of_the_rows_by_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    order: list[Example] = []
    enough = threading.Event()
    reading: set[int] = set()
    at_once: list[int] = []

    def read(judge: Judge, shown: list[Example], **_: Any) -> None:
        if not own.issuperset(map(id, shown)) or not shown:
            return  # of a test before, which did not wait for its end
        assert threading.current_thread().name == "flexjudge-media"
        reading.add(threading.get_ident())
        at_once.append(len(reading))
        time.sleep(0.001)  # the other batches wait for it
        reading.remove(threading.get_ident())
        order.extend(shown)
        if len(order) >= 64:
            enough.set()

    examples = groups(Pointwise(), 100)
    own = set(map(id, examples))
    monkeypatch.setattr(Judge, "read", read)
    judge = Judge(Pointwise(), Served())
    assert len(list(in_order(iter(examples), lambda _: enough.wait(20), judge, 256, lambda row: row))) == 50
    assert max(map(order.index, examples[:8])) < 32, "though 32 batches of two rows are under way"
    assert max(at_once) <= 4, "each keeps the memory of the largest pictures that it read"


@pytest.mark.parametrize("last", [0, 20, 99])
def test_rows_before_the_end_of_a_broken_source_are_judged(last: int) -> None:
    def rows() -> Iterator[int]:
        yield from range(last)
        raise ConfigError("broken off")

    found: list[int] = []
    with pytest.raises(ConfigError, match="broken off"):
        for batch, _ in batches(rows(), list):
            found += batch
    assert found == list(range(last))


# ---- examples that are all there, as trainers have them


def groups(format: Format, count: int) -> list[Example]:
    alone, shown = format.max_candidates == 1, Media.image(noise(6, 4))
    return [
        Example([shown, f"q {n}"], [f"{n % 9 + 1} a", *([] if alone else [f"{n % 7 + 1} b"])]) for n in range(count)
    ]


@pytest.mark.parametrize("format", [Pointwise(), Listwise()], ids=Format.described)
def test_side_by_side_they_get_the_results_of_one_batch(format: Format) -> None:
    examples, engine = groups(format, 150), Served()
    found = judge_side_by_side(Judge(format, engine), examples, [{}] * 150, True)
    assert found == judge_groups(Judge(format, ScriptedEngine(scores)), examples, again=True) and engine.most > 1


def test_best_of_n_is_judged_side_by_side_too() -> None:
    examples, engine = groups(Listwise(), 150), Served()
    found = rerank(examples, Judge(Listwise(), engine))
    assert found == rerank(examples, Judge(Listwise(), ScriptedEngine(scores))) and engine.most > 1


@pytest.mark.parametrize("format", [Pointwise(), Listwise()], ids=Format.described)
def test_rows_of_a_benchmark_are_judged_side_by_side_too(format: Format) -> None:
    made, engine = groups(Listwise(), 75), Served()
    rows = [Labelled(n, str(n), Part({}, {}, {}), (1.0, 0.0), {}, one) for n, one in enumerate(made)]
    found = judged(Judge(format, engine), rows)
    assert found == judged(Judge(format, ScriptedEngine(scores)), rows) and engine.most > 1


@pytest.mark.parametrize(("error", "from_row"), [(EngineError("gone"), 0), (SeveralModels("two"), 60)])
def test_a_judge_that_answers_nothing_raises(error: EngineError, from_row: int) -> None:
    with pytest.raises(type(error)):
        judge_side_by_side(*ending(error, from_row))


def test_what_a_judge_that_is_gone_left_fails() -> None:
    found = judge_side_by_side(*ending(EngineError("gone"), 61))
    assert len(found) == 100
    assert [isinstance(one.outcomes[0], Failure) for one in found] == [False] * 60 + [True] * 40
    assert found[-1].outcomes == (Failure("engine", "gone"),)


def ending(error: EngineError, from_row: int) -> tuple[Judge, list[Example], list[dict[str, object]]]:
    def reply(request: Request) -> str:
        question = next(part.text for part in request.prompt.messages[1].parts if isinstance(part, Untrusted))
        if int(question.split()[1]) >= from_row:
            raise error
        return scores(request)

    return Judge(Pointwise(), Served(reply)), groups(Pointwise(), 100), [{}] * 100


def test_an_example_that_does_not_fit_is_named_before_any_is_judged() -> None:
    examples, engine = groups(Listwise(), 80), Served()
    examples[70] = examples[70].with_candidates(["1 a"])
    with pytest.raises(ConfigError, match="example 70: Listwise judges 2 to 8"):
        judge_side_by_side(Judge(Listwise(), engine), examples, [{}] * 80)
    assert engine.requests == []


# ---- files


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
    assert engine.most > 1
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
