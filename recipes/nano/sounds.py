"""The world of sounds: its scenes as recordings. What is asked about one, and every score, is in `world.py`.

A recording has four places, one after the other, of 0.32 s each; at a place is a sound of one of five pitches and four
timbres, or silence. Onset, length, loudness, pitch and ground noise vary a little. It lasts 1.28 s: 32 tokens of a
Qwen2.5-Omni, eight for a place.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flexjudge_recipes.nano.world import SOUNDS as WORLD
from flexjudge_recipes.nano.world import Scene

if TYPE_CHECKING:
    import numpy as np

RATE = 16_000
PLACE = 5120
"""Samples of one place."""
HERTZ = dict(zip(WORLD.firsts, (200, 430, 930, 2000, 4300), strict=True))
_FADE = 320  # samples, 20 ms
_PULSES = 16  # a second; a rattle is a harsh tone that is struck so often


def play(of: Scene, rng: random.Random) -> np.ndarray:
    """The recording: int16, mono, 16 kHz, 1.28 s."""
    contents: list[tuple[float, str] | None] = []
    for cell in of.cells:
        pitch, _, timbre = cell.partition(" ")
        contents.append((HERTZ[pitch] * 2 ** rng.uniform(-0.12, 0.12), timbre) if timbre else None)
    return synthesised(contents, rng)


def synthesised(contents: Sequence[tuple[float, str] | None], rng: random.Random) -> np.ndarray:
    """A recording of a pitch in hertz and a timbre at each place, or of None for silence."""
    import numpy as np

    noise = np.random.default_rng(rng.getrandbits(32))
    recording = noise.normal(0, 10 ** rng.uniform(-4, -2.5), 4 * PLACE)
    for index, content in enumerate(contents):
        if content is not None:
            length = int(PLACE * rng.uniform(0.6, 0.9))
            start = index * PLACE + int((PLACE - length) * rng.uniform(0.2, 0.8))
            wave = sound(content[1], content[0], length, noise)
            recording[start : start + length] += rng.uniform(0.25, 0.7) * wave
    return (np.clip(recording, -1, 1) * 32767).astype(np.int16)


def sound(timbre: str, hertz: float, length: int, noise: np.random.Generator) -> np.ndarray:
    """One sound of `length` samples in -1..1, with soft edges."""
    import numpy as np

    time = np.arange(length) / RATE
    if timbre == "rustle":  # a band of noise, about a third of an octave to each side
        spectrum = np.fft.rfft(noise.normal(size=length))
        octaves = np.log2(np.maximum(np.fft.rfftfreq(length, 1 / RATE), 1) / hertz)
        wave = np.fft.irfft(spectrum * np.exp(-0.5 * (octaves / 0.3) ** 2), length)
        wave /= np.abs(wave).max() + 1e-9
    elif timbre == "chirp":  # glides from three quarters of the pitch to one and a half
        wave = np.sin(2 * np.pi * hertz * (0.75 * time + 0.375 * time**2 / time[-1]))
    else:
        wave = np.sin(2 * np.pi * hertz * time)
        if timbre == "rattle":
            wave = np.clip(2 * wave, -1, 1) * (np.sin(2 * np.pi * _PULSES * time) > 0)
    edge = np.minimum(np.arange(length), np.arange(length)[::-1]) / _FADE
    return np.minimum(1, edge) * wave
