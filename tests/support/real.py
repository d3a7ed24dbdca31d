"""Real vLLM on a development machine, for tests and benchmarks: what it needs around it, and a `vllm serve`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_START_S = 480


def prepare() -> None:
    """Lets this process and its children use vLLM on a CPU: a small memory for prompts."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def engine_processes(patience: float = 0.0) -> list[str]:
    """The names of living vLLM engine processes that this process started; after `patience` seconds at most, if any."""
    import psutil

    end = time.monotonic() + patience
    while True:
        mine = [child for child in psutil.Process().children() if _is_engine(child)]
        if not mine or time.monotonic() > end:
            return [f"{child.pid} {child.status()}" for child in mine]
        time.sleep(0.1)


def _is_engine(process: Any) -> bool:
    import psutil

    try:
        return process.status() != psutil.STATUS_ZOMBIE and "EngineCor" in " ".join(
            [process.name(), *process.cmdline()]
        )
    except psutil.Error:  # it has ended since
        return False


@contextmanager
def serve(model: str, *options: str) -> Iterator[str]:
    """A `vllm serve` of `model` on loopback; gives its address and ends it with its children."""
    prepare()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    # What `vllm serve` runs; the CPU build's own `vllm` command looks for a package named vllm and fails.
    server = [sys.executable, "-W", "ignore", "-m", "vllm.entrypoints.openai.api_server"]
    command = [*server, "--model", model, "--port", str(port), *options]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1"], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _await(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def _await(health: str, process: subprocess.Popen[bytes], log: object) -> None:
    end = time.monotonic() + _START_S
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < end and process.poll() is None:
        try:
            with direct.open(health, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    log.seek(0)  # type: ignore[attr-defined]
    raise RuntimeError(f"vllm serve did not start:\n{log.read()[-4000:]}")  # type: ignore[attr-defined]
