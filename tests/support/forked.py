"""Programs in processes that have torch, transformers and TRL imported already: those take 15 s of processor time.

    done = run(["train.py", "--help"], folder)                    as `python train.py --help`
    done = run(["-m", "flexjudge_reward", "score"], folder)       as `python -m flexjudge_reward score`
    done = run(["train.py"], folder, ranks=2)                     as under torchrun, over gloo

Each process is a fork of one that has done nothing but these imports, without vLLM. What depends on the order of
imports, or on the end of the interpreter, needs an interpreter of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

_PRELOADED = ["support.without_vllm", "trl.trainer.grpo_trainer", "flexjudge_reward.trainers.trl"]


def run(words: Sequence[str], cwd: Path, ranks: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
    """What the program printed, rank after rank, and its exit code; of several ranks, the first one that is not 0."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        variables = {**os.environ, **environment}
        processes = [
            context.Process(target=_program, args=(list(words), str(cwd), variables, rank, ranks, name), daemon=True)
            for rank in range(ranks)
        ]
        try:
            for process in processes:
                process.start()
            running = set(processes)
            while running and not any(process.exitcode for process in processes):
                wait([process.sentinel for process in running])
                running = {process for process in running if process.exitcode is None}
        finally:  # a rank whose neighbour failed would wait for it
            for process in processes:
                process.kill()
        codes = [process.exitcode for process in processes if process.exitcode]
        said = ["".join((folder / f"{rank}.{kind}").read_text() for rank in range(ranks)) for kind in ("out", "err")]
    return subprocess.CompletedProcess(list(words), codes[0] if codes else 0, *said)


def _program(words: list[str], cwd: str, variables: Mapping[str, str], rank: int, ranks: int, folder: str) -> None:
    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{rank}.{kind}", os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    if ranks > 1:
        import torch.distributed

        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ.update({name: str(value) for name, value in places.items()})
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/m", rank=rank, world_size=ranks)
    if words[0] == "-m":
        sys.argv, sys.path[:0] = words[1:], [""]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[:0] = words, [str(Path(words[0]).absolute().parent)]
        runpy.run_path(words[0], run_name="__main__")
