"""What to judge by, and on which scale.

A `Rubric` is a value: a few criteria in words and a scale of numbers. The built-in ones are TOML files in
`prompts/rubrics/`; one of your own is a file of the same form:

    criteria = "Is the answer true to the picture? Is it complete?"
    low = 1
    high = 10
    decimals = false
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flexjudge_reward.errors import ConfigError

_FOLDER = Path(__file__).with_name("prompts") / "rubrics"


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
class Rubric:
    """Criteria in words, and the scale of the scores."""

    criteria: str
    scale: Scale | None = Scale()
    """None is the scale of the format's own rubric: for criteria that a row gives in words."""

    def __post_init__(self) -> None:
        if not isinstance(self.criteria, str) or not self.criteria.strip():
            raise ConfigError(f"a rubric needs criteria in words, found {self.criteria!r}")

    @classmethod
    def load(cls, source: str | Path) -> Rubric:
        """A built-in rubric by name (see `rubric_names`) or one from a TOML file.

        Raises ConfigError: no such name or file, or the file has missing, unknown or wrong entries.
        """
        name, known = str(source), rubric_names()
        path = _FOLDER / f"{name}.toml" if name in known else Path(source)
        if not path.is_file():
            raise ConfigError(f"no rubric {name!r}: give a TOML file or one of {', '.join(known)}")
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the rubric {name!r} cannot be read as text: {error}") from None
        return cls.parse(text, name)

    @classmethod
    def parse(cls, text: str, where: str = "rubric") -> Rubric:
        """A rubric from TOML text; `where` names it in errors."""
        try:
            entries = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{where}: not valid TOML: {error}") from None
        return cls.of(entries, where)

    @classmethod
    def of(cls, entries: Mapping[str, object], where: str = "rubric") -> Rubric:
        """A rubric from its entries, such as a row of a dataset holds; `where` names them in errors."""
        if unknown := sorted(set(entries) - {"criteria", "low", "high", "decimals"}):
            raise ConfigError(f"{where}: unknown entry {unknown[0]!r}; known are criteria, low, high, decimals")
        if not isinstance(criteria := entries.get("criteria"), str):
            raise ConfigError(f"{where}: the entry 'criteria' is missing or not a text")
        bounds = {}
        for name, default in (("low", 1.0), ("high", 10.0)):
            value = entries.get(name, default)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"{where}: {name!r} must be a number, found {value!r}")
            bounds[name] = float(value)
        decimals = entries.get("decimals", False)
        if not isinstance(decimals, bool):
            raise ConfigError(f"{where}: 'decimals' must be true or false, found {decimals!r}")
        return cls(criteria, Scale(**bounds, decimals=decimals))


def rubric_names() -> tuple[str, ...]:
    """The names of the built-in rubrics, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))
