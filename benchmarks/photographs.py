"""How soon a trainer's call with many photographs asks its judge, and what it holds meanwhile.

    python benchmarks/photographs.py           files and PIL images, alone and in groups: about three minutes

A call of `FlexJudgeReward` has 256 JPEG photographs of a megapixel, each in one row, or 32 of them in groups of eight
rows, as bytes of files or as PIL images of their own for each row, as TRL gives them. A loopback server in a process of
its own notes when the first question comes, and replies to each after 20 ms. `reward.first_request_share` is the time
to the first question relative to the whole call, in the slowest of the four kinds, since the clock of a busy machine
says little; CPU time and the growth of the process at its peak are noted beside it.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import urllib.request
from contextlib import closing
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from figures import record
from overhead import GROUP, MODELS, Loopback, loopback

from flexjudge_reward import FlexJudgeReward

PHOTOGRAPHS, WIDTH, HEIGHT = 256, 1152, 896
KINDS = [(how, size) for how in ("files", "objects") for size in (1, GROUP)]


class Stamping(Loopback):
    """Says with the list of models when the first question came."""

    first: float | None = None

    @classmethod
    def answer(cls, body: bytes) -> tuple[bytes, float]:
        """As `Loopback.answer`."""
        if not body:
            return json.dumps({**MODELS, "first": cls.first}).encode(), 0.0
        if b'"image_url"' in body[:4096]:
            cls.first = cls.first or perf_counter()
        return super().answer(body)


def main() -> None:
    """Measures each kind in a process of its own, and records."""
    load, notes, shares = os.getloadavg()[0], [], []
    for how, size in KINDS:
        with loopback(Stamping) as url, multiprocessing.get_context("spawn").Pool(1) as pool:
            first, whole, cpu, grown = pool.apply(called, (url, how, size))
        notes.append(f"{how} in groups of {size}: {first:.2f} of {whole:.2f} s, CPU {cpu:.2f} s, {grown:.0f} MB")
        shares.append(first / whole)
        print(notes[-1], flush=True)
    note = f"{PHOTOGRAPHS} rows; {'; '.join(notes)}; load average {load:.1f} on {os.cpu_count()} cores"
    record("reward.first_request_share", max(shares), unit="share of the call", target="<= 0.2", note=note)


def called(url: str, how: str, size: int) -> tuple[float, float, float, float]:
    """Seconds to the first question and of the call, its CPU time, and MB at its peak above those before."""
    columns = {"image": [source for one in photographs(PHOTOGRAPHS // size) for source in sources(one, how, size)]}
    prompts, completions = ["What is shown?"] * PHOTOGRAPHS, [f"It is picture {n}." for n in range(PHOTOGRAPHS)]
    with closing(FlexJudgeReward(base_url=url, cache="off", probes=0.0)) as reward:
        reward(["What is two and two?"], ["4"])
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before, start, start_cpu = resident("VmRSS"), perf_counter(), process_time()
        assert all(one is not None for one in reward(prompts, completions, **columns))
        seconds, cpu, grown = perf_counter() - start, process_time() - start_cpu, resident("VmHWM") - before
    with urllib.request.urlopen(f"{url}/models") as answer:
        first = json.load(answer)["first"]
    return first - start, seconds, cpu, grown


def photographs(count: int) -> list[bytes]:
    """JPEG files with coarse shapes and grain."""
    import numpy as np
    import PIL.Image

    files = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        shapes = PIL.Image.fromarray(rng.integers(0, 255, (28, 36, 3), np.uint8)).resize((WIDTH, HEIGHT))
        pixels = np.asarray(shapes, np.int16) + rng.normal(0, 4, (HEIGHT, WIDTH, 1)).astype(np.int16)
        PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file := io.BytesIO(), "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def sources(file: bytes, how: str, size: int) -> list[Any]:
    """The picture of each row of a group."""
    import PIL.Image

    if how == "files":
        return [{"bytes": file, "path": None}] * size
    images = [PIL.Image.open(io.BytesIO(file)) for _ in range(size)]
    for one in images:
        one.load()  # as `datasets` does
    return images


def resident(field: str) -> float:
    """MB of this process."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
