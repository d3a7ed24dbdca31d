"""Jobs on Ray Data: a million rows through two judges, and what a SIGKILL of a judge and of the driver costs.

    python benchmarks/on_ray.py rows [ROWS]     a million rows with a scripted judge: about ten minutes
    python benchmarks/on_ray.py kills [KILLS]   20,000 rows, with SIGKILL at ten random points: about ten minutes

Needs `pip install 'flexjudge-reward[ray]'`. Both run on a Ray of this machine; each job is a process of its own.

`rows` records `ray.rows_per_s`, from the start of the job to its end without the start of Ray, and
`ray.memory_growth_mib`: how much the largest process of the job has grown from the first quarter to the end.

`kills`: in each of the ten runs, a judge is killed at a random moment, and later the driver; then the same command
continues. `ray.kill_differences` counts rows that differ from an unbroken run, that are missing or there twice, and
rows that were judged again although they were written. `ray.kill_share_again` is the share of the rows that were judged
when the driver was killed and were judged again, since they were not written yet.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from figures import record
from pyarrow import parquet

from flexjudge_reward import Engine, Generation, Judge, Pointwise, RayPool, Request, Untrusted, score_on_ray

ROWS, FILES = 1_000_000, 20
KILL_ROWS, KILLS, KILL_BLOCK = 20_000, 10, 200


class Counted(Engine):
    """A scripted judge that keeps nothing, and can note whom it has judged, by the process that did."""

    def __init__(self, log: Path | None = None, seconds: float = 0.0) -> None:
        self.log, self.seconds = log, seconds

    def complete(self, requests: list[Request]) -> list[Generation]:
        if self.log is not None:
            time.sleep(self.seconds)
            with self.log.with_suffix(f".{os.getpid()}.log").open("a") as log:
                log.write("".join(f"{_question(request)}\n" for request in requests))
        reply = "<think>fine</think><answer>7</answer>"
        return [Generation(reply) for _ in requests]

    def identity(self) -> dict[str, object]:
        return {"engine": "counted"}

    def close(self) -> None:
        pass


def _question(request: Request) -> str:
    return next(part.text for part in request.prompt.messages[1].parts if isinstance(part, Untrusted))


def main() -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    what, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None
    if what == "job":
        job(Path(sys.argv[3]), int(sys.argv[4]))
        return
    import ray

    ray.init("local", num_cpus=5, include_dashboard=False, logging_level="error", log_to_driver=False)
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    with tempfile.TemporaryDirectory() as scratch:
        {"rows": rows, "kills": kills}[what](Path(scratch), count)
    ray.shutdown()


def job(folder: Path, block_rows: int) -> None:
    """The job itself, with what it returned and how long it took in `done.json`."""
    import ray

    ray.init(logging_level="error", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    log = folder / "judged.log" if block_rows == KILL_BLOCK else None
    start = time.monotonic()
    summary = score_on_ray(
        folder.parent / "in", Judge(Pointwise(), Counted(log, 0.2)), folder / "out", RayPool(block_rows=block_rows)
    )
    done = {"seconds": time.monotonic() - start, **summary.as_dict()}
    (folder / "done.json").write_text(json.dumps(done))


def made(folder: Path, rows: int) -> None:
    """The source: files of lines."""
    folder.mkdir()
    each = rows // FILES
    for number in range(FILES):
        with (folder / f"part-{number:02}.jsonl").open("w") as file:
            for n in range(number * each, (number + 1) * each):
                file.write(json.dumps({"id": n, "question": f"question {n}", "answer": f"answer {n} " * 8}) + "\n")


def started(folder: Path, block_rows: int) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, __file__, "job", "0", str(folder), str(block_rows)]
    path = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    log = (folder / "driver.log").open("ab")
    return subprocess.Popen(command, stderr=log, stdout=log, env=os.environ | {"PYTHONPATH": path})


# ---------------------------------------------------------------- a million rows


def rows(scratch: Path, count: int | None) -> None:
    """Records the rate, and how the memory of the processes grew."""
    count = count or ROWS
    made(scratch / "in", count)
    run, seen = started(scratch / "run", 4096), []
    while run.poll() is None:
        seen.append((len(list((scratch / "run" / "out").glob("*.parquet"))), dict(_memory(run.pid))))
        time.sleep(2)
    assert run.returncode == 0, (scratch / "run" / "driver.log").read_text()[-2000:]
    done = json.loads((scratch / "run" / "done.json").read_text())
    assert done["judged"] == count and not done["failures"]
    files = max(written for written, _ in seen)
    quarter = next(memory for written, memory in seen if written >= files / 4)
    last = next(memory for written, memory in reversed(seen) if written < files)
    growth = max(last.get(name, 0) - size for name, size in quarter.items())
    sizes = ", ".join(f"{name} {quarter.get(name, 0):.0f} then {size:.0f}" for name, size in sorted(last.items()))
    note = f"{count} rows, 2 judges, blocks of 4,096 rows, {done['seconds']:.0f} s; RSS in MiB: {sizes}"
    record("ray.rows_per_s", count / done["seconds"], unit="rows/s", target="", note=note)
    record("ray.memory_growth_mib", growth, unit="MiB", target="<= 100", note=note)


def _memory(driver: int) -> Iterator[tuple[str, float]]:
    """The private memory of the driver and of the largest worker of each kind, in MiB."""
    largest: dict[str, float] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            words = (status.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            size = int(fields["RssAnon"].split()[0]) / 1024
        except (OSError, KeyError, ValueError):
            continue
        pid = int(status.parent.name)
        name = "driver" if pid == driver else "judge" if "MapWorker(MapBatches" in words else ""
        if name or words.startswith("ray::"):
            name = name or "reader and writer"
            largest[name] = max(largest.get(name, 0.0), size)
    yield from largest.items()


# ---------------------------------------------------------------- kills


def kills(scratch: Path, count: int | None) -> None:
    """Records how many rows are wrong after all kills."""
    made(scratch / "in", KILL_ROWS)
    whole = started(scratch / "whole", KILL_BLOCK)
    assert whole.wait() == 0, (scratch / "whole" / "driver.log").read_text()[-2000:]
    expected, draw = content(scratch / "whole"), random.Random(0)
    length = sum(map(len, expected.values()))
    assert length == KILL_ROWS
    wrong, again, before = Counter[str](), 0, 0
    for number in range(count or KILLS):
        folder = scratch / f"run-{number}"
        first, second = sorted(draw.uniform(0.02, 0.95) for _ in range(2))
        run = started(folder, KILL_BLOCK)
        killed(folder, run, first, second)
        judged, written = judged_rows(folder), settled(folder)
        for log in folder.glob("judged.*.log"):
            log.unlink()
        run = started(folder, KILL_BLOCK)
        assert run.wait() == 0, (folder / "driver.log").read_text()[-2000:]
        found, later = content(folder), judged_rows(folder)
        twice = sum(len(rows) - 1 for rows in found.values())
        other = sum(found.get(place) != rows for place, rows in expected.items()) + len(found.keys() - expected.keys())
        repeated = sum(place in written and place in later for place in expected)
        again += sum(place in judged and place in later for place in expected)
        before += len(judged)
        wrong += Counter(twice=twice, other=other, repeated=repeated)
        print(
            f"run {number}: killed at {first:.0%} and {second:.0%}; {len(written)} written, {dict(wrong)}", flush=True
        )
    note = f"{count or KILLS} runs of {KILL_ROWS} rows; {before} were judged when the driver was killed, {again} again"
    record("ray.kill_differences", sum(wrong.values()), unit="rows", target="<= 0", note=note)
    record(
        "ray.kill_share_again", again / max(1, before), unit="share of rows judged before", target="<= 0.2", note=note
    )


def killed(folder: Path, run: subprocess.Popen[bytes], first: float, second: float) -> None:
    """Kills a judge when this share of the rows is judged, and later the driver."""
    for share, victim in ((first, "judge"), (second, "driver")):
        while run.poll() is None and sum(judged_rows(folder).values()) < share * KILL_ROWS:
            time.sleep(0.1)
        if run.poll() is not None:
            return
        newest = max(folder.glob("judged.*.log"), key=lambda path: path.stat().st_mtime)
        os.kill(int(newest.suffixes[-2][1:]) if victim == "judge" else run.pid, signal.SIGKILL)
    run.wait()
    time.sleep(8)  # Ray ends the judges of a driver that is gone


def judged_rows(folder: Path) -> Counter[str]:
    """How often each row was judged, by its place in the source."""
    found: Counter[str] = Counter()
    for log in folder.glob("judged.*.log"):
        for line in log.read_text().splitlines():
            if line.startswith("question ") and line[9:].isdigit():  # the last line may be cut
                n, each = int(line[9:]), KILL_ROWS // FILES
                found[f"part-{n // each:02}.jsonl:{n % each + 1:09}"] += 1
    return found


def settled(folder: Path) -> set[str]:
    """The places of the rows that are written for good."""
    checkpoint = folder / "out.checkpoint"
    files = [path for path in checkpoint.glob("*.parquet") if ".pending." not in path.name]
    return {place for path in files for place in parquet.read_table(path)["file_row"].to_pylist()}


def content(folder: Path) -> dict[str, list[str]]:
    """The rows of the output by their places."""
    found: dict[str, list[str]] = {}
    for path in (folder / "out").glob("*.parquet"):
        for row in parquet.read_table(path).to_pylist():
            found.setdefault(row["file_row"], []).append(json.dumps(row, sort_keys=True))
    return found


if __name__ == "__main__":
    main()
