"""Videos, from frames and from files: which frames are kept, what is refused, and what a decoder may do."""

from __future__ import annotations

import functools
import importlib.util
import io
import itertools
import pickle
import tempfile
from collections.abc import Callable
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
        pytest.param(Media.video([noise()], fps=10**400), "fps must be a positive number", id="rate_of_400_digits"),
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


def recorded(container: str = "mp4", frames: int = 60, key: int = 30, **options: str) -> bytes:
    """Frames that get brighter by 4 each, 10 a second."""
    import av

    with tempfile.NamedTemporaryFile() as out, av.open(out.name, "w", format=container, options=options) as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"g": str(key), "sc_threshold": "1000000000"}
        for number in range(frames):
            grey = np.full((48, 64, 3), 4 * number, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        file.mux(stream.encode(None))
        file.close()
        return Path(out.name).read_bytes()


def trimmed(data: bytes, start: float, container: str = "mp4") -> bytes:
    """The clip from `start` seconds on, not coded anew: what is before is there from the last key frame, and hidden."""
    import av

    out = io.BytesIO()
    options = {"avoid_negative_ts": "disabled"}
    with av.open(io.BytesIO(data)) as source, av.open(out, "w", format=container, options=options) as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        offset = int(start / stream.time_base)
        packets = [packet for packet in source.demux(stream) if packet.dts is not None]
        first = max(n for n, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= offset)
        for packet in packets[first:]:
            packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, copy
            target.mux(packet)
    return out.getvalue()


def with_number(data: bytes, name: bytes, behind: int, number: int) -> bytes:
    """The file with another number of four bytes, so far behind a name in its header."""
    at = data.index(name) + behind
    return data[:at] + number.to_bytes(4, "little") + data[at + 4 :]


@needs_av
@pytest.mark.parametrize(
    ("make", "shade"),
    [
        pytest.param(lambda: trimmed(recorded(), 0.0), 0, id="not_trimmed"),
        pytest.param(lambda: trimmed(recorded(), 1.5), 60, id="half_a_second_behind_a_key_frame"),
        pytest.param(lambda: trimmed(recorded(), 2.5), 100, id="most_of_it_hidden"),
        pytest.param(lambda: trimmed(recorded(), 4.5), 180, id="behind_the_second_key_frame"),
        pytest.param(lambda: trimmed(recorded(key=60), 5.5), 220, id="all_but_the_last_frames_hidden"),
        pytest.param(lambda: trimmed(recorded(), 2.5, "mov"), 100, id="in_MOV"),
        pytest.param(lambda: recorded(movflags="frag_keyframe+empty_moov"), 0, id="in_fragments"),
        pytest.param(lambda: recorded() + bytes(1000), 0, id="something_behind_it"),
        pytest.param(lambda: with_number(recorded("avi"), b"strh", 40, 100_000), 0, id="AVI_that_claims_more_frames"),
        pytest.param(lambda: with_number(recorded("avi"), b"strh", 40, 0), 0, id="AVI_that_claims_none"),
        pytest.param(lambda: with_number(recorded("avi"), b"avih", 24, 9_999), 0, id="AVI_that_claims_more_in_all"),
        pytest.param(lambda: with_number(recorded("avi"), b"RIFF", 4, 0), 0, id="AVI_without_its_size"),
        pytest.param(lambda: with_number(recorded("avi"), b"RIFF", 4, 10**9), 0, id="AVI_with_a_larger_size"),
        pytest.param(
            lambda: with_number(recorded("avi"), b"movi", -4, 0xFFFFFFFF), 0, id="AVI_without_the_size_of_its_list"
        ),
    ],
)
def test_a_whole_video_is_read_whatever_its_numbers(make: Callable[[], bytes], shade: int) -> None:
    frames = Media.video(make()).images()
    assert abs(frames[0].getpixel((5, 5))[0] - shade) <= 12 and abs(frames[-1].getpixel((5, 5))[0] - 236) <= 12  # type: ignore[index]


@needs_av
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: recorded(movflags="faststart"), id="MP4"),
        pytest.param(lambda: trimmed(recorded(), 2.5), id="trimmed"),
        pytest.param(lambda: recorded(movflags="frag_keyframe+empty_moov"), id="fragments"),
        pytest.param(lambda: recorded("avi"), id="AVI"),
        pytest.param(lambda: with_number(recorded("avi"), b"RIFF", 4, 0), id="AVI_without_its_size"),
        pytest.param(lambda: recorded("matroska"), id="Matroska"),
        pytest.param(lambda: images.clip("webm", "libvpx"), id="WebM"),
        pytest.param(lambda: images.clip("mp4", "libx264"), id="MP4_with_its_header_at_the_end"),
    ],
)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_video_that_was_cut_is_refused(make: Callable[[], bytes], share: float) -> None:
    data = make()
    refused(
        Media.video(data[: int(share * len(data))]),
        "cut short|no frame that can be decoded|no video in it|have no pixels",
    )


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
        pytest.param(saved(noise()), "not a video in one of the containers", id="image"),
        pytest.param({"bytes": saved(noise()), "path": "a.png"}, "not a video in one of the", id="image_with_its_name"),
        pytest.param(uri(saved(noise())), "not a video in one of the containers", id="image_as_data_URI"),
    ],
)
def test_what_is_no_encoded_video_is_refused(data: Any, message: str) -> None:
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
    monkeypatch.setattr("flexjudge_reward.media.decoder._CHILD", tmp_path / "child.py")
    refused(Media.video(b"clip", limits=Limits(seconds=1 if "sleep" in program else 20)), message)


@needs_av
def test_the_decoder_sees_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "child.py").write_text("import json, os; print(json.dumps({'error': ' '.join(sorted(os.environ))}))")
    monkeypatch.setattr("flexjudge_reward.media.decoder._CHILD", tmp_path / "child.py")
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
