"""A format of one's own: with `render` and `read`, or with `judge` alone; in a judge and in every wrapper."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from flexjudge_reward import (
    Ask,
    BudgetForcing,
    ConfigError,
    Example,
    ExpectedScore,
    Failure,
    Format,
    Generation,
    Judge,
    MajorityVote,
    Message,
    Pairwise,
    Pointwise,
    PositionSwap,
    Prompt,
    Request,
    Scale,
    ScriptedEngine,
    Tournament,
    Untrusted,
    Verdict,
    gather,
)
from support.judging import candidates, grade, judged


def prompt(*texts: str) -> Prompt:
    parts = tuple(Untrusted(text) for text in ("q", *texts))
    return Prompt((Message("system", ("Count.",)), Message("user", parts)))


def texts(example: Example) -> list[str]:
    return [str(candidate[0]) for candidate in example.candidates]


class OnePerLine(Format):
    """All candidates in one prompt; a plain number per line."""

    min_candidates, max_candidates = 2, 4

    def render(self, example: Example) -> list[Prompt]:
        return [prompt(*texts(example))]

    def read(self, example: Example, generations: Sequence[Generation]) -> Verdict:
        (reply,) = generations
        lines = reply.text.split()
        if reply.failure or len(lines) != len(example.candidates):
            return Verdict.failed(reply.failure or Failure("malformed", reply.text), generations)
        return Verdict(tuple(map(float, lines)), scale=Scale(0, 100), generations=(reply,))


class Doubted(Format):
    """One candidate after the other, each scored and then asked about once more."""

    async def judge(self, example: Example, ask: Ask) -> Verdict:
        return await self._combined(await gather(*(self._one(text, ask) for text in texts(example))))

    async def _one(self, text: str, ask: Ask) -> list[Generation]:
        (first,) = await ask([prompt(text)])
        (second,) = await ask.changed(temperature=1.0)([prompt(f"{text} {first.text}?")])
        return [first, second]

    async def _combined(self, replies: Sequence[Sequence[Generation]]) -> Verdict:
        generations = tuple(reply for pair in replies for reply in pair)
        return Verdict(tuple(float(second.text) for _, second in replies), generations=generations)


def lines(request: Request) -> str:
    return "\n".join(str(grade(text)) for text in candidates(request))


def test_render_and_read_are_enough() -> None:
    first, second = judged(OnePerLine(), lines, ["3", "50", "7"], ["4", "5"])
    assert (first.scores, second.scores) == ((3.0, 50.0, 7.0), (4.0, 5.0))
    (failed,) = judged(OnePerLine(), ["what?"], ["4", "5"])
    assert failed.failure == Failure("malformed", "what?") and failed.outcomes == (failed.failure,)
    with pytest.raises(
        ConfigError, match="example 1: OnePerLine judges 2 to 4 candidates at a time, this example has 1"
    ):
        judged(OnePerLine(), lines, ["4", "5"], ["4"])


def test_judge_is_enough() -> None:
    calls: list[list[str]] = []

    class Recorder(ScriptedEngine):
        def complete(self, requests: Sequence[Request]) -> list[Generation]:
            calls.append([candidates(request)[0] for request in requests])
            return super().complete(requests)

    engine = Recorder(lines)
    one, two = Judge(Doubted(), engine)([Example("q", ["3", "50"]), Example("q", ["7"])])
    assert (one.scores, two.scores) == ((3.0, 50.0), (7.0,)) and len(one.generations) == 4
    assert calls == [["3", "50", "7"], ["3 3?", "50 50?", "7 7?"]]  # all examples share each round
    assert [request.sampling.temperature for request in engine.requests] == [0, 0, 0, 1, 1, 1]


def test_a_format_with_neither_says_so() -> None:
    class Nothing(Format):
        pass

    class HalfOfIt(Format):
        def render(self, example: Example) -> list[Prompt]:
            return [prompt(*texts(example))]

    with pytest.raises(NotImplementedError, match=r"Nothing has neither render\(\) nor judge\(\)"):
        judged(Nothing(), lines, ["4"])
    with pytest.raises(NotImplementedError, match=r"HalfOfIt has neither read\(\) nor judge\(\)"):
        judged(HalfOfIt(), lines, ["4"])


@pytest.mark.parametrize("own", [OnePerLine(), Doubted()], ids=Format.described)
def test_every_wrapper_takes_it(own: Format) -> None:
    wrapped = [PositionSwap(own), MajorityVote(own, 3, by="mean"), BudgetForcing(own), BudgetForcing(PositionSwap(own))]
    for format in wrapped:
        (verdict,) = judged(format, lines, ["4", "5"])
        assert verdict.scores == (4.0, 5.0)
    (verdict,) = judged(Tournament(own), lines, ["4", "5", "3"])
    assert verdict.scores is not None and verdict.scores[2] < verdict.scores[0] < verdict.scores[1]
    with pytest.raises(ConfigError, match="expected scores need a format of one call"):
        ExpectedScore(own)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high", "count", "message"),
    [
        pytest.param(2, 2, 3, "judges 2 candidates at a time, this example has 3", id="exact"),
        pytest.param(2, 4, 5, "judges 2 to 4 candidates at a time, this example has 5", id="range"),
        pytest.param(2, math.inf, 1, "judges at least 2 candidates at a time, this example has 1", id="open"),
        pytest.param(1, math.inf, 0, "judges at least 1 candidates at a time, this example has 0", id="none"),
    ],
)
def test_check_names_the_range(low: float, high: float, count: int, message: str) -> None:
    format = Doubted()
    format.min_candidates, format.max_candidates = low, high
    format.check(Example("q", ["a"] * (count + 1 if count < low else count - 1)))
    with pytest.raises(ConfigError, match=f"MajorityVote.Doubted. {message}"):
        MajorityVote(format, 3).check(Example("q", ["a"] * count))


def test_a_wrapper_describes_what_is_inside() -> None:
    plain = Pairwise()
    format = Tournament(MajorityVote(PositionSwap(plain), 3), "swiss")
    assert format.described() == "Tournament(MajorityVote(PositionSwap(Pairwise)))"
    assert format.innermost() is plain is plain.innermost()
    assert (format.name, format.answers) == ("pairwise", "numbers")
    assert MajorityVote(Pointwise(), 3).max_candidates == 1
