"""What all units share."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No unit needs torch, which takes 2 s of processor time: to look for a GPU, or in a stream of `datasets`."""
    monkeypatch.setattr("flexjudge_reward.judge.config.has_gpu_engine", lambda: False)
    if "datasets" in sys.modules:
        monkeypatch.setattr("datasets.config.TORCH_AVAILABLE", False)
