"""The program that decodes one video or sound, run in a process of its own so that it can be killed.

    python av_worker.py SECONDS video MOST_PIXELS MOST_FRAMES < video > output
    python av_worker.py SECONDS audio MOST_SAMPLES < sound > output

The output is one line of JSON, {"size", "fps", "frames"}, {"samples"} or {"error"}, and then the RGB bytes of the
frames, or the samples as floats, one channel of 16 kHz. This file imports nothing of the package: it starts fast, and
what a crafted file makes of this process stays in it. Headers are used to refuse a file, never to size anything: frames
and samples are counted by decoding them. How many frames a header promises says nothing: an edit list hides some, a
recorder guesses. A video is cut short where the bytes of a frame are missing, a sound also where it ends before the
time that its header promises.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

MOST_DECODED = 20_000  # frames; with the deadline, what a lying header can cost
MEMORY = 4 << 30
# First bytes of the containers that are opened. Playlists (HLS, concat) are not among them: they name other files.
_BOTH = ((4, b"ftyp", "mov"), (0, b"\x1a\x45\xdf\xa3", "matroska"))
CONTAINERS = (*_BOTH, (0, b"RIFF", "avi"))
SOUNDS = (
    *_BOTH,
    *((8, b"WAVE", "wav"), (0, b"fLaC", "flac"), (0, b"OggS", "ogg"), (0, b"ID3", "mp3"), (0, b"FORM", "aiff")),
    *((0, b".snd", "au"), (0, b"caff", "caf"), (0, b"#!AMR", "amr")),
    *((0, bytes((0xFF, second)), "aac") for second in (0xF0, 0xF1, 0xF8, 0xF9)),
    *((0, bytes((0xFF, second)), "mp3") for second in range(0xE0, 0x100) if second & 6),
)
RATE = 16_000  # of every sound from here on
RATES, MOST_CHANNELS = (4_000, 384_000), 8
COVERS = ("mjpeg", "png", "bmp", "gif", "webp", "jpegls")  # what a sound file may have as its picture
MOST_BLOCKS = 10_000
NO_SIZE = 0xFFFFF000  # from here on, and 0, the size in a WAV file that was written as it was recorded


class Bad(Exception):
    """The file cannot be used, and why."""


def main() -> None:
    """Reads the file from the standard input and writes the output."""
    seconds, kind, *most = int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (4 * seconds, 4 * seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * most[0] + 4096,) * 2)
    if sys.platform == "linux":  # elsewhere the limit counts address space that is only reserved
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out = sys.stdout.buffer
    try:
        header, parts = heard(most[0], 0.15 * seconds) if kind == "audio" else seen(*most)
    except Bad as error:
        header, parts = {"error": str(error)}, []
    out.write(json.dumps(header).encode() + b"\n")
    for part in parts:
        out.write(part)


def seen(most_pixels: int, most_frames: int) -> tuple[dict[str, Any], list[bytes]]:
    """A video for the output."""
    fps, size, frames = decode(most_pixels, most_frames)
    return {"size": size, "fps": fps, "frames": len(frames)}, frames


def heard(most_samples: int, cpu: float) -> tuple[dict[str, Any], list[bytes]]:
    """A sound for the output."""
    import av

    known = "WAV, FLAC, MP3, OGG, M4A, AAC, WebM, AIFF, AU, CAF, AMR"
    name = _container(SOUNDS, f"not a sound in one of the formats {known}")
    # Python runs no handler within a call of FFmpeg; without one the signal ends the process at once.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    signal.setitimer(signal.ITIMER_PROF, cpu)
    _check_blocks(name)
    options, endless = {"protocol_whitelist": "fd"}, name == "wav" and _has_no_size()
    try:
        with av.open("fd:", format=name, options=options, metadata_errors="ignore") as container:
            if any(stream.codec_context.name not in COVERS for stream in container.streams.video):
                raise Bad("this is a video: take its sound out first, or show it as a video")
            if not container.streams.audio:
                raise Bad("the file has no sound in it")
            stream = container.streams.audio[0]
            said = _checked_length(container, stream, most_samples)
            _check_end(_end_of_index(stream))
            parts, count = _samples(container, stream, most_samples, endless)
    except (av.FFmpegError, ValueError, MemoryError, EOFError) as error:
        raise Bad(f"the sound is damaged or cut short ({type(error).__name__})") from None
    if count < 0.97 * said * RATE - 0.1 * RATE and _says_length(name):
        raise Bad(f"the sound is cut short: {count / RATE:.1f} of {said:.1f} s")
    return {"samples": count}, parts


def _checked_length(container: Any, stream: Any, most_samples: int) -> float:
    """Seconds by the header, 0 if it does not say; whether rate, channels and seconds are allowed."""
    rate, channels, most = stream.codec_context.sample_rate, stream.codec_context.channels, most_samples / RATE
    if not RATES[0] <= rate <= RATES[1]:
        raise Bad(f"{rate:,} samples a second; {RATES[0]:,} to {RATES[1]:,} are read")
    if not 1 <= channels <= MOST_CHANNELS:
        raise Bad(f"{channels} channels; 1 to {MOST_CHANNELS} are read")
    said = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
    if said > most + 1:
        raise Bad(f"{said:,.1f} s by its header, and {most:g} s are allowed: cut it")
    return max(0.0, said)


def _samples(container: Any, stream: Any, most: int, endless: bool) -> tuple[list[bytes], int]:
    """The sound as floats of one channel of 16 kHz, in parts, and their number; `endless` if no size was written."""
    import av

    stream.thread_type, rate = "NONE", stream.codec_context.sample_rate
    resampler = av.AudioResampler(format="flt", rate=RATE)
    parts: list[bytes] = []
    count = 0
    for frame in _frames(container, stream, "sound", endless):
        if frame.sample_rate != rate:
            raise Bad("the sample rate changes inside the file")
        for out in resampler.resample(frame):
            parts.append(_mean(out, stream.codec_context.channels))
            count += out.samples
            if count > most:
                raise Bad(f"longer than the {most / RATE:g} s allowed, whatever its header says: cut it")
    for out in resampler.resample(None) if count else ():
        parts.append(_mean(out, stream.codec_context.channels))
        count += out.samples
    return parts, count


def _mean(frame: Any, channels: int) -> bytes:
    """The mean of the channels, as vLLM and `datasets` mix; FFmpeg's own mix of two is louder by 3 dB."""
    if channels == 1:
        return bytes(frame.planes[0])[: 4 * frame.samples]
    return bytes(frame.to_ndarray().reshape(-1, channels).mean(1).tobytes())


