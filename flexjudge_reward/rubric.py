"""What to judge by, and on which scale.

A `Rubric` is a value: a few criteria in words and a scale of numbers. The built-in ones are TOML files in
`prompts/rubrics/`; one of your own is a file of the same form:

    criteria = "Is the answer true to the picture? Is it complete?"
    low = 1
    high = 10
    decimals = false

or, as a checklist, a table per criterion (in a JSON file, a list of such objects):

    [[criteria]]
    text = "names the colour of the shape"
    weight = 2
    need = "must"                         # or "should", which is the default, or "must not"
    name = "colour"                       # optional: of its own line in a trainer's log
    check = "my_checks:names_a_colour"    # optional: a function of the example decides it, no judge

The lists of HealthBench ({criterion, points, tags}) and of Rubrics as Rewards ({description, weight, title}) are read
as they are: a negative weight is a "must not", tags and titles are left out.

`formats/checklist.py` judges each criterion for itself; any other format shows the judge all of them as its criteria.
"""

from __future__ import annotations

import json
import math
import pkgutil
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from flexjudge_reward.errors import ConfigError

_FOLDER = Path(__file__).with_name("prompts") / "rubrics"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
Need = Literal["must", "should", "must not"]
_OTHERS = {("criterion", "points"): "tags", ("description", "weight"): "title"}  # text, weight: what is left out


@dataclass(frozen=True)
class Scale:
    """The closed range of scores, higher is better."""

    low: float = 1.0
    high: float = 10.0
    decimals: bool = False
    """Whether a score such as 7.5 is allowed; the papers' text formats use whole numbers only."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"a scale needs finite low < high, found low={self.low!r}, high={self.high!r}")

    def unit(self, score: float) -> float:
        """`score` moved linearly to [0, 1]; `low` gives 0, `high` gives 1."""
        return (score - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Criterion:
    """One line of a checklist: a statement that is true of an answer or not, such as "names the colour"."""

    text: str
    weight: float
    """Above 0, relative to the others'."""
    need: Need = "should"
    """should: a yes adds the weight. must: and a no makes the score 0. must not: a yes takes the weight away."""
    name: str = ""
    """In the trainer's log; without one it counts only among those of its need."""
    check: Callable[[Any], object] | str | None = field(default=None, repr=False)
    """Decides it instead of the judge: gets the `Example` with its one candidate, returns True or False. In a file its
    name, "module:function"; the setting `plugins` imports a module from a .py file."""

    def __post_init__(self) -> None:
        number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        needs = get_args(Need)
        named = isinstance(self.name, str) and _NAME.fullmatch(self.name) and self.name not in needs
        wrong = {
            f"a text is needed, found {self.text!r:.80}": not (isinstance(self.text, str) and self.text.strip()),
            f"weight must be a number above 0, found {self.weight!r}": not number or not 0 < self.weight < math.inf,
            f"need must be one of {', '.join(needs)}, found {self.need!r:.80}": self.need not in needs,
            f"name must be 1 to 40 letters, digits, - or _, found {self.name!r:.80}": self.name != "" and not named,
        }
        if fault := next((said for said, is_wrong in wrong.items() if is_wrong), ""):
            raise ConfigError(fault)
        if isinstance(self.check, str):
            object.__setattr__(self, "check", _function(self.check))

    @classmethod
    def of(cls, entries: object, checks: bool = False) -> Criterion:
        """A criterion from its entries; with `checks` it may name a function. Raises ConfigError."""
        if not isinstance(entries, Mapping):
            raise ConfigError(f"expected an object with text and weight, found {entries!r:.80}")
        entries = _by_our_names(entries)
        known = ("text", "weight", "need", "name", *["check"] * checks)
        if unknown := sorted(set(entries) - set(known)):
            raise ConfigError(f"unknown entry {unknown[0]!r}; known are {', '.join(known)}")
        if missing := [name for name in ("text", "weight") if name not in entries]:
            raise ConfigError(f"it has no {missing[0]!r}, found {dict(entries)!r:.80}")
        return cls(**entries)

    @property
    def entries(self) -> dict[str, object]:
        """As `of` takes them; a check by its name."""
        check = {} if self.check is None else {"check": getattr(self.check, "__qualname__", repr(self.check))}
        return {"text": self.text, "weight": self.weight, "need": self.need, "name": self.name, **check}


