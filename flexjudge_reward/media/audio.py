"""Audio: speech, music or any other sound, from an encoded file or an array to 16-bit samples of one channel at 16 kHz.

These samples are what is hashed, kept, sent and judged, so that the same sound has one identity in whatever file. An
encoded file is decoded in a child process (`decoder.py`); a WAV file that already has this form is read as it is, and
gives the same samples. Promised: nothing is cut. What is longer than `limits.duration` is refused, and an engine
refuses what is longer than its model hears.
"""

from __future__ import annotations

import base64
import io
import struct
import wave
from collections.abc import Mapping
from numbers import Real
from typing import IO, TYPE_CHECKING, Any

from flexjudge_reward.errors import MediaError, need
from flexjudge_reward.media.decoder import decoded
from flexjudge_reward.media.modality import Limits, Loaded, Modality, Roots
from flexjudge_reward.media.source import encoded_bytes, numbers

if TYPE_CHECKING:
    from PIL.Image import Image

RATE = 16_000  # samples a second
_BYTES = 2  # of a sample
_SHORTEST_S = 0.025  # a window of the models' ears
_RATES, _MOST_CHANNELS = (4_000, 384_000), 8  # of an array, as of a file (`av_worker.py`)
_LOUDEST = 4.0  # full scale is 1; encoders overshoot a little
_HEADER = 44  # bytes in front of the samples of a plain WAV file
_BACK, _INK, _SIZE = (245, 246, 248), (36, 88, 179), (320, 80)  # of a waveform


class AudioModality(Modality):
    """One sound."""

    name, channel, is_file = "audio", True, True

    def load(self, source: object, options: Mapping[str, Any], roots: Roots, limits: Limits) -> Loaded:
        """The samples. Raises MediaError; and MissingExtra: numpy for any sound, PyAV for most files."""
        need("numpy", "audio")
        given = _array(source, limits)
        if given is not None:
            samples = _from_array(*given, limits)
        else:
            data = encoded_bytes(source, roots, limits)
            plain = _plain(data)
            samples = _decoded(data, limits) if plain is None else plain
        _check_length(seconds(samples), limits)
        if (found := seconds(samples)) < _SHORTEST_S:
            raise MediaError(f"{1000 * found:.0f} ms of sound; at least {1000 * _SHORTEST_S:g} ms are judged")
        return Loaded(samples=samples)


def floats(samples: bytes) -> Any:
    """The samples as numpy float32 in [-1, 1), as models take them."""
    import numpy as np

    return np.frombuffer(samples, "<i2").astype(np.float32) / 32768


def seconds(samples: bytes) -> float:
    """How long they sound."""
    return len(samples) / _BYTES / RATE


