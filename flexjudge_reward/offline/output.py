"""The file that a job writes: looked at before anything is judged, and written by one process at a time.

`OUTPUT.lock` beside it holds the id of that process. What counts is the lock on it, which ends with the process: a file
that a kill left is no obstacle.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from flexjudge_reward.errors import ConfigError


@contextmanager
def owned(output: Path) -> Iterator[None]:
    """Keeps other jobs from `output`. Raises ConfigError: it cannot be written, or another job writes it."""
    try:
        _check(output)
        path = output.with_name(output.name + ".lock")
        handle = _locked(path)
    except BlockingIOError:
        owner = path.read_text(errors="replace").strip() or "another one"
        raise ConfigError(
            f"{str(output)!r} is being written by process {owner}: wait until it ends, or give another output"
        ) from None
    except OSError as error:
        raise ConfigError(f"{str(output)!r} cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # first: who waits for the lock must find a new file
        os.close(handle)


def _check(output: Path) -> None:
    if not output.parent.is_dir():
        raise ConfigError(f"there is no folder {str(output.parent)!r} for the output: make it, or give another place")
    if output.is_dir():
        raise ConfigError(f"the output {str(output)!r} is a folder: give the file to write")
    if output.exists() and not output.is_file():  # it would be replaced by a file
        place = "give another place, or none to print the rows"
        raise ConfigError(f"the output {str(output)!r} is no regular file: {place}")


def _locked(path: Path) -> int:
    """A handle on the file that has its lock. Raises BlockingIOError: another process has it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    os.ftruncate(handle, 0)
                    os.write(handle, f"{os.getpid()}\n".encode())
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its owner removed the file meanwhile
