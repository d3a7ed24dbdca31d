"""RemoteJudge: a reward server (`flexjudge serve`) in the place of a judge, so that no judge's code runs here.

    FlexJudgeReward(reward_server="http://judge-node:8900")         # or FLEXJUDGE_REWARD_SERVER, in every trainer

The server has the model, the format, the rubric, the cache, the ceilings of cost and the probes with their alarms; here
are the rows, their groups over ranks and the policy for failures. The token is in the environment variable
FLEXJUDGE_SERVE_TOKEN.

Promised: every group ends as scores or typed failures. A server that restarts, is full or fails is asked again until
`patience` seconds have passed; its cache answers what it had judged before. A request that it calls wrong is a
ConfigError with its words; a wrong token an EngineError. What stopped the server, such as a ceiling, is raised here.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import math
import os
import random
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from flexjudge_reward.engines.base import Engine
from flexjudge_reward.errors import ConfigError, CostLimitReached, EngineError, JudgementFailed
from flexjudge_reward.formats.base import UNIT, Format
from flexjudge_reward.judge.config import KNOWN_SETTINGS, JudgeConfig, RewardConfig
from flexjudge_reward.judge.groups import GroupResult
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.rewards import Outcome
from flexjudge_reward.judge.settings import collect, settings_of
from flexjudge_reward.trainers.wire import STOPPED, group_json, outcomes_of
from flexjudge_reward.types import Example, Failure, Verdict

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")
_log = logging.getLogger("flexjudge_reward")
TOKEN = "FLEXJUDGE_SERVE_TOKEN"
_IN_FLIGHT = 64
_LONGEST_PAUSE_S = 8.0
_ENDING_S = 3.0
_FIRST_S = 10.0  # for which the first request looks for a server


class RemoteFormat(Format):
    """The server's format, as far as groups are concerned."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        self.name, self._described = str(about["name"]), str(about["described"])
        self.min_candidates = float(about["min_candidates"])
        most = about["max_candidates"]
        self.max_candidates = math.inf if most is None else float(most)

    def described(self) -> str:
        """As the server says."""
        return self._described


class RemoteEngine(Engine):
    """Stands for the server's engine, which cannot be asked from here."""

    remote = True

    def __init__(self, about: Mapping[str, Any]) -> None:
        self._about = dict(about)

    def identity(self) -> dict[str, object]:
        """As the server says."""
        return self._about


class RemoteJudge(Judge):
    """Judges groups at a reward server."""

    def __init__(self, url: str, patience: float) -> None:
        """Asks the server what it judges with.

        Args:
            url: of the server, such as http://judge-node:8900.
            patience: seconds for which a group is tried.

        Raises:
            ConfigError: no address.
            EngineError: no reward server answers there, or it wants another token.
        """
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"reward_server must be an address such as http://judge-node:8900, found {url!r}")
        self.url, self.patience = url.rstrip("/").removesuffix("/judge"), patience
        about = _run(self._about())
        super().__init__(RemoteFormat(about["format"]), RemoteEngine(about["judge"]))

    def described(self) -> dict[str, object]:
        """As the server says."""
        return self.engine.identity()

    def judge_groups(self, examples: Sequence[Example]) -> list[GroupResult]:
        """One result per group, in order. Raises as the module says."""
        return _run(self._judge_all(examples))

    async def _about(self) -> dict[str, Any]:
        async with _session() as http:
            try:
                answer = await self._ask(http, None, min(_FIRST_S, self.patience))
                if isinstance(answer, Failure):
                    raise EngineError(
                        f"no reward server answers at {self.url} ({answer.detail}). Start one with `flexjudge serve`,"
                        " or correct reward_server"
                    )
                return {name: dict(answer[name]) for name in ("format", "judge")}
            except (KeyError, TypeError, ValueError):
                raise EngineError(f"what answers at {self.url} is not a reward server") from None

    async def _judge_all(self, examples: Sequence[Example]) -> list[GroupResult]:
        flights = asyncio.Semaphore(_IN_FLIGHT)
        async with _session() as http, asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._judge_one(http, flights, example)) for example in examples]
        return [task.result() for task in running]

    async def _judge_one(
        self, http: aiohttp.ClientSession, flights: asyncio.Semaphore, example: Example
    ) -> GroupResult:
        count = len(example.candidates)
        async with flights:
            body = await asyncio.to_thread(lambda: json.dumps({"groups": [group_json(example)]}).encode())
            answer = await self._ask(http, body, self.patience, count)
        if isinstance(answer, Failure):
            return GroupResult((answer,) * count, (Verdict.failed(answer),))
        return GroupResult(tuple(outcome for outcome, _ in answer), tuple(_verdict(*row) for row in answer))

    async def _ask(
        self, http: aiohttp.ClientSession, body: bytes | None, patience: float, count: int = 0
    ) -> Any | Failure:
        """The server's answer, or why there was none for so long."""
        import aiohttp

        loop, attempt, problem = asyncio.get_running_loop(), 0, "no attempt"
        due = loop.time() + patience
        while loop.time() < due:
            demanded = 0.0
            try:
                async with (
                    asyncio.timeout_at(due),
                    http.request(
                        "GET" if body is None else "POST", f"{self.url}/judge", data=body and io.BytesIO(body)
                    ) as response,
                ):
                    raw = await response.read()
                _raise_for(response.status, raw, self.url)
                if response.status == 200:
                    answer = json.loads(raw)
                    return answer if body is None else outcomes_of(answer["groups"][0], count)
                problem, demanded = f"it answered {response.status}: {_said(raw)}", _seconds(response.headers)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problem = str(error) or type(error).__name__
            except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
                if isinstance(error, ConfigError):
                    raise
                problem = f"its answer cannot be read: {error}"
            pause = max(demanded, min(_LONGEST_PAUSE_S, 0.25 * 2.0 ** min(attempt, 8)) * random.uniform(0.5, 1))
            attempt += 1
            await asyncio.sleep(max(0.0, min(pause, due - loop.time())))
        return Failure("transport", f"the reward server at {self.url} gave no scores for {patience:g} s: {problem}")


