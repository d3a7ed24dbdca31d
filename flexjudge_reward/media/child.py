"""How the package runs a decoder in a process of its own: one that hangs, crashes or holds the interpreter's lock.

Promised: the child sees no key or token of the environment, and its answer, or the lack of one, comes within the limit.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

# What Python needs to start, and nothing else: keys and tokens are not for a decoder of untrusted data.
_NAMES = {"PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"}
_STARTING_S = 120.0  # for the imports of a child, on a busy machine
_IDLE = 4  # children that wait for the next question


def command(program: Path, *arguments: object) -> list[str]:
    """How Python runs a program of the package."""
    # -P: without it the folder of the program comes first on its path, and our types.py hides Python's
    return [sys.executable, "-P", str(program), *map(str, arguments)]


def environment() -> dict[str, str]:
    """Of a child."""
    return {name: os.environ[name] for name in _NAMES & os.environ.keys()}


class Ended(Exception):
    """The child ended without an answer."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
        """Its exit code; below 0, minus the signal that ended it."""


class Children:
    """Processes of one program, each for one question at a time; started when needed, and kept for the next one.

    The program writes a line when it is ready, then a line per line that it reads. Thread-safe; a forked process has
    children of its own.
    """

    def __init__(self, program: Path, *arguments: object) -> None:
        self.command = command(program, *arguments)
        self._idle: list[_Child] = []
        self._lock = threading.Lock()
        self._hooked = False

    def ask(self, question: bytes, seconds: float) -> bytes:
        """The answer to one line, without its end.

        Raises TimeoutError: none came within `seconds`, and the child was killed; Ended: the child died.
        """
        child = self._taken()
        try:
            answer = child.ask(question, seconds)
        except BaseException:
            child.kill()
            raise
        with self._lock:
            if len(self._idle) < _IDLE:
                self._idle.append(child)
                return answer
        child.kill()
        return answer

    def close(self) -> None:
        """Ends the children that wait."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.kill()

    def _taken(self) -> _Child:
        with self._lock:
            if not self._hooked:
                self._hooked = True
                atexit.register(self.close)
                os.register_at_fork(after_in_child=self._forget)
            while self._idle:
                child = self._idle.pop()
                if child.alive:
                    return child
                child.kill()
        return _Child(self.command)

    def _forget(self) -> None:
        """In a forked process: the children are the parent's. Its locks may have been held while it forked."""
        self._lock = threading.Lock()
        for child in self._idle:
            child.disown()
        self._idle = []


class _Child:
    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
        )
        try:
            self._line(_STARTING_S)
        except BaseException:
            self.kill()
            raise

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: bytes, seconds: float) -> bytes:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(question + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Ended(self._process.wait()) from None
        return self._line(seconds)

    def _line(self, seconds: float) -> bytes:
        """Read without a buffer: `select` sees only what is still in the pipe."""
        assert self._process.stdout is not None
        handle, due, read = self._process.stdout.fileno(), time.monotonic() + seconds, b""
        while not read.endswith(b"\n"):
            if not select.select([handle], [], [], max(0.0, due - time.monotonic()))[0]:
                raise TimeoutError
            if not (part := os.read(handle, 1 << 20)):
                raise Ended(self._process.wait())
            read += part
        return read[:-1]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._close()

    def disown(self) -> None:
        self._process.returncode = 0  # else its end here would warn of a process that runs
        self._close()

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
