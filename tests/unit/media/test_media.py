"""Media as values: equality, digests, copies, pickles and threads."""

from __future__ import annotations

import base64
import contextlib
import copy
import gc
import pickle
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexjudge_reward import ConfigError, Media, MediaError
from flexjudge_reward.media.base import Limits
from support.images import noise, palette, pixels, refused, saved

PNG = saved(noise())


# ---------------------------------------------------------------- identity


def test_look_alikes_have_different_digests() -> None:
    grey = np.arange(4_500, dtype=np.uint32).astype(np.uint8)
    frames = [noise(seed=1), noise(seed=2)]
    media = [
        Media.image(grey.reshape(30, 150)),
        Media.image(grey.reshape(150, 30)),
        Media.image(palette()),
        Media.image(palette(clear=True)),
        Media.image(palette(colour=(0, 255, 0))),
        Media.image(noise(seed=1)),
        Media.video([noise(seed=1)]),
        Media.video([noise(seed=1)], fps=2),
        Media.video(frames),
        Media.video(frames[::-1]),
        Media.video([*frames, frames[0]]),
        Media.molecule("CCO"),
        Media.molecule("CCC"),
        Media.molecule("CCO", as_="drawing"),
        Media.audio((grey / 255, 16_000)),
        Media.audio((grey[::-1] / 255, 16_000)),
    ]
    assert len({m.digest for m in media}) == len(set(media)) == len(media)


def test_the_digest_does_not_depend_on_the_encoding() -> None:
    ways = [saved(noise(), "PNG"), saved(noise(), "PNG", compress_level=1), saved(noise(), "WEBP", lossless=True)]
    ways += [saved(noise(), "BMP"), saved(noise(), "TIFF")]
    assert len({Media.image(data).digest for data in ways}) == 1
    # The same in every process and version: caches outlive a process.
    tiny = Media.image(np.zeros((1, 1, 3), np.uint8))
    assert tiny.digest == "c3bbdf0396263361e66d413c8dbd0f34a56884745f740c07f2309caef6ed3cef"


def test_media_compare_with_anything() -> None:
    assert Media.image(PNG) != "an image"
    assert Media.image(PNG) != Media.molecule("C")


def test_a_copy_is_the_item_itself() -> None:
    media = Media.video([noise()])
    assert copy.copy(media) is copy.deepcopy(media) is media


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        pytest.param(("music", b""), {}, "no modality 'music'; there are image, video, audio, molecule", id="kind"),
        pytest.param(("image", PNG), {"drawn": True}, "image has no option 'drawn'; its options are: none", id="none"),
        pytest.param(("molecule", "C"), {"fps": 1}, "no option 'fps'; its options are: as_", id="of_another_kind"),
    ],
)
def test_a_wrong_kind_or_option_is_an_error_at_once(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Media.of(*arguments, **options)


def test_a_server_gets_a_lossless_data_uri() -> None:
    """Of what was JPEG one of about its size, or, on demand, without loss."""
    media, png = Media.image(saved(noise(), "JPEG")), Media.image(saved(noise(), "PNG"))
    assert png.data_uri().startswith("data:image/png;base64,") and Media.image(png.data_uri()) == png
    assert media.data_uri().startswith("data:image/jpeg;base64,")
    assert Media.image(media.data_uri(image_format="png")) == media
    small = Media.image(media.data_uri(max_pixels=100)).images()[0]
    assert 50 < small.width * small.height <= 100
    video = Media.video([noise(seed=1), noise(seed=2)])
    head, *frames = video.data_uri().split(",")
    assert head == "data:video/jpeg;base64"
    assert [Media.image(base64.b64decode(frame)) for frame in frames] == [Media.image(f) for f in video.images()]


# ---------------------------------------------------------------- pickles and threads


def test_it_pickles_as_content_not_as_a_path(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(saved(noise(), "JPEG"))
    media = Media.image("a.png", roots=[tmp_path])
    shipped = pickle.dumps(media)
    file.unlink()
    arrived = pickle.loads(shipped)
    assert str(tmp_path).encode() not in shipped
    assert arrived == media and repr(arrived) == repr(media)
    assert pickle.loads(pickle.dumps(arrived)) == media


def test_a_video_pickles_with_its_rate_and_a_molecule_with_its_text() -> None:
    for media in (Media.video([noise(seed=i) for i in range(40)], fps=8), Media.molecule("OCC", as_="drawing")):
        arrived = pickle.loads(pickle.dumps(media))
        assert arrived == media and (arrived.kind, arrived.fps) == (media.kind, media.fps)
        assert arrived.as_judge_input()[-1] == media.as_judge_input()[-1]


def test_a_bad_one_pickles_as_bad_with_its_reason() -> None:
    for media, message in (
        (Media.image(b"no image", limits=Limits(pixels=5)), r"^image \(8 bytes\): not an image"),
        (Media.audio(b""), r"^audio \(0 bytes\): the file is empty"),
    ):
        refused(pickle.loads(pickle.dumps(media)), message)
        refused(pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(media)))), message)


def test_a_loaded_item_does_not_keep_its_source() -> None:
    for shade in (0.5, 2.0):  # the second is refused
        source = np.full((4, 4), shade)
        media, alive = Media.image(source), weakref.ref(source)
        del source
        assert alive() is not None
        with contextlib.suppress(MediaError):
            media.load()
        gc.collect()
        assert alive() is None


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
    assert len(set(seen)) == 1 and pixels(media).shape == (40, 60, 3)