def _check_blocks(name: str) -> None:
    """A small file of many empty blocks takes FFmpeg seconds, and no encoder writes one."""
    at, step = {"wav": (12, 8), "mov": (0, 0)}.get(name, (-1, 0))
    for _ in range(MOST_BLOCKS):
        head = _head(16, at) if at >= 0 else b""
        if len(head) < 8 or head.startswith(b"data"):
            return
        size = int.from_bytes(head[4:8], "little") if step else int.from_bytes(head[:4], "big")
        if name == "mov" and size == 1:
            size = int.from_bytes(head[8:], "big")
        elif name == "mov" and size == 0:  # to the end
            return
        at += step + size + size % 2 if step else max(size, 8)
    raise Bad(f"the file has more than {MOST_BLOCKS:,} blocks")


def _has_no_size() -> bool:
    """Whether a WAV file does not say how many bytes of samples it has."""
    head = _head(65_536)
    at = head.find(b"data", 12)
    size = int.from_bytes(head[at + 4 : at + 8], "little")
    return at > 0 and (size == 0 or size >= NO_SIZE)


def _says_length(name: str) -> bool:
    """Whether a length is the file's own; of AAC and of an MP3 file without a first frame for it, it is a guess."""
    if name != "mp3":
        return name not in ("aac", "amr")
    head = _head(10)
    tag = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(reversed(head[6:10]))) + 10
    frame = _head(2_048, tag if head.startswith(b"ID3") else 0)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))


def _head(size: int, at: int = 0) -> bytes:
    """Some bytes of the file. FFmpeg reads file 0 from its position, which therefore stays at the start."""
    return os.pread(0, size, at)


