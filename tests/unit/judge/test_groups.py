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
    Generation,
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
from flexjudge_reward.judge.rewards import cause_of
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


# ---- asked once more


def fails_on(*bad: str, with_seed: int | None = None, reply: str = "?") -> Callable[[Request], str]:
    """Replies that cannot be read wherever one of these candidates is shown, with any seed or with this one."""

    def replies(request: Request) -> str:
        texts = candidates(request)
        hit = with_seed is None or request.sampling.seed == with_seed
        if hit and any(text in bad for text in texts):
            return reply
        return best(request) if "letter" in str(request.prompt.messages[0].parts) else scores(request)

    return replies


def kinds(found: Any) -> list[Any]:
    return [(one.kind, one.cause) if isinstance(one, Failure) else one for one in found.outcomes]


GROUPS = [Pointwise(), Listwise(), Pairwise(), PositionSwap(Pairwise())]


@pytest.mark.parametrize("format", GROUPS, ids=Format.described)
@pytest.mark.parametrize("reply", ["?", "", "<think>x</think>", tags(99), tags(*range(12)), "I'm sorry, I can't."])
def test_the_candidate_that_breaks_the_judge_is_found(format: Format, reply: str) -> None:
    """The others are scored as if it were not there."""
    judge = Judge(for_group_size(format), ScriptedEngine(fails_on("4", reply=reply)))
    (found,) = judge_groups(judge, [Example("q", ["2", "4", "9", "5"])], again=True)
    (without,) = judge_groups(judge, [Example("q", ["2", "9", "5"])])
    outcome = found.outcomes[1]
    assert isinstance(outcome, Failure) and outcome.cause == "candidate"
    assert found.outcomes[:1] + found.outcomes[2:] == without.outcomes
    assert found.raw_score(1) is None
    assert [found.raw_score(i) for i in (0, 2, 3)] == [without.raw_score(i) for i in range(3)]


@pytest.mark.parametrize("format", GROUPS, ids=Format.described)
def test_a_judge_that_errs_once_blames_no_candidate(format: Format) -> None:
    judge = Judge(for_group_size(format), ScriptedEngine(fails_on("2", "4", "9", with_seed=0)))
    (found,) = judge_groups(judge, [Example("q", ["2", "4", "9"])], again=True)
    (sound,) = judge_groups(Judge(for_group_size(format), ScriptedEngine(scores)), [Example("q", ["2", "4", "9"])])
    assert found.outcomes == sound.outcomes
    failed = [one for verdict in found.verdicts for one in verdict.outcomes if one]
    assert failed and all(one.kind == "malformed" for one in failed)  # the first judgements count, too


def test_breaking_some_comparisons_is_breaking_the_judge() -> None:
    """It would be ranked by the comparisons that are left, and would lose fewer of them."""

    def replies(request: Request) -> str:
        texts = candidates(request)
        return "?" if "4" in texts and "9" not in texts else scores(request)

    judge = Judge(for_group_size(Pairwise()), ScriptedEngine(replies))
    (found,) = judge_groups(judge, [Example("q", ["2", "4", "9", "5"])], again=True)
    (without,) = judge_groups(judge, [Example("q", ["2", "9", "5"])])
    assert kinds(found) == [without.outcomes[0], ("malformed", "candidate"), *without.outcomes[1:]]


def test_a_comparison_that_no_candidate_broke_is_left_out() -> None:
    def replies(request: Request) -> str:
        return "?" if set(candidates(request)) == {"2", "4"} else scores(request)

    judge = Judge(for_group_size(Pairwise()), ScriptedEngine(replies))
    (found,) = judge_groups(judge, [Example("q", ["2", "4", "9", "5"])], again=True)
    assert found.outcomes[0] <= found.outcomes[1] < found.outcomes[3] < found.outcomes[2]  # type: ignore[operator]


def test_a_choice_names_the_candidate_that_breaks_it() -> None:
    def replies(request: Request) -> str:
        return "?" if "4" in candidates(request) else best(request)

    judge = Judge(for_group_size(MultipleChoice()), ScriptedEngine(replies))
    (found,) = judge_groups(judge, [Example("q", ["2", "4", "9"])], again=True)
    assert kinds(found) == [0.0, ("malformed", "candidate"), 1.0]


@pytest.mark.parametrize(
    ("group", "bad", "expected"),
    [
        pytest.param(["2", "4", "7", "9"], ["4", "7"], ["", "candidate", "candidate", ""], id="two-of-four"),
        pytest.param(["2", "4", "4", "9"], ["4"], ["", "candidate", "candidate", ""], id="twins"),
        pytest.param(["2", "4", "7"], ["4", "7"], ["ours", "candidate", "candidate"], id="one-is-left"),
        pytest.param(["4", "7"], ["4", "7"], ["candidate", "candidate"], id="all"),
        pytest.param(["2", "4"], ["4"], ["ours", "candidate"], id="one-of-two"),
        pytest.param([BROKEN, "4", "2", "9"], ["4"], ["candidate", "candidate", "", ""], id="beside-a-broken-image"),
        pytest.param([BROKEN, "4", "2"], ["4"], ["candidate", "candidate", "ours"], id="none-to-compare-with"),
    ],
)
def test_who_broke_a_list(group: list[Any], bad: list[str], expected: list[str]) -> None:
    judge = Judge(for_group_size(Listwise()), ScriptedEngine(fails_on(*bad)))
    found, other = judge_groups(judge, [Example("q", group), Example("q", ["5", "6"])], again=True)
    assert [one.cause if isinstance(one, Failure) else "" for one in found.outcomes] == expected
    assert other.outcomes == (4 / 9, 5 / 9)


