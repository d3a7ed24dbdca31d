"""Judges of images that are formats without a model, for the diffusion recipe: `--judge '{"format": "FILE:CLASS"}'`.

Barely trained models generate images that no judge can tell apart.
"""

from __future__ import annotations

from itertools import cycle

from flexjudge_reward import Ask, Example, Failure, Format, Verdict


class Alternating(Format):
    """Every second image is better."""

    name, max_candidates = "pointwise", 1

    def __init__(self) -> None:
        self.scores = cycle((3.0, 8.0))

    async def judge(self, example: Example, ask: Ask) -> Verdict:
        await ask([])  # annotate_file looks at the first round beforehand, which must not take a score
        return Verdict((next(self.scores),))


class Unreadable(Format):
    """No reply can be read."""

    name, max_candidates = "pointwise", 1

    async def judge(self, example: Example, ask: Ask) -> Verdict:
        return Verdict.failed(Failure("malformed", "no answer tag"))
