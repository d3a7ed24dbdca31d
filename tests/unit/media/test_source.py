"""Sources of encoded media: bytes, data URIs and dicts; no URL is fetched, and no message shows content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexjudge_reward import Media
from flexjudge_reward.media.base import Limits
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
