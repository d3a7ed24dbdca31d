"""TransformersEngine with a Qwen2.5-Omni of random weights: what it is shown reaches the model, whatever its batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flexjudge_reward import Engine, Media, TransformersEngine
from flexjudge_reward.engines.model import Source, supports, unheard
from support import omni, sounds
from support.engine_contract import SHORT, item, texts
from support.late import needs

needs("torch", "transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torchvision")
    made = tmp_path_factory.mktemp("omni")
    omni.hearing(made)
    return made


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TransformersEngine]:
    with TransformersEngine(str(folder), dtype="float32", device="cpu") as engine:
        yield engine


def clip(fps: float) -> Media:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 56, 56, 3), dtype=np.uint8)
    return Media.video(list(pixels), fps=fps)


def test_sounds_and_clips_reach_the_model_alone_and_in_a_batch(engine: Engine) -> None:
    low, high = Media.audio(sounds.wav(1.0, 200.0)), Media.audio(sounds.wav(2.5, 3_000.0))
    image = Media.image(np.random.default_rng(2).integers(0, 256, (56, 56, 3), dtype=np.uint8))
    shown = [(low,), (high,), (low, high), (high, low), (image, low), (clip(2.0),), (clip(8.0),), (clip(8.0), low), ()]
    requests = [item("a", *media, sampling=SHORT) for media in shown]
    together = engine.generate(requests)
    assert texts(together) == [texts(engine.generate([request]))[0] for request in requests]
    assert len(set(texts(together))) == len(shown)  # pitch, order and frame rate matter
    tokens = [reply.prompt_tokens for reply in together]
    bare = tokens[-1]
    assert tokens[0] > bare + 25 and tokens[1] > bare + 62 and tokens[5] == tokens[6] == bare + 10  # 25 a second


def test_what_is_longer_than_the_model_hears_fails_alone(engine: Engine, folder: Path) -> None:
    long, short = Media.audio(sounds.wav(omni.LONGEST_S + 0.1)), Media.audio(sounds.wav(omni.LONGEST_S))
    first, second = engine.generate([item("a", long, sampling=SHORT), item("a", short, sampling=SHORT)])
    assert first.failure is not None and first.failure.kind == "media" and second.failure is None
    assert "a sound of 4.1 s is longer than the 4 s that" in first.failure.detail
    source = Source.find(str(folder), None, False)
    assert unheard(source, item("a", long).prompt) == first.failure.detail and not unheard(source, item("a").prompt)


def test_only_a_model_with_an_ear_hears(engine: Engine) -> None:
    assert [engine.supports(kind) for kind in ("image", "video", "audio")] == [True, True, True]
    nano = TransformersEngine("nano")
    assert nano.supports("image") and not nano.supports("audio")
    assert not supports(Source.find("nano", None, False), "audio")
