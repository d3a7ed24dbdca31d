"""What a kill costs `annotate`: a run of 2,000 rows that is killed 25 times, against an unbroken one.

    python benchmarks/annotate.py        about a minute

The run is a process of its own that gets SIGKILL at random moments. Its judge is scripted, so that only the files are
measured; it notes every request, so that requests made twice can be counted. Nothing is cached.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from figures import record

from flexjudge_reward import Judge, Pairwise, Request, ScriptedEngine, Untrusted, annotate_file
from flexjudge_reward.offline.annotate import BATCH

ROWS, KILLS = 2000, 25


class Noting:
    """Scores by the number each candidate begins with, and notes the row of every request."""

    def __init__(self, log: Path) -> None:
        self.log = log.open("a", buffering=1)

    def __call__(self, request: Request) -> str:
        parts = request.prompt.messages[1].parts
        question, *candidates = [part.text for part in parts if isinstance(part, Untrusted)]
        self.log.write(question + "\n")
        time.sleep(0.0003)
        return "<think></think>" + "".join(f"<answer>{one.split()[0]}</answer>" for one in candidates)


def annotate(folder: Path) -> None:
    """The run that is killed."""
    engine = ScriptedEngine(Noting(folder / "requests.log"))
    annotate_file(folder / "in.jsonl", Judge(Pairwise(), engine), folder / "pairs.jsonl", margin=2.0)


def prepared(folder: Path) -> Path:
    rng = random.Random(0)
    folder.mkdir()
    rows = [
        {"id": n, "question": f"row {n}", "candidates": [f"{rng.randint(1, 10)} {letter}" for letter in "abc"]}
        for n in range(ROWS)
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def started(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, str(folder)], stderr=subprocess.DEVNULL)


def result(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "requests.log"}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        whole, broken = prepared(Path(scratch, "whole")), prepared(Path(scratch, "broken"))
        begin = time.monotonic()
        assert started(whole).wait() == 0
        length = time.monotonic() - begin
        rng, kills = random.Random(1), 0
        while kills < KILLS:
            run = started(broken)
            # A run needs about a third of a second to start, and what is left of it gets shorter.
            time.sleep(rng.uniform(0.3, 0.3 + 2 * length / KILLS))
            run.send_signal(signal.SIGKILL)
            if run.wait() == 0:
                break
            kills += 1
        assert started(broken).wait() == 0
        different = sum(result(whole)[name] != result(broken).get(name) for name in result(whole))
        different += len(result(broken).keys() - result(whole).keys())
        pairs = [json.loads(line)["id"] for line in (broken / "pairs.jsonl").read_text().splitlines()]
        twice = sum(count - 1 for count in Counter(pairs).values())
        requests = [Counter((folder / "requests.log").read_text().splitlines()) for folder in (whole, broken)]
        again = (requests[1].total() - requests[0].total()) / requests[0].total() * ROWS / BATCH / max(1, kills)
    note = f"{kills} kills of {ROWS} rows; {twice} pairs twice; a kill costs {again:.2f} batches of {BATCH} rows"
    record("annotate.kill_resume_differences", different + twice, unit="files or rows", target="<= 0", note=note)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        annotate(Path(sys.argv[1]))
    else:
        main()