@dataclass(frozen=True)
class Rubric:
    """Criteria in words, and the scale of the scores."""

    criteria: str = ""
    """Of a checklist by default its items, a line each."""
    scale: Scale | None = Scale()
    """None is the scale of the format's own rubric: for criteria that a row gives."""
    items: tuple[Criterion, ...] = ()
    """The criteria one by one, where it is a checklist."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(self.items))
        if self.items and all(item.need == "must not" for item in self.items):
            raise ConfigError("a checklist needs a criterion that an answer must or should meet: no answer could score")
        if self.items and not self.criteria:
            lines = (f"{n}. ({item.need}, weight {item.weight:g}) {item.text}" for n, item in enumerate(self.items, 1))
            object.__setattr__(self, "criteria", "\n".join(lines))
        if not isinstance(self.criteria, str) or not self.criteria.strip():
            raise ConfigError(f"a rubric needs criteria in words, found {self.criteria!r}")

    @classmethod
    def load(cls, source: str | Path) -> Rubric:
        """A built-in rubric by name (see `rubric_names`) or one from a TOML or JSON file.

        Raises ConfigError: no such name or file, or the file has missing, unknown or wrong entries.
        """
        name, known = str(source), rubric_names()
        if name in known:
            return cls._built_in(name)
        path = Path(source)
        if not path.is_file():
            raise ConfigError(f"no rubric {name!r}: give a TOML or JSON file or one of {', '.join(known)}")
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the rubric {name!r} cannot be read as text: {error}") from None
        return cls.parse(text, name)

    @classmethod
    @cache
    def _built_in(cls, name: str) -> Rubric:
        """Read once: callers share it, since it cannot be changed."""
        return cls.parse((_FOLDER / f"{name}.toml").read_text("utf-8"), name)

    @classmethod
    def parse(cls, text: str, where: str = "rubric") -> Rubric:
        """A rubric from TOML text, or JSON text if `where` ends in .json; `where` names it in errors."""
        form, read = ("JSON", json.loads) if where.endswith(".json") else ("TOML", tomllib.loads)
        try:
            entries = read(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where}: not valid {form}: {error}") from None
        entries = {"criteria": entries} if isinstance(entries, list) else entries
        if not isinstance(entries, dict):
            raise ConfigError(f"{where}: expected an object or a list of criteria, found {entries!r:.80}")
        return cls.of(entries, where, checks=True)

    @classmethod
    def of(cls, entries: Mapping[str, object], where: str = "rubric", checks: bool = False) -> Rubric:
        """A rubric from its entries, such as a row of a dataset holds.

        Args:
            where: names it in errors.
            checks: whether a criterion may name a function; never for a row, since data must not choose code.
        """
        if unknown := sorted(set(entries) - {"criteria", "low", "high", "decimals"}):
            raise ConfigError(f"{where}: unknown entry {unknown[0]!r}; known are criteria, low, high, decimals")
        criteria = entries.get("criteria")
        if not isinstance(criteria, str | list):
            raise ConfigError(f"{where}: the entry 'criteria' is missing, or neither a text nor a list of criteria")
        items = () if isinstance(criteria, str) else _items(criteria, where, checks)
        bounds = {}
        for name, default in (("low", 1.0), ("high", 10.0)):
            value = entries.get(name, default)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"{where}: {name!r} must be a number, found {value!r}")
            bounds[name] = float(value)
        decimals = entries.get("decimals", False)
        if not isinstance(decimals, bool):
            raise ConfigError(f"{where}: 'decimals' must be true or false, found {decimals!r}")
        return cls(criteria if isinstance(criteria, str) else "", Scale(**bounds, decimals=decimals), items)

    @property
    def cell(self) -> str | list[dict[str, object]] | dict[str, object]:
        """As the cell of a row, JSON that `data/content.py` reads; it refuses a check. Words beside items are left out.

        A lone word without a scale becomes a list of one criterion, since a row's lone word names a built-in rubric.
        """
        criteria = [item.entries for item in self.items] or self.criteria
        if self.scale is not None:
            return {"criteria": criteria, **asdict(self.scale)}
        lone = isinstance(criteria, str) and len(criteria.split()) == 1
        return [Criterion(self.criteria, 1.0).entries] if lone else criteria


def _by_our_names(entries: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entries of another data set's criterion by our names; others as they are."""
    for (text, weight), more in _OTHERS.items():
        if {text, weight} <= entries.keys() <= {text, weight, more}:
            value = entries[weight]
            fault = isinstance(value, int | float) and value < 0
            need = {"need": "must not"} if fault else {}
            return {"text": entries[text], "weight": -value if fault else value, **need}
    return entries


def _items(listed: list[object], where: str, checks: bool) -> tuple[Criterion, ...]:
    if not listed:
        raise ConfigError(f"{where}: the list 'criteria' is empty")
    items = []
    for number, entries in enumerate(listed, 1):
        try:
            items.append(Criterion.of(entries, checks))
        except ConfigError as error:
            raise ConfigError(f"{where}: criterion {number}: {error}") from None
    return tuple(items)


def _function(name: str) -> Callable[[Any], object]:
    """The function that "module:function" names. Raises ConfigError."""
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"check {name!r} cannot be imported (give its module's file to plugins=): {error}") from None
    if not callable(found) or ":" not in name:
        raise ConfigError(f"check must name a function, such as my_checks:is_short, found {name!r}")
    return found  # type: ignore[no-any-return]


@cache
def rubric_names() -> tuple[str, ...]:
    """The names of the built-in rubrics, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))
