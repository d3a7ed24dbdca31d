"""What every trainer is held to, as assertions and as numbers for `benchmarks/trainers.py`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

Record = Callable[[str, object], None]
"""pytest's `record_property`."""


def single(number: float) -> float:
    """As trainers hold it, in 32 bits."""
    return float(struct.unpack("f", struct.pack("f", number))[0])


def same_rewards(record: Record, given: Sequence[float], expected: Sequence[float | None], instead: float) -> None:
    """A trainer's rewards are those of `FlexJudgeReward` in one process; `instead` is what the trainer has for None."""
    known = [single(instead if number is None else number) for number in expected]
    wrong = sum(single(one) != other for one, other in zip(given, known, strict=True))
    record("rewards", len(known))
    record("reward_mismatches", wrong)
    assert not wrong, list(zip(given, known, strict=True))


def no_advantage(record: Record, advantages: Sequence[float], failed: Sequence[bool]) -> None:
    """Rows whose judgement failed have no advantage, and there are some, and others that have one."""
    of_failed = [abs(one) for one, lost in zip(advantages, failed, strict=True) if lost]
    record("failed_rows", len(of_failed))
    record("failed_row_advantage", max(of_failed))
    assert max(of_failed) < 1e-5 < max(map(abs, advantages)), list(zip(advantages, failed, strict=True))
