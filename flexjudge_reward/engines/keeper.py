"""Runs a command until its own standard input closes or a SIGTERM comes, then ends the command and its children.

    python keeper.py COMMAND ...

So a judge server ends with its trainer, however that ends: the pipe closes with the process that holds its other end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

_GRACE_S = 15.0
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """The exit code of the command."""
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())  # before there is a child that it could leave behind
    child = subprocess.Popen(
        sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_keeper
    )
    for wait in (sys.stdin.buffer.read, child.wait):
        threading.Thread(target=_then, args=(wait, over), daemon=True).start()
    over.wait()
    for number, patience in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, None)):
        if child.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)
    with contextlib.suppress(ProcessLookupError):  # engine processes that outlived their server
        os.killpg(child.pid, signal.SIGKILL)
    return child.returncode or 0


def _end_with_keeper() -> None:
    """Lets Linux send SIGTERM to the command when this process is killed, which can then end nothing itself."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _then(wait: object, over: threading.Event) -> None:
    try:
        wait()  # type: ignore[operator]
    finally:
        over.set()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code if code >= 0 else 128 - code)  # the thread that reads may hold the lock of standard input
