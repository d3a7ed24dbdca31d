"""Groups of any size: tournaments, chunks and knockouts, on scripted judges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexjudge_reward import (
    AnchoredChunks,
    BudgetForcing,
    ConfigError,
    Example,
    ExpectedScore,
    Format,
    Generation,
    Judge,
    Knockout,
    Listwise,
    MajorityVote,
    MultipleChoice,
    Pairwise,
    PairwiseVerdict,
    Pointwise,
    PositionSwap,
    Request,
    Scale,
    ScriptedEngine,
    Tournament,
    Verdict,
    for_group_size,
)
from support.judging import candidates, grade, judged, scores, tags

GROUP = ["5 a", "9 b", "1 c", "7 d", "3 e", "6 f", "2 g", "8 h"]


def best(request: Request) -> str:
    """The letter of the best candidate."""
    grades = [grade(text) for text in candidates(request)]
    return tags("ABCDEFGH"[grades.index(max(grades))])


class Recorder(ScriptedEngine):
    """Notes how many requests each call has."""

    def __init__(self, replies: Any) -> None:
        super().__init__(replies)
        self.calls: list[int] = []

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        self.calls.append(len(requests))
        return super().complete(requests)


# ---------------------------------------------------------------- tournaments


@pytest.mark.parametrize("schedule", ["all", "swiss"])
@pytest.mark.parametrize("score", ["bradley-terry", "win-rate"])
def test_a_tournament_finds_the_best_and_the_worst(schedule: Any, score: str) -> None:
    (verdict,) = judged(Tournament(Pairwise(), schedule, score=score), scores, GROUP)
    assert verdict.scores is not None and all(0 <= one <= 1 for one in verdict.scores)
    assert verdict.scores.index(max(verdict.scores)) == 1
    assert verdict.scores.index(min(verdict.scores)) == 2
    comparisons = {"all": 28, "swiss": 16}[schedule]
    assert verdict.counters["comparisons"] == comparisons == len(verdict.generations) == len(verdict.comparisons)


def test_a_round_of_a_batch_is_one_call() -> None:
    examples = [Example("q", GROUP[:4]), Example("q", GROUP[4:])]
    engine = Recorder(scores)
    Judge(Tournament(Pairwise()), engine)(examples)
    assert engine.calls == [12]
    engine = Recorder(scores)
    Judge(Tournament(Pairwise(), "swiss"), engine)(examples)
    assert engine.calls == [4, 4, 4]


def test_a_budget_limits_the_comparisons() -> None:
    for schedule in ("all", "swiss"):
        (verdict,) = judged(Tournament(Pairwise(), schedule, budget=5), scores, GROUP)  # type: ignore[arg-type]
        assert verdict.scores is not None and verdict.counters["comparisons"] == 5


def test_identical_candidates_are_one_member() -> None:
    (verdict,) = judged(Tournament(Pairwise()), scores, ["3", "8", "3", "8"])
    assert len(verdict.generations) == 1 and verdict.scores is not None
    assert verdict.scores[0] == verdict.scores[2] < verdict.scores[1] == verdict.scores[3]
    (same,) = judged(Tournament(Pairwise()), [], ["3", "3", "3"])
    assert same.scores == (0.5, 0.5, 0.5) and same.comparisons == () and not same.cached


def test_a_failed_comparison_is_left_out_unless_it_was_the_only_one() -> None:
    def fails(request: Request) -> str:
        return "x" if {"5 a", "9 b"} == set(candidates(request)) else scores(request)

    (verdict,) = judged(Tournament(Pairwise()), fails, GROUP[:4])
    assert verdict.scores is not None and verdict.counters["comparisons"] == 5
    assert sum(failure is not None for failure in verdict.outcomes) == 1 and len(verdict.comparisons) == 6
    (lost,) = judged(Tournament(Pairwise()), fails, GROUP[:2])
    assert lost.failure is not None and lost.failure.kind == "malformed"
    assert len(lost.comparisons) == 1 and lost.comparisons[0].verdict.failure == lost.failure


def test_a_pair_that_failed_is_not_drawn_again_by_swiss() -> None:
    engine = ScriptedEngine(lambda request: "x" if "9 b" in candidates(request) else scores(request))
    (verdict,) = Judge(Tournament(Pairwise(), "swiss"), engine)([Example("q", GROUP)])
    pairs = [frozenset(candidates(request)) for request in engine.requests]
    assert len(set(pairs)) == len(pairs)
    assert verdict.failure is not None and verdict.failure.kind == "malformed"


@pytest.mark.parametrize("schedule", ["all", "swiss"])
@pytest.mark.parametrize(
    "inner", [Pairwise(), PositionSwap(Pairwise()), MajorityVote(Pairwise(), 3, by="mean")], ids=Format.described
)
def test_comparisons_name_the_candidates_of_the_example(schedule: Any, inner: Format) -> None:
    group = ["3", "8", "3", "5", "8", "1"]  # two occur twice
    (verdict,) = judged(Tournament(inner, schedule), scores, group)
    pairs = [(one.first, one.second) for one in verdict.comparisons]
    assert {index for pair in pairs for index in pair} == {0, 1, 3, 5}  # a duplicate is named by its first index
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == verdict.counters["comparisons"]
    assert any(first > second for first, second in pairs) and any(first < second for first, second in pairs)
    for one in verdict.comparisons:
        assert one.verdict.scores == (grade(group[one.first]), grade(group[one.second]))
    assert tuple(reply for one in verdict.comparisons for reply in one.verdict.generations) == verdict.generations


def test_other_formats_have_no_comparisons() -> None:
    (pair,) = judged(Pairwise(), scores, GROUP[:2])
    (chunks,) = judged(AnchoredChunks(Listwise(), 4), scores, GROUP)
    assert pair.comparisons == chunks.comparisons == ()


# ---------------------------------------------------------------- chunks


@settings(max_examples=60, deadline=None, derandomize=True)
@given(grades=st.lists(st.integers(1, 10), min_size=2, max_size=12), size=st.integers(2, 8), distinct=st.booleans())
def test_chunks_give_the_same_scores_as_one_list(grades: list[int], size: int, distinct: bool) -> None:
    group = [f"{quality} {index}" if distinct else str(quality) for index, quality in enumerate(grades)]
    engine = ScriptedEngine(scores)
    (verdict,) = Judge(AnchoredChunks(Listwise(), size), engine)([Example("q", group)])
    assert verdict.scores == tuple(float(quality) for quality in grades)
    sizes = [len(candidates(request)) for request in engine.requests]
    assert all(2 <= one <= size for one in sizes) and max(sizes) - min(sizes) <= 1


def test_a_harsh_chunk_is_lifted_by_the_anchor() -> None:
    """A judge that scores one call two points lower: the anchor shows it."""
    calls: list[int] = []

    def harsh(request: Request) -> str:
        calls.append(1)
        return tags(*(grade(text) - 2 * (len(calls) == 2) for text in candidates(request)))

    (verdict,) = judged(AnchoredChunks(Listwise(), 4), harsh, ["5 a", "6 b", "4 c", "7 d", "5 e", "6 f", "4 g"])
    assert verdict.scores is not None
    assert [round(one - verdict.scores[0], 6) for one in verdict.scores] == [0, 1, -1, 2, 0, 1, -1]
    assert verdict.scale == Scale(1, 10, decimals=True)


def test_shifted_scores_stay_on_the_scale() -> None:
    calls: list[int] = []

    def harsh(request: Request) -> str:
        calls.append(1)
        bonus = {"5 anchor": -4 * (len(calls) == 2)}
        return tags(*(grade(text) + bonus.get(text, 0) for text in candidates(request)))

    group = ["5 anchor", "10 b", "10 c", "10 d", "10 e"]
    (verdict,) = judged(AnchoredChunks(Listwise(), 3), harsh, group)
    assert verdict.scores is not None and sorted(verdict.scores) == [3, 8, 8, 10, 10]


def test_a_chunk_that_failed_fails_the_group() -> None:
    def fails(request: Request) -> str:
        return "x" if "8 h" in candidates(request) else scores(request)

    (verdict,) = judged(AnchoredChunks(Listwise(), 4), fails, GROUP)
    assert verdict.failure is not None and verdict.failure.kind == "malformed"
    assert len(verdict.outcomes) == len(verdict.generations) == 3


# ---------------------------------------------------------------- knockouts


@pytest.mark.parametrize("size", [3, 8])
def test_a_knockout_finds_the_best_of_any_number(size: int) -> None:
    for members in (2, 7, 8, 9, 15, 16, 17, 65):
        group = [f"{(11 * n) % members + 1} {n}" for n in range(members)]
        engine = ScriptedEngine(best)
        (verdict,) = Judge(Knockout(MultipleChoice(), size), engine)([Example("q", group)])
        assert verdict.scores is not None and all(0 <= one <= 1 for one in verdict.scores)
        winners = [text for text, score in zip(group, verdict.scores, strict=True) if score == 1.0]
        assert [grade(text) for text in winners] == [members]
        assert all(2 <= len(candidates(request)) <= size for request in engine.requests)


def test_identical_candidates_of_a_choice_share_its_score() -> None:
    engine = ScriptedEngine(best)
    (verdict,) = Judge(Knockout(MultipleChoice()), engine)([Example("q", ["8", "8", "3", "1"])])
    assert verdict.scores == (1.0, 1.0, 0.0, 0.0)
    assert [sorted(candidates(request)) for request in engine.requests] == [["1", "3", "8"]]


def test_the_winner_of_the_last_round_is_first_whatever_the_first_round_scored() -> None:
    class Soft(MultipleChoice):
        """The best gets barely more than a half from a judge that knows its rivals, and all from one that does not."""

        def read(self, example: Example, generations: Sequence[Generation]) -> Verdict:
            grades = [grade(str(candidate[0])) for candidate in example.candidates]
            sure = 1.0 if max(grades) < 16 else 0.55
            return Verdict(tuple(sure if one == max(grades) else 0.0 for one in grades))

    (verdict,) = judged(Knockout(Soft()), best, [f"{n} x" for n in range(1, 17)])
    assert verdict.scores is not None and max(verdict.scores) == verdict.scores[15] > 0.5


def test_ties_advance_until_no_candidate_drops_out() -> None:
    """Position bias alone makes no winner."""
    for members in (8, 9, 15, 16, 20):
        group = [f"{n}" for n in range(members)]
        (verdict,) = judged(Knockout(PositionSwap(MultipleChoice())), lambda request: tags("A"), group)
        assert verdict.scores is not None and len(set(verdict.scores)) == 1


def test_a_choice_that_failed_fails_the_group() -> None:
    def fails(request: Request) -> str:
        return "x" if "3 x" in candidates(request) else best(request)

    (verdict,) = judged(Knockout(MultipleChoice()), fails, [f"{n} x" for n in range(1, 17)])
    assert verdict.scores is None and verdict.failure is not None and verdict.failure.kind == "malformed"


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    "format",
    [
        pytest.param(MajorityVote(Tournament(Pairwise()), 3), id="votes"),
        pytest.param(BudgetForcing(Tournament(Pairwise())), id="forced"),
        pytest.param(BudgetForcing(Knockout(MultipleChoice())), id="forced_choice"),
        pytest.param(
            MajorityVote(BudgetForcing(PositionSwap(Knockout(MultipleChoice()))), 2, by="mean"), id="all_at_once"
        ),
    ],
)
def test_identical_candidates_need_no_call_inside_any_wrapper(format: Format) -> None:
    (verdict,) = judged(format, [], ["a", "a", "a"])
    assert verdict.scores is not None and len(set(verdict.scores)) == 1


@pytest.mark.parametrize(
    "format", [Tournament(Pairwise()), AnchoredChunks(Listwise()), Knockout(MultipleChoice())], ids=Format.described
)
def test_a_lone_candidate_is_no_group(format: Format) -> None:
    with pytest.raises(ConfigError, match="at least 2 candidates at a time, this example has 1"):
        judged(format, [], ["5"])


@pytest.mark.parametrize("format", [Pairwise(), Listwise(), MultipleChoice()], ids=Format.described)
def test_the_order_in_the_group_does_not_decide_the_order_in_the_prompt(format: Format) -> None:
    """Sides and orders differ from group to group; a seed repeats them."""
    groups = [[f"3 a{n}", f"7 b{n}"] for n in range(200)]

    def orders(whole: Format) -> list[list[str]]:
        engine = ScriptedEngine(best if format.answers == "letter" else scores)
        Judge(whole, engine)([Example("q", group) for group in groups])
        return [candidates(request) for request in engine.requests]

    first = orders(for_group_size(format))
    assert 70 < Counter(one[0].split()[1][0] for one in first)["a"] < 130
    assert orders(for_group_size(format)) == first != orders(for_group_size(format, seed=1))


# ---------------------------------------------------------------- for_group_size


class Own(Format):
    """A format of one's own that scores a list: only `render` and `read`."""

    def __init__(self, fewest: float, most: float, answers: Any = "numbers") -> None:
        self.min_candidates, self.max_candidates, self.answers = fewest, most, answers
        self.inner_format = MultipleChoice() if answers == "letter" else Listwise()

    def render(self, example: Example) -> list[Any]:
        return self.inner_format.render(example)

    def read(self, example: Example, generations: Sequence[Generation]) -> Verdict:
        return self.inner_format.read(example, generations)


