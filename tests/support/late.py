"""Heavy packages in test files: imported before the first test of a file, not when it is collected.

    needs("torch", "rdkit")     skips the file where one of them is not installed
    torch = late("torch")       and then `torch.tensor(...)`, as if it were imported
    train = late("flexjudge_recipes.grpo_vlm.train")

Every worker collects all files: torch, transformers and TRL would take 10 s of processor time in each.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

HEAVY = frozenset({"torch", "transformers", "trl", "diffusers", "ray", "datasets", "av", "rdkit", "pandas", "vllm"})
"""What no test file imports at its head."""


class Late:
    """Stands for a module until it is needed."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and self._name not in sys.modules:  # pytest inspects all that a file has
            raise AttributeError(name)
        return getattr(loaded(self._name), name)


def late(name: str) -> Any:
    """The module of this name, which is not imported yet."""
    return Late(name)


def needs(*packages: str) -> None:
    """Skips the test file if one of the packages is not installed; imports none."""
    if missing := [name for name in packages if name not in sys.modules and find_spec(name) is None]:
        pytest.skip(f"needs {missing[0]}", allow_module_level=True)


def load(names: dict[str, Any]) -> None:
    """Puts the modules themselves in the place of all that a test file named late."""
    for name, value in [*names.items()]:
        if isinstance(value, Late):
            names[name] = loaded(value._name)


def loaded(name: str) -> Any:
    """The module, imported without the warnings of others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(name)
