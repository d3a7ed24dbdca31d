"""Best of N: a judge ranks the candidates of a question.

    judge = Judge.load(format="listwise")
    ranking = best_of_n("What is 2 + 2?", ["5", "4", "four"], judge)
    print(ranking.best, ranking.outcomes)

Any format does it: pointwise judges each candidate alone, the others the group. A candidate without a score ranks last
and never vanishes. Ties are drawn by `seed`, the question and the candidate's own content: the order of the candidates
decides nothing, no answer wins all ties of a data set, and a run can be repeated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.judge.groups import GroupResult
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.rewards import Outcome
from flexjudge_reward.judge.window import judge_side_by_side
from flexjudge_reward.types import ContentLike, Example, Failure, Verdict


@dataclass(frozen=True)
class Ranking:
    """The candidates of one example, best first."""

    order: tuple[int, ...]
    """Indices of all candidates, best first; those without a score last."""
    outcomes: tuple[Outcome, ...]
    """Per candidate, in the example's order: its score in [0, 1], or why it has none."""
    verdicts: tuple[Verdict, ...]
    """One per candidate, or one for the group."""

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
    """The candidates of one question in order; for many questions `rerank` is faster. Raises as `rerank`."""
    return rerank([Example(question, candidates, reference)], judge, seed)[0]


def rerank(examples: Sequence[Example], judge: Judge, seed: int = 0) -> list[Ranking]:
    """One ranking per example. A judge on a server is asked about the first while the media of later ones are read.

    Raises ConfigError: no examples, or one with fewer than two candidates; EngineError: the judge can answer nothing.
    """
    for index, example in enumerate(examples):
        if (count := len(example.candidates)) < 2:
            raise ConfigError(f"example {index}: ranking needs at least two candidates, found {count}")
    results = judge_side_by_side(judge, examples)
    return [ranked(example, result, seed) for example, result in zip(examples, results, strict=True)]


def ranked(example: Example, result: GroupResult, seed: int = 0) -> Ranking:
    """The ranking that a judged group gives."""

    def place(index: int) -> tuple[float, str, int]:
        outcome = result.outcomes[index]
        tie = example.with_candidates([example.candidates[index]]).digest(seed)
        return (1.0 if isinstance(outcome, Failure) else -outcome), tie, index  # scores are in [0, 1]

    order = tuple(sorted(range(len(result.outcomes)), key=place))
    return Ranking(order, result.outcomes, result.verdicts)


def unscored(rankings: Iterable[Ranking]) -> Counter[str]:
    """How many candidates have no score, by the kind of their failure."""
    return Counter(outcome.kind for ranking in rankings for outcome in ranking.outcomes if isinstance(outcome, Failure))
