"""Best of N: every format finds the best, no candidate vanishes, and no place wins the ties."""

from __future__ import annotations

import pytest
from PIL import Image

from flexjudge_reward import (
    AnchoredChunks,
    ConfigError,
    Example,
    Failure,
    Format,
    Judge,
    Knockout,
    Listwise,
    Media,
    MultipleChoice,
    Pairwise,
    Pointwise,
    PositionSwap,
    Request,
    ScriptedEngine,
    Tournament,
    best_of_n,
    rerank,
    unscored,
)
from support.judging import tags

GROUP = ["5 a", "9 b", "1 c", "7 d"]


def judge(format: Format) -> Judge:
    """Scores each candidate by its first number, an image by its red."""

    def reply(request: Request) -> str:
        texts = [part for part in request.prompt.messages[1].parts if not isinstance(part, str)][1:]
        scores = [p.images()[0].getpixel((0, 0))[0] if isinstance(p, Media) else int(p.text.split()[0]) for p in texts]
        if format.innermost().answers == "letter":
            return tags("ABCDEFGH"[scores.index(max(scores))])
        return tags(*scores)

    return Judge(format, ScriptedEngine(reply))


def four(request: Request) -> str:
    """Gives all the same score, but no readable one to "9 b"."""
    return "?" if "9 b" in str(request.prompt) else tags(4)


@pytest.mark.parametrize(
    ("format", "order"),
    [
        pytest.param(Pointwise(), (1, 3, 0, 2), id="pointwise"),
        pytest.param(Listwise(), (1, 3, 0, 2), id="listwise"),
        pytest.param(AnchoredChunks(Listwise(), 3), (1, 3, 0, 2), id="chunks"),
        pytest.param(Tournament(Pairwise()), (1, 3, 0, 2), id="tournament"),
        pytest.param(Tournament(PositionSwap(Pairwise()), "swiss"), (1, 3, 0, 2), id="swiss_both_orders"),
        pytest.param(MultipleChoice(), None, id="choice"),
        pytest.param(Knockout(MultipleChoice(), 3), None, id="knockout"),
    ],
)
def test_every_format_finds_the_best(format: Format, order: tuple[int, ...] | None) -> None:
    ranking = best_of_n("q", GROUP, judge(format))
    assert ranking.best == 1 and sorted(ranking.order) == [0, 1, 2, 3]
    assert order is None or ranking.order == order


@pytest.mark.parametrize(
    "format", [Pointwise(), Listwise(), Tournament(Pairwise())], ids=["pointwise", "listwise", "tournament"]
)
def test_a_broken_candidate_ranks_last_and_fails_alone(format: Format) -> None:
    images: list[Media] = [Media.image(Image.new("RGB", (4, 4), (red, 0, 0))) for red in (3, 8, 5)]
    ranking = best_of_n("draw a red square", [images[0], Media.image(b"broken"), *images[1:]], judge(format))
    assert ranking.order == (2, 3, 0, 1)
    failure = ranking.outcomes[1]
    assert isinstance(failure, Failure) and failure.kind == "media"
    assert all(isinstance(ranking.outcomes[i], float) for i in (0, 2, 3))


def test_a_group_with_one_usable_candidate_has_no_ranking_but_keeps_all() -> None:
    ranking = best_of_n("q", [Media.image(b"x"), "5"], judge(Listwise()))
    assert ranking.best is None and sorted(ranking.order) == [0, 1]


def test_a_candidate_without_a_score_ranks_last_and_none_at_all_is_no_best() -> None:
    ranking = best_of_n("q", GROUP, Judge(Pointwise(), ScriptedEngine(four)))
    assert ranking.order[-1] == 1 and len(ranking.order) == 4 and ranking.best is not None
    ranking = best_of_n("q", GROUP, Judge(Pointwise(), ScriptedEngine(lambda request: "?")))
    assert ranking.best is None and sorted(ranking.order) == [0, 1, 2, 3]


def test_ties_do_not_favour_a_place_and_a_seed_repeats_them() -> None:
    same = Judge(Pointwise(), ScriptedEngine(lambda request: tags(4)))
    examples = [Example("q", [f"{n} {m}" for m in range(4)]) for n in range(200)]
    first = [ranking.order for ranking in rerank(examples, same, seed=1)]
    assert first == [ranking.order for ranking in rerank(examples, same, seed=1)]
    assert first != [ranking.order for ranking in rerank(examples, same, seed=2)]
    wins = [sum(order[0] == place for order in first) for place in range(4)]
    assert all(30 <= count <= 70 for count in wins)


def test_ties_of_a_data_set_do_not_all_go_to_one_answer() -> None:
    same = Judge(Pointwise(), ScriptedEngine(lambda request: tags(4)))
    rankings = rerank([Example(f"q {n}", ["yes", "no"]) for n in range(200)], same)
    assert 70 <= sum(ranking.best == 0 for ranking in rankings) <= 130


def test_the_order_of_the_candidates_does_not_decide_a_tie() -> None:
    same = Judge(Pointwise(), ScriptedEngine(lambda request: tags(4)))
    for n in range(20):
        first, second = (best_of_n(f"q {n}", candidates, same) for candidates in (["yes", "no"], ["no", "yes"]))
        assert first.order == second.order[::-1]


def test_candidates_without_a_score_are_counted_by_their_failure() -> None:
    rankings = rerank([Example("q", [*GROUP, Media.image(b"x")])] * 2, Judge(Pointwise(), ScriptedEngine(four)))
    assert unscored(rankings) == {"malformed": 2, "media": 2}


def test_one_candidate_is_no_ranking() -> None:
    with pytest.raises(ConfigError, match="example 1: ranking needs at least two candidates, found 1"):
        rerank([Example("q", ["a", "b"]), Example("q", ["a"])], judge(Pointwise()))
