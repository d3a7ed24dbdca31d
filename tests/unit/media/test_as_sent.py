"""What a server gets of an image: its own file without notes, where that shows every decoder the same pixels."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable
from typing import Any

import PIL.Image
import pytest
from PIL.PngImagePlugin import PngInfo

from flexjudge_reward import Media
from flexjudge_reward.data.messages import Columns, examples
from flexjudge_reward.media import image
from flexjudge_reward.media.ahead import read_all
from support.images import noise, palette, saved


def exif(**tags: Any) -> Any:
    found = PIL.Image.Exif()
    found[0x010F] = "a camera of mine"
    for tag, value in tags.items():
        found[int(tag[1:], 16)] = value
    return found


def noted() -> PngInfo:
    notes = PngInfo()
    notes.add_text("Author", "a camera of mine")
    return notes


def sent(media: Media, **options: Any) -> tuple[str, bytes]:
    head, _, data = media.data_uri(**options).partition(";base64,")
    return head, base64.b64decode(data)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is decoded and encoded."""
    done: list[str] = []
    for name in ("decode", "decode_again", "encode", "upright_rgb"):
        whole = getattr(image, name)
        monkeypatch.setattr(image, name, lambda *a, _n=name, _w=whole, **more: done.append(_n) or _w(*a, **more))
    return done


def between_scans() -> bytes:
    """A progressive JPEG file with a note, which looks like its end, before its second scan."""
    file, note = saved(noise(), "JPEG", progressive=True), b"a camera of mine\xff\xd9"
    second = file.index(b"\xff\xda", file.index(b"\xff\xda") + 2)
    return file[:second] + b"\xff\xfe" + (len(note) + 2).to_bytes(2) + note + file[second:]


OWN = [
    pytest.param(saved(noise()), {}, id="PNG"),
    pytest.param(saved(noise(), "JPEG"), {}, id="JPEG"),
    pytest.param(saved(noise(), "JPEG", progressive=True), {}, id="progressive_JPEG"),
    pytest.param(saved(noise(), "JPEG", exif=exif(x0112=1)), {}, id="upright_photograph"),
    pytest.param(saved(noise(), pnginfo=noted(), icc_profile=b"a camera of mine"), {}, id="PNG_with_notes"),
    pytest.param(saved(noise(), "JPEG", comment=b"a camera of mine"), {}, id="JPEG_with_a_comment"),
    pytest.param(saved(noise()) + b"a camera of mine", {}, id="PNG_with_a_tail"),
    pytest.param(saved(noise(), "JPEG") + b"a camera of mine", {}, id="JPEG_with_a_tail"),
    pytest.param(saved(noise(), "JPEG") + saved(noise(), "JPEG", exif=exif()), {}, id="JPEG_with_another_behind_it"),
    pytest.param(between_scans(), {}, id="JPEG_with_a_note_between_scans"),
    pytest.param(saved(noise(), "JPEG"), {"image_format": "jpeg"}, id="JPEG_asked_for"),
    pytest.param(saved(noise()), {"image_format": "png", "max_pixels": 2400}, id="small_enough"),
]
NOTES = {"comment": b"a camera of mine", "icc_profile": b"a camera of mine"}
ANEW = [
    pytest.param(saved(noise(), "JPEG", exif=exif(x0112=6)), {}, id="turned"),
    pytest.param(saved(noise(), "JPEG", exif=exif(x0112=6), **NOTES), {}, id="turned_with_notes"),
    pytest.param(saved(noise(mode="CMYK"), "JPEG", **NOTES), {}, id="CMYK_with_notes"),
    pytest.param(saved(noise(), "WEBP", icc_profile=b"a camera of mine"), {}, id="WEBP_with_notes"),
    pytest.param(saved(noise(), exif=exif(x0112=6)), {}, id="turned_PNG"),
    pytest.param(saved(noise(), exif=exif()), {}, id="PNG_with_EXIF"),
    pytest.param(saved(palette(clear=True)), {}, id="palette"),
    pytest.param(saved(noise(mode="L")), {}, id="grey"),
    pytest.param(saved(noise(mode="RGBA")), {}, id="clear"),
    pytest.param(saved(noise(mode="L"), "JPEG"), {}, id="grey_JPEG"),
    pytest.param(saved(noise(mode="CMYK"), "JPEG"), {}, id="CMYK"),
    pytest.param(saved(noise(), "WEBP", lossless=True), {}, id="WEBP"),
    pytest.param(saved(noise()), {"max_pixels": 2399}, id="too_large"),
    pytest.param(saved(noise(), "JPEG"), {"image_format": "png"}, id="PNG_asked_for"),
]


