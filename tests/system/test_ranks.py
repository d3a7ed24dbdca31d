"""The TRL reward over several gloo processes: the same rewards in every layout, and no rank waits for another."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexjudge_reward import Listwise, Pointwise
from support.layouts import Misbehaving, mismatches, reads, reward, rows, run, waits


@pytest.mark.parametrize("world", [2, 4])
def test_every_layout_gives_the_rewards_of_a_single_process(world: int, tmp_path: Path) -> None:
    wrong, total = mismatches(world, tmp_path)
    assert wrong == 0 and total >= 4 * 96
    alone = reward(Listwise())(*rows(96, 4))
    assert None in alone and len(set(alone)) > 5  # the rewards differ, and some judgements fail


DEADLINE = 2.0
CASES = {  # how rank 0 misbehaves: for how many seconds, and how the call ends on both ranks
    "raises": (0, ("RuntimeError", "OtherRankError")),
    "wrong batch": (0, ("ConfigError", "OtherRankError")),
    "fails": (0, ("JudgementFailed", "JudgementFailed")),
    "is slow": (0.2, ("rewards", "rewards")),
    "hangs": (60, ("none", "rewards")),
    "computes": (0, ("none", "rewards")),
}


def keeps_random_numbers(rank: int, world: int) -> bool:
    """Whether judging leaves the trainer's random numbers alone, though the judge draws some."""
    import torch

    class Drawing(Misbehaving):
        def complete(self, requests):  # type: ignore[no-untyped-def]
            torch.rand(7)
            return super().complete(requests)

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    reward(Listwise(), Drawing("is slow", 0))(["q"] * 2, ["a", "b"])
    return torch.equal(torch.rand(3), expected)


def test_no_rank_waits_past_the_deadline_and_all_end_well(tmp_path: Path) -> None:
    """The processes end with code 0, though a judge still sleeps and another still computes in them."""
    jobs = [waits(how, seconds, DEADLINE) for how, (seconds, _) in CASES.items()]
    *found, random = run(2, [*jobs, keeps_random_numbers], tmp_path)
    ended = {how: tuple(how_it_ended for _, how_it_ended in ranks) for how, ranks in zip(CASES, found, strict=True)}
    assert ended == {how: expected for how, (_, expected) in CASES.items()}
    assert all(seconds < DEADLINE + 10 for ranks in found for seconds, _ in ranks)
    assert random == [True, True]


SLOW = {  # what rank 0 is slow to read, for which format, for how many seconds, and how the call ends on both ranks
    "rows": ("rows", Pointwise(), 60, ("EngineError", "OtherRankError")),
    "prompts": ("prompts", Pointwise(), 60, ("none", "rewards")),
    "prompts of groups": ("prompts", Listwise(), 60, ("none", "none")),
    "prompts, but in time": ("prompts", Listwise(), 0.2, ("rewards", "rewards")),
    "candidates": ("candidates", Pointwise(), 60, ("none", "rewards")),
    "molecules": ("molecules", Pointwise(), 60, ("none", "rewards")),
    "nothing": ("nothing", Listwise(), 0, ("rewards", "rewards")),
}


def test_reading_is_within_the_deadline(tmp_path: Path) -> None:
    jobs = [reads(what, format, seconds, DEADLINE) for what, format, seconds, _ in SLOW.values()]
    found = run(2, jobs, tmp_path)
    ended = {how: tuple(how_it_ended for _, how_it_ended in ranks) for how, ranks in zip(SLOW, found, strict=True)}
    assert ended == {how: expected for how, (*_, expected) in SLOW.items()}
    assert all(seconds < DEADLINE + 10 for ranks in found for seconds, _ in ranks)
