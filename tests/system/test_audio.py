"""Sounds: what is one sound, what a decoder may do, and what is refused."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flexjudge_reward import Media, MediaError, MissingExtra
from flexjudge_reward.media import audio
from flexjudge_reward.media.base import Limits
from support import sounds
from support.images import clip, refused, uri

needs_av = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs PyAV")
ZEROS = "c7f4692a71fc6ade2289624b2807e441543383442e5c99f441750fa775abbd9a"
WAV = sounds.wav(0.5)
BLOCKS = b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 10_001
PCM = np.frombuffer(WAV[44:], "<i2")
FLOATS = PCM / np.float32(32768)


class Decoder:
    """As torchcodec has it."""

    def __init__(self, seconds: float = 0.5, **held: Any) -> None:
        self.metadata = SimpleNamespace(duration_seconds_from_header=seconds)
        vars(self).update(held)

    def get_all_samples(self) -> Any:
        return SimpleNamespace(data=FLOATS[None], sample_rate=16_000)


# ---------------------------------------------------------------- one sound


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(WAV, id="bytes"),
        pytest.param(uri(WAV, "audio/wav"), id="data_uri"),
        pytest.param({"bytes": WAV, "path": "a.mp3"}, id="datasets_bytes"),
        pytest.param({"array": FLOATS, "sampling_rate": 16_000, "path": None}, id="datasets_array"),
        pytest.param(Decoder(), id="decoder"),
        pytest.param(Decoder(9e9, _hf_encoded={"bytes": WAV, "path": None}), id="decoder_of_datasets"),
        pytest.param((PCM, 16_000), id="whole_numbers"),
        pytest.param((PCM.astype(np.int32) * 65_536, np.int64(16_000)), id="32_bits"),
        pytest.param((PCM.astype(np.int64) << 48, 16_000), id="64_bits"),
        pytest.param([FLOATS.astype(np.float64).tolist(), 16_000.0], id="lists"),
        pytest.param((FLOATS[None], 16_000), id="channels_first"),
        pytest.param((FLOATS[:, None], 16_000), id="samples_first"),
        pytest.param(audio.uri(WAV[44:]), id="float_WAV", marks=needs_av),
        pytest.param(sounds.with_size(WAV, 2**32 - 1), id="WAV_of_a_stream", marks=needs_av),
        pytest.param((np.stack([FLOATS, FLOATS]), 16_000), id="stereo", marks=needs_av),
    ],
)
def test_the_same_samples_are_one_sound(source: Any, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(WAV)
    media, file = Media.audio(source), Media.audio("a.wav", [tmp_path])
    assert media == file and media.samples() == WAV[44:] and media.images() == ()
    assert pickle.loads(pickle.dumps(media)) == media and Media.audio(media.data_uri()) == media
    assert media.thumbnail().startswith(b"\xff\xd8") and len(media.thumbnail()) < 20_000


def test_the_identity_of_a_sound_is_the_same_in_every_process_and_version() -> None:
    assert Media.audio((np.zeros(400), 16_000)).digest == ZEROS
    assert Media.audio((np.zeros(400), 16_000)) != Media.audio((np.zeros(401), 16_000))


@needs_av
@pytest.mark.parametrize(
    ("container", "codec", "rate"), [pytest.param(*one, id=f"{one[0]}-{one[1]}") for one in sounds.CODED]
)
def test_every_format_is_decoded_to_the_same_tone(container: str, codec: str, rate: int) -> None:
    heard = audio.floats(Media.audio(sounds.coded(container, codec, rate)).samples())
    assert len(heard) == pytest.approx(16_000, abs=2_200)
    spectrum = np.abs(np.fft.rfft(heard))
    assert np.argmax(spectrum) * 16_000 / len(heard) == pytest.approx(440, abs=2)
    assert np.abs(heard).max() == pytest.approx(0.36, abs=0.08)


@needs_av
def test_channels_are_averaged() -> None:
    heard = audio.floats(Media.audio(sounds.coded("flac", "flac", 16_000, channels=2)).samples())
    alone = audio.floats(Media.audio(sounds.coded("flac", "flac", 16_000)).samples())
    assert np.abs(heard - alone).max() < 1e-3


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(b"RIFF", "not a sound in one of the formats WAV", id="four_bytes", marks=needs_av),
        pytest.param(b"", "the file is empty", id="empty"),
        pytest.param(5, "found int", id="number"),
        pytest.param("a.wav", "reading files is off", id="path_without_root"),
        pytest.param("https://example.com/a.wav", "URLs are not fetched", id="address"),
        pytest.param(FLOATS, "an array needs its rate", id="array_without_rate"),
        pytest.param((FLOATS, 16_000, 1), r"the pair \(array, rate\)", id="three_values"),
        pytest.param((FLOATS, 0), "the rate is a whole number", id="rate_0"),
        pytest.param((FLOATS, float("nan")), "the rate is a whole number", id="rate_nan"),
        pytest.param((FLOATS, 10**400), "the rate is a whole number", id="rate_of_400_digits"),
        pytest.param((FLOATS.astype(float) * 1e300, 16_000), "between -1 and 1; found inf", id="beyond_float32"),
        pytest.param((np.zeros(0), 44_100), "0 ms of sound|damaged", id="empty_array", marks=needs_av),
        pytest.param((FLOATS, "16000"), "the rate is a whole number", id="rate_text"),
        pytest.param({"array": FLOATS}, "the rate is a whole number", id="dict_without_rate"),
        pytest.param((FLOATS * 30_000, 16_000), "between -1 and 1; found", id="unscaled_floats"),
        pytest.param((FLOATS * np.float32("nan"), 16_000), "some are no numbers", id="nan"),
        pytest.param((np.zeros((20, 20)), 16_000), r"channels \(1 to 8\)", id="channels"),
        pytest.param((np.zeros((2, 2, 2)), 16_000), "one axis, or channels", id="axes"),
        pytest.param((np.zeros(900, bool), 16_000), "found bool", id="dtype"),
        pytest.param((PCM.tolist(), 16_000), "silence among whole numbers of int64", id="list_of_whole_numbers"),
        pytest.param({"array": PCM.astype(int), "sampling_rate": 16_000}, "silence among", id="16_bits_as_64"),
        pytest.param((PCM.astype(np.int32), 16_000), "silence among whole numbers of int32", id="16_bits_as_32"),
        pytest.param((-np.abs(PCM.astype(np.int32)), 16_000), "silence among", id="16_bits_below_zero"),
        pytest.param((np.stack([PCM.astype(int)] * 2), 44_100), "silence among", id="16_bits_of_two_channels"),
        pytest.param((np.zeros(100), 16_000), "6 ms of sound; at least 25 ms", id="short"),
        pytest.param((np.zeros(301 * 16_000, np.int8), 16_000), "more than the 300 s allowed", id="long"),
        pytest.param(Decoder(9e9), "more than the 300 s allowed", id="long_decoder"),
        pytest.param(audio.wav(b""), "0 ms of sound", id="no_samples"),
        pytest.param(sounds.with_size(WAV, 100), "3 ms of sound", id="WAV_of_a_lie", marks=needs_av),
        pytest.param(sounds.with_format(WAV, rate=1), "1 samples a second", id="rate_1", marks=needs_av),
        pytest.param(sounds.with_format(WAV, channels=9), "9 channels; 1 to 8", id="9_channels", marks=needs_av),
        pytest.param(WAV[:9_000], "cut short", id="cut_WAV", marks=needs_av),
        pytest.param(sounds.playlist("/etc/hostname"), "not a sound in one of", id="concat_script", marks=needs_av),
        pytest.param(BLOCKS, "more than 10,000 blocks", id="blocks", marks=needs_av),
    ],
)
def test_what_is_no_sound_is_refused_when_loaded(source: Any, message: str) -> None:
    refused(Media.audio(source), message)


@needs_av
@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: sounds.coded("mp3", "libmp3lame", 44_100)[:4_000], "cut short: 0.5 of 1.", id="MP3"),
        pytest.param(lambda: sounds.coded("flac", "flac", 48_000)[:20_000], "damaged or cut short", id="FLAC"),
        pytest.param(lambda: sounds.coded("aiff", "pcm_s16be", 16_000)[:20_000], "cut short: 0.6 of 1.0 s", id="AIFF"),
        pytest.param(lambda: sounds.coded("webm", "libopus", 48_000)[:5_000], "cut short", id="WebM"),
        pytest.param(clip, "this is a video: take its sound out first", id="video"),
        pytest.param(lambda: sounds.bomb(320), "320.0 s by its header", id="a_long_header"),
        pytest.param(lambda: sounds.lying_bomb(320), "longer than the 300 s allowed, whatever", id="a_lying_header"),
    ],
)
def test_a_sound_that_is_cut_lies_or_is_none_is_refused(make: Any, message: str) -> None:
    refused(Media.audio(make()), message)


@needs_av
@pytest.mark.parametrize(
    ("program", "message"),
    [
        pytest.param("import time; time.sleep(60)", "not decoded within 1 s", id="hangs"),
        pytest.param("import os, signal; os.kill(os.getpid(), signal.SIGPROF)", "of processor time", id="computes"),
        pytest.param("import os; os.abort()", "the audio crashed its decoder", id="crashes"),
        pytest.param("print('{\"samples\": 9}')", "cannot be read", id="sends_too_little"),
        pytest.param("print('{\"samples\": 1e999}')", "cannot be read", id="endless"),
        pytest.param("print('{\"samples\": 99999999999}')", "cannot be read", id="too_many"),
        pytest.param('print(\'{"samples": 400}\\n\' + "\\x7f" * 1600, end="")', "found 3.39", id="too_loud"),
    ],
)
def test_a_decoder_under_attack_fails_only_its_sound(
    program: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "child.py").write_text(program)
    monkeypatch.setattr("flexjudge_reward.media.decoder._CHILD", tmp_path / "child.py")
    refused(Media.audio(b"sound", limits=Limits(seconds=1 if "sleep" in program else 20)), message)


@pytest.mark.parametrize(
    ("missing", "source", "needs_it"),
    [
        pytest.param("av", WAV, False, id="plain_wav_needs_no_pyav"),
        pytest.param("av", b"fLaC", True, id="flac_needs_pyav"),
        pytest.param("numpy", WAV, True, id="any_sound_needs_numpy"),
    ],
)
def test_a_sound_needs_the_extra(missing: str, source: bytes, needs_it: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else name)
    if needs_it:
        with pytest.raises(MissingExtra, match=rf"{missing}.*pip install 'flexjudge-reward\[audio\]'"):
            Media.audio(source).load()
    else:
        assert Media.audio(source).is_usable


def test_a_decoder_that_fails_is_a_media_error() -> None:
    class Broken(Decoder):
        def get_all_samples(self) -> Any:
            raise RuntimeError("no stream")

    with pytest.raises(MediaError, match="Broken gives no samples: no stream"):
        Media.audio(Broken()).load()
