"""Sounds for the tests and `benchmarks/hardening.py`: good ones, and 200 broken, huge, lying and hostile files."""

from __future__ import annotations

import functools
import io
import random
import struct
from collections.abc import Iterator
from typing import Any

from flexjudge_reward.media import audio

CODED = (  # container, codec, samples a second
    *(("wav", "pcm_s16le", 44_100), ("wav", "pcm_mulaw", 8_000), ("wav", "pcm_f32le", 16_000)),
    *(("flac", "flac", 48_000), ("mp3", "libmp3lame", 44_100), ("ogg", "libopus", 48_000), ("mp4", "aac", 16_000)),
    *(("adts", "aac", 16_000), ("webm", "libopus", 48_000), ("aiff", "pcm_s16be", 16_000), ("au", "pcm_s16be", 8_000)),
    ("caf", "pcm_s16be", 16_000),
)


def tone(seconds: float = 1.0, pitch: float = 440.0, loud: float = 0.3, rate: int = audio.RATE) -> Any:
    """A hum with a little noise, as float32."""
    import numpy as np

    times = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(round(pitch)).normal(0, 0.02, len(times))
    return (loud * np.sin(2 * np.pi * pitch * times) + noise).clip(-1, 1).astype(np.float32)


def wav(seconds: float = 1.0, pitch: float = 440.0, loud: float = 0.3) -> bytes:
    """A WAV file of 16 bits and one channel of 16 kHz."""
    import numpy as np

    return audio.wav(np.rint(tone(seconds, pitch, loud) * 32767).astype("<i2").tobytes())


@functools.cache
def coded(container: str, codec: str, rate: int, seconds: float = 1.0, channels: int = 1) -> bytes:
    """An encoded file of a tone."""
    import av
    import numpy as np

    out, layout = io.BytesIO(), {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        samples = np.repeat(np.rint(tone(seconds) * 32767).astype(np.int16)[None], channels, 0)
        frame = av.AudioFrame.from_ndarray(samples, format="s16p", layout=layout)
        frame.sample_rate = audio.RATE
        shape = {"format": stream.format, "layout": layout, "rate": rate, "frame_size": stream.frame_size or 1024}
        resampler = av.AudioResampler(**shape)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return out.getvalue()


def with_size(data: bytes, size: int) -> bytes:
    """A WAV file that says it has so many bytes of samples."""
    at = data.index(b"data") + 4
    return data[:at] + struct.pack("<I", size) + data[at + 4 :]


def with_format(data: bytes, channels: int = 1, rate: int = audio.RATE) -> bytes:
    """A WAV file that says it has other channels or another rate."""
    at = data.index(b"fmt ") + 10
    return data[:at] + struct.pack("<HI", channels, rate) + data[at + 6 :]


@functools.cache
def bomb(seconds: int = 3600) -> bytes:
    """An hour of silence in 0.7 MB of FLAC."""
    import av
    import numpy as np

    out = io.BytesIO()
    with av.open(out, "w", format="flac") as file:
        stream = file.add_stream("flac", rate=audio.RATE, layout="mono")
        for number in range(seconds // 4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4 * audio.RATE), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = audio.RATE, number * 4 * audio.RATE
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return out.getvalue()


def lying_bomb(seconds: int = 3600, says: int = audio.RATE) -> bytes:
    """The same with so many samples in its header."""
    data = bomb(seconds)
    whole = int.from_bytes(data[18:26], "big")
    return data[:18] + (whole >> 36 << 36 | says).to_bytes(8, "big") + data[26:]


def playlist(name: str) -> bytes:
    """A text that makes FFmpeg open another file, if it may."""
    return f"ffconcat version 1.0\nfile {name}\n".encode()


def bad() -> Iterator[tuple[str, bytes]]:
    """(name, file): 200 files."""
    rng = random.Random(0)
    for container, codec, rate in CODED:
        whole = coded(container, codec, rate)
        for index in (0, 1, 3, 5, 7, 9):
            yield f"{container} of {codec}, cut at {index} of 10", whole[: len(whole) * index // 10]
        for index in range(4):
            broken = bytearray(whole)
            for _ in range(1 + 8 * index):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            yield f"{container} of {codec}, overwritten, {index}", bytes(broken)
        broken = bytearray(whole)
        broken[4:64] = rng.randbytes(60)
        yield f"{container} of {codec}, a damaged header", bytes(broken)
    good = wav()
    for size in (1, 2, 3, 100, 2**31 - 1, 2**31, 2**32 - 2**12 - 1, 2**32 - 1):
        yield f"WAV that says {size} bytes", with_size(good, size)
    for rate in (0, 1, 100, 3_999, 384_001, 2**31, 2**32 - 1):
        yield f"WAV that says {rate} Hz", with_format(good, rate=rate)
    for channels in (0, 3, 9, 12, 255, 65_535):
        yield f"WAV that says {channels} channels", with_format(good, channels)
    yield "FLAC of an hour", bomb()
    for says in (1, audio.RATE, 2**36 - 1):
        yield f"FLAC of an hour that says {says} samples", lying_bomb(says=says)
    yield "WAV of 301 s", audio.wav(bytes(2 * audio.RATE * 301))
    yield "WAV of 1 ms", wav(0.001)
    yield "WAV without samples", audio.wav(b"")
    yield "WAV of 40 MB", audio.wav(bytes(40_000_000))
    yield "WAV of NaN", _floats(float("nan"))
    yield "WAV of infinities", _floats(float("inf"))
    yield "WAV of 1e30", _floats(1e30)
    yield "ID3 of 256 MB", b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(5_000)
    yield "ID3 with zeros", b"ID3\x04\x00\x00\x00\x00\x10\x00" + bytes(200_000)
    yield "MP3 syncs", b"\xff\xfb\x90\x00" * 50_000
    yield "AAC syncs", b"\xff\xf1\x50\x80" * 50_000
    yield "many RIFF chunks", b"RIFF\xff\xff\xff\xffWAVE" + b"junk\0\0\0\0" * 1_000_000
    yield "many MP4 boxes", b"\0\0\0\x18ftypM4A " + bytes(12) + b"\0\0\0\x08free" * 1_000_000
    yield (
        "deep MP4 boxes",
        b"\0\0\0\x18ftypM4A "
        + bytes(12)
        + b"".join(struct.pack(">I", 8 * (5_000 - n)) + b"moov" for n in range(5_000)),
    )
    yield "many Ogg pages", b"OggS\0\x02" + bytes(21) + b"OggS" * 200_000
    yield "Matroska with a size of 2**56", b"\x1aE\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xfe" + bytes(2_000)
    for name in ("/etc/hostname", "file:///etc/hostname", "http://127.0.0.1:9/x.wav", "concat:/etc/hostname"):
        yield f"a script that names {name}", playlist(name)
    for name in ("/etc/hostname", "http://127.0.0.1:9/x.wav"):
        yield f"a playlist that names {name}", f"#EXTM3U\n#EXTINF:1,\n{name}\n".encode()
    yield "zeros", bytes(10_000)
    yield "text", b"no sound at all " * 50
    yield "HTML", b"<html><body><script>alert(1)</script></body></html>"
    yield "pickle", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94."
    for index in range(17):
        yield f"random bytes {index}", rng.randbytes(2_000)


def _floats(value: float) -> bytes:
    import base64

    data = bytearray(base64.b64decode(audio.uri(bytes(32_000)).partition(",")[2]))
    data[2_000:2_004] = struct.pack("<f", value)
    return bytes(data)