@pytest.mark.parametrize("format", GROUPS, ids=Format.described)
@pytest.mark.parametrize("bad", [["2", "4"], ["4"]], ids=["both", "one"])
def test_a_pair_that_cannot_be_compared_after_all_has_no_comparisons(format: Format, bad: list[str]) -> None:
    judge = Judge(for_group_size(format), ScriptedEngine(fails_on(*bad)))
    (found,) = judge_groups(judge, [Example("q", ["2", "4"])], again=True)
    assert isinstance(found.outcomes[1], Failure) and found.outcomes[1].cause == "candidate"
    assert not any(verdict.comparisons for verdict in found.verdicts)


def test_a_group_that_fails_though_none_of_its_members_does_is_ours() -> None:
    def replies(request: Request) -> str:
        return "?" if len(set(candidates(request))) > 1 else scores(request)

    judge = Judge(for_group_size(Listwise()), ScriptedEngine(replies))
    (found,) = judge_groups(judge, [Example("q", ["2", "4", "9"])], again=True)
    assert kinds(found) == [("malformed", "ours")] * 3


class Three(Listwise):
    """Judges three or more."""

    min_candidates = 3


def test_a_format_that_cannot_judge_two_tells_nothing_about_one() -> None:
    judge = Judge(Three(), ScriptedEngine(fails_on("4")))
    (found,) = judge_groups(judge, [Example("q", ["2", "4", "9"])], again=True)
    assert kinds(found) == [("malformed", "ours")] * 3


@pytest.mark.parametrize("reply", ["<think>hm", Generation.failed("transport", "lost")], ids=["cut", "lost"])
@pytest.mark.parametrize("format", [Pointwise(), Listwise()], ids=Format.described)
def test_what_is_ours_is_not_asked_again(format: Format, reply: Any) -> None:
    engine = ScriptedEngine(lambda request: reply)
    (found,) = judge_groups(Judge(for_group_size(format), engine), [Example("q", ["2", "4"])], again=True)
    assert len(engine.prompts) == (2 if format.max_candidates == 1 else 1)
    assert all(isinstance(one, Failure) and cause_of(one) == "ours" for one in found.outcomes)


@pytest.mark.parametrize("format", [Pointwise(), Listwise()], ids=Format.described)
@pytest.mark.parametrize(
    ("question", "reference", "cause"),
    [("q", None, "candidate"), ([BROKEN, "q"], None, "ours"), ("q", [BROKEN], "ours")],
    ids=["the-candidate's", "the-question's", "the-reference's"],
)
def test_whose_image_is_broken(format: Format, question: Any, reference: Any, cause: str) -> None:
    candidate: Any = BROKEN if cause == "candidate" else "5"
    judge = Judge(format, ScriptedEngine(scores))
    (found,) = judge_groups(judge, [Example(question, [candidate, "6", "7"], reference)], again=True)
    failed = found.outcomes[0]
    assert isinstance(failed, Failure) and failed.kind == "media" and cause_of(failed) == cause


def test_without_again_nothing_is_asked_twice() -> None:
    engine = ScriptedEngine(lambda request: "?")
    (found,) = judge_groups(Judge(for_group_size(Listwise()), engine), [Example("q", ["2", "4", "9"])])
    assert len(engine.prompts) == 1 and kinds(found) == [("malformed", None)] * 3


def test_the_record_has_the_cause_and_both_replies(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.jsonl")
    judge = Judge(Pointwise(), ScriptedEngine(fails_on("4")), record=record)
    judge_groups(judge, [Example("q", ["2", "4"])], [{"id": 1}], again=True)
    judge_groups(judge, [Example("q", ["4"])])
    lines = list(read_record(tmp_path / "record.jsonl"))
    assert [(line["cause"], len(line["replies"])) for line in lines] == [(None, 1), ("candidate", 2), ("unclear", 1)]
    lists = Judge(for_group_size(Listwise()), ScriptedEngine(fails_on("4")), record=record)
    judge_groups(lists, [Example("q", ["2", "4", "9"])], [{"id": 1}], again=True)
    lines = list(read_record(tmp_path / "record.jsonl"))[3:]
    assert [(line.get("candidate"), line["cause"]) for line in lines] == [
        (None, "candidate"), (0, None), (1, "candidate"), (2, None), (None, None)
    ]  # fmt: skip
