"""The judge's instructions, as data: one TOML file per format, one folder per wording.

A checkpoint understands the wording it was trained with, so wordings are replaceable: `flex` is for Flex-Judge-like
models, `nano` for the embedded judge, and a user's own is a folder (or one file) of the same form:

    system     the system message
    question   the block with {question}
    reference  the block with {reference}, left out where an example has none
    candidate  the block of one candidate: {number} from 1, {letter} from A, {candidate}
    closing    the end of the user message

`system` and `closing` may use {low}, {high}, {criteria}, {count} and {letters}. Each placeholder is replaced once and
what replaces it is never scanned again, so braces in an answer stay braces.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.types import Part

KEYS = ("system", "question", "reference", "candidate", "closing")

_PLACES = {
    "system": {"low", "high", "criteria", "count", "letters"},
    "question": {"question"},
    "reference": {"reference"},
    "candidate": {"number", "letter", "candidate"},
    "closing": {"low", "high", "criteria", "count", "letters"},
}
_REQUIRED = {"question": "question", "reference": "reference", "candidate": "candidate"}
_PLACEHOLDER = re.compile(r"\{([a-z]+)\}")


@dataclass(frozen=True)
class Template:
    """The texts of one format in one wording."""

    system: str
    question: str
    reference: str
    candidate: str
    closing: str

    @classmethod
    def load(cls, wording: str | Path, name: str) -> Template:
        """The file `name`.toml of a built-in wording or of a folder; or, if `wording` is a file, that file.

        Raises:
            ConfigError: no such wording, or an entry is missing, unknown or has a wrong placeholder.
        """
        built_in = resources.files("flexjudge_reward") / "prompts" / f"{wording}" / f"{name}.toml"
        if str(wording) in wordings():
            if not built_in.is_file():
                raise ConfigError(f"the wording {str(wording)!r} has no text for the format {name!r}")
            return cls.parse(built_in.read_text("utf-8"), f"{wording}/{name}.toml")
        path = Path(wording)
        path = path / f"{name}.toml" if path.is_dir() else path
        if not path.is_file():
            known = ", ".join(wordings())
            raise ConfigError(f"no prompt file {str(path)!r}: give a folder with {name}.toml, a file or one of {known}")
        return cls.parse(path.read_text("utf-8"), str(path))

    @classmethod
    def parse(cls, text: str, where: str) -> Template:
        """A template from TOML text; `where` names it in errors."""
        try:
            entries = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{where}: not valid TOML: {error}") from None
        for key in sorted({*entries, *KEYS}):
            if key not in KEYS:
                raise ConfigError(f"{where}: unknown entry {key!r}; known are {', '.join(KEYS)}")
            if not isinstance(entries.get(key), str):
                raise ConfigError(f"{where}: the entry {key!r} is missing or not a text")
            places = set(_PLACEHOLDER.findall(entries[key]))
            if wrong := sorted(places - _PLACES[key]):
                known = ", ".join(sorted(_PLACES[key]))
                raise ConfigError(f"{where}: {key!r} has the placeholder {{{wrong[0]}}}; it may use {known}")
            if _REQUIRED.get(key, key) not in places and key in _REQUIRED:
                raise ConfigError(f"{where}: {key!r} needs the placeholder {{{_REQUIRED[key]}}}")
        return cls(**entries)

    @property
    def digest(self) -> str:
        """A hash of the texts: the version of this template."""
        return hashlib.sha256("\x00".join(getattr(self, key) for key in KEYS).encode()).hexdigest()


def fill(text: str, values: Mapping[str, str | tuple[Part, ...]]) -> tuple[Part, ...]:
    """`text` with each placeholder replaced once: by a text, or by several parts of a message."""
    parts: list[Part] = []
    end = 0
    for match in _PLACEHOLDER.finditer(text):
        value = values[match.group(1)]
        parts.append(text[end : match.start()])
        parts.extend((value,) if isinstance(value, str) else value)
        end = match.end()
    parts.append(text[end:])
    return tuple(part for part in parts if part != "")


def wordings() -> tuple[str, ...]:
    """The names of the built-in wordings, sorted."""
    folder = resources.files("flexjudge_reward") / "prompts"
    return tuple(sorted(entry.name for entry in folder.iterdir() if (entry / "score.toml").is_file()))
