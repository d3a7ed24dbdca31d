"""Images: what each source and mode becomes, and what is refused before it is decoded."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.ImageOps
import pytest

from flexjudge_reward import Example, Judge, Media, MediaError, Pointwise, ScriptedEngine
from flexjudge_reward.media.base import Limits
from support import images
from support.images import noise, pixels, refused, saved

PIXELS = np.asarray(noise())
PNG = saved(noise())
CHANNELS_FIRST = np.moveaxis(PIXELS, -1, 0)


class Tensor:
    """What torch's tensors are to numpy."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        if self.values is None:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")
        return self.values


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(noise(), id="PIL"),
        pytest.param(PIL.Image.open(io.BytesIO(PNG)), id="PIL_not_read_yet"),
        pytest.param(PIXELS, id="array"),
        pytest.param(CHANNELS_FIRST, id="array_with_channels_first"),
        pytest.param(PIXELS / 255.0, id="array_of_fractions"),
        pytest.param((PIXELS / 255.0).astype(np.float32), id="array_of_short_fractions"),
        pytest.param(PIXELS[::-1][::-1], id="array_that_is_a_view"),
        pytest.param(np.dstack([PIXELS, np.full((40, 60), 255, np.uint8)]), id="array_with_alpha"),
        pytest.param(Tensor(CHANNELS_FIRST), id="tensor"),
    ],
)
def test_every_source_gives_the_same_image(source: Any) -> None:
    media = Media.image(source)
    assert media.kind == "image" and np.array_equal(pixels(media), PIXELS)
    assert media == Media.image(PNG) and hash(media) == hash(Media.image(PNG))


def test_the_source_may_change_after_loading() -> None:
    image = noise()
    media = Media.image(image)
    before = media.digest
    image.paste((0, 0, 0), (0, 0, 60, 40))
    assert np.array_equal(pixels(media), PIXELS) and media.digest == before


# ---------------------------------------------------------------- modes

WHITE, RED = (255, 255, 255), (255, 0, 0)


def sixteen_bits(value: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.full((4, 4), value, np.uint16))


@pytest.mark.parametrize(
    ("source", "colour"),
    [
        pytest.param(PIL.Image.new("RGB", (4, 4), RED), RED, id="RGB"),
        pytest.param(PIL.Image.new("L", (4, 4), 90), (90, 90, 90), id="grey"),
        pytest.param(PIL.Image.new("1", (4, 4), 1), WHITE, id="black_and_white"),
        pytest.param(PIL.Image.new("RGBA", (4, 4), (255, 0, 0, 0)), WHITE, id="clear_is_white"),
        pytest.param(PIL.Image.new("RGBA", (4, 4), (255, 0, 0, 255)), RED, id="opaque"),
        pytest.param(PIL.Image.new("RGBA", (4, 4), (0, 0, 0, 51)), (204, 204, 204), id="half_clear"),
        pytest.param(PIL.Image.new("LA", (4, 4), (0, 0)), WHITE, id="grey_clear"),
        pytest.param(PIL.Image.new("La", (4, 4), (0, 0)), WHITE, id="grey_clear_premultiplied"),
        pytest.param(PIL.Image.new("RGBa", (4, 4), (0, 0, 0, 0)), WHITE, id="clear_premultiplied"),
        pytest.param(PIL.Image.new("PA", (4, 4), (0, 255)), (0, 0, 0), id="palette_with_alpha"),
        pytest.param(images.palette(), RED, id="palette"),
        pytest.param(images.palette(clear=True), WHITE, id="palette_with_transparency"),
        pytest.param(PIL.Image.new("CMYK", (4, 4), (0, 255, 255, 0)), RED, id="CMYK"),
        pytest.param(PIL.Image.new("YCbCr", (4, 4), (255, 128, 128)), WHITE, id="YCbCr"),
        pytest.param(PIL.Image.new("HSV", (4, 4), (0, 255, 255)), RED, id="HSV"),
        pytest.param(sixteen_bits(0x8040), (0x80,) * 3, id="16_bit"),
        pytest.param(PIL.Image.open(io.BytesIO(saved(sixteen_bits(0x8040)))), (0x80,) * 3, id="16_bit_PNG"),
        pytest.param(PIL.Image.new("I", (4, 4), 0x8040), (0x80,) * 3, id="16_bits_in_32"),
        pytest.param(np.full((4, 4), 7, np.uint8), (7, 7, 7), id="grey_array"),
        pytest.param(np.full((4, 4, 1), 7, np.uint8), (7, 7, 7), id="array_with_one_channel"),
        pytest.param(np.ones((4, 4), np.bool_), WHITE, id="array_of_truths"),
    ],
)
def test_every_mode_becomes_one_rgb(source: Any, colour: tuple[int, int, int]) -> None:
    assert pixels(Media.image(source)).reshape(-1, 3).tolist() == [list(colour)] * 16


