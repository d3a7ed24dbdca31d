"""Media of a page as small pictures in data URIs.

Promised: only files below a file's own folder of media, or below the given media root, are opened, only JPEG that this
package made, or what `Media` accepts, gets onto the page, and all pictures together stay below `MOST_BYTES`.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

from flexjudge_reward.errors import MediaError, MissingExtra
from flexjudge_reward.media import files, image
from flexjudge_reward.media.base import Media
from flexjudge_reward.report.lines import Seen

MOST_BYTES = 12_000_000  # of all data URIs of a page
_LARGEST = 200_000  # bytes of a thumbnail's file; `media.image.thumbnail` makes less
_MOST_DRAWN = 1_000  # molecules, which take a few milliseconds each
_JPEG = b"\xff\xd8\xff"
_DIGEST = re.compile("[0-9a-f]{64}")
_ENDING = re.compile(r"(\.rank\d+)?(\.skipped)?\.[^.]+(\.partial)?$")  # of judgements.rank3.jsonl, pairs.jsonl.partial


class Pictures:
    """The pictures of one page. Each media item has a name there: its place in `uris`."""

    def __init__(self, media_root: Path | None = None) -> None:
        self.uris: list[str] = []
        self.left_out = 0  # there was no room for them
        self._names: dict[tuple[Seen, Path], int | None] = {}
        self._root, self._bytes, self._drawn = media_root, 0, 0

    def name(self, seen: Seen, file: Path) -> int | None:
        """The place of a media item of `file` in `uris`; None if it has no picture."""
        folder = file.with_name(_ENDING.sub("", file.name) + ".media")
        key = seen, folder
        if key not in self._names:
            self._names[key] = self._added(self._picture(seen, folder))
        return self._names[key]

    def _added(self, picture: bytes | None) -> int | None:
        if picture is None:
            return None
        uri = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
        if self._bytes + len(uri) > MOST_BYTES:
            self.left_out += 1
            return None
        self._bytes += len(uri)
        self.uris.append(uri)
        return len(self.uris) - 1

    def _picture(self, seen: Seen, folder: Path) -> bytes | None:
        try:
            if seen.kind == "molecule":
                return self._molecule(seen)
            if _DIGEST.fullmatch(seen.source):
                data = files.read(f"{seen.source}.jpg", [folder], _LARGEST)
                return data if data.startswith(_JPEG) else None
            own = seen.source.startswith(f"{folder.name}/")
            root, name = (folder, seen.source.partition("/")[2]) if own else (self._root, seen.source)
            return image.thumbnail(Media.of(seen.kind, Path(name), [] if root is None else [root]).images())
        except (MediaError, MissingExtra):
            return None

    def _molecule(self, seen: Seen) -> bytes | None:
        found = re.match(r"SMILES: (\S+)\n", seen.text)
        self._drawn += 1
        if self._drawn > _MOST_DRAWN:
            self.left_out += 1
            return None
        return image.thumbnail(Media.molecule(found[1] if found else seen.source, drawn=True).images())
