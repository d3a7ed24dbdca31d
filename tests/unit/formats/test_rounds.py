"""Rounds: coroutines that ask together, in order, and what happens when one of them fails."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Callable, Iterator, Sequence

import pytest

from flexjudge_reward import (
    Ask,
    ConfigError,
    Engine,
    EngineError,
    Example,
    Format,
    Generation,
    Judge,
    Message,
    Pointwise,
    Prompt,
    Request,
    Sampling,
    Verdict,
    gather,
)
from flexjudge_reward.formats.rounds import run, send
from support.judging import judged, scores, tags


@pytest.fixture(autouse=True)
def every_coroutine_is_awaited_or_closed() -> Iterator[None]:
    """A coroutine that is dropped warns when it is collected, which no `filterwarnings` turns into a failure here."""
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def prompt(text: str) -> Prompt:
    return Prompt((Message("user", (text,)),))


def said(request: Request) -> str:
    return str(request.prompt.messages[0].parts[0])


class Rounds:
    """Answers every request with its own text in capitals, and notes the rounds."""

    def __init__(self) -> None:
        self.rounds: list[list[str]] = []

    def __call__(self, requests: list[Request]) -> list[Generation]:
        self.rounds.append([said(request) for request in requests])
        return [Generation(said(request).upper()) for request in requests]


ask = Ask(Sampling(), send)


async def chain(name: str, rounds: int, width: int = 1) -> str:
    """Asks `rounds` times, `width` prompts each."""
    heard = []
    for number in range(rounds):
        heard += [reply.text for reply in await ask([prompt(f"{name}{number}{i}") for i in range(width)])]
    return " ".join(heard)


async def together(*names: str) -> list[str]:
    return await gather(*(chain(name, 2) for name in names))


def test_results_come_in_order_whichever_ends_first() -> None:
    generate = Rounds()
    assert run(gather(chain("a", 3), chain("b", 0), chain("c", 1, 2)), generate) == ["A00 A10 A20", "", "C00 C01"]
    assert generate.rounds == [["a00", "c00", "c01"], ["a10"], ["a20"]]


def test_nested_groups_share_their_rounds() -> None:
    async def outer() -> tuple[list[str], str]:
        first = await together("c", "d")
        return first, await chain("e", 1)

    generate = Rounds()
    results = run(gather(together("a", "b"), outer()), generate)
    assert results == [["A00 A10", "B00 B10"], (["C00 C10", "D00 D10"], "E00")]
    assert generate.rounds == [["a00", "b00", "c00", "d00"], ["a10", "b10", "c10", "d10"], ["e00"]]


def test_nothing_to_gather_needs_no_round() -> None:
    generate = Rounds()
    assert run(gather(), generate) == []
    assert run(gather(chain("a", 0)), generate) == [""]
    assert generate.rounds == []


def test_a_single_coroutine_runs_without_gather() -> None:
    assert run(chain("a", 2), Rounds()) == "A00 A10"


def test_a_changed_ask_keeps_everything_else() -> None:
    seen: list[Sampling] = []

    def generate(requests: list[Request]) -> list[Generation]:
        seen.extend(request.sampling for request in requests)
        return [Generation("") for _ in requests]

    async def two() -> None:
        asking = Ask(Sampling(0.5, seed=3), send)
        await asking.changed(seed=4).changed(max_tokens=1)([prompt("a")])
        await asking([prompt("b")])

    run(two(), generate)
    assert seen == [Sampling(0.5, seed=4, max_tokens=1), Sampling(0.5, seed=3)]


# ---------------------------------------------------------------- failures


class Closing:
    """Coroutines that note when they are closed."""

    def __init__(self) -> None:
        self.closed: list[str] = []

    async def waits(self, name: str) -> None:
        try:
            await ask([prompt(name)])
            await ask([prompt(name)])
        except GeneratorExit:
            self.closed.append(name)
            raise

    async def fails(self, rounds: int) -> None:
        for _ in range(rounds):
            await ask([prompt("fails")])
        raise ValueError("broken format")

    async def nested(self, name: str) -> list[None]:
        return await gather(self.waits(f"{name}1"), self.waits(f"{name}2"))


@pytest.mark.parametrize("rounds", [pytest.param(0, id="before_the_first_round"), pytest.param(1, id="after_a_round")])
def test_an_exception_in_one_closes_the_others(rounds: int) -> None:
    """Before the first round, those after it were never started: they must not warn either."""
    own = Closing()
    with pytest.raises(ValueError, match="broken format"):
        run(gather(own.waits("a"), own.nested("b"), own.fails(rounds), own.waits("c"), own.nested("d")), Rounds())
    assert own.closed == (["a", "b1", "b2"] if rounds == 0 else ["a", "b1", "b2", "c", "d1", "d2"])


def test_an_engine_that_fails_closes_all() -> None:
    def broken(requests: list[Request]) -> list[Generation]:
        raise EngineError("no model")

    own = Closing()
    with pytest.raises(EngineError) as error:
        run(own.nested("a"), broken)
    assert own.closed == ["a1", "a2"] and error  # closed although the error still refers to the coroutines


def test_an_engine_that_raises_stop_iteration_does_not_end_the_judgement() -> None:
    def broken(requests: list[Request]) -> list[Generation]:
        return [next(iter(()))]

    with pytest.raises(StopIteration):
        run(chain("a", 1), broken)


# ---------------------------------------------------------------- awaiting something else


class Sleeping(Format):
    """A format that awaits an event loop, which is not there."""

    async def judge(self, example: Example, ask: Ask) -> Verdict:
        await asyncio.sleep(0)
        return Verdict((1.0,))


class Waiting(Format):
    """A format that awaits a future: iterating one gives the future itself."""

    async def judge(self, example: Example, ask: Ask) -> Verdict:
        loop = asyncio.new_event_loop()
        try:
            await loop.create_future()
        finally:
            loop.close()
        return Verdict((1.0,))


@pytest.mark.parametrize(
    ("format", "found"),
    [pytest.param(Sleeping(), "NoneType", id="sleep"), pytest.param(Waiting(), "Future", id="future")],
)
@pytest.mark.parametrize("examples", [1, 3])
def test_awaiting_anything_but_ask_is_a_config_error(format: Format, found: str, examples: int) -> None:
    message = f"may only await `ask` and `gather`, it awaited {found}"
    with pytest.raises(ConfigError, match=message):
        judged(format, scores, *[["5"]] * examples)
    with pytest.raises(ConfigError, match=message):
        run(format.judge(Example("q", ["a"]), ask), Rounds())


def test_a_judge_works_inside_a_running_event_loop() -> None:
    async def main() -> Verdict:
        return judged(Pointwise(), scores, ["5"])[0]

    assert asyncio.run(main()).scores == (5.0,)


class Late(Format):
    """A format that has nothing to ask in its first round."""

    async def judge(self, example: Example, ask: Ask) -> Verdict:
        assert await ask([]) == []
        (reply,) = await ask(Pointwise().render(example))
        return Pointwise().read(example, [reply])


class Counting(Engine):
    """Notes how many requests each call has."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        self.calls.append(len(requests))
        return [Generation(tags(7)) for _ in requests]


@pytest.mark.parametrize(
    ("make", "calls"),
    [pytest.param(Late, [2], id="empty_first_round"), pytest.param(Pointwise, [2], id="plain")],
)
def test_an_empty_round_reaches_no_model(make: Callable[[], Format], calls: list[int]) -> None:
    engine = Counting()
    verdicts = Judge(make(), engine)([Example("q", ["a"]), Example("q", ["b"])])
    assert [verdict.scores for verdict in verdicts] == [(7.0,), (7.0,)]
    assert engine.calls == calls
