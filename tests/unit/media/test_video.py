"""Videos, from frames and from files: which frames are kept, what is refused, and what a decoder may do."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexjudge_reward import Media, MediaError, MissingExtra
from flexjudge_reward.media.base import Limits
from support import images
from support.images import noise, refused, saved, uri

needs_av = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs PyAV")

# ---------------------------------------------------------------- from frames


@pytest.mark.parametrize(
    "source",
    [
        pytest.param([noise(seed=i) for i in range(5)], id="PIL"),
        pytest.param(tuple(saved(noise(seed=i)) for i in range(5)), id="bytes"),
        pytest.param([np.asarray(noise(seed=i)) for i in range(5)], id="arrays"),
        pytest.param(np.stack([np.asarray(noise(seed=i)) for i in range(5)]), id="one_array"),
        pytest.param(np.stack([np.moveaxis(np.asarray(noise(seed=i)), -1, 0) for i in range(5)]), id="channels_first"),
    ],
)
def test_a_video_is_its_frames(source: Any) -> None:
    frames = [np.asarray(noise(seed=i)).tolist() for i in range(5)]
    media = Media.video(source)
    assert media.kind == "video" and media.fps == 1.0
    assert media == Media.video([noise(seed=i) for i in range(5)])
    assert [np.asarray(frame).tolist() for frame in media.images()] == frames


def test_a_long_video_is_sampled_evenly_from_end_to_end() -> None:
    frames = [np.full((8, 8), i, np.uint8) for i in range(100)]
    media = Media.video(frames, fps=30, limits=Limits(frames=12))
    shades = [frame.getpixel((0, 0))[0] for frame in media.images()]  # type: ignore[index]
    assert shades == [0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99]
    assert media.fps == pytest.approx(30 * 11 / 99)
    assert len(Media.video(frames, limits=Limits(frames=1)).images()) == 1


@pytest.mark.parametrize(
    ("media", "message"),
    [
        pytest.param(Media.video([]), "the list of frames is empty", id="no_frames"),
        pytest.param(Media.video(np.zeros((0, 4, 4, 3), np.uint8)), "the list of frames is empty", id="empty_array"),
        pytest.param(Media.video([noise(), noise(61)]), "the frames differ in size", id="sizes_differ"),
        pytest.param(Media.video([noise(), b"x"]), "not an image", id="a_bad_frame"),
        pytest.param(Media.video([noise()], fps=0), "fps must be a positive number", id="no_rate"),
        pytest.param(Media.video([noise()], fps=float("nan")), "fps must be a positive number", id="rate_not_a_number"),
        pytest.param(
            Media.video([noise()] * 16, limits=Limits(pixels=9_599)), "pixels allowed", id="too_large_together"
        ),
        pytest.param(Media.video(7), "found int", id="a_number"),
    ],
)
def test_what_is_no_video_is_refused_when_loaded(media: Media, message: str) -> None:
    refused(media, message)


# ---------------------------------------------------------------- from files

CONTAINERS = {"mp4": "libx264", "webm": "libvpx", "avi": "mpeg4"}


@functools.cache
def encoded(container: str) -> bytes:
    return images.clip(container, CONTAINERS[container], frames=80, rate=10)


@needs_av
@pytest.mark.parametrize("container", CONTAINERS)
def test_an_encoded_video_is_sampled_with_its_rate(container: str, tmp_path: Path) -> None:
    data = encoded(container)
    (tmp_path / f"clip.{container}").write_bytes(data)
    media = Media.video(f"clip.{container}", roots=[tmp_path])
    assert media == Media.video(data) == Media.video(uri(data, f"video/{container}"))
    shades = [frame.getpixel((9, 9))[0] for frame in media.images()]  # type: ignore[index]
    assert len(shades) == 16
    assert all(5 < b - a < 25 for a, b in itertools.pairwise(shades)), shades
    assert media.fps == pytest.approx(15 / 7.9, rel=0.02)
    assert pickle.loads(pickle.dumps(media)) == media


@needs_av
def test_half_a_video_is_an_error() -> None:
    for container in CONTAINERS:
        data = encoded(container)
        refused(Media.video(data[: len(data) // 2]), "cut short")


@needs_av
def test_large_frames_are_refused_before_decoding() -> None:
    media = Media.video(encoded("mp4"), limits=Limits(pixels=10_000, frames=16))
    refused(media, "frames of 64 x 48 are more than the 2,500 pixels allowed for each")


@needs_av
@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not a video in one of the", id="playlist"),
        pytest.param(b"ffconcat version 1.0\nfile /etc/passwd\n", "not a video in one of the", id="concat"),
        pytest.param(b"\x00\x00\x00\x18ftypisom" + bytes(100), "damaged or cut short", id="header_only"),
        pytest.param(b"\x1a\x45\xdf\xa3", "cut short within its header", id="four_bytes"),
    ],
)
def test_what_is_no_encoded_video_is_refused(data: bytes, message: str) -> None:
    refused(Media.video(data), message)


@needs_av
@pytest.mark.parametrize(
    ("program", "message"),
    [
        pytest.param("import time; time.sleep(60)", "not decoded within 1 s", id="hangs"),
        pytest.param("import os; os.abort()", "crashed its decoder", id="crashes"),
        pytest.param("print('no JSON')", "output that cannot be read", id="writes_no_JSON"),
        pytest.param('print(\'{"size": [9, 9], "fps": 1, "frames": 3}\')', "cannot be read", id="sends_too_little"),
        pytest.param('print(\'{"size": [99999, 99999], "fps": 1, "frames": 1}\')', "cannot be read", id="too_large"),
        pytest.param('print(\'{"size": [1, 1], "fps": NaN, "frames": 1}\')', "cannot be read", id="rate_is_no_number"),
    ],
)
def test_a_decoder_under_attack_fails_only_its_video(
    program: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "child.py").write_text(program)
    monkeypatch.setattr("flexjudge_reward.media.video._CHILD", tmp_path / "child.py")
    refused(Media.video(b"clip", limits=Limits(seconds=1 if "sleep" in program else 20)), message)


@needs_av
def test_the_decoder_sees_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "child.py").write_text("import json, os; print(json.dumps({'error': ' '.join(sorted(os.environ))}))")
    monkeypatch.setattr("flexjudge_reward.media.video._CHILD", tmp_path / "child.py")
    monkeypatch.setenv("FLEXJUDGE_API_KEY", "canary")
    with pytest.raises(MediaError) as caught:
        Media.video(b"clip").load()
    assert "PATH" in str(caught.value) and "KEY" not in str(caught.value)


def test_without_pyav_it_is_no_media_failure_and_the_message_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    media = Media.video(b"clip")
    for use in (media.load, lambda: media.digest, lambda: pickle.dumps(media)):
        with pytest.raises(MissingExtra, match=r"pip install 'flexjudge-reward\[video\]'"):
            use()
    monkeypatch.undo()
    if importlib.util.find_spec("av"):  # a later try reads the item
        refused(media, "not a video in one of the containers")
