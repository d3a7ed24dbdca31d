"""A bad row of a set is a row of the output with its number and reason, and never the end of the file."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import (
    ConfigError,
    Judge,
    MissingExtra,
    Pairwise,
    Pointwise,
    Request,
    ScriptedEngine,
    annotate_file,
    rerank_file,
    score_file,
)
from flexjudge_reward.data.rows import Row, Rows
from support.jsonl import read
from support.judging import scores
from support.late import late

datasets = late("datasets")

GOOD = ["9 first", "3 second"]


def row(number: Any, candidates: Any = GOOD, **more: Any) -> dict[str, Any]:
    return {"id": number, "question": "0 q", "candidates": candidates, **more}


def judge(engine: Any = None) -> Judge:
    return Judge(Pairwise(), engine or ScriptedEngine(scores))


BAD: dict[str, tuple[Any, str]] = {
    "one_candidate": (row(1, ["9 only"]), "at least two candidates"),
    "no_candidate": (row(1, []), "'candidates' is empty"),
    "a_null_among_them": (row(1, ["9 only", None]), "a part is a text"),
    "null_for_the_list": (row(1, None), "'candidates' must be a list"),
    "a_text_for_the_list": (row(1, "9 a"), "'candidates' must be a list"),
    "a_truth_for_a_candidate": (row(1, ["9 a", True]), "a part is a text"),
    "no_question": ({"id": 1, "candidates": GOOD}, "'question' is missing"),
    "null_question": (row(1, question=None), "a part is a text"),
    "no_candidates_at_all": ({"id": 1, "question": "0 q"}, "either 'answer' or 'candidates'"),
    "both": (row(1, answer="9 a"), "either 'answer' or 'candidates'"),
    "repeated_id": (row(0), "the id 0 is that of line 1, too"),
    "no_id": ({"question": "0 q", "candidates": GOOD}, "'id' is missing"),
    "unknown_part": (row(1, [["9 a", {"sound": "x"}], "3 b"]), "a part is a text"),
    "part_of_two_kinds": (row(1, [[{"text": "9", "image": "x"}], "3 b"]), "a part is a text"),
    "image_that_is_a_number": (row(1, images=[7]), "the image is given by its path or as a data URI"),
    "path_without_a_root": (row(1, images=["x.png"]), "give --media-root DIR"),
    "place_without_an_image": (row(1, question=["0 q", {"type": "image"}]), "'image' has no source, and no column"),
    "more_images_than_places": (row(1, question=[{"type": "image"}], image=["data:,", "data:,"]), "1 image places but"),
    "rubric_that_is_a_path": (row(1, rubric="/etc/passwd"), "a rubric is criteria in words"),
    "rubric_without_a_scale": (row(1, rubric={"criteria": "c", "low": 5, "high": 1}), "low < high"),
    "reference_that_is_an_object": (row(1, reference={"a": 1}), "a part is a text"),
    "message_without_a_role": (row(1, [[{"role": "user", "content": "a"}, "b"], "3 b"]), "'role' and 'content'"),
    "candidates_of_unequal_kind": (row(1, ["9 a", [{"molecule": "CCO"}]]), "of unequal kind"),
    "a_list_for_a_row": ([1, 2], "expected a JSON object, found list"),
    "a_number_for_a_row": (7, "expected a JSON object, found int"),
    "no_json": ("{broken", "line 1 column 2"),
    "nested_without_end": ("[" * 100_000, "nested too deeply"),
    "not_utf8": (b'{"id": 1, "question": "\xff", "candidates": ["9 a", "3 b"]}', "not UTF-8"),
}


def written(path: Path, bad: Any, count: int = 1) -> Path:
    line = bad if isinstance(bad, bytes) else (bad if isinstance(bad, str) else json.dumps(bad)).encode()
    lines = [json.dumps(row(0)).encode(), *[line] * count, json.dumps(row(2)).encode()]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.mark.parametrize(("bad", "why"), BAD.values(), ids=BAD)
def test_annotate_writes_it_to_the_skipped_file(
    tmp_path: Path, bad: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    source, output = written(tmp_path / "in.jsonl", bad), tmp_path / "out.jsonl"
    with caplog.at_level(logging.WARNING):
        counts = annotate_file(source, judge(), output)
    assert (counts["rows"], counts["pairs"], counts["row"]) == (3, 2, 1)
    assert [pair["id"] for pair in read(output)] == [0, 2]
    (skipped,) = read(tmp_path / "out.skipped.jsonl")
    assert (skipped["line"], skipped["why"]) == (2, "row") and why in skipped["detail"]
    assert "| row | 1 |" in (tmp_path / "out.md").read_text()
    assert len(caplog.records) == 1 and "1 of 3 rows cannot be used and were skipped; line 2: " in caplog.text


@pytest.mark.parametrize("run", [score_file, rerank_file])
@pytest.mark.parametrize(("bad", "why"), BAD.values(), ids=BAD)
def test_score_and_rerank_write_it_in_its_place(tmp_path: Path, run: Any, bad: Any, why: str) -> None:
    if "unequal" in why or (run is score_file and ("id" in why or "two cand" in why)):
        pytest.skip("such a row can be judged")
    summary = run(written(tmp_path / "in.jsonl", bad), judge(), tmp_path / "out.jsonl")
    first, found, last = read(tmp_path / "out.jsonl")
    assert (found["line"], found["scores"], found["failures"]) == (2, [], []) and why in found["error"]
    assert "error" not in first and len(first["scores"]) == len(last["scores"]) == 2 and last["id"] == 2
    assert (summary.skipped, summary.judged) == (1, 4) and ", 1 rows skipped" in str(summary)


@pytest.mark.parametrize("run", [score_file, rerank_file, annotate_file])
@pytest.mark.parametrize(
    "bad", [BAD["no_candidate"][0], BAD["null_question"][0], "{broken"], ids=["empty", "null", "json"]
)
def test_under_strict_it_ends_the_run_before_anything_is_judged(tmp_path: Path, run: Any, bad: Any) -> None:
    engine = ScriptedEngine([])
    with pytest.raises(ConfigError, match=r"in\.jsonl, line 2: "):
        run(written(tmp_path / "in.jsonl", bad), judge(engine), tmp_path / "out.jsonl", strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("run", [score_file, rerank_file, annotate_file])
@pytest.mark.parametrize("bad", [BAD["no_candidate"][0], "{broken", b"\xff"], ids=["empty", "json", "not_utf8"])
def test_a_set_of_bad_rows_alone_is_an_error_that_names_the_first(tmp_path: Path, run: Any, bad: Any) -> None:
    line = bad if isinstance(bad, bytes) else (bad if isinstance(bad, str) else json.dumps(bad)).encode()
    (tmp_path / "in.jsonl").write_bytes((line + b"\n") * 3)
    with pytest.raises(ConfigError, match=r"in\.jsonl, line 1: .* \(and none of 3 rows can be used\)"):
        run(tmp_path / "in.jsonl", judge(), tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_whole_batch_of_bad_rows_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexjudge_reward.offline.annotate.BATCH", 4)
    monkeypatch.setattr("flexjudge_reward.offline.score.BATCH", 4)
    source = written(tmp_path / "in.jsonl", row(1, []), 13)
    assert annotate_file(source, judge(), tmp_path / "pairs.jsonl")["row"] == 13
    assert score_file(source, judge(), tmp_path / "scores.jsonl").skipped == 13
    assert len(read(tmp_path / "pairs.skipped.jsonl")) == 13 and len(read(tmp_path / "scores.jsonl")) == 15


def test_bad_rows_of_a_data_set_have_its_numbers(tmp_path: Path) -> None:
    rows = [{"question": question, "candidates": GOOD} for question in ("0 q", None, "0 r")]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "in.parquet")
    counts = annotate_file(tmp_path / "in.parquet", judge(), tmp_path / "out.jsonl")
    (skipped,) = read(tmp_path / "out.skipped.jsonl")
    assert (counts["pairs"], skipped["row"], skipped["id"]) == (2, 1, 1)


def test_a_killed_run_with_bad_rows_continues_as_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexjudge_reward.offline.annotate.BATCH", 4)
    rows = [row(n, [] if n % 3 == 1 else GOOD) for n in range(20)]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(one) + "\n" for one in rows))

    class Stopping:
        """A judge that is killed after so many replies."""

        def __init__(self, left: int) -> None:
            self.left = left

        def __call__(self, request: Request) -> str:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return scores(request)

    def run(name: str, left: int = 99) -> None:
        annotate_file(source, judge(ScriptedEngine(Stopping(left))), tmp_path / name)

    run("whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        run("broken.jsonl", 15)
    run("broken.jsonl")
    for name in (".jsonl", ".skipped.jsonl", ".md"):
        assert (tmp_path / f"broken{name}").read_bytes() == (tmp_path / f"whole{name}").read_bytes()


def test_a_missing_package_is_no_bad_row(tmp_path: Path) -> None:
    def check(row: Row) -> None:
        raise MissingExtra("rdkit", "molecules")

    with pytest.raises(MissingExtra):
        Rows(written(tmp_path / "in.jsonl", row(1))).verify(check)


@pytest.mark.parametrize(
    ("which", "count", "used"),
    [("all", 64, True), ("all", 65, False), ("best", 256, True), ("best", 257, False)],
)
def test_a_row_of_many_candidates_is_a_skipped_row(tmp_path: Path, which: Any, count: int, used: bool) -> None:
    rows = [row(0), row(1, [f"{n % 10} {n}" for n in range(count)])]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    judge = Judge(Pointwise(), ScriptedEngine(scores))
    counts = annotate_file(tmp_path / "in.jsonl", judge, tmp_path / "out.jsonl", which)
    assert counts["row"] == (not used) and counts["rows"] == 2


def test_a_row_that_its_format_cannot_judge_is_one_row(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", row(1, ["9 a", "3 b", "5 c"]))
    assert score_file(source, judge(), tmp_path / "out.jsonl").skipped == 1
    assert "judges 2 candidates" in read(tmp_path / "out.jsonl")[1]["error"]
