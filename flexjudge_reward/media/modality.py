"""What a modality is: how its sources are read, and as what a judge sees them.

A modality that maps onto images, videos and text is one file: a subclass of `Modality` with a `name` and a `load`, made
known with `register` (`base.py`). It then works in `Media.of`, in the rows of files and trainers, in the cache and with
every engine. A new channel (something a model reads beside text, images and videos) also needs an encoding in each
engine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from PIL.Image import Image

Roots = Sequence[str | os.PathLike[str]]  # folders below which files may be read; none of them means no file at all


@dataclass(frozen=True)
class Limits:
    """What one media item may cost. A video may have four times as many pixels over all kept frames."""

    bytes: int = 32_000_000  # of the encoded file
    pixels: int = 16_000_000  # of an image
    frames: int = 16  # a longer video is sampled to this number, evenly
    seconds: int = 20  # for decoding one video, sound or molecule; a molecule has a tenth of that as processor time,
    # or half of it where it is placed in space
    duration: int = 300  # seconds of a sound


@dataclass(frozen=True)
class Loaded:
    """The content of a media item, once it is read."""

    frames: tuple[Image, ...] = ()  # 8-bit RGB
    fps: float = 0.0  # frames per second of a video; 0 for images
    text: str = ""
    lossy: bool = False  # whether it was JPEG
    file: bytes = b""  # of a lone image: what the frame was decoded from, and can be again
    samples: bytes = b""  # of a sound: 16-bit PCM, little-endian, one channel of 16 kHz
    graph: bytes = b""  # of a molecule as tokens: its atoms, bonds and positions (molecule_worker.py)


class Modality:
    """One kind of media."""

    name: ClassVar[str]
    """In `Media.kind`, and the key of a part in rows and chat messages: {"molecule": "CCO"}."""
    channel: ClassVar[bool] = False
    """Whether engines show it to the model as it is. Others are shown as their frames (one video if they have a frame
    rate, else images), then their text."""
    is_file: ClassVar[bool] = False
    """Whether a text in a row is the path of a file below the media root, rather than the source itself."""
    options: ClassVar[Mapping[str, Any]] = {}
    """The options of a source and their defaults, such as {"as_": "text"}; a row gives them beside the source."""

    def check(self, options: Mapping[str, Any]) -> None:
        """Raises ConfigError: an option has a value that no source can have."""

    def load(self, source: object, options: Mapping[str, Any], roots: Roots, limits: Limits) -> Loaded:
        """The content of `source`. Raises MediaError: missing, damaged, too large or not allowed."""
        raise NotImplementedError
