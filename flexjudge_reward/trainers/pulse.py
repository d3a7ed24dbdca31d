"""What a reward server says of itself: whether its model answers, and the numbers that Prometheus reads.

A sleeping or a dead model behind a healthy server is what a health check must find, so only a reply of the model itself
counts: none from the cache.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence

from flexjudge_reward.engines.base import Engine, EngineWrapper
from flexjudge_reward.engines.probes import HARMLESS
from flexjudge_reward.errors import FlexJudgeError
from flexjudge_reward.judge.summary import RunSummary
from flexjudge_reward.types import Generation, Request

_FRESH_S, _PROBE_S, _REST_S = 60.0, 30.0, 5.0


class Pulse(EngineWrapper):
    """An engine that notes when it last answered."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._answered = self._probed = float("-inf")
        self._probing: asyncio.Future[None] | None = None

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        """The replies of the engine inside."""
        replies = super().complete(requests)
        if any(reply.failure is None for reply in replies):
            self._answered = time.monotonic()
        return replies

    def age(self) -> float:
        """Seconds since its last answer."""
        return time.monotonic() - self._answered

    async def alive(self) -> bool:
        """Whether the model answered lately, or answers a harmless request now. Callers that wait share one probe."""
        if self.age() > _FRESH_S:
            if self._probing is None or (self._probing.done() and time.monotonic() - self._probed > _REST_S):
                self._probing = asyncio.ensure_future(asyncio.to_thread(self._probe))
            await asyncio.wait([self._probing], timeout=_PROBE_S)
        return self.age() <= _FRESH_S

    def _probe(self) -> None:
        try:
            self.complete([HARMLESS])
        except FlexJudgeError:
            pass
        finally:
            self._probed = time.monotonic()


def exposition(
    requests: Mapping[tuple[str, int], int],
    judged: int,
    failures: Mapping[str, int],
    waiting: int,
    summary: RunSummary,
    pulse: Pulse,
) -> str:
    """The metrics of one worker in Prometheus' text format."""
    worker = f'worker="{os.getpid()}"'

    def family(name: str, kind: str, help: str, samples: Mapping[str, float]) -> Iterator[str]:
        yield f"# HELP flexjudge_{name} {help}"
        yield f"# TYPE flexjudge_{name} {kind}"
        for labels, value in samples.items():
            yield f"flexjudge_{name}{{{','.join(filter(None, (worker, labels)))}}} {float(value)}"

    by_route = {f'route="{route}",status="{status}"': count for (route, status), count in sorted(requests.items())}
    by_kind = {f'kind="{kind}"': count for kind, count in sorted(failures.items())}
    by_alarm = {f'kind="{kind}"': count for kind, count in sorted(summary.alarms.items())}
    age = pulse.age()
    lines = [
        *family("requests_total", "counter", "Requests by route and status.", by_route),
        *family("rows_total", "counter", "Rows with a score or a failure.", {"": judged}),
        *family("failures_total", "counter", "Rows without a score, by kind.", by_kind),
        *family("alarms_total", "counter", "How often a trouble of the judge began, by kind.", by_alarm),
        *family("cached_total", "counter", "Rows whose judgement came whole from the cache.", {"": summary.cached}),
        *family("judge_seconds_total", "counter", "Seconds of judging, batches added up.", {"": summary.seconds}),
        *family("judge_tokens_total", "counter", "Tokens of the judge's replies.", {"": summary.tokens}),
        *family("rows_waiting", "gauge", "Rows that wait or are judged.", {"": waiting}),
        *family("answer_age_seconds", "gauge", "Since the model's last reply; +Inf before the first.", {"": age}),
    ]
    return "\n".join([*lines, ""]).replace(" inf\n", " +Inf\n")
