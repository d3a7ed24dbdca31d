"""Which rank judges which group; real ranks are in `tests/system/test_ranks.py`."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexjudge_reward import ConfigError
from flexjudge_reward.trainers.gather import Deadline, RankError, RankRows, all_gather, assign_groups


def rank_rows(keys: str, texts: str = "") -> RankRows:
    return RankRows(tuple(keys), tuple(texts or keys))


@pytest.mark.parametrize(
    "ranks",
    [
        pytest.param(["ab"], id="single-rows"),
        pytest.param(["aab", "bc"], id="a-group-is-cut"),
    ],
)
def test_incomplete_groups_are_refused_with_the_batch_size_rule(ranks: list[str]) -> None:
    with pytest.raises(ConfigError, match="multiple of num_generations"):
        assign_groups([rank_rows(keys) for keys in ranks])


def test_owners_hold_most_of_their_group_and_share_the_work() -> None:
    groups = assign_groups([rank_rows("aab", "uvw"), rank_rows("bcc", "xyz")])
    assert [(group.owner, group.texts) for group in groups] == [(0, ("u", "v")), (1, ("w", "x")), (1, ("y", "z"))]
    even = assign_groups([rank_rows("abcd"), rank_rows("abcd", "efgh")])
    assert sorted(group.owner for group in even) == [0, 0, 1, 1]


def test_a_prompt_that_comes_twice_is_two_groups() -> None:
    groups = assign_groups([rank_rows("aaaabb", "123456")])
    assert [group.texts for group in groups] == [("1", "2"), ("3", "4"), ("5", "6")]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.integers(1, 4), st.integers(2, 4), st.randoms())
def test_every_row_is_in_one_group_and_its_owner_has_the_prompt(
    prompts: list[str], world: int, members: int, rng: object
) -> None:
    keys = [key for key in prompts for _ in range(members)]
    rng.shuffle(keys)  # type: ignore[attr-defined]
    bounds = [len(keys) * rank // world for rank in range(world + 1)]
    ranks = [rank_rows("".join(keys[low:high])) for low, high in pairwise(bounds)]
    groups = assign_groups(ranks, members)
    rows = [row for group in groups for row in group.rows]
    assert sorted(rows) == [(rank, row) for rank, one in enumerate(ranks) for row in range(len(one.keys))]
    for group in groups:
        assert {ranks[rank].keys[row] for rank, row in group.rows} == {group.key}
        assert (group.owner, group.source) in group.rows and len(group.rows) % members == 0


def test_a_process_alone_exchanges_with_itself_and_has_no_deadline() -> None:
    assert all_gather("x") == ["x"] and isinstance(all_gather(RankError("own"))[0], RankError)
    deadline = Deadline(1e-9)
    assert deadline.run(lambda: 7) == 7 and deadline.left > 0
