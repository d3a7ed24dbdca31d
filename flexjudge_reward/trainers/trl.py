"""The judge as a TRL reward function: `GRPOTrainer(reward_funcs=[FlexJudgeReward()])`.

Works in GRPOTrainer and RLOOTrainer of TRL 1.6 to 1.16, and pickles into AsyncGRPOTrainer's worker. It loads nothing
until its first call and never imports trl: the contract is a call signature.

    trl grpo --reward_funcs flexjudge_reward.trainers.trl.flexjudge        # settings from FLEXJUDGE_*, see config.py

In a distributed run the ranks exchange scores and failures (never texts or pictures), because a group may be split
over them: so every rank must make the same calls, as trainers do. An error on one rank is raised on all of them,
which keeps the others from waiting for it.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack, get_args

from flexjudge_reward.config import FORMATS, JudgeConfig, JudgeOptions, checked
from flexjudge_reward.errors import ConfigError, EngineError
from flexjudge_reward.judge import Judge
from flexjudge_reward.rewards import FailureWatch, OnFailure, Outcome, groups, outcome, rewards
from flexjudge_reward.rubric import Rubric, Scale
from flexjudge_reward.trainers.chats import Columns, examples, group_key
from flexjudge_reward.types import Failure, FailureKind, Format, Verdict

# Metrics need one fixed set of names on all ranks, and ten kinds of failure would drown the others.
_FAILED: dict[str, tuple[FailureKind, ...]] = {
    "media": ("media",),
    "engine": ("transport", "timeout", "engine"),
    "reply": ("truncated", "malformed", "out_of_range", "wrong_count", "refused", "empty"),
}
_unnamed = itertools.count(1)


@dataclass
class Summary:
    """What one reward has done so far in this process."""

    calls: int = 0
    judgements: int = 0
    """Rows, one verdict each."""
    cached: int = 0
    """Judgements whose replies came from the cache."""
    failures: Counter[FailureKind] = field(default_factory=Counter)
    seconds: float = 0.0
    """Spent in judging."""
    tokens: int = 0
    """Of the judge's replies, cached ones included."""

    def add(self, verdicts: Sequence[Verdict], found: Sequence[Outcome], seconds: float) -> None:
        """Counts one call."""
        self.calls += 1
        self.judgements += len(found)
        self.cached += sum(_is_cached(verdict) for verdict in verdicts)
        self.failures.update(one.kind for one in found if isinstance(one, Failure))
        self.seconds += seconds
        self.tokens += sum(_tokens(verdict) for verdict in verdicts)

    @property
    def new(self) -> int:
        """Judgements that were not in the cache."""
        return self.judgements - self.cached

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.failures.most_common()) or "none"
        return (
            f"{self.calls} calls, {self.judgements} judgements ({self.cached} from the cache, {self.new} new),"
            f" failures: {kinds}; {self.seconds:.1f} s, {self.tokens} tokens of reasoning and answers"
        )


@dataclass(frozen=True)
class _Share:
    """What one rank tells the others about its rows."""

    keys: tuple[str, ...] = ()
    """The group of each row, as a hash."""
    outcomes: tuple[Outcome, ...] = ()
    cached: int = 0
    seconds: float = 0.0
    tokens: int = 0
    error: str = ""
    """Why this rank could not judge at all."""