def decode(most_pixels: int, most_frames: int) -> tuple[float, tuple[int, int], list[bytes]]:
    """Frames per second of the kept frames, their width and height, and their RGB bytes."""
    import av

    try:
        name = _container(CONTAINERS, "not a video in one of the containers MP4, MOV, MKV, WebM, AVI")
        with av.open("fd:", format=name, options={"protocol_whitelist": "fd"}) as container:
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
    if len({size for size, _ in frames}) > 1:
        raise Bad("the frames differ in size")
    return _fps(times, rate, len(frames), total), frames[0][0], [pixels for _, pixels in frames]


def _container(known: Iterable[tuple[int, bytes, str]], unknown: str) -> str:
    head = _head(16)
    for start, magic, name in known:
        if head[start:].startswith(magic):
            if name == "matroska":
                _check_matroska()
            if name == "avi":
                _check_avi()
            return name
    raise Bad(unknown)


def _end_of_index(stream: Any) -> int:
    """Where the last frame ends that the file lists; 0 if it lists none, or PyAV is too old to know."""
    return max((entry.pos + entry.size for entry in getattr(stream, "index_entries", ())), default=0)


def _check_end(end: int) -> None:
    """Whether the file has all bytes before `end`."""
    total = os.fstat(0).st_size
    if end > total:
        raise Bad(f"the file is cut short: {total:,} of {end:,} bytes")


def _check_avi() -> None:
    """The index of an AVI file is at its end, and so is lost first; the list of frames has its size in front."""
    at = 12
    while len(head := _head(12, at)) == 12:
        size = int.from_bytes(head[4:8], "little")
        if head[:4] == b"LIST" and head[8:] == b"movi":
            if size != 0xFFFFFFFF:  # a recorder that did not finish
                _check_end(at + 8 + size)
            break
        at += 8 + size + size % 2


def _check_matroska() -> None:
    """Matroska and WebM hold no number of frames, but the size of what follows the first header."""
    head = _head(65_536)
    try:
        size, at = _ebml_size(head, 4)
        at += size or 0
        if head[at : at + 4] != b"\x18\x53\x80\x67":
            return  # unusual, and for the decoder to judge
        size, at = _ebml_size(head, at + 4)
    except IndexError:
        raise Bad("the file is cut short within its header") from None
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
    for frame in _frames(container, stream, "video"):
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


def _frames(container: Any, stream: Any, what: str, endless: bool = False) -> Iterator[Any]:
    for packet in container.demux(stream):
        if packet.is_corrupt and not endless:  # its end is missing
            raise Bad(f"the {what} is cut short within a frame")
        yield from packet.decode()


def _check(width: int, height: int, most_pixels: int) -> None:
    if width < 1 or height < 1:
        raise Bad("the frames have no pixels")
    if width * height > most_pixels:
        raise Bad(f"frames of {width} x {height} are more than the {most_pixels:,} pixels allowed for each")


def _upright(frame: Any) -> tuple[tuple[int, int], bytes]:
    """Width and height, and RGB bytes, turned as a phone's video asks for."""
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counter-clockwise, as in numpy
    if turns:
        import numpy as np  # here only: it takes as long to import as all else in this program

        pixels = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
        return (pixels.shape[1], pixels.shape[0]), pixels.tobytes()
    plane, width = frame.reformat(format="rgb24").planes[0], 3 * frame.width
    whole, line = bytes(plane), plane.line_size
    rows = (whole[at : at + width] for at in range(0, line * frame.height, line))  # a line may end with padding
    return (frame.width, frame.height), whole if line == width else b"".join(rows)


def _fps(times: list[Any], rate: Fraction | None, kept: int, total: int) -> float:
    """The rate at which the kept frames follow each other."""
    if kept > 1 and None not in (times[0], times[-1]) and times[-1] > times[0]:
        return round(float((kept - 1) / (times[-1] - times[0])), 6)
    if not rate:
        raise Bad("the file does not say its frame rate; give the frames as a list, with fps")
    return round(float(rate) * kept / total, 6)


if __name__ == "__main__":
    main()
