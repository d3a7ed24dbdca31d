"""Judge and rubric: order, isolation of one bad example, and errors before anything is generated."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from flexjudge_reward import (
    CachedEngine,
    ConfigError,
    Example,
    Failure,
    Format,
    Generation,
    Judge,
    Listwise,
    Media,
    MediaError,
    Pairwise,
    Pointwise,
    PositionSwap,
    Request,
    Rubric,
    Sampling,
    Scale,
    ScriptedEngine,
    TransformersEngine,
    Verdict,
    gather,
)
from flexjudge_reward.formats.rounds import Ask
from flexjudge_reward.rubric import rubric_names
from support.judging import tags


def shout(request: Request) -> str:
    """Scores an answer by the number of exclamation marks in it."""
    text = "".join(getattr(part, "text", "") for part in request.prompt.messages[1].parts)
    return tags(1 + text.count("!"))


class Counting(ScriptedEngine):
    """Notes how many requests each call has."""

    def __init__(self, replies: object) -> None:
        super().__init__(replies)  # type: ignore[arg-type]
        self.calls: list[int] = []

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        self.calls.append(len(requests))
        return super().complete(requests)


def test_verdicts_come_in_the_order_of_the_examples() -> None:
    judge = Judge(Pointwise(), ScriptedEngine(shout))
    verdicts = judge([Example("How many?", ["!" * n]) for n in (3, 0, 5)])
    assert [verdict.scores for verdict in verdicts] == [(4.0,), (1.0,), (6.0,)]
    assert judge.score("How many?", "!!").scores == (3.0,)


def test_one_call_to_the_engine_serves_the_whole_batch() -> None:
    engine = Counting(shout)
    Judge(Pointwise(), engine)([Example("q", ["a"]) for _ in range(7)])
    assert engine.calls == [7]


class Twice(Format):
    """Asks again about every example that is not shouted, a format of several rounds."""

    async def judge(self, example: Example, ask: Ask) -> Verdict:
        plain = Pointwise()
        first, again = await gather(plain.judge(example, ask), plain.judge(example, ask.changed(seed=1)))
        return again if first.scores == (1.0,) else await plain.judge(example, ask)


def test_rounds_of_all_examples_go_together() -> None:
    engine = Counting(shout)
    Judge(Twice(), engine)([Example("q", [text]) for text in ("a", "b!", "c!", "d")])
    assert engine.calls == [8, 2]
    assert [request.sampling.seed for request in engine.requests] == [0, 1] * 4 + [0] * 2


def test_a_judge_works_inside_a_running_loop() -> None:
    async def inside() -> list[Verdict]:
        return Judge(Pointwise(), ScriptedEngine(shout))([Example("q", ["!"])])

    assert asyncio.run(inside())[0].scores == (2.0,)


def test_a_format_that_awaits_something_else_is_named() -> None:
    class Sleepy(Format):
        async def judge(self, example: Example, ask: Ask) -> Verdict:
            await asyncio.sleep(0)
            return Verdict((1.0,))

    with pytest.raises(ConfigError, match="may only await `ask` and `gather`, it awaited NoneType"):
        Judge(Sleepy(), ScriptedEngine(shout)).with_format(Sleepy()).score("q", "a")


def test_a_bad_image_fails_its_row_only(tmp_path: Path) -> None:
    broken = Media.image(b"not an image")
    with pytest.raises(MediaError):
        broken.load()
    examples = [Example("q", ["a!"]), Example([broken, "q"], ["a!!"]), Example("q", ["a!!!"])]
    first, second, third = Judge(Pointwise(), ScriptedEngine(shout))(examples)
    assert (first.scores, third.scores) == ((2.0,), (4.0,))
    assert second.scores is None and second.failure is not None and second.failure.kind == "media"


def test_a_batch_of_bad_images_never_reaches_the_engine() -> None:
    engine = ScriptedEngine([])
    verdicts = Judge(Pointwise(), engine)([Example([Media.image(b"x"), "q"], ["a"])] * 2)
    assert [v.failure.kind for v in verdicts if v.failure] == ["media", "media"]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        pytest.param([], "empty", id="no_examples"),
        pytest.param([Example("q", ["a", "b"]), Example("q", ["a"])], "example 1.*2 candidates", id="pair_with_one"),
    ],
)
def test_what_does_not_fit_raises_before_generating(examples: list[Example], message: str) -> None:
    engine = ScriptedEngine([])
    with pytest.raises(ConfigError, match=message):
        Judge(Pairwise(), engine)(examples)


def test_an_engine_that_loses_a_reply_is_named() -> None:
    class Forgetful(ScriptedEngine):
        def complete(self, requests: Sequence[Request]) -> list[Generation]:
            return super().complete(requests)[:-1]

    with pytest.raises(ConfigError, match=r"Forgetful.complete returned 1 replies for 2 requests"):
        Judge(Pointwise(), Forgetful(shout))([Example("q", ["a"]), Example("q", ["b"])])


def test_a_judge_closes_its_engine_and_lends_it_to_other_formats() -> None:
    engine = ScriptedEngine(shout)
    with Judge(Listwise(), engine, Sampling(seed=3)) as judge:
        other = judge.with_format(PositionSwap(Pairwise()))
        assert (other.engine, other.sampling) == (engine, Sampling(seed=3))
        assert judge.for_group_size().format.described() == "AnchoredChunks(Listwise)"
        assert other.for_group_size().format.described() == "Tournament(PositionSwap(Pairwise))"
    assert engine.closed


def test_the_description_of_a_judge_has_no_path_and_no_address(tmp_path: Path) -> None:
    engine = CachedEngine(ScriptedEngine(shout), tmp_path / "replies.sqlite")
    found = Judge(PositionSwap(Pairwise()), engine, Sampling(temperature=0.5, max_tokens=9, seed=2)).described()
    assert found["format"] == "PositionSwap(Pairwise)" and found["engine"] == "scripted"
    assert (found["temperature"], found["max_tokens"], found["seed"]) == (0.5, 9, 2)
    assert found["rubric"] == Rubric.load("helpfulness").criteria and str(tmp_path) not in str(found)


class Deaf(ScriptedEngine):
    def supports(self, modality: str) -> bool:
        return modality != "audio"


class Reader(ScriptedEngine):
    def supports(self, modality: str) -> bool:
        return False


class Blind(ScriptedEngine):
    def supports(self, modality: str) -> bool:
        return modality != "video"


def test_media_that_the_model_cannot_be_shown_are_named() -> None:
    judge = Judge(Pointwise(), Blind(shout))
    judge.check_media(Example("q", ["a"]))
    judge.check_media(Example([Media.image(b""), "q"], ["a"]))
    judge.check_media(Example([Media.audio(b""), "q"], ["a"]))
    deaf = Judge(Pointwise(), Deaf(shout))
    with pytest.raises(ConfigError, match=r"cannot hear sounds: use one that can, such as .*Flex-Omni-7B"):
        deaf.check_media(Example([Media.audio(b""), "q"], ["a"]))
    with pytest.raises(ConfigError, match="reads text only and cannot be shown images"):
        Judge(Pointwise(), Reader(shout)).check_media(Example([Media.image(b""), "q"], ["a"]))
    with pytest.raises(ConfigError, match="cannot be shown videos: use a model that can"):
        judge.check_media(Example("q", [[Media.video([])]]))


def test_the_judge_that_settings_choose() -> None:
    with Judge.load(model="nano", format="listwise", cache="off", seed=3) as judge:
        assert isinstance(judge.engine, TransformersEngine) and judge.sampling.seed == 3
        assert judge.format.described() == "AnchoredChunks(BudgetForcing(Listwise))"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Example("q", "a"), "list with one entry per candidate", id="candidates_as_text"),
        pytest.param(lambda: Example(3, ["a"]), "the question must be text", id="question_number"),
        pytest.param(lambda: Example("q", [["a", None]]), "candidate 0 must be text", id="none_part"),
        pytest.param(lambda: Sampling(temperature=-1), "temperature", id="temperature"),
        pytest.param(lambda: Sampling(top_p=0), "top_p", id="top_p"),
        pytest.param(lambda: Sampling(max_tokens=0), "max_tokens", id="max_tokens"),
        pytest.param(lambda: Sampling(logprobs=21), "logprobs", id="logprobs"),
        pytest.param(lambda: Sampling(stop="END"), "stop must be a list of texts", id="stop_as_text"),  # type: ignore[arg-type]
        pytest.param(lambda: Verdict(None), "either scores or a failure", id="verdict_neither"),
        pytest.param(lambda: Verdict((1.0,), Failure("empty")), "either scores or a failure", id="verdict_both"),
        pytest.param(lambda: Scale(5, 5), "low < high", id="scale_flat"),
        pytest.param(lambda: Scale(0, float("inf")), "finite", id="scale_infinite"),
        pytest.param(lambda: Rubric(" "), "criteria in words", id="rubric_blank"),
        pytest.param(lambda: Rubric.load("no-such"), "no rubric 'no-such'.*helpfulness", id="rubric_unknown"),
        pytest.param(lambda: Rubric.parse("criteria = "), "not valid TOML", id="rubric_toml"),
        pytest.param(lambda: Rubric.parse("low = 1"), "'criteria' is missing", id="rubric_missing"),
        pytest.param(lambda: Rubric.parse("criteria = 'x'\nhi = 3"), "unknown entry 'hi'", id="rubric_extra"),
        pytest.param(lambda: Rubric.parse("criteria = 'x'\nlow = true"), "'low' must be a number", id="rubric_bool"),
        pytest.param(lambda: Rubric.parse("criteria = 'x'\ndecimals = 1"), "true or false", id="rubric_decimals"),
    ],
)
def test_wrong_values_say_what_is_wrong(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_a_list_of_stop_texts_is_a_tuple() -> None:
    listed = Sampling(stop=["a", "b"])  # type: ignore[arg-type]
    assert listed == Sampling(stop=("a", "b")) and hash(listed) == hash(Sampling(stop=("a", "b")))


def test_a_rubric_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("criteria = 'Is it blue?'\nlow = 0\nhigh = 4\ndecimals = true\n")
    assert Rubric.load(file) == Rubric("Is it blue?", Scale(0, 4, decimals=True))


def test_built_in_rubrics_load() -> None:
    scales = {name: Rubric.load(name).scale for name in rubric_names()}
    assert len(scales) == 8 and all(scale is not None and scale.low == 1 for scale in scales.values())


def test_an_examples_own_rubric_goes_first() -> None:
    example = Example("q", ["a"], rubric=Rubric("Is it blue?", Scale(0, 100)))
    engine = ScriptedEngine([tags(73), tags(73)])
    own, default = Judge(Pointwise(), engine)([example, Example("q", ["a"])])
    assert own.scores == (73.0,) and own.scale == Scale(0, 100)
    assert default.failure is not None and default.failure.kind == "out_of_range"