class FlexJudgeReward:
    """A reward function for TRL: one float in [0, 1], or None, per completion.

    The number is the judge's score moved linearly from its scale to [0, 1]; a failed judgement is never a score.
    """

    __name__: str

    def __init__(
        self,
        judge: Judge | None = None,
        *,
        name: str | None = None,
        on_failure: OnFailure = "group_mean",
        max_failure_rate: float = 0.05,
        question_column: str | None = None,
        reference_column: str | None = None,
        rubric_column: str | None = None,
        media_root: str | Path | None = None,
        **options: Unpack[JudgeOptions],
    ) -> None:
        """
        Args:
            judge: a ready judge; without one, `options` and the environment say which (`config.py`).
            name: of the reward in the trainer's logs; by default each instance has one of its own.
            on_failure: what the row of a failed judgement gets: "group_mean", the mean of its judged siblings;
                "abstain", None; "raise", an exception. See `rewards.py`.
            max_failure_rate: the run stops with JudgementFailed above it, 0 to 1, over the last 500 judgements.
            question_column: a data set column to show as the question instead of the prompt's text.
            reference_column: a data set column with a reference answer.
            rubric_column: a data set column with a row's own criteria.
            media_root: the folder below which picture and clip files may be read; without one, none is.
            options: model, engine, base_url, format, rubric and so on: the settings of `JudgeConfig`.

        Raises:
            ConfigError: a wrong value, a judge together with options, or a format that judges groups.
        """
        self._options = checked(options)
        if judge is not None and self._options:
            raise ConfigError(f"give a judge or {', '.join(self._options)}, not both: the judge has its own settings")
        if on_failure not in get_args(OnFailure):
            raise ConfigError(f"on_failure must be one of {', '.join(get_args(OnFailure))}, found {on_failure!r}")
        self.__name__ = name or _next_name()
        self.on_failure = on_failure
        self.summary = Summary()
        self._columns = Columns(
            question_column, reference_column, rubric_column, None if media_root is None else Path(media_root)
        )
        self._watch = FailureWatch(max_failure_rate)
        self._given = self._built = judge
        self._lock = threading.RLock()
        if judge is not None:
            _refuse_groups(judge.format)
        elif "format" in self._options:
            _refuse_groups(FORMATS[self._options["format"]])

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward per completion, in order.

        Args:
            prompts: texts or chat messages.
            completions: texts or lists of messages.
            log_extra: TRL's hook for the completions table; gets the judge's reasoning.
            log_metric: TRL's hook for scalars.
            columns: the data set's columns, and whatever else the trainer hands over, which is ignored.

        Raises:
            ConfigError: the batch or the settings are wrong; nothing was loaded.
            EngineError: the judge can answer nothing, here or on another rank.
            JudgementFailed: too many failures, or one under the policy "raise"; on all ranks alike.
        """
        verdicts: list[Verdict] = []
        try:
            verdicts, share = self._judged(prompts, completions, columns)
        except Exception as error:
            _exchange(_Share(error=f"{type(error).__name__}: {error}"))
            raise
        shares = _exchange(share)
        for rank, other in enumerate(shares):
            if other.error:
                raise EngineError(f"rank {rank} could not judge: {other.error}")
        numbers = self._numbers(shares)
        self._log(shares, verdicts, log_extra, log_metric)
        first = sum(len(other.keys) for other in shares[: _rank()])
        return numbers[first : first + len(share.keys)]

    def close(self) -> None:
        """Closes the judge; a later call opens it again. May be called twice."""
        with self._lock:
            if self._built is not None:
                self._built.close()
                self._built = self._given

    def __getstate__(self) -> dict[str, Any]:
        # A judge that was built here is built again there; a given one must pickle itself.
        return {**self.__dict__, "_lock": None, "_built": self._given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<FlexJudgeReward {self.__name__}>"

    def _judged(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> tuple[list[Verdict], _Share]:
        """This process's rows: the verdicts, and what the other ranks need of them."""
        rows = examples(prompts, completions, columns, self._columns, self._scale)
        judge, start = self._ready(), time.perf_counter()
        with _same_random_numbers():
            verdicts = judge(rows)
        seconds = time.perf_counter() - start
        found = tuple(outcome(verdict) for verdict in verdicts)
        with self._lock:
            self.summary.add(verdicts, found, seconds)
        share = _Share(
            keys=tuple(group_key(row) for row in rows),
            outcomes=found,
            cached=sum(_is_cached(verdict) for verdict in verdicts),
            seconds=seconds,
            tokens=sum(_tokens(verdict) for verdict in verdicts),
        )
        return verdicts, share

    def _scale(self) -> Scale:
        """The scale of criteria that a column gives in words: the judge's own."""
        rubric = getattr(self._ready().format, "rubric", None)
        return rubric.scale if isinstance(rubric, Rubric) else Scale()

    def _ready(self) -> Judge:
        """The judge, built at the first call. Its model loads when it judges."""
        with self._lock:
            if self._built is None:
                config = JudgeConfig.resolve(self._options)
                _refuse_groups(FORMATS[config.format])
                if os.environ.get("RANK", "0") == "0":
                    config.announce()
                self._built = config.build()
                atexit.register(self.close)
            return self._built

    def _numbers(self, shares: Sequence[_Share]) -> list[float | None]:
        """The rewards of all ranks' rows, in rank order. Raises on all ranks alike, because all see the same."""
        outcomes = [one for share in shares for one in share.outcomes]
        with self._lock:
            self._watch.add(outcomes)
        return rewards(outcomes, groups([key for share in shares for key in share.keys]), self.on_failure)

    def _log(
        self,
        shares: Sequence[_Share],
        verdicts: Sequence[Verdict],
        log_extra: Callable[[str, list[Any]], None] | None,
        log_metric: Callable[[str, float], None] | None,
    ) -> None:
        if log_extra is not None:
            log_extra(f"{self.__name__}/reasoning", [_told(verdict) for verdict in verdicts])
        if log_metric is not None:
            for name, value in _metrics(shares).items():
                log_metric(f"{self.__name__}/{name}", value)


