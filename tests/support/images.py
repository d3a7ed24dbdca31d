"""Images and videos for the media tests and `benchmarks/hardening.py`: good ones, damaged ones, bombs."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def noise(width: int = 60, height: int = 40, seed: int = 0, mode: str = "RGB") -> Any:
    """A PIL image of random pixels."""
    import numpy as np
    import PIL.Image

    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


def photo(width: int, height: int, seed: int = 0) -> Any:
    """A PIL image that an encoder finds as hard as a photograph: soft shapes under grain."""
    import numpy as np
    import PIL.Image

    random = np.random.default_rng(seed)
    shapes = PIL.Image.fromarray(random.integers(0, 255, (height // 16, width // 16, 3), np.uint8))
    grain = random.normal(0, 4, (height, width, 1)).astype(np.int16)
    pixels = np.asarray(shapes.resize((width, height), PIL.Image.Resampling.BICUBIC), np.int16) + grain
    return PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def saved(image: Any, format: str = "PNG", **options: Any) -> bytes:
    """The image as an encoded file."""
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def palette(clear: bool = False, colour: tuple[int, int, int] = (255, 0, 0)) -> Any:
    """A PIL image of one colour of a palette, which may be transparent."""
    import PIL.Image

    image = PIL.Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 255, *colour] + [0] * 750)
    if clear:
        image.info["transparency"] = bytes([255, 0])
    return image


def uri(data: bytes, kind: str = "image/png") -> str:
    """The file as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def pixels(media: Any) -> Any:
    """The pixels of an image as an array; it has one RGB frame."""
    import numpy as np

    (frame,) = media.images()
    assert frame.mode == "RGB"
    return np.asarray(frame)


def refused(media: Any, message: str) -> None:
    """Loading the item is an error, each time the same."""
    import pytest

    from flexjudge_reward import MediaError

    for _ in range(2):
        with pytest.raises(MediaError, match=message):
            media.load()


def clip(
    container: str = "mp4", codec: str = "libx264", frames: int = 40, rate: int = 10, size: tuple[int, int] = (64, 48)
) -> bytes:
    """An encoded video that gets brighter by `200 / frames` with every frame."""
    import av
    import numpy as np

    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(frames):
            shade = np.full((size[1], size[0], 3), 20 + 200 * index // frames, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        file.mux(stream.encode(None))
    return out.getvalue()


def png_header(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG file of any size in its header, whatever its data."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def png_with(name: bytes, count: int) -> bytes:
    """A PNG file with so many empty chunks before its pixels."""
    chunk = bytes(4) + name + struct.pack(">I", zlib.crc32(name))
    whole = saved(noise())
    return whole[:33] + chunk * count + whole[33:]


def jpeg_with(segments: bytes) -> bytes:
    """A JPEG file with something before its first segment."""
    whole = saved(noise(), "JPEG")
    return whole[:2] + segments + whole[2:]


def bombs() -> Iterator[tuple[str, bytes]]:
    """(name, file): small files that ask for much memory or time."""
    for side in (4_001, 9_000, 13_000, 20_000, 60_000, 2**31 - 1):
        yield f"PNG of {side} squared", png_header(side, side, zlib.compress(b"\0" * 1_000))
    rows = zlib.compressobj(1)
    data = b"".join(rows.compress(b"\0" * 9_001) for _ in range(9_000)) + rows.flush()
    yield "PNG of 9,000 squared with all its pixels", png_header(9_000, 9_000, data)
    small = saved(noise(), "GIF")
    yield "GIF with a large screen", small[:6] + struct.pack("<HH", 65_535, 65_535) + small[10:]
    at = small.index(b",", 13 + 3 * 256)
    yield "GIF with a large frame", small[: at + 5] + struct.pack("<HH", 65_535, 65_535) + small[at + 9 :]
    bmp = saved(noise(), "BMP")
    for side in (9_000, 100_000, 2**31 - 1):
        yield f"BMP of {side} squared", bmp[:18] + struct.pack("<ii", side, side) + bmp[26:]
    for side in (9_000, 65_000):
        yield f"JPEG of {side} squared", _jpeg_of(side)
    webp = saved(noise(), "WEBP", lossless=True)
    at = webp.index(b"VP8L") + 9
    bits = (16_383) | (16_383 << 14)
    yield "WebP of 16,384 squared", webp[:at] + struct.pack("<I", bits) + webp[at + 4 :]
    tiff = saved(noise(), "TIFF")
    for side in (9_000, 200_000):
        wide = _tiff_entry(_tiff_entry(tiff, 256, side), 257, side)
        yield f"TIFF of {side} squared", wide
    text = zlib.compress(b"a" * 200_000_000, 1)
    inner = b"zTXtComment\0\0" + text
    chunk = struct.pack(">I", len(inner) - 4) + inner + struct.pack(">I", zlib.crc32(inner))
    good = saved(noise())
    yield "PNG with a compressed text of 200 MB", good[:33] + chunk + good[33:]
    yield "PNG of a million empty chunks", png_with(b"prVt", 1_000_000)
    yield "JPEG of 2 million fill bytes", jpeg_with(b"\xff" * 2_000_000)


def _jpeg_of(side: int) -> bytes:
    data = saved(noise(), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", side, side) + data[at + 4 :]


def _tiff_entry(data: bytes, tag: int, value: int) -> bytes:
    directory = struct.unpack("<I", data[4:8])[0]
    for index in range(struct.unpack("<H", data[directory : directory + 2])[0]):
        at = directory + 2 + 12 * index
        if struct.unpack("<H", data[at : at + 2])[0] == tag:
            return data[:at] + struct.pack("<HHII", tag, 4, 1, value) + data[at + 12 :]
    raise AssertionError(f"no TIFF tag {tag}")


def damaged() -> Iterator[tuple[str, bytes]]:
    """(name, file): 200 files that are cut, overwritten or no images at all."""
    rng = random.Random(0)
    for format in FORMATS:
        whole = saved(noise(), format)
        for index in range(20):
            yield f"{format} cut at {index} of 20", whole[: len(whole) * index // 20]
        for index in range(10):
            broken = bytearray(whole)
            for _ in range(8):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            yield f"{format} with 8 bytes overwritten, {index}", bytes(broken)
    yield (
        "SVG",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"><image href="file:///etc/passwd"/></svg>',
    )
    yield "SVG with a header", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>'
    yield "sound", b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00" + bytes(40)
    yield "MP3", b"ID3\x04\x00" + bytes(500)
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    yield "PDF", b"%PDF-1.7\n" + bytes(100)
    yield "pickle", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94."
    yield "numpy file", b"\x93NUMPY\x01\x00" + bytes(200)
    yield "zeros", bytes(10_000)
    yield "HTML", b"<html><body><script>alert(1)</script></body></html>"
    yield "text", "画像ではない".encode()
    for index in range(9):
        yield f"random bytes {index}", rng.randbytes(2_000)
