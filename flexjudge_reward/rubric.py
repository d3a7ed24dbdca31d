"""What to judge by, and on which scale.

A `Rubric` is a value: a few criteria in words and a scale of numbers. Built-in ones are TOML files in `rubrics/`;
a user's own is a file of the same form:

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
from importlib import resources
from pathlib import Path

from flexjudge_reward.errors import ConfigError


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
    scale: Scale = Scale()

    def __post_init__(self) -> None:
        if not isinstance(self.criteria, str) or not self.criteria.strip():
            raise ConfigError(f"a rubric needs criteria in words, found {self.criteria!r}")

    @classmethod
    def load(cls, source: str | Path) -> Rubric:
        """A built-in rubric by name (see `rubric_names`) or one from a TOML file.

        Raises:
            ConfigError: no such name or file, or the file has missing, unknown or wrong entries.
        """
        built_in = resources.files("flexjudge_reward") / "prompts" / "rubrics" / f"{source}.toml"
        if str(source) in rubric_names():
            return cls.parse(built_in.read_text("utf-8"), str(source))
        path = Path(source)
        if not path.is_file():
            raise ConfigError(f"no rubric {str(source)!r}: give a TOML file or one of {', '.join(rubric_names())}")
        return cls.parse(path.read_text("utf-8"), str(path))

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
        unknown = sorted(set(entries) - {"criteria", "low", "high", "decimals"})
        if unknown:
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
    folder = resources.files("flexjudge_reward") / "prompts" / "rubrics"
    return tuple(sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml")))
