"""Runs many judgements together, so that one round of a whole batch is one call to the engine.

A format is a coroutine whose only await is `ask`: it gives prompts and gets their replies. A format that needs a second
round reads the first and asks again; wrappers await the format inside, or give it an `ask` of their own.

    replies = await ask(prompts)                                    one round
    one, two = await gather(inner.judge(a, ask), inner.judge(b, ask))       side by side, in the same round

`run` steps every coroutine until all of them wait, then generates all their requests as one batch. It needs no event
loop, so a judge works from any thread and inside a running loop.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.types import Generation, Prompt, Request, Sampling

T = TypeVar("T")
Rounds = Generator[list[Request], list[Generation], T]
"""Gives the requests of a round, is sent their replies, and returns a result in the end."""
Judging = Coroutine[list[Request], list[Generation], T]
Send = Callable[[list[Request]], Awaitable[list[Generation]]]  # one round: the replies to some requests, in order


class Ask:
    """How a format asks the judge: `replies = await ask(prompts)`, one reply per prompt, in order."""

    def __init__(self, sampling: Sampling, send: Send) -> None:
        self.sampling, self.send = sampling, send

    def __call__(self, prompts: Sequence[Prompt]) -> Awaitable[list[Generation]]:
        """The replies to `prompts`, sampled as `sampling` says."""
        return self.send([Request(prompt, self.sampling) for prompt in prompts])

    def changed(self, **fields: Any) -> Ask:
        """The same judge with other fields of `Sampling`, such as `logprobs=20`."""
        return Ask(replace(self.sampling, **fields), self.send)


@types.coroutine
def send(requests: list[Request]) -> Rounds[list[Generation]]:
    """Waits for the replies of one round."""
    return (yield requests)


@types.coroutine
def gather(*coroutines: Judging[T]) -> Rounds[list[T]]:
    """The results of all coroutines, in order; those that wait at the same time share a round."""
    results: list[Any] = [None] * len(coroutines)
    replies: list[tuple[int, Any]] = [(index, None) for index in range(len(coroutines))]  # None starts a coroutine
    try:
        while replies:
            waiting: list[tuple[int, int]] = []  # a number of requests, and the coroutine that waits
            batch: list[Request] = []
            for index, given in replies:
                try:
                    requests = _advance(coroutines[index], given)
                except StopIteration as stop:
                    results[index] = stop.value
                    continue
                waiting.append((index, len(requests)))
                batch += requests
            answers = iter((yield batch) if waiting else ())
            replies = [(index, [next(answers) for _ in range(count)]) for index, count in waiting]
    finally:
        for coroutine in coroutines:
            coroutine.close()
    return results


def run(coroutine: Judging[T] | Rounds[T], generate: Callable[[list[Request]], list[Generation]]) -> T:
    """The result of `coroutine`, which awaits only `ask` and `gather` (else ConfigError); one `generate` per round."""
    replies: Any = None
    try:
        while True:
            try:
                requests = _advance(coroutine, replies)
            except StopIteration as stop:
                result: T = stop.value
                return result
            replies = generate(requests)
    finally:
        coroutine.close()


def _advance(coroutine: Judging[Any] | Rounds[Any], replies: Any) -> list[Request]:
    """Continues a coroutine to its next round; the first time with None. Raises StopIteration at its end."""
    requests = coroutine.send(replies)
    if not isinstance(requests, list):
        raise ConfigError(f"a format may only await `ask` and `gather`, it awaited {type(requests).__name__}")
    return requests
