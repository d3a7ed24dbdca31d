"""Media from every source: what it becomes, what it is equal to, and what is refused without harm."""

from __future__ import annotations

import base64
import copy
import io
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from support import pictures
from support.pictures import noise, refused, saved, uri

from flexjudge_reward import ConfigError, Example, Judge, Media, MediaError, Score
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.media.base import Limits, as_media

PIXELS = np.asarray(noise())
PNG = saved(noise())


def pixels(media: Media) -> Any:
    (frame,) = media.images()
    assert frame.mode == "RGB"
    return np.asarray(frame)


# ---------------------------------------------------------------- sources

SOURCES = [
    pytest.param(noise(), id="PIL"),
    pytest.param(PIL.Image.open(io.BytesIO(PNG)), id="PIL_not_read_yet"),
    pytest.param(PIXELS, id="array"),
    pytest.param(np.moveaxis(PIXELS, -1, 0), id="array_with_channels_first"),
    pytest.param(PIXELS / 255.0, id="array_of_fractions"),
    pytest.param((PIXELS / 255.0).astype(np.float32), id="array_of_short_fractions"),
    pytest.param(PIXELS[::-1][::-1], id="array_that_is_a_view"),
    pytest.param(np.dstack([PIXELS, np.full((40, 60), 255, np.uint8)]), id="array_with_alpha"),
    pytest.param(PNG, id="bytes"),
    pytest.param(bytearray(PNG), id="bytearray"),
    pytest.param(memoryview(PNG), id="memoryview"),
    pytest.param(memoryview(b"".join(bytes([b, 0]) for b in PNG))[::2], id="memoryview_with_steps"),
    pytest.param(uri(PNG), id="data_URI"),
    pytest.param(uri(PNG, "IMAGE/PNG;name=x.png").replace("data:", "DATA:"), id="data_URI_in_capitals"),
    pytest.param(uri(PNG).replace("A", "A\n"), id="data_URI_on_lines"),
    pytest.param({"bytes": PNG, "path": None}, id="dict_with_bytes"),
    pytest.param({"bytes": PNG, "path": "/etc/passwd"}, id="dict_with_bytes_and_path"),
    pytest.param({"bytes": None, "path": "a.png"}, id="dict_with_path"),
    pytest.param("a.png", id="path"),
    pytest.param(Path("a.png"), id="Path"),
    pytest.param("sub/../a.png", id="path_with_a_detour"),
    pytest.param("link.png", id="link_within_the_root"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "a.png").write_bytes(PNG)
    (folder / "sub").mkdir()
    (folder / "link.png").symlink_to(folder / "a.png")
    (folder.parent / "outside.png").write_bytes(PNG)
    (folder / "escape.png").symlink_to(folder.parent / "outside.png")
    (folder / "escape").symlink_to(folder.parent)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "nowhere").symlink_to(folder / "missing.png")
    os.mkfifo(folder / "fifo")
    (folder / "large").write_bytes(bytes(3_000_000))
    (folder / "a b%20c.png").write_bytes(PNG)
    return folder


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("build", [Media.image, as_media], ids=["image", "as_media"])
def test_every_source_gives_the_same_picture(source: Any, build: Any, root: Path) -> None:
    media = build(source, roots=[root])
    assert media.kind == "image"
    assert np.array_equal(pixels(media), PIXELS)
    assert media == Media.image(PNG)
    assert hash(media) == hash(Media.image(PNG))


def test_a_tensor_is_an_array() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(np.moveaxis(PIXELS, -1, 0).copy())
    assert Media.image(tensor) == Media.image(PNG)
    refused(Media.image(tensor.float().requires_grad_()), "Tensor gives no array")


def test_media_passes_through_as_it_is() -> None:
    media = Media.video([noise()])
    assert as_media(media) is media


# ---------------------------------------------------------------- modes

WHITE, RED = (255, 255, 255), (255, 0, 0)


def palette(clear: bool) -> PIL.Image.Image:
    picture = PIL.Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 255, 255, 0, 0] + [0] * 750)
    if clear:
        picture.info["transparency"] = bytes([255, 0])
    return picture


def sixteen_bits(value: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.full((4, 4), value, np.uint16))


