"""ScriptedEngine: judge replies from a list or a function. A public test double for formats, rewards and trainers.

It keeps every promise of an engine (order, one reply per request, threads) and knows no model. Nothing in it is random.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from flexjudge_reward.engines.base import StatefulEngine
from flexjudge_reward.errors import EngineError
from flexjudge_reward.types import Generation, Prompt, Request

Reply = str | Generation


class ScriptedEngine(StatefulEngine):
    """Answers with what it was given.

    engine = ScriptedEngine(["<think>fine</think><answer>7</answer>"])
    engine = ScriptedEngine(lambda request: "<think></think><answer>1</answer>")
    """

    def __init__(self, replies: Sequence[Reply] | Callable[[Request], Reply]) -> None:
        """
        Args:
            replies: one reply per request, used up in order over all calls; or a function of the request. A text is a
                finished reply; give a `Generation` for one that was cut, filtered or failed.
        """
        if isinstance(replies, str):
            raise EngineError("replies must be a list of replies or a function of the request, found one text")
        self.replies = replies if callable(replies) else list(replies)
        self.requests: list[Request] = []
        """Every request so far, in order."""
        self.closed = False
        super().__init__()

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts of all requests so far, in order."""
        return [request.prompt for request in self.requests]

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        """One reply per request. Raises EngineError if the list has fewer replies than there were requests."""
        with self._lock:
            first = len(self.requests)
            self.requests.extend(requests)
        return [self._reply(first + index, request) for index, request in enumerate(requests)]

    def identity(self) -> dict[str, object]:
        """The function's name, or a hash of the list."""
        if callable(self.replies):
            named = getattr(self.replies, "__qualname__", type(self.replies).__qualname__)
            return {"engine": "scripted", "function": f"{getattr(self.replies, '__module__', '')}.{named}"}
        return {"engine": "scripted", "replies": hashlib.sha256(repr(self.replies).encode()).hexdigest()}

    def supports(self, modality: str) -> bool:
        """Everything: no model is shown anything."""
        return True

    def close(self) -> None:
        """Only notes that it was closed."""
        self.closed = True

    def _reply(self, index: int, request: Request) -> Generation:
        if callable(self.replies):
            reply = self.replies(request)
        elif index < len(self.replies):
            reply = self.replies[index]
        else:
            raise EngineError(
                f"the script has {len(self.replies)} replies and this is request number {index + 1};"
                " give more replies, or a function of the request"
            )
        return Generation(reply) if isinstance(reply, str) else reply
