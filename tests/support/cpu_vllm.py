"""vLLM's server where sleep mode is refused, as on a CPU: its sleep calls work there, and free no memory.

It starts in half the time: a small memory for prompts, and the model in the process of the engine, as on one GPU.
"""

from __future__ import annotations

import os
import runpy
import sys

_OPTIONS = ["--kv-cache-memory-bytes", str(2**27), "--skip-mm-profiling"]
_OPTIONS += ["--distributed-executor-backend", "vllm.v1.executor.uniproc_executor.UniProcExecutor"]

if __name__ == "__main__":
    sys.argv.remove("--enable-sleep-mode")
    sys.argv += _OPTIONS
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # in GiB, and it would count
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
