"""Sources of encoded media: bytes, data URIs and dicts; no URL is fetched, and no message shows content."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexjudge_reward import Media, MediaError
from flexjudge_reward.media.base import Limits
from flexjudge_reward.media.source import described, encoded_bytes, is_path
from support.images import noise, pixels, refused, saved, uri

PNG = saved(noise())


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(PNG, id="bytes"),
        pytest.param(bytearray(PNG), id="bytearray"),
        pytest.param(memoryview(PNG), id="memoryview"),
        pytest.param(memoryview(b"".join(bytes([b, 0]) for b in PNG))[::2], id="memoryview_with_steps"),
        pytest.param(memoryview(PNG).cast("B", [1, len(PNG)]), id="memoryview_with_two_axes"),
        pytest.param(uri(PNG), id="data_URI"),
        pytest.param(uri(PNG, "IMAGE/PNG;name=x.png").replace("data:", "DATA:"), id="data_URI_in_capitals"),
        pytest.param(uri(PNG).replace("A", "A\n"), id="data_URI_on_lines"),
        pytest.param({"bytes": PNG, "path": None}, id="dict_with_bytes"),
        pytest.param({"bytes": PNG, "path": "/etc/passwd"}, id="dict_with_bytes_and_path"),
    ],
)
def test_every_source_gives_the_same_bytes(source: Any) -> None:
    assert np.array_equal(pixels(Media.image(source)), np.asarray(noise()))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(None, "expected a PIL image, array, bytes.*found NoneType", id="nothing"),
        pytest.param(7, "found int", id="a_number"),
        pytest.param(b"", "the file is empty", id="empty"),
        pytest.param(memoryview(b"x").cast("B", []), "not an image", id="memoryview_without_axes"),
        pytest.param({}, "a dict needs", id="empty_dict"),
        pytest.param({"bytes": [1, 2]}, "found list", id="dict_with_a_list_for_bytes"),
        pytest.param({"bytes": np.zeros(3)}, "expected a PIL image", id="dict_with_an_array_for_bytes"),
        pytest.param({"bytes": "text"}, "reading files is off", id="dict_with_text_for_bytes"),
        pytest.param("a.png", "reading files is off: name the folder", id="path_without_a_root"),
        pytest.param("data:image/png;base64,@@@", "not base64", id="data_URI_with_rubbish"),
        pytest.param("data:image/png,abc", "only data URIs of the form", id="data_URI_without_base64"),
        pytest.param("data:image/png;base64,", "the file is empty", id="empty_data_URI"),
    ],
)
def test_what_is_no_source_is_refused_when_loaded(source: Any, message: str) -> None:
    refused(Media.image(source), message)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/a.png",
        "https://user:secret@example.com/a.png",
        "HTTP://EXAMPLE.COM/a.png",
        "http://0x7f000001/",
        "http://[::ffff:169.254.169.254]/",
        "ftp://example.com/a.png",
        "file:///etc/passwd",
        "s3://bucket/a.png",
        "gopher://127.0.0.1:25/x",
    ],
)
def test_no_url_is_fetched(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket", None)
    for source in (url, {"path": url}, {"bytes": None, "path": url}):
        refused(Media.image(source, roots=[tmp_path, "/"]), "URLs are not fetched")


def test_bytes_are_counted_before_anything_is_decoded() -> None:
    for source in (PNG, uri(PNG), {"bytes": PNG}):
        refused(Media.image(source, limits=Limits(bytes=100)), "more than the 100 allowed")


def test_the_message_names_the_item_and_never_shows_its_content() -> None:
    refused(Media.image(b"secret"), r"^image \(6 bytes\): not an image")
    refused(Media.image(uri(b"secret")), r"^image \(data URI\): not an image")
    refused(Media.image("x" * 500, roots=["/"]), r"^image \('\.\.\.x{80}'\)")
    refused(Media.video([]), r"^video \(0 frames\): the list of frames is empty")
    assert repr(Media.image({"bytes": b"secret", "path": "x"})) == "<Media image (6 bytes)>"
    assert repr(Media.image({"path": "a.png"})) == "<Media image ('a.png')>"
    assert repr(Media.image(noise())) == "<Media image (Image)>"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        pytest.param("https://me:CANARY@example.com/a.png", "https://example.com/a.png", id="login"),
        pytest.param("https://CANARY@example.com/a.png", "https://example.com/a.png", id="token_for_a_login"),
        pytest.param("https://me:p@CANARY@example.com/a.png", "https://example.com/a.png", id="at_sign_in_a_password"),
        pytest.param("https://me:CANARY/x@example.com/a.png", "https://...", id="slash_in_a_password"),
        pytest.param("https://me:CANARY?x@example.com/a.png", "https://...", id="question_mark_in_a_password"),
        pytest.param("https://me:CANARY#x@example.com/a.png", "https://...", id="fragment_sign_in_a_password"),
        pytest.param("https://example.com/a.png?sig=CANARY", "https://example.com/a.png...", id="signature"),
        pytest.param("https://example.com/a.png#CANARY", "https://example.com/a.png...", id="fragment"),
        pytest.param("https://example.com?sig=CANARY", "https://example.com...", id="signature_without_a_path"),
        pytest.param(
            "https://example.com/a.png?X-Amz-Signature=CANARY&X-Amz-Date=" + "0" * 99,
            "https://example.com/a.png...",
            id="long_signature",
        ),
        pytest.param("HTTPS://me:CANARY@EXAMPLE.COM/a.png", "HTTPS://EXAMPLE.COM/a.png", id="capitals"),
        pytest.param(" https://me:CANARY@example.com/a.png", " https://example.com/a.png", id="blank_before"),
        pytest.param("s3://CANARY:CANARY@bucket/a.png", "s3://bucket/a.png", id="another_scheme"),
        pytest.param("//me:CANARY@example.com/a.png", "//example.com/a.png", id="without_a_scheme"),
        pytest.param(Path("https://me:CANARY@example.com/a.png?CANARY"), "https:/example.com/a.png...", id="Path"),
        pytest.param("https:\\\\me:CANARY@example.com\\a.png", "https:\\\\example.com\\a.png", id="backslashes"),
        pytest.param("me:CANARY@example.com/a.png", "example.com/a.png", id="login_without_a_scheme"),
        pytest.param("a.png?sig=CANARY", "a.png...", id="signature_of_a_name"),
        pytest.param({"path": "https://me:CANARY@example.com/a"}, "https://example.com/a", id="dict"),
        pytest.param("http://[::1]:80/a@2x.png", "http://[::1]:80/a@2x.png", id="address_of_numbers"),
        pytest.param("http://localhost:80/a@2x.png", "http://localhost:80/a@2x.png", id="at_sign_in_a_path"),
        pytest.param("albums/me@home #1.png", "albums/me@home #1.png", id="file"),
    ],
)
def test_no_message_shows_a_secret_of_an_address(source: Any, shown: str, tmp_path: Path) -> None:
    media = Media.image(source, roots=[tmp_path])
    with pytest.raises(MediaError) as caught:
        media.load()
    assert str(caught.value).startswith(f"image ({shown!r}): ") and repr(media) == f"<Media image ({shown!r})>"
    assert "CANARY" not in f"{caught.value}{media!r}"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("\x1b[2J.png", id="escape"),
        pytest.param("a\x9b31mb", id="escape_in_one_byte"),
        pytest.param("a\r\nb", id="new_line"),
        pytest.param("a\u202eb", id="right_to_left"),
        pytest.param("a\u2028b", id="line_separator"),
        pytest.param("a\0b", id="null"),
        pytest.param("a\ud800b", id="lone_surrogate"),
        pytest.param("a\u200bb", id="zero_width"),
    ],
)
def test_messages_are_printable(name: str, tmp_path: Path) -> None:
    class Odd:
        def __array__(self, *arguments: Any, **options: Any) -> Any:
            raise ValueError(name)

    for media in (
        Media.image(name, roots=[tmp_path]),
        Media.image(Odd()),
        Media.image("a", roots=[tmp_path / "\x1b[2J"]),
    ):
        with pytest.raises(MediaError) as caught:
            media.load()
        assert str(caught.value).isprintable() and repr(media).isprintable()


MP4 = b"\0\0\0\x18ftypmp42" + bytes(50)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(MP4, id="MP4"),
        pytest.param(b"\0\0\0\x14ftypqt  " + bytes(50), id="MOV"),
        pytest.param(b"\x1a\x45\xdf\xa3" + bytes(50), id="Matroska"),
        pytest.param(b"RIFF\x24\0\0\0AVI LIST" + bytes(50), id="AVI"),
        pytest.param(b"RIFF\x24\0\0\0WAVEfmt " + bytes(50), id="sound"),
        pytest.param(b"ID3\x04" + bytes(50), id="MP3"),
    ],
)
@pytest.mark.parametrize("wrapped", [lambda data: data, lambda data: {"bytes": data, "path": "a.png"}, uri])
def test_a_clip_that_is_given_as_an_image_is_refused(data: bytes, wrapped: Any) -> None:
    refused(Media.image(wrapped(data)), "not an image in one of the formats")


MP4 = b"\0\0\0\x1cftypisom" + bytes(80)
BARE = {
    "wav": b"RIFF\x24\0\0\0WAVEfmt " + bytes(80),
    "flac": b"fLaC" + bytes(80),
    "ogg": b"OggS" + bytes(80),
    "mp3": b"ID3\x04" + bytes(80),
    "mp3_without_a_tag": b"\xff\xfb\x90" + bytes(80),
    "mp3_of_mpeg_2": b"\xff\xf3\x90" + bytes(80),
    "aac": b"\xff\xf1\x90" + bytes(80),
    "webm": b"\x1aE\xdf\xa3" + bytes(80),
    "mp4": MP4,
    "m4a": MP4.replace(b"\x1cftypisom", b"\x20ftypM4A "),
    "mov": MP4.replace(b"\x1cftypisom", b"\x14ftypqt  "),
}


@pytest.mark.parametrize("data", BARE.values(), ids=BARE)
def test_bare_base64_of_a_sound_or_clip_is_its_bytes_and_no_path(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert encoded_bytes(text, (), Limits()) == data
    assert not is_path(text) and described(text) == "base64" and is_path(text[:60]) and is_path(text + ".wav")


@pytest.mark.parametrize("codecs", ["opus", "vp8,opus", '"mp4a.40.2"', "avc1.64+x"])
def test_a_data_uri_may_name_its_codecs(codecs: str) -> None:
    held = base64.b64encode(b"abc").decode()
    assert encoded_bytes(f"data:video/webm;codecs={codecs};base64,{held}", (), Limits()) == b"abc"