@pytest.mark.parametrize(("file", "options"), OWN)
def test_its_own_file_is_sent_without_notes(file: bytes, options: dict[str, Any], work: list[str]) -> None:
    media = Media.image(file)
    head, data = sent(media, **options)
    assert work == ["decode", "upright_rgb"], "for its digest"
    assert b"a camera of mine" not in data and len(data) <= len(file)
    assert head == ("data:image/png" if data.startswith(b"\x89PNG") else "data:image/jpeg")
    theirs = PIL.Image.open(io.BytesIO(data))
    assert theirs.mode == "RGB" and theirs.tobytes() == media.images()[0].tobytes() and Media.image(data) == media


@pytest.mark.parametrize(("file", "options"), ANEW)
def test_other_files_are_encoded_anew(file: bytes, options: dict[str, Any], work: list[str]) -> None:
    media = Media.image(file)
    _, data = sent(media, **options)
    assert work[-1] == "encode" and b"a camera of mine" not in data
    theirs = PIL.Image.open(io.BytesIO(data))
    assert theirs.mode == "RGB" and not theirs.getexif().get(0x0112)


def test_pixels_are_encoded_once_and_their_frames_given_up(work: list[str]) -> None:
    media = Media.image(noise())
    assert sent(media) == sent(media) and work.count("encode") == 1
    assert media.images()[0].tobytes() == noise().tobytes() and work.count("decode_again") == 1


# ---- one item per content, and reading in threads

SOURCES = [
    pytest.param(lambda: noise(), id="PIL"),
    pytest.param(lambda: PIL.Image.open(io.BytesIO(saved(noise(), "JPEG"))), id="unread_PIL"),
    pytest.param(lambda: bytes(bytearray(saved(noise()))), id="bytes"),
    pytest.param(lambda: {"bytes": bytes(bytearray(saved(noise()))), "path": None}, id="dict"),
    pytest.param(lambda: "data:image/png;base64," + base64.b64encode(saved(noise())).decode(), id="data_uri"),
]


@pytest.mark.parametrize("make", SOURCES)
def test_eight_objects_of_one_picture_are_read_and_encoded_once(make: Callable[[], Any], work: list[str]) -> None:
    rows = examples(["?"] * 8, [f"{n}" for n in range(8)], {"image": [make() for _ in range(8)]}, Columns())
    shown = {id(media): media for row in rows for media in row.media}
    assert len(shown) == 1
    for row in rows:
        row.media[0].data_uri()
    assert work.count("upright_rgb") == 1 and work.count("encode") <= 1


DIFFERENT = [
    pytest.param(noise(seed=1), noise(seed=2), id="pixels"),
    pytest.param(palette(), palette(colour=(0, 255, 0)), id="palette"),
    pytest.param(palette(), palette(clear=True), id="transparency"),
    pytest.param(noise(30, 40), noise(40, 30), id="size"),
    pytest.param(noise(mode="L"), noise(), id="mode"),
    pytest.param(saved(noise(seed=1)), saved(noise(seed=2)), id="bytes"),
    pytest.param(
        PIL.Image.open(io.BytesIO(saved(noise(), "JPEG", exif=exif(x0112=6)))),
        PIL.Image.open(io.BytesIO(saved(noise(), "JPEG"))),
        id="orientation",
    ),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_pictures_that_differ_stay_apart(one: Any, other: Any) -> None:
    rows = examples(["?"] * 2, ["a", "b"], {"image": [one, other]}, Columns())
    assert rows[0].media[0] != rows[1].media[0]


def test_reading_uses_threads_and_keeps_errors_with_their_item(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, decode = set(), image.decode
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr(image, "decode", lambda *a: threads.add(threading.current_thread().name) or decode(*a))
    media = [Media.image(saved(noise(seed=n))) for n in range(6)] + [Media.image(b"broken")]
    read_all([*media, *media])
    assert all(one.is_read for one in media)
    assert [one.is_usable for one in media] == [True] * 6 + [False]
    assert threads and all(name.startswith("flexjudge-media") for name in threads)
