"""MajorityVote: the outcome of all votes from as few as can settle it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, multimode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexjudge_reward import (
    BudgetForcing,
    ConfigError,
    Example,
    Format,
    Generation,
    Judge,
    MajorityVote,
    Pairwise,
    PairwiseVerdict,
    Pointwise,
    Request,
    Rubric,
    Sampling,
    Scale,
    ScriptedEngine,
)
from flexjudge_reward.formats.votes import votes_needed
from support.judging import judged, scores, tags

OPTIONS = {"[[A>B]]": (0,), "[[B>A]]": (1,), "[[A=B=Good]]": (0, 1), "[[A=B=Bad]]": ()}
ANSWERS = {
    "pointwise": st.tuples(st.integers(1, 4)),
    "pairwise": st.tuples(st.integers(1, 3), st.integers(1, 3)),
    "pairwise_of_bits": st.tuples(st.integers(0, 1), st.integers(0, 1)),
    "pairwise_verdict": st.tuples(st.sampled_from(list(OPTIONS))),
}
FORMATS: dict[str, Format] = {
    "pointwise": Pointwise(),
    "pairwise": Pairwise(),
    "pairwise_of_bits": Pairwise(Rubric("Is it right?", Scale(0, 1))),  # two zeros are a tie, not two bad candidates
    "pairwise_verdict": PairwiseVerdict(),
}


def ballot(name: str, answers: Sequence[int | str]) -> object:
    """What one vote says: a score, or the candidates it calls best."""
    if name == "pointwise":
        return answers[0]
    if name == "pairwise_verdict":
        return OPTIONS[str(answers[0])]
    return tuple(i for i in (0, 1) if answers[i] == max(answers))  # type: ignore[type-var]


def outcome(name: str, votes: Sequence[Sequence[int | str] | None]) -> tuple[float, ...] | None:
    """The outcome of all votes, counted here once more; None for a vote that failed."""
    leading = multimode([ballot(name, vote) for vote in votes if vote is not None])
    if not leading:
        return None
    if name == "pointwise":
        return (fmean(leading),)  # type: ignore[type-var]
    return tuple(fmean(float(i in best) for best in leading) for i in (0, 1))  # type: ignore[operator]


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_stopping_early_changes_no_outcome(name: str, data: st.DataObject) -> None:
    votes = data.draw(st.lists(st.none() | ANSWERS[name], min_size=1, max_size=7))

    def reply(request: Request) -> str:
        answers = votes[request.sampling.seed - 5]
        return "nonsense" if answers is None else tags(*answers)

    group = ["a"] if name == "pointwise" else ["a", "b"]
    (verdict,) = judged(MajorityVote(FORMATS[name], len(votes)), reply, group, sampling=Sampling(seed=5))
    expected = outcome(name, votes)
    assert verdict.scores == (expected if expected is None else pytest.approx(expected))
    assert (verdict.failure is None) == (expected is not None)
    if expected is not None:
        assert verdict.scale == replace(Scale() if name == "pointwise" else Scale(0, 1), decimals=True)
    assert verdict.counters["votes"] + verdict.counters["votes_saved"] == len(votes)
    assert verdict.counters["votes"] == len(verdict.generations) == len(verdict.outcomes)


def test_agreeing_votes_stop_at_the_majority() -> None:
    (verdict,) = judged(MajorityVote(Pointwise(), 7), scores, ["4"])
    assert verdict.counters == {"votes": 4, "votes_saved": 3} and verdict.scores == (4.0,)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        pytest.param("[[A>B]]", (1.0, 0.0), id="one"),
        pytest.param("[[A=B=Good]]", (1.0, 1.0), id="both"),
        pytest.param("[[A=B=Bad]]", (0.0, 0.0), id="neither"),
    ],
)
def test_equal_votes_on_options_have_the_outcome_of_each(option: str, expected: tuple[float, float]) -> None:
    (verdict,) = judged(MajorityVote(PairwiseVerdict(), 3), lambda request: tags(option), ["a", "b"])
    assert verdict.scores == expected


def test_each_vote_is_a_sample_of_its_own() -> None:
    engine = ScriptedEngine(lambda request: tags(request.sampling.seed - 10))
    judge = Judge(MajorityVote(Pointwise(), 3, by="mean"), engine, Sampling(temperature=1, seed=11))
    (verdict,) = judge([Example("q", ["a"])])
    assert verdict.scores == (2.0,)
    assert [request.sampling for request in engine.requests] == [Sampling(temperature=1, seed=11 + n) for n in range(3)]


def test_the_mean_of_equal_votes_stays_on_the_scale() -> None:
    format = MajorityVote(Pointwise(Rubric("Is it right?", Scale(0, 0.1, decimals=True))), 3, by="mean")
    (verdict,) = judged(format, lambda request: tags("0.1"), ["a"])
    assert verdict.scores == (0.1,)


def test_a_larger_k_repeats_the_first_requests() -> None:
    """So that a cache serves them."""
    requests = []
    for k in (3, 5):
        engine = ScriptedEngine(lambda request: tags(1 + request.sampling.seed))
        Judge(MajorityVote(Pointwise(), k), engine)([Example("q", ["a"])])
        requests.append(engine.requests)
    assert requests[1][: len(requests[0])] == requests[0]


def test_a_vote_keeps_its_seed_in_later_rounds() -> None:
    def reply(request: Request) -> Generation:
        if request.prompt.messages[-1].role == "assistant":
            return Generation(f"<answer>{request.sampling.seed + 1}</answer>")
        return Generation("<think>hm", "length")

    (verdict,) = judged(MajorityVote(BudgetForcing(Pointwise()), 3, by="mean"), reply, ["a"])
    assert verdict.scores == (2.0,) and verdict.counters["forced"] == 3


def test_failed_votes_do_not_count_and_a_draw_is_shared() -> None:
    (drawn,) = judged(MajorityVote(Pointwise(), 5), ["x", tags(3), "x", tags(5), "x"], ["a"])
    assert drawn.scores == (4.0,) and drawn.counters["votes"] == 5
    assert [failure is None for failure in drawn.outcomes] == [False, True, False, True, False]
    (mean,) = judged(MajorityVote(Pointwise(), 3, by="mean"), ["x", tags(3), tags(6)], ["a"])
    assert mean.scores == (4.5,)
    (failed,) = judged(MajorityVote(Pointwise(), 3), ["x", "x", ""], ["a"])
    assert failed.scores is None and failed.failure is not None and len(failed.generations) == 3


@pytest.mark.parametrize(
    ("ballots", "k", "drawn", "needed"),
    [
        pytest.param({}, 7, 0, 4, id="start"),
        pytest.param({(1.0,): 4}, 7, 4, 0, id="settled"),
        pytest.param({(1.0,): 3, (2.0,): 1}, 7, 4, 1, id="one_more_could_do"),
        pytest.param({(1.0,): 2, (2.0,): 2}, 7, 4, 2, id="even"),
        pytest.param({(1.0,): 3, (2.0,): 3}, 7, 6, 1, id="last_decides"),
        pytest.param({}, 7, 4, 2, id="only_failures_so_far"),
        pytest.param({(1.0,): 1}, 1, 1, 0, id="k_1"),
        pytest.param({(1.0,): 1}, 2, 1, 1, id="a_draw_is_possible"),
        pytest.param({}, 3, 3, 0, id="all_drawn"),
    ],
)
def test_votes_needed(ballots: dict[tuple[float, ...], int], k: int, drawn: int, needed: int) -> None:
    assert votes_needed(Counter(ballots), k, drawn) == needed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: MajorityVote(Pointwise(), 0), "at least 1", id="k_0"),
        pytest.param(lambda: MajorityVote(Pointwise(), True), "at least 1", id="k_bool"),
        pytest.param(lambda: MajorityVote(Pointwise(), 3, by="luck"), "'majority' or 'mean'", id="by"),
    ],
)
def test_wrong_settings(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
