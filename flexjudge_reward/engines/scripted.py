"""ScriptedEngine: judge replies from a list or a function. A public test double for formats, rewards and trainers.

It keeps every promise of an engine (order, one reply per prompt, threads) and knows no model. Nothing in it is random.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence

from flexjudge_reward.errors import EngineError
from flexjudge_reward.types import Generation, Prompt, Sampling

Reply = str | Generation


class ScriptedEngine:
    """Answers with what it was given.

    engine = ScriptedEngine(["<think>fine</think><answer>7</answer>"])
    engine = ScriptedEngine(lambda prompt: "<think></think><answer>1</answer>")
    """

    def __init__(self, replies: Sequence[Reply] | Callable[[Prompt], Reply]) -> None:
        """
        Args:
            replies: one reply per prompt, used up in order over all calls; or a function of the prompt. A text stands
                for a finished reply; give a `Generation` for one that was cut, filtered or failed.
        """
        if isinstance(replies, str):
            raise EngineError("replies must be a list of replies or a function of the prompt, found one text")
        self.replies = replies if callable(replies) else list(replies)
        self.prompts: list[Prompt] = []
        """Every prompt that was asked, in order."""
        self.closed = False
        self._lock = threading.Lock()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """One reply per prompt.

        Raises:
            EngineError: the list has fewer replies than prompts were asked.
        """
        with self._lock:
            first = len(self.prompts)
            self.prompts.extend(prompts)
        return [self._reply(first + index, prompt) for index, prompt in enumerate(prompts)]

    def identity(self) -> dict[str, object]:
        """The function's name, or a hash of the list."""
        if callable(self.replies):
            named = getattr(self.replies, "__qualname__", type(self.replies).__qualname__)
            return {"engine": "scripted", "function": f"{getattr(self.replies, '__module__', '')}.{named}"}
        return {"engine": "scripted", "replies": hashlib.sha256(repr(self.replies).encode()).hexdigest()}

    def close(self) -> None:
        """Only notes that it was closed."""
        self.closed = True

    def _reply(self, index: int, prompt: Prompt) -> Generation:
        if callable(self.replies):
            reply = self.replies(prompt)
        elif index < len(self.replies):
            reply = self.replies[index]
        else:
            raise EngineError(
                f"the script has {len(self.replies)} replies and prompt number {index + 1} was asked;"
                " give more replies, or a function of the prompt"
            )
        return Generation(reply) if isinstance(reply, str) else reply

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())
