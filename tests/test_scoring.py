"""`flexjudge score`: rows in, verdict rows out; wrong rows are named before anything is judged."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flexjudge_reward import ConfigError, Judge, Listwise, Prompt, Score
from flexjudge_reward.cli.main import main
from flexjudge_reward.data.rows import Rows
from flexjudge_reward.engines.cache.engine import CachedEngine
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.offline.score import rerank_file, score_file

QA = {"question": "q", "answer": "a"}


def length(prompt: Prompt) -> str:
    """Scores the answer by its length."""
    quoted = [part.text for part in prompt.messages[1].parts if hasattr(part, "text")]
    return f"<think>{len(prompt.media)} pictures</think><answer>{len(quoted[-1])}</answer>"


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_come_back_in_order_with_their_ids(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{**QA, "id": f"r{n}", "answer": "x" * n} for n in range(1, 9)])
    summary = score_file(source, Judge(Score(), ScriptedEngine(length)), tmp_path / "out.jsonl")
    rows = read(tmp_path / "out.jsonl")
    assert [(row["id"], row["line"], row["scores"]) for row in rows] == [(f"r{n}", n, [n]) for n in range(1, 9)]
    assert str(summary) == "8 judged (0 from the cache), 0 failed"


def test_verdicts_go_to_standard_output_without_an_output_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score_file(write(tmp_path / "in.jsonl", [QA]), Judge(Score(), ScriptedEngine(length)))
    assert json.loads(capsys.readouterr().out)["scores"] == [1]


def test_a_second_run_judges_nothing_anew(tmp_path: Path, cache_file: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{**QA, "answer": "x" * n} for n in range(1, 4)])
    asked = []
    for _ in range(2):
        engine = ScriptedEngine(length)
        judge = Judge(Score(), CachedEngine(engine, cache_file))
        summary = score_file(source, judge, tmp_path / "out.jsonl")
        judge.close()
        asked.append(len(engine.prompts))
    assert asked == [3, 0] and (summary.judged, summary.cached) == (3, 3)


def test_pictures_are_read_below_the_root_and_a_bad_one_fails_its_row_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    Image.new("RGB", (8, 8), "red").save(root / "red.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "secret.png")
    (root / "broken.png").write_bytes(b"no picture")
    shown = [["red.png", "red.png"], ["broken.png"], ["gone.png"], ["../secret.png"], []]
    source = write(tmp_path / "in.jsonl", [{**QA, "images": images} for images in shown])
    summary = score_file(source, Judge(Score(), ScriptedEngine(length)), tmp_path / "out.jsonl", media_root=root)
    rows = read(tmp_path / "out.jsonl")
    assert [row["reasoning"] for row in rows] == ["2 pictures", "", "", "", "0 pictures"]
    assert [(row["failure"] or {}).get("kind") for row in rows] == [None, "media", "media", "media", None]
    assert summary.failures == {"media": 3}


def test_parts_may_stand_anywhere(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    content = ["see ", {"type": "image", "image": "p.png"}, {"type": "text", "text": " here"}]
    source = write(tmp_path / "in.jsonl", [{"question": content, "candidates": ["a", content], "reference": "r"}])
    (row,) = Rows(source, media_root=tmp_path).read(lambda row: None)
    assert [len(part) for part in (row.example.question, *row.example.candidates)] == [3, 1, 3]
    assert len(row.example.media) == 2 and row.example.reference == ("r",)


def test_a_row_brings_its_own_rubric(tmp_path: Path) -> None:
    rubrics = ["helpfulness-5", {"criteria": "blue?", "low": 0, "high": 3}]
    source = write(tmp_path / "in.jsonl", [{**QA, "rubric": rubric} for rubric in rubrics])
    found = [row.example.rubric for row in Rows(source).read(lambda row: None)]
    assert [(rubric.scale.low, rubric.scale.high) for rubric in found if rubric] == [(1, 5), (0, 3)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param([], "expected a JSON object, found list", id="not_an_object"),
        pytest.param({"answer": "a"}, "'question' is missing", id="no_question"),
        pytest.param({"question": "q"}, "either 'answer' or 'candidates'", id="no_answer"),
        pytest.param({**QA, "candidates": []}, "either 'answer' or 'candidates'", id="both"),
        pytest.param({"question": "q", "candidates": "a"}, "'candidates' must be a list", id="candidates_text"),
        pytest.param({"question": 4, "answer": "a"}, "a part is a text", id="question_number"),
        pytest.param({**QA, "images": "p.png"}, "'images' must be a list", id="images_text"),
        pytest.param({**QA, "images": ["p.png"]}, "--media-root", id="no_root"),
        pytest.param({**QA, "images": [3]}, "given by its path", id="path_number"),
        pytest.param({**QA, "rubric": "/etc/passwd"}, "'rubric' is an object", id="rubric_is_no_path"),
        pytest.param({**QA, "rubric": {"low": 1}}, "'criteria' is missing", id="rubric_without_criteria"),
        pytest.param({**QA, "rubric": {"criteria": "x", "low": 9, "high": 1}}, "low < high", id="rubric_scale"),
        pytest.param({"question": "q", "candidates": ["a", "b"]}, "this row has 2", id="wrong_format"),
    ],
)
def test_a_wrong_row_stops_the_run_before_it_starts(tmp_path: Path, row: object, message: str) -> None:
    source = write(tmp_path / "in.jsonl", [QA, row])
    with pytest.raises(ConfigError, match=f"line 2: .*{message}"):
        score_file(source, Judge(Score(), ScriptedEngine([])), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


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
        score_file(source, Judge(Score(), ScriptedEngine([])))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        score_file(tmp_path / "none.jsonl", Judge(Listwise(), ScriptedEngine([])))


def test_a_file_of_groups_is_put_in_order(tmp_path: Path) -> None:
    rows = [{"id": n, "question": "q", "candidates": ["x" * n, "xxxxx", "x"]} for n in (2, 7)]
    source = write(tmp_path / "in.jsonl", rows)
    summary = rerank_file(source, Judge(Score(), ScriptedEngine(length)), tmp_path / "out.jsonl")
    found = read(tmp_path / "out.jsonl")
    assert [(row["id"], row["order"], row["best"]) for row in found] == [(2, [1, 0, 2], 1), (7, [0, 1, 2], 0)]
    assert found[0]["scores"][2] == 0 and found[0]["failures"] == [None] * 3 and summary.judged == 6


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param({"id": 2, "question": "q", "answer": "a"}, "at least two candidates", id="one_candidate"),
        pytest.param({"question": "q", "candidates": ["a", "b"]}, "'id' is missing", id="no_id"),
        pytest.param({"id": 1, "question": "q", "candidates": ["a", "b"]}, "stands in line 1", id="duplicate_id"),
        pytest.param({"id": 2, "candidates": ["a", "b"]}, "'question' is missing", id="missing_field"),
    ],
)
def test_a_wrong_rerank_row_is_named_before_anything_is_judged(tmp_path: Path, row: object, message: str) -> None:
    source = write(tmp_path / "in.jsonl", [{"id": 1, "question": "q", "candidates": ["a", "b"]}, row])
    with pytest.raises(ConfigError, match=f"line 2: .*{message}"):
        rerank_file(source, Judge(Score(), ScriptedEngine([])), tmp_path / "out.jsonl")


def test_a_row_with_more_candidates_than_the_format_takes_is_named_before_anything_is_judged(tmp_path: Path) -> None:
    rows = [{"id": n, "question": "q", "candidates": list("abcdefghi"[:count])} for n, count in enumerate((8, 9))]
    source, engine = write(tmp_path / "in.jsonl", rows), ScriptedEngine([])
    with pytest.raises(ConfigError, match=r"line 2: .*at most 8 candidates at a time, this row has 9"):
        rerank_file(source, Judge(Listwise(), engine), tmp_path / "out.jsonl")
    assert not engine.prompts


def test_half_a_surrogate_pair_is_kept(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": "\\ud800", "question": "q", "candidates": ["a", "bb"]}\n')
    rerank_file(source, Judge(Score(), ScriptedEngine(length)), tmp_path / "out.jsonl")
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == ["\ud800"]


def test_the_command_judges_with_the_embedded_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.jsonl", [{"question": "top-left red star. What is top-left?", "answer": "red star"}])
    command = ["score", str(source), "-o", str(tmp_path / "out.jsonl"), "--model", "nano", "--cache", "off"]
    assert main(command) == 0
    (row,) = read(tmp_path / "out.jsonl")
    assert (row["scores"] is None) != (row["failure"] is None)
    assert "The judge is nano on transformers" in capsys.readouterr().err


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(tmp_path / "none.jsonl"), "--cache", "off"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("flexjudge: error: no file")


def test_a_media_root_may_be_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pictures", "cats").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save("pictures/cats/7.png")
    rows = [{**QA, "images": [name]} for name in ("cats/7.png", str(tmp_path / "pictures/cats/7.png"), "7.png")]
    source = write(Path("in.jsonl"), rows)
    score_file(source, Judge(Score(), ScriptedEngine(length)), Path("out.jsonl"), media_root=Path("pictures"))
    assert [row["failure"] and row["failure"]["kind"] for row in read(Path("out.jsonl"))] == [None, None, "media"]


def test_without_the_extra_the_command_ends_in_one_line_with_the_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    assert main(["score", str(tmp_path / "rows.jsonl")]) == 2
    assert "pip install 'flexjudge-reward[transformers]'" in capsys.readouterr().err.splitlines()[-1]
