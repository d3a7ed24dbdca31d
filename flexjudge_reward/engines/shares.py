"""One limit for all processes of a machine that ask one server: eight ranks have 64 requests in flight, not 512.

Each process has a file in a folder of the server: how many requests it wants in flight, and how many it may have. A
process takes its fair part of what the others leave, so one that waits for its last few replies leaves the rest to
them. The files are locked by their processes, and the system unlocks them at their end: a killed process holds nothing,
also where one that it forked, such as a worker that loads data, lives on.

Promised: the processes together have at most `most` in flight, plus one for each that would have none. Not shared over
machines: there the reward server has one limit for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flexjudge_reward.engines.throttle import Throttle

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

_MEMBER = ".member"
_TRIES = 50  # a millisecond each; it is held for a tenth of one
_LOOK_S = 0.05  # how often the others are looked at
_SHARES: weakref.WeakSet[Share] = weakref.WeakSet()


def fair(most: int, wanted: Sequence[int]) -> list[int]:
    """`most` in equal parts, none larger than what is wanted, which is at least 1 where anything is wanted."""
    parts, left = [0] * len(wanted), most
    for done, index in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        parts[index] = min(wanted[index], max(1, left // (len(wanted) - done)))
        left = max(0, left - parts[index])
    return parts


class Share:
    """This process's part of one server's limit. Not thread-safe."""

    def __init__(self, server: str, most: int) -> None:
        """`server` is its address. Where no file can be made or locked, this process has the limit for itself."""
        self._most, self._allowed, self._file = most, 1, -1
        if fcntl is None:
            return
        try:
            self._folder = _own_folder() / hashlib.sha256(server.encode()).hexdigest()[:16]
            _SHARES.add(self)
            with self._locked():
                self._join()
        except OSError:  # such as a full disk
            self.leave()

    def update(self, wanted: int, in_flight: int) -> int:
        """How many requests may be in flight now, if `wanted` are, and `in_flight` are already."""
        if self._file < 0:
            return self._most
        try:
            with self._locked():
                others = list(self._others())
                part = fair(self._most, [wanted, *(want for want, _ in others)])[0]
                left = self._most - sum(held for _, held in others)
                allowed = max(min(part, left), min(1, wanted))
                os.pwrite(self._file, b"%10d %10d" % (wanted, max(allowed, in_flight)), 0)
                self._allowed = allowed
                return allowed
        except BlockingIOError:  # another process is stopped while it has the lock: as before, then
            if not wanted:  # there may be no later call, and the others must not count what is over
                with contextlib.suppress(OSError):
                    os.pwrite(self._file, b"%10d %10d" % (0, in_flight), 0)
            return self._allowed
        except (OSError, ValueError):  # such as a folder that was removed meanwhile
            self.leave()
            return self._most

    def leave(self) -> None:
        """Gives everything back. May be called twice."""
        if self._file >= 0:
            with contextlib.suppress(OSError), self._locked():
                self._path.unlink(missing_ok=True)
                self._folder.rmdir()  # which fails while there are others
            os.close(self._file)
            self._file = -1

    def _join(self) -> None:
        self._folder.mkdir(exist_ok=True)
        self._file, name = tempfile.mkstemp(dir=self._folder)
        self._path = Path(name)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        os.pwrite(self._file, b"%10d %10d" % (0, 0), 0)
        self._path = self._path.rename(
            self._path.with_suffix(_MEMBER)
        )  # only now do others see it: one without a lock is a dead process's

    @contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self._folder.parent / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            for left in reversed(range(_TRIES)):  # nothing waits for ever on an event loop
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not left:
                        raise
                    time.sleep(0.001)
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)  # a child that was forked meanwhile has the handle, too
            os.close(handle)

    def _others(self) -> Iterator[tuple[int, int]]:
        """What each other process wants, and may have."""
        for path in self._folder.glob("*" + _MEMBER):
            if path == self._path:
                continue
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)  # its process has ended
            except BlockingIOError:
                want, held = os.pread(handle, 64, 0).split()
                yield int(want), int(held)
            finally:
                os.close(handle)


class Sharing:
    """Keeps a throttle at this process's part of the limit while it has requests. Everything runs on one event loop."""

    def __init__(self, server: str, throttle: Throttle) -> None:
        self._throttle, self._most, self._wanted = throttle, throttle.most, 0
        self._share = Share(server, throttle.most)
        self._task: asyncio.Task[None] | None = None

    def want(self, more: int) -> None:
        """So many more requests than before are to be sent, or fewer."""
        self._wanted += more
        if self._task is None and self._wanted:
            self._divide()
            self._task = asyncio.get_running_loop().create_task(self._keep())
        elif self._task is not None and not self._wanted:
            self._task.cancel()
            self._task = None
            self._divide()

    def close(self) -> None:
        """Gives everything back."""
        self._share.leave()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            self._divide()

    def _divide(self) -> None:
        wanted = min(self._wanted, self._most)
        allowed = self._share.update(wanted, self._throttle.in_flight)
        if allowed != self._throttle.most and wanted:
            self._throttle.resize(allowed)


def _forget() -> None:
    """In a forked child: its copies of the handles would hold the locks of a parent that was killed."""
    for share in list(_SHARES):
        handle, share._file = share._file, -1
        if handle >= 0:
            os.close(handle)


if fcntl is not None:
    os.register_at_fork(after_in_child=_forget)


def _own_folder() -> Path:
    """A folder that only this user can write. Raises OSError."""
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"flexjudge-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise OSError(f"{folder} is not this user's")
    return folder
