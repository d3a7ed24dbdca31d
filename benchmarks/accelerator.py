"""What a judge of 7B parameters takes of one accelerator: training steps, the engine, the memory plan.

    python benchmarks/accelerator.py --out figures.jsonl            all parts, in at most 200 seconds
    python benchmarks/accelerator.py make engine --seconds 120      these parts
    python benchmarks/accelerator.py --shape tiny --limit 400 --seconds 900 --out trial.jsonl    a few MB, on a CPU

make      writes a judge of Qwen2.5-VL-7B's shape, with random weights in bfloat16, the embedded judge's tokenizer and
          chat template, and images of 256 tokens. The row of the head for the end token is zero, so that no greedy
          reply ends. Nothing is downloaded. Needs 17 GB in --folder.
sft       steps of recipes/judge_training/sft with its qwen2.5_vl_7b.yaml: the whole language model, AdamW.
grpo      steps of recipes/judge_training/rl with its qwen2.5_vl_7b.yaml: LoRA, generation by transformers, a reference.
plan      what engines/memory.py plans for this folder, and what the engine took.
engine    `Judge` on TransformersEngine against `model.generate` of the same model on the same prompts, as one batch.
          The bare side gets the finished chat texts and PIL images; processor and decoding of the reply are in both
          times. Order alternates; ratio of seconds within a round, median; 1 is as fast.
identity  the hash of the weights, which is a part of the cache key.

The last three share a process, so that the model is loaded once; each other part has one of its own. Each process has
a time limit. A part that fails is shown with the end of the output, and the others go on. The first step and the first
round do not count. The final save of the trainings is left out. Each note says what other processes held of the
accelerator before the process used it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from accelerator_parts import PARTS, ROOT

GROUPS = {("make",): 70, ("sft",): 75, ("grpo",): 85, ("plan", "engine", "identity"): 150}
"""The parts of each process, and the most seconds that it takes."""
LEAST = 15  # seconds; a part with less is not started
ROOM = 20e9  # bytes, for a judge in memory
FIGURE = re.compile(r"accelerator(\.\w+ = |: ).*")  # maybe after a progress bar
SHOWN = 25  # lines of a part that failed


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; by default all")
    parser.add_argument("--shape", choices=("7b", "tiny"), default="7b")
    parser.add_argument("--folder", help="the judge; by default judge_SHAPE in /dev/shm, or in the temporary folder")
    parser.add_argument("--work", default=tempfile.gettempdir(), help="where the trainings put their folders")
    parser.add_argument("--out", help="the file that figures are appended to; by default that of the repository")
    parser.add_argument("--log", help="the file for the output of the parts; by default beside --out")
    parser.add_argument("--commit", help="of the files here, if there is no repository")
    parser.add_argument("--seconds", type=float, default=200.0, help="for all parts together")
    parser.add_argument("--limit", type=float, help="the most seconds of each process; by default its own limit")
    parser.add_argument("--here", action="store_true", help="run the parts in this process")
    options = parser.parse_args(words)
    options.parts = options.parts or list(PARTS)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]!r}: one of {', '.join(PARTS)}")
    if options.shape == "tiny" and not (options.out or options.here):
        parser.error("--shape tiny needs --out: its figures do not belong to the repository's")
    options.log = options.log or (str(Path(options.out).with_suffix(".log")) if options.out else None)
    options.folder = options.folder or str(default_folder(options.shape))
    return options


def default_folder(shape: str) -> Path:
    """In memory, if there is room."""
    name, memory = f"judge_{shape}", Path("/dev/shm")
    found = memory / name
    roomy = found.exists() or (memory.is_dir() and shutil.disk_usage(memory).free > ROOM)
    return found if roomy else Path(tempfile.gettempdir(), name)


def environment(options: argparse.Namespace, links: Path) -> dict[str, str]:
    """Of the parts: this checkout and its recipes first, no network."""
    (links / "flexjudge_recipes").symlink_to(ROOT / "recipes")
    given = dict(os.environ)
    given["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(links), given.get("PYTHONPATH", "")])
    given |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    given |= {"CUDA_VISIBLE_DEVICES": given.get("CUDA_VISIBLE_DEVICES", "0"), "PYTHONUNBUFFERED": "1"}
    given |= {"FIGURES_FILE": os.path.abspath(options.out)} if options.out else {}
    return given | ({"FIGURES_COMMIT": options.commit} if options.commit else {})


def run(parts: Sequence[str], options: argparse.Namespace, given: dict[str, str], limit: float) -> bool:
    """Runs parts in a process; prints their figures, and the end of the output if one failed; whether all worked."""
    words = [*parts, "--here", "--shape", options.shape, "--folder", options.folder, "--work", options.work]
    words += ["--seconds", f"{limit:.0f}"]
    name = " ".join(parts)
    command, start = [sys.executable, __file__, *words], perf_counter()
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(command, env=given, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = f"exit code {process.returncode}" if process.wait(limit) else ""
        except subprocess.TimeoutExpired:
            code = f"stopped at its limit of {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        lines = output.read().splitlines()
    if options.log:
        with open(options.log, "a", encoding="utf-8") as log:
            log.write(f"==== {name}\n" + "\n".join(lines) + "\n")
    shown = [found[0] for line in lines if (found := FIGURE.search(line))] + (lines[-SHOWN:] if code else [])
    print(f"---- {name}: {perf_counter() - start:.0f} s {code}", *(line[:300] for line in shown), sep="\n", flush=True)
    return not code


def main() -> None:
    """Runs the parts one after the other. Exit code 1 if one did not work."""
    options = parse()
    if options.here:
        raise SystemExit(here(options))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and the running part with it
    end, failed = perf_counter() + options.seconds, list[str]()
    with tempfile.TemporaryDirectory() as links:
        given = environment(options, Path(links))
        for group, limit in GROUPS.items():
            parts = [part for part in group if part in options.parts]
            left = min(options.limit or limit, end - perf_counter())
            if parts and (left < LEAST or "make" in failed):
                print(f"---- {' '.join(parts)}: not started", flush=True)
                failed += parts
            elif parts and not run(parts, options, given, left):
                failed += parts
    if failed:
        raise SystemExit(f"did not work, or not all: {', '.join(failed)}")


def here(options: argparse.Namespace) -> int:
    """Runs the parts in this process, each whether or not the one before it worked; how many did not."""
    failed = 0
    for part in options.parts:
        try:
            PARTS[part](options)
        except Exception:  # of the recipes, of transformers, of the device
            traceback.print_exc()
            failed += 1
    return failed


if __name__ == "__main__":
    main()
