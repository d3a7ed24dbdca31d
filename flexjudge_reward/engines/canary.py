"""Canary: whether an engine that slept answers as before it slept. Health endpoints do not tell.

vLLM can wake with lost scales, other weights or a prefix cache of pages that are gone, and answer without an error
(vllm-project/vllm RFC 48310 has a table). So one text and one picture are asked greedily, alone in the engine, before
the first sleep and after each wake, twice: the second time meets the prefix cache. The tokens must be equal, and their
log probabilities within `TOLERANCE`, where a lost scale shows first.
"""

from __future__ import annotations

from flexjudge_reward.engines.base import Engine
from flexjudge_reward.errors import EngineError
from flexjudge_reward.media.base import Media
from flexjudge_reward.types import Message, Prompt, Request, Sampling

TOLERANCE = 0.05
"""Nats: the most that the log probability of a token may differ."""
_SAMPLING = Sampling(max_tokens=64, logprobs=1)
_TEXT = "What is the best answer? Name every shape, count to thirty in words, then give a score from 1 to 10."
_PICTURE = "Describe the picture from top left to bottom right."
_SIDE = 112  # pixels: a few patches of every vision model

Answers = list[list[tuple[str, float]]]
"""The tokens of each probe, with their log probabilities."""


class Canary:
    """What one engine answered before it ever slept."""

    def __init__(self, pictures: bool) -> None:
        """`pictures` says whether the judge sees them."""
        self._probes = [_probe(_TEXT), *([_probe(_PICTURE, _picture())] if pictures else [])]
        self._known: Answers | None = None

    def problem(self, engine: Engine) -> str:
        """What has changed since the first call, such as "the picture, again: other tokens"; empty if nothing.

        The first call says so of its own two turns: a judge that differs from itself awake cannot be checked.
        """
        for turn in ("first", "again"):
            try:
                found = self._ask(engine)
            except EngineError as error:
                return str(error)
            self._known = self._known or found
            if problem := _difference(turn, self._known, found):
                return problem
        return ""

    def _ask(self, engine: Engine) -> Answers:
        answers = []
        for probe in self._probes:  # one at a time: a batch would change the numbers
            (reply,) = engine.generate([probe])
            if reply.failure is not None or not reply.logprobs:
                why = reply.failure.detail if reply.failure else "it gives no log probabilities"
                raise EngineError(f"the judge does not answer a probe: {why}")
            answers.append([(token.token, token.logprob) for token in reply.logprobs])
        return answers


def _difference(turn: str, known: Answers, found: Answers) -> str:
    for name, old, new in zip(("the text", "the picture"), known, found, strict=False):
        if [token for token, _ in old] != [token for token, _ in new]:
            return f"{name}, {turn}: other tokens"
        worst = max(abs(before - now) for (_, before), (_, now) in zip(old, new, strict=True))
        if not worst <= TOLERANCE:
            return f"{name}, {turn}: a log probability differs by {worst:.3f}"
    return ""


def _probe(text: str, *media: Media) -> Request:
    return Request(Prompt((Message("user", (*media, text)),)), _SAMPLING)


def _picture() -> Media:
    """A gradient with a square in it: no patch of it is like another."""
    from PIL import Image

    image = Image.linear_gradient("L").resize((_SIDE, _SIDE)).convert("RGB")
    image.paste((200, 30, 60), (_SIDE // 8, _SIDE // 4, _SIDE // 2, _SIDE // 2))
    return Media.image(image)
