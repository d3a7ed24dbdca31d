"""Groups of any size: tournaments, chunks and knockouts, on scripted judges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from support.judging import candidates, grade, judged, scores, tags

from flexjudge_reward import (
    Choice,
    ConfigError,
    Example,
    Generation,
    Judge,
    Listwise,
    Pair,
    Prompt,
    Relation,
    Sampling,
    Score,
)
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.formats.adaptive import Forced, Swapped, Votes
from flexjudge_reward.formats.groups import Chunked, Knockout, Tournament, whole_groups
from flexjudge_reward.types import Format, Verdict

GROUP = ["5 a", "9 b", "1 c", "7 d", "3 e", "6 f", "2 g", "8 h"]


@pytest.mark.parametrize("schedule", ["all", "ring", "anchor", "swiss"])
@pytest.mark.parametrize("score", ["bradley-terry", "win-rate"])
def test_a_tournament_finds_the_best_and_the_worst(schedule: str, score: str) -> None:
    (verdict,) = judged(Tournament(Pair(), schedule, score=score), scores, GROUP)  # type: ignore[arg-type]
    assert verdict.scores is not None and all(0 <= one <= 1 for one in verdict.scores)
    if schedule in ("all", "swiss"):
        assert verdict.scores.index(max(verdict.scores)) == 1
        assert verdict.scores.index(min(verdict.scores)) == 2
    wanted = {"all": 28, "ring": 8, "anchor": 7}.get(schedule, verdict.notes["comparisons"])
    assert verdict.notes["comparisons"] == wanted == len(verdict.generations)


def test_all_comparisons_of_a_batch_are_one_call_per_round() -> None:
    sizes: list[int] = []

    class Counting(ScriptedEngine):
        def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
            sizes.append(len(prompts))
            return super().generate(prompts, sampling)

    Judge(Tournament(Pair(), "ring"), Counting(scores))([Example("q", GROUP[:4]), Example("q", GROUP[4:])])
    assert sizes == [8]


def test_identical_candidates_are_one_member() -> None:
    (verdict,) = judged(Tournament(Pair()), scores, ["3", "8", "3", "8"])
    assert len(verdict.generations) == 1 and verdict.scores is not None
    assert verdict.scores[0] == verdict.scores[2] < verdict.scores[1] == verdict.scores[3]
    (same,) = judged(Tournament(Pair()), [], ["3", "3", "3"])
    assert same.scores == (0.5, 0.5, 0.5)


def test_a_failed_comparison_is_left_out_unless_it_was_the_only_one() -> None:
    pair_fails = lambda prompt: "x" if {"5 a", "9 b"} == set(candidates(prompt)) else scores(prompt)  # noqa: E731
    (verdict,) = judged(Tournament(Pair(), "all"), pair_fails, GROUP[:4])
    assert verdict.scores is not None and verdict.notes["comparisons"] == 5
    (dead,) = judged(Tournament(Pair(), "all"), lambda prompt: "x", GROUP[:2])
    assert dead.failure is not None and dead.failure.kind == "malformed"


@pytest.mark.parametrize("size", [2, 3, 4, 8])
@pytest.mark.parametrize("members", range(1, 9))
def test_chunks_give_the_same_scores_as_one_list(members: int, size: int) -> None:
    group = GROUP[:members]
    (verdict,) = judged(Chunked(Listwise(), size), scores, group)
    assert verdict.scores == tuple(float(grade(text)) for text in group)


def test_a_harsh_chunk_is_lifted_by_the_anchor() -> None:
    """A judge that scores one call two points lower: the anchor shows it."""
    calls: list[int] = []

    def harsh(prompt: Prompt) -> str:
        calls.append(1)
        return tags(*(grade(text) - 2 * (len(calls) == 2) for text in candidates(prompt)))

    (verdict,) = judged(Chunked(Listwise(), 4), harsh, ["5 a", "6 b", "4 c", "7 d", "5 e", "6 f", "4 g"])
    assert verdict.scores is not None
    assert [round(one - verdict.scores[0], 6) for one in verdict.scores] == [0, 1, -1, 2, 0, 1, -1]


def best(prompt: Prompt) -> str:
    """The letter of the best candidate."""
    grades = [grade(text) for text in candidates(prompt)]
    return tags("ABCDEFGH"[grades.index(max(grades))])


@pytest.mark.parametrize("members", [1, 2, 7, 8, 9, 15, 16, 17, 65])
def test_a_knockout_finds_the_best_of_any_number(members: int) -> None:
    group = [f"{(11 * n) % members + 1} {n}" for n in range(members)]
    (verdict,) = judged(Knockout(Choice()), best, group)
    assert verdict.scores is not None and all(0 <= one <= 1 for one in verdict.scores)
    if members > 1:
        assert [i for i, one in enumerate(verdict.scores) if one == 1.0] == [
            i for i, text in enumerate(group) if grade(text) == members
        ]


def test_identical_candidates_of_a_choice_share_its_score() -> None:
    seen: list[list[str]] = []
    judge = lambda prompt: (seen.append(candidates(prompt)), best(prompt))[1]  # noqa: E731
    (verdict,) = judged(Knockout(Choice()), judge, ["8", "8", "3", "1"])
    assert verdict.scores == (1.0, 1.0, 0.0, 0.0) and [sorted(one) for one in seen] == [["1", "3", "8"]]


def test_the_winner_of_the_last_round_is_first_whatever_the_first_round_said() -> None:
    class Soft(Choice):
        """The best gets barely more than a half from a judge that knows its rivals, and all from one that does not."""

        def read(self, example: Example, generations: Sequence[Generation]) -> Verdict:
            grades = [grade(str(candidate[0])) for candidate in example.candidates]
            sure = 1.0 if max(grades) < 16 else 0.55
            return Verdict(tuple(sure if one == max(grades) else 0.0 for one in grades))

    (verdict,) = judged(Knockout(Soft()), best, [f"{n} x" for n in range(1, 17)])
    assert verdict.scores is not None and max(verdict.scores) == verdict.scores[15] > 0.5


@pytest.mark.parametrize("members", [8, 9, 15, 16, 20])
def test_ties_go_on_until_nobody_drops_out(members: int) -> None:
    (verdict,) = judged(Knockout(Swapped(Choice())), lambda prompt: tags("A"), [f"{n}" for n in range(members)])
    assert verdict.scores is not None and len(set(verdict.scores)) == 1  # position bias alone makes no winner


@pytest.mark.parametrize(
    "format",
    [
        pytest.param(Votes(Tournament(Pair()), 3), id="votes"),
        pytest.param(Forced(Tournament(Pair())), id="forced"),
        pytest.param(Forced(Knockout(Choice())), id="forced_choice"),
        pytest.param(Votes(Forced(Swapped(Knockout(Choice()))), 2, by="mean"), id="all_at_once"),
    ],
)
def test_a_group_of_equals_asks_nobody_inside_any_wrapper(format: Format) -> None:
    (verdict,) = judged(format, [], ["a", "a", "a"])
    assert verdict.scores is not None and len(set(verdict.scores)) == 1


def test_a_choice_that_failed_fails_the_group() -> None:
    fails = lambda prompt: "x" if "3 x" in candidates(prompt) else best(prompt)  # noqa: E731
    (verdict,) = judged(Knockout(Choice()), fails, [f"{n} x" for n in range(1, 17)])
    assert verdict.scores is None and verdict.failure is not None and verdict.failure.kind == "malformed"


@pytest.mark.parametrize(
    ("format", "kind"),
    [
        pytest.param(Score(), Score, id="score"),
        pytest.param(Pair(), Tournament, id="pair"),
        pytest.param(Relation(), Tournament, id="relation"),
        pytest.param(Votes(Listwise(), 3), Chunked, id="votes_of_lists"),
        pytest.param(Swapped(Choice()), Knockout, id="swapped_choice"),
        pytest.param(Chunked(Listwise()), Chunked, id="already_whole"),
    ],
)
def test_whole_groups_takes_what_fits(format: Format, kind: type) -> None:
    found = whole_groups(format)
    assert type(found) is kind and (found is format) == (kind in (Score,) or isinstance(format, Chunked))


@pytest.mark.parametrize("format", [pytest.param(Pair(), id="pair"), pytest.param(Listwise(), id="listwise")])
def test_no_place_in_the_group_is_a_place_before_the_judge(format: Format) -> None:
    """Sides and orders differ from group to group, and a seed gives each again."""
    firsts: Counter[str] = Counter()
    shown: list[list[str]] = []
    judge = lambda prompt: (shown.append(candidates(prompt)), scores(prompt))[1]  # noqa: E731
    groups = [[f"3 a{n}", f"7 b{n}"] for n in range(400)]
    judged(whole_groups(format), judge, *groups)
    firsts.update(one[0].split()[1][0] for one in shown)
    assert 160 < firsts["a"] < 240
    again = shown[:]
    shown.clear()
    judged(whole_groups(format), judge, *groups)
    assert shown == again
    shown.clear()
    judged(whole_groups(format, seed=1), judge, *groups)
    assert shown != again


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Tournament(Pair(), "cup"), "must be one of", id="schedule"),  # type: ignore[arg-type]
        pytest.param(lambda: Tournament(Pair(), score="elo"), "bradley-terry", id="score"),
        pytest.param(lambda: Tournament(Pair(), budget=0), "at least 1", id="budget_0"),
        pytest.param(lambda: Chunked(Listwise(), 1), "at least two", id="chunk"),
        pytest.param(lambda: Chunked(Listwise(), 9), "a list holds 8", id="chunk_too_large"),
        pytest.param(lambda: Knockout(Choice(), 2), "at least three", id="knockout_of_two"),
    ],
)
def test_wrong_settings(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_an_impossible_budget_names_the_least() -> None:
    with pytest.raises(ConfigError, match=r"example 0: a budget of 2 .* needs at least 4"):
        judged(Tournament(Pair(), budget=2), [], GROUP)
