"""What a kill costs `annotate`: a run of 2,000 rows that is killed 25 times, against an unbroken one.

    python benchmarks/annotate.py        about a minute

The run is a process of its own that gets SIGKILL at random moments. Its judge is scripted, so that what is measured is
the files; it notes every prompt it sees, so that what is judged twice can be counted. Nothing is cached.
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

from flexjudge_reward import Judge, Pair, Prompt, Quoted, ScriptedEngine
from flexjudge_reward.offline.annotate import BATCH, annotate_file

ROWS, KILLS = 2000, 25


class Noting:
    """Scores by the number each candidate begins with, and writes down which row was asked about."""

    def __init__(self, log: Path) -> None:
        self.log = log.open("a", buffering=1)

    def __call__(self, prompt: Prompt) -> str:
        question, *candidates = [part.text for part in prompt.messages[1].parts if isinstance(part, Quoted)]
        self.log.write(question + "\n")
        time.sleep(0.0003)
        return "<think></think>" + "".join(f"<answer>{one.split()[0]}</answer>" for one in candidates)


def annotate(folder: Path) -> None:
    """The run: what is killed."""
    engine = ScriptedEngine(Noting(folder / "asked.log"))
    annotate_file(folder / "in.jsonl", Judge(Pair(), engine), folder / "pairs.jsonl", margin=2.0)


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
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "asked.log"}


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
        asked = [Counter((folder / "asked.log").read_text().splitlines()) for folder in (whole, broken)]
        again = (asked[1].total() - asked[0].total()) / asked[0].total() * ROWS / BATCH / max(1, kills)
    note = f"{kills} kills of {ROWS} rows; {twice} pairs twice; a kill costs {again:.2f} batches of {BATCH} rows"
    record("annotate.kill_resume_differences", different + twice, unit="files or rows", target="<= 0", note=note)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        annotate(Path(sys.argv[1]))
    else:
        main()
