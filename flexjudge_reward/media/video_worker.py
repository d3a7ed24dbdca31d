"""The program that decodes one video, run in a process of its own so that it can be killed.

    python video_worker.py MOST_PIXELS MOST_FRAMES SECONDS < video > output

The output is one line of JSON, {"size", "fps", "frames"} or {"error"}, and then the RGB bytes of the frames. This file
imports nothing of the package: it starts fast, and what a crafted video makes of this process stays in it. Headers are
used to refuse a video, never to size anything: frames are counted by decoding them. How many a header promises says
nothing: an edit list hides some, a recorder guesses. A video is cut short where the bytes of a frame are missing.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

MOST_DECODED = 20_000  # frames; with the deadline, what a lying header can cost
MEMORY = 4 << 30
# First bytes of the containers that are opened. Playlists (HLS, concat) are not among them: they name other files.
CONTAINERS = ((4, b"ftyp", "mov"), (0, b"\x1a\x45\xdf\xa3", "matroska"), (0, b"RIFF", "avi"))


class Bad(Exception):
    """The video cannot be used, and why."""


def main() -> None:
    """Reads the video from the standard input and writes the output."""
    most_pixels, most_frames, seconds = (int(argument) for argument in sys.argv[1:4])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (4 * seconds, 4 * seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * most_pixels + 4096,) * 2)
    if sys.platform == "linux":  # elsewhere the limit counts address space that is only reserved
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out = sys.stdout.buffer
    try:
        fps, size, frames = decode(most_pixels, most_frames)
    except Bad as error:
        out.write(json.dumps({"error": str(error)}).encode() + b"\n")
        return
    out.write(json.dumps({"size": size, "fps": fps, "frames": len(frames)}).encode() + b"\n")
    for frame in frames:
        out.write(frame.tobytes())


def decode(most_pixels: int, most_frames: int) -> tuple[float, tuple[int, int], list[Any]]:
    """Frames per second of the kept frames, their width and height, and their pixels."""
    import av

    try:
        with av.open(sys.stdin.buffer, format=_container(), options={"protocol_whitelist": "none"}) as container:
            if not container.streams.video:
                raise Bad("the file has no video in it")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            most_here = most_pixels // most_frames
            _check(stream.codec_context.width, stream.codec_context.height, most_here)
            _check_end(_end_of_index(stream))
            kept, times, total = _sampled(container, stream, most_frames, most_here)
            rate = stream.average_rate or stream.guessed_rate
    except (av.FFmpegError, ValueError, MemoryError, EOFError) as error:
        raise Bad(f"the video is damaged or cut short ({type(error).__name__})") from None
    count = min(len(kept), most_frames)
    pick = [round(i * (len(kept) - 1) / max(1, count - 1)) for i in range(count)]
    frames, times = [kept[i] for i in pick], [times[i] for i in pick]
    height, width = frames[0].shape[:2]
    if any(frame.shape != frames[0].shape for frame in frames):
        raise Bad("the frames differ in size")
    return _fps(times, rate, len(frames), total), (width, height), frames


def _container() -> str:
    head = sys.stdin.buffer.read(16)
    sys.stdin.buffer.seek(0)
    for start, magic, name in CONTAINERS:
        if head[start:].startswith(magic):
            if name == "matroska":
                _check_matroska()
            if name == "avi":
                _check_avi()
            return name
    raise Bad("not a video in one of the containers MP4, MOV, MKV, WebM, AVI")


def _end_of_index(stream: Any) -> int:
    """Where the last frame ends that the file lists; 0 if it lists none, or PyAV is too old to know."""
    return max((entry.pos + entry.size for entry in getattr(stream, "index_entries", ())), default=0)


def _check_end(end: int) -> None:
    """Whether the file has all bytes before `end`."""
    total = os.fstat(sys.stdin.fileno()).st_size
    if end > total:
        raise Bad(f"the video is cut short: {total:,} of {end:,} bytes")


def _check_avi() -> None:
    """The index of an AVI file is at its end, and so is lost first; the list of frames has its size in front."""
    file, at = sys.stdin.buffer, 12
    file.seek(at)
    while len(head := file.read(12)) == 12:
        size = int.from_bytes(head[4:8], "little")
        if head[:4] == b"LIST" and head[8:] == b"movi":
            if size != 0xFFFFFFFF:  # a recorder that did not finish
                _check_end(at + 8 + size)
            break
        at += 8 + size + size % 2
        file.seek(at)
    file.seek(0)


def _check_matroska() -> None:
    """Matroska and WebM hold no number of frames, but the size of what follows the first header."""
    file = sys.stdin.buffer
    head = file.read(65_536)
    file.seek(0)
    try:
        size, at = _ebml_size(head, 4)
        at += size or 0
        if head[at : at + 4] != b"\x18\x53\x80\x67":
            return  # unusual, and for the decoder to judge
        size, at = _ebml_size(head, at + 4)
    except IndexError:
        raise Bad("the video is cut short within its header") from None
    _check_end(at + (size or 0))


def _ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """A variable-length size and where it ends; None is a live recording of unknown size."""
    length = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + length]) & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), at + length


def _sampled(container: Any, stream: Any, most_frames: int, most_here: int) -> tuple[list[Any], list[Any], int]:
    """2N to 4N evenly spaced frames of a video of unknown length (all, if fewer), their times, and the length."""
    kept: list[Any] = []
    times: list[Any] = []
    stride, total = 1, 0
    for frame in _frames(container, stream):
        if total == MOST_DECODED:
            raise Bad(f"the video has more than {MOST_DECODED:,} frames; cut it or lower its frame rate")
        if total % stride == 0:
            _check(frame.width, frame.height, most_here)
            kept.append(_upright(frame))
            times.append(None if frame.pts is None else frame.pts * frame.time_base)
        total += 1
        if len(kept) > 4 * most_frames:
            kept, times, stride = kept[::2], times[::2], 2 * stride
    if not kept:
        raise Bad("the video has no frame that can be decoded")
    return kept, times, total


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    for packet in container.demux(stream):
        if packet.is_corrupt:  # its end is missing
            raise Bad("the video is cut short within a frame")
        yield from packet.decode()


def _check(width: int, height: int, most_pixels: int) -> None:
    if width < 1 or height < 1:
        raise Bad("the frames have no pixels")
    if width * height > most_pixels:
        raise Bad(f"frames of {width} x {height} are more than the {most_pixels:,} pixels allowed for each")


def _upright(frame: Any) -> Any:
    """The pixels, height x width x 3, turned as a phone's video asks for."""
    import numpy as np

    turns = round(getattr(frame, "rotation", 0) / 90)  # counter-clockwise, as in numpy
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def _fps(times: list[Any], rate: Fraction | None, kept: int, total: int) -> float:
    """The rate at which the kept frames follow each other."""
    if kept > 1 and None not in (times[0], times[-1]) and times[-1] > times[0]:
        return round(float((kept - 1) / (times[-1] - times[0])), 6)
    if not rate:
        raise Bad("the file does not say its frame rate; give the frames as a list, with fps")
    return round(float(rate) * kept / total, 6)


if __name__ == "__main__":
    main()