@pytest.mark.parametrize(
    ("format", "described"),
    [
        pytest.param(Pairwise(), "Tournament(Pairwise)", id="pairwise"),
        pytest.param(PairwiseVerdict(), "Tournament(PairwiseVerdict)", id="pairwise_verdict"),
        pytest.param(Listwise(), "AnchoredChunks(Listwise)", id="listwise"),
        pytest.param(MultipleChoice(), "Knockout(MultipleChoice)", id="choice"),
        pytest.param(MajorityVote(Listwise(), 3), "AnchoredChunks(MajorityVote(Listwise))", id="votes_of_lists"),
        pytest.param(PositionSwap(Pairwise()), "Tournament(PositionSwap(Pairwise))", id="swapped_pair"),
        pytest.param(PositionSwap(MultipleChoice()), "Knockout(PositionSwap(MultipleChoice))", id="swapped_choice"),
        pytest.param(
            BudgetForcing(MajorityVote(Pairwise(), 3)),
            "Tournament(BudgetForcing(MajorityVote(Pairwise)))",
            id="two_wrappers",
        ),
        pytest.param(
            ExpectedScore(MultipleChoice()), "Knockout(ExpectedScore(MultipleChoice))", id="expected_choice_is_a_choice"
        ),
        pytest.param(Own(2, 2), "Tournament(Own)", id="own_for_two"),
        pytest.param(Own(2, 2, "letter"), "Tournament(Own)", id="own_letter_for_two"),
        pytest.param(Own(2, 4), "AnchoredChunks(Own)", id="own_list"),
        pytest.param(Own(1, 4), "AnchoredChunks(Own)", id="own_list_from_one"),
        pytest.param(Own(2, 5, "letter"), "Knockout(Own)", id="own_letter"),
        pytest.param(PositionSwap(Own(2, 4)), "AnchoredChunks(PositionSwap(Own))", id="own_in_a_wrapper"),
    ],
)
def test_a_format_for_a_few_is_made_one_for_any_number(format: Format, described: str) -> None:
    whole = for_group_size(format)
    assert whole.described() == described and whole.inner is format
    assert (whole.min_candidates, whole.max_candidates) == (2, float("inf"))
    assert for_group_size(whole) is whole


