"""Expected scores: after the reasoning, the judge's whole distribution over its answer, not only the one it wrote.

An integer judge ties most of a group; the mean of its distribution does not. For each answer tag the engine returns the
most likely tokens at the place of the answer (log probabilities), and the score is their mean, weighted, over the
answers the format allows. Numbers of several digits are followed token by token: where likely digits could begin a
longer number and the judge did not write it, a one-token request asks what would have come next, round by round.

Needs an engine that returns log probabilities and can continue a reply. Averaging over k thoughts is
`Votes(Expected(format), k, by="mean")`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flexjudge_reward.errors import ConfigError, EngineError
from flexjudge_reward.formats.builtin import LETTERS, Choice, Listwise, Pair, Score, group_size
from flexjudge_reward.formats.reply import THINK_CLOSE, said_so_far
from flexjudge_reward.rubric import Scale
from flexjudge_reward.types import Example, Failure, Generation, Message, Prompt, Steps, TokenLogprob, Verdict

TOP = 20  # alternatives per place; what servers allow
_NOTHING = "the judge's distribution has nothing of what may be answered"
_OPEN, _CLOSE = "<answer>", "</answer>"
_WORTH_ASKING = 0.01  # digits less likely than this move a score by less than a hundredth of the scale


@dataclass(frozen=True)
class Slot:
    """One answer in a reply: where its text begins, and its tokens."""

    start: int
    tokens: tuple[TokenLogprob, ...]
    """Those of the answer itself and the one after it."""
    written: tuple[str, ...]
    """The texts of the answer's own tokens."""


class Expected:
    """Scores as expectations; for Choice, each candidate's probability of being chosen."""

    def __init__(self, format: Score | Pair | Listwise | Choice) -> None:
        if not isinstance(format, Score | Pair | Listwise | Choice):
            raise ConfigError(
                f"expected scores are for Score, Pair, Listwise and Choice, found {type(format).__name__}"
            )
        self.format = format
        self.fewest, self.most = group_size(format)

    def steps(self, example: Example) -> Steps:
        """The judgement, then one round for digits that could go on."""
        scale = self.format.scale(example)
        whole = float(scale.low).is_integer() and float(scale.high).is_integer()
        if scale.decimals or not whole or scale.low < 0:
            raise ConfigError("expected scores need a scale of whole numbers, none of them negative")
        (prompt,) = self.format.render(example)
        (reply,) = yield [replace(prompt, changes=(*prompt.changes, ("logprobs", TOP)))]
        verdict = self.format.read(example, [reply])
        if verdict.scores is None:
            return verdict
        slots = find_slots(reply)
        if isinstance(slots, Failure):
            return replace(verdict, scores=None, failure=slots)
        if isinstance(self.format, Choice):
            return _soft_choice(verdict, slots[0], len(example.candidates))
        return (yield from _expected(prompt, reply, verdict, slots, scale))


def _expected(prompt: Prompt, reply: Generation, verdict: Verdict, slots: Sequence[Slot], scale: Scale) -> Steps:
    found = [Numbers(slot, scale) for slot in slots]
    while asked := [(one, digits) for one in found for digits in one.unknown()]:
        replies = yield [_continued(prompt, reply, one.slot, digits) for one, digits in asked]
        verdict = replace(verdict, generations=(*verdict.generations, *replies))
        for (one, digits), answer in zip(asked, replies, strict=True):
            if answer.failure is not None or not answer.logprobs:
                silent = Failure("engine", f"no log probabilities came for what follows {digits!r}")
                return replace(verdict, scores=None, failure=answer.failure or silent)
            one.following[digits] = _chances(_logprobs(answer)[0])
    means = [one.mean() for one in found]
    failed = next((mean for mean in means if isinstance(mean, Failure)), None)
    if failed is not None:
        return replace(verdict, scores=None, failure=failed)
    scores = tuple(mean for mean in means if isinstance(mean, float))
    return replace(verdict, scores=scores, scale=replace(scale, decimals=True))


def _continued(prompt: Prompt, reply: Generation, slot: Slot, digits: str) -> Prompt:
    said = Message("assistant", said_so_far(reply.text[: slot.start] + digits))
    changes = (*prompt.changes, ("logprobs", TOP), ("max_tokens", 1))
    return replace(prompt, messages=(*prompt.messages, said), changes=changes)


def _soft_choice(verdict: Verdict, slot: Slot, count: int) -> Verdict:
    chances = _chances(slot.tokens[0])
    letters = [chances.get(letter, 0.0) for letter in LETTERS[:count]]
    total = math.fsum(letters)
    if not total > 0:
        return replace(verdict, scores=None, failure=Failure("engine", _NOTHING))
    return replace(verdict, scores=tuple(chance / total for chance in letters), scale=Scale(0.0, 1.0, decimals=True))


