"""How one picture becomes 8-bit RGB: from encoded bytes, a PIL picture or an array of numbers.

Promised: the size is checked before pixels are decoded, decoding is complete (half a file is an error, unless the
program told Pillow otherwise with `LOAD_TRUNCATED_IMAGES`), and equal input gives equal pixels. Not known here: where
the bytes came from (`media.py`).
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from flexjudge_reward.errors import MediaError

if TYPE_CHECKING:
    from PIL.Image import Image

# No format that runs another program (EPS), holds drawings instead of pixels (WMF) or that nobody judges.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_ORIENTATION = 0x0112
_SLIMMEST = 200  # vision models refuse pictures whose sides differ by more, and would take their whole batch along


def decode(data: bytes, most_pixels: int) -> Image:
    """The first picture in an encoded file, upright, as RGB.

    Raises:
        MediaError: not a known format, damaged, cut short, or more than `most_pixels`.
    """
    import PIL.Image

    try:
        picture = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        raise MediaError(f"the picture has more than the {most_pixels:,} pixels allowed") from None
    except Exception as error:  # decoders raise nearly every built-in exception on damaged input
        if isinstance(error, PIL.UnidentifiedImageError):
            raise MediaError(f"not a picture in one of the formats {', '.join(FORMATS)}") from None
        raise MediaError(f"the picture is damaged: {_said(error)}") from None
    return upright_rgb(picture, most_pixels)


def upright_rgb(picture: Image, most_pixels: int) -> Image:
    """A new RGB picture, decoded in full, turned as its EXIF tag says, transparent parts on white.

    Raises:
        MediaError: damaged, cut short, empty, too slim, too large, or of a mode that has no one meaning in 8 bits.
    """
    check_size(*picture.size, most_pixels)
    try:
        picture.load()
        check_size(*picture.size, most_pixels)  # a GIF frame may reach beyond the size in the header
        rgb = _rgb(picture)
        turn = _turn(picture)
        return rgb if turn is None else rgb.transpose(turn)
    except MediaError:
        raise
    except Exception as error:  # as above
        raise MediaError(f"the picture is damaged or cut short: {_said(error)}") from None


def from_array(array: Any, most_pixels: int) -> Image:
    """A picture from numbers: H x W, H x W x 1, 3 or 4, or the same with the channels first.

    Whole numbers must be bytes; fractions must lie in 0 to 1.

    Raises:
        MediaError: another shape or type.
    """
    import numpy as np
    import PIL.Image

    values = np.asarray(array)
    if values.ndim == 3 and values.shape[-1] not in (1, 3, 4) and values.shape[0] in (1, 3, 4):
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in (3, 4)):
        raise MediaError(f"an array of shape {values.shape} is no picture; expected H x W or H x W x 1, 3 or 4")
    check_size(values.shape[1], values.shape[0], most_pixels)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    elif np.issubdtype(values.dtype, np.floating):
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise MediaError("an array of fractions must lie in 0 to 1; turn other ranges into bytes (uint8) first")
        values = np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    elif values.dtype != np.uint8:
        raise MediaError(f"an array of type {values.dtype} is no picture; expected uint8, or fractions in 0 to 1")
    return upright_rgb(PIL.Image.fromarray(np.ascontiguousarray(values)), most_pixels)


def check_size(width: int, height: int, most_pixels: int) -> None:
    """Raises MediaError unless a picture of this size can be judged."""
    if width < 1 or height < 1:
        raise MediaError(f"the picture has no pixels: {width} x {height}")
    if width * height > most_pixels:
        raise MediaError(f"{width} x {height} is more than the {most_pixels:,} pixels allowed; make it smaller")
    if max(width, height) > _SLIMMEST * min(width, height):
        raise MediaError(f"{width} x {height} is too slim: sides may differ {_SLIMMEST} times at most")


def encode(picture: Image) -> bytes:
    """The picture as PNG: lossless, and fast rather than small."""
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _rgb(picture: Image) -> Image:
    import PIL.Image

    mode = picture.mode
    if mode.startswith("I"):  # 16 bits per pixel; some Pillow versions open them as 32. PIL itself would clip at 255.
        import numpy as np

        numbers = np.asarray(picture).astype(np.int64)
        if numbers.min() < 0 or numbers.max() > 0xFFFF:
            raise MediaError("the picture has more than 16 bits per pixel; turn it into 8 bits first")
        return PIL.Image.fromarray((numbers >> 8).astype(np.uint8)).convert("RGB")
    if mode == "F":
        raise MediaError("the picture holds fractions without a known range; turn it into 8 bits first")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        clear = picture.convert("LA" if mode == "La" else "RGBA").convert("RGBA")
        white = PIL.Image.new("RGBA", clear.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, clear).convert("RGB")
    return picture.copy() if mode == "RGB" else picture.convert("RGB")


def _turn(picture: Image) -> Any:
    """The transposition that makes a camera's picture upright, or None."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        orientation = picture.getexif().get(_ORIENTATION)
    except Exception:  # pixels that decode are not lost for a damaged note beside them
        return None
    return turns.get(orientation) if isinstance(orientation, int) else None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
