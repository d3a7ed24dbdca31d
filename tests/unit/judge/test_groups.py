"""judge_groups: one outcome per candidate whatever the format, candidates that cannot be used, and labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flexjudge_reward import (
    ConfigError,
    Example,
    Failure,
    Format,
    Judge,
    Listwise,
    Media,
    MultipleChoice,
    Pairwise,
    PairwiseVerdict,
    Pointwise,
    PositionSwap,
    Record,
    Request,
    ScriptedEngine,
    for_group_size,
    judge_groups,
    read_record,
)
from support.judging import candidates, grade, scores, tags

BROKEN = Media.image(b"not an image")


def best(request: Request) -> str:
    texts = candidates(request)
    return tags("ABCDEFGH"[texts.index(max(texts, key=grade))])


def option(request: Request) -> str:
    first, second = map(grade, candidates(request))
    return tags("[[A=B=Good]]" if first == second else "[[A>B]]" if first > second else "[[B>A]]")


def image(red: int) -> Media:
    return Media.image(Image.new("RGB", (8, 8), (red, 0, 0)))


def by_colour(request: Request) -> str:
    """The mean red of the candidates' images, a tenth of it."""
    shown = [media for media in request.prompt.media if media.kind == "image"]
    return tags(*(media.images()[0].getpixel((0, 0))[0] for media in shown))  # type: ignore[index]


@pytest.mark.parametrize(
    ("format", "replies", "expected"),
    [
        pytest.param(Pointwise(), scores, [2 / 9, 8 / 9, 2 / 9, 0.0], id="pointwise"),
        pytest.param(Pairwise(), scores, None, id="pairwise"),
        pytest.param(PositionSwap(Pairwise()), scores, None, id="swapped"),
        pytest.param(PairwiseVerdict(), option, None, id="pairwise_verdict"),
        pytest.param(Listwise(), scores, [2 / 9, 8 / 9, 2 / 9, 0.0], id="listwise"),
        pytest.param(MultipleChoice(), best, [0.0, 1.0, 0.0, 0.0], id="multiple_choice"),
    ],
)
def test_every_format_gives_one_outcome_per_candidate(
    format: Format, replies: Callable[[Request], str], expected: list[float] | None
) -> None:
    """Equal candidates share their outcome; the groups of one call are judged in one batch and stay apart."""
    judge = Judge(for_group_size(format), ScriptedEngine(replies))
    examples = [Example("q", ["3", "9", "3", "1"]), Example("other", ["2 b", "5 a"])]
    first, second = judge_groups(judge, examples)
    outcomes: Any = first.outcomes
    assert outcomes[1] > outcomes[0] == outcomes[2] >= outcomes[3] and all(0 <= one <= 1 for one in outcomes)
    assert expected is None or list(outcomes) == pytest.approx(expected)
    assert len(second.outcomes) == 2 and second.outcomes[1] > second.outcomes[0]  # type: ignore[operator]
    alone = format.max_candidates == 1
    assert len(first.verdicts) == (4 if alone else 1)
    assert [first.verdict_of(i) is first.verdicts[i if alone else 0] for i in range(4)] == [True] * 4


@pytest.mark.parametrize(
    ("format", "replies"),
    [
        pytest.param(Pointwise(), scores, id="pointwise"),
        pytest.param(Pairwise(), scores, id="pairwise"),
        pytest.param(Listwise(), scores, id="listwise"),
        pytest.param(MultipleChoice(), best, id="multiple_choice"),
    ],
)
def test_a_group_of_equal_candidates_ties(format: Format, replies: Callable[[Request], str]) -> None:
    (found,) = judge_groups(Judge(for_group_size(format), ScriptedEngine(replies)), [Example("q", ["7"] * 3)])
    assert len(set(found.outcomes)) == 1 and not isinstance(found.outcomes[0], Failure)


