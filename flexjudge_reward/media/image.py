"""Images: from encoded bytes, a PIL image or an array of numbers to 8-bit RGB.

Promised: the size is checked before pixels are decoded, decoding is complete (half a file is an error, unless the
program set Pillow's `LOAD_TRUNCATED_IMAGES`), and equal input gives equal pixels.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from flexjudge_reward.errors import MediaError
from flexjudge_reward.media.modality import Limits, Loaded, Modality, Roots
from flexjudge_reward.media.source import encoded_bytes, numbers

if TYPE_CHECKING:
    from PIL.Image import Image

# No format that runs another program (EPS), holds drawings instead of pixels (WMF) or is never judged.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_ORIENTATION = 0x0112
# What undoes the orientations 2 to 8, as Pillow names it.
_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split()
_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff[^\x00\xff]")  # of a segment of a JPEG file
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # a marker that is no part of the pixels
_PIXELS_OF_PNG = (b"IHDR", b"IDAT", b"IEND")  # the chunks that hold them
# Chunks that may turn an image, make it clear or animate it; the texts by their keywords.
_CHANGES_PNG = (b"tRNS", b"acTL", b"eXIf", b"tEXtRaw profile", b"zTXtRaw profile", b"iTXtXML:com.adobe.xmp", b"PLTE")
_MOST_BLOCKS = 100_000  # chunks of a PNG file; segments before the pixels of a JPEG file, and bytes between them
_MOST_SCANS = 100  # of a JPEG file; each goes over all pixels
ImageFormat = Literal["auto", "png", "jpeg"]
FORMATS_SENT: tuple[str, ...] = get_args(ImageFormat)
THUMBNAIL, _THUMBNAIL_FRAMES = 160, 4  # pixels of the longer side; of a video
_SLIMMEST = 200  # vision models refuse images whose sides differ by more, and would fail their whole batch


class ImageModality(Modality):
    """One image; of an animated one, the first frame."""

    name, channel, is_file = "image", True, True

    def load(self, source: object, options: Mapping[str, Any], roots: Roots, limits: Limits) -> Loaded:
        """The image as RGB. Raises MediaError."""
        data = file_of(source, roots, limits)
        if not data:
            return Loaded((read(source, roots, limits),))
        return Loaded((decode(data, limits.pixels),), lossy=is_jpeg(data), file=data)


def file_of(source: object, roots: Roots, limits: Limits) -> bytes:
    """The encoded file behind a source; empty for pixels. Raises MediaError."""
    pixels = hasattr(source, "__array__") or hasattr(source, "getexif")
    return b"" if pixels else encoded_bytes(source, roots, limits)


def name_of(data: bytes, limits: Limits) -> bytes:
    """A hash of a file and of all that decides which pixels are decoded from it, or whether."""
    import PIL.ImageFile

    how = f"{PIL.__version__} {PIL.ImageFile.LOAD_TRUNCATED_IMAGES} {limits.pixels}\n"
    return hashlib.sha256(how.encode() + data).digest()


def is_jpeg(data: bytes) -> bool:
    """Whether a file is JPEG, which loses something."""
    return data.startswith(_JPEG)


def read(source: object, roots: Roots, limits: Limits) -> Image:
    """One image of any kind of source as RGB. Raises MediaError."""
    import PIL.Image

    if isinstance(source, PIL.Image.Image):
        return upright_rgb(source, limits.pixels)
    if hasattr(source, "__array__"):
        return from_array(source, limits.pixels)
    return decode(encoded_bytes(source, roots, limits), limits.pixels)


def decode(data: bytes, most_pixels: int) -> Image:
    """The first image in an encoded file, upright, as RGB. Raises MediaError."""
    import PIL.Image

    _check_blocks(data)
    try:
        opened = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        raise MediaError(f"the image has more than the {most_pixels:,} pixels allowed") from None
    except PIL.UnidentifiedImageError:
        raise MediaError(f"not an image in one of the formats {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders raise nearly every built-in exception on damaged input
        raise MediaError(f"the image is damaged: {_said(error)}") from None
    return upright_rgb(opened, most_pixels, own=True)


def as_sent(data: bytes, most_pixels: int | None, jpeg: bool) -> bytes | None:
    """A PNG or JPEG file as a server may get it: what was decoded here, without notes such as where it was taken.

    None where the server would see other pixels than we, or it is of the other format or too large: sent is upright
    8-bit RGB, which every decoder reads alike.
    """
    import PIL.Image

    try:
        opened = PIL.Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))  # reads the header only
    except Exception:  # as in `decode`
        return None
    small = most_pixels is None or opened.width * opened.height <= most_pixels
    if not small or opened.mode != "RGB" or opened.format != ("JPEG" if jpeg else "PNG"):
        return None
    if not jpeg:
        return _png_of_pixels(data)
    return _jpeg_of_pixels(data) if _turn(opened) is None else None


def _png_of_pixels(data: bytes) -> bytes | None:
    """An 8-bit RGB file of the chunks with pixels; None where another one changes them."""
    if data[24:26] != b"\x08\x02":  # bits and colour type
        return None
    kept, at = [_PNG], len(_PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if data.startswith(_CHANGES_PNG, at + 4):
            return None
        if data.startswith(_PIXELS_OF_PNG, at + 4):
            kept.append(data[at:end])
        if data.startswith(b"IEND", at + 4):
            break
        at = end
    return b"".join(kept) if kept[-1][4:8] == b"IEND" else None


def _jpeg_of_pixels(data: bytes) -> bytes | None:
    """The file without notes and what follows its end; None where its segments cannot be followed."""
    kept, at = [data[:2]], 2
    for _ in range(_MOST_BLOCKS):
        code = data[at + 1] if data[at : at + 1] == b"\xff" and at + 1 < len(data) else 0
        if code == 0xD9:
            return b"".join([*kept, data[at : at + 2]])
        if not 0xC0 <= code <= 0xFE or 0xD0 <= code <= 0xD8:
            return None
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if code == 0xDA:
            following = _AFTER_SCAN.search(data, end)
            end = following.start() if following else len(data)
        # Of the application's segments and comments, JFIF and Adobe say how colours are coded.
        if not (0xE1 <= code <= 0xED or code in (0xEF, 0xFE)):
            kept.append(data[at:end])
        at = end
    return None


def _check_blocks(data: bytes) -> None:
    """Pillow reads the blocks of a file one by one, in Python: a small file of many empty ones would take minutes."""
    at = steps = 0
    if data.startswith(_PNG):
        at = len(_PNG)
        while at < len(data) and steps <= _MOST_BLOCKS:
            at, steps = at + 12 + int.from_bytes(data[at : at + 4]), steps + 1
    elif data.startswith(_JPEG):
        at, steps = _first_scan(data)
        end = data.find(b"\xff\xd9", at)
        if data.count(b"\xff\xda", at, end if end >= 0 else None) > _MOST_SCANS:
            raise MediaError(f"the image is coded in more than {_MOST_SCANS} scans; save it anew")
    if steps > _MOST_BLOCKS:
        raise MediaError(f"the image has more than {_MOST_BLOCKS:,} blocks; save it anew")


def _first_scan(data: bytes) -> tuple[int, int]:
    """Where the pixels of a JPEG file begin, and the steps that Pillow takes until there."""
    at, steps = 2, 0
    while steps <= _MOST_BLOCKS:
        found = _MARKER.search(data, at)
        if found is None:
            return len(data), steps + len(data) - at
        steps += found.start() - at + 1
        code, at = data[found.start() + 1], found.end()
        if code == 0xDA:
            break
        if not 0xD0 <= code <= 0xD9:  # these have no length
            at += int.from_bytes(data[at : at + 2])
    return at, steps


def decode_again(data: bytes) -> Image:
    """The image in a file that was decoded or encoded here before. Raises MediaError: no memory is left for it."""
    import PIL.Image

    try:
        return _upright(PIL.Image.open(io.BytesIO(data), formats=FORMATS), own=True)
    except Exception as error:
        raise MediaError(f"the image cannot be decoded again: {_said(error)}") from None


def upright_rgb(image: Image, most_pixels: int, own: bool = False) -> Image:
    """An RGB image, decoded in full, turned as its EXIF tag says, transparent parts on white. Raises MediaError.

    It is a new one, unless the image is `own`: opened here, so that no one else changes it.
    """
    check_size(*image.size, most_pixels)
    try:
        return _upright(image, own)
    except MediaError:
        raise
    except Exception as error:  # as above
        raise MediaError(f"the image is damaged or cut short: {_said(error)}") from None


def from_array(array: object, most_pixels: int) -> Image:
    """An RGB image from numbers: H x W, H x W x 1, 3 or 4, or the same with the channels first.

    Whole numbers must be bytes; fractions must lie in 0 to 1. Raises MediaError.
    """
    values = numbers(array)
    import numpy as np
    import PIL.Image

    if values.ndim == 3 and values.shape[-1] not in (1, 3, 4) and values.shape[0] in (1, 3, 4):
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in (3, 4)):
        raise MediaError(f"an array of shape {values.shape} is no image; expected H x W or H x W x 1, 3 or 4")
    check_size(values.shape[1], values.shape[0], most_pixels)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    elif np.issubdtype(values.dtype, np.floating):
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise MediaError("an array of fractions must lie in 0 to 1; turn other ranges into bytes (uint8) first")
        values = np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    elif values.dtype != np.uint8:
        raise MediaError(f"an array of type {values.dtype} is no image; expected uint8, or fractions in 0 to 1")
    return _rgb(PIL.Image.fromarray(np.ascontiguousarray(values)))


def check_size(width: int, height: int, most_pixels: int) -> None:
    """Raises MediaError unless an image of this size can be judged."""
    if width < 1 or height < 1:
        raise MediaError(f"the image has no pixels: {width} x {height}")
    if width * height > most_pixels:
        raise MediaError(f"{width} x {height} is more than the {most_pixels:,} pixels allowed; make it smaller")
    if max(width, height) > _SLIMMEST * min(width, height):
        raise MediaError(f"{width} x {height} is too slim: sides may differ {_SLIMMEST} times at most")


def encode(image: Image, jpeg: bool = False) -> bytes:
    """The image as PNG: lossless, and fast rather than small; or as JPEG of a quality that adds little loss."""
    out = io.BytesIO()
    if jpeg:
        image.save(out, "JPEG", quality=92)
    else:
        image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def shrunk(image: Image, most_pixels: int | None) -> Image:
    """The image with at most that many pixels, its sides in the same proportion."""
    if most_pixels is None or image.width * image.height <= most_pixels:
        return image
    scale = (most_pixels / (image.width * image.height)) ** 0.5
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))


def _upright(image: Image, own: bool = False) -> Image:
    image.load()
    plain = own and image.mode == "RGB" and "transparency" not in image.info
    rgb, turn = image if plain else _rgb(image), _turn(image)
    rgb.info = {}  # Pillow writes comments and colour profiles in there into every file that it makes
    return rgb if turn is None else rgb.transpose(turn)


def thumbnail(frames: Sequence[Image]) -> bytes:
    """A small JPEG for a page: the image, or a few frames of a video side by side."""
    import PIL.Image

    count = min(len(frames), _THUMBNAIL_FRAMES)
    small = [_small(frames[index * (len(frames) - 1) // max(1, count - 1)]) for index in range(count)]
    strip = PIL.Image.new("RGB", (sum(one.width for one in small), max(one.height for one in small)))
    for index, one in enumerate(small):
        strip.paste(one, (sum(before.width for before in small[:index]), 0))
    out = io.BytesIO()
    strip.save(out, "JPEG", quality=80)
    return out.getvalue()


def _small(image: Image) -> Image:
    scale = THUMBNAIL / max(image.size)
    if scale >= 1:
        return image
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), reducing_gap=2.0)


def _rgb(image: Image) -> Image:
    import PIL.Image

    mode = image.mode
    if mode.startswith("I"):  # 16 bits per pixel; some Pillow versions open them as 32. PIL itself would clip at 255.
        deep = image.convert("I")
        extremes: Any = deep.getextrema()
        if extremes[0] < 0 or extremes[1] > 0xFFFF:
            raise MediaError("the image has more than 16 bits per pixel; turn it into 8 bits first")
        return deep.point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
    if mode == "F":
        raise MediaError("the image holds fractions without a known range; turn it into 8 bits first")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        clear = image.convert("LA" if mode == "La" else "RGBA").convert("RGBA")
        white = PIL.Image.new("RGBA", clear.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, clear).convert("RGB")
    return image.copy() if mode == "RGB" else image.convert("RGB")


def _turn(image: Image) -> Any:
    """The transposition that makes a camera's image upright, or None."""
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # pixels that decode are not lost for a damaged note beside them
        return None
    if not isinstance(orientation, int) or not 2 <= orientation <= 8:
        return None
    return Transpose[_TURNS[orientation - 2]]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
