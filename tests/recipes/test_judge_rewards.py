"""recipes/judge_training/rl: what a verdict earns, in tables; what the trainer's reward function makes of a batch."""

from __future__ import annotations

from typing import Any

from flexjudge_recipes.judge_training.rl import rewards
from flexjudge_recipes.judge_training.rl.trl_reward import TrlReward

import pytest

from flexjudge_reward import (
    ConfigError,
    Failure,
    Listwise,
    MultipleChoice,
    Pairwise,
    Pointwise,
    Rubric,
    Scale,
    Verdict,
)
from support.judge_families import FAMILIES, ModelFamily, encoded

CHOICE, PAIR, LIST, SINGLE = (kind(prompt_set="nano") for kind in (MultipleChoice, Pairwise, Listwise, Pointwise))
GOLD_B = (1.0, 10.0, 1.0)
LIMIT = 100


def think(answer: str, thought: str = "so it is") -> str:
    return f"<think>{thought}</think>{answer}"


def tags(*answers: object) -> str:
    return think("".join(f"<answer>{answer}</answer>" for answer in answers))


def read(format: Any, candidates: int, text: str, tokens: int = 10) -> Verdict:
    return rewards.read(format, candidates, text, tokens, LIMIT)


def broken(kind: Any) -> Verdict:
    return Verdict.failed(Failure(kind))


ENGINE_FAILED = broken("engine")
NEITHER = Verdict((0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        pytest.param(tags("B"), 10, 1.0, id="right_and_formed"),
        pytest.param(tags("A"), 10, 0.1, id="wrong_and_formed"),
        pytest.param(tags("(B)"), 10, 1.0, id="bracketed_letter"),
        pytest.param(think("B"), 10, 0.0, id="letter_without_its_tag"),
        pytest.param("<answer>B</answer>", 10, 0.0, id="no_reasoning"),
        pytest.param("<think>the answer is <answer>B</answer>", 10, 0.0, id="never_stops_thinking"),
        pytest.param(tags("A", "B"), 10, 0.0, id="two_answers"),
        pytest.param(tags("D"), 10, 0.0, id="letter_that_is_no_option"),
        pytest.param(tags("b"), 10, 0.0, id="small_letter"),
        pytest.param(think("<answer>B</answer> surely"), 10, 0.0, id="words_after_the_verdict"),
        pytest.param(think("<answer>A</answer>", "<answer>B</answer>"), 10, 0.1, id="right_only_in_the_thought"),
        pytest.param("", 10, 0.0, id="empty"),
        pytest.param("I cannot help with that.", 10, 0.0, id="refused"),
        pytest.param(tags("B"), LIMIT - 1, 1.0, id="just_below_the_limit"),
        pytest.param(tags("B"), LIMIT, 0.0, id="right_but_at_the_limit"),
        pytest.param(tags("B"), LIMIT + 1, 0.0, id="right_but_beyond_the_limit"),
    ],
)
def test_choice(text: str, tokens: int, expected: float) -> None:
    assert rewards.choice(read(CHOICE, 3, text, tokens), GOLD_B) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param((8, 3), (3, 8), 1.0, id="right_in_both_orders"),
        pytest.param((8, 3), (8, 3), 0.0, id="always_the_first"),
        pytest.param((3, 8), (3, 8), 0.0, id="always_the_second"),
        pytest.param((3, 8), (8, 3), 0.0, id="wrong_in_both_orders"),
        pytest.param((8, 3), (5, 5), 0.0, id="a_tie_in_one_order"),
        pytest.param((8, 3), None, 0.0, id="one_reply_cannot_be_read"),
    ],
)
def test_both_orders(first: Any, second: Any, expected: float) -> None:
    one, other = (read(PAIR, 2, think("?") if scores is None else tags(*scores)) for scores in (first, second))
    assert rewards.both_orders(one, other, (10.0, 1.0)) == expected


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        pytest.param((9, 6, 2), 1.0, id="right_order"),
        pytest.param((10, 9, 8), 1.0, id="right_order_whatever_the_distances"),
        pytest.param((6, 9, 2), 1 / 3, id="first_two_swapped"),
        pytest.param((2, 9, 6), 1 / 3, id="first_moved_to_the_end"),
        pytest.param((2, 6, 9), 1 / 3, id="reversed"),
        pytest.param((9, 6, 6), 1 / 3, id="a_tie_is_no_right_order"),
        pytest.param((5, 5, 5), 1 / 3, id="all_equal"),
        pytest.param((9, 6), 0.0, id="too_few_scores"),
        pytest.param((9, 6, 11), 0.0, id="off_the_scale"),
    ],
)
def test_ranking(scores: tuple[int, ...], expected: float) -> None:
    assert rewards.ranking(read(LIST, 3, tags(*scores)), (3.0, 2.0, 1.0)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        pytest.param((), (), 0, id="empty"),
        pytest.param((0, 1, 2, 3), (0, 1, 2, 3), 0, id="equal"),
        pytest.param((0, 1, 2), (2, 1, 0), 2, id="reversed"),
        pytest.param((0, 1, 2, 3), (1, 2, 3, 0), 2, id="rotated"),
        pytest.param((0, 1), (0, 1, 2), 1, id="one_more"),
        pytest.param((0, 0, 0), (1, 2, 3), 3, id="nothing_in_common"),
    ],
)
def test_edit_distance(one: tuple[int, ...], other: tuple[int, ...], expected: int) -> None:
    assert rewards.edit_distance(one, other) == rewards.edit_distance(other, one) == expected


