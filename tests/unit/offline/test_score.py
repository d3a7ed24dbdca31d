"""`score_file` and `rerank_file`: rows in, rows out in the same order; wrong rows are named before any judgement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flexjudge_reward import (
    CachedEngine,
    ConfigError,
    EngineError,
    Format,
    Judge,
    Listwise,
    Pairwise,
    Pointwise,
    PositionSwap,
    Request,
    ScriptedEngine,
    Untrusted,
    rerank_file,
    score_file,
)
from support.jsonl import read, write
from support.judging import scores, tags

QA = {"question": "q", "answer": "a"}


def length(request: Request) -> str:
    """Scores the answer by its length."""
    texts = [part.text for part in request.prompt.messages[1].parts if isinstance(part, Untrusted)]
    return f"<think>{len(request.prompt.media)} images</think><answer>{len(texts[-1])}</answer>"


# ---------------------------------------------------------------- score


def test_rows_come_back_in_order_with_their_ids(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{**QA, "id": f"r{n}", "answer": "x" * n} for n in range(1, 9)])
    summary = score_file(source, Judge(Pointwise(), ScriptedEngine(length)), tmp_path / "out.jsonl")
    rows = read(tmp_path / "out.jsonl")
    assert [(row["id"], row["line"], row["scores"]) for row in rows] == [(f"r{n}", n, [n]) for n in range(1, 9)]
    assert rows[0] == {
        "line": 1,
        "id": "r1",
        "question": ["q"],
        "candidates": [["x"]],
        "scores": [1],
        "failures": [None],
        "scale": [1, 10],
        "reasoning": ["0 images"],
        "cached": False,
    }
    assert str(summary).startswith("8 judged (0 from the cache, 8 new), 0 failed; ")


def test_results_go_to_standard_output_without_an_output_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score_file(write(tmp_path / "in.jsonl", [QA]), Judge(Pointwise(), ScriptedEngine(length)))
    assert json.loads(capsys.readouterr().out)["scores"] == [1]


def test_a_second_run_judges_nothing_anew(tmp_path: Path, cache_file: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{**QA, "answer": "x" * n} for n in range(1, 4)])
    requests = []
    for _ in range(2):
        engine = ScriptedEngine(length)
        with Judge(Pointwise(), CachedEngine(engine, cache_file)) as judge:
            summary = score_file(source, judge, tmp_path / "out.jsonl")
        requests.append(len(engine.requests))
    assert requests == [3, 0] and (summary.judged, summary.cached, summary.new) == (3, 3, 0)
    assert [row["cached"] for row in read(tmp_path / "out.jsonl")] == [True] * 3


@pytest.mark.parametrize("format", [Pointwise(), Listwise()], ids=["each_alone", "in_one_list"])
def test_every_candidate_has_an_entry_and_a_broken_one_fails_alone(tmp_path: Path, format: Format) -> None:
    candidates = ["3 a", ["4 ", {"image": "gone.png"}], "5 b", "7 c"]
    source = write(tmp_path / "in.jsonl", [{"question": "q", "candidates": candidates}])
    summary = score_file(source, Judge(format, ScriptedEngine(scores)), tmp_path / "out.jsonl", media_root=tmp_path)
    (row,) = read(tmp_path / "out.jsonl")
    assert row["scores"] == [3, None, 5, 7] and row["scale"] == [1, 10]
    assert [failure and failure["kind"] for failure in row["failures"]] == [None, "media", None, None]
    assert len(row["reasoning"]) == (4 if format.max_candidates == 1 else 1)
    assert (summary.judged, summary.failures) == (4, {"media": 1})


def test_three_candidates_need_the_judge_for_groups_of_a_pair_format(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"question": "q", "candidates": ["3 a", "9 b", "5 c"]}])
    judge = Judge(PositionSwap(Pairwise()), ScriptedEngine(scores))
    with pytest.raises(ConfigError, match=r"line 1: PositionSwap\(Pairwise\) judges 2 candidates .* has 3"):
        score_file(source, judge, tmp_path / "out.jsonl")
    summary = score_file(source, judge.for_group_size(), tmp_path / "out.jsonl")
    (row,) = read(tmp_path / "out.jsonl")
    assert row["scale"] == [0, 1] and row["failures"] == [None] * 3
    assert row["scores"][1] > row["scores"][2] > row["scores"][0]
    assert summary.counters["comparisons"] == summary.counters["swaps"] == 3


def test_a_failed_group_names_its_failure_for_each_candidate(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"question": "q", "candidates": ["3 a", "9 b"]}])
    score_file(source, Judge(Pairwise(), ScriptedEngine(lambda request: tags(3))), tmp_path / "out.jsonl")
    (row,) = read(tmp_path / "out.jsonl")
    assert row["scores"] == [None] * 2 and [failure["kind"] for failure in row["failures"]] == ["wrong_count"] * 2


def test_images_are_read_below_the_root_and_a_bad_one_fails_its_row_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    Image.new("RGB", (8, 8), "red").save(root / "red.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "secret.png")
    (root / "broken.png").write_bytes(b"no image")
    shown = [["red.png", "red.png"], ["broken.png"], ["gone.png"], ["../secret.png"], []]
    source = write(tmp_path / "in.jsonl", [{**QA, "images": images} for images in shown])
    summary = score_file(source, Judge(Pointwise(), ScriptedEngine(length)), tmp_path / "out.jsonl", media_root=root)
    rows = read(tmp_path / "out.jsonl")
    assert [row["reasoning"] for row in rows] == [["2 images"], [""], [""], [""], ["0 images"]]
    kinds = [[failure and failure["kind"] for failure in row["failures"]] for row in rows]
    assert kinds == [[None], ["media"], ["media"], ["media"], [None]]
    assert summary.failures == {"media": 3}


def test_a_media_root_may_be_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images", "cats").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save("images/cats/7.png")
    rows = [{**QA, "images": [name]} for name in ("cats/7.png", str(tmp_path / "images/cats/7.png"), "7.png")]
    source = write(Path("in.jsonl"), rows)
    score_file(source, Judge(Pointwise(), ScriptedEngine(length)), Path("out.jsonl"), media_root=Path("images"))
    assert [row["scores"] for row in read(Path("out.jsonl"))] == [[1], [1], [None]]


def test_an_output_appears_when_it_is_complete(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [QA] * 2)
    with pytest.raises(EngineError):
        score_file(source, Judge(Pointwise(), ScriptedEngine([tags(3)])), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    score_file(source, Judge(Pointwise(), ScriptedEngine(length)), tmp_path / "out.jsonl")
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


# ---------------------------------------------------------------- wrong rows


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param([], "expected a JSON object, found list", id="not_an_object"),
        pytest.param({"answer": "a"}, "'question' is missing", id="no_question"),
        pytest.param({"question": "q"}, "either 'answer' or 'candidates'", id="no_answer"),
        pytest.param({**QA, "candidates": []}, "either 'answer' or 'candidates'", id="both"),
        pytest.param({"question": "q", "candidates": "a"}, "'candidates' must be a list", id="candidates_text"),
        pytest.param({"question": "q", "candidates": []}, "'candidates' is empty", id="no_candidates"),
        pytest.param({"question": None, "answer": "a"}, "a part is a text", id="question_null"),
        pytest.param({**QA, "images": ["p.png"]}, "--media-root", id="no_root"),
        pytest.param({**QA, "images": [3]}, "given by its path", id="path_number"),
        pytest.param({**QA, "rubric": "/etc/passwd"}, "a rubric is criteria in words", id="rubric_is_no_path"),
    ],
)
def test_under_strict_a_wrong_row_stops_the_run_before_it_starts(tmp_path: Path, row: object, message: str) -> None:
    source, engine = write(tmp_path / "in.jsonl", [QA, row]), ScriptedEngine([])
    with pytest.raises(ConfigError, match=f"line 2: .*{message}"):
        score_file(source, Judge(Pointwise(), engine), tmp_path / "out.jsonl", strict=True)
    assert not engine.requests and not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "line 1", id="cut_json"),
        pytest.param("[" * 100_000, "line 1", id="nested_bomb"),
        pytest.param("\n\n", "has no rows", id="empty"),
        pytest.param(b"\xff\xfe{}", "line 1", id="not_utf8"),
    ],
)
def test_a_file_that_is_no_jsonl(tmp_path: Path, text: str | bytes, message: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        score_file(source, Judge(Pointwise(), ScriptedEngine([])))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        score_file(tmp_path / "none.jsonl", Judge(Listwise(), ScriptedEngine([])))


@pytest.mark.parametrize("run", [score_file, rerank_file])
def test_a_row_with_more_candidates_than_the_format_takes_is_named(tmp_path: Path, run: Any) -> None:
    rows = [{"id": n, "question": "q", "candidates": list("abcdefghi"[:count])} for n, count in enumerate((8, 9))]
    source, engine = write(tmp_path / "in.jsonl", rows), ScriptedEngine([])
    with pytest.raises(ConfigError, match="line 2: Listwise judges 2 to 8 candidates at a time, this example has 9"):
        run(source, Judge(Listwise(), engine), tmp_path / "out.jsonl", strict=True)
    assert not engine.requests


# ---------------------------------------------------------------- rerank


def test_the_candidates_of_every_row_are_put_in_order(tmp_path: Path) -> None:
    rows = [{"id": n, "question": "q", "candidates": ["x" * n, "xxxxx", "x"]} for n in (2, 7)]
    source = write(tmp_path / "in.jsonl", rows)
    summary = rerank_file(source, Judge(Pointwise(), ScriptedEngine(length)), tmp_path / "out.jsonl")
    found = read(tmp_path / "out.jsonl")
    assert [(row["id"], row["order"], row["best"]) for row in found] == [(2, [1, 0, 2], 1), (7, [0, 1, 2], 0)]
    assert found[0]["scores"] == [pytest.approx(1 / 9), pytest.approx(4 / 9), 0] and found[0]["scale"] == [0, 1]
    assert found[0]["failures"] == [None] * 3 and summary.judged == 6


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param({"id": 2, "question": "q", "answer": "a"}, "at least two candidates", id="one_candidate"),
        pytest.param({"question": "q", "candidates": ["a", "b"]}, "'id' is missing", id="no_id"),
        pytest.param({"id": 1, "question": "q", "candidates": ["a", "b"]}, "id 1 is that of line 1, too", id="same_id"),
        pytest.param({"id": 2, "candidates": ["a", "b"]}, "'question' is missing", id="no_question"),
    ],
)
def test_a_wrong_rerank_row_is_named_before_anything_is_judged(tmp_path: Path, row: object, message: str) -> None:
    source = write(tmp_path / "in.jsonl", [{"id": 1, "question": "q", "candidates": ["a", "b"]}, row])
    with pytest.raises(ConfigError, match=f"line 2: .*{message}"):
        rerank_file(source, Judge(Pointwise(), ScriptedEngine([])), tmp_path / "out.jsonl", strict=True)


def test_half_a_surrogate_pair_is_kept(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": "\\ud800", "question": "q", "candidates": ["a", "bb"]}\n')
    rerank_file(source, Judge(Pointwise(), ScriptedEngine(length)), tmp_path / "out.jsonl")
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == ["\ud800"]
