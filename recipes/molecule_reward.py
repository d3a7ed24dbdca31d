"""What a molecule is worth to GRPO: facts by RDKit, the judge's opinion of what is a molecule, and a price for repeats.

    no molecule                    0, a fact, which no judge is asked about
    a molecule                     0.5 + 0.5 * the judge's score in [0, 1]
    one that was written before    half of that for each time, over the whole run of this process
    --diversity w                  times 1 - w * (mean similarity to the other molecules of the batch), 0 at least

A judgement that failed stays typed: `FlexJudgeReward` gives its row the mean of the judged molecules of its prompt; in
a call where none was judged every row is None, so that nothing is learned from it. Not known here: how the policy is
trained. The count of repeats begins anew when a run is resumed, and each process counts its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import molecule_world as world
from molecule_policy import smiles

from flexjudge_reward import FlexJudgeReward


class MoleculeReward:
    """A reward function for TRL, around a judge."""

    __name__ = "molecule"

    def __init__(self, judge: FlexJudgeReward, question: str, diversity: float) -> None:
        """
        Args:
            judge: judges each molecule alone.
            question: what the judge is told the policy was asked.
            diversity: how much similarity to the batch costs, 0 or more.
        """
        self.judge, self.question, self.diversity = judge, question, diversity
        self.written: Counter[str] = Counter()

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[str], *, log_metric: Any = None, **columns: Any
    ) -> list[float | None]:
        """One reward per completion, in order."""
        known = [world.canonical(smiles(text)) for text in completions]
        scores = self._judged([one for one in known if one is not None])
        if any(one is not None for one in known) and all(score is None for score in scores):
            return [None] * len(known)
        likeness = iter(world.similarities([one for one in known if one is not None]) if self.diversity else ())
        judged, rewards = iter(scores), list[float | None]()
        for one in known:
            score = None if one is None else next(judged)
            close = 0.0 if one is None or not self.diversity else next(likeness)
            rewards.append(0.0 if one is None else self._worth(one, score, close))
        if log_metric is not None:
            log_metric("molecule/valid", sum(one is not None for one in known) / len(known))
            given = [score for score in scores if score is not None]
            log_metric("molecule/judge", sum(given) / max(1, len(given)))
        return rewards

    def _worth(self, smiles: str, score: float | None, similarity: float) -> float | None:
        if score is None:
            return None
        repeats = self.written[smiles]
        self.written[smiles] += 1
        return float((0.5 + 0.5 * score) * 0.5**repeats * max(0.0, 1 - self.diversity * similarity))

    def _judged(self, valid: Sequence[str]) -> list[float | None]:
        # A process without a molecule asks about methane all the same: all processes take part in every exchange.
        asked = valid or ["C"]
        question = self.question if valid else f"{self.question} (none)"
        prompts = [[{"role": "user", "content": question}]] * len(asked)
        written = [[{"role": "assistant", "content": [{"type": "molecule", "molecule": one}]}] for one in asked]
        return self.judge(prompts, written)[: len(valid)]
