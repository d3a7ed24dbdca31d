"""Media: one image, video, audio clip or molecule, given in any form and seen in one.

A `Media` is a value. It is cheap to build and read once, at first use; it then has 8-bit RGB frames, text or samples of
a sound, and two are equal when these are. Frames that were not used for long are kept encoded (`frames.py`). Every
problem with it is a `MediaError` from `load()` (or from what needs the content), never from building one, so that a bad
row fails alone.

Promised: no URL is fetched, no file outside the given roots is opened, and size in bytes, pixels and frames is checked
before anything is decoded. How a model wants its images is the engines' business.
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flexjudge_reward.errors import ConfigError, MediaError, printable
from flexjudge_reward.media import audio, image
from flexjudge_reward.media.audio import AudioModality
from flexjudge_reward.media.frames import Frames
from flexjudge_reward.media.image import ImageFormat, ImageModality
from flexjudge_reward.media.modality import Limits, Loaded, Modality, Roots
from flexjudge_reward.media.molecule import TOKENS, Form, MoleculeModality
from flexjudge_reward.media.source import described, hash_of_pixels
from flexjudge_reward.media.video import VideoModality

if TYPE_CHECKING:
    from PIL.Image import Image

KINDS: dict[str, Modality] = {
    modality.name: modality for modality in (ImageModality(), VideoModality(), AudioModality(), MoleculeModality())
}
"""Every modality by its name."""
_PART_KEYS = {"text", "type", "path", "url", "role", "content"}  # what else a part or a message may have as a key
_ARGUMENTS = {"kind", "source", "roots", "limits"}  # of `Media`


def register(modality: Modality) -> None:
    """Makes a modality of your own known to `Media.of` and to the readers of rows; the same class again replaces it.

    Raises ConfigError: no instance of a `Modality`, or its name or an option has another meaning already.
    """
    if not isinstance(modality, Modality):
        raise ConfigError(f"register() takes an instance of a Modality, found {modality!r}")
    known = KINDS.get(modality.name)
    # By name, because a notebook's cell that runs twice defines the class twice.
    again = known is None or repr(type(known)) == repr(type(modality))
    if modality.name in _PART_KEYS or not again:
        raise ConfigError(f"the name {modality.name!r} of a modality has another meaning already: use another name")
    if taken := sorted(set(modality.options) & {*_PART_KEYS, *_ARGUMENTS, *KINDS, modality.name}):
        raise ConfigError(f"the option {taken[0]!r} of {modality.name} has another meaning already: use another name")
    KINDS[modality.name] = modality


class Media:
    """One media item; equal to another when kind and loaded content are equal.

    It may be shared by threads and processes: it pickles as lossless images and text, never as a path or an open file.
    """

    _outcome: Loaded | str | None = None  # the content without its frames, or the text of the error
    _frames: Frames
    _digest: str
    _fetch: Callable[[], bytes] | None = None  # of an image that was not read yet: its file
    _file: bytes = b""  # of an image that was not decoded yet
    _hash: Callable[[], str] | None = None  # of an image that was not read yet: that of its pixels, if it has any
    _source_name: str = ""
    file_name: bytes | None = None
    """What names the file behind it, and how that is read, once `name_file` was called; None if there is none."""

    def __init__(
        self, kind: str, source: object, roots: Roots = (), limits: Limits = Limits(), **options: object
    ) -> None:
        """Use `image`, `video`, `audio`, `molecule` or `of`."""
        if isinstance(roots, str | os.PathLike):
            raise ConfigError(f"roots must be a list of folders, found {roots!r}; write [{str(roots)!r}]")
        if kind not in KINDS:
            raise ConfigError(f"there is no modality {kind!r}; there are {', '.join(KINDS)}")
        if unknown := sorted(set(options) - set(KINDS[kind].options)):
            known = ", ".join(KINDS[kind].options) or "none"
            raise ConfigError(f"{kind} has no option {unknown[0]!r}; its options are: {known}")
        self.kind, self._name, self._limits, self._lock = kind, described(source), limits, threading.Lock()
        given = {**KINDS[kind].options, **options}
        KINDS[kind].check(given)
        self.needs = TOKENS if given.get("as_") == "tokens" else kind
        """What an engine must support to show it to a model: its kind, or "molecule tokens"."""
        self._read: Callable[[], Loaded] = partial(KINDS[kind].load, source, given, tuple(roots), limits)
        if kind == "image":
            self._fetch = partial(image.file_of, source, tuple(roots), limits)
            self._hash = partial(hash_of_pixels, source)

    @classmethod
    def of(cls, kind: str, source: object, roots: Roots = (), **options: object) -> Media:
        """One item of any modality, such as `Media.of("molecule", "CCO", as_="drawing")`. Raises ConfigError."""
        return cls(kind, source, roots, Limits(), **options)

    @classmethod
    def image(cls, source: object, roots: Roots = (), limits: Limits = Limits()) -> Media:
        """One image; of an animated one, the first frame.

        Args:
            source: a PIL image, an array (see `image.from_array`), the bytes of a file, a base64 data URI, a path below
                one of `roots`, or a dict with `bytes` or `path` as `datasets` has it. PIL images and arrays are read at
                first use: do not change them before.
            roots: the folders below which files may be read; none means no file.
        """
        return cls("image", source, roots, limits)

    @classmethod
    def video(cls, source: object, fps: float = 1.0, roots: Roots = (), limits: Limits = Limits()) -> Media:
        """One video, sampled evenly to at most `limits.frames` frames. Its sound is not heard: show it as `audio`, too.

        Args:
            source: a list of frames (each as for `image`, all of one size), an array with the frames first, or an
                encoded video as bytes, data URI, path or dict; decoding needs `pip install 'flexjudge-reward[video]'`.
            fps: frames per second of a list or array; an encoded video has its own.
        """
        return cls("video", source, roots, limits, fps=fps)

    @classmethod
    def audio(cls, source: object, roots: Roots = (), limits: Limits = Limits()) -> Media:
        """One sound: speech, music or any other. A judge hears one channel of 16 kHz.

        Args:
            source: the bytes of a file, a base64 data URI, a path below one of `roots`, a pair (array, samples per
                second), or what `datasets` gives: a dict with `bytes`, `path` or `array`, or a decoder. Files need
                `pip install 'flexjudge-reward[audio]'`, unless they are WAV with 16 bits and one channel of 16 kHz.
        """
        return cls("audio", source, roots, limits)

    @classmethod
    def molecule(cls, smiles: str, as_: Form = "text") -> Media:
        """One molecule. A judge reads RDKit's canonical SMILES of it and descriptors: weight, logP, rings and so on.

        Needs `pip install 'flexjudge-reward[molecules]'`.

        Args:
            smiles: at most 500 characters, and 150 atoms that are not hydrogen; no name, extension or reaction.
            as_: "drawing" puts a drawing of the structure before the text, for a judge that sees images. "tokens" shows
                no text: a `flexjudge_mol` model reads the graph and one conformer of it (`engines/molecules/`).
        """
        return cls("molecule", smiles, as_=as_)

    @classmethod
    def recorded(
        cls, kind: str, digest: str, folder: Path, frames: int, fps: float = 0.0, text: str = "", graph: str = ""
    ) -> Media:
        """What a record kept whole: FOLDER/DIGEST-0.png and so on, or DIGEST.wav, equal to what was judged.

        Loading it raises MediaError where a file is missing or is not what was judged.
        """
        media = cls(kind, digest)
        media._fetch = media._hash = None
        media._read = partial(_of_record, kind, digest, folder, frames, fps, text, graph.encode())
        media.needs = TOKENS if graph else kind
        return media

    def load(self) -> Loaded:
        """Reads and decodes, at the first call; later calls return the same, or raise the same error.

        Raises MediaError: missing, damaged, too large, not allowed, or of a kind that cannot be judged.
        """
        return replace(self._read_once(), frames=self._frames.decoded())

    def check(self) -> None:
        """Reads it, at the first call, without keeping more of it in memory than is needed. Raises as `load`."""
        self._read_once()

    def name_file(self) -> bytes | None:
        """`file_name`, for a lone image that comes from a file and was not read yet. Decodes nothing."""
        with self._lock:
            fetch, self._fetch = self._fetch, None
            if fetch is not None:
                with suppress(MediaError):  # `check` says it
                    self._file = fetch()
                if self._file:
                    self._read = partial(KINDS["image"].load, self._file, {}, (), self._limits)
                    self.file_name = image.name_of(self._file, self._limits)
            return self.file_name

    def source_name(self) -> str:
        """The same for all items of one source: of images known without decoding them, of others their digest.

        An image that was read before is known by its digest, too. Raises MediaError.
        """
        if named := self.name_file():
            return named.hex()
        with self._lock:
            if self._hash is not None:
                self._source_name, self._hash = self._hash(), None
        return self._source_name or self.digest

    def recognise(self, digest: str) -> None:
        """Takes the digest that a file of this name had when it was last read; it is decoded only if it is shown."""
        with self._lock:
            if self._outcome is None and self._file:
                self._digest, self._frames = digest, Frames.of((self._file,))
                self._outcome = Loaded(lossy=image.is_jpeg(self._file))
                del self._read
                self._file = b""

    def as_judge_input(self) -> tuple[str | Media, ...]:
        """What a judge is shown: image, video, sound and molecule tokens themselves; of others frames, then text.

        Raises MediaError.
        """
        if self.kind in KINDS and KINDS[self.kind].channel:
            return (self,)
        loaded = self.load()
        if loaded.graph:
            return (self,)
        if loaded.fps:
            shown = [Media.video(list(loaded.frames), loaded.fps, limits=self._limits)]
        else:
            shown = [Media.image(frame) for frame in loaded.frames]
        return (*shown, loaded.text) if loaded.text else tuple(shown)

    def images(self) -> tuple[Image, ...]:
        """The RGB frames, one for an image or a drawn molecule; shared, so copy before drawing. Raises MediaError."""
        return self.load().frames

    def file(self) -> bytes:
        """The first frame as an encoded image: the file it came from, or PNG. Raises MediaError."""
        self._read_once()
        return self._frames.encoded()[0]

    def samples(self) -> bytes:
        """Of a sound: 16-bit PCM, little-endian, one channel of 16 kHz; else empty. Raises MediaError."""
        return self._read_once().samples

    def graph(self) -> bytes:
        """Of a molecule as tokens: its atoms, bonds and positions as JSON; else empty. Raises MediaError."""
        return self._read_once().graph

    def thumbnail(self) -> bytes:
        """A small JPEG of the frames, or the waveform of a sound. Raises MediaError."""
        loaded = self.load()
        return image.thumbnail((audio.waveform(loaded.samples),) if loaded.samples else loaded.frames)

    @property
    def is_read(self) -> bool:
        """Whether it was read already, or could not be."""
        return self._outcome is not None

    @property
    def is_usable(self) -> bool:
        """Whether it can be read."""
        try:
            self.check()
        except MediaError:
            return False
        return True

    @property
    def fps(self) -> float:
        """Frames per second of `images()`; 0 for an image. Raises MediaError."""
        return self._read_once().fps

    @property
    def digest(self) -> str:
        """SHA-256 over kind, text, samples, graph, frame rate, and number, mode, size and pixels of the frames, in hex.

        The sizes go before the pixels: 30 x 150 and 150 x 30 of the same bytes differ. Raises MediaError.
        """
        self._read_once()
        return self._digest

    def _read_once(self) -> Loaded:
        """All but the frames."""
        with self._lock:
            if self._outcome is None:
                try:
                    loaded = self._read()
                    self._digest, self._frames = _digest(self.kind, loaded), Frames(loaded.frames, loaded.file)
                    self._outcome = replace(loaded, frames=(), file=b"")
                except MediaError as error:
                    self._outcome = printable(f"{self.kind} ({self._name}): {error}")
                del self._read  # and with it the source
                self._fetch, self._hash, self._file = None, None, b""
            if isinstance(self._outcome, str):
                raise MediaError(self._outcome)
            return self._outcome

    def data_uri(self, max_pixels: int | None = None, image_format: ImageFormat = "auto") -> str:
        """The content as a data URI for a server: a sound as a WAV file, a video as frames, joined by commas.

        The type of a video is `video/jpeg`: so vLLM's server names a list of frames, whatever their encoding.
        Raises MediaError.

        Args:
            max_pixels: larger images and frames are made smaller.
            image_format: "auto" is PNG, without loss, and JPEG for what was JPEG: its own file, where that was upright.
        """
        loaded = self._read_once()
        if loaded.samples:
            return f"data:audio/wav;base64,{base64.b64encode(audio.wav(loaded.samples)).decode()}"
        jpeg = image_format == "jpeg" or (image_format == "auto" and loaded.lossy)
        kind = "video/jpeg" if self.kind != "image" else "image/jpeg" if jpeg else "image/png"
        frames = self._frames.as_sent(max_pixels, jpeg)
        if not frames:
            frames = [image.encode(image.shrunk(frame, max_pixels), jpeg) for frame in self._frames.decoded()]
        return f"data:{kind};base64,{','.join(base64.b64encode(frame).decode() for frame in frames)}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Media):
            return NotImplemented
        return self is other or (self.kind == other.kind and self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<Media {self.kind} ({self._name})>"

    def __copy__(self) -> Media:
        return self

    def __deepcopy__(self, memo: object) -> Media:
        return self

    def __getstate__(self) -> dict[str, object]:
        state: dict[str, object] = {
            "kind": self.kind,
            "needs": self.needs,
            "_name": self._name,
            "_limits": self._limits,
        }
        try:
            # As PNG, because another machine's decoder may make other pixels of a JPEG file.
            pngs = tuple(map(image.encode, self.load().frames))
            return {**state, "_outcome": self._outcome, "_digest": self._digest, "_frames": pngs}
        except MediaError as error:
            return {**state, "_outcome": str(error)}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()
        if "_frames" in state:
            self._frames = Frames.of(state["_frames"])  # type: ignore[arg-type]


def _of_record(kind: str, digest: str, folder: Path, frames: int, fps: float, text: str, graph: bytes) -> Loaded:
    files = [Media.image(Path(f"{digest}-{number}.png"), [folder]) for number in range(frames)]
    samples = Media.audio(Path(f"{digest}.wav"), [folder]).samples() if kind == "audio" else b""
    loaded = Loaded(tuple(file.images()[0] for file in files), fps, text, samples=samples, graph=graph)
    if _digest(kind, loaded) != digest:
        raise MediaError("the files that the record kept of it are not what was judged")
    return loaded


def _digest(kind: str, loaded: Loaded) -> str:
    hashed = hashlib.sha256(f"{kind}\n{[loaded.text, float(loaded.fps), len(loaded.frames)]!r}\n".encode())
    hashed.update(loaded.samples + loaded.graph)
    for frame in loaded.frames:
        hashed.update(f"{frame.mode} {frame.width} {frame.height}\n".encode())
        hashed.update(frame.tobytes())
    return hashed.hexdigest()