def test_a_camera_image_is_turned_upright() -> None:
    shapes = set()
    for orientation in range(1, 9):
        tag = PIL.Image.Exif()
        tag[0x0112] = orientation
        data = saved(noise(), "JPEG", exif=tag, quality=100)
        upright = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
        assert np.array_equal(pixels(Media.image(data)), np.asarray(upright)), orientation
        shapes.add(upright.size)
    assert shapes == {(60, 40), (40, 60)}


def test_a_damaged_note_does_not_lose_the_image() -> None:
    data = saved(noise(), "PNG", exif=b"Exif\x00\x00MM\x00*broken")
    assert np.array_equal(pixels(Media.image(data)), PIXELS)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animated_image_the_first_frame_counts(format: str) -> None:
    first, second = (PIL.Image.new("RGB", (8, 8), colour) for colour in ((10, 20, 30), (200, 0, 0)))
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(first, format, save_all=True, append_images=[second], duration=100, **options)
    assert pixels(Media.image(data))[0, 0].tolist() == [10, 20, 30]


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(PNG[: len(PNG) // 2], "damaged or cut short", id="half_a_PNG"),
        pytest.param(saved(noise(), "JPEG")[:1500], "damaged or cut short", id="half_a_JPEG"),
        pytest.param(b"<svg/>", "not an image in one of the formats PNG, JPEG", id="SVG"),
        pytest.param(images.uri(b"<svg/>", "image/svg+xml"), "not an image", id="SVG_as_data_URI"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image", id="PostScript"),
        pytest.param(PIL.Image.new("RGB", (0, 5)), "no pixels: 0 x 5", id="no_width"),
        pytest.param(PIL.Image.new("L", (1, 201)), "too slim", id="too_slim"),
        pytest.param(PIL.Image.new("F", (4, 4)), "fractions without a known range", id="floating_point"),
        pytest.param(PIL.Image.new("I", (4, 4), 70_000), "more than 16 bits", id="32_bit"),
        pytest.param(PIL.Image.new("I", (4, 4), -1), "more than 16 bits", id="negative"),
        pytest.param(np.zeros((5, 5, 5), np.uint8), r"shape \(5, 5, 5\) is no image", id="array_of_five_channels"),
        pytest.param(np.zeros(4, np.uint8), "is no image", id="array_of_one_axis"),
        pytest.param(np.zeros((4, 4), np.int32), "of type int32 is no image", id="array_of_int32"),
        pytest.param(np.array([[PNG]], dtype=object), "of type object is no image", id="array_of_objects"),
        pytest.param(np.full((4, 4), 1.5), "must lie in 0 to 1", id="fractions_above_one"),
        pytest.param(np.full((4, 4), np.nan), "must lie in 0 to 1", id="fractions_not_a_number"),
        pytest.param(np.zeros((0, 4, 3), np.uint8), "no pixels", id="array_without_rows"),
        pytest.param(Tensor(None), "Tensor gives no array: Can't call numpy", id="tensor_that_gives_no_array"),
    ],
)
def test_what_is_no_image_is_refused_when_loaded(source: Any, message: str) -> None:
    refused(Media.image(source), message)


def test_pixels_are_counted_for_every_source() -> None:
    for source in (noise(), PNG, PIXELS):
        refused(Media.image(source, limits=Limits(pixels=2_399)), "60 x 40 is more than the 2,399 pixels allowed")
        Media.image(source, limits=Limits(pixels=2_400)).load()


def test_bombs_are_refused_from_their_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    load, names, decoded = PIL.ImageFile.ImageFile.load, [], []

    def noted(image: PIL.ImageFile.ImageFile) -> Any:
        decoded.append(names[-1])
        return load(image)

    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", noted)
    for name, data in images.bombs():
        names.append(name)
        with pytest.raises(MediaError) as caught:
            Media.image(data).load()
        assert re.search("pixels allowed|damaged|not an image|blocks", str(caught.value)), name
    assert len(names) == 20 and decoded == []


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda: images.png_with(b"tEXt", 1_000_000), id="PNG_of_empty_texts"),
        pytest.param(lambda: images.png_with(b"prVt", 1_000_000), id="PNG_of_unknown_chunks"),
        pytest.param(lambda: images.png_with(b"IDAT", 1_000_000), id="PNG_of_empty_data"),
        pytest.param(lambda: images.jpeg_with(b"\xff\xfe\x00\x02" * 5_000_000), id="JPEG_of_empty_comments"),
        pytest.param(lambda: images.jpeg_with(b"\xff\xe1\x00\x02" * 5_000_000), id="JPEG_of_empty_notes"),
        pytest.param(lambda: images.jpeg_with(b"\xff" * 20_000_000), id="JPEG_of_fill_bytes"),
        pytest.param(lambda: images.jpeg_with(b"\xff\xfe\x00\x02" + b"a" * 20_000_000), id="JPEG_of_rubbish"),
        pytest.param(lambda: images.jpeg_with(b"\xff\x00" * 9_000_000), id="JPEG_of_stuffed_bytes"),
        pytest.param(lambda: b"\xff\xd8\xff" * 9_000_000, id="JPEG_of_beginnings"),
    ],
)
def test_many_blocks_are_refused_soon(made: Callable[[], bytes]) -> None:
    data = made()
    start = time.process_time()
    refused(Media.image(data), "has more than 100,000 blocks")
    assert time.process_time() - start < 2