MODES = [
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
    pytest.param(palette(clear=False), RED, id="palette"),
    pytest.param(palette(clear=True), WHITE, id="palette_with_transparency"),
    pytest.param(PIL.Image.new("CMYK", (4, 4), (0, 255, 255, 0)), RED, id="CMYK"),
    pytest.param(PIL.Image.new("YCbCr", (4, 4), (255, 128, 128)), WHITE, id="YCbCr"),
    pytest.param(PIL.Image.new("HSV", (4, 4), (0, 255, 255)), RED, id="HSV"),
    pytest.param(sixteen_bits(0x8040), (0x80,) * 3, id="16_bit"),
    pytest.param(PIL.Image.open(io.BytesIO(saved(sixteen_bits(0x8040)))), (0x80,) * 3, id="16_bit_PNG"),
    pytest.param(PIL.Image.new("I", (4, 4), 0x8040), (0x80,) * 3, id="16_bits_in_32"),
    pytest.param(np.full((4, 4), 7, np.uint8), (7, 7, 7), id="grey_array"),
    pytest.param(np.full((4, 4, 1), 7, np.uint8), (7, 7, 7), id="array_with_one_channel"),
    pytest.param(np.ones((4, 4), np.bool_), WHITE, id="array_of_truths"),
]


@pytest.mark.parametrize(("source", "colour"), MODES)
def test_every_mode_becomes_one_rgb(source: Any, colour: tuple[int, int, int]) -> None:
    assert pixels(Media.image(source)).reshape(-1, 3).tolist() == [list(colour)] * 16


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_picture_stands_upright(orientation: int) -> None:
    tag = PIL.Image.Exif()
    tag[0x0112] = orientation
    data = saved(noise(), "JPEG", exif=tag, quality=100)
    upright = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    assert np.array_equal(pixels(Media.image(data)), np.asarray(upright))


def test_a_damaged_note_does_not_lose_the_picture() -> None:
    data = saved(noise(), "PNG", exif=b"Exif\x00\x00MM\x00*broken")
    assert np.array_equal(pixels(Media.image(data)), PIXELS)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animated_picture_the_first_frame_counts(format: str) -> None:
    first, second = (PIL.Image.new("RGB", (8, 8), colour) for colour in ((10, 20, 30), (200, 0, 0)))
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(first, format, save_all=True, append_images=[second], duration=100, **options)
    assert pixels(Media.image(data))[0, 0].tolist() == [10, 20, 30]


