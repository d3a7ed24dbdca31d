"""Memory: only the decoded frames that were used last are kept, and the others come back as they were."""

from __future__ import annotations

import gc
import importlib.util
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL.Image import Image

from flexjudge_reward import Judge, Media, MediaError, Pointwise, ScriptedEngine
from flexjudge_reward.media import frames
from flexjudge_reward.types import Example
from support import images
from support.images import noise, saved

SIZE = 4 * 60 * 40  # bytes of one decoded image of `noise`


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Room for two images, and none of it taken."""
    gc.collect()
    Media.image(noise()).load()
    monkeypatch.setattr(frames, "MOST_BYTES", 2 * SIZE)
    yield


def decoded(media: Media) -> Callable[[], Image | None]:
    """The first frame, while it is decoded."""
    return weakref.ref(media.images()[0])


def fill() -> list[Media]:
    """Items that take all the room; what was decoded before is dropped."""
    others = [Media.image(noise(seed=seed)) for seed in (100, 101)]
    for other in others:
        other.load()
    gc.collect()
    return others


def alive() -> int:
    """Images of the size of `noise` in this process."""
    return sum(issubclass(type(one), Image) and one.size == (60, 40) for one in gc.get_objects())


def turned() -> bytes:
    import PIL.Image

    tag = PIL.Image.Exif()
    tag[0x0112] = 6
    return saved(noise(), "JPEG", exif=tag)


needs_av = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs PyAV")
needs_rdkit = pytest.mark.skipif(importlib.util.find_spec("rdkit") is None, reason="needs RDKit")
ITEMS = [
    pytest.param(lambda: Media.image(saved(noise(), "JPEG")), id="JPEG"),
    pytest.param(lambda: Media.image(turned()), id="turned_JPEG"),
    pytest.param(lambda: Media.image(saved(noise())), id="PNG"),
    pytest.param(lambda: Media.image(saved(images.palette(clear=True))), id="clear_palette"),
    pytest.param(lambda: Media.image(bytearray(saved(noise(), "WEBP"))), id="bytearray"),
    pytest.param(lambda: Media.image({"bytes": saved(noise(), "BMP")}), id="dict"),
    pytest.param(lambda: Media.image(noise()), id="PIL"),
    pytest.param(lambda: Media.image(np.asarray(noise())), id="array"),
    pytest.param(lambda: Media.video([noise(seed=n) for n in range(5)], fps=2), id="frames"),
    pytest.param(lambda: Media.video([saved(noise(seed=n), "JPEG") for n in range(2)]), id="encoded_frames"),
    pytest.param(lambda: Media.video(images.clip()), id="clip", marks=needs_av),
    pytest.param(lambda: Media.molecule("CCO", as_="drawing"), id="drawing", marks=needs_rdkit),
    pytest.param(lambda: pickle.loads(pickle.dumps(Media.image(saved(noise(), "JPEG")))), id="unpickled"),
]


@pytest.mark.parametrize("make", ITEMS)
def test_what_was_dropped_comes_back_as_it_was(make: Callable[[], Media]) -> None:
    media = make()
    before, alive = [np.asarray(frame).tolist() for frame in media.images()], decoded(media)
    kept = (media.digest, media.fps, media.load().text, media.data_uri())
    others = fill()
    assert alive() is None, "its frames are gone"
    media.check()
    assert media.fps == kept[1] and media.digest == kept[0] and hash(media) == hash(make())
    assert [np.asarray(frame).tolist() for frame in media.images()] == before
    assert (media.digest, media.fps, media.load().text, media.data_uri()) == kept
    assert media == make() == pickle.loads(pickle.dumps(media)) and len({media, *others}) == 3


def test_a_source_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(saved(noise(seed=1)))
    image = noise(seed=1)
    media = [Media.image("a.png", roots=[tmp_path]), Media.image(image), Media.image(np.asarray(noise(seed=1)))]
    digests = [one.digest for one in media]
    file.write_bytes(saved(noise(seed=2)))
    image.paste((0, 0, 0), (0, 0, 60, 40))
    fill()
    file.unlink()
    assert [np.asarray(one.images()[0]).tolist() for one in media] == [np.asarray(noise(seed=1)).tolist()] * 3
    assert [one.digest for one in media] == digests == [digests[0]] * 3


def test_those_used_last_stay() -> None:
    one, two, three = (Media.image(noise(seed=seed)) for seed in range(3))
    first, second = decoded(one), decoded(two)
    one.load()
    third = decoded(three)
    gc.collect()
    assert (first() is None, second() is None, third() is None) == (False, True, False)


def test_an_item_larger_than_all_room_is_kept_until_the_next() -> None:
    large = Media.video([noise(seed=n) for n in range(9)])
    alive = decoded(large)
    gc.collect()
    assert alive() is not None
    Media.image(noise()).load()
    gc.collect()
    assert alive() is None and len(large.images()) == 9


def test_items_that_are_gone_take_no_room() -> None:
    media = Media.image(noise())
    alive = decoded(media)
    for seed in range(1, 20):
        Media.image(noise(seed=seed)).load()
    gc.collect()
    assert alive() is not None


def test_a_batch_keeps_few_decoded_frames() -> None:
    batch = [Media.image(saved(noise(seed=seed))) for seed in range(12)]
    before, living = alive(), []

    def reply(request: Any) -> str:
        living.append(alive() - before)
        return "<think></think><answer>7</answer>"

    verdicts = Judge(Pointwise(), ScriptedEngine(reply))([Example([media, "?"], ["a"]) for media in batch])
    assert [verdict.scores for verdict in verdicts] == [(7.0,)] * 12 and max(living) <= 3


def test_threads_share_the_room() -> None:
    media = [Media.image(saved(noise(seed=seed))) for seed in range(8)]
    expected = [np.asarray(noise(seed=seed)).tolist() for seed in range(8)]
    wrong: list[int] = []

    def use(start: int) -> None:
        for step in range(24):
            place = (start + step) % 8
            if np.asarray(media[place].images()[0]).tolist() != expected[place] or media[place].digest in ("", None):
                wrong.append(place)

    threads = [threading.Thread(target=use, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_error_stays_the_same_error() -> None:
    media = Media.image(saved(noise())[:500])
    for _ in range(3):
        for use in (media.load, media.check, media.images, lambda: media.digest, lambda: media.fps, media.data_uri):
            with pytest.raises(MediaError, match="damaged or cut short"):
                use()
        fill()