@pytest.mark.parametrize(
    "format",
    [
        pytest.param(Pointwise(), id="pointwise"),
        pytest.param(MajorityVote(Pointwise(), 3), id="votes_on_one"),
        pytest.param(BudgetForcing(Tournament(Pairwise())), id="any_number_in_a_wrapper"),
        pytest.param(Own(1, float("inf")), id="own_for_any_number"),
        pytest.param(Own(4, 4), id="own_for_exactly_four"),
    ],
)
def test_other_formats_stay_as_they_are(format: Format) -> None:
    assert for_group_size(format) is format


@pytest.mark.parametrize(
    ("format", "sizes"),
    [
        pytest.param(Own(2, 4), {4, 3}, id="list"),
        pytest.param(PositionSwap(Own(2, 4)), {4, 3}, id="list_in_a_wrapper"),
        pytest.param(Own(2, 2), {2}, id="pairs"),
    ],
)
def test_a_format_of_ones_own_judges_groups(format: Format, sizes: set[int]) -> None:
    engine = ScriptedEngine(scores)
    (verdict,) = Judge(format, engine).for_group_size()([Example("q", GROUP)])
    assert verdict.scores is not None
    assert {len(candidates(request)) for request in engine.requests} == sizes
    ranked = sorted(range(len(GROUP)), key=lambda index: verdict.scores[index])  # type: ignore[index]
    assert ranked == sorted(range(len(GROUP)), key=lambda index: grade(GROUP[index]))


