"""Modules of the user's own, such as a format or a modality, by dotted name or by the path of a file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from flexjudge_reward.errors import ConfigError


def imported(module: str) -> Any:
    """The module, imported at the first call.

    Raises ConfigError if there is none, it needs one that is missing, or a file has the name of another module.
    """
    path = Path(module)
    try:
        return _imported_file(path) if path.suffix == ".py" else importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"the module {module!r} cannot be imported: {error}") from None


def _imported_file(path: Path) -> Any:
    """The module of a file, under the file's name, by which pickle finds its classes."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r} to import")
    if path.stem not in sys.modules:
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[path.stem]  # else the next import would find half of it
            raise
    module = sys.modules[path.stem]
    if Path(getattr(module, "__file__", None) or "").resolve() != path.resolve():
        raise ConfigError(f"{path} cannot be imported, another module {path.stem!r} is loaded: rename the file")
    return module
