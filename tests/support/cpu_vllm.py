"""vLLM's server where sleep mode is refused, as on a CPU: its sleep calls work there, and free no memory."""

from __future__ import annotations

import runpy
import sys

if __name__ == "__main__":
    sys.argv.remove("--enable-sleep-mode")
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
