"""Videos: from a list of frames, an array or an encoded file to evenly sampled RGB frames.

An encoded file is decoded in a child process with a deadline (`video_worker.py`): decoders hang and crash. A hung
decoder thread cannot be killed; a process can. The child's output is read up to the size it may have.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from flexjudge_reward.errors import MediaError, MissingExtra
from flexjudge_reward.media import child, image
from flexjudge_reward.media.modality import Limits, Loaded, Modality, Roots
from flexjudge_reward.media.source import encoded_bytes, numbers

_CHILD = Path(__file__).with_name("video_worker.py")
_LONGEST_HEADER = 4096


class VideoModality(Modality):
    """One video, sampled evenly to at most `limits.frames` frames."""

    name, channel, is_file, options = "video", True, True, {"fps": 1.0}

    def load(self, source: object, options: Mapping[str, Any], roots: Roots, limits: Limits) -> Loaded:
        """The frames and their rate; `fps` is that of a list or array. Raises MediaError, MissingExtra."""
        if hasattr(source, "__array__"):
            source = list(numbers(source))
        if isinstance(source, list | tuple):
            return _from_frames(source, options["fps"], roots, limits)
        return _decoded(encoded_bytes(source, roots, limits), limits)


def _from_frames(source: Sequence[object], fps: object, roots: Roots, limits: Limits) -> Loaded:
    if not source:
        raise MediaError("the list of frames is empty")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not (math.isfinite(fps) and fps > 0):
        raise MediaError(f"fps must be a positive number of frames per second, found {fps!r}")
    kept = min(len(source), limits.frames)
    pick = [round(i * (len(source) - 1) / max(1, kept - 1)) for i in range(kept)]
    each = replace(limits, pixels=min(limits.pixels, 4 * limits.pixels // kept))
    frames = tuple(image.read(source[i], roots, each) for i in pick)
    if len({frame.size for frame in frames}) > 1:
        raise MediaError("the frames differ in size")
    sampled = kept < len(source) and kept > 1
    return Loaded(frames, float(fps) * (kept - 1) / (len(source) - 1) if sampled else float(fps))


def _decoded(data: bytes, limits: Limits) -> Loaded:
    if importlib.util.find_spec("av") is None:
        raise MissingExtra("av", "video")
    command = child.command(_CHILD, 4 * limits.pixels, limits.frames, limits.seconds)
    with tempfile.TemporaryFile() as video, tempfile.TemporaryFile() as output:
        video.write(data)
        video.seek(0)
        try:
            done = subprocess.run(
                command,
                stdin=video,
                stdout=output,
                stderr=subprocess.DEVNULL,
                env=child.environment(),
                timeout=limits.seconds,
            )
        except subprocess.TimeoutExpired:
            why = f"the video was not decoded within {limits.seconds} s; cut it or make it smaller"
            raise MediaError(why) from None
        if done.returncode != 0:
            raise MediaError(f"the video crashed its decoder (exit code {done.returncode})")
        output.seek(0)
        return _read(output, limits)


def _read(output: IO[bytes], limits: Limits) -> Loaded:
    import PIL.Image

    try:
        header = json.loads(output.readline(_LONGEST_HEADER))
        if "error" in header:
            raise MediaError(str(header["error"]))
        (width, height), fps, count = header["size"], float(header["fps"]), int(header["frames"])
        pixels = width * height
        if not (0 < count <= limits.frames and 0 < pixels * count <= 4 * limits.pixels and 0 < fps < math.inf):
            raise ValueError(header)
        frames = (PIL.Image.frombytes("RGB", (width, height), output.read(3 * pixels)) for _ in range(count))
        return Loaded(tuple(frames), fps)
    except MediaError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError):
        raise MediaError("the video's decoder gave an output that cannot be read") from None
