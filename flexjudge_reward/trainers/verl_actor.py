"""JudgeActor: where the reward workers of a verl job meet, in one process, and how they ask it. It needs no verl.

Rows are batched; groups meet by their `uid`. A format that judges each row alone answers a row at once, so that judging
overlaps with the rollouts that still run; only a row that failed waits for its siblings, or with `shrink` all do.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from typing import Any
from zlib import crc32

from flexjudge_reward.judge.config import trainer_config
from flexjudge_reward.judge.rewards import Outcome, rewards
from flexjudge_reward.trainers.rendezvous import Rendezvous
from flexjudge_reward.trainers.rows import NEUTRAL, neutral
from flexjudge_reward.trainers.session import RewardSession
from flexjudge_reward.types import Example, Failure

_KEPT = 10_000  # groups whose late rows still find their siblings


class JudgeActor:
    """The judge of a job."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Raises ConfigError: a wrong setting."""
        self.session, self.idle = RewardSession(settings=settings), trainer_config().verl_idle
        self._meeting = Rendezvous(self.session, self.idle, idle=True)
        self._seen: OrderedDict[str, list[Outcome]] = OrderedDict()

    async def score(self, sample: Example, uid: str | None, size: int) -> tuple[float | None, str, float]:
        """The reward of a row, why it has none or only its siblings', and what stands for None where there has to be a
        number: of a group the same for all its rows. Raises as `Rendezvous.score`.
        """
        grouped = self.session.judge.format.max_candidates > 1 or self.session.config.shrink
        found = await (self._meeting.score(sample, uid, size) if grouped else self._meeting.score(sample))
        failure = found.outcome if isinstance(found.outcome, Failure) else None
        number = found.reward if grouped or uid is None else await self._among_siblings(found.outcome, uid, size)
        why = "" if failure is None else f"{failure.kind}: {failure.detail}"
        return number, why, neutral(self.session) if uid is None else NEUTRAL

    async def _among_siblings(self, outcome: Outcome, uid: str, size: int) -> float | None:
        """A score at once; for a failure what its group makes of it, which the other rows of the group decide."""
        seen = self._seen.setdefault(uid, [])
        if len(self._seen) > _KEPT:
            self._seen.popitem(last=False)
        index, due = len(seen), time.monotonic() + self.idle
        first = index - index % size  # a `uid` that comes again is another group
        seen.append(outcome)
        if not isinstance(outcome, Failure):
            return outcome
        known = len(seen)
        while len(seen) < first + size and time.monotonic() < due:
            await asyncio.sleep(0.02)
            if len(seen) > known:
                known, due = len(seen), time.monotonic() + self.idle
        siblings, config = seen[first : first + size], self.session.config
        return rewards(siblings, [0] * len(siblings), config.on_failure, config.on_candidate_failure)[index - first]


@cache  # an actor ends with the last handle of the process that made it
def _actor(settings: tuple[tuple[str, Any], ...]) -> Any:
    import ray  # type: ignore[import-not-found]

    name = f"flexjudge-{crc32(repr(settings).encode()):08x}"  # other settings are another judge
    options = {"name": name, "get_if_exists": True, "num_cpus": 0, "max_concurrency": 10_000}
    return ray.remote(JudgeActor).options(**options).remote(dict(settings))


async def ask(settings: tuple[tuple[str, Any], ...], *given: Any) -> Any:
    """The actor's answer, or a new one's: an actor also ends with the process that made it, which may not be this."""
    for left in (2, 1, 0):
        try:
            return await _actor(settings).score.remote(*given)
        except Exception as error:
            from ray.exceptions import RayActorError

            if not isinstance(error, RayActorError) or not left:
                raise
            _actor.cache_clear()
            await asyncio.sleep(1)  # its name is free a moment later
