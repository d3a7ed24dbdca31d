"""RewardSession: completions against their siblings, whole groups of rows, and what counts as a failure."""

from __future__ import annotations

import io
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from flexjudge_reward import (
    BudgetForcing,
    ConfigError,
    Example,
    Failure,
    FlexJudgeReward,
    Format,
    Generation,
    Judge,
    JudgementFailed,
    Listwise,
    MajorityVote,
    MediaError,
    MultipleChoice,
    Pairwise,
    Pointwise,
    PositionSwap,
    Request,
    RewardSession,
    ScriptedEngine,
    Untrusted,
)
from flexjudge_reward.media import image
from support.images import noise, saved
from support.judging import Served, candidates, grade, scores, tags


def lengths(request: Request) -> str:
    """Scores candidates by their lengths; fails on a group that the format cannot hold."""
    texts = candidates(request)
    return tags(*(min(10, len(text)) for text in texts)) if 2 <= len(texts) <= 8 else "?"


def longest(request: Request) -> str:
    texts = candidates(request)
    return tags("ABCDEFGH"[texts.index(max(texts, key=len))])


def reward(format: Format, replies: Any, **settings: Any) -> tuple[FlexJudgeReward, ScriptedEngine]:
    engine = ScriptedEngine(replies)
    return FlexJudgeReward(Judge(format, engine), name="r", **settings), engine


# ---- rows of a batch, in the groups of their prompts