def check_settings(config: RewardConfig, given: Mapping[str, Any], name: str) -> None:
    """Raises ConfigError for what a reward with a `reward_server` cannot keep; warns of shared settings of a judge.

    Args:
        config: the reward's.
        given: arguments for a judge.
        name: of the reward, by which file and environment may have settings of its own.
    """
    if limit := next((one for one in ("max_cost", "max_judge_tokens") if getattr(config, one) is not None), None):
        raise ConfigError(f"{limit} cannot be kept here, since a reward_server judges and pays: set it at the server")
    layers, judges = collect(KNOWN_SETTINGS, given, os.environ, name), settings_of(JudgeConfig)
    shared, own = (
        [one.where for layer in part for setting, one in layer.items() if setting in judges]
        for part in (layers[:2], layers[2:])
    )
    if own:
        raise ConfigError(f"with a reward_server the judge is configured there: leave out {', '.join(own)}")
    if shared and os.environ.get("RANK", "0") == "0":
        _log.warning("the reward server judges with its own settings; without effect here: %s", ", ".join(shared))


def _session() -> aiohttp.ClientSession:
    import aiohttp

    token = os.environ.get(TOKEN)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0)
    return aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=_IN_FLIGHT), timeout=timeout)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """In a thread of its own: the caller's, such as a notebook's, may have a running loop."""
    loop, result = asyncio.new_event_loop(), Future[T]()
    task = loop.create_task(work)

    def drive() -> None:
        try:
            result.set_result(loop.run_until_complete(task))
        except BaseException as error:
            result.set_exception(error)
        finally:
            loop.close()

    thread = threading.Thread(target=drive, name="flexjudge-client", daemon=True)
    thread.start()
    try:
        return result.result()
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    except BaseException:  # such as an interrupt, which must not wait for the server
        with suppress(RuntimeError):  # it has ended
            loop.call_soon_threadsafe(task.cancel)
        raise
    finally:
        thread.join(_ENDING_S)


def _raise_for(status: int, raw: bytes, url: str) -> None:
    if status in (401, 403):
        raise EngineError(f"the reward server at {url} rejects the token: set {TOKEN} to its token")
    if status == STOPPED[CostLimitReached]:
        raise CostLimitReached(f"the reward server at {url} has stopped: {_said(raw)}")
    if status == STOPPED[JudgementFailed]:
        raise JudgementFailed(f"the reward server at {url} has stopped: {_said(raw)}")
    if status in (400, 413):
        raise ConfigError(f"the reward server at {url} refuses the rows: {_said(raw)}")
    if 400 <= status < 500 and status not in (408, 429):
        raise EngineError(f"what answers at {url} is not a reward server: it answered {status}")


def _said(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["error"])[:300]
    except (ValueError, KeyError, TypeError, RecursionError):
        return " ".join(raw[:200].decode("utf-8", "replace").split())


def _seconds(headers: Mapping[str, str]) -> float:
    text = headers.get("Retry-After", "")
    return min(float(text), 60.0) if text.isascii() and text.isdigit() else 0.0


def _verdict(outcome: Outcome, reasoning: str) -> Verdict:
    if isinstance(outcome, Failure):
        said = reasoning.removeprefix(f"[{outcome.kind}: {outcome.detail}] ")
        return Verdict.failed(outcome, reasoning=said)
    return Verdict((outcome,), scale=UNIT, reasoning=reasoning)
