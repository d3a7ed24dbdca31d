"""Verdicts into the numbers a trainer gets. Pure, and the one gate that every number leaves through.

    Verdict --unit_score--> float in [0, 1] | Failure --rewards--> float in [0, 1] | None

A score is moved linearly from the verdict's declared scale to [0, 1], never normalised by its batch, so that a reward
means the same in every step. A number that is not finite or not on its scale is a failure. What a failure becomes
depends on its cause (`cause_of`):

    ours        on_failure            group_mean: the mean of its group's other numbers, or None where there is none
                                      abstain: None, which TRL counts as "no reward from this function"
                                      raise: JudgementFailed, for a failure of either cause
    candidate   on_candidate_failure  lowest: the lowest score of its group, or 0.0 where nothing was judged
                                      mean: the mean of its group's scores, or None; abstain: None

Promised of the group's numbers, in every group: "group_mean" leaves their mean as it is without the failed row, so the
row has no advantage and moves no baseline. "lowest" counts as if the judge had given that score, so a group without a
judged row has equal numbers and no gradient, and a candidate never gains by a failure that it caused.

`FailureWatch` stops a run whose judge has stopped working. This module knows no trainer.
"""

from __future__ import annotations

import math
import numbers
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Sequence
from itertools import groupby
from statistics import pvariance
from typing import Literal, get_args

from flexjudge_reward.errors import ConfigError, JudgementFailed
from flexjudge_reward.formats.base import mean
from flexjudge_reward.types import Cause, Failure, FailureKind, Verdict

OnFailure = Literal["group_mean", "abstain", "raise"]
OnCandidateFailure = Literal["lowest", "mean", "abstain"]
Outcome = float | Failure
"""One judged candidate: its score in [0, 1], or why it has none."""

UNCLEAR: frozenset[FailureKind] = frozenset({"malformed", "out_of_range", "wrong_count", "refused", "empty", "check"})
"""Failures that a candidate may have caused, or a judge that errs now and then."""

NO_TROUBLE: frozenset[FailureKind] = frozenset({"unfinished", "uncertain"})
"""Failures that no judge has to answer for: the policy's own, and those that a setting makes."""

ADVICE: dict[str, str] = {
    "truncated": "raise max_tokens, give the engine memory for its context, or judge with a model that thinks shorter",
    "malformed": "this model does not follow the answer format: is it a judge of this format and prompt set?",
    "out_of_range": "the judge answers off the rubric's scale: use the scale it was trained on",
    "wrong_count": "the judge does not give one score per candidate: is it trained for this format?",
    "refused": "the judge or its server's filter declines, or its server fails at them: look at the examples",
    "empty": "the judge replies with nothing: is its chat template the right one?",
    "media": "look at the images, videos, sounds and molecules of the data set",
    "unfinished": "the policy is cut off while it thinks: raise the trainer's limit of completion tokens",
    "transport": "look at the judge server's log and its network",
    "timeout": "the judge server is stuck or slow: look at its log, give it replicas, or (with ranks) raise deadline",
    "unsupported": "use a server that knows the named field, or a format without it",
    "prompt_cut": "give the judge a longer context (vLLM: --max-model-len, Ollama: num_ctx)",
    "engine": "look at the judge engine's log, and at the account of a hosted judge",
    "uncertain": "lower min_confidence",
    "check": "mend the check that the rubric names: it returns True or False for every answer, an empty one too",
}


def unit_score(verdict: Verdict, candidate: int = 0) -> Outcome:
    """The score of one candidate in [0, 1], or the failure of its verdict. This is the gate."""
    if verdict.failure is not None:
        return verdict.failure
    scores = verdict.scores or ()
    if candidate >= len(scores):
        return Failure("wrong_count", f"the verdict has {len(scores)} scores, candidate {candidate + 1} has none")
    score = scores[candidate]
    if isinstance(score, bool) or not isinstance(score, (float, numbers.Real)):
        return Failure("out_of_range", f"a score must be a number, found {score!r}")
    unit = verdict.scale.unit(float(score))
    if not (math.isfinite(unit) and 0.0 <= unit <= 1.0):
        scale = verdict.scale
        return Failure("out_of_range", f"expected a finite score of {scale.low:g} to {scale.high:g}, found {score!r}")
    return unit


