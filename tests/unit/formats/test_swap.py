"""PositionSwap: both orders, and a winner only where they agree."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flexjudge_reward import (
    ConfigError,
    Format,
    Listwise,
    MultipleChoice,
    Pairwise,
    PairwiseVerdict,
    Pointwise,
    PositionSwap,
    Request,
    Scale,
)
from support.judging import candidates, grade, judged, scores, tags


def first_is_better(request: Request) -> str:
    """The judge with nothing but position bias."""
    return tags(9, *(3 for _ in candidates(request)[1:]))


def best_letter(request: Request) -> str:
    grades = [grade(text) for text in candidates(request)]
    return tags("ABCDEFGH"[grades.index(max(grades))])


def test_a_winner_that_both_orders_name_stays() -> None:
    (verdict,) = judged(PositionSwap(Pairwise()), scores, ["3", "7"])
    assert verdict.scores == (3.0, 7.0)
    assert verdict.counters == {"swaps": 1, "swaps_agreed": 1} and len(verdict.generations) == 2
    assert verdict.outcomes == (None, None) and verdict.reasoning == "so\n\nso"


@pytest.mark.parametrize(
    ("format", "group", "tie"),
    [
        pytest.param(Pairwise(), ["3", "7"], (6.0, 6.0), id="pairwise"),
        pytest.param(Listwise(), ["3", "7", "5"], (5.0, 5.0, 5.0), id="listwise"),
    ],
)
def test_position_bias_becomes_a_tie(format: Format, group: list[str], tie: tuple[float, ...]) -> None:
    (verdict,) = judged(PositionSwap(format), first_is_better, group)
    assert verdict.scores == tie and verdict.scale == Scale(1, 10, decimals=True)
    assert verdict.counters == {"swaps": 1, "swaps_agreed": 0}


def test_orders_that_disagree_tie_whatever_the_margins() -> None:
    (verdict,) = judged(PositionSwap(Pairwise()), [tags(9, 3), tags(5, 4)], ["3", "7"])
    assert verdict.scores == (5.25, 5.25)


def test_a_list_is_judged_in_the_reverse_order() -> None:
    (verdict,) = judged(PositionSwap(Listwise()), scores, ["3", "9", "5"])
    assert verdict.scores == (3.0, 9.0, 5.0)


@pytest.mark.parametrize(
    ("format", "reply", "expected"),
    [
        pytest.param(MultipleChoice(), best_letter, (1.0, 0.0), id="choice"),
        pytest.param(MultipleChoice(), lambda request: tags("A"), (0.5, 0.5), id="choice_by_position"),
        pytest.param(PairwiseVerdict(), lambda request: tags("[[A>B]]"), (0.5, 0.5), id="option_by_position"),
        pytest.param(PairwiseVerdict(), lambda request: tags("[[A=B=Good]]"), (1.0, 1.0), id="both_good"),
        pytest.param(PairwiseVerdict(), lambda request: tags("[[A=B=Bad]]"), (0.0, 0.0), id="both_bad"),
    ],
)
def test_letters_and_options_are_swapped(
    format: Format, reply: Callable[[Request], str], expected: tuple[float, float]
) -> None:
    (verdict,) = judged(PositionSwap(format), reply, ["8", "2"])
    assert verdict.scores == expected


def test_a_margin_swaps_close_pairs_only() -> None:
    far, close = judged(PositionSwap(Pairwise(), margin=2), scores, ["1", "9"], ["5", "6"])
    assert (len(far.generations), len(close.generations)) == (1, 2)
    assert (far.scores, close.scores) == ((1.0, 9.0), (5.0, 6.0))
    assert far.counters == {}


@pytest.mark.parametrize("margin", [pytest.param(None, id="always"), pytest.param(9, id="by_margin")])
@pytest.mark.parametrize("broken", [pytest.param(0, id="first_order"), pytest.param(1, id="second_order")])
def test_an_order_that_fails_is_a_failure(broken: int, margin: float | None) -> None:
    replies = [tags(3, 7), tags(7, 3)]
    replies[broken] = "nonsense"
    (verdict,) = judged(PositionSwap(Pairwise(), margin), replies, ["3", "7"])
    assert verdict.scores is None and verdict.failure is not None and verdict.failure.kind == "malformed"
    assert "swaps" not in verdict.counters


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: PositionSwap(Pairwise(), margin=-1), "margin", id="margin"),
        pytest.param(lambda: PositionSwap(Pairwise(), margin=float("nan")), "margin", id="margin_nan"),
        pytest.param(lambda: PositionSwap(Pointwise()), "two or more candidates, found Pointwise", id="pointwise"),
    ],
)
def test_wrong_settings(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_one_candidate_has_no_other_order() -> None:
    class FromOne(Listwise):
        min_candidates = 1

    with pytest.raises(ConfigError, match=r"PositionSwap\(FromOne\) judges 2 to 8 candidates"):
        judged(PositionSwap(FromOne(), margin=1), [], ["5"])
