"""JudgedEnvironment: an environment of TRL 1.16 whose own reward, `get_reward()`, is the judge's.

    class Board(JudgedEnvironment):
        settings = {"model": "nano"}                # of `FlexJudgeReward`; FLEXJUDGE_* as always

        def reset(self, prompt, **row): ...         # as TRL wants it; may return an observation
        def look(self, place: str): ...             # a tool, which may return parts with images
    GRPOTrainer(environment_factory=Board, ...)

The judge is shown the prompt with the observation, then each tool call with its result, in order. TRL gives an
environment no text of its policy: what is to be judged is a tool's argument, or the judge is a reward function,
`reward_funcs=[FlexJudgeReward()]`, which sees all of it and compares groups. TRL asks one environment after the other
(`grpo_trainer.py`: get_reward), when all rollouts of its batch are over: the first call judges them together.
AsyncGRPOTrainer's worker asks while others run: each is judged alone. A failure gets the mean of its prompt's other
rollouts here, else of the latest scores; with on_failure="abstain" None: left out, if it is the only reward.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from flexjudge_reward.data.cells import MEDIA_COLUMNS, columns_of
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.trainers.protocols import groups_of
from flexjudge_reward.trainers.rows import meeting, neutral, row

_inside: ContextVar[bool] = ContextVar("inside", default=False)  # what a tool itself calls is not the policy's call
_noting: set[Callable[..., Any]] = set()
_judging = threading.Lock()
_waiting: WeakValueDictionary[int, JudgedEnvironment] = WeakValueDictionary()  # by id, in the order of their `reset`


class JudgedEnvironment:
    """Records what its policy does, and is rewarded for it. Its public methods are tools, as everywhere in TRL."""

    settings: ClassVar[Mapping[str, Any]] = {}  # rollouts with equal ones are judged together
    _reward: float | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, method in inspect.getmembers_static(cls, inspect.isfunction):  # also those of a class beside this one
            if not name.startswith("_") and name != "get_reward" and method not in _noting:
                _noting.add(noting := _begun(method) if name == "reset" else _recorded(method))
                setattr(cls, name, noting)

    async def get_reward(self) -> float | None:
        """The judge's reward, awaited. For another one, such as a sum, define it anew and call `_judged`."""
        return await asyncio.to_thread(self._judged)

    def _judged(self) -> Any:
        """The reward of this rollout, 0 to 1; None only where a policy says so. Raises as `Rendezvous.score`."""
        with _judging:
            if id(self) in _waiting:
                beside = [one for one in _waiting.values() if one.settings == self.settings]
                _judge([self] if multiprocessing.parent_process() else beside)
            return self._reward

    def _begin(self, prompt: Any, columns: Mapping[str, Any]) -> None:
        self._prompt, self._columns, self._turns = prompt, columns, list[dict[str, Any]]()
        with _judging:
            _waiting[id(self)] = _waiting.pop(id(self), self)  # at the end

    @contextmanager
    def _noted(self, name: str, arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Records a call; what is yielded takes its content."""
        answer: dict[str, Any] = {"role": "tool", "name": name, "content": ""}
        call = {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}
        if not _inside.get():
            self._turns += [{"role": "assistant", "content": "", "tool_calls": [call]}, answer]
        token = _inside.set(True)
        try:
            yield answer
            answer["content"] = answer["content"] if isinstance(answer["content"], list) else str(answer["content"])
        except Exception as error:  # what TRL tells the policy
            answer["content"] = str({"error": str(error)})
            raise
        finally:
            _inside.reset(token)


def _begun(reset: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(reset)
    def begin(self: JudgedEnvironment, **row: Any) -> Any:
        observation = reset(self, **row)
        self._begin(_with_observation(row.pop("prompt", ""), row, observation), row)
        return observation

    return begin


def _recorded(tool: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(tool)
    def call(self: JudgedEnvironment, *given: Any, **named: Any) -> Any:
        with self._noted(tool.__name__, named) as answer:  # TRL passes the arguments by name
            answer["content"] = result = tool(self, *given, **named)
        return result

    @functools.wraps(tool)
    async def called(self: JudgedEnvironment, *given: Any, **named: Any) -> Any:
        with self._noted(tool.__name__, named) as answer:
            answer["content"] = result = await tool(self, *given, **named)
        return result

    return called if inspect.iscoroutinefunction(tool) else call


def _with_observation(prompt: Any, columns: Mapping[str, Any], observation: Any) -> Any:
    """The prompt as TRL completes it: with the observation at its end, and the row's own images before it."""
    if observation is None:
        return prompt
    *before, last = prompt or [{"role": "user", "content": ""}]
    if isinstance(last["content"], str) and isinstance(observation, str):
        return [*before, {**last, "content": last["content"] + observation}]
    turns = [{**turn, "content": _parts(turn["content"])} for turn in (*before, last)]
    # Without places for them, columns would count as repetitions of the observation's images.
    held = {part.get("type") for turn in turns for part in turn["content"]}
    places = [{"type": kind} for kind in MEDIA_COLUMNS if kind not in held for _ in columns_of(kind, columns)]
    next((turn for turn in turns if turn["role"] == "user"), turns[-1])["content"][:0] = places
    turns[-1]["content"] += _parts(observation)
    return turns


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _judge(rollouts: Sequence[JudgedEnvironment]) -> None:
    """Rewards all of them, in one batch."""
    judge = meeting(**rollouts[0].settings)
    config, format = judge.session.config, judge.session.judge.format
    if format.max_candidates > 1:
        raise ConfigError(f"{format.described()} compares rollouts: use it in reward_funcs=[FlexJudgeReward()]")
    rows = [row(config, one._prompt, one._turns, one._columns) for one in rollouts]
    groups = groups_of(rows)
    waiting = {n: judge.submit(rows[n], (id(rows), group[0]), len(group)) for group in groups for n in group}
    found = [waiting[n].result().reward for n in range(len(rows))]
    instead = None if "abstain" in (config.on_failure, config.on_candidate_failure) else neutral(judge.session)
    for one, number in zip(rollouts, found, strict=True):
        one._reward = instead if number is None else number
        del _waiting[id(one)]
