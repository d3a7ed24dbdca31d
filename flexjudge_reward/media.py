"""Media: one image, video, audio clip or molecule (first version, being completed)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

MediaKind = Literal["image", "video", "audio", "molecule"]


@dataclass(frozen=True, eq=False)
class Media:
    """One media item; equal when kind and decoded content are equal."""

    kind: MediaKind
    _payload: Any

    @classmethod
    def image(cls, picture: Image) -> Media:
        return cls("image", picture)

    @classmethod
    def video(cls, frames: Sequence[Image], fps: float = 1.0) -> Media:
        return cls("video", tuple(frames))

    def load(self) -> None:
        """Reads and decodes now; raises MediaError."""
        self.images()

    def images(self) -> tuple[Image, ...]:
        """The decoded RGB frames: one for an image. Raises MediaError."""
        payload = self._payload if self.kind == "video" else (self._payload,)
        return tuple(frame.convert("RGB") for frame in payload)

    @property
    def digest(self) -> str:
        h = hashlib.sha256(self.kind.encode())
        for frame in self.images():
            h.update(f"{frame.mode} {frame.size}".encode() + frame.tobytes())
        return h.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Media) and self.kind == other.kind and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)
