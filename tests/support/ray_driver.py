"""The driver of `tests/system/test_ray.py`, in a process of its own: jobs on one small Ray of this machine.

Arguments: a folder with `texts`, `images` and cells.csv.gz. What it found goes to its `found.json`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pyarrow
from pyarrow import parquet

from flexjudge_reward import (
    ConfigError,
    EngineError,
    Judge,
    Pointwise,
    RayPool,
    Request,
    ScriptedEngine,
    Untrusted,
    annotate_on_ray,
    rerank_on_ray,
    score_on_ray,
)
from flexjudge_reward.data.rows import BadRow, RowOptions
from flexjudge_reward.offline.blocks import FILE_ROW, BlockRows
from support.ray_jobs import reply

FOLDER = Path(sys.argv[1])


def breaking(request: Request) -> str:
    """Notes every question, and ends the first run in its middle."""
    question = next(part.text for part in request.prompt.messages[1].parts if isinstance(part, Untrusted))
    repaired = (FOLDER / "repaired").exists()
    with (FOLDER / ("second.txt" if repaired else "first.txt")).open("a") as log:
        log.write(f"{question}\n")
    if question == "what is in 25?" and not repaired:
        raise EngineError("the judge is gone")
    return reply(request)


def plant() -> None:
    """What late tasks of broken runs leave: a file without its checkpoint, the other way round, and a task twice."""
    for written in list((FOLDER / "pairs").rglob("*.parquet")):
        shutil.copy(written, written.with_name(written.name.replace("_", "_late", 1)))
        shutil.copy(written, written.with_name(written.name.replace("_", "_twice", 1)))
    for checkpoint in list((FOLDER / "pairs.checkpoint").iterdir()):
        shutil.copy(checkpoint, checkpoint.with_name(checkpoint.name.replace("_", "_twice", 1)))
    row = pyarrow.table({FILE_ROW: ["1.parquet:000000019"]})
    parquet.write_table(row, FOLDER / "pairs.checkpoint" / "lost_0_000000.parquet")


def main() -> None:
    """Runs all jobs."""
    import ray

    for left in (2, 1, 0):  # Ray gives up after 30 s, which a busy machine may need
        try:
            ray.init("local", num_cpus=4, include_dashboard=False, logging_level="error", log_to_driver=False)
            break
        except Exception:
            ray.shutdown()
            if not left:
                raise
    ray.data.DataContext.get_current().enable_progress_bars = False
    judge = Judge(Pointwise(), ScriptedEngine(reply))
    found: dict[str, object] = {}
    ordered = RayPool(block_rows=32, keep_order=True)
    found["ranked"] = rerank_on_ray(FOLDER / "texts", judge, FOLDER / "ranked", ordered).as_dict()
    broken = Judge(Pointwise(), ScriptedEngine(breaking))
    for name, judges in (("stopped", 2), ("continued", 1)):
        try:
            pool = RayPool(block_rows=4, judges=judges)
            found[name] = annotate_on_ray(FOLDER / "images", broken, FOLDER / "pairs", pool, margin=1.0)
        except EngineError as error:
            found[name] = str(error)
        if name == "stopped":
            plant()
        (FOLDER / "repaired").touch()
    try:
        score_on_ray(FOLDER / "texts", judge, FOLDER / "never", RayPool(judges=100))
    except ConfigError as error:
        found["small"] = str(error)
    found["cells"] = cells()
    (FOLDER / "found.json").write_text(json.dumps(found))
    ray.shutdown()


def cells() -> list[list[object]]:
    """The rows of a CSV file as a job reads them."""
    from pyarrow.fs import LocalFileSystem

    from flexjudge_reward.offline.ray_source import FileRows

    path = FOLDER / "cells.csv.gz"
    source = FileRows([str(path)], str(FOLDER), LocalFileSystem())
    tables = [table for task in source.get_read_tasks(1) for table in task()]
    rows = BlockRows("cells", tables[0], RowOptions()).read(lambda row: None)
    return [[row.number, row.why if isinstance(row, BadRow) else row.example.candidates] for row in rows]


if __name__ == "__main__":
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else a token is written to the home folder
    main()
