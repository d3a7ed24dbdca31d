"""Environments of TRL that the judge rewards, called as TRL 1.16 calls them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from flexjudge_reward import (
    ConfigError,
    Generation,
    Judge,
    Listwise,
    Pointwise,
    Request,
    RewardSession,
    ScriptedEngine,
    Untrusted,
)
from flexjudge_reward.media.base import Media
from flexjudge_reward.trainers import environment, rows
from flexjudge_reward.trainers.environment import JudgedEnvironment
from support.images import noise
from support.judging import tags

PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is top left?"}]


class Board(JudgedEnvironment):
    """A board that is looked at."""

    shown: Any = None

    def reset(self, **row: Any) -> Any:
        return self.shown

    def look(self, place: str) -> list[Any]:
        """A tool with an image."""
        self.answer("what a tool calls")
        return [{"type": "image", "image": noise(seed=3)}, {"type": "text", "text": f"the {place}"}]

    def answer(self, text: str) -> str:
        """A tool."""
        if text == "broken":
            raise ValueError("no such answer")
        return "thanks"

    async def wait(self, seconds: float) -> str:
        """A tool that is awaited."""
        await asyncio.sleep(seconds)
        return f"waited {seconds}"


class Sum(Board):
    def get_reward(self) -> float:  # type: ignore[override]
        return 1 + self._judged()


class Shop:
    """An environment that knows nothing of judges."""

    def reset(self, **row: Any) -> str:
        return " Buy something."

    def buy(self, what: str) -> str:
        """A tool."""
        return f"one {what}"


class JudgedShop(JudgedEnvironment, Shop):
    pass


def parts(request: Request) -> list[Any]:
    """The question and the rollout, as the judge is shown them."""
    given = request.prompt.messages[1].parts
    return [str(one.text) if isinstance(one, Untrusted) else one for one in given if isinstance(one, Untrusted | Media)]


def grade(request: Request) -> Generation | str:
    text = "".join(one for one in parts(request) if isinstance(one, str))
    if "unjudged" in text:
        return Generation.failed("transport", "no route")
    return tags(9 if "red star" in text else 3)


class Engine(ScriptedEngine):
    """Notes how many requests come together."""

    def __init__(self) -> None:
        super().__init__(grade)
        self.batches: list[int] = []

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        self.batches.append(len(requests))
        return super().complete(requests)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    engine = Engine()
    monkeypatch.setattr(RewardSession, "judge", Judge(Pointwise(), engine))
    rows._shared.cache_clear()
    environment._waiting.clear()
    yield engine
    environment._waiting.clear()
    rows.meeting().close()
    rows._shared.cache_clear()


async def rewarded(rollouts: Sequence[Any]) -> list[float]:
    """As `GRPOTrainer` asks for them."""
    return [await one.get_reward() for one in rollouts]


def test_rollouts_of_a_batch_are_judged_together_in_one_batch(engine: Engine) -> None:
    boards = [Board(), Board(), Sum()]
    for number in (1, 2):  # the trainer takes them again for its next batch
        for board in boards:
            board.reset(prompt=PROMPT, step=number)
        boards[1].answer(text=f"red star {number}")
        found = asyncio.run(rewarded(boards[:2]))
        assert found == pytest.approx([2 / 9, 8 / 9])
        assert boards[2].get_reward() == pytest.approx(1 + 2 / 9)
    assert engine.batches == [3, 3]


def test_the_judge_sees_what_was_done_in_its_order(engine: Engine) -> None:
    board = Board()
    board.shown = [{"type": "image", "image": noise(seed=1)}, {"type": "text", "text": "You may look."}]
    board.reset(prompt=PROMPT, image=noise(seed=2))
    with pytest.raises(ValueError):
        board.answer(text="broken")
    board.look(place="left")
    asyncio.run(board.wait(seconds=0))
    asyncio.run(rewarded([board]))
    seen = [part for part in parts(engine.requests[0]) if isinstance(part, Media) or part.strip()]
    words = ["Be brief", "image", "What is top left", "image", "may look", '"broken"', "no such answer", '"left"']
    words += ["image", "the left", '"wait"', "waited 0"]
    assert [one.kind for one in seen if isinstance(one, Media)] == ["image"] * 3
    text = " ".join("image" if isinstance(one, Media) else one for one in seen)
    at = -1
    for word in words:
        at = text.index(word, at + 1)
    assert "what a tool calls" not in text


def test_rollouts_of_a_trainer_that_is_gone_are_not_judged(engine: Engine) -> None:
    Board().reset(prompt=PROMPT)
    board = Board()
    board.reset(prompt=PROMPT)
    asyncio.run(rewarded([board]))
    assert engine.batches == [1]


def test_an_environment_that_is_there_already_is_judged_as_it_is(engine: Engine) -> None:
    shop = JudgedShop()
    shop.reset(prompt=PROMPT)
    shop.buy(what="red star")
    assert asyncio.run(rewarded([shop])) == pytest.approx([8 / 9])
    text = "".join(one for one in parts(engine.requests[0]) if isinstance(one, str))
    assert "What is top left? Buy something." in text and text.count("one red star") == 1
    assert Shop().buy(what="cat") == "one cat"  # itself unchanged


def test_a_failure_gets_the_mean_of_its_siblings_or_of_the_latest_scores(engine: Engine) -> None:
    boards = [Board() for _ in range(4)]
    for board, question in zip(boards, "aaab", strict=True):
        board.reset(prompt=question)
    for board, text in zip(boards, ("red star", "none", "unjudged", "unjudged"), strict=True):
        board.answer(text=text)
    found = asyncio.run(rewarded(boards))
    assert found == pytest.approx([8 / 9, 2 / 9, 5 / 9, 5 / 9])


def test_a_policy_of_none_leaves_a_failed_rollout_out(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Board, "settings", {"on_failure": "abstain"})
    boards = [Board() for _ in range(3)]
    for board, text in zip(boards, ("red star", "none", "unjudged"), strict=True):
        board.reset(prompt="What is top left?")
        board.answer(text=text)
    assert asyncio.run(rewarded(boards)) == [pytest.approx(8 / 9), pytest.approx(2 / 9), None]
    rows.meeting(on_failure="abstain").close()


def test_a_worker_of_a_trainer_judges_each_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.multiprocessing, "parent_process", lambda: "a trainer")
    boards = [Board(), Board()]
    for board in boards:
        board.reset(prompt="What is top left?")
    boards[1].answer(text="red star")  # still runs when the first is asked
    assert asyncio.run(rewarded(boards[:1])) == pytest.approx([2 / 9]) and engine.batches == [1]
    assert asyncio.run(rewarded(boards[1:])) == pytest.approx([8 / 9]) and engine.batches == [1, 1]


def test_tools_are_what_a_trainer_sees(engine: Engine) -> None:
    tools = {name for name, _ in inspect.getmembers(Sum, inspect.isfunction) if not name.startswith("_")}
    assert tools == {"reset", "get_reward", "look", "answer", "wait"}
    assert str(inspect.signature(Board.look)) == "(self, place: 'str') -> 'list[Any]'" and Board.look.__doc__
    assert inspect.iscoroutinefunction(Board.wait) and inspect.iscoroutinefunction(Board.get_reward)
    assert not inspect.iscoroutinefunction(Sum.get_reward)


def test_a_format_that_compares_is_an_error(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RewardSession, "judge", Judge(Listwise(), engine).for_group_size())
    board = Board()
    board.reset(prompt="What is top left?")
    with pytest.raises(ConfigError, match="use it in reward_funcs"):
        asyncio.run(rewarded([board]))
    assert not engine.requests
