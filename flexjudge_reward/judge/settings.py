"""Settings declared once: a dataclass field gives the type, the FLEXJUDGE_* variable, the TOML key, the flag, the help.

Each setting comes from the first place that has it, and errors name that place:

    1. an explicit argument or flag        FlexJudgeReward(model="..."), flexjudge score --model ...
    2. an environment variable             FLEXJUDGE_MODEL=...
    3. a TOML or YAML file                 FLEXJUDGE_CONFIG=judge.toml, with a line  model = "..."

Several judges in one run have names, and settings of their own beside the shared ones, which they go before in 2 and 3:

    FLEXJUDGE_SHORT__RUBRIC=...            of the judge "short"
    [short]                                in the file, with a line  rubric = "..."
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flexjudge_reward.errors import ConfigError, MissingExtra

PREFIX = "FLEXJUDGE_"
_MOST = 1e20  # of any number: what waits, adds or counts takes no infinity; a seed may have 64 bits
_NO_SETTINGS = {"FLEXJUDGE_CONFIG", "FLEXJUDGE_API_KEY", "FLEXJUDGE_SERVE_TOKEN"}


class Given(NamedTuple):
    """A value and the place it comes from, such as "the argument votes" or "votes in the file judge.toml"."""

    value: Any
    where: str


class Setting(NamedTuple):
    """One declared setting."""

    name: str
    types: tuple[Any, ...]
    """What a value may be, without None."""
    choices: tuple[str, ...]
    """The allowed texts; none means any."""
    help: str
    low: float
    high: float
    """The range of a number, both ends included."""

    @classmethod
    def of(cls, field: dataclasses.Field[Any], hint: Any) -> Setting:
        """The setting that a dataclass field declares."""
        options = [option for option in typing.get_args(hint | None) if option is not types.NoneType]
        choices = [text for option in options for text in typing.get_args(option)]  # of a Literal
        kinds = [str if typing.get_args(option) else option for option in options]
        return cls(field.name, tuple(kinds), tuple(choices), **field.metadata)

    @property
    def kind(self) -> type:
        """What a text stands for."""
        return next((kind for kind in (bool, int, float) if kind in self.types), str)

    def checked(self, value: Any, where: str) -> Any:
        """`value` with its type, range and the closed list checked. Raises ConfigError."""
        if self.kind is bool:
            right, expected = isinstance(value, bool), "true or false"
        elif self.kind is not str:
            right = isinstance(value, (int, self.kind)) and not isinstance(value, bool)
            expected = "a whole number" if self.kind is int else "a number"
            if right:
                right, expected = self.low <= value <= self.high, self._range(value)
        elif isinstance(value, self.types) and not isinstance(value, str):
            return value
        elif self.choices:
            right, expected = str(value) in self.choices, f"one of {', '.join(self.choices)}"
        else:
            right = isinstance(value, str | Path) and bool(str(value)) and "\0" not in str(value)
            expected = "a text"
        if not right:
            raise ConfigError(f"{where}: {self.name!r} must be {expected}, found {value!r:.100}")
        return self.kind(value)

    def parsed(self, text: str) -> Any:
        """The value that a text stands for; a text that stands for none stays, and `checked` refuses it."""
        if self.kind is bool:
            return {"1": True, "true": True, "0": False, "false": False}.get(text.lower(), text)
        try:
            return self.kind(text)
        except ValueError:
            return text

    def _range(self, value: float) -> str:
        if self.high < _MOST:
            return f"from {self.low:g} to {self.high:g}"
        return f"at most {_MOST:g}" if value > _MOST else f"at least {self.low:g}"


def setting(default: Any, help: str, low: float = -_MOST, high: float = _MOST) -> Any:
    """A dataclass field that is a setting; a number has a range, both ends included."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high})


@functools.cache  # resolving the type hints would take most of a command's start
def settings_of(*classes: type) -> dict[str, Setting]:
    """The settings that dataclasses declare, by name."""
    declared = {}
    for owner in classes:
        hints = typing.get_type_hints(owner)
        for field in dataclasses.fields(owner):
            if "help" in field.metadata:
                declared[field.name] = Setting.of(field, hints[field.name])
    return declared


def collect(
    known: Mapping[str, Setting], arguments: Mapping[str, Any], environ: Mapping[str, str], name: str = ""
) -> list[dict[str, Given]]:
    """What the file, the environment and the arguments say, weakest first; an argument of None says nothing.

    Args:
        name: of the judge, whose own settings go before the shared ones of file and environment.

    Raises ConfigError for an unknown name or a wrong value, with the place it comes from.
    """
    file, variables = _from_file(known, environ), _from_environment(known, environ)
    own = [named[name] for named in (file, variables) if name and name in named]
    return [file[""], variables[""], *own, checked(known, arguments)]


