"""Rendezvous: rows that arrive one at a time, in threads and coroutines, become whole groups."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from flexjudge_reward import (
    ConfigError,
    EngineError,
    Example,
    Failure,
    Format,
    Generation,
    Judge,
    JudgementFailed,
    Listwise,
    MajorityVote,
    Pairwise,
    Pointwise,
    Rendezvous,
    Request,
    RewardSession,
    ScriptedEngine,
)
from flexjudge_reward.trainers.rendezvous import RowScore
from support.judging import scores, tags

Meet = Callable[..., Rendezvous]


class Engine(ScriptedEngine):
    """Counts its calls; waits or raises where it is set to."""

    def __init__(self, replies: Any = scores) -> None:
        super().__init__(replies)
        self.calls: list[int] = []
        self.blocked: threading.Event | None = None
        self.error: Exception | None = None

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        self.calls.append(len(requests))
        blocked, error = self.blocked, self.error
        if blocked is not None:
            assert blocked.wait(10)
        if error is not None:
            raise error
        return super().complete(requests)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def meet(engine: Engine) -> Iterator[Meet]:
    """Makes rendezvous, and closes them; then none of their threads is left."""
    opened: list[Rendezvous] = []

    def meet(format: Format | None = None, deadline: float = 30.0, linger: float = 0.01, **settings: Any) -> Rendezvous:
        session = RewardSession(Judge(format or Listwise(), engine), settings)
        opened.append(Rendezvous(session, deadline, linger))
        return opened[-1]

    yield meet
    for meeting in opened:
        meeting.close()
        meeting.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("flexjudge-")]


def row(answer: object, question: str = "q") -> Example:
    return Example(question, [str(answer)])


def rewards(futures: Sequence[Future[RowScore]]) -> list[float | None]:
    return [future.result(10).reward for future in futures]


GROUPS = {name: [n, n + 1, 9] for name, n in zip("abcdef", (1, 2, 3, 4, 5, 6), strict=True)}
EXPECTED = {(name, place): (n - 1) / 9 for name, group in GROUPS.items() for place, n in enumerate(group)}


def shuffled(seed: int) -> list[tuple[str, int]]:
    """All rows, so that groups become whole in another order than they were begun."""
    keys = list(EXPECTED)
    random.Random(seed).shuffle(keys)
    return keys


# ---- groups


@pytest.mark.parametrize("format", [Pointwise(), Pairwise(), Listwise()], ids=lambda format: format.name)
def test_rows_from_threads_are_judged_in_their_groups(format: Format, meet: Meet) -> None:
    meeting, found = meet(format), {}

    def send(keys: list[tuple[str, int]]) -> None:
        for name, place in keys:
            future = meeting.submit(row(GROUPS[name][place], name), group=name, size=3)
            found[name, place] = future

    keys = shuffled(1)
    threads = [threading.Thread(target=send, args=(keys[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = {key: future.result(10).reward for key, future in found.items()}
    if format.max_candidates == 2:
        assert all(numbers[name, 0] < numbers[name, 1] < numbers[name, 2] for name in GROUPS)  # type: ignore[operator]
    else:
        assert numbers == pytest.approx(EXPECTED)
    assert meeting.session.summary.judged == 18


@pytest.mark.parametrize("seed", range(3))
def test_rows_from_coroutines_are_judged_in_their_groups(seed: int, meet: Meet) -> None:
    async def all_rows() -> dict[tuple[str, int], RowScore]:
        meeting, keys = meet(), shuffled(seed)
        rows = [meeting.score(row(GROUPS[name][place], name), group=name, size=3) for name, place in keys]
        return dict(zip(keys, await asyncio.gather(*rows), strict=True))

    found = asyncio.run(all_rows())
    assert {key: one.reward for key, one in found.items()} == pytest.approx(EXPECTED)
    assert all(one.outcome == one.reward and one.reasoning == "so" for one in found.values())


def unsure(request: Request) -> str:
    """An answer that differs from vote to vote."""
    return tags(1 + int(hashlib.md5(repr(request).encode()).hexdigest(), 16) % 10)


def test_unsure_scores_of_a_group_shrink_as_in_one_call(meet: Meet, engine: Engine) -> None:
    engine.replies = unsure
    meeting = meet(MajorityVote(Pointwise(), 4, "mean"), probes=0.0, shrink=True)
    rows = [row(n) for n in range(4)]
    (direct,) = meeting.session.score_groups([rows])
    futures = [meeting.submit(one, "g", 4) for one in rows]
    assert rewards(futures) == direct.rewards != direct.outcomes == [future.result().outcome for future in futures]
    with pytest.raises(ConfigError, match="this row came without one"):
        meeting.submit(rows[0])


def test_rows_without_a_group_share_batches(meet: Meet, engine: Engine) -> None:
    meeting = meet(Pointwise(), linger=0.3, probes=0)
    assert rewards([meeting.submit(row(n % 10 + 1)) for n in range(30)]) == pytest.approx(
        [n % 10 / 9 for n in range(30)]
    )
    assert len(engine.calls) <= 3 and sum(engine.calls) == 30


def test_rows_of_one_group_may_have_different_questions_where_each_is_judged_alone(meet: Meet) -> None:
    meeting = meet(Pointwise())
    assert rewards([meeting.submit(row(n, f"q{n}"), "a", 2) for n in (3, 5)]) == pytest.approx([2 / 9, 4 / 9])


def test_a_group_id_may_come_again(meet: Meet) -> None:
    meeting = meet()
    for answers in ((1, 2), (3, 4), (3, 4)):
        futures = [meeting.submit(row(n), "same", 2) for n in answers]
        assert rewards(futures) == pytest.approx([(n - 1) / 9 for n in answers])
    futures = [meeting.submit(row(n), "same", 2) for n in (5, 6, 7, 8)]  # two more, before the first was judged
    assert rewards(futures) == pytest.approx([4 / 9, 5 / 9, 6 / 9, 7 / 9])


def test_slow_judging_does_not_hold_up_another_group(meet: Meet, engine: Engine) -> None:
    meeting, engine.blocked = meet(), threading.Event()
    slow = [meeting.submit(row(n), "slow", 2) for n in (1, 2)]
    until(lambda: engine.calls)
    waiting, engine.blocked = engine.blocked, None
    assert rewards([meeting.submit(row(n), "fast", 2) for n in (3, 4)]) == pytest.approx([2 / 9, 3 / 9])
    assert not any(future.done() for future in slow)
    waiting.set()
    assert rewards(slow) == pytest.approx([0, 1 / 9])


# ---- groups that do not become whole


def test_an_incomplete_group_is_not_judged_and_gets_none(meet: Meet, engine: Engine) -> None:
    meeting = meet(deadline=0.5)
    late = [meeting.submit(row(n), "late", 3) for n in (1, 2)]
    whole = [meeting.submit(row(n), "whole", 2) for n in (3, 4)]
    assert rewards(whole) == pytest.approx([2 / 9, 3 / 9])
    assert rewards(late) == [None, None] and engine.calls == [1]
    outcome = late[0].result().outcome
    assert isinstance(outcome, Failure) and outcome.kind == "timeout"
    assert outcome.detail == "2 of 3 rows arrived within 0.5 s"
    after = meeting.submit(row(3), "late", 3)  # which opens the group anew
    assert isinstance(after.result(10).outcome, Failure)


def test_a_cancelled_row_leaves_its_group(meet: Meet, engine: Engine) -> None:
    meeting = meet()
    assert meeting.submit(row(1), "alone", 2).cancel() and not meeting._open
    left, kept = meeting.submit(row(1), "g", 2), meeting.submit(row(2), "h", 3)
    assert left.cancel() and rewards([meeting.submit(row(n), "g", 2) for n in (3, 4)]) == pytest.approx([2 / 9, 3 / 9])
    assert [*meeting._open] == ["h"] and kept.cancel()


def test_an_incomplete_group_is_an_error_under_raise(meet: Meet) -> None:
    late = meet(deadline=0.1, on_failure="raise").submit(row(1), "late", 2)
    with pytest.raises(JudgementFailed, match="timeout: 1 of 2 rows arrived within"):
        late.result(10)


def test_incomplete_groups_count_as_failures_of_the_run(meet: Meet) -> None:
    meeting = meet(deadline=0.1, max_failure_rate=0.002)
    futures = [meeting.submit(row(1), name, 2) for name in "ab"]
    with pytest.raises(JudgementFailed, match="2 of the last 2 judgements failed"):
        [future.result(10) for future in futures]


# ---- errors


def test_a_group_has_one_size(meet: Meet) -> None:
    meeting = meet()
    first = meeting.submit(row(1), "a", 2)
    with pytest.raises(ConfigError, match="the group 'a' has 2 rows for one row and 3 for another"):
        meeting.submit(row(2), "a", 3)
    assert rewards([first, meeting.submit(row(2), "a", 2)]) == pytest.approx([0, 1 / 9])


@pytest.mark.parametrize(
    ("answers", "group", "size", "message"),
    [
        pytest.param(["1"], "a", 0, "a group has an id and at least one row", id="size-0"),
        pytest.param(["1"], None, 2, "a group has an id and at least one row", id="no-id"),
        pytest.param(
            ["1", "2"], "a", 2, "a row has one candidate, the completion; this one has 2", id="two-candidates"
        ),
        pytest.param([], "a", 2, "a row has one candidate, the completion; this one has 0", id="no-candidate"),
        pytest.param(["1"], None, 1, "AnchoredChunks.* compares 2 rows or more, found 1", id="alone"),
    ],
)
def test_a_row_that_does_not_fit_is_named_and_harms_no_other(
    answers: list[str], group: str | None, size: int, message: str, meet: Meet
) -> None:
    meeting = meet()
    first = meeting.submit(row(1), "b", 2)
    with pytest.raises(ConfigError, match=message):
        meeting.submit(Example("q", answers), group, size)
    assert rewards([first, meeting.submit(row(2), "b", 2)]) == pytest.approx([0, 1 / 9])


@pytest.mark.parametrize("error", [EngineError("no judge"), ZeroDivisionError("a bug")], ids=["engine", "bug"])
def test_an_engine_that_raises_reaches_every_row_of_its_batch(error: Exception, meet: Meet, engine: Engine) -> None:
    meeting, engine.error = meet(linger=0.2), error
    futures = [meeting.submit(row(n), name, 2) for name in "ab" for n in (1, 2)]
    for future in futures:
        with pytest.raises(type(error), match=str(error)):
            future.result(10)
    engine.error = None
    assert rewards([meeting.submit(row(n), "a", 2) for n in (1, 2)]) == pytest.approx([0, 1 / 9])


def test_a_caller_that_stops_waiting_harms_no_other(meet: Meet, engine: Engine) -> None:
    meeting, engine.blocked = meet(), threading.Event()

    async def impatient() -> RowScore:
        first = asyncio.ensure_future(meeting.score(row(1), "a", 2))
        second = asyncio.ensure_future(meeting.score(row(2), "a", 2))
        await asyncio.to_thread(until, lambda: engine.calls)
        first.cancel()
        assert engine.blocked is not None
        engine.blocked.set()
        return await asyncio.wait_for(second, 10)

    assert asyncio.run(impatient()).reward == pytest.approx(1 / 9)
    waiting = meeting.submit(row(1), "b", 2)
    assert waiting.cancel()  # closing does not trip over it


# ---- closing


def test_closing_fails_rows_that_wait_and_finishes_those_that_are_judged(meet: Meet, engine: Engine) -> None:
    meeting, engine.blocked = meet(), threading.Event()
    judged = [meeting.submit(row(n), "a", 2) for n in (1, 2)]
    until(lambda: engine.calls)
    waiting = meeting.submit(row(3), "b", 2)
    closing = threading.Thread(target=meeting.close)
    closing.start()
    with pytest.raises(EngineError, match="closed before the group was judged"):
        waiting.result(10)
    with pytest.raises(EngineError, match="the rendezvous is closed"):
        meeting.submit(row(4), "b", 2)
    engine.blocked.set()
    assert rewards(judged) == pytest.approx([0, 1 / 9])
    closing.join(10)
    assert not closing.is_alive()


@pytest.mark.parametrize(("deadline", "linger"), [(0.0, 0.0), (-1.0, 0.0), (1.0, -0.1)])
def test_wrong_times_are_named(deadline: float, linger: float) -> None:
    with pytest.raises(ConfigError, match="deadline must be positive and linger at least 0"):
        Rendezvous(RewardSession(Judge(Pointwise(), ScriptedEngine([]))), deadline, linger)


def until(happened: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not happened() and time.monotonic() < end:
        time.sleep(0.005)
    assert happened()
