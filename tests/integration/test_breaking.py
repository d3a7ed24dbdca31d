"""A policy gains nothing by breaking its judge: a smaller run of `benchmarks/breaking.py`, with TRL's advantages."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from support.late import needs

needs("trl")

# Made inside transformers and torch by their own calls of each other; nothing here can avoid them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

SEEDS = range(3)


@pytest.fixture
def bandit(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("breaking")


def test_the_advantages_are_those_of_the_trainer(bandit: Any) -> None:
    assert bandit.check(steps=2) < 1e-5


@pytest.mark.parametrize("start", ["even", "good common", "mediocre rare", "breaking common", "breaking nearly all"])
def test_answers_that_break_the_judge_die_out(bandit: Any, start: str) -> None:
    shares = bandit.STARTS[start]
    for seed in SEEDS:
        ends = bandit.run(shares, "lowest", bandit.LARGE, seed)
        before = bandit.run(shares, "before", bandit.LARGE, seed)
        assert ends[3] < min(0.02, shares[3]) and ends[3] < before[3]
        assert ends[0] > before[0] - 0.005
