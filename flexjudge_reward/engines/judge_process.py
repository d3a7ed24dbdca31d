"""JudgeProcess: one judge server on loopback, in a process of its own, that can be put to sleep and woken.

It speaks vLLM's development endpoints (VLLM_SERVER_DEV_MODE=1). No key guards them, so the server listens on loopback.
Asleep it answers /health and /v1/models, and holds a chat request until it wakes: only `is_sleeping` tells.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flexjudge_reward.errors import EngineError

_HOST = "127.0.0.1"
_KEEPER = Path(__file__).with_name("keeper.py")
_SHOWN = 1500  # characters of the server's log that an error quotes
_END_S = 40.0
# A launcher's, for the ranks of the trainer: the server would take itself for one of them. And keys.
_NOT_ITS_OWN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "FLEXJUDGE_API_KEY", "FLEXJUDGE_SERVE_TOKEN")
_PREFIXES = ("LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_")


_RUNNING: weakref.WeakSet[JudgeProcess] = weakref.WeakSet()


class JudgeProcess:
    """A running server; it ends with this process at the latest, whatever this process has forked."""

    def __init__(self, command: Sequence[str], gpu: int | None = None) -> None:
        """
        Args:
            command: starts the server, without `--host` and `--port`.
            gpu: the device that it sees, by this process's own numbers; None leaves the environment as it is.
        """
        self._owner = os.getpid()
        self._port = _reserved()
        self.port: int = self._port.getsockname()[1]
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # closed by `stop`
        keeper = [sys.executable, "-P", str(_KEEPER), *command, "--host", _HOST, "--port", str(self.port)]
        self._process = subprocess.Popen(
            keeper,
            stdin=subprocess.PIPE,  # whose end is how the server hears of ours
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=_environment(gpu),
            start_new_session=True,  # an interrupt from the keyboard is the trainer's
        )
        self._direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        _RUNNING.add(self)

    @property
    def base_url(self) -> str:
        """For a `ServerEngine`."""
        return f"http://{_HOST}:{self.port}/v1"

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def await_start(self, seconds: float) -> None:
        """Waits until it serves. Raises EngineError, with the end of its log, if it ends or takes longer."""
        end = time.monotonic() + seconds
        while self.alive and time.monotonic() < end:
            with suppress(OSError, http.client.HTTPException):
                self._ask("GET", "/health", 2.0)
                return
            time.sleep(0.2)
        why = f"did not serve within {seconds:g} s" if self.alive else f"ended with code {self._process.returncode}"
        raise EngineError(f"the judge's own server {why}; the end of its log: {self.log()}")

    def sleep(self, seconds: float) -> None:
        """Level 1 (weights to host memory) after the running requests. Raises EngineError if it does not sleep then."""
        self._control("/sleep?level=1&mode=wait", seconds)
        if not self.is_sleeping():
            raise EngineError("the judge's own server did not fall asleep")

    def wake(self, seconds: float) -> None:
        """All of it at once, since parts were restored wrongly by tags. Raises EngineError if it still sleeps."""
        self._control("/wake_up", seconds)
        if self.is_sleeping():
            raise EngineError("the judge's own server did not wake")

    def is_sleeping(self) -> bool:
        """Whether it says so. Raises EngineError if it does not answer."""
        return bool(json.loads(self._control("/is_sleeping", 10.0, "GET"))["is_sleeping"])

    def forget(self) -> None:
        """Drops what it keeps of earlier prompts and media. Raises EngineError."""
        for cache in ("prefix", "mm", "encoder"):
            self._control(f"/reset_{cache}_cache", 30.0)

    def log(self) -> str:
        """The end of what it has said; empty once it was stopped."""
        with suppress(ValueError):
            self._log.seek(0)
            return self._log.read()[-_SHOWN:].strip()
        return ""

    def stop(self) -> None:
        """Ends it with its children. May be called twice, and in a forked child, where it does nothing."""
        if self._owner != os.getpid():
            return
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._port.close()

    def _control(self, path: str, seconds: float, method: str = "POST") -> bytes:
        try:
            return self._ask(method, path, seconds)
        except (OSError, ValueError, http.client.HTTPException) as error:  # the last, if it ends within its answer
            raise EngineError(f"the judge's own server failed at {path.partition('?')[0]}: {error}") from None

    def _ask(self, method: str, path: str, seconds: float) -> bytes:
        request = urllib.request.Request(f"http://{_HOST}:{self.port}{path}", b"" if method == "POST" else None)
        with self._direct.open(request, timeout=seconds) as answer:
            found: bytes = answer.read()
            return found


def _forget() -> None:
    """In a forked child: its end of the pipe would keep the server alive, and the port, when its parent was killed."""
    for process in list(_RUNNING):
        if process._process.stdin is not None:
            with suppress(OSError):
                process._process.stdin.close()
        process._port.close()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)


def _reserved() -> socket.socket:
    """A socket on a port that the system gives to no one else until it is closed, such as to the judge of another rank.

    It never listens, so that a server that reuses addresses, as all do, listens there in its place.
    """
    found = socket.socket()
    for option in ("SO_REUSEADDR", "SO_REUSEPORT"):
        if hasattr(socket, option):
            found.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
    found.bind((_HOST, 0))
    return found


def _environment(gpu: int | None) -> dict[str, str]:
    own: dict[str, Any] = {
        name: value for name, value in os.environ.items() if name not in _NOT_ITS_OWN and not name.startswith(_PREFIXES)
    }
    if gpu is not None:
        visible = [name for name in own.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        own["CUDA_VISIBLE_DEVICES"] = visible[gpu] if gpu < len(visible) else str(gpu)
    return {**own, "VLLM_SERVER_DEV_MODE": "1", "VLLM_LOGGING_LEVEL": own.get("VLLM_LOGGING_LEVEL", "WARNING")}
