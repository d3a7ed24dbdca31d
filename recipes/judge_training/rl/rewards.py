"""What a judge in training is paid for one verdict: pure functions of verdicts and true scores, for every trainer.

    choice         the best option by its letter                           MR. Judge
    both_orders    the better of two, in both orders of the two            J1 (arXiv 2505.10320)
    ranking        three or more candidates in the right order             Perception-Judge (arXiv 2606.02578)
    teacher        scores in a teacher's relation, and near to them        JudgeLRM (arXiv 2504.00050)
    consistent     the right option, for the reasons that were given       R1-Reward (arXiv 2505.02835)

A completion is read by the format that asked for it (`read`), so training and use have one grammar. All rewards are in
[0, 1]. A reply that the judge spoiled itself (malformed, cut, refused, empty) is worth 0: it is what these papers train
against. Any other failure (transport, engine, media) is not the judge's doing and is None, which trainers leave out.
That 0 is a target for the judge that wrote the reply; it never stands for a score of what was judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flexjudge_reward import ConfigError, Example, Format, Generation, Rubric, Scale, Verdict
from flexjudge_reward.types import FailureKind

OWN: tuple[FailureKind, ...] = ("truncated", "malformed", "out_of_range", "wrong_count", "refused", "empty")
"""Failures that the judge's own reply causes."""


def read(format: Format, candidates: int, text: str, tokens: int, limit: int, scale: Scale | None = None) -> Verdict:
    """The verdict in a completion of a trainer.

    Args:
        candidates: how many the prompt showed.
        text: the completion without its end-of-turn token.
        tokens: its length, with the end-of-turn token.
        limit: tokens after which a reply counts as cut, whatever it holds; MR. Judge gives such a reply nothing,
            because it otherwise learns to write ever longer.
        scale: that the prompt named, where it is another than the format's.
    """
    generation = Generation(text, "length" if tokens >= limit else "stop", completion_tokens=tokens)
    rubric = None if scale is None else Rubric("as in the prompt", scale)
    return format.read(Example("", [""] * candidates, rubric=rubric), [generation])


def choice(verdict: Verdict, scores: Sequence[float], form: float = 0.1) -> float | None:
    """(1 - `form`) for the best candidate plus `form` for a reply that can be read; 0.9 and 0.1 in MR. Judge.

    Args:
        scores: the true ones, one per candidate.
    """
    if verdict.scores is None:
        return _unread(verdict)
    return form + (1 - form) * (picked(verdict.scores) == best(scores))


def both_orders(first: Verdict, second: Verdict, scores: Sequence[float]) -> float | None:
    """1 where both verdicts prefer the better of two candidates, else 0: no side is worth anything by itself.

    Args:
        first: on the candidates in the order of `scores`.
        second: on the same two in the other order.
    """
    failed = [_unread(verdict) for verdict in (first, second) if verdict.scores is None]
    if failed or first.scores is None or second.scores is None:
        return None if None in failed else 0.0
    right = best(scores)
    return float(picked(first.scores) == right and picked(second.scores) == 1 - right)


def ranking(verdict: Verdict, scores: Sequence[float]) -> float | None:
    """1 less the edit distance between the verdict's order and the true one, per candidate.

    Two different orders are at least two edits apart, so three candidates give 1 or 1/3. Equal scores count as the
    reverse of the true order, so that a judge gains nothing by a tie. Raises ConfigError if true scores are equal.
    """
    if verdict.scores is None:
        return _unread(verdict)
    if len(set(scores)) < len(scores):
        raise ConfigError(f"candidates with equal true scores have no order, found {list(scores)}")
    true = sorted(range(len(scores)), key=lambda one: -scores[one])
    given = verdict.scores
    said = sorted(reversed(true), key=lambda one: -given[one])
    return 1 - edit_distance(said, true) / len(true)


def teacher(verdict: Verdict, scores: Sequence[float], form: float = 0.1, relation: float = 0.6) -> float | None:
    """`form` for a reply that can be read, `relation` for the pairs in the teacher's order, the rest for closeness.

    A pair is in the teacher's order if it is higher, lower or equal as there; a single candidate has no pair, and its
    closeness counts for both. Closeness is 1 less the mean difference, as a part of the scale.
    """
    if verdict.scores is None:
        return _unread(verdict)
    given, span = verdict.scores, verdict.scale.high - verdict.scale.low
    near = max(0.0, 1 - sum(abs(a - b) for a, b in zip(given, scores, strict=True)) / len(scores) / span)
    pairs = [(one, other) for one in range(len(scores)) for other in range(one)]
    same = [_sign(given[a] - given[b]) == _sign(scores[a] - scores[b]) for a, b in pairs]
    related = sum(same) / len(same) if same else near
    return form + relation * related + (1 - form - relation) * near


def consistent(verdict: Verdict, scores: Sequence[float], concluded: Verdict) -> float | None:
    """R1-Reward's terms, divided by their sum: 0.5 for the form, 1 for the best candidate, 0.5 for agreement on it.

    Args:
        concluded: what another judge says that the thought alone concludes: its verdict on the same candidates, with
            the thought (`reasoning` of the verdict) as the question. Where that judge failed, the reward is None.
    """
    if verdict.scores is None:
        return _unread(verdict)
    if concluded.scores is None:
        return None
    right = picked(verdict.scores) == best(scores)
    agree = picked(concluded.scores) == picked(verdict.scores)
    return (0.5 + right * (1 + 0.5 * agree)) / 2


Single = Callable[[Verdict, Sequence[float]], float | None]
_SINGLE: dict[str, Single] = {"choice": choice, "ranking": ranking, "teacher": teacher}
REWARDS = (*_SINGLE, "both_orders")
"""The rewards by the names that settings use."""


def earned(reward: str, verdict: Verdict, scores: Sequence[float]) -> float | None:
    """What one verdict earns by the reward of this name; of `both_orders`, what it would by itself."""
    return _SINGLE.get(reward, choice)(verdict, scores)


def picked(scores: Sequence[float]) -> int | None:
    """The candidate with the highest score; None on a tie."""
    top = max(scores)
    return list(scores).index(top) if list(scores).count(top) == 1 else None


def best(scores: Sequence[float]) -> int:
    """The candidate with the highest true score. Raises ConfigError if two share it."""
    found = picked(scores)
    if found is None:
        raise ConfigError(f"one candidate must have the highest true score, found {list(scores)}")
    return found


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Levenshtein's: insertions, deletions and substitutions."""
    above = list(range(len(other) + 1))
    for row, a in enumerate(one, 1):
        line = [row]
        for column, b in enumerate(other, 1):
            line.append(min(above[column] + 1, line[-1] + 1, above[column - 1] + (a != b)))
        above = line
    return above[-1]


def _unread(verdict: Verdict) -> float | None:
    return 0.0 if verdict.failure is not None and verdict.failure.kind in OWN else None


def _sign(difference: float) -> int:
    return (difference > 0) - (difference < 0)
