"""Judge and rubric: order, isolation of one bad example, and errors before anything is generated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from flexjudge_reward import (
    ConfigError,
    Example,
    Generation,
    Judge,
    Media,
    MediaError,
    Pair,
    Prompt,
    Rubric,
    Sampling,
    Scale,
    Score,
    Verdict,
)
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.rubric import rubric_names
from flexjudge_reward.types import Failure


def reply(*scores: int) -> str:
    return "<think>so</think>" + "".join(f"<answer>{score}</answer>" for score in scores)


def shout(prompt: Prompt) -> str:
    """Scores an answer by the number of exclamation marks in it."""
    text = "".join(getattr(part, "text", "") for part in prompt.messages[1].parts)
    return reply(1 + text.count("!"))


def test_verdicts_come_in_the_order_of_the_examples() -> None:
    judge = Judge(Score(), ScriptedEngine(shout))
    verdicts = judge([Example("How many?", ["!" * n]) for n in (3, 0, 5)])
    assert [verdict.scores for verdict in verdicts] == [(4.0,), (1.0,), (6.0,)]


def test_one_call_to_the_engine_serves_the_whole_batch() -> None:
    engine = ScriptedEngine(shout)
    calls: list[int] = []
    generate = engine.generate

    def counted(prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        calls.append(len(prompts))
        return generate(prompts, sampling)

    engine.generate = counted  # type: ignore[method-assign]
    Judge(Score(), engine)([Example("q", ["a"]) for _ in range(7)])
    assert calls == [7]


def test_a_bad_picture_fails_its_row_only(tmp_path: Path) -> None:
    broken = Media.image(b"not a picture")
    with pytest.raises(MediaError):
        broken.load()
    examples = [Example("q", ["a!"]), Example([broken, "q"], ["a!!"]), Example("q", ["a!!!"])]
    first, second, third = Judge(Score(), ScriptedEngine(shout))(examples)
    assert (first.scores, third.scores) == ((2.0,), (4.0,))
    assert second.scores is None and second.failure is not None and second.failure.kind == "media"


def test_a_batch_of_bad_pictures_never_reaches_the_engine() -> None:
    engine = ScriptedEngine([])
    verdicts = Judge(Score(), engine)([Example([Media.image(b"x"), "q"], ["a"])] * 2)
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
        Judge(Pair(), engine)(examples)


def test_an_engine_that_loses_a_reply_is_named() -> None:
    class Forgetful(ScriptedEngine):
        def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
            return super().generate(prompts, sampling)[:-1]

    with pytest.raises(ConfigError, match=r"Forgetful.generate returned 1 replies for 2 prompts"):
        Judge(Score(), Forgetful(shout))([Example("q", ["a"]), Example("q", ["b"])])


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


def test_a_rubric_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("criteria = 'Is it blue?'\nlow = 0\nhigh = 4\ndecimals = true\n")
    assert Rubric.load(file) == Rubric("Is it blue?", Scale(0, 4, decimals=True))


@pytest.mark.parametrize("name", rubric_names())
def test_built_in_rubrics_load(name: str) -> None:
    assert Rubric.load(name).scale.low == 1


def test_an_examples_own_rubric_goes_first() -> None:
    example = Example("q", ["a"], rubric=Rubric("Is it blue?", Scale(0, 100)))
    engine = ScriptedEngine([reply(73), reply(73)])
    own, default = Judge(Score(), engine)([example, Example("q", ["a"])])
    assert own.scores == (73.0,) and own.scale == Scale(0, 100)
    assert default.failure is not None and default.failure.kind == "out_of_range"
