"""vLLM's server where sleep mode is refused, as on a CPU: its sleep calls work there, and free no memory.

It starts in a third of the time: a small memory for prompts, the model in the process of the engine, as on one GPU, and
that process a fork of the server's, as vLLM does it on Linux unless the platform says otherwise, so that it need not
import vLLM again.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from typing import Any

LIGHT = {
    "kv_cache_memory_bytes": 2**27,
    "skip_mm_profiling": True,
    "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
}
"""Of an engine on a CPU: little memory to fill, and the executor of one GPU, which does not wait at full speed."""

_context = multiprocessing.get_context


def _forked(method: str | None = None) -> Any:
    return _context("fork" if method == "spawn" else method)


if __name__ == "__main__":
    from vllm.platforms import current_platform

    if current_platform.is_cpu():  # else CUDA decides
        multiprocessing.get_context = _forked
    sys.argv.remove("--enable-sleep-mode")
    for name, value in LIGHT.items():
        sys.argv += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # in GiB, and it would count
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
