"""Best of N: a judge puts the candidates of a question in order.

Any format does it: `Score` judges each candidate alone, `Listwise` or `Choice` the whole group, `Chunked(Listwise())`
and `Tournament(Pair())` groups of any size. A candidate without a score ranks last and never vanishes. Ties are drawn
by `seed`, the question and the candidates' own content, so the order in which they stand decides nothing, no answer
wins all ties of a data set, and a run can be repeated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flexjudge_reward.errors import ConfigError, MediaError
from flexjudge_reward.formats import group_size
from flexjudge_reward.grouping import lot
from flexjudge_reward.judge import Judge
from flexjudge_reward.media import Media
from flexjudge_reward.rewards import Outcome, outcome
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


def judge_groups(examples: Sequence[Example], judge: Judge) -> list[tuple[tuple[Outcome, ...], tuple[Verdict, ...]]]:
    """Per example the outcome of every candidate, and the verdicts behind them, whatever the format.

    A format for one candidate judges each of them alone, all others the group. A candidate whose media cannot be used
    fails alone; its siblings are judged without it.
    """
    if group_size(judge.format)[1] == 1:
        return _judge_each(examples, judge)
    broken = [_broken(example) for example in examples]
    whole = [_without(example, bad) for example, bad in zip(examples, broken, strict=True)]
    found = iter(judge([example for example in whole if example is not None]) if any(whole) else ())
    results: list[tuple[tuple[Outcome, ...], tuple[Verdict, ...]]] = []
    for example, rest, bad in zip(examples, whole, broken, strict=True):
        if rest is None:
            lonely = Failure("media", "fewer than two candidates of the group can be used")
            verdict = Verdict.failed(lonely)
        else:
            verdict = next(found)
        places = iter(range(len(example.candidates)))
        outcomes = tuple(bad[i] if i in bad else outcome(verdict, next(places)) for i in range(len(example.candidates)))
        results.append((outcomes, (verdict,)))
    return results


def _judge_each(examples: Sequence[Example], judge: Judge) -> list[tuple[tuple[Outcome, ...], tuple[Verdict, ...]]]:
    alone = [
        Example(example.question, [candidate], example.reference, example.rubric)
        for example in examples
        for candidate in example.candidates
    ]
    found = iter(judge(alone))
    groups = [tuple(next(found) for _ in example.candidates) for example in examples]
    return [(tuple(outcome(verdict) for verdict in group), group) for group in groups]


def _broken(example: Example) -> dict[int, Failure]:
    """The candidates whose media cannot be used, and why."""
    found = {}
    for index, candidate in enumerate(example.candidates):
        try:
            for part in candidate:
                if isinstance(part, Media):
                    part.load()
        except MediaError as error:
            found[index] = Failure("media", str(error))
    return found


def _without(example: Example, broken: Mapping[int, Failure]) -> Example | None:
    """The example without its broken candidates; None if fewer than two are left."""
    left = [candidate for index, candidate in enumerate(example.candidates) if index not in broken]
    if not broken:
        return example
    return Example(example.question, left, example.reference, example.rubric) if len(left) > 1 else None


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
