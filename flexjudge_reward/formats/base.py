"""The first seam: how to ask a judge, and how to read its reply.

A format of your own is a subclass of `Format` that has `render` and `read`; the settings take it as
`format="my_module:MyFormat"`, and position swap, votes, groups, trainers and the command line work with it as with the
built-in ones. A format that needs several rounds has `judge` instead of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, pvariance
from typing import Literal

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.rounds import Ask
from flexjudge_reward.rubric import Scale
from flexjudge_reward.types import Example, Generation, Prompt, Verdict

UNIT = Scale(0.0, 1.0, decimals=True)


class Format:
    """How to ask, and how to read. Holds no model and no engine."""

    name: str = ""
    """In settings, and of its file in a prompt set."""
    min_candidates: float = 1
    max_candidates: float = math.inf
    """How many candidates one judgement takes, 1 to infinity."""
    answers: Literal["numbers", "letter", "option"] = "numbers"
    """A score per candidate, the letter of the best one, or one of a few options. The innermost one rules groups."""
    inner: Format | None = None
    """The format that a wrapper wraps."""
    measures_spread: bool = False
    """Whether its verdicts say how sure the judge is (`Verdict.spread`)."""

    def render(self, example: Example) -> list[Prompt]:
        """The judge calls for this example."""
        raise NotImplementedError(f"{type(self).__name__} has neither render() nor judge()")

    def read(self, example: Example, generations: Sequence[Generation]) -> Verdict:
        """The replies, in the order of `render`, as a verdict. Never raises, whatever the replies are."""
        raise NotImplementedError(f"{type(self).__name__} has neither read() nor judge()")

    async def judge(self, example: Example, ask: Ask) -> Verdict:
        """The verdict on one example. Awaits nothing but `ask` and `gather` (`rounds.py`)."""
        return self.read(example, await ask(self.render(example)))

    def check(self, example: Example) -> None:
        """Raises ConfigError if the number of candidates does not fit."""
        count, low, high = len(example.candidates), self.min_candidates, self.max_candidates
        if not low <= count <= high:
            expected = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            if high == math.inf:
                expected = f"at least {low:g}"
            raise ConfigError(f"{self.described()} judges {expected} candidates at a time, this example has {count}")

    def layers(self) -> list[Format]:
        """This format and those that it wraps, from the outside in."""
        return [self] if self.inner is None else [self, *self.inner.layers()]

    def innermost(self) -> Format:
        """The plain format inside all wrappers."""
        return self.layers()[-1]

    def described(self) -> str:
        """The classes from the outside in, such as "PositionSwap(Pairwise)"; for messages and cards."""
        names = [type(layer).__name__ for layer in self.layers()]
        return "(".join(names) + ")" * (len(names) - 1)


class Wrapper(Format):
    """A format around a format. By default it takes as many candidates as the inner one."""

    inner: Format

    def __init__(self, inner: Format) -> None:
        self.inner, self.name, self.answers = inner, inner.name, inner.answers
        self.min_candidates, self.max_candidates = inner.min_candidates, inner.max_candidates
        self.measures_spread = inner.measures_spread


def merge(
    verdicts: Sequence[Verdict],
    scores: Sequence[float] | None,
    counters: Mapping[str, float] = {},
    scale: Scale | None = None,
    spread: Sequence[float] = (),
) -> Verdict:
    """One verdict made of several: with their reasoning, replies, outcomes and answers, and their counters summed.

    Args:
        scores: None for the first failure among `verdicts`.
        counters: what to count beside the counters of `verdicts`.
        scale: of the scores; by default that of `verdicts`. Combined scores may be fractions on any scale.
        spread: of the scores, on the same scale (`spread_of`).
    """
    scored = [verdict for verdict in verdicts if verdict.scores is not None]
    return Verdict(
        None if scores is None else tuple(scores),
        next(verdict.failure for verdict in verdicts if verdict.failure) if scores is None else None,
        replace(scale or (scored or verdicts)[0].scale, decimals=True),
        reasoning="\n\n".join(verdict.reasoning for verdict in verdicts if verdict.reasoning),
        generations=tuple(generation for verdict in verdicts for generation in verdict.generations),
        counters=add_counters(*(verdict.counters for verdict in verdicts), counters),
        outcomes=tuple(outcome for verdict in verdicts for outcome in verdict.outcomes),
        answers=tuple(answer for verdict in verdicts for answer in verdict.answers),
        own_answer=next((verdict.own_answer for verdict in verdicts if verdict.own_answer), ""),
        spread=() if scores is None else tuple(spread),
    )


def add_counters(*counters: Mapping[str, float]) -> dict[str, float]:
    """All counters, equal names summed."""
    total: dict[str, float] = {}
    for one in counters:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return total


def spread_of(scores: Sequence[Sequence[float]], own: Sequence[Sequence[float]] = ()) -> tuple[float, ...]:
    """Per candidate, the standard deviation over several judgements' scores; `own` are their own, if they have any.

    Empty for a lone judgement without one: how sure it is nothing tells.
    """
    if len(scores) < 2 and not own:
        return ()
    inner = [fmean(value * value for value in column) for column in zip(*own, strict=True)] or [0.0] * len(scores[0])
    return tuple(math.sqrt(pvariance(of) + within) for of, within in zip(zip(*scores, strict=True), inner, strict=True))


def mean(scores: Sequence[float]) -> float:
    """Never one step outside the scores, where rounding would put it: that would be off the scale."""
    return min(max(fmean(scores), min(scores)), max(scores))


def winners(scores: Sequence[float]) -> tuple[int, ...]:
    """The candidates with the highest score."""
    best = max(scores)
    return tuple(index for index, score in enumerate(scores) if score == best)