@pytest.mark.parametrize(
    ("format", "scores", "teacher", "expected"),
    [
        pytest.param(PAIR, (8, 3), (8, 3), 1.0, id="both_exact"),
        pytest.param(PAIR, (9, 4), (8, 3), 0.1 + 0.6 + 0.3 * (1 - 1 / 9), id="right_relation_one_off"),
        pytest.param(PAIR, (3, 8), (8, 3), 0.1 + 0.3 * (1 - 5 / 9), id="wrong_relation"),
        pytest.param(PAIR, (5, 5), (5, 5), 1.0, id="a_tie_that_the_teacher_has_too"),
        pytest.param(PAIR, (5, 5), (8, 2), 0.1 + 0.3 * (1 - 3 / 9), id="a_tie_that_it_has_not"),
        pytest.param(LIST, (9, 5, 6), (9, 6, 5), 0.1 + 0.6 * 2 / 3 + 0.3 * (1 - 2 / 27), id="two_of_three_pairs"),
        pytest.param(SINGLE, (7,), (7,), 1.0, id="single_exact"),
        pytest.param(SINGLE, (1,), (10,), 0.1, id="single_as_far_as_can_be"),
        pytest.param(PAIR, (8, 30), (8, 3), 0.0, id="off_the_scale"),
    ],
)
def test_teacher(format: Any, scores: tuple[int, ...], teacher: tuple[float, ...], expected: float) -> None:
    verdict = read(format, len(teacher), tags(*scores))
    assert rewards.teacher(verdict, teacher) == pytest.approx(expected)


def test_closeness_is_a_part_of_the_scale_of_the_verdict() -> None:
    five = Pointwise(Rubric("right or wrong", Scale(1, 5)), "nano")
    assert rewards.teacher(read(five, 1, tags(3)), (5.0,)) == pytest.approx(0.1 + 0.9 * 0.5)


@pytest.mark.parametrize(
    ("verdict", "concluded", "expected"),
    [
        pytest.param((0.0, 1.0, 0.0), (0.0, 1.0, 0.0), 1.0, id="right_and_consistent"),
        pytest.param((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), 0.75, id="right_against_its_own_thought"),
        pytest.param((1.0, 0.0, 0.0), (1.0, 0.0, 0.0), 0.25, id="wrong_and_consistent"),
        pytest.param((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), 0.25, id="wrong_against_its_own_thought"),
        pytest.param((0.0, 1.0, 0.0), None, None, id="the_other_reader_failed"),
        pytest.param(None, (0.0, 1.0, 0.0), 0.0, id="cannot_be_read"),
    ],
)
def test_consistent(verdict: Any, concluded: Any, expected: float | None) -> None:
    one, other = (broken("malformed") if scores is None else Verdict(scores) for scores in (verdict, concluded))
    assert rewards.consistent(one, GOLD_B, other) == expected


@pytest.mark.parametrize("kind", ["transport", "timeout", "engine", "media", "unsupported", "prompt_cut"])
def test_a_failure_that_is_not_the_judges_own_earns_no_number(kind: Any) -> None:
    failed = broken(kind)
    earned = [reward(failed, GOLD_B) for reward in (rewards.choice, rewards.ranking, rewards.teacher)]
    earned += [
        rewards.both_orders(failed, Verdict((1.0, 0.0)), (1.0, 0.0)),
        rewards.consistent(failed, GOLD_B, NEITHER),
    ]
    assert earned == [None] * 5