@pytest.mark.parametrize("form", [bytes, lambda file: Image.open(io.BytesIO(file))], ids=["files", "objects"])
@pytest.mark.parametrize("format", [Pointwise(), Listwise()], ids=Format.described)
def test_a_judge_on_a_server_is_asked_while_later_pictures_are_read(
    format: Format, form: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [saved(noise(6, 4, seed=n // 2)) for n in range(200)]
    last, asked, upright = noise(6, 4, seed=99).tobytes(), threading.Event(), image.upright_rgb

    def read(one: Any, *rest: Any, **options: Any) -> Any:
        if one.tobytes() == last and not asked.wait(20):
            raise MediaError("nothing was asked before all pictures were read")
        return upright(one, *rest, **options)

    monkeypatch.setattr(image, "upright_rgb", read)
    engine = Served(lambda request: (asked.set(), scores(request))[1])
    numbers = FlexJudgeReward(Judge(format, engine), name="r", probes=0.0)(
        ["?"] * 200, [f"{n % 9 + 1} a" for n in range(200)], image=[form(file) for file in files]
    )
    assert numbers == [(n % 9) / 9 if format.max_candidates == 1 else numbers[n] for n in range(200)]
    assert None not in numbers and len(engine.requests) == (200 if format.max_candidates == 1 else 100)


@pytest.mark.parametrize(
    "format",
    [Listwise(), Pairwise(), PositionSwap(Pairwise()), MajorityVote(Listwise(), 2, by="mean")],
    ids=Format.described,
)
def test_completions_are_judged_against_their_siblings(format: Format) -> None:
    one, _ = reward(format, lengths)
    found = one(["p", "q", "p", "q", "p", "q"], ["a", "bbbb", "aaaaa", "b", "aaa", "bb"])
    numbers = [value if value is not None else -1.0 for value in found]
    assert numbers[0] < numbers[4] < numbers[2] and numbers[3] < numbers[5] < numbers[1]
    assert one.summary.judged == 6


def test_one_listwise_call_serves_a_group() -> None:
    one, engine = reward(Listwise(), lengths)
    one(["p"] * 4 + ["q"] * 4, [c * n for c in "ab" for n in (1, 2, 3, 4)])
    assert len(engine.prompts) == 2


def test_a_choice_rewards_the_chosen_wherever_it_is_and_its_twin() -> None:
    one, _ = reward(MultipleChoice(), longest)
    assert one(["p"] * 4, ["a", "ccc", "bb", "ccc"]) == [0, 1, 0, 1]
    found = one(["q"] * 16, ["x" * n for n in range(1, 17)])
    assert found[15] == 1.0 and sorted(found, key=float)[-2:] == [0.5, 1.0]  # type: ignore[arg-type]


def test_a_prompt_alone_in_its_batch_is_as_many_groups_as_the_trainer_says() -> None:
    """Two groups of four with the same prompt: the row that was cut gets the mean of its own siblings."""
    replies = [*map(tags, (1, 1, 4)), "<think>hm", *map(tags, [10] * 4)]
    named, _ = reward(Pointwise(), list(replies), num_generations=4, max_failure_rate=1.0)
    assert named(["p"] * 8, list("abcdefgh"))[3] == pytest.approx((0 + 0 + 3 / 9) / 3)
    counted, _ = reward(Pointwise(), list(replies), max_failure_rate=1.0)
    assert counted(["p"] * 8, list("abcdefgh"))[3] == pytest.approx((0 + 0 + 3 / 9 + 4) / 7)
    lists, engine = reward(Listwise(), lengths, num_generations=4)
    lists(["p"] * 8, ["x" * n for n in range(1, 9)])
    assert len(engine.prompts) == 2


def test_settings_make_group_formats_and_their_metrics() -> None:
    found: dict[str, float] = {}
    settings = {"model": "nano", "engine": "transformers", "answer_tokens": 0, "cache": "off"}
    one = FlexJudgeReward(name="r", format="pairwise", position_swap=True, budget=4, **settings)
    one.session.judge.engine = ScriptedEngine(lengths)
    one(["p"] * 4, ["a", "bb", "ccc", "dddd"], log_metric=found.__setitem__)
    assert found["r/swap_agreed"] == 1.0 and found["r/zero_variance"] == 0.0 and found["r/score_length"] > 0.9
    assert one.summary.counters == {"comparisons": 4, "swaps": 4, "swaps_agreed": 4}
    one(["p"] * 2, ["a", "a"])
    assert one.summary.metrics["zero_variance"] == 0.5  # of two calls, one gave no gradient
    assert one.summary.metrics["swap_agreed"] == 1.0  # the second compared nothing


def test_the_share_of_forced_reasonings_is_of_reasonings() -> None:
    """Six comparisons make one verdict, and six reasonings."""

    def cut(request: Request) -> Generation | str:
        if request.prompt.messages[-1].role == "assistant":
            return "<answer>3</answer><answer>7</answer>"
        return Generation("<think>hm", "length")

    found: dict[str, float] = {}
    one, _ = reward(BudgetForcing(Pairwise()), cut)
    one(["p"] * 4, ["a", "bb", "ccc", "dddd"], log_metric=found.__setitem__)
    assert found["r/forced"] == 1.0 and one.summary.counters["forced"] == 6


def test_images_in_a_completion_cannot_be_compared_as_texts() -> None:
    image = [{"role": "assistant", "content": [{"type": "image", "image": Image.new("RGB", (4, 4))}]}]
    one, _ = reward(Listwise(), [])
    with pytest.raises(ConfigError, match="format='pointwise'"):
        one(["p", "p"], [image, image])


# ---- failures


def mostly(share: float, good: Callable[[Request], str]) -> Callable[[Request], str]:
    """Replies; that share of them cannot be read."""
    rng = random.Random(1)
    return lambda request: "?" if rng.random() < share else good(request)


def test_a_list_that_fails_is_one_failure_however_many_it_ranks() -> None:
    replies = iter(["<think>hm"])
    one, _ = reward(Listwise(), lambda request: next(replies, None) or lengths(request))
    batch = [f"{n} " + "x" * n for n in range(32)]
    assert one(["p"] * 32, batch).count(None) == 32
    for _ in range(3):
        one(["p"] * 32, batch)
    assert one.summary.metrics["failed_judgements"] < 0.06 < one.summary.metrics["failure_rate"]


@pytest.mark.parametrize(
    ("format", "good"),
    [
        pytest.param(Pairwise(), lengths, id="comparisons"),
        pytest.param(MajorityVote(Pointwise(), 7), lambda request: tags(7), id="votes"),
    ],
)
def test_failed_comparisons_and_votes_count_though_their_rows_have_scores(
    format: Format, good: Callable[[Request], str]
) -> None:
    one, _ = reward(format, mostly(0.3, good))
    with pytest.raises(JudgementFailed, match="26 of the last"):
        for step in range(40):
            one(["p"] * 8, [f"{step} {n} " + "x" * n for n in range(8)])
    assert one.summary.metrics["failed_judgements"] > 0.2 > one.summary.metrics["failure_rate"]


# ---- whole groups that a process has


def session(format: Format, replies: Any, **settings: Any) -> RewardSession:
    return RewardSession(Judge(format, ScriptedEngine(replies)), settings)


def rows(*answers: str, question: str = "q") -> list[Example]:
    return [Example(question, [answer]) for answer in answers]


def engine_of(one: RewardSession) -> ScriptedEngine:
    assert isinstance(one.judge.engine, ScriptedEngine)
    return one.judge.engine


@pytest.mark.parametrize("format", [Pointwise(), Pairwise(), Listwise()], ids=lambda format: format.name)
def test_groups_are_scored_in_one_batch_and_in_their_order(format: Format) -> None:
    one = session(format, scores)
    first, second = one.score_groups([rows("2", "9", "5"), rows("1", "8", question="other")])
    assert first.rewards[1] > first.rewards[2] > first.rewards[0] and second.rewards[1] > second.rewards[0]  # type: ignore[operator]
    assert [len(part) for part in (first.rewards, first.outcomes, first.reasoning)] == [3] * 3
    assert first.rewards == first.outcomes and set(first.reasoning) <= {"so", "so\n\nso\n\nso"}
    assert first.metrics == second.metrics and first.metrics["failure_rate"] == 0
    assert (one.summary.calls, one.summary.judged) == (1, 5)
    if format.max_candidates != 2:
        assert first.rewards + second.rewards == pytest.approx([1 / 9, 8 / 9, 4 / 9, 0, 7 / 9])


def by_question(request: Request) -> str:
    question = next(part.text for part in request.prompt.messages[1].parts if isinstance(part, Untrusted))
    return tags(*(grade(text) + int(question) for text in candidates(request)))


def test_pointwise_asks_each_row_its_own_question() -> None:
    group = [Example(str(number), ["2"]) for number in (0, 3, 6)]
    (found,) = session(Pointwise(), by_question).score_groups([group])
    assert found.rewards == pytest.approx([1 / 9, 4 / 9, 7 / 9])


@pytest.mark.parametrize("format", [Pairwise(), Listwise()], ids=lambda format: format.name)
def test_a_group_format_compares_answers_to_one_question(format: Format) -> None:
    one = session(format, by_question)
    with pytest.raises(ConfigError, match="group 1: its rows have different questions"):
        one.score_groups([rows("2", "3", question="0"), [Example("0", ["2"]), Example("3", ["2"])]])
    assert engine_of(one).prompts == []


@pytest.mark.parametrize("format", [Pointwise(), Listwise()], ids=lambda format: format.name)
def test_a_group_that_is_given_as_failed_is_not_judged(format: Format) -> None:
    one, late = session(format, scores), Failure("timeout", "1 of 2 rows came")
    first, second = one.score_groups([rows("9"), rows("2", "3")], failed={0: late})
    assert (first.rewards, first.outcomes, first.reasoning) == ([None], [late], ["[timeout: 1 of 2 rows came] "])
    assert second.rewards == pytest.approx([1 / 9, 2 / 9])
    assert len(engine_of(one).prompts) == (2 if format.max_candidates == 1 else 1)
    assert first.metrics["failed_engine"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("policy", "reply", "expected", "alone"),
    [
        pytest.param({}, "<think>hm", [1 / 9, 2 / 9, 3 / 9], None, id="cut-group-mean"),
        pytest.param({"on_failure": "abstain"}, "<think>hm", [1 / 9, None, 3 / 9], None, id="cut-abstain"),
        pytest.param({}, "?", [1 / 9, 1 / 9, 3 / 9], 0.0, id="broken-lowest"),
        pytest.param({"on_failure": "abstain"}, "?", [1 / 9, 1 / 9, 3 / 9], 0.0, id="broken-lowest-whatever-the-other"),
        pytest.param({"on_candidate_failure": "mean"}, "?", [1 / 9, 2 / 9, 3 / 9], None, id="broken-mean"),
        pytest.param({"on_candidate_failure": "abstain"}, "?", [1 / 9, None, 3 / 9], None, id="broken-abstain"),
    ],
)
def test_a_failed_row_gets_what_the_policy_says(
    policy: dict[str, str], reply: str, expected: list[float | None], alone: float | None
) -> None:
    def replies(request: Request) -> str:
        return reply if candidates(request) == ["7"] else scores(request)

    found, other = session(Pointwise(), replies, **policy).score_groups([rows("2", "7", "4"), rows("7")])
    assert found.rewards == pytest.approx(expected) and other.rewards == [alone]
    with pytest.raises(JudgementFailed, match=r"Row 1: (malformed|truncated)"):
        session(Pointwise(), replies, on_failure="raise").score_groups([rows("2", "7", "4")])


def test_a_reply_that_can_be_read_the_second_time_counts() -> None:
    """Both judgements are counted: one of five failed, and the tokens of both are the reward's."""
    once = iter(["?"])
    one = session(Pointwise(), lambda request: next(once, None) or scores(request))
    (found,) = one.score_groups([rows("2", "7", "4", "5")])
    assert found.rewards == pytest.approx([1 / 9, 6 / 9, 3 / 9, 4 / 9])
    assert (found.metrics["failure_rate"], found.metrics["failed_judgements"]) == (0, 1 / 5)
    assert [request.sampling.seed for request in engine_of(one).requests[-2:]].count(0) == 1


def test_too_many_failures_stop_the_run() -> None:
    one = session(Pointwise(), lambda request: "?", max_failure_rate=0.01)
    with pytest.raises(JudgementFailed, match="6 of the last 6 judgements failed"):
        one.score_groups([rows(*map(str, range(8)))])


@pytest.mark.parametrize("groups", [[], [[]], [rows("2", "3"), []]], ids=["none", "empty", "one-empty"])
def test_no_rows_are_an_error(groups: list[list[Example]]) -> None:
    for format in (Pointwise(), Listwise()):
        with pytest.raises(ConfigError, match="nothing to judge"):
            session(format, scores).score_groups(groups)


def test_a_group_of_one_does_not_fit_a_group_format() -> None:
    with pytest.raises(ConfigError, match=r"example 1: AnchoredChunks.* judges at least 2 candidates"):
        session(Listwise(), scores).score_groups([rows("1", "2"), rows("3")])


def test_a_session_pickles_with_its_settings_and_counts() -> None:
    one = session(Listwise(), scores, max_failure_rate=0.5)
    one.score_groups([rows("1", "2")])
    other = pickle.loads(pickle.dumps(one))
    assert (other.summary.judged, other.config.max_failure_rate) == (2, 0.5)
    assert other.score_groups([rows("1", "2")])[0].rewards == pytest.approx([0, 1 / 9])
