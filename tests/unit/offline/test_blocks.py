"""Blocks of rows give what the same rows give on one machine; all but Ray itself of `score --ray` and so on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from flexjudge_reward import (
    ConfigError,
    EngineError,
    Generation,
    Judge,
    MissingExtra,
    Pairwise,
    Pointwise,
    Record,
    ScriptedEngine,
    annotate_file,
    rerank_file,
    score_file,
    score_on_ray,
)
from flexjudge_reward.data.rows import RowOptions
from flexjudge_reward.offline.blocks import FILE_ROW, LINE, WHY_NOT, BlockRows, PairJob, ScoreJob
from flexjudge_reward.offline.pairs import pair_format
from flexjudge_reward.offline.ray_files import OutputFolder, SourceFiles
from support.jsonl import read
from support.late import needs
from support.ray_jobs import comparable, image_files, reply, text_files, written

needs("datasets")

Job = ScoreJob | PairJob


def judge() -> Judge:
    return Judge(Pointwise(), ScriptedEngine(reply))


def tables(folder: Path) -> list[pa.Table]:
    """The blocks of a folder: a table for each file, as `ray_source` makes them."""
    blocks = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".parquet":
            table = parquet.read_table(path)
            places = [f"{path.name}:{n:09}" for n in range(table.num_rows)]
            blocks.append(table.append_column(FILE_ROW, pa.array(places)))
            continue
        lines = path.read_bytes().splitlines(keepends=True)
        columns = [[f"{path.name}:{n:09}" for n in range(1, len(lines) + 1)], lines, [None] * len(lines)]
        blocks.append(
            pa.table(columns, pa.schema([(FILE_ROW, pa.string()), (LINE, pa.binary()), (WHY_NOT, pa.string())]))
        )
    return blocks


def run(job: Job, blocks: list[pa.Table], out: Path) -> list[dict[str, Any]]:
    """The rows of the output of a job."""
    out.mkdir()
    job.begin(list(BlockRows("rows", blocks[0], RowOptions()).read(job.check)))
    for number, block in enumerate(blocks):
        for part, table in enumerate(job(block)):
            assert table.schema == job.schema()
            parquet.write_table(table, out / f"{number}-{part}.parquet")
    return written(out)


@pytest.mark.parametrize("seed", [pytest.param(None, id="score"), pytest.param(0, id="rerank")])
def test_results_are_those_of_one_machine(tmp_path: Path, seed: int | None) -> None:
    folder = text_files(tmp_path / "texts", 120)
    whole = tmp_path / "whole.jsonl"
    whole.write_text("".join(path.read_text() for path in sorted(folder.iterdir())))
    alone = score_file if seed is None else rerank_file
    alone(whole, judge(), tmp_path / "alone.jsonl")
    blocks = run(ScoreJob("rows", judge(), RowOptions(), seed), tables(folder), tmp_path / "out")
    assert comparable(blocks) == comparable(read(tmp_path / "alone.jsonl"))
    assert sum("error" in row for row in comparable(blocks)) == 9  # kept as rows, with their reason
    assert len({row["file_row"] for row in blocks}) == len(blocks) == 122


@pytest.mark.parametrize("which", ["best", "all"])
@pytest.mark.parametrize("make", [pytest.param(text_files, id="texts"), pytest.param(image_files, id="images")])
def test_pairs_are_those_of_one_machine(tmp_path: Path, which: Any, make: Callable[[Path, int], Path]) -> None:
    folder = make(tmp_path / "in", 60)
    source = folder
    if make is text_files:
        source = tmp_path / "whole.jsonl"
        source.write_text("".join(path.read_text() for path in sorted(folder.iterdir())))
    counts = annotate_file(source, judge(), tmp_path / "alone", which, 1.0)
    job = PairJob("rows", Judge(pair_format(Pointwise()), ScriptedEngine(reply)), RowOptions(), which, 1.0)
    blocks = run(job, tables(folder), tmp_path / "out")
    kept = [{name: value for name, value in row.items() if name != "pair"} for row in blocks if row["kept"]]
    assert comparable(kept) == comparable(written(tmp_path / "alone" / "data"))
    skipped = [row for row in blocks if not row["kept"]]
    assert comparable(skipped) == comparable(read(tmp_path / "alone" / "pairs.skipped.jsonl"))
    assert len(kept) == counts["pairs"] > 20 and len(skipped) == sum(counts.values()) - counts["pairs"] - counts["rows"]


def lines(*rows: object) -> pa.Table:
    texts = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    columns = [[f"a.jsonl:{n:09}" for n in range(1, len(rows) + 1)], texts, [None] * len(rows)]
    return pa.table(columns, pa.schema([(FILE_ROW, pa.string()), (LINE, pa.binary()), (WHY_NOT, pa.string())]))


GOOD = {"id": 1, "question": "q", "candidates": ["a", "b"]}


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({**GOOD, "question": [{"image": "data:image/png;base64,AA=="}, "q"]}, id="an-image-after-texts"),
        pytest.param({**GOOD, "id": "text"}, id="an-id-of-another-kind"),
    ],
)
def test_a_row_that_does_not_fit_the_columns_is_skipped_with_the_reason(row: dict[str, Any]) -> None:
    job = PairJob("rows", judge(), RowOptions(), "best", 0.0)
    job.begin(list(BlockRows("rows", lines(GOOD), RowOptions()).read(job.check)))
    rows = [row for table in job(lines(GOOD, row)) for row in table.to_pylist()]
    assert [(row["file_row"][-1], row["why"]) for row in rows][-1] == ("2", "row")
    assert "another form" in rows[-1]["detail"]


def test_a_table_is_cut_only_between_the_pairs_of_two_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("flexjudge_reward.offline.blocks.CHUNK_BYTES", 600)
    job = PairJob("rows", judge(), RowOptions(), "all", 0.0)
    block = tables(image_files(tmp_path / "in", 12, files=1))[0]
    job.begin(list(BlockRows("rows", block, RowOptions()).read(job.check)))
    found = [{row["file_row"] for row in table.to_pylist()} for table in job(block)]
    assert len(found) > 3 and sum(map(len, found)) == len(set.union(*found)) == 12


def test_a_column_of_the_source_may_have_the_name_of_ours() -> None:
    table = pa.table({"question": ["q"], "answer": ["a"], LINE: [5], FILE_ROW: ["a.parquet:000000000"]})
    (row,) = next(ScoreJob("rows", judge(), RowOptions())(table)).to_pylist()
    assert row["failures"] == [None] and row["scores"]


def test_an_empty_block_keeps_its_columns() -> None:
    job = ScoreJob("rows", judge(), RowOptions())
    assert [table.num_rows for table in job(lines(GOOD).slice(0, 0))] == [0]


def test_a_judge_that_answers_nothing_of_a_block_ends_the_run() -> None:
    dead = Judge(Pointwise(), ScriptedEngine(lambda request: Generation.failed("transport", "it is gone")))
    for job in (ScoreJob("rows", dead, RowOptions()), PairJob("rows", dead, RowOptions(), "best", 0.0)):
        job.begin(list(BlockRows("rows", lines(GOOD), RowOptions()).read(job.check)))
        with pytest.raises(EngineError, match="answered nothing of 2 rows: it is gone"):
            list(job(lines(GOOD, {**GOOD, "id": 2})))


def test_strict_names_the_first_row_that_cannot_be_used() -> None:
    job = ScoreJob("rows", judge(), RowOptions(), strict=True)
    with pytest.raises(ConfigError, match=r"^a\.jsonl:000000002: "):
        list(job(lines(GOOD, b"{", b"[")))


# ---------------------------------------------------------------- files


def refused(tmp_path: Path, names: list[str]) -> str:
    for name in names:
        (tmp_path / name).write_text("{}\n")
    with pytest.raises(ConfigError) as caught:
        SourceFiles.of(str(tmp_path))
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        pytest.param([], "no .parquet, .jsonl or .csv files", id="an-empty-folder"),
        pytest.param(["README.md", "_a.jsonl"], "no .parquet, .jsonl or .csv files", id="other-files"),
        pytest.param(["a.jsonl.gz", "b.parquet"], "kinds jsonl and parquet", id="two-kinds"),
    ],
)
def test_a_source_without_rows_is_refused(tmp_path: Path, names: list[str], says: str) -> None:
    assert says in refused(tmp_path, names)


def test_a_source_that_is_missing_is_refused(tmp_path: Path) -> None:
    for source in (str(tmp_path / "none"), "nothing://here"):
        with pytest.raises(ConfigError, match=r"no .parquet|cannot be reached"):
            SourceFiles.of(source)


@pytest.mark.parametrize(
    ("source", "output", "apart"),
    [
        pytest.param("in", "in", False, id="the-same"),
        pytest.param("in", "in/out", False, id="output-below"),
        pytest.param("in/a.jsonl", "in", False, id="source-below"),
        pytest.param("in", "in-out", True, id="a-longer-name"),
        pytest.param("in/a.jsonl", "in/out", True, id="beside-a-file"),
    ],
)
def test_an_output_is_no_part_of_the_source(tmp_path: Path, source: str, output: str, apart: bool) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").touch()
    files, place = SourceFiles.of(str(tmp_path / source)), OutputFolder.of(tmp_path / output)
    with nullcontext() if apart else pytest.raises(ConfigError, match="give another place"):
        place.check_apart(files)


def test_an_output_belongs_to_one_run(tmp_path: Path) -> None:
    place, checkpoint = OutputFolder.of(tmp_path / "out"), tmp_path / "out.checkpoint"
    checkpoint.mkdir()
    place.begin("a run")
    assert not checkpoint.exists()  # it was of an output that is gone: its rows would count as written
    checkpoint.mkdir()
    place.begin("a run")
    assert checkpoint.exists()
    with pytest.raises(ConfigError, match="unfinished run of other rows or settings"):
        place.begin("another run")
    place.finish()
    assert not checkpoint.exists()
    with pytest.raises(ConfigError, match="is complete"):
        place.begin("a run")
    (tmp_path / "out" / "_run.json").write_text("[")
    with pytest.raises(ConfigError, match="damaged"):
        place.begin("a run")
    (tmp_path / "out" / "_run.json").unlink()
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(ConfigError, match="has other files"):
        place.begin("a run")


LATE = {  # files, and checkpoints with their rows, beside two tasks of two rows; and whether no row has to be repeated
    "nothing": ([], {}, True),
    "a_file_whose_checkpoint_was_removed": (["RUN_q_000007"], {}, True),
    "a_file_that_is_not_complete": (["RUN_q_000007"], {"RUN_q_000007.pending": ["1"]}, True),
    "a_file_in_two_partitions": (["RUN_q_000007", "kept=true/RUN_q_000007"], {}, True),
    "a_checkpoint_without_files": ([], {"RUN_q_000007": ["5"]}, False),
    "one_that_is_not_complete": ([], {"RUN_q_000007.pending": ["5"]}, True),
    "a_task_with_rows_of_another": (["RUN_q_000007"], {"RUN_q_000007": ["1", "2"]}, False),
    "with_one_in_two_partitions": (["RUN_q_000007", "kept=true/RUN_q_000007"], {"RUN_q_000007": ["5", "3"]}, False),
    "two_with_rows_of_others": (
        ["RUN_q_000007", "RUN_r_000007"],
        {"RUN_q_000007": ["1", "2"], "RUN_r_000007": ["3", "4"]},
        False,
    ),
    "two_with_a_row_of_the_first": (
        ["RUN_q_000007", "RUN_r_000007"],
        {"RUN_q_000007": ["1"], "RUN_r_000007": ["1"]},
        False,
    ),
    "a_task_of_an_output_that_was_removed": (["0_p_000000"], {"0_p_000000": ["1", "2"]}, False),
}


@pytest.mark.parametrize(("files", "checkpoints", "settled"), LATE.values(), ids=LATE)
def test_what_a_late_task_leaves_is_no_part_of_the_output(
    tmp_path: Path, files: list[str], checkpoints: dict[str, list[str]], settled: bool
) -> None:
    place, own = OutputFolder.of(tmp_path / "out"), ["RUN_p_000000", "kept=true/RUN_p_000000", "RUN_p_000001"]
    run = place.begin("a run")
    assert place.begin("a run") == run
    (tmp_path / "out" / "notes-1.parquet").touch()  # the user's own
    (tmp_path / "out.checkpoint").mkdir()
    for name in [*own, *files]:
        path = tmp_path / "out" / f"{name}-0.parquet".replace("RUN", run)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for name, rows in {"RUN_p_000000": ["1", "2", "2"], "RUN_p_000001": ["3", "4"], **checkpoints}.items():
        path = tmp_path / "out.checkpoint" / f"{name}.parquet".replace("RUN", run)
        parquet.write_table(pa.table({FILE_ROW: rows}), path)
    assert place.settled(run) is settled
    found = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.parquet")]
    assert sorted(found) == sorted(["notes-1.parquet", *(f"{name}-0.parquet".replace("RUN", run) for name in own)])
    left = {path.stem.replace(run, "RUN") for path in (tmp_path / "out.checkpoint").iterdir()}
    assert left == {"RUN_p_000000", "RUN_p_000001", *(name for name in checkpoints if name.endswith("pending"))}
    assert place.settled(run)


def test_a_task_that_is_removed_leaves_its_rows_to_others(tmp_path: Path) -> None:
    place = OutputFolder.of(tmp_path / "out")
    run = place.begin("a run")
    (tmp_path / "out.checkpoint").mkdir()
    for number in range(5):  # each has a row of the one before; where that one is removed, the row is written once
        (tmp_path / "out" / f"{run}_{number}_000000-0.parquet").touch()
        ids = pa.table({FILE_ROW: [str(number), str(number + 1)]})
        parquet.write_table(ids, tmp_path / "out.checkpoint" / f"{run}_{number}_000000.parquet")
    assert not place.settled(run)
    left = sorted(path.stem for path in (tmp_path / "out.checkpoint").iterdir())
    assert left == [f"{run}_{number}_000000" for number in (0, 2, 4)]


# ---------------------------------------------------------------- what is refused before Ray starts


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'flexjudge-reward\[ray\]'"):
        score_on_ray(tmp_path, judge(), tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"limit": 3}, "limit is not for Ray", id="limit"),
        pytest.param({"shuffle_seed": 0}, "shuffle_seed is not for Ray", id="shuffle"),
        pytest.param({"split": "train"}, "split is not for Ray", id="split"),
    ],
)
def test_options_that_need_all_rows_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, says: str
) -> None:
    monkeypatch.setattr("flexjudge_reward.offline.on_ray._ray", lambda: None)
    with pytest.raises(ConfigError, match=says):
        score_on_ray(tmp_path, judge(), tmp_path / "out", **options)


def test_a_record_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexjudge_reward.offline.on_ray._ray", lambda: None)
    recording = Judge(Pairwise(), ScriptedEngine(reply), record=Record(tmp_path / "record.jsonl"))
    with pytest.raises(ConfigError, match="leave out record"):
        score_on_ray(tmp_path, recording, tmp_path / "out")
