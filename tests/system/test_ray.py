"""Jobs on a real Ray of this machine, with two judges: every row once, also after a run that broke."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import Judge, Pointwise, ScriptedEngine, annotate_file, rerank_file
from support.jsonl import read
from support.ray_jobs import comparable, image_files, reply, text_files, written

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs Ray: pip install 'flexjudge-reward[ray]'", allow_module_level=True)

ROOT = Path(__file__).parents[2]
# Each process of Ray takes 2 s of processor time to start. By default 32 of them read the few files of a checkpoint,
# and one that has been idle for a second ends, while the next task starts another one.
FEW_PROCESSES = {"RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1", "RAY_idle_worker_killing_time_threshold_ms": "60000"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all jobs have run, since Ray starts slowly."""
    folder = tmp_path_factory.mktemp("ray")
    text_files(folder / "texts", 200)
    image_files(folder / "images", 40)
    (folder / "cells.csv.gz").write_bytes(gzip.compress(b'question,answer\nq,"two\nlines"\nq,a,b\n'))
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environ = {"PYTHONPATH": path, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests/support/ray_driver.py"), str(folder)],
        env=os.environ | environ | FEW_PROCESSES,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


@pytest.fixture
def found(folder: Path) -> dict[str, Any]:
    """What the jobs returned or raised."""
    return json.loads((folder / "found.json").read_text())  # type: ignore[no-any-return]


def alone(job: Callable[..., object], source: Path, output: Path, **options: Any) -> None:
    """The same job on one machine."""
    if any(source.glob("*.jsonl")):
        whole = output.with_name(f"{output.name}.all.jsonl")
        whole.write_text("".join(path.read_text() for path in sorted(source.iterdir())))
        source = whole
    job(source, Judge(Pointwise(), ScriptedEngine(reply)), output, **options)


def test_files_of_lines_in_order(folder: Path, found: dict[str, Any], tmp_path: Path) -> None:
    alone(rerank_file, folder / "texts", tmp_path / "ranked.jsonl")
    rows = written(folder / "ranked")
    assert comparable(rows) == comparable(read(tmp_path / "ranked.jsonl"))
    places = [row["file_row"] for row in rows]
    assert places == sorted(set(places)) and len(places) == 202
    assert found["ranked"]["skipped"] == 14 and found["ranked"]["failures"] == {"empty": 16}
    assert not (folder / "ranked.checkpoint").exists()


def test_a_data_set_with_images(folder: Path, found: dict[str, Any], tmp_path: Path) -> None:
    alone(annotate_file, folder / "images", tmp_path / "pairs", margin=1.0)
    pairs = [{k: v for k, v in row.items() if k != "pair"} for row in written(folder / "pairs" / "kept=true")]
    assert comparable(pairs) == comparable(written(tmp_path / "pairs" / "data"))
    skipped = written(folder / "pairs" / "kept=false")
    assert comparable(skipped) == comparable(read(tmp_path / "pairs" / "pairs.skipped.jsonl"))
    assert found["continued"]["rows"] == 40 and found["continued"]["pairs"] == len(pairs) > 15


def test_a_trainer_reads_the_kept_pairs(folder: Path) -> None:
    from datasets import load_dataset

    pairs = load_dataset(str(folder / "pairs" / "kept=true"))["train"]
    assert pairs[0]["images"][0].size == (8, 6) and pairs[0]["prompt"][0]["role"] == "user"


def test_a_run_that_broke_continues_with_the_rows_that_are_not_written(folder: Path, found: dict[str, Any]) -> None:
    assert found["stopped"].startswith("the judge is gone (what is written is kept")
    first, second = (set((folder / name).read_text().splitlines()) for name in ("first.txt", "second.txt"))
    assert len(first | second) == 39  # the image of one is damaged
    assert first - second  # those that the first run has written are not judged again


def test_cells_are_rows(found: dict[str, Any]) -> None:
    good, bad = found["cells"]
    assert good == ["cells.csv.gz:000000000", [["two\nlines"]]]
    assert bad == ["cells.csv.gz:000000001", "there are more cells than columns"]


def test_a_cluster_that_is_too_small_is_refused(folder: Path, found: dict[str, Any]) -> None:
    says = "the Ray cluster is too small for 100 judges: it has 4 CPUs and 52 are needed. Ray would wait for ever"
    assert found["small"].startswith(says) and not (folder / "never").exists()