def cause_of(failure: Failure) -> Cause:
    """Who caused a failure: "unclear" for a reply that cannot be read, until it was asked once more."""
    return failure.cause or ("unclear" if failure.kind in UNCLEAR else "ours")


def causes(outcomes: Sequence[Outcome], group_of: Sequence[Hashable]) -> list[Cause | None]:
    """The cause of each failure; None for a score.

    What is still unclear counts as ours. So does a refusal in a group without a score: it may be the question's.
    """
    judged = {group for group, one in zip(group_of, outcomes, strict=True) if not isinstance(one, Failure)}
    found: list[Cause | None] = []
    for group, outcome in zip(group_of, outcomes, strict=True):
        if not isinstance(outcome, Failure):
            found.append(None)
        elif cause_of(outcome) != "candidate" or (outcome.kind == "refused" and group not in judged):
            found.append("ours")
        else:
            found.append("candidate")
    return found


def group_ids(keys: Sequence[Hashable], size: int | None = None) -> list[tuple[Hashable, int]]:
    """Which group each row belongs to: rows of one key, in order, cut to the group size that all keys share.

    A trainer samples the same number of completions for every prompt, so a prompt that occurs twice in a batch has a
    multiple of the others' count and forms two groups, not one. Without `size`, two groups of one prompt are separated
    unless they are adjacent and so are those of every other prompt.

    Args:
        keys: what identifies the prompt of each row, over all ranks and in their order.
        size: the trainer's group size, used where it divides all counts; else the largest size that the rows allow,
            because an evaluation may have another size than the training.
    """
    counts = Counter(keys)
    shared = math.gcd(*counts.values())
    if not (size and shared % size == 0):
        runs = math.gcd(*(len(list(run)) for _, run in groupby(keys)))
        size = runs if runs > 1 else shared  # a trainer that mixes the prompts shows only how many rows each has
    seen: Counter[Hashable] = Counter()
    ids = []
    for key in keys:
        ids.append((key, seen[key] // size if size > 1 else 0))
        seen[key] += 1
    return ids


def rewards(
    outcomes: Sequence[Outcome],
    group_of: Sequence[Hashable],
    on_failure: OnFailure = "group_mean",
    on_candidate_failure: OnCandidateFailure = "lowest",
) -> list[float | None]:
    """One finite number in [0, 1] or None per outcome.

    Args:
        outcomes: whole groups; of a group split over ranks, the outcomes of all ranks.
        group_of: the group of each outcome, see `group_ids`.

    Raises ConfigError for unequal lengths or no such policy, JudgementFailed for a failure under the policy "raise".
    """
    policies = {
        "on_failure": (on_failure, OnFailure),
        "on_candidate_failure": (on_candidate_failure, OnCandidateFailure),
    }
    for name, (policy, offered) in policies.items():
        if policy not in get_args(offered):
            raise ConfigError(f"{name} must be one of {', '.join(get_args(offered))}, found {policy!r}")
    if len(outcomes) != len(group_of):
        raise ConfigError(f"{len(outcomes)} outcomes but {len(group_of)} groups; give the group of every outcome")
    if on_failure == "raise":
        _raise_first(outcomes)
    members: dict[Hashable, list[int]] = defaultdict(list)
    for row, group in enumerate(group_of):
        members[group].append(row)
    caused, numbers = causes(outcomes, group_of), [None if isinstance(one, Failure) else one for one in outcomes]
    for rows in members.values():
        scores = [number for row in rows if (number := numbers[row]) is not None]
        for row in rows:
            if caused[row] == "candidate":
                numbers[row] = _caused(on_candidate_failure, scores)
        known = [number for row in rows if (number := numbers[row]) is not None]
        for row in rows:
            if caused[row] == "ours" and on_failure == "group_mean" and known:
                numbers[row] = mean(known)
    return numbers


def shrunk(outcomes: Sequence[Outcome], spreads: Sequence[float], group_of: Sequence[Hashable]) -> list[Outcome]:
    """Scores moved toward their group's mean by what the judge is unsure of: their distance times s2 / (s2 + spread^2).

    s2 is the variance of the group's scores, `spreads` are the standard deviations of each in [0, 1]. It is the mean of
    a normal posterior with the group as its prior (UARM, arXiv 2606.19818, shrinks advantages alike). Failures stay.
    """
    members: dict[Hashable, list[float]] = defaultdict(list)
    for outcome, group in zip(outcomes, group_of, strict=True):
        if not isinstance(outcome, Failure):
            members[group].append(outcome)
    moved: list[Outcome] = []
    for outcome, spread, group in zip(outcomes, spreads, group_of, strict=True):
        if not isinstance(outcome, Failure) and spread:
            middle, variance = mean(members[group]), pvariance(members[group])
            outcome = middle + (outcome - middle) * variance / (variance + spread**2)
        moved.append(outcome)
    return moved


def _caused(policy: OnCandidateFailure, scores: Sequence[float]) -> float | None:
    """What a failure gets that the candidate caused, from the scores of its group."""
    if policy == "lowest":
        return min(scores, default=0.0)
    return mean(scores) if policy == "mean" and scores else None


def _raise_first(outcomes: Sequence[Outcome]) -> None:
    failed = [(row, outcome) for row, outcome in enumerate(outcomes) if isinstance(outcome, Failure)]
    if failed:
        row, first = failed[0]
        raise JudgementFailed(
            f"{len(failed)} of {len(outcomes)} judgements failed and on_failure is 'raise'. Row {row}: {first.kind}:"
            f" {first.detail}. To continue without them use on_failure='group_mean'."
        )


class FailureWatch:
    """Stops a run once more than `limit` of a window of judgements failed.

    It trips as soon as the failures alone exceed the share of a whole window, so a dead judge is noticed after
    `limit * window` failures (25 by default), and a few bad replies at the start of a run stop nothing.
    """

    def __init__(self, limit: float = 0.05, window: int = 500) -> None:
        """
        Args:
            limit: the highest failure rate that is accepted; 0 stops at the first failure, 1 never stops.
            window: over how many of the latest judgements the rate is taken.
        """
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0.0 <= limit <= 1.0:
            raise ConfigError(f"max_failure_rate must be a share from 0 to 1, found {limit!r}")
        if window < 1:
            raise ConfigError(f"the window must hold at least one judgement, found {window!r}")
        self.limit, self.window = float(limit), window
        self._recent: deque[Failure | None] = deque(maxlen=window)

    def add(self, outcomes: Sequence[Outcome | None]) -> None:
        """Counts judgements, in order: the failure of each, or anything else for a good one.

        Raises JudgementFailed past the limit: with the failures by kind, one example and what to do.
        """
        for outcome in outcomes:
            failure = outcome if isinstance(outcome, Failure) else None
            if failure is not None and failure.kind in NO_TROUBLE:
                failure = None  # early in a training there may be many, and the judge is well
            self._recent.append(failure)
            if failure is not None:
                failed = [recent for recent in self._recent if recent is not None]
                if len(failed) > self.limit * self.window:
                    raise JudgementFailed(self._message(failed))

    def _message(self, failed: Sequence[Failure]) -> str:
        kinds = Counter(failure.kind for failure in failed)
        most = kinds.most_common(1)[0][0]
        example = next(failure for failure in reversed(failed) if failure.kind == most)
        counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        return (
            f"{len(failed)} of the last {len(self._recent)} judgements failed ({counts}); the limit is"
            f" {self.limit:.1%} of {self.window} (max_failure_rate={self.limit:g}). Latest {most}: {example.detail}."
            f" What to do: {ADVICE[most]}; if this many failures are expected, raise max_failure_rate."
        )
