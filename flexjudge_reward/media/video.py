"""Videos: from a list of frames, an array or an encoded file (`decoder.py`) to evenly sampled RGB frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import IO, Any

from flexjudge_reward.errors import MediaError
from flexjudge_reward.media import decoder, image
from flexjudge_reward.media.modality import Limits, Loaded, Modality, Roots
from flexjudge_reward.media.source import encoded_bytes, numbers

_MOST_FPS = 1e6  # of a list; a whole number of many digits would be no float


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
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < _MOST_FPS:
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
    def read(header: Mapping[str, Any], output: IO[bytes]) -> Loaded:
        import PIL.Image

        (width, height), fps, count = header["size"], float(header["fps"]), int(header["frames"])
        pixels = width * height
        if not (0 < count <= limits.frames and 0 < pixels * count <= 4 * limits.pixels and 0 < fps < math.inf):
            raise ValueError(header)
        frames = (PIL.Image.frombytes("RGB", (width, height), output.read(3 * pixels)) for _ in range(count))
        return Loaded(tuple(frames), fps)

    return decoder.decoded("video", data, limits.seconds, (4 * limits.pixels, limits.frames), read)
