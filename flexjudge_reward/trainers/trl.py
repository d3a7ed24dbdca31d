"""The judge as a TRL reward function: `GRPOTrainer(reward_funcs=[FlexJudgeReward()])`.

Works in GRPOTrainer and RLOOTrainer of TRL 1.6 to 1.16, and pickles into AsyncGRPOTrainer's worker. It loads nothing
until its first call and never imports trl: the contract is a call signature.

    trl grpo --reward_funcs flexjudge_reward.trainers.trl.flexjudge        # settings from FLEXJUDGE_*, see config.py

A format for one candidate judges every completion alone; a format for several (`format="listwise"`, "pair", "choice")
judges the completions of one prompt against each other, whole groups, however the trainer splits them over its
processes: `ranks.py` brings their texts together. So every rank must make the same calls, as trainers do.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack, get_args

from flexjudge_reward.data.messages import Columns, examples, group_key, text_of
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.builtin import group_size, innermost
from flexjudge_reward.formats.groups import whole_groups
from flexjudge_reward.judge.config import JudgeConfig, JudgeOptions, checked
from flexjudge_reward.judge.groups import judge_groups
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.rewards import FailureWatch, OnFailure, Outcome, groups, rewards
from flexjudge_reward.rubric import Rubric, Scale
from flexjudge_reward.trainers.gather import (
    Group,
    Judged,
    Offer,
    Place,
    Share,
    assemble,
    exchange,
    raise_together,
    rank,
    within,
)
from flexjudge_reward.trainers.metrics import Summary, counted, diagnostics, in_place, is_cached
from flexjudge_reward.types import Example, Failure, Verdict

_unnamed = itertools.count(1)


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
        num_generations: int | None = None,
        deadline: float = 1200.0,
        **options: Unpack[JudgeOptions],
    ) -> None:
        """
        Args:
            judge: a ready judge; without one, `options` and the environment say which (`config.py`).
            name: of the reward in the trainer's logs; by default each instance has one of its own.
            on_failure: what the row of a failed judgement gets: "group_mean", the mean of its judged siblings;
                "abstain", None; "raise", an exception. See `rewards.py`.
            max_failure_rate: the run stops with JudgementFailed above it, 0 to 1, over the last 500 judgements: scores,
                lists, comparisons or votes.
            question_column: a data set column to show as the question instead of the prompt's text.
            reference_column: a data set column with a reference answer.
            rubric_column: a data set column with a row's own criteria.
            media_root: the folder below which picture and clip files may be read; without one, none is.
            num_generations: the trainer's group size. Without it the rows say it, which cannot tell one group from two
                where every prompt of a batch stands there twice.
            deadline: seconds after which a rank of several gives up on a call's judgements, which then are `timeout`
                failures; the other ranks wait no longer than that. Must be less than the trainer's `ddp_timeout`
                (1800 by default), after which waiting ranks are ended.
            options: model, engine, base_url, format, rubric and so on: the settings of `JudgeConfig`.

        Raises:
            ConfigError: a wrong value, or a judge together with options.
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
        if not deadline > 0:
            raise ConfigError(f"deadline must be a positive number of seconds, found {deadline!r}")
        if num_generations is not None and num_generations < 1:
            raise ConfigError(f"num_generations must be None or at least 1, found {num_generations!r}")
        self.deadline, self.num_generations = deadline, num_generations
        self._watch = FailureWatch(max_failure_rate)
        self._given = self._built = None if judge is None else for_groups(judge)
        self._lock = threading.RLock()

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
        try:
            rows = examples(prompts, completions, columns, self._columns, self._scale)
            judge = self._ready()
            keys = tuple(group_key(row) for row in rows)
            whole = group_size(judge.format)[1] > 1
            offer = Offer(keys, tuple(map(text_of, rows)) if whole else ())
        except Exception as error:
            _tell(error)
            raise
        mine = (
            _groups(offer, self.num_generations)
            if whole
            else [Group(((rank(), row),), (), rank(), row) for row in range(len(rows))]
        )
        try:
            with _same_random_numbers():
                share = self._judged(judge, rows, keys, mine)
        except Exception as error:
            _tell(error)
            raise
        shares = exchange(share)
        raise_together(shares)
        numbers = self._numbers(shares)
        self._log(shares, log_extra, log_metric)
        first = sum(len(other.keys) for other in shares[: rank()])
        return numbers[first : first + len(rows)]

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

    def _judged(self, judge: Judge, rows: Sequence[Example], keys: tuple[str, ...], mine: Sequence[Group]) -> Share:
        """The groups that fall to this rank, judged."""
        asked = [_asked(rows[group.source], group) for group in mine]
        start = time.perf_counter()
        found = within(self.deadline, lambda: judge_groups(asked, judge)) if asked else []
        seconds = time.perf_counter() - start
        if found is None:
            late = Failure("timeout", f"judging took longer than the deadline of {self.deadline:g} s")
            found = [((late,) * len(example.candidates), (Verdict.failed(late),)) for example in asked]
        results: dict[Place, Judged] = {}
        for group, example, (outcomes, verdicts) in zip(mine, asked, found, strict=True):
            for index, (place, one) in enumerate(zip(group.places, outcomes, strict=True)):
                verdict = verdicts[index % len(verdicts)]  # one per candidate, or one for the group
                length = sum(len(part) for part in example.candidates[index] if isinstance(part, str))
                results[place] = Judged(one, _told(verdict, one), length, is_cached(verdict))
        notes = counted([verdict for _, verdicts in found for verdict in verdicts])
        with self._lock:
            self.summary.add(list(results.values()), notes, seconds)
        parts = tuple(part for _, verdicts in found for verdict in verdicts for part in verdict.judgements)
        return Share(keys, results, notes, parts, seconds)

    def _scale(self) -> Scale:
        """The scale of criteria that a column gives in words: the judge's own."""
        rubric = getattr(innermost(self._ready().format), "rubric", None)
        return rubric.scale if isinstance(rubric, Rubric) else Scale()

    def _ready(self) -> Judge:
        """The judge, built at the first call. Its model loads when it judges."""
        with self._lock:
            if self._built is None:
                config = JudgeConfig.resolve(self._options)
                if os.environ.get("RANK", "0") == "0":
                    config.announce()
                self._built = for_groups(config.build(), config)
                atexit.register(self.close)
            return self._built

    def _numbers(self, shares: Sequence[Share]) -> list[float | None]:
        """The rewards of all ranks' rows, in rank order. Raises on all ranks alike, because all see the same."""
        outcomes = [row.outcome for _, row in in_place(shares)]
        with self._lock:
            self._watch.add([part for share in shares for part in share.parts])
        group_of = groups([key for share in shares for key in share.keys], self.num_generations)
        return rewards(outcomes, group_of, self.on_failure)

    def _log(
        self,
        shares: Sequence[Share],
        log_extra: Callable[[str, list[Any]], None] | None,
        log_metric: Callable[[str, float], None] | None,
    ) -> None:
        if log_extra is not None:
            own = [row.told for place, row in in_place(shares) if place[0] == rank()]
            log_extra(f"{self.__name__}/reasoning", own)
        metrics = diagnostics(shares, self.num_generations)
        with self._lock:
            self.summary.watch(metrics)
        if log_metric is not None:
            for name, value in metrics.items():
                log_metric(f"{self.__name__}/{name}", value)


