"""What all units share."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of `datasets` imports torch where it is, which takes 2 s of processor time. No unit needs it."""
    if "datasets" in sys.modules:
        monkeypatch.setattr("datasets.config.TORCH_AVAILABLE", False)
