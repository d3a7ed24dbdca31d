"""Best of N: a judge puts the candidates of a question in order.

Any format does it: `Score` judges each candidate alone, `Listwise` or `Choice` the whole group, `Chunked(Listwise())`
and `Tournament(Pair())` groups of any size. A candidate without a score ranks last and never vanishes. Ties are drawn
by `seed`, the question and the candidates' own content, so the order in which they stand decides nothing, no answer
wins all ties of a data set, and a run can be repeated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.groups import lot
from flexjudge_reward.judge.groups import judge_groups
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.rewards import Outcome
from flexjudge_reward.types import ContentLike, Example, Failure, Verdict


@dataclass(frozen=True)
class Ranking:
    """The candidates of one example, best first."""

    order: tuple[int, ...]
    """Indices of all candidates, best first; those without a score last."""
    outcomes: tuple[Outcome, ...]
    """Per candidate, in the example's order: its score in [0, 1], or why it has none."""
    verdicts: tuple[Verdict, ...]
    """What the judge said: one per candidate, or one for the group."""

    @property
    def best(self) -> int | None:
        """The index of the best candidate; None if no candidate has a score."""
        return None if isinstance(self.outcomes[self.order[0]], Failure) else self.order[0]


def best_of_n(
    question: ContentLike,
    candidates: Sequence[ContentLike],
    judge: Judge,
    *,
    reference: ContentLike | None = None,
    seed: int = 0,
) -> Ranking:
    """The candidates of one question in order; for many questions `rerank` is faster.

    Raises:
        ConfigError: fewer than two candidates.
    """
    return rerank([Example(question, candidates, reference)], judge, seed)[0]


def rerank(examples: Sequence[Example], judge: Judge, seed: int = 0) -> list[Ranking]:
    """One ranking per example, all judged in one batch.

    Raises:
        ConfigError: no examples, or one with fewer than two candidates.
        EngineError: the judge can answer nothing.
    """
    for index, example in enumerate(examples):
        if len(example.candidates) < 2:
            raise ConfigError(
                f"example {index}: ranking needs at least two candidates, found {len(example.candidates)}"
            )
    return [
        Ranking(_order(example, outcomes, seed), outcomes, verdicts)
        for example, (outcomes, verdicts) in zip(examples, judge_groups(examples, judge), strict=True)
    ]


def unscored(rankings: Iterable[Ranking]) -> Counter[str]:
    """How many candidates have no score, by the kind of their failure."""
    return Counter(one.kind for ranking in rankings for one in ranking.outcomes if isinstance(one, Failure))


def _order(example: Example, outcomes: Sequence[Outcome], seed: int) -> tuple[int, ...]:
    def place(index: int) -> tuple[bool, float, str, int]:
        found = outcomes[index]
        failed = isinstance(found, Failure)
        return (
            failed,
            0.0 if isinstance(found, Failure) else -found,
            lot((*example.question, *example.candidates[index]), seed),
            index,
        )

    return tuple(sorted(range(len(outcomes)), key=place))