def for_groups(judge: Judge, config: JudgeConfig | None = None) -> Judge:
    """The same judge, for groups of any size if its format compares candidates."""
    if config is None:
        return Judge(whole_groups(judge.format), judge.engine, judge.sampling)
    whole = whole_groups(judge.format, config.schedule, config.budget, config.chunk, config.seed)
    return Judge(whole, judge.engine, judge.sampling)


def _tell(error: Exception) -> None:
    """Takes part in the exchange with nothing but an error, so that no rank waits for this one."""
    exchange(Share(error=f"{type(error).__name__}: {error}"))


def _groups(offer: Offer, size: int | None) -> list[Group]:
    """The groups that this rank judges. Raises on all ranks alike."""
    offers = exchange(offer)
    raise_together(offers)
    return [group for group in assemble(offers, size) if group.owner == rank()]


def _asked(row: Example, group: Group) -> Example:
    """What the judge sees of a group: this rank's row, with the candidates of all."""
    if not group.texts:
        return row
    return Example(row.question, group.texts, row.reference, row.rubric)


def _told(verdict: Verdict, one: Outcome) -> str:
    """The reasoning, or why there is no score."""
    return (f"[{one.kind}: {one.detail}] " if isinstance(one, Failure) else "") + verdict.reasoning


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


flexjudge = FlexJudgeReward(name="flexjudge")
"""A ready instance for command lines and YAML files, configured by FLEXJUDGE_*."""
