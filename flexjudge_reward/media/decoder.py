"""Videos and sounds, decoded with PyAV in a child process that has a deadline (`av_worker.py`).

Decoders hang and crash. A hung decoder thread cannot be killed; a process can. Each file has a process of its own, so
that what a crafted file makes of it ends with it. The child's output is read up to the size that it may have.
"""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from flexjudge_reward.errors import MediaError, need
from flexjudge_reward.media import child

_T = TypeVar("_T")
_CHILD = Path(__file__).with_name("av_worker.py")
_LONGEST_HEADER = 4096


def decoded(
    kind: str, data: bytes, seconds: int, most: tuple[int, ...], read: Callable[[Mapping[str, Any], IO[bytes]], _T]
) -> _T:
    """What `read` makes of the child's header and of the bytes behind it.

    Args:
        kind: "video" or "audio".
        seconds: for decoding.
        most: what the child takes as the most that it may write.
        read: raises ValueError, KeyError or TypeError for an output that cannot be right.

    Raises MediaError: damaged, too large, too slow; and MissingExtra.
    """
    need("av", kind)
    command = child.command(_CHILD, seconds, kind, *most)
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output:
        given.write(data)
        given.seek(0)
        try:
            done = subprocess.run(
                command,
                stdin=given,
                stdout=output,
                stderr=subprocess.DEVNULL,
                env=child.environment(),
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            why = f"the {kind} was not decoded within {seconds} s; cut it or make it smaller"
            raise MediaError(why) from None
        if done.returncode == -signal.SIGPROF:
            raise MediaError(f"the {kind} needs more than {0.15 * seconds:g} s of processor time to be decoded; cut it")
        if done.returncode != 0:
            raise MediaError(f"the {kind} crashed its decoder (exit code {done.returncode})")
        output.seek(0)
        try:
            header = json.loads(output.readline(_LONGEST_HEADER))
            if "error" in header:
                raise MediaError(str(header["error"]))
            return read(header, output)
        except MediaError:
            raise
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise MediaError(f"the decoder of the {kind} gave an output that cannot be read") from None