def declared_names(known: Mapping[str, Setting], environ: Mapping[str, str]) -> list[str]:
    """The judges with settings of their own, sorted. Raises ConfigError as `collect`."""
    return sorted({*_from_file(known, environ), *_from_environment(known, environ)} - {""})


def _from_environment(known: Mapping[str, Setting], environ: Mapping[str, str]) -> dict[str, dict[str, Given]]:
    """What the variables say, by the name of the judge; "" for the shared ones."""
    found: dict[str, dict[str, Given]] = {"": {}}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in _NO_SETTINGS or text == "":
            continue
        owner, named, name = variable.removeprefix(PREFIX).lower().rpartition("__")
        value = known[name].parsed(text) if name in known else text
        where = f"the environment variable {variable}"
        given = _given(known, {name: value}, lambda _, where=where: where)  # type: ignore[misc]
        found.setdefault(_checked_name(owner, where) if named else "", {}).update(given)
    return found


def _from_file(known: Mapping[str, Setting], environ: Mapping[str, str]) -> dict[str, dict[str, Given]]:
    """What the file says, by the name of the judge; "" for the shared settings."""
    file = environ.get(PREFIX + "CONFIG", "")
    entries = _read(file) if file else {}
    owned = {name: entry for name, entry in entries.items() if isinstance(entry, dict) and name not in known}
    shared = {name: entry for name, entry in entries.items() if name not in owned}
    found = {"": _given(known, shared, lambda name: f"{name} in the file {file}")}
    for owner, settings in owned.items():
        where = f"in [{owner}] of the file {file}"
        given = _given(known, settings, lambda name, where=where: f"{name} {where}")  # type: ignore[misc]
        found[_checked_name(owner, where)] = given
    return found


def _checked_name(name: str, where: str) -> str:
    """The name of a judge. Raises ConfigError."""
    import flexjudge_reward

    if not re.fullmatch("[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ConfigError(f"{where}: a judge's name has lower-case letters, digits and single _, found {name!r}")
    if name in vars(flexjudge_reward) or Path(__file__).parents[1].joinpath(name).exists():
        raise ConfigError(f"{where}: {name!r} is a name of the package already: give this judge another name")
    return name


def checked(known: Mapping[str, Setting], arguments: Mapping[str, Any]) -> dict[str, Given]:
    """The arguments that are not None, with names and values checked. Raises ConfigError."""
    return _given(known, arguments, lambda name: f"the argument {name}")


def add_flags(parser: argparse._ActionsContainer, settings: Iterable[Setting], defaults: Mapping[str, object]) -> None:
    """One flag per setting: `--position-swap`, `--votes 5`. A flag that is not given is None."""
    for one in settings:
        default = defaults.get(one.name)
        text = one.help if default in (None, False) else f"{one.help} (default: {default})"
        flag = "--" + one.name.replace("_", "-")
        if one.kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            values = "|".join(one.choices) or {int: "N", float: "X"}.get(one.kind, "TEXT")
            parser.add_argument(flag, type=one.kind, choices=one.choices or None, metavar=values, help=text)


def _given(known: Mapping[str, Setting], values: Mapping[str, Any], where: Callable[[str], str]) -> dict[str, Given]:
    """The values that are not None, checked, each with its place."""
    given = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"{where(name)}: unknown setting {name!r}; known are {', '.join(known)}")
        if value is not None:
            given[name] = Given(known[name].checked(value, where(name)), where(name))
    return given


def _read(file: str) -> dict[str, Any]:
    try:
        text = Path(file).read_text("utf-8")
        return _yaml(file, text) if Path(file).suffix in (".yaml", ".yml") else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{PREFIX}CONFIG names {file!r}, which cannot be read: {error.strerror}") from None
    except ValueError as error:  # no TOML, or no text at all
        raise ConfigError(f"{file}: not valid TOML: {error}") from None


def _yaml(file: str, text: str) -> dict[str, Any]:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtra("yaml", "yaml") from None
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: settings are `name: value` lines, found {type(found).__name__}")
    return found


def as_object(name: str, value: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """A setting that is an object: of a TOML file, or as JSON text."""
    if not isinstance(value, str):
        return dict(value or {})
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f'{name} is a JSON object such as {{"name": "value"}}, found {value!r:.80}')
    return found
