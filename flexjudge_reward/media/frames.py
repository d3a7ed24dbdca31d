"""Where decoded frames live: those used last, up to a number of bytes over the whole process; the others, encoded.

A batch may hold hundreds of photographs of 50 MB each once they are decoded. Frames that lost their place are decoded
again from the file they came from, or without loss from PNG where they came from pixels.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from flexjudge_reward.media import image

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_BYTES = 256 << 20


class Frames:
    """The frames of one media item. Thread-safe."""

    def __init__(self, decoded: tuple[Image, ...], file: bytes = b"") -> None:
        """`file` is what the only frame was decoded from; it is kept, and decoded again when needed."""
        self._decoded: tuple[Image, ...] | None = decoded
        self._encoded: tuple[bytes, ...] = (file,) if file else ()
        self._lock = threading.Lock()
        _room.take(self, decoded)

    @classmethod
    def of(cls, encoded: tuple[bytes, ...]) -> Frames:
        """Frames that are decoded once they are needed."""
        frames = cls(())
        frames._decoded, frames._encoded = None, encoded
        return frames

    def decoded(self) -> tuple[Image, ...]:
        """The frames; shared, so copy before drawing."""
        with self._lock:
            decoded = self._decoded
            if decoded is None:
                decoded = self._decoded = tuple(map(image.decode_again, self._encoded))
        _room.take(self, decoded)
        return decoded

    def encoded(self) -> tuple[bytes, ...]:
        """Each frame as an encoded image: the file it came from, or PNG."""
        with self._lock:
            return self._encode()

    def as_sent(self, most_pixels: int | None, jpeg: bool) -> list[bytes]:
        """Each frame as a server may get it, from its file or encoded once; empty where it must be made anew.

        The decoded frames are given up: who sends them does not look at them again.
        """
        with self._lock:
            if not jpeg and most_pixels is None:
                self._encode()
            sent = [image.as_sent(one, most_pixels, jpeg) for one in self._encoded]
            if not sent or None in sent:
                return []
            self._decoded = None
        _room.leave(self)
        return [one for one in sent if one is not None]

    def drop(self) -> None:
        """Gives the decoded frames up."""
        with self._lock:
            self._encode()
            self._decoded = None

    def _encode(self) -> tuple[bytes, ...]:
        if not self._encoded and self._decoded is not None:
            self._encoded = tuple(map(image.encode, self._decoded))
        return self._encoded


class _Room:
    """Which items are decoded, the least recently used first, and their bytes."""

    def __init__(self) -> None:
        self._sizes: dict[weakref.ref[Frames], int] = {}
        self._total = 0
        self._lock = threading.RLock()  # an item may be collected, and so leave, while its thread is in here

    def take(self, frames: Frames, decoded: tuple[Image, ...]) -> None:
        """Notes a use, and drops what has no place any more; the item that is used stays, however large."""
        if not decoded:
            return
        size = sum(4 * frame.width * frame.height for frame in decoded)  # Pillow takes four bytes for three
        with self._lock:
            me = weakref.ref(frames, self._leave)
            self._leave(me)
            self._sizes[me] = size
            self._total += size
            # Taken out here and dropped after the lock: to encode them takes long.
            last = []
            while self._total > MOST_BYTES and len(self._sizes) > 1:
                one = next(iter(self._sizes))
                self._leave(one)
                last.append(one())
        for old in last:
            if old is not None:
                old.drop()

    def leave(self, frames: Frames) -> None:
        """Notes that an item is decoded no more."""
        self._leave(weakref.ref(frames, self._leave))

    def _leave(self, one: weakref.ref[Frames]) -> None:
        with self._lock:
            self._total -= self._sizes.pop(one, 0)


_room = _Room()
