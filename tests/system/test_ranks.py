"""The TRL reward over several gloo processes: the same rewards in every layout, and no rank waits for another."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexjudge_reward import Listwise, Pointwise
from support.layouts import Misbehaving, mismatches, overlap, reads, reward, rows, run, spends, waits


@pytest.mark.parametrize("world", [2, 4])
def test_every_layout_gives_the_rewards_of_a_single_process(world: int, tmp_path: Path) -> None:
    wrong, total = mismatches(world, tmp_path)
    assert wrong == 0 and total >= 4 * 96
    alone = reward(Listwise())(*rows(96, 4))
    assert None in alone and len(set(alone)) > 5  # the rewards differ, and some judgements fail


DEADLINE, LONG = 1.0, 60.0  # seconds; LONG where all ranks are in time, on a busy machine, too
CASES = {  # how rank 0 misbehaves: for how many seconds, within which deadline, and how the call ends on both ranks
    "raises": (0, LONG, ("RuntimeError", "OtherRankError")),
    "wrong batch": (0, LONG, ("ConfigError", "OtherRankError")),
    "fails": (0, LONG, ("JudgementFailed", "JudgementFailed")),
    "is slow": (0.2, LONG, ("rewards", "rewards")),
    "hangs": (LONG, DEADLINE, ("none", "rewards")),
    "computes": (0, DEADLINE, ("none", "rewards")),
}
SLOW = {  # what rank 0 is slow to read, for which format, for how many seconds; then as above
    "nothing": ("nothing", Listwise(), 0, LONG, ("rewards", "rewards")),
    "prompts, but in time": ("prompts", Listwise(), 0.2, LONG, ("rewards", "rewards")),
    "rows": ("rows", Pointwise(), LONG, DEADLINE, ("EngineError", "OtherRankError")),
    "prompts": ("prompts", Pointwise(), LONG, DEADLINE, ("none", "rewards")),
    "prompts of groups": ("prompts", Listwise(), LONG, DEADLINE, ("none", "none")),
    "candidates": ("candidates", Pointwise(), LONG, DEADLINE, ("none", "rewards")),
    "molecules": ("molecules", Pointwise(), LONG, DEADLINE, ("none", "rewards")),
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
    jobs = [reads(what, format, seconds, deadline) for what, format, seconds, deadline, _ in SLOW.values()]
    jobs += [waits(how, seconds, deadline) for how, (seconds, deadline, _) in CASES.items()]
    random, spent, (zero, one), *found = run(2, [keeps_random_numbers, spends, overlap, *jobs], tmp_path)
    expected = {how: case[-1] for how, case in (SLOW | CASES).items()}
    ended = {how: tuple(how_it_ended for _, how_it_ended in ranks) for how, ranks in zip(expected, found, strict=True)}
    assert ended == expected
    assert all(seconds < LONG / 2 for ranks in found for seconds, _ in ranks)
    assert random == [True, True]
    assert zero[0] == one[0] == "[0.0, 0.0, 0.0, 0.0]"  # pointwise, of the lowest score
    assert (zero[1], one[1]) == (zero[4], one[4])  # listwise, as without overlap
    assert (zero[2], one[2]) == ("ConfigError", "OtherRankError") and (zero[3], one[3]) == (zero[1], one[1])
    assert spent[0] == spent[1] and "CostLimitReached: judging took 300 tokens" in spent[0]
