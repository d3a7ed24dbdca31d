"""RewardSession: rows in, rewards, reasoning and metrics out. The core of every trainer's reward.

    session = RewardSession(settings={"model": "nano"})
    scored = session.score(lambda columns: rows)            # a whole batch, over all ranks of torch.distributed
    scored = session.score_groups([rows_of_one_prompt])     # whole groups that this process has

A row is an `Example` with one candidate: the completion. A format for one candidate judges every completion alone; a
format for several judges the completions of one prompt against each other, each group once. It loads nothing until its
first call, pickles, and works from threads. An adapter maps a trainer's call to rows and its rewards back
(`trl.py`); rows that arrive one at a time go through `rendezvous.py`.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from flexjudge_reward.data.messages import Columns
from flexjudge_reward.engines.base import Closable
from flexjudge_reward.errors import ConfigError, EngineError
from flexjudge_reward.formats.base import add_counters
from flexjudge_reward.judge.config import KNOWN_SETTINGS, JudgeConfig, RewardConfig
from flexjudge_reward.judge.groups import GroupResult, judge_groups
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.rewards import FailureWatch, OnFailure, Outcome, group_ids, rewards
from flexjudge_reward.judge.settings import checked, settings_of
from flexjudge_reward.judge.summary import RunSummary
from flexjudge_reward.media.base import Media
from flexjudge_reward.prompts.quoting import encodable
from flexjudge_reward.trainers.alarms import Alarms
from flexjudge_reward.trainers.gather import (
    Deadline,
    RankResults,
    RankRows,
    RowId,
    RowResult,
    all_gather,
    assign_groups,
    raised_on_all_ranks,
    rank,
)
from flexjudge_reward.trainers.metrics import metrics
from flexjudge_reward.types import Example, Failure, Unfinished, Verdict

_unnamed = itertools.count(1)
_log = logging.getLogger("flexjudge_reward")
_REWARD_SETTINGS = settings_of(RewardConfig)


@dataclass(frozen=True)
class Scored:
    """What became of some rows, in their order."""

    rewards: list[float | None]
    """In [0, 1]; None where there is no reward (`judge/rewards.py`)."""
    outcomes: list[Outcome]
    """Each row's score in [0, 1], or why it has none."""
    reasoning: list[str]
    """The judge's, after the failure if there is one."""
    metrics: dict[str, float]
    """Over all ranks."""

    def part(self, rows: slice) -> Scored:
        """The same for some of the rows."""
        return Scored(self.rewards[rows], self.outcomes[rows], self.reasoning[rows], self.metrics)


@dataclass(frozen=True)
class _Task:
    """What is judged together."""

    key: str
    """Of the group, for the record."""
    rows: tuple[RowId, ...]
    """One per candidate."""
    example: Example
    failure: Failure | None = None
    """Why it is not judged."""


