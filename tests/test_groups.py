"""Whole groups in the TRL reward, alone and over several gloo processes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.layouts import mismatches, run, waited

from flexjudge_reward import (
    Choice,
    ConfigError,
    EngineError,
    Generation,
    Judge,
    JudgementFailed,
    Listwise,
    Pair,
    Prompt,
    Score,
)
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.formats.adaptive import Forced, Swapped, Votes
from flexjudge_reward.trainers.gather import Offer, assemble, raise_together
from flexjudge_reward.trainers.trl import FlexJudgeReward
from flexjudge_reward.types import AnyFormat


def lengths(prompt: Prompt) -> str:
    texts = [part.text for part in prompt.messages[1].parts if hasattr(part, "text")][1:]
    if not 2 <= len(texts) <= 8:
        return "?"
    return "<think></think>" + "".join(f"<answer>{min(10, len(text))}</answer>" for text in texts)


@pytest.mark.parametrize("format", [Listwise(), Pair(), Swapped(Pair()), Votes(Listwise(), 2, by="mean")])
def test_completions_are_judged_against_their_siblings(format: Any) -> None:
    engine = ScriptedEngine(lengths)
    reward = FlexJudgeReward(Judge(format, engine))
    found = reward(["p", "q", "p", "q", "p", "q"], ["a", "bbbb", "aaaaa", "b", "aaa", "bb"])
    scores = [value if value is not None else -1.0 for value in found]
    assert scores[0] < scores[4] < scores[2] and scores[3] < scores[5] < scores[1]
    assert reward.summary.judgements == 6


def test_one_listwise_call_serves_a_group() -> None:
    engine = ScriptedEngine(lengths)
    FlexJudgeReward(Judge(Listwise(), engine))(["p"] * 4 + ["q"] * 4, [c * n for c in "ab" for n in (1, 2, 3, 4)])
    assert len(engine.prompts) == 2


def longest(prompt: Prompt) -> str:
    texts = [part.text for part in prompt.messages[1].parts if hasattr(part, "text")][1:]
    return f"<think></think><answer>{'ABCDEFGH'[texts.index(max(texts, key=len))]}</answer>"


def test_a_choice_rewards_the_chosen_wherever_it_stands_and_its_twin() -> None:
    reward = FlexJudgeReward(Judge(Choice(), ScriptedEngine(longest)))
    assert reward(["p"] * 4, ["a", "ccc", "bb", "ccc"]) == [0, 1, 0, 1]
    found = reward(["q"] * 16, ["x" * n for n in range(1, 17)])
    assert found[15] == 1.0 and sorted(found, key=float)[-2:] == [0.5, 1.0]  # type: ignore[arg-type]


def test_a_prompt_alone_in_its_batch_is_as_many_groups_as_the_trainer_says() -> None:
    """Two groups of four with the same prompt: the failed row gets the mean of its own siblings."""
    replies = [f"<think></think><answer>{score}</answer>" for score in (1, 1, 4)] + ["?"]
    replies += ["<think></think><answer>10</answer>"] * 4
    told = FlexJudgeReward(Judge(Score(), ScriptedEngine(list(replies))), num_generations=4, max_failure_rate=1.0)
    assert told(["p"] * 8, list("abcdefgh"))[3] == pytest.approx((0 + 0 + 3 / 9) / 3)
    guessed = FlexJudgeReward(Judge(Score(), ScriptedEngine(list(replies))), max_failure_rate=1.0)
    assert guessed(["p"] * 8, list("abcdefgh"))[3] == pytest.approx((0 + 0 + 3 / 9 + 4) / 7)
    lists = ScriptedEngine(lengths)
    FlexJudgeReward(Judge(Listwise(), lists), num_generations=4)(["p"] * 8, ["x" * n for n in range(1, 9)])
    assert len(lists.prompts) == 2


def test_settings_make_group_formats() -> None:
    metrics: dict[str, float] = {}
    reward = FlexJudgeReward(model="nano", format="pair", swap=True, schedule="ring", force_tokens=0, cache="off")
    judge = reward._ready()
    judge.engine = ScriptedEngine(lengths)
    reward(["p"] * 4, ["a", "bb", "ccc", "dddd"], log_metric=lambda name, value: metrics.__setitem__(name, value))
    assert metrics[f"{reward.__name__}/swap_agreed"] == 1.0
    assert metrics[f"{reward.__name__}/zero_variance"] == 0.0
    assert metrics[f"{reward.__name__}/score_length"] > 0.9
    assert reward.summary.notes["comparisons"] == 4 and reward.summary.notes["swaps"] == 4
    assert reward.summary.means["swap_agreed"] == 1.0 and reward.summary.means["zero_variance"] == 0.0
    reward(["p"] * 2, ["a", "a"])
    assert reward.summary.means["zero_variance"] == 0.5  # of two calls, one gave no gradient
    assert reward.summary.means["swap_agreed"] == 1.0  # the second compared nothing


def test_the_share_of_forced_thoughts_is_of_thoughts() -> None:
    """Four comparisons make one verdict, and four thoughts."""
    metrics: dict[str, float] = {}

    def cut(prompt: Prompt) -> Generation | str:
        if prompt.messages[-1].role == "assistant":
            return "<answer>3</answer><answer>7</answer>"
        return Generation("<think>hm", "length")

    reward = FlexJudgeReward(Judge(Forced(Pair()), ScriptedEngine(cut)), name="r")
    reward(["p"] * 4, ["a", "bb", "ccc", "dddd"], log_metric=metrics.__setitem__)
    assert metrics["r/forced"] == 1.0 and reward.summary.notes["forced"] == 6


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        pytest.param([("a", "b")], "multiple of num_generations", id="single_rows"),
        pytest.param([("a", "a", "b"), ("b", "c")], "multiple of num_generations", id="a_group_is_cut"),
    ],
)
def test_incomplete_groups_are_refused_with_the_batch_size_rule(keys: list[tuple[str, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        assemble([Offer(one, one) for one in keys])


def test_owners_hold_most_of_their_group_and_share_the_work() -> None:
    offers = [Offer(tuple("aab"), tuple("uvw")), Offer(tuple("bcc"), tuple("xyz"))]
    groups = assemble(offers)
    assert [(group.owner, group.texts) for group in groups] == [(0, ("u", "v")), (1, ("w", "x")), (1, ("y", "z"))]
    even = assemble([Offer(tuple("abcd"), tuple("abcd")), Offer(tuple("abcd"), tuple("efgh"))])
    assert sorted(group.owner for group in even) == [0, 0, 1, 1]


def test_a_prompt_that_stands_twice_is_two_groups() -> None:
    groups = assemble([Offer(tuple("aaaabb"), tuple("123456"))])
    assert [group.texts for group in groups] == [("1", "2"), ("3", "4"), ("5", "6")]


def test_an_error_of_one_rank_is_an_error_of_all() -> None:
    with pytest.raises(EngineError, match="rank 1 could not judge: KeyError"):
        raise_together([Offer(), Offer(error="KeyError: 'x'")])


def test_pictures_in_a_completion_cannot_be_compared_as_texts() -> None:
    from PIL import Image

    picture = [{"role": "assistant", "content": [{"type": "image", "image": Image.new("RGB", (4, 4))}]}]
    with pytest.raises(ConfigError, match="format='score'"):
        FlexJudgeReward(Judge(Listwise(), ScriptedEngine([])))(["p", "p"], [picture, picture])


def mostly(share: float, good: Callable[[Prompt], str]) -> Callable[[Prompt], str]:
    """Replies of which that share cannot be read."""
    rng = random.Random(1)
    return lambda prompt: "?" if rng.random() < share else good(prompt)


def test_a_list_that_fails_is_one_failure_however_many_it_ranks() -> None:
    replies = iter(["?"])
    engine = ScriptedEngine(lambda prompt: next(replies, None) or lengths(prompt))
    given = FlexJudgeReward(Judge(Listwise(), engine))
    assert given(["p"] * 32, [f"{n} " + "x" * n for n in range(32)]).count(None) == 32
    for _ in range(3):
        given(["p"] * 32, [f"{n} " + "x" * n for n in range(32)])
    assert given.summary.means["failed_judgements"] < 0.06 < given.summary.means["failure_rate"]


@pytest.mark.parametrize(
    ("format", "good"),
    [
        pytest.param(lambda: Pair(), lengths, id="comparisons"),
        pytest.param(lambda: Votes(Score(), 7), lambda prompt: "<think></think><answer>7</answer>", id="votes"),
    ],
)
def test_failed_comparisons_and_votes_count_though_their_rows_have_scores(
    format: Callable[[], AnyFormat], good: Callable[[Prompt], str]
) -> None:
    given = FlexJudgeReward(Judge(format(), ScriptedEngine(mostly(0.3, good))))
    with pytest.raises(JudgementFailed, match="26 of the last"):
        for step in range(40):
            given(["p"] * 8, [f"{step} {n} " + "x" * n for n in range(8)])
    assert given.summary.means["failed_judgements"] > 0.2 > given.summary.means["failure_rate"]


def test_a_tool_that_returns_rows_is_read_as_text() -> None:
    engine = ScriptedEngine(lambda prompt: "<think></think><answer>7</answer>")
    found = [{"title": "T"}, 3]
    turns = [{"role": "tool", "content": found}, {"role": "assistant", "content": "It says T."}]
    FlexJudgeReward(Judge(Score(), engine))(["p"], [turns])
    assert '[{"title": "T"}, 3]' in str(engine.prompts[0])
    with pytest.raises(ConfigError, match="a part of a message must be text, image, video or molecule"):
        FlexJudgeReward(Judge(Score(), engine))(["p"], [[{"role": "assistant", "content": found}]])


@pytest.mark.trainer
@pytest.mark.parametrize("world", [2, 4])
def test_every_layout_gives_the_rewards_of_a_single_process(world: int, tmp_path: Path) -> None:
    for forms in ("listwise+pair", "choice", "score"):
        wrong, total = mismatches(world, forms, tmp_path)
        assert wrong == 0 and total >= 96


@pytest.mark.trainer
@pytest.mark.parametrize(
    ("how", "seconds", "ended"),
    [
        pytest.param("raises", 0, ("RuntimeError", "EngineError"), id="raises"),
        pytest.param("hangs", 60, ("none", "rewards"), id="hangs"),
        pytest.param("is slow", 0.2, ("rewards", "rewards"), id="slow"),
    ],
)
def test_no_rank_waits_past_the_deadline(how: str, seconds: float, ended: tuple[str, str], tmp_path: Path) -> None:
    deadline = 3.0
    (own, first), (other, second) = run(2, waited, tmp_path, how, seconds, deadline)
    assert (first, second) == ended
    assert max(own, other) < deadline + 10
