"""Short runs of the recipes' programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.hub import fake_hub


@dataclass(frozen=True)
class Run:
    """A finished run, with what it pushed to the Hub."""

    folder: Path
    pushed: dict[str, set[str]]

    @property
    def report(self) -> Any:
        return json.loads((self.folder / "report.json").read_text())


@contextmanager
def pushed(run: Callable[..., None], folder: Path) -> Iterator[Run]:
    """A run into `folder` that pushes to a Hub in memory."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        files = fake_hub(monkeypatch)
        run(folder, monkeypatch, push_to_hub=True, hub_model_id="me/mine", hub_token="secret")
        yield Run(folder, files)


def words(program: Path, flags: dict[str, Any]) -> list[str]:
    """The command line of a program with its nano configuration."""
    given = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    return [program.name, "--config", str(program.parent / "nano.yaml"), *given]