@pytest.mark.parametrize("format", [Pointwise(), Pairwise(), Listwise()], ids=lambda format: format.name)
def test_a_broken_candidate_fails_alone(format: Format) -> None:
    """The others are judged as if it were not there, and comparisons name them by their own numbers."""
    group: list[Any] = [image(2), BROKEN, image(9), image(5)]
    judge = Judge(for_group_size(format), ScriptedEngine(by_colour))
    (found,) = judge_groups(judge, [Example("q", group)])
    (without,) = judge_groups(judge, [Example("q", [one for one in group if one is not BROKEN])])
    failed = found.outcomes[1]
    assert isinstance(failed, Failure) and failed.kind == "media" and "image" in failed.detail
    assert found.outcomes[:1] + found.outcomes[2:] == without.outcomes
    assert sorted(found.outcomes[:1] + found.outcomes[2:], key=float) == [found.outcomes[i] for i in (0, 3, 2)]  # type: ignore[arg-type]
    if format.max_candidates != 2:
        assert [found.raw_score(index) for index in range(4)] == [2.0, None, 9.0, 5.0]
    pairs = {frozenset((one.first, one.second)) for verdict in found.verdicts for one in verdict.comparisons}
    assert pairs == (set(map(frozenset, [(0, 2), (0, 3), (2, 3)])) if format.max_candidates == 2 else set())
    for verdict in found.verdicts:
        for one in verdict.comparisons:
            better = one.verdict.scores == max((one.verdict.scores, one.verdict.scores[::-1]))  # type: ignore[index]
            assert better == (found.outcomes[one.first] > found.outcomes[one.second])  # type: ignore[operator]


@pytest.mark.parametrize("group", [[BROKEN, "5"], [BROKEN, BROKEN]], ids=["one-left", "none-left"])
def test_fewer_than_two_usable_candidates_cannot_be_compared(group: list[Any]) -> None:
    engine = ScriptedEngine(scores)
    bad, good = judge_groups(Judge(Listwise(), engine), [Example("q", group), Example("q", ["5", "6"])])
    assert [getattr(outcome, "kind", None) for outcome in bad.outcomes] == ["media", "media"]
    assert good.outcomes == (4 / 9, 5 / 9) and len(engine.prompts) == 1
    (nothing,) = judge_groups(Judge(Listwise(), engine), [Example("q", group)])
    assert nothing.verdicts[0].failure is not None and len(engine.prompts) == 1


@pytest.mark.parametrize("format", [Pointwise(), Listwise()], ids=lambda format: format.name)
def test_a_broken_question_fails_its_group(format: Format) -> None:
    bad, good = judge_groups(
        Judge(format, ScriptedEngine(scores)), [Example([BROKEN, "q"], ["5", "6"]), Example("q", ["5", "6"])]
    )
    assert [getattr(outcome, "kind", None) for outcome in bad.outcomes] == ["media", "media"]
    assert good.outcomes == (4 / 9, 5 / 9)


def test_a_reply_that_cannot_be_read_fails_its_group_or_its_candidate() -> None:
    def sulking(request: Request) -> str:
        return "?" if any(grade(text) == 4 for text in candidates(request)) else scores(request)

    examples = [Example("q", ["4", "6"]), Example("q", ["5", "6"])]
    bad, good = judge_groups(Judge(Listwise(), ScriptedEngine(sulking)), examples)
    assert [getattr(outcome, "kind", None) for outcome in bad.outcomes] == ["malformed", "malformed"]
    assert good.outcomes == (4 / 9, 5 / 9)
    bad, good = judge_groups(Judge(Pointwise(), ScriptedEngine(sulking)), examples)
    assert getattr(bad.outcomes[0], "kind", None) == "malformed" and bad.outcomes[1] == 5 / 9


def test_a_group_that_does_not_fit_is_named_before_anything_is_generated() -> None:
    engine = ScriptedEngine([])
    for group, message in ((["a", "b", "c"], "example 1.*2 candidates"), ([], "example 1")):
        with pytest.raises(ConfigError, match=message):
            judge_groups(Judge(Pairwise(), engine), [Example("q", ["a", "b"]), Example("q", group)])


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        pytest.param(
            Pointwise(), [{"id": 1}, {"id": 2, "candidate": 0}, {"id": 2, "candidate": 1}], id="a-line-per-candidate"
        ),
        pytest.param(for_group_size(Listwise()), [{"id": 2}], id="a-line-per-group"),
    ],
)
def test_labels_go_to_the_record_of_their_group(format: Format, expected: list[dict[str, Any]], tmp_path: Path) -> None:
    """Of the first group, one candidate can be used: pointwise judges it, a list does not."""
    judge = Judge(format, ScriptedEngine(scores), record=Record(tmp_path / "record.jsonl"))
    first = ["7"] if format.max_candidates == 1 else [BROKEN, "7"]
    judge_groups(judge, [Example("q", first), Example("q", ["5", "6"])], [{"id": 1}, {"id": 2}])
    lines = list(read_record(tmp_path / "record.jsonl"))
    assert [{name: line[name] for name in ("id", "candidate") if name in line} for line in lines] == expected
