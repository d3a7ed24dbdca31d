"""Hides vLLM from the process that imports this: TRL would import it, which takes 6 s of processor time."""

import sys

sys.modules["vllm"] = None  # type: ignore[assignment]