def wav(samples: bytes, channels: int = 1, rate: int = RATE) -> bytes:
    """A WAV file of 16-bit samples; equal samples give equal bytes."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(_BYTES)
        file.setframerate(rate)
        file.writeframes(samples)
    return out.getvalue()


def uri(samples: bytes) -> str:
    """A data URI of a WAV file with the samples as floats of 32 bits, equal to `floats`."""
    body = floats(samples).tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, RATE, 4 * RATE, 4, 32)
    head = struct.pack("<4sI4s", b"RIFF", 36 + len(body), b"WAVE") + form + struct.pack("<4sI", b"data", len(body))
    return f"data:audio/wav;base64,{base64.b64encode(head + body).decode()}"


def waveform(samples: bytes) -> Image:
    """A small drawing: from the lowest to the highest sample of each column of pixels."""
    import numpy as np
    import PIL.Image
    import PIL.ImageDraw

    (width, height), values = _SIZE, np.frombuffer(samples, "<i2")
    drawn = PIL.Image.new("RGB", _SIZE, _BACK)
    pen = PIL.ImageDraw.Draw(drawn)
    for column, part in enumerate(np.array_split(values, width)):
        if len(part):
            high, low = (round((height - 1) * (1 - value / 32768) / 2) for value in (int(part.max()), int(part.min())))
            pen.line((column, high, column, low), _INK)
    return drawn


def _array(source: object, limits: Limits) -> tuple[Any, Any] | None:
    """An array and its rate: a pair, what `datasets` decoded, or a decoder of torchcodec; None for a file."""
    if isinstance(source, Mapping) and source.get("array") is not None:
        return source["array"], source.get("sampling_rate")
    if isinstance(source, tuple | list):
        if len(source) != 2:
            raise MediaError(f"a sound as an array is the pair (array, rate), found {len(source)} values")
        return source[0], source[1]
    held = getattr(source, "_hf_encoded", None)  # `datasets` keeps the file beside its decoder: it is read as any other
    if hasattr(source, "get_all_samples") and not (isinstance(held, Mapping) and held.get("bytes") is not None):
        return _from_decoder(source, limits)
    if hasattr(source, "__array__"):
        raise MediaError("an array needs its rate: give the pair (array, samples per second)")
    return None


def _from_decoder(decoder: Any, limits: Limits) -> tuple[Any, Any]:
    try:
        _check_length(float(getattr(decoder.metadata, "duration_seconds_from_header", None) or 0), limits)
        found = decoder.get_all_samples()
        return found.data, found.sample_rate
    except MediaError:
        raise
    except Exception as error:  # whatever the foreign type raises
        raise MediaError(f"{type(decoder).__name__} gives no samples: {str(error)[:200]}") from None


def _from_array(array: object, rate: object, limits: Limits) -> bytes:
    """Whole numbers span their type; floats are in [-1, 1]. Channels are the shorter axis."""
    import numpy as np

    exact: Any = rate  # a whole number of many digits is no float
    if not isinstance(rate, Real) or not _RATES[0] <= exact <= _RATES[1] or exact % 1:
        raise MediaError(f"the rate is a whole number of samples a second, 4,000 to 384,000, found {rate!r:.40}")
    values = numbers(array)
    if values.ndim == 2 and values.shape[0] > values.shape[1]:
        values = values.T  # samples first
    if values.ndim not in (1, 2) or (values.ndim == 2 and not 1 <= values.shape[0] <= _MOST_CHANNELS):
        raise MediaError(f"a sound has one axis, or channels (1 to 8) and samples, found the shape {values.shape}")
    _check_length(values.shape[-1] / float(rate), limits)
    if values.dtype.kind == "u" and values.dtype.itemsize == 1:
        values = (values.astype(np.float32) - 128) / 128
    elif values.dtype.kind == "i":
        values = _scaled(values)
    elif values.dtype.kind != "f":
        raise MediaError(f"samples are floats, signed whole numbers or uint8, found {values.dtype}")
    with np.errstate(over="ignore"):  # it is infinite then
        pcm = _pcm(values.astype(np.float32))
    if rate == RATE and (values.ndim == 1 or values.shape[0] == 1):
        return pcm
    channels = 1 if values.ndim == 1 else values.shape[0]
    frames = np.frombuffer(pcm, "<i2").reshape(channels, -1).T.tobytes()
    return _decoded(wav(frames, channels, int(float(rate))), limits)


def _scaled(values: Any) -> Any:
    """Signed whole numbers as floats. Raises MediaError: 16-bit samples in a wider type, which would be silence."""
    import numpy as np

    full, loudest = -int(np.iinfo(values.dtype).min), max(int(values.max(initial=0)), -int(values.min(initial=0)))
    if 0 < loudest < full >> 15:
        raise MediaError(
            f"the loudest sample, {loudest:,}, is silence among whole numbers of {values.dtype}, such as a list has:"
            " give samples of 16 bits as int16, or floats"
        )
    return values.astype(np.float32) / full


def _decoded(data: bytes, limits: Limits) -> bytes:
    def read(header: Mapping[str, Any], output: IO[bytes]) -> bytes:
        import numpy as np

        count = int(header["samples"])
        if not 0 <= count <= limits.duration * RATE:
            raise ValueError(header)
        values = np.empty(count, "<f4")
        if output.readinto(values.view(np.uint8)) != values.nbytes:  # type: ignore[attr-defined]
            raise ValueError(header)
        return _pcm(values)

    return decoded("audio", data, limits.seconds, (limits.duration * RATE,), read)


def _pcm(values: Any) -> bytes:
    """Floats, which may be changed, as 16-bit samples. Raises MediaError: no finite numbers, or far beyond [-1, 1]."""
    import numpy as np

    loudest = max(float(values.max(initial=0)), -float(values.min(initial=0)))  # NaN for any NaN
    if not loudest <= _LOUDEST:
        found = f"found {loudest:g}" if loudest > _LOUDEST else "some are no numbers"
        raise MediaError(f"samples as floats are between -1 and 1; {found}")
    np.multiply(values, 32768, out=values)
    np.rint(values, out=values)
    return bytes(np.clip(values, -32768, 32767, out=values).astype("<i2").tobytes())


def _plain(data: bytes) -> bytes | None:
    """The samples of a WAV file as `wav` writes it; None for any other file."""
    head, samples = data[:_HEADER], data[_HEADER:]
    size = len(samples).to_bytes(4, "little"), (len(samples) + _HEADER - 8).to_bytes(4, "little")
    empty = wav(b"")
    same = head[40:] == size[0] and head[4:8] == size[1] and head[:4] + head[8:40] == empty[:4] + empty[8:40]
    return samples if same and len(samples) % _BYTES == 0 else None


def _check_length(found: float, limits: Limits) -> None:
    if found > limits.duration:
        raise MediaError(f"{found:,.1f} s are more than the {limits.duration} s allowed: cut it")
