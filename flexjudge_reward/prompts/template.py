"""The judge's instructions, as data: one TOML file per format, one folder per prompt set.

A checkpoint understands the texts it was trained with, so they are replaceable: `flex` is for Flex-Judge-like models,
`nano` for the embedded judge, and a prompt set of your own is a folder (or one file) of the same form:

    system     the system message
    question   the block with {question}
    reference  the block with {reference}, left out where an example has none
    candidate  the block of one candidate: {number} from 1, {letter} from A, {candidate}
    closing    the end of the user message
    media      before each image and video: {kind} and {index}, such as "image 2", and {owner}, such as "answer 1";
               optional, and needed where a server may show all images before the text

`system` and `closing` may use {low}, {high}, {criteria}, {count} and {letters}. Each placeholder is replaced once and
its replacement is never scanned again, so braces in an answer stay braces.
"""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.types import Part

_FOLDER = Path(__file__).parent
_OF_ALL = {"low", "high", "criteria", "count", "letters"}
_PLACES = {
    "system": _OF_ALL,
    "question": {"question"},
    "reference": {"reference"},
    "candidate": {"number", "letter", "candidate"},
    "closing": _OF_ALL,
    "media": {"kind", "index", "owner"},
}
_OPTIONAL = {"media": ""}
KEYS = tuple(_PLACES)
OWN = "prompts"  # in the folder of a judge: the texts that it was trained with
_PLACEHOLDER = re.compile(r"\{([a-z]+)\}")


@dataclass(frozen=True)
class Template:
    """The texts of one format in one prompt set."""

    system: str
    question: str
    reference: str
    candidate: str
    closing: str
    media: str = ""

    @classmethod
    def load(cls, prompt_set: str | Path, name: str) -> Template:
        """The file `name`.toml of a built-in prompt set or of a folder; or, if `prompt_set` is a file, that file.

        Raises ConfigError: no such prompt set, or an entry is missing, unknown or has a wrong placeholder.
        """
        built_in, known = str(prompt_set) in prompt_sets(), ", ".join(prompt_sets())
        path = _FOLDER / prompt_set if built_in else Path(prompt_set)
        path = path / f"{name}.toml" if path.is_dir() else path
        if built_in and not path.is_file():
            formats = ", ".join(sorted(file.stem for file in path.parent.glob("*.toml")))
            raise ConfigError(
                f"the prompt set {str(prompt_set)!r} has no text for the format {name!r}; it has {formats}: choose"
                " another format, or a judge that has another prompt set"
            )
        if not path.is_file():
            raise ConfigError(f"no prompt file {str(path)!r}: give a folder with {name}.toml, a file or one of {known}")
        return cls._built_in(path) if built_in else cls._read(path)

    @classmethod
    def _read(cls, path: Path) -> Template:
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the prompt file {str(path)!r} cannot be read as text: {error}") from None
        return cls.parse(text, str(path))

    @classmethod
    @cache
    def _built_in(cls, path: Path) -> Template:
        """Read once: callers share it, since it cannot be changed."""
        return cls._read(path)

    def is_of(self, prompt_set: Path, name: str) -> bool:
        """Whether these are the texts of the format `name` in the folder `prompt_set`."""
        return (prompt_set / f"{name}.toml").is_file() and self == Template.load(prompt_set, name)

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
            if not isinstance(entries.setdefault(key, _OPTIONAL.get(key)), str):
                raise ConfigError(f"{where}: the entry {key!r} is missing or not a text")
            places = set(_PLACEHOLDER.findall(entries[key]))
            if wrong := sorted(places - _PLACES[key]):
                known = ", ".join(sorted(_PLACES[key]))
                raise ConfigError(f"{where}: {key!r} has the placeholder {{{wrong[0]}}}; it may use {known}")
            if key in _PLACES[key] - places:
                raise ConfigError(f"{where}: {key!r} needs the placeholder {{{key}}}")
        return cls(**entries)


def fill(text: str, values: Mapping[str, str | tuple[Part, ...]]) -> tuple[Part, ...]:
    """`text` with each placeholder replaced once: by a text, which may be empty, or by several parts of a message."""
    parts: list[Part] = []
    for is_name, piece in _pieces(text):
        value = values[piece] if is_name else piece
        append(parts, value if isinstance(value, tuple) else (value,) if value else ())
    return tuple(parts)


def append(parts: list[Part], more: Sequence[Part]) -> None:
    """Adds `more` to the parts of a message. Texts that meet become one: a cache key counts part by part."""
    if parts and more and isinstance(last := parts[-1], str) and isinstance(first := more[0], str):
        parts[-1] = last + first
        more = more[1:]
    parts += more


@lru_cache(maxsize=1024)
def _pieces(text: str) -> tuple[tuple[bool, str], ...]:
    """Names of placeholders, and the texts between them."""
    return tuple((index % 2 == 1, piece) for index, piece in enumerate(_PLACEHOLDER.split(text)) if piece)


@cache
def prompt_sets() -> tuple[str, ...]:
    """The names of the built-in prompt sets, sorted."""
    return tuple(sorted(path.parent.name for path in _FOLDER.glob("*/pointwise.toml")))


def built_in_name(template: Template, name: str) -> str | None:
    """The built-in prompt set that has these texts for the format `name`."""
    return next((one for one in prompt_sets() if template.is_of(_FOLDER / one, name)), None)


def copy_prompt_set(prompt_set: str | Path, judge: Path) -> None:
    """Writes the texts that a judge was trained with into its folder, where `own_prompt_set` finds them.

    They replace those of an earlier training; nothing else of the folder `prompt_set` is copied.
    """
    source = _FOLDER / prompt_set if str(prompt_set) in prompt_sets() else Path(prompt_set)
    texts = {file.name: file.read_bytes() for file in source.glob("*.toml")}
    shutil.rmtree(judge / OWN, ignore_errors=True)
    (judge / OWN).mkdir(parents=True)
    for name, text in texts.items():
        (judge / OWN / name).write_bytes(text)


def own_prompt_set(model: str | None) -> Path | None:
    """The texts that the judge in the folder `model` was trained with, if it says so."""
    folder = Path(model) / OWN if model else None
    return folder if folder and any(folder.glob("*.toml")) else None