class RewardSession(Closable):
    """One reward: its judge, its settings, what it has judged so far."""

    def __init__(self, judge: Judge | None = None, settings: Mapping[str, Any] | None = None) -> None:
        """
        Args:
            judge: a ready judge; without one, `settings`, FLEXJUDGE_* and the machine choose it.
            settings: fields of `RewardConfig`, and without a judge those of `JudgeConfig`. None means "not given".

        Raises:
            ConfigError: an unknown or wrong setting, or a judge together with settings of a judge.
        """
        given = {name: one.value for name, one in checked(KNOWN_SETTINGS, settings or {}).items()}
        self._reward_settings = {name: value for name, value in given.items() if name in _REWARD_SETTINGS}
        self._judge_settings = {name: value for name, value in given.items() if name not in _REWARD_SETTINGS}
        if judge is not None and self._judge_settings:
            names = ", ".join(self._judge_settings)
            raise ConfigError(f"give a judge or {names}, not both: the judge has its own settings")
        self.summary = RunSummary()
        self._given = self._judge = None if judge is None else judge.for_group_size()
        self._lock = threading.RLock()

    @cached_property
    def config(self) -> RewardConfig:
        """The reward's settings, from arguments, FLEXJUDGE_* and file. Raises ConfigError at the first use."""
        return RewardConfig.resolve(self._reward_settings)

    @property
    def judge(self) -> Judge:
        """The judge, built at the first use. Its model loads when it judges."""
        with self._lock:
            if self._judge is None:
                config = JudgeConfig.resolve(self._judge_settings)
                if os.environ.get("RANK", "0") == "0":
                    config.announce()
                self._judge = config.build()
                weakref.finalize(self, self._judge.close)  # at the latest when the process ends
            return self._judge

    def score(self, read: Callable[[Columns], list[Example]], step: int | None = None) -> Scored:
        """The rows of this rank, scored together with those of all other ranks. Every rank makes the same calls.

        torch's random numbers continue as if nothing had been judged: after calls that overlap in threads, as before
        the first of them.

        Args:
            read: gives this rank's rows; its errors are raised on all ranks alike.
            step: of the training, for the record.

        Raises:
            ConfigError: the batch or the settings are wrong; nothing was loaded.
            EngineError: the judge can answer nothing, or `read` passes the deadline, here or on another rank.
            JudgementFailed: too many failures, or one under the policy "raise"; on all ranks alike.
        """
        with raised_on_all_ranks(), _random_numbers.kept():
            alone = self.judge.format.max_candidates == 1  # first: the judge's plugins may bring a modality of the rows
            config = self.config
            root = None if config.media_root is None else Path(config.media_root)
            named = (config.question_column, config.reference_column, config.rubric_column)
            columns = Columns(*named, root, config.completion)
            deadline = Deadline(config.deadline)
            rows = deadline.run(lambda: read(columns))
            if rows is None:
                raise EngineError(f"the rows were not read within the deadline of {deadline.seconds:g} s")
            keys = deadline.run(lambda: _keys(rows, deadline))
            late = keys is None
            keys = keys or tuple(_key_of_texts(row) for row in rows)
            tasks = self._own_tasks(RankRows(keys, () if alone else tuple(map(_text, rows)), late), rows, deadline)
            mine = replace(self._judge_tasks(tasks, step, deadline), keys=keys)
        ranks = all_gather(mine)
        ids = group_ids([key for results in ranks for key in results.keys], config.num_generations)
        scored = self._scored(ranks, ids, config.on_failure)
        first = sum(len(results.keys) for results in ranks[: rank()])
        return scored.part(slice(first, first + len(rows)))

    def score_groups(
        self,
        groups: Sequence[Sequence[Example]],
        failed: Mapping[int, Failure] | None = None,
        step: int | None = None,
        on_failure: OnFailure | None = None,
    ) -> list[Scored]:
        """Whole groups of rows that this process has, judged in one batch. Raises as `score`.

        Unlike `score` it leaves torch's random numbers as judging leaves them, since other threads may draw meanwhile.

        Args:
            failed: groups by index that are not judged, such as one that is not whole, and why.
            on_failure: another policy than the session's.
        """
        if not groups or not all(groups):
            raise ConfigError("nothing to judge: there are no groups, or one of them has no rows")
        deadline = Deadline(self.config.deadline)
        tasks = deadline.run(lambda: [*self._whole_groups(groups, failed or {})])
        if tasks is None:
            tasks = [*self._whole_groups(groups, dict.fromkeys(range(len(groups)), _late("reading media", deadline)))]
        results = self._judge_tasks(tasks, step, deadline)
        ids = [index for index, group in enumerate(groups) for _ in group]
        scored = self._scored([results], ids, on_failure or self.config.on_failure)
        bounds = itertools.pairwise([0, *itertools.accumulate(map(len, groups))])
        return [scored.part(slice(low, high)) for low, high in bounds]

    def close(self) -> None:
        """Closes the judge; a later call opens it again. May be called twice."""
        if self._judge is not None:
            self._judge.close()

    def __getstate__(self) -> dict[str, Any]:
        # A judge that was built here is built again there; a given one must pickle itself.
        return {**self.__dict__, "_lock": None, "_judge": self._given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def _own_tasks(self, mine: RankRows, rows: Sequence[Example], deadline: Deadline) -> list[_Task]:
        """What this rank judges: its rows, or the groups that fall to it. Raises on all ranks alike.

        Which groups there are is known only once every rank has read its prompts.
        """
        alone = self.judge.format.max_candidates == 1
        ranks = [mine] if alone else all_gather(mine)
        late = [number for number, one in enumerate(ranks) if one.late]
        if alone or late:
            failure = (
                _late("reading media" if alone else f"reading media on rank {late[0]}", deadline) if late else None
            )
            return [_Task(mine.keys[number], ((rank(), number),), row, failure) for number, row in enumerate(rows)]
        groups = assign_groups(ranks, self.config.num_generations)
        return [_Task(g.key, g.rows, rows[g.source].with_candidates(g.texts)) for g in groups if g.owner == rank()]

    def _whole_groups(self, groups: Sequence[Sequence[Example]], failed: Mapping[int, Failure]) -> Iterator[_Task]:
        """The groups of this process: row by row for a format that judges each row alone."""
        format = self.judge.format
        for index, group in enumerate(groups):
            ids = tuple((index, number) for number in range(len(group)))
            if format.max_candidates == 1 and index not in failed:
                yield from (_Task(str(index), (row_id,), row) for row_id, row in zip(ids, group, strict=True))
                continue
            if index not in failed and len({row.with_candidates([]).digest() for row in group}) > 1:
                name = format.described()
                raise ConfigError(
                    f"group {index}: its rows have different questions, and {name} compares answers to one"
                )
            whole = group[0].with_candidates([row.candidates[0] for row in group])
            yield _Task(str(index), ids, whole, failed.get(index))

    def _judge_tasks(self, tasks: Sequence[_Task], step: int | None, deadline: Deadline) -> RankResults:
        """All tasks, judged in one batch; as timeouts if that passes the deadline."""
        asked = [task for task in tasks if task.failure is None]
        examples = [task.example for task in asked]
        labels = [
            {"step": step, "rank": rank(), "group": task.key[:16], "rows": [list(row) for row in task.rows]}
            for task in asked
        ]
        start = time.perf_counter()
        judged = deadline.run(lambda: judge_groups(self.judge, examples, labels, True)) if asked else []
        seconds = time.perf_counter() - start
        late = _late("judging", deadline)
        remaining = iter([_failed(example, late) for example in examples] if judged is None else judged)
        results = [_failed(task.example, task.failure) if task.failure else next(remaining) for task in tasks]
        with self._lock:
            self.summary.add(results, seconds)
        rows = {
            row_id: _row_result(result, index, task.example)
            for task, result in zip(tasks, results, strict=True)
            for index, row_id in enumerate(task.rows)
        }
        verdicts = [verdict for result in results for verdict in result.verdicts]
        outcomes = tuple(outcome for verdict in verdicts for outcome in verdict.outcomes)
        tokens = {"tokens": sum(verdict.tokens for verdict in verdicts)}
        counters = add_counters(tokens, *(verdict.counters for verdict in verdicts))
        return RankResults((), rows, counters, outcomes, seconds)

    @cached_property
    def _watch(self) -> FailureWatch:
        return FailureWatch(self.config.max_failure_rate)

    @cached_property
    def _alarms(self) -> Alarms:
        return Alarms(self.config.max_failure_rate)

    def _scored(self, ranks: Sequence[RankResults], groups: Sequence[Any], on_failure: OnFailure) -> Scored:
        """The rows of all ranks. Raises on all ranks alike, because all see the same."""
        by_id = {row_id: row for results in ranks for row_id, row in results.rows.items()}
        rows = [by_id[row_id] for row_id in sorted(by_id)]
        outcomes = [row.outcome for row in rows]
        with self._lock:
            self._watch.add([outcome for results in ranks for outcome in results.outcomes])
            numbers = rewards(outcomes, groups, on_failure, self.config.on_candidate_failure)
            values = metrics(ranks, rows, groups)
            self.summary.add_metrics(values)
            for trouble, said in self._alarms.look(outcomes, groups).items():
                self.summary.alarms[trouble] = self.summary.alarms.get(trouble, 0) + 1
                if rank() == 0:
                    _log.warning("%s", said)
        return Scored(numbers, outcomes, [row.reasoning for row in rows], values)


def next_name() -> str:
    """A distinct name per reward. Counted, not random: every rank builds its rewards in the same order."""
    number = next(_unnamed)
    return "flexjudge_reward" if number == 1 else f"flexjudge_reward_{number}"


def _keys(rows: Sequence[Example], deadline: Deadline) -> tuple[str, ...] | None:
    """The group of each row; reads the media of its prompt. None, and no more is read, once the deadline has passed."""
    keys = []
    for row in rows:
        if not deadline.left:
            return None
        keys.append(row.with_candidates([]).digest())
    return tuple(keys)


def _key_of_texts(row: Example) -> str:
    """The group of a row whose media were not read in time."""
    return Example(["unread", *(part if isinstance(part, str) else part.kind for part in row.question)], []).digest()


def _late(what: str, deadline: Deadline) -> Failure:
    return Failure("timeout", f"{what} took longer than the deadline of {deadline.seconds:g} s")


def _text(row: Example) -> str:
    """The one candidate of a row as text, which is what travels between ranks. Raises ConfigError for media."""
    (candidate,) = row.candidates
    if any(isinstance(part, Media) for part in candidate):
        raise ConfigError("a group format compares texts; a completion with media parts needs format='pointwise'")
    unfinished = next((part for part in candidate if isinstance(part, Unfinished)), None)
    return unfinished if unfinished is not None else "".join(str(part) for part in candidate)


def _failed(example: Example, failure: Failure) -> GroupResult:
    return GroupResult((failure,) * len(example.candidates), (Verdict.failed(failure),))


def _row_result(result: GroupResult, index: int, example: Example) -> RowResult:
    outcome, verdict = result.outcomes[index], result.verdict_of(index)
    failure = f"[{outcome.kind}: {outcome.detail}] " if isinstance(outcome, Failure) else ""
    length = sum(len(part) for part in example.candidates[index] if isinstance(part, str))
    # A trainer writes it as UTF-8 and parquet, which half a surrogate pair of a server's JSON would end.
    return RowResult(outcome, encodable(failure + verdict.reasoning), length, verdict.cached)


class _RandomNumbers:
    """torch's random state, so that a run is the same whether its replies are cached or not."""

    def __init__(self) -> None:
        self._lock, self._calls, self._saved = threading.Lock(), 0, ExitStack()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Saves the state before the first of the calls that overlap, and restores it after the last."""
        with self._lock:
            torch = sys.modules.get("torch")
            if torch is not None and not self._calls:
                devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
                self._saved.enter_context(torch.random.fork_rng(devices=devices))
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if not self._calls:
                    self._saved.close()


_random_numbers = _RandomNumbers()