REFUSED = [
    pytest.param(None, "expected a PIL picture, array, bytes.*found NoneType", id="nothing"),
    pytest.param(7, "found int", id="a_number"),
    pytest.param(b"", "the file is empty", id="empty"),
    pytest.param(PNG[: len(PNG) // 2], "damaged or cut short", id="half_a_PNG"),
    pytest.param(saved(noise(), "JPEG")[:1500], "damaged or cut short", id="half_a_JPEG"),
    pytest.param(b"<svg/>", "not a picture in one of the formats PNG, JPEG", id="SVG"),
    pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a picture", id="PostScript"),
    pytest.param({}, "a dict needs", id="empty_dict"),
    pytest.param({"bytes": [1, 2]}, "found list", id="dict_with_a_list_for_bytes"),
    pytest.param({"bytes": np.zeros(3)}, "expected a PIL picture", id="dict_with_an_array_for_bytes"),
    pytest.param({"bytes": "text"}, "reading files is off", id="dict_with_text_for_bytes"),
    pytest.param("a.png", "reading files is off: name the folder", id="path_without_a_root"),
    pytest.param(PIL.Image.new("RGB", (0, 5)), "no pixels: 0 x 5", id="no_width"),
    pytest.param(PIL.Image.new("L", (1, 201)), "too slim", id="too_slim"),
    pytest.param(PIL.Image.new("F", (4, 4)), "fractions without a known range", id="floating_point"),
    pytest.param(PIL.Image.new("I", (4, 4), 70_000), "more than 16 bits", id="32_bit"),
    pytest.param(PIL.Image.new("I", (4, 4), -1), "more than 16 bits", id="negative"),
    pytest.param(np.zeros((5, 5, 5), np.uint8), r"shape \(5, 5, 5\) is no picture", id="array_of_five_channels"),
    pytest.param(np.zeros(4, np.uint8), "is no picture", id="array_of_one_axis"),
    pytest.param(np.zeros((4, 4), np.int32), "of type int32 is no picture", id="array_of_int32"),
    pytest.param(np.array([[PNG]], dtype=object), "of type object is no picture", id="array_of_objects"),
    pytest.param(np.full((4, 4), 1.5), "must lie in 0 to 1", id="fractions_above_one"),
    pytest.param(np.full((4, 4), np.nan), "must lie in 0 to 1", id="fractions_not_a_number"),
    pytest.param(np.zeros((0, 4, 3), np.uint8), "no pixels", id="array_without_rows"),
    pytest.param("data:image/png;base64,@@@", "not base64", id="data_URI_with_rubbish"),
    pytest.param("data:image/png,abc", "only data URIs of the form", id="data_URI_without_base64"),
    pytest.param("data:image/png;base64,", "the file is empty", id="empty_data_URI"),
    pytest.param(uri(b"<svg/>", "image/svg+xml"), "not a picture", id="SVG_as_data_URI"),
]


@pytest.mark.parametrize(("source", "said"), REFUSED)
def test_what_is_no_picture_is_refused_when_loaded(source: Any, said: str) -> None:
    refused(Media.image(source), said)
    with pytest.raises(MediaError):  # whatever it is taken for, building it is no error
        as_media(source).load()


URLS = [
    "http://example.com/a.png",
    "https://user:secret@example.com/a.png",
    "HTTP://EXAMPLE.COM/a.png",
    "http://0x7f000001/",
    "http://[::ffff:169.254.169.254]/",
    "ftp://example.com/a.png",
    "file:///etc/passwd",
    "s3://bucket/a.png",
    "gopher://127.0.0.1:25/x",
]


@pytest.mark.parametrize("url", URLS)
def test_no_url_is_fetched(url: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket", None)
    for source in (url, {"path": url}, {"bytes": None, "path": url}):
        refused(as_media(source, roots=[root, "/"]), "URLs are not fetched")


# ---------------------------------------------------------------- files

PATHS = [
    pytest.param("missing.png", "no such file", id="missing"),
    pytest.param("", "not a regular file", id="empty_name"),
    pytest.param(".", "not a regular file", id="the_root"),
    pytest.param("sub", "not a regular file", id="a_folder"),
    pytest.param("fifo", "not a regular file", id="a_FIFO"),
    pytest.param("/dev/zero", "outside the allowed folders", id="a_device"),
    pytest.param("/etc/passwd", "outside the allowed folders", id="absolute_outside"),
    pytest.param("../outside.png", "outside the allowed folders", id="parent"),
    pytest.param("sub/../../outside.png", "outside the allowed folders", id="parent_by_a_detour"),
    pytest.param("escape.png", "outside the allowed folders", id="link_that_leads_out"),
    pytest.param("escape/outside.png", "outside the allowed folders", id="linked_folder_that_leads_out"),
    pytest.param("nowhere", "no such file", id="link_to_nothing"),
    pytest.param("loop", "cannot be read|no such file", id="link_to_itself"),
    pytest.param("a.png/b", "cannot be read|no such file", id="a_file_as_a_folder"),
    pytest.param("a.png\0.txt", "NUL", id="NUL"),
    pytest.param("%2e%2e/outside.png", "no such file", id="percent_encoding_is_not_decoded"),
    pytest.param("~/a.png", "no such file", id="tilde_is_not_expanded"),
    pytest.param("$HOME/a.png", "no such file", id="variables_are_not_expanded"),
    pytest.param("a\ud800.png", "no file name has", id="lone_surrogate"),
    pytest.param("x" * 5_000, "cannot be read|no such file", id="long_name"),
    pytest.param("large", "3,000,000 bytes; 2,000,000 are allowed", id="too_large"),
    pytest.param("//etc/passwd", "outside the allowed folders", id="two_slashes"),
    pytest.param("..\\outside.png", "no such file", id="backslash"),
]


@pytest.mark.parametrize(("path", "said"), PATHS)
def test_no_file_is_read_but_regular_ones_below_a_root(path: str, said: str, root: Path) -> None:
    refused(Media.image(path, roots=[root], limits=Limits(bytes=2_000_000)), said)


def test_devices_and_endless_files_below_a_root_are_refused() -> None:
    refused(Media.image("zero", roots=["/dev"]), "not a regular file")
    refused(
        Media.image("/proc/self/environ", roots=["/proc"], limits=Limits(bytes=3)),
        "more than the 3 bytes|cannot be read",
    )


def test_names_are_taken_literally_and_roots_in_order(root: Path) -> None:
    assert Media.image("a b%20c.png", roots=[root]) == Media.image(PNG)
    assert Media.image("a.png", roots=[root / "sub", root]) == Media.image(PNG)
    assert Media.image(root / "a.png", roots=[root / "sub", root]) == Media.image(PNG)
    assert Media.image("../a.png", roots=[root / "sub", root]) == Media.image(PNG)

    class Named:
        def __fspath__(self) -> bytes:
            return b"a.png"

    assert Media.image(Named(), roots=[root]) == Media.image(PNG)


def test_a_folder_swapped_for_a_link_after_the_check_is_not_followed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.path.realpath
    monkeypatch.setattr("os.path.realpath", lambda path: str(path) if "escape" in str(path) else real(path))
    refused(Media.image("escape/outside.png", roots=[root]), "cannot be read")
    refused(Media.image("escape.png", roots=[root]), "cannot be read")


def test_one_folder_as_text_is_a_clear_mistake(root: Path) -> None:
    with pytest.raises(ConfigError, match="roots must be a list of folders"):
        Media.image("a.png", roots=str(root))


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(("name", "data"), [pytest.param(*bomb, id=bomb[0]) for bomb in pictures.bombs()])
def test_bombs_are_refused_from_their_headers(name: str, data: bytes) -> None:
    refused(Media.image(data), "pixels allowed|damaged|not a picture")


def test_every_damaged_file_is_decoded_or_refused() -> None:
    outcomes = []
    for name, data in pictures.damaged():
        try:
            outcomes.append((name, as_media(data).images()[0].size))
        except MediaError:
            outcomes.append((name, None))
    assert len(outcomes) == 200
    assert sum(size is None for _, size in outcomes) > 130


def test_bytes_are_counted_before_anything_is_decoded() -> None:
    small = Limits(bytes=100)
    refused(Media.image(PNG, limits=small), "more than the 100 allowed")
    refused(Media.image(uri(PNG), limits=small), "more than the 100 allowed")
    refused(Media.image({"bytes": PNG}, limits=small), "more than the 100 allowed")


def test_pixels_are_counted_for_every_source() -> None:
    for source in (noise(), PNG, PIXELS):
        refused(Media.image(source, limits=Limits(pixels=2_399)), "60 x 40 is more than the 2,399 pixels allowed")
        Media.image(source, limits=Limits(pixels=2_400)).load()


def test_the_message_names_the_item_and_never_shows_its_content() -> None:
    refused(Media.image(b"secret"), r"^image \(6 bytes\): not a picture")
    refused(Media.image(uri(b"secret")), r"^image \(data URI\): not a picture")
    refused(Media.image("x" * 500, roots=["/"]), r"^image \('\.\.\.x{80}'\)")
    refused(Media.video([]), r"^video \(0 frames\): the list of frames is empty")
    assert repr(Media.image({"bytes": b"secret", "path": "x"})) == "<Media image (6 bytes)>"
    assert repr(Media.image({"path": "a.png"})) == "<Media image ('a.png')>"
    assert repr(Media.image(noise())) == "<Media image (Image)>"


def test_one_bad_picture_leaves_its_batch_mates_alone() -> None:
    good, bad = Media.image(PNG), Media.image(PNG[:500])
    engine = ScriptedEngine(lambda prompt: "<think></think><answer>5</answer>")
    verdicts = Judge(Score(), engine)([Example([m, "?"], ["a"]) for m in (good, bad, Media.image(PNG))])
    assert [verdict.scores for verdict in verdicts] == [(5.0,), None, (5.0,)]
    assert verdicts[1].failure is not None
    assert verdicts[1].failure.kind == "media"
    assert np.array_equal(pixels(good), PIXELS)


# ---------------------------------------------------------------- identity


def test_look_alikes_have_different_digests() -> None:
    grey = np.arange(4_500, dtype=np.uint32).astype(np.uint8)
    other = palette(clear=False)
    other.putpalette([0, 0, 255, 0, 255, 0] + [0] * 750)
    frames = [noise(seed=1), noise(seed=2)]
    media = [
        Media.image(grey.reshape(30, 150)),
        Media.image(grey.reshape(150, 30)),
        Media.image(palette(clear=False)),
        Media.image(palette(clear=True)),
        Media.image(other),
        Media.image(noise(seed=1)),
        Media.video([noise(seed=1)]),
        Media.video([noise(seed=1)], fps=2),
        Media.video(frames),
        Media.video(frames[::-1]),
        Media.video([*frames, frames[0]]),
        Media.audio(b"CCO"),
        Media.molecule("CCO"),
        Media.molecule("CCC"),
        Media.molecule("CCO", drawn=True),
    ]
    assert len({m.digest for m in media}) == len(set(media)) == len(media)


def test_the_digest_does_not_depend_on_the_encoding() -> None:
    ways = [saved(noise(), "PNG"), saved(noise(), "PNG", compress_level=1), saved(noise(), "WEBP", lossless=True)]
    ways += [saved(noise(), "BMP"), saved(noise(), "TIFF")]
    assert len({Media.image(data).digest for data in ways}) == 1
    # The same in every process and version: caches live longer than a process.
    tiny = Media.image(np.zeros((1, 1, 3), np.uint8))
    assert tiny.digest == "c79f997d1b5e0ba2dc670c679be54b6ab57b99c23f7b5b1f30784cf8be2642a5"


def test_media_compare_with_anything() -> None:
    assert Media.image(PNG) != "a picture"
    assert Media.image(PNG) != Media.molecule("C")


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_a_copy_is_the_same_value(copier: Any) -> None:
    media = Media.image(PNG)
    assert copier(media) is media


def test_it_pickles_as_content_not_as_a_path(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(saved(noise(), "JPEG"))
    media = Media.image("a.png", roots=[tmp_path])
    shipped = pickle.dumps(media)
    file.unlink()
    arrived = pickle.loads(shipped)
    assert str(tmp_path).encode() not in shipped
    assert arrived == media
    assert repr(arrived) == repr(media)
    assert pickle.loads(pickle.dumps(arrived)) == media


@pytest.mark.parametrize(
    "media",
    [
        pytest.param(Media.video([noise(seed=i) for i in range(40)], fps=8), id="video"),
        pytest.param(Media.audio(b"RIFF"), id="audio"),
        pytest.param(Media.molecule("OCC"), id="molecule"),
    ],
)
def test_every_kind_pickles(media: Media) -> None:
    arrived = pickle.loads(pickle.dumps(media))
    assert arrived == media
    assert arrived.kind == media.kind
    if media.kind == "video":
        assert arrived.fps == media.fps


def test_a_bad_one_pickles_as_bad_with_its_reason() -> None:
    media = Media.image(b"no picture", limits=Limits(pixels=5))
    arrived = pickle.loads(pickle.dumps(media))
    refused(arrived, r"^image \(10 bytes\): not a picture")


def test_many_threads_load_it_once() -> None:
    media, seen, start = Media.image(PNG), [], threading.Barrier(8)

    def load() -> None:
        start.wait()
        seen.append((id(media.images()), media.digest))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 1


def test_the_source_may_change_after_loading() -> None:
    picture = noise()
    media = Media.image(picture)
    before = media.digest
    picture.paste((0, 0, 0), (0, 0, 60, 40))
    assert np.array_equal(pixels(media), PIXELS)
    assert media.digest == before


def test_kinds_to_come_say_what_can_be_judged() -> None:
    media = Media.audio(b"RIFF")
    assert len(media.digest) == 64
    refused(media, "cannot be judged yet; image, video and molecule can")
    assert len(media.digest) == 64
    with pytest.raises(MediaError, match="expected bytes, found int"):
        _ = Media.audio(5).digest  # type: ignore[arg-type]


def test_a_server_gets_a_lossless_data_uri() -> None:
    media = Media.image(saved(noise(), "JPEG"))
    assert media.data_uri().startswith("data:image/png;base64,")
    assert Media.image(media.data_uri()) == media
    clip = Media.video([noise(seed=1), noise(seed=2)])
    head, *frames = clip.data_uri().split(",")
    assert head == "data:video/jpeg;base64"
    assert [Media.image(base64.b64decode(frame)) for frame in frames] == [Media.image(f) for f in clip.images()]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        pytest.param("a.MP4", "video", id="suffix_in_capitals"),
        pytest.param("a.mp4.png", "image", id="last_suffix_counts"),
        pytest.param(Path("a.webm"), "video", id="Path"),
        pytest.param({"path": "a.mov"}, "video", id="dict_with_path"),
        pytest.param({"bytes": b"\x00\x00\x00\x18ftypisom", "path": "x"}, "video", id="dict_with_bytes"),
        pytest.param("data:video/mp4;base64,AA", "video", id="data_URI"),
        pytest.param("data:image/png;base64,.mp4", "image", id="data_URI_of_a_picture"),
        pytest.param(b"RIFF0000AVI LIST", "video", id="AVI"),
        pytest.param(b"RIFF0000WEBPVP8L", "image", id="WebP"),
        pytest.param(None, "image", id="nothing"),
        pytest.param({}, "image", id="empty_dict"),
    ],
)
def test_what_a_row_holds_tells_its_kind(value: Any, kind: str) -> None:
    assert as_media(value).kind == kind
