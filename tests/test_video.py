"""Clips, from frames and from files: which frames are kept, what is refused, and what a decoder may do."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import pictures
from support.pictures import noise, refused, saved, uri

from flexjudge_reward import Media, MediaError
from flexjudge_reward.media.base import Limits, as_media

# ---------------------------------------------------------------- clips from frames


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
@pytest.mark.parametrize("build", [Media.video, as_media], ids=["video", "as_media"])
def test_a_clip_is_its_frames(source: Any, build: Any) -> None:
    media = build(source)
    assert media.kind == "video"
    assert media == Media.video([noise(seed=i) for i in range(5)])
    assert [np.asarray(f).tolist() for f in media.images()] == [np.asarray(noise(seed=i)).tolist() for i in range(5)]
    assert media.fps == 1.0


def test_a_long_clip_is_sampled_evenly_from_end_to_end() -> None:
    frames = [np.full((8, 8), i, np.uint8) for i in range(100)]
    media = Media.video(frames, fps=30, limits=Limits(frames=12))
    shades = [f.getpixel((0, 0))[0] for f in media.images()]
    assert shades == [0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99]
    assert media.fps == pytest.approx(30 * 11 / 99)
    assert len(Media.video(frames, limits=Limits(frames=1)).images()) == 1


@pytest.mark.parametrize(
    ("media", "said"),
    [
        pytest.param(Media.video([]), "the list of frames is empty", id="no_frames"),
        pytest.param(Media.video(np.zeros((0, 4, 4, 3), np.uint8)), "the list of frames is empty", id="empty_array"),
        pytest.param(Media.video([noise(), noise(61)]), "the frames differ in size", id="sizes_differ"),
        pytest.param(Media.video([noise(), b"x"]), "not a picture", id="a_bad_frame"),
        pytest.param(Media.video([noise()], fps=0), "fps must be a positive number", id="no_rate"),
        pytest.param(Media.video([noise()], fps=float("nan")), "fps must be a positive number", id="rate_not_a_number"),
        pytest.param(
            Media.video([noise()] * 16, limits=Limits(pixels=9_599)), "pixels allowed", id="too_large_together"
        ),
        pytest.param(Media.video(7), "found int", id="a_number"),
    ],
)
def test_what_is_no_clip_is_refused_when_loaded(media: Media, said: str) -> None:
    refused(media, said)


# ---------------------------------------------------------------- encoded clips

CLIPS = [("mp4", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4")]


@pytest.mark.parametrize(("container", "codec"), CLIPS)
def test_an_encoded_clip_is_sampled_with_its_rate(container: str, codec: str, tmp_path: Path) -> None:
    pytest.importorskip("av")
    data = pictures.clip(container, codec, frames=80, rate=10)
    (tmp_path / f"clip.{container}").write_bytes(data)
    media = as_media(f"clip.{container}", roots=[tmp_path])
    assert media.kind == as_media(data).kind == as_media(uri(data, f"video/{container}")).kind == "video"
    shades = [f.getpixel((9, 9))[0] for f in media.images()]
    assert len(shades) == 16
    assert all(5 < b - a < 25 for a, b in itertools.pairwise(shades)), shades
    assert media.fps == pytest.approx(15 / 7.9, rel=0.02)
    assert pickle.loads(pickle.dumps(media)) == media


def test_half_a_clip_is_an_error() -> None:
    pytest.importorskip("av")
    for container, codec in CLIPS:
        data = pictures.clip(container, codec)
        refused(as_media(data[: len(data) // 2]), "cut short")


def test_a_clip_with_large_frames_is_refused_before_decoding() -> None:
    pytest.importorskip("av")
    media = Media.video(pictures.clip(), limits=Limits(pixels=10_000, frames=16))
    refused(media, "frames of 64 x 48 are more than the 2,500 pixels allowed for each")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(
            b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not a clip in one of the containers", id="playlist"
        ),
        pytest.param(b"ffconcat version 1.0\nfile /etc/passwd\n", "not a clip in one of the containers", id="concat"),
        pytest.param(b"\x00\x00\x00\x18ftypisom" + bytes(100), "damaged or cut short", id="header_only"),
        pytest.param(b"\x1a\x45\xdf\xa3", "cut short within its header", id="four_bytes"),
    ],
)
def test_what_is_no_encoded_clip_is_refused(data: bytes, said: str) -> None:
    pytest.importorskip("av")
    refused(Media.video(data), said)


CHILDREN = [
    pytest.param("import time; time.sleep(60)", "not decoded within 1 s", id="hangs"),
    pytest.param("import os; os.abort()", "crashed its decoder", id="crashes"),
    pytest.param("print('no JSON')", "answer that cannot be read", id="says_nothing_readable"),
    pytest.param('print(\'{"size": [9, 9], "fps": 1, "frames": 3}\')', "cannot be read", id="sends_too_little"),
    pytest.param('print(\'{"size": [99999, 99999], "fps": 1, "frames": 1}\')', "cannot be read", id="claims_too_much"),
    pytest.param('print(\'{"size": [1, 1], "fps": NaN, "frames": 1}\')', "cannot be read", id="rate_is_no_number"),
]


@pytest.mark.parametrize(("program", "said"), CHILDREN)
def test_a_taken_over_decoder_harms_nobody(
    program: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    (tmp_path / "child.py").write_text(program)
    monkeypatch.setattr("flexjudge_reward.media.video._CHILD", tmp_path / "child.py")
    refused(Media.video(b"clip", limits=Limits(seconds=1 if "sleep" in program else 20)), said)


def test_the_decoder_sees_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    (tmp_path / "child.py").write_text("import json, os; print(json.dumps({'error': ' '.join(sorted(os.environ))}))")
    monkeypatch.setattr("flexjudge_reward.media.video._CHILD", tmp_path / "child.py")
    monkeypatch.setenv("FLEXJUDGE_API_KEY", "canary")
    with pytest.raises(MediaError) as caught:
        Media.video(b"clip").load()
    assert "PATH" in str(caught.value)
    assert "KEY" not in str(caught.value)


def test_without_pyav_the_message_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(Media.video(b"clip"), r"pip install 'flexjudge-reward\[video\]'")