def test_settings_reach_the_group_format() -> None:
    tournament = for_group_size(Pairwise(), schedule="swiss", budget=7, seed=3)
    assert isinstance(tournament, Tournament)
    assert (tournament.schedule, tournament.budget, tournament.seed) == ("swiss", 7, 3)
    chunks = [for_group_size(Listwise(), chunk=chunk) for chunk in (3, 8, 20)]
    assert [one.size for one in chunks if isinstance(one, AnchoredChunks)] == [3, 8, 8]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Tournament(Pairwise(), "cup"), "must be one of all, swiss", id="schedule"),  # type: ignore[arg-type]
        pytest.param(lambda: Tournament(Pairwise(), score="elo"), "bradley-terry", id="score"),
        pytest.param(lambda: Tournament(Pairwise(), budget=0), "at least 1", id="budget_0"),
        pytest.param(lambda: Tournament(Pointwise()), "Pointwise takes 1 to 1", id="tournament_of_one"),
        pytest.param(lambda: Tournament(Own(3, 4)), "Own takes 3 to 4", id="tournament_of_three"),
        pytest.param(lambda: AnchoredChunks(Listwise(), 1), "at least two", id="chunk"),
        pytest.param(lambda: AnchoredChunks(Listwise(), 9), "2 to 9 .* Listwise takes 2 to 8", id="chunk_too_large"),
        pytest.param(lambda: Knockout(MultipleChoice(), 2), "at least three", id="knockout_of_two"),
        pytest.param(lambda: Knockout(MultipleChoice(), 9), "MultipleChoice takes 2 to 8", id="knockout_too_large"),
    ],
)
def test_wrong_settings(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_an_impossible_budget_names_the_least() -> None:
    with pytest.raises(ConfigError, match=r"example 0: a budget of 2 .* of a group of 8 .* must be at least 4"):
        judged(Tournament(Pairwise(), budget=2), [], GROUP)


def test_tournaments_score_in_the_unit_interval() -> None:
    for format in (Tournament(Pairwise()), Knockout(MultipleChoice())):
        (verdict,) = judged(format, scores if isinstance(format, Tournament) else best, GROUP)
        assert verdict.scale == Scale(0, 1, decimals=True)
