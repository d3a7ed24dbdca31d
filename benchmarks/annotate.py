"""What a kill costs `annotate`, and how full it keeps a judge on a server.

    python benchmarks/annotate.py        a run of 2,000 rows, killed 25 times, against an unbroken one; about a minute
    python benchmarks/annotate.py full   4,000 rows on a server with unequal reply times; about two minutes

full: a loopback server in a process of its own replies after a lognormal time (median 0.25 s, sigma 0.6), so that a
batch waits for its slowest reply. annotate.concurrency_used is the mean number of requests in flight between the first
and the last reply of a run, as a share of the `concurrency` of 64, with the CPU idle most of the time.

The killed run is a process of its own that gets SIGKILL at random moments. Its judge is scripted, so that only the
files are measured; it notes every request, so that requests made twice can be counted. Nothing is cached.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

from figures import record
from overhead import MODELS, REPLY, Loopback, loopback

from flexjudge_reward import (
    Judge,
    Pairwise,
    Pointwise,
    Request,
    ScriptedEngine,
    ServerEngine,
    Untrusted,
    annotate_file,
)
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


class Unequal(Loopback):
    """Replies after a time that is drawn for each request, and notes how many are in flight."""

    rng, began, ended, busy = random.Random(0), 0.0, 0.0, 0.0

    @classmethod
    def answer(cls, body: bytes) -> tuple[bytes, float]:
        if not body:
            return json.dumps(MODELS).encode(), 0.0
        now, seconds = time.monotonic(), cls.rng.lognormvariate(math.log(0.25), 0.6)
        cls.began = cls.began or now
        cls.ended, cls.busy = max(cls.ended, now + seconds), cls.busy + seconds
        if b"how full" in body:
            return json.dumps({"used": cls.busy, "seconds": cls.ended - cls.began}).encode(), 0.0
        return json.dumps(REPLY).encode(), seconds


def full(rows: int = 4000, in_flight: int = 64) -> None:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch, loopback(Unequal) as url:
        source = Path(scratch, "in.jsonl")
        lines = [{"id": n, "question": f"row {n}", "candidates": [f"{n} a", f"{n} b"]} for n in range(rows)]
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with Judge(Pointwise(), ServerEngine(url, concurrency=in_flight)) as judge:
            start = time.monotonic()
            annotate_file(source, judge, Path(scratch, "pairs.jsonl"))
            seconds = time.monotonic() - start
        request = urllib.request.Request(f"{url}/chat/completions", b"how full", method="POST")
        found = json.loads(urllib.request.urlopen(request).read())
    used = found["used"] / found["seconds"] / in_flight
    note = f"{2 * rows / seconds:.0f} judgements/s of {rows} rows, {in_flight} in flight; load average {load:.1f}"
    record("annotate.concurrency_used", used, unit="share", target=">= 0.9", note=note)


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
    if sys.argv[1:] == ["full"]:
        full()
    elif len(sys.argv) > 1:
        annotate(Path(sys.argv[1]))
    else:
        main()