def _metrics(shares: Sequence[_Share]) -> dict[str, float]:
    """Of all ranks' rows, so that every rank logs the same numbers under the same names, and none is NaN."""
    outcomes = [one for share in shares for one in share.outcomes]
    scores = [one for one in outcomes if not isinstance(one, Failure)]
    kinds: Counter[FailureKind] = Counter(one.kind for one in outcomes if isinstance(one, Failure))
    count = len(outcomes)
    found = {"score": sum(scores) / len(scores)} if scores else {}
    found["failure_rate"] = 1 - len(scores) / count
    for what, members in _FAILED.items():
        found[f"failed_{what}"] = sum(kinds[kind] for kind in members) / count
    found["cached"] = sum(share.cached for share in shares) / count
    found["judge_seconds"] = max(share.seconds for share in shares)
    found["judge_tokens"] = sum(share.tokens for share in shares) / count
    return found


def _told(verdict: Verdict) -> str:
    """The reasoning, or why there is no verdict."""
    failed = f"[{verdict.failure.kind}: {verdict.failure.detail}] " if verdict.failure else ""
    return failed + verdict.reasoning


def _is_cached(verdict: Verdict) -> bool:
    return bool(verdict.generations) and all(generation.cached for generation in verdict.generations)


def _tokens(verdict: Verdict) -> int:
    return sum(generation.completion_tokens for generation in verdict.generations)


def _refuse_groups(judge_format: Format | type[Format]) -> None:
    """TRL hands a reward rows of one completion each, and parts of a group; such a format cannot judge these."""
    fewest = getattr(judge_format, "fewest", 1)
    if fewest > 1:
        name = getattr(judge_format, "name", judge_format)
        raise ConfigError(
            f"the format {name!r} judges at least {fewest} candidates together, but a trainer hands its reward one"
            " completion per row; judging whole groups is not part of this version, use format='score'"
        )


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Keeps torch's random numbers where they were, so that a run is the same whether its replies are cached or not."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


def _next_name() -> str:
    # Counted, not random: every rank builds its rewards in the same order and must log under the same names.
    number = next(_unnamed)
    return "flexjudge_reward" if number == 1 else f"flexjudge_reward_{number}"


def _distributed() -> Any:
    """torch.distributed where several processes train together, else None. Does not import torch."""
    torch = sys.modules.get("torch")
    group = None if torch is None else torch.distributed
    several = group is not None and group.is_available() and group.is_initialized() and group.get_world_size() > 1
    return group if several else None


def _rank() -> int:
    group = _distributed()
    return 0 if group is None else int(group.get_rank())


def _exchange(share: _Share) -> list[_Share]:
    """The shares of all ranks, in rank order. Every rank must call it equally often."""
    group = _distributed()
    if group is None:
        return [share]
    shares: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(shares, share)
    return shares


flexjudge = FlexJudgeReward(name="flexjudge")
"""A ready instance for command lines and YAML files, configured by FLEXJUDGE_*."""