def test_no_single_best_candidate_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"one candidate must have the highest true score, found \[2.0, 2.0\]"):
        rewards.choice(Verdict((1.0, 0.0)), (2.0, 2.0))


# ------------------------------------------------------------------------------------------------- in TRL's trainer


def batch(reward: TrlReward, texts: list[str], scores: list[list[float]], twin: list[int], **given: Any) -> list[Any]:
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    ids = [[0] * 10 for _ in texts]
    return reward(completions, ids, scores=scores, task=["items"] * len(texts), twin=twin, **given)


@pytest.mark.parametrize(
    ("scale", "text", "expected"),
    [
        pytest.param([1, 5, 0], tags(5, 1), 1.0, id="exact"),
        pytest.param([1, 5, 0], tags(10, 1), 0.0, id="off_the_scale_of_the_row"),
        pytest.param([1, 5, 0], tags(3, 1), 0.1 + 0.6 + 0.3 * 0.75, id="closeness_by_the_scale_of_the_row"),
        pytest.param([1, 5, 1], tags(4.5, 1), 0.1 + 0.6 + 0.3 * (1 - 0.5 / 8), id="decimals"),
        pytest.param([1, 5, 0], tags(4.5, 1), 0.0, id="no_decimals"),
    ],
)
def test_a_row_is_read_on_the_scale_that_its_prompt_names(scale: list[float], text: str, expected: float) -> None:
    earned = batch(TrlReward("teacher", PAIR, LIMIT), [text], [[5.0, 1.0]], [-1], scale=[scale])
    assert earned == pytest.approx([expected])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_reply_of_every_family_is_read_as_at_use(family: ModelFamily) -> None:
    chat = family.chat()
    ids = encoded(chat, family.reply)
    dropped = [[{"role": "assistant", "content": chat.tokenizer.decode(ids, skip_special_tokens=True)}]]
    reward = TrlReward("teacher", SINGLE, 10_000, chat)
    assert reward(dropped, [ids], scores=[[7.0]], task=["items"], twin=[-1]) == [1.0]


@pytest.mark.parametrize("scores", [(2.0, 2.0, 1.0), (3.0, 1.0, 1.0), (1.0, 1.0, 1.0)])
def test_equal_true_scores_have_no_order(scores: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="equal true scores have no order"):
        rewards.ranking(read(LIST, 3, tags(9, 6, 2)), scores)


def test_draws_of_the_two_orders_are_paired_one_by_one() -> None:
    texts = [tags(8, 3), tags(8, 3), tags(3, 8), tags(8, 3), tags(1, 2), tags(1, 2)]
    scores = [[10.0, 1.0]] * 2 + [[1.0, 10.0]] * 2 + [[1.0, 2.0]] + [[2.0, 1.0]]
    earned = batch(TrlReward("both_orders", PAIR, LIMIT), texts, scores, [0, 0, 0, 0, 1, 1])
    assert earned == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]


def test_a_batch_with_one_order_only_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"(2 and 0|0 and 2) draws.*multiple of twice num_generations"):
        batch(TrlReward("both_orders", PAIR, LIMIT), [tags(8, 3)] * 2, [[10.0, 1.0]] * 2, [0, 0])


def test_letters_and_tasks_are_logged_apart() -> None:
    logged: dict[str, float] = {}
    texts = [tags("A"), tags("A"), tags("B"), think("?")]
    scores = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
    earned = batch(TrlReward("choice", CHOICE, LIMIT), texts, scores, [-1] * 4, log_metric=logged.__setitem__)
    assert earned == pytest.approx([1.0, 0.1, 1.0, 0.0])
    assert logged == {"formed": 0.75, "right/A": 0.5, "right/B": 0.5, "right/items": 0.5} | {
        "said/A": 0.5,
        "said/B": 0.25,
    }


def test_what_one_verdict_on_an_item_earns() -> None:
    for reward in ("choice", "ranking", "both_orders"):
        good, bad = (rewards.earned(reward, Verdict(said), (3.0, 2.0)) for said in ((9.0, 2.0), (2.0, 9.0)))
        assert good == 1.0 > (bad or 0.0)
        assert rewards.earned(reward, ENGINE_FAILED, (3.0, 2.0)) is None
