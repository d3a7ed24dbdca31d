"""Media of a page as small pictures and short sounds in data URIs.

Promised: only files below a file's own folder of media, or below the given media root, are opened, only JPEG that this
package made, or what `Media` accepts, gets onto the page, and all pictures together, and all sounds, stay below
`MOST_BYTES` each.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

from flexjudge_reward.errors import MediaError, MissingExtra
from flexjudge_reward.media import audio, files
from flexjudge_reward.media.base import Media
from flexjudge_reward.report.lines import Seen

MOST_BYTES = 12_000_000  # of all data URIs of pictures of a page, and of all of sounds
_LARGEST = 200_000  # bytes of a thumbnail's file; `media.image.thumbnail` makes less
_LONGEST_S = 10.0  # of a sound
_MOST_DRAWN = 1_000  # molecules, which take a few milliseconds each
_JPEG = b"\xff\xd8\xff"
DIGEST = re.compile("[0-9a-f]{64}")
_ENDING = re.compile(r"(\.rank\d+)?(\.skipped)?\.[^.]+(\.partial)?$")  # of judgements.rank3.jsonl, pairs.jsonl.partial


class Pictures:
    """The pictures and sounds of one page. A media item has a name there: its place in `uris`, and in `sounds`."""

    def __init__(self, media_root: Path | None = None) -> None:
        self.uris: list[str] = []
        self.sounds: list[str] = []
        self.left_out = 0  # there was no room for them
        self._names: dict[tuple[Seen, Path], tuple[int | None, int | None]] = {}
        self._root, self._drawn = media_root, 0
        self._bytes = {id(self.uris): 0, id(self.sounds): 0}

    def name(self, seen: Seen, file: Path) -> tuple[int | None, int | None]:
        """The places of a media item of `file` in `uris` and in `sounds`; None if it has no picture or no sound."""
        folder = file.with_name(_ENDING.sub("", file.name) + ".media")
        key = seen, folder
        if key not in self._names:
            heard = self._sound(seen, folder) if seen.kind == "audio" else None
            picture = self._added(self.uris, "image/jpeg", self._picture(seen, folder))
            self._names[key] = picture, self._added(self.sounds, "audio/wav", heard)
        return self._names[key]

    def _added(self, uris: list[str], kind: str, data: bytes | None) -> int | None:
        if data is None:
            return None
        uri = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        if self._bytes[id(uris)] + len(uri) > MOST_BYTES:
            self.left_out += 1
            return None
        self._bytes[id(uris)] += len(uri)
        uris.append(uri)
        return len(uris) - 1

    def _picture(self, seen: Seen, folder: Path) -> bytes | None:
        try:
            if seen.kind == "molecule":
                return self._molecule(seen)
            if DIGEST.fullmatch(seen.source):
                data = files.read(f"{seen.source}.jpg", [folder], _LARGEST)
                return data if data.startswith(_JPEG) else None
            return self._media(seen, folder).thumbnail()
        except (MediaError, MissingExtra):
            return None

    def _sound(self, seen: Seen, folder: Path) -> bytes | None:
        try:
            digest = DIGEST.fullmatch(seen.source)
            media = Media.audio(Path(f"{seen.source}.wav"), [folder]) if digest else self._media(seen, folder)
            samples = media.samples()
            return audio.wav(samples) if audio.seconds(samples) <= _LONGEST_S else None
        except (MediaError, MissingExtra):
            return None

    def _media(self, seen: Seen, folder: Path) -> Media:
        """What a file names by its path, from its own folder of media or the media root."""
        own = seen.source.startswith(f"{folder.name}/")
        root, name = (folder, seen.source.partition("/")[2]) if own else (self._root, seen.source)
        return Media.of(seen.kind, Path(name), [] if root is None else [root])

    def _molecule(self, seen: Seen) -> bytes | None:
        found = re.match(r"SMILES: (\S+)\n", seen.text)
        self._drawn += 1
        if self._drawn > _MOST_DRAWN:
            self.left_out += 1
            return None
        return Media.molecule(found[1] if found else seen.source, as_="drawing").thumbnail()
