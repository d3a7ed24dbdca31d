"""How an encoded clip becomes RGB frames: in a child process with a deadline, because decoders hang and crash.

A thread that hangs in a decoder stays for ever; a process can be killed. The child's answer is read within the size it
may have, whatever it wrote.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from flexjudge_reward.errors import MediaError, MissingExtra

if TYPE_CHECKING:
    from PIL.Image import Image

_CHILD = Path(__file__).with_name("video_worker.py")
_LONGEST_HEADER = 4096


def decode(data: bytes, most_pixels: int, most_frames: int, seconds: int) -> tuple[float, tuple[Image, ...]]:
    """At most `most_frames` frames, evenly spaced, and their rate in frames per second.

    Args:
        most_pixels: over all frames that are kept.
        seconds: after which the child is killed.

    Raises:
        MediaError: PyAV is missing; not a clip, damaged, too large, or not decoded in time.
    """
    if importlib.util.find_spec("av") is None:
        raise MediaError(str(MissingExtra("av", "video")))
    with tempfile.TemporaryFile() as clip, tempfile.TemporaryFile() as answer:
        clip.write(data)
        clip.seek(0)
        # -P: without it the folder of the child comes first on its path, and our types.py hides Python's
        command = [sys.executable, "-P", str(_CHILD), f"{most_pixels}", f"{most_frames}", f"{seconds}"]
        child = subprocess.Popen(command, stdin=clip, stdout=answer, stderr=subprocess.DEVNULL, env=_environment())
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise MediaError(f"the clip was not decoded within {seconds} s; cut it or make it smaller") from None
        finally:
            child.kill()
            child.wait()
        if code != 0:
            raise MediaError(f"the clip crashed its decoder (exit code {code})")
        answer.seek(0)
        return _read(answer, most_pixels, most_frames)


def _environment() -> dict[str, str]:
    """What Python needs to start, and nothing else: keys and tokens are not for a decoder of strangers' files."""
    names = ("PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    return {name: os.environ[name] for name in names if name in os.environ}


def _read(answer: IO[bytes], most_pixels: int, most_frames: int) -> tuple[float, tuple[Image, ...]]:
    import PIL.Image

    try:
        header = json.loads(answer.readline(_LONGEST_HEADER))
        if "error" in header:
            raise MediaError(str(header["error"]))
        (width, height), fps, count = header["size"], float(header["fps"]), int(header["frames"])
        fits = 0 < count <= most_frames and 0 < width * height * count <= most_pixels and math.isfinite(fps) and fps > 0
        if not fits:
            raise ValueError(header)
        each = width * height * 3
        return fps, tuple(PIL.Image.frombytes("RGB", (width, height), answer.read(each)) for _ in range(count))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError("the clip's decoder gave an answer that cannot be read") from None