def test_many_scans_are_refused() -> None:
    data = saved(noise(), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    refused(Media.image(data[:at] + data[at:-2] * 100 + data[-2:]), "in more than 100 scans")


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda: images.png_with(b"tEXt", 1000), id="PNG"),
        pytest.param(lambda: images.jpeg_with(b"\xff\xfe\x00\x02" * 1000), id="JPEG"),
        pytest.param(lambda: images.jpeg_with(b"\xff" * 1000), id="JPEG_with_fill_bytes"),
        pytest.param(lambda: saved(noise(), "JPEG", progressive=True), id="progressive"),
        pytest.param(lambda: saved(noise(), "JPEG") + b"\xff\xda" * 9_000_000, id="something_behind_it"),
        pytest.param(lambda: images.jpeg_with(b"\xff\xe1\xff\xfe" + b"\xff\xda" * 32766), id="a_note_like_scans"),
    ],
)
def test_some_blocks_are_no_harm(made: Callable[[], bytes]) -> None:
    assert Media.image(made()).images()[0].size == (60, 40)


def test_every_damaged_file_is_decoded_or_refused() -> None:
    outcomes = []
    for name, data in images.damaged():
        try:
            outcomes.append((name, Media.image(data).images()[0].size))
        except MediaError:
            outcomes.append((name, None))
    assert len(outcomes) == 200
    assert sum(size is None for _, size in outcomes) > 130


def test_one_bad_image_leaves_the_rest_of_its_batch_alone() -> None:
    good, bad = Media.image(PNG), Media.image(PNG[:500])
    engine = ScriptedEngine(lambda request: "<think></think><answer>5</answer>")
    verdicts = Judge(Pointwise(), engine)([Example([m, "?"], ["a"]) for m in (good, bad, Media.image(PNG))])
    assert [verdict.scores for verdict in verdicts] == [(5.0,), None, (5.0,)]
    assert verdicts[1].failure is not None and verdicts[1].failure.kind == "media"
    assert np.array_equal(pixels(good), PIXELS)