def find_slots(reply: Generation) -> list[Slot] | Failure:
    """The answers of a reply that was read, with their tokens.

    Raises:
        EngineError: the engine returned no log probabilities.
    """
    tokens = _logprobs(reply)
    starts, end = [], 0
    for token in tokens:
        starts.append(end)
        end += len(token.token)
    text = "".join(token.token for token in tokens)
    slots, place = [], text.rfind(THINK_CLOSE)
    tail = reply.text.rfind(THINK_CLOSE)
    # Only the tail must agree: half a character is a token of its own in some reasoning, and has another text there.
    if place < 0 or not text[place:].startswith(reply.text[tail:].rstrip()):
        return Failure("engine", "the reply's tokens do not spell its answer")
    shift = tail - place
    while (place := text.find(_OPEN, place)) >= 0:
        place += len(_OPEN)
        close = text.find(_CLOSE, place)
        inside = [i for i, start in enumerate(starts) if place <= start < close and tokens[i].token.strip()]
        written = "".join(tokens[i].token for i in inside).strip()
        if not inside or close < 0 or written != text[place:close].strip() or inside[-1] + 1 >= len(tokens):
            return Failure("engine", "the answer does not begin and end with a token, so it has no distribution")
        own = tuple(tokens[i].token.strip() for i in inside)
        slots.append(Slot(starts[inside[0]] + shift, (*(tokens[i] for i in inside), tokens[inside[-1] + 1]), own))
    return slots or Failure("engine", "the reply's tokens hold no answer")


class Numbers:
    """The distribution over the numbers of a scale, in the place of one written answer."""

    def __init__(self, slot: Slot, scale: Scale) -> None:
        self.slot, self.scale = slot, scale
        self.following: dict[str, Mapping[str, float]] = {}
        """What comes next after these digits: known along the written answer, asked for elsewhere."""
        written = ""
        for token, digits in zip(slot.tokens, (*slot.written, ""), strict=True):
            self.following[written] = _chances(token)
            written += digits

    def unknown(self) -> list[str]:
        """Likely digits after which more could follow, and nobody knows what would."""
        return sorted(set(self._weighed()[1]))

    def mean(self) -> float | Failure:
        """The mean over the numbers of the scale."""
        weights, _ = self._weighed()
        inside = {number: weight for number, weight in weights.items() if self.scale.low <= number <= self.scale.high}
        total = math.fsum(inside.values())
        if not total > 0:
            return Failure("engine", _NOTHING)
        return math.fsum(number * weight for number, weight in inside.items()) / total

    def _weighed(self) -> tuple[dict[int, float], list[str]]:
        """The weight of every number, and the digits that `unknown` asks about."""
        weights: dict[int, float] = {}
        asked: list[str] = []
        begun = [("", 1.0)]
        while begun:
            digits, chance = begun.pop()
            if digits not in self.following and chance >= _WORTH_ASKING:
                asked.append(digits)
            longer = {more: p for more, p in self.following.get(digits, {}).items() if _is_number(more)}
            if digits:  # what is no digit ends the number
                ended = chance * max(0.0, 1.0 - math.fsum(longer.values()))
                weights[int(digits)] = weights.get(int(digits), 0.0) + ended
            begun += [(digits + more, chance * p) for more, p in longer.items() if self._may_begin(digits + more)]
            for more, p in longer.items():
                if not self._may_begin(digits + more):
                    weights[int(digits + more)] = weights.get(int(digits + more), 0.0) + chance * p
        return weights, asked

    def _may_begin(self, digits: str) -> bool:
        """Whether a longer number of the scale begins so; after a leading zero only if the judge wrote one."""
        return digits in self.following or 0 < int(digits) <= self.scale.high / 10


def _is_number(token: str) -> bool:
    return token.isascii() and token.isdigit() and len(token) <= 4


def _chances(token: TokenLogprob) -> dict[str, float]:
    """Probabilities of the alternatives at one place, by their text without white space."""
    found: dict[str, float] = {}
    # The written token only where it is not among the alternatives: there its text may stand for more tokens than it.
    for text, logprob in {token.token: token.logprob, **token.top}.items():
        found[text.strip()] = found.get(text.strip(), 0.0) + math.exp(logprob)
    return found


def _logprobs(reply: Generation) -> tuple[TokenLogprob, ...]:
    if not reply.logprobs:
        raise EngineError(
            "this engine returned no log probabilities, which expected scores are made of: use VLLMEngine,"
            " TransformersEngine or a server that supports `logprobs`"
        )
    return reply.logprobs
