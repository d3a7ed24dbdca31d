"""Best of N over every kind of judging, for text and media candidates."""

from __future__ import annotations

import pytest
from PIL import Image

from flexjudge_reward import Choice, ConfigError, Example, Judge, Listwise, Media, Pair, Prompt, Score
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.formats.adaptive import Swapped
from flexjudge_reward.formats.groups import Chunked, Tournament
from flexjudge_reward.offline.rerank import best_of_n, rerank, unscored
from flexjudge_reward.types import Failure, Format

GROUP = ["5 a", "9 b", "1 c", "7 d"]


def judge(format: Format) -> Judge:
    """A judge that knows the quality: the number a text begins with, or the brightness of a picture."""

    def reply(prompt: Prompt) -> str:
        parts = [part for part in prompt.messages[1].parts if not isinstance(part, str)][1:]
        scores = [
            part.images()[0].getpixel((0, 0))[0] if isinstance(part, Media) else int(part.text[0]) for part in parts
        ]
        if isinstance(format, Choice):
            return f"<think></think><answer>{'ABCDEFGH'[scores.index(max(scores))]}</answer>"
        return "<think></think>" + "".join(f"<answer>{score}</answer>" for score in scores)

    return Judge(format, ScriptedEngine(reply))


@pytest.mark.parametrize(
    "format",
    [
        pytest.param(Score(), id="pointwise"),
        pytest.param(Listwise(), id="listwise"),
        pytest.param(Chunked(Listwise(), 3), id="chunks"),
        pytest.param(Tournament(Pair()), id="tournament"),
        pytest.param(Tournament(Swapped(Pair()), "swiss"), id="swiss_both_orders"),
        pytest.param(Choice(), id="choice"),
    ],
)
def test_every_kind_of_judging_finds_the_best(format: Format) -> None:
    ranking = best_of_n("q", GROUP, judge(format))
    assert ranking.best == 1 and sorted(ranking.order) == [0, 1, 2, 3]
    if not isinstance(format, Choice):
        assert ranking.order == (1, 3, 0, 2)


@pytest.mark.parametrize("format", [Score(), Listwise(), Tournament(Pair())], ids=["score", "listwise", "tournament"])
def test_media_candidates_and_one_that_is_broken(format: Format) -> None:
    pictures: list[Media] = [Media.image(Image.new("RGB", (4, 4), (shade, 0, 0))) for shade in (3, 8, 5)]
    ranking = best_of_n("draw a red square", [*pictures, Media.image(b"broken")], judge(format))
    assert ranking.order == (1, 2, 0, 3)
    assert isinstance(ranking.outcomes[3], Failure) and ranking.outcomes[3].kind == "media"


def test_a_group_with_one_usable_candidate_has_no_ranking_but_keeps_all() -> None:
    ranking = best_of_n("q", [Media.image(b"x"), "5"], judge(Listwise()))
    assert ranking.best is None and sorted(ranking.order) == [0, 1]


def test_a_candidate_without_a_score_ranks_last() -> None:
    reply = lambda prompt: "?" if "9 b" in str(prompt) else "<think></think><answer>4</answer>"  # noqa: E731
    ranking = best_of_n("q", GROUP, Judge(Score(), ScriptedEngine(reply)))
    assert ranking.order[-1] == 1 and len(ranking.order) == 4


def test_no_score_at_all_is_no_best() -> None:
    ranking = best_of_n("q", GROUP, Judge(Score(), ScriptedEngine(lambda prompt: "?")))
    assert ranking.best is None and sorted(ranking.order) == [0, 1, 2, 3]


def test_ties_do_not_favour_a_place_and_a_seed_repeats_them() -> None:
    same = Judge(Score(), ScriptedEngine(lambda prompt: "<think></think><answer>4</answer>"))
    examples = [Example("q", [f"{n} {m}" for m in range(4)]) for n in range(200)]
    first = [ranking.order for ranking in rerank(examples, same, seed=1)]
    assert first == [ranking.order for ranking in rerank(examples, same, seed=1)]
    assert first != [ranking.order for ranking in rerank(examples, same, seed=2)]
    wins = [sum(order[0] == place for order in first) for place in range(4)]
    assert all(30 <= count <= 70 for count in wins)


def test_ties_of_a_data_set_do_not_all_go_to_one_answer() -> None:
    same = Judge(Score(), ScriptedEngine(lambda prompt: "<think></think><answer>4</answer>"))
    rankings = rerank([Example(f"q {n}", ["yes", "no"]) for n in range(200)], same)
    assert 70 <= sum(ranking.best == 0 for ranking in rankings) <= 130


def test_candidates_without_a_score_are_counted_by_their_failure() -> None:
    reply = lambda prompt: "?" if "9 b" in str(prompt) else "<think></think><answer>4</answer>"  # noqa: E731
    rankings = rerank([Example("q", [*GROUP, Media.image(b"x")])] * 2, Judge(Score(), ScriptedEngine(reply)))
    assert unscored(rankings) == {"malformed": 2, "media": 2}


def test_one_candidate_is_no_ranking() -> None:
    with pytest.raises(ConfigError, match="example 1: ranking needs at least two candidates"):
        rerank([Example("q", ["a", "b"]), Example("q", ["a"])], judge(Score()))
