"""The reward of a molecule in GRPO: facts by RDKit, the judge's score of every valid molecule, a penalty for repeats.

    no molecule                 0, a fact, without a judge call
    a molecule                  0.5 + 0.5 * the judge's score in [0, 1]
    a repeated molecule         half of that for each earlier time, over the whole run of this process
    --diversity w               times 1 - w * (mean similarity to the other molecules of the batch), at least 0

A failed judgement is no score: `FlexJudgeReward` gives its row the mean of the judged molecules of the prompt, or their
lowest score where the molecule caused it. In a call in which no molecule gets a number all rewards are None, so that
nothing is learned from it. The count of repeats begins anew in a resumed run, and each process counts its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from flexjudge_recipes.molecules.measure import canonical
from flexjudge_recipes.molecules.properties import similarities
from flexjudge_recipes.molecules.sampling import smiles

from accelerate import PartialState

from flexjudge_reward import FlexJudgeReward


class MoleculeReward:
    """A reward function for TRL, around a judge."""

    __name__ = "molecule"

    def __init__(self, judge: FlexJudgeReward, question: str, diversity: float) -> None:
        """
        Args:
            judge: judges each molecule alone.
            question: the policy's task, as the judge sees it.
            diversity: weight of the penalty for similarity within the batch, 0 or more.
        """
        self.judge, self.question, self.diversity = judge, question, diversity
        self.times: Counter[str] = Counter()
        """How often each canonical SMILES was rewarded."""

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[str], *, log_metric: Any = None, **columns: Any
    ) -> list[float | None]:
        """One reward per completion, in order."""
        molecules = [canonical(smiles(text)) for text in completions]
        valid = [molecule for molecule in molecules if molecule is not None]
        if log_metric is not None:
            log_metric("molecule/valid", len(valid) / len(molecules))
        scores = self._scores(valid, log_metric, columns.get("trainer_state"))
        if valid and all(score is None for score in scores):
            return [None] * len(molecules)
        similar = similarities(valid) if self.diversity else [0.0] * len(valid)
        rewards = iter([self._reward(*row) for row in zip(valid, scores, similar, strict=True)])
        return [0.0 if molecule is None else next(rewards) for molecule in molecules]

    def _reward(self, molecule: str, score: float | None, similarity: float) -> float | None:
        if score is None:
            return None
        repeats = self.times[molecule]
        self.times[molecule] += 1
        return float((0.5 + 0.5 * score) * 0.5**repeats * max(0.0, 1 - self.diversity * similarity))

    def _scores(self, valid: Sequence[str], log_metric: Any, state: Any) -> list[float | None]:
        """The judge's scores of valid molecules."""
        if not valid and PartialState().num_processes == 1:
            return []
        # A process without a valid molecule asks about methane: all processes take part in every exchange.
        asked = valid or ["C"]
        question = self.question if valid else f"{self.question} (none)"
        prompts = [[{"role": "user", "content": question}]] * len(asked)
        replies = [[{"role": "assistant", "content": [{"type": "molecule", "molecule": text}]}] for text in asked]
        return self.judge(prompts, replies, log_metric=log_metric, trainer_state=state)[: len(valid)]
