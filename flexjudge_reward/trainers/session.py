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
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

from flexjudge_reward.data.messages import Columns
from flexjudge_reward.engines.base import Closable
from flexjudge_reward.errors import ConfigError, EngineError, FlexJudgeError, JudgementFailed
from flexjudge_reward.formats.base import add_counters
from flexjudge_reward.judge.config import KNOWN_SETTINGS, JudgeConfig, RewardConfig
from flexjudge_reward.judge.groups import GroupResult
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.rewards import FailureWatch, OnFailure, group_ids, rewards, shrunk
from flexjudge_reward.judge.settings import PREFIX, checked, settings_of
from flexjudge_reward.judge.summary import RunSummary
from flexjudge_reward.trainers.alarms import Alarms
from flexjudge_reward.trainers.client import RemoteJudge, check_settings
from flexjudge_reward.trainers.cost import CostWatch, usage
from flexjudge_reward.trainers.gather import (
    Deadline,
    RankResults,
    RankRows,
    all_gather,
    assign_groups,
    own_group,
    raised_on_all_ranks,
    rank,
)
from flexjudge_reward.trainers.metrics import metrics
from flexjudge_reward.trainers.monitor import Monitor
from flexjudge_reward.trainers.random_numbers import random_numbers
from flexjudge_reward.trainers.tasks import (
    Scored,
    Task,
    key_of,
    keys_of,
    keys_of_texts,
    read_columns,
    row_result,
    text_of,
    too_late,
)
from flexjudge_reward.trainers.window import NO_WINDOW
from flexjudge_reward.types import Example, Failure

_unnamed = itertools.count(1)
_log = logging.getLogger("flexjudge_reward")
_REWARD_SETTINGS = settings_of(RewardConfig)


class RewardSession(Closable):
    """One reward: its judge, its settings, what it has judged so far."""

    def __init__(self, judge: Judge | None = None, settings: Mapping[str, Any] | None = None, name: str = "") -> None:
        """
        Args:
            judge: a ready judge; without one, `settings`, FLEXJUDGE_* and the machine choose it.
            settings: fields of `RewardConfig`, and without a judge those of `JudgeConfig`. None means "not given".
            name: by which file and environment may have settings of its own (`judge/settings.py`).

        Raises:
            ConfigError: an unknown or wrong setting, or a judge together with settings of a judge.
        """
        given = {name: one.value for name, one in checked(KNOWN_SETTINGS, settings or {}).items()}
        self._reward_settings = {name: value for name, value in given.items() if name in _REWARD_SETTINGS}
        self._judge_settings = {name: value for name, value in given.items() if name not in _REWARD_SETTINGS}
        if judge is not None and self._judge_settings:
            names = ", ".join(self._judge_settings)
            raise ConfigError(f"give a judge or {names}, not both: the judge has its own settings")
        self.summary, self._name = RunSummary(), name
        self._given = self._judge = None if judge is None else judge.for_group_size()
        self._lock = threading.RLock()
        self._shown: set[str] = set()  # kinds of media that the judge can be shown
        self._group: Any = None  # of ranks, for what they exchange
        self.stopped: FlexJudgeError | None = None  # why nothing more is judged: a ceiling, or too many failures
        self.recent: deque[float] = deque(maxlen=512)  # the latest scores, for `rows.py: neutral`

    @cached_property
    def config(self) -> RewardConfig:
        """The reward's settings, from arguments, FLEXJUDGE_* and file. Raises ConfigError at the first use."""
        return RewardConfig.resolve(self._reward_settings, name=self._name)

    @property
    def judge(self) -> Judge:
        """The judge, built at the first use. Its model loads when it judges."""
        with self._lock:
            if self._judge is None and self.config.reward_server:
                check_settings(self.config, self._judge_settings, self._name)
                self._judge = RemoteJudge(self.config.reward_server, self.config.deadline)
            if self._judge is None:
                config = JudgeConfig.resolve(self._judge_settings, name=self._name)
                if os.environ.get("RANK", "0") == "0":
                    config.announce()
                self._judge = config.build()
                weakref.finalize(self, self._judge.close)  # at the latest when the process ends
            return self._judge

    def check(self) -> None:
        """Raises ConfigError for settings that cannot be met, such as `shrink` and `second_judge`. No model loads."""
        _ = self.monitor
        if self.config.shrink and not self.judge.format.measures_spread:
            name = self.judge.format.described()
            raise ConfigError(f"shrink needs to know how sure the judge is; {name} does not say: set votes")

    @cached_property
    def overlaps(self) -> bool:
        """Whether other rewards may be asked while this one is: its judge is on a server."""
        if self._given is not None:
            return self._given.engine.remote
        try:
            if self.config.reward_server:
                return True
            config = JudgeConfig.resolve(self._judge_settings, gpu=lambda: False, name=self._name)
        except ConfigError:  # it is raised where all ranks hear of it; until then they must take the same way
            return "base_url" in self._judge_settings or PREFIX + "BASE_URL" in os.environ
        return config.engine in ("server", "vendor")

    def open_group(self) -> Any:
        """This reward's own group of ranks, if it overlaps with others. Every rank opens them in the same order."""
        with self._lock:
            if self._group is None and self.overlaps:
                try:
                    deadline = self.config.deadline
                except ConfigError:  # as above
                    deadline = RewardConfig.deadline
                self._group = own_group(deadline)
            return self._group

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
            CostLimitReached: past a ceiling. This and "too many failures" end the session: each later call raises it
                again, before anything is asked, since some trainers catch errors and continue.
        """
        self._raise_if_stopped()  # all ranks have stopped
        group = self.open_group()
        with raised_on_all_ranks(group), random_numbers.kept():
            self.check()
            alone = self.judge.format.max_candidates == 1  # first: the judge's plugins may bring a modality of the rows
            config = self.config
            columns, deadline = read_columns(config), Deadline(config.deadline)
            rows = deadline.run(lambda: read(columns))
            if rows is None:
                raise EngineError(f"the rows were not read within the deadline of {deadline.seconds:g} s")
            self._check_media(rows)
            keys = deadline.run(lambda: keys_of(rows, deadline))
            late = keys is None
            keys = keys or keys_of_texts(rows)
            tasks = self._own_tasks(RankRows(keys, () if alone else tuple(map(text_of, rows)), late), rows, deadline)
            with self.judge.engine.window():
                mine = replace(self._judge_tasks(tasks, step, deadline), keys=keys)
        ranks = all_gather(mine, group)
        ids = group_ids([key for results in ranks for key in results.keys], config.num_generations)
        scored = self._scored(ranks, ids, config.on_failure, step)
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
        self._raise_if_stopped()
        self.check()
        if self.judge.engine.needs_window:
            raise ConfigError(NO_WINDOW)
        deadline = Deadline(self.config.deadline)
        tasks = deadline.run(lambda: [*self._whole_groups(groups, failed or {})])
        if tasks is None:
            unread = dict.fromkeys(range(len(groups)), too_late("reading media", deadline))
            tasks = [*self._whole_groups(groups, unread)]
        results = self._judge_tasks(tasks, step, deadline)
        ids = [index for index, group in enumerate(groups) for _ in group]
        scored = self._scored([results], ids, on_failure or self.config.on_failure, step)
        bounds = itertools.pairwise([0, *itertools.accumulate(map(len, groups))])
        return [scored.part(slice(low, high)) for low, high in bounds]

    def close(self) -> None:
        """Closes the judge; a later call opens it again. May be called twice."""
        if self._judge is not None:
            self._judge.close()

    def __getstate__(self) -> dict[str, Any]:
        # A judge that was built here is built again there; a given one must pickle itself.
        return {**self.__dict__, "_lock": None, "_group": None, "_judge": self._given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def _check_media(self, rows: Sequence[Example]) -> None:
        """Raises ConfigError for a kind of media that the judge cannot be shown; looks at each kind once."""
        for row in rows:
            if new := {media.kind for media in row.media} - self._shown:
                self.judge.check_media(row)
                self._shown |= new

    def _own_tasks(self, mine: RankRows, rows: Sequence[Example], deadline: Deadline) -> list[Task]:
        """What this rank judges: its rows, or the groups that fall to it. Raises on all ranks alike.

        Which groups there are is known only once every rank has read its prompts.
        """
        alone = self.judge.format.max_candidates == 1
        ranks = [mine] if alone else all_gather(mine, self._group)
        late = [number for number, one in enumerate(ranks) if one.late]
        if alone or late:
            what = "reading media" if alone else f"reading media on rank {late[0]}"
            failure = too_late(what, deadline) if late else None
            return [Task(mine.keys[number], ((rank(), number),), row, failure) for number, row in enumerate(rows)]
        groups = assign_groups(ranks, self.config.num_generations)
        return [Task(g.key, g.rows, rows[g.source].with_candidates(g.texts)) for g in groups if g.owner == rank()]

    def _whole_groups(self, groups: Sequence[Sequence[Example]], failed: Mapping[int, Failure]) -> Iterator[Task]:
        """The groups of this process: row by row for a format that judges each row alone."""
        format = self.judge.format
        for index, group in enumerate(groups):
            ids = tuple((index, number) for number in range(len(group)))
            if format.max_candidates == 1 and index not in failed:
                yield from (Task(str(index), (row_id,), row) for row_id, row in zip(ids, group, strict=True))
                continue
            if index not in failed and len({key_of(row) for row in group}) > 1:
                why = f"its rows have different questions, and {format.described()} compares answers to one"
                raise ConfigError(f"group {index}: {why}")
            whole = group[0].with_candidates([row.candidates[0] for row in group])
            yield Task(str(index), ids, whole, failed.get(index))

    def _judge_tasks(self, tasks: Sequence[Task], step: int | None, deadline: Deadline) -> RankResults:
        """All tasks, judged in one batch; as timeouts if that passes the deadline."""
        asked = [task for task in tasks if task.failure is None]
        examples = [task.example for task in asked]
        labels: list[dict[str, object]] = [
            {"step": step, "rank": rank(), "group": task.key[:16], "rows": [list(row) for row in task.rows]}
            for task in asked
        ]
        start = time.perf_counter()
        with self._lock:
            suspects = self._alarms.suspects
        judged, probed = self.monitor.judge(self.judge, examples, labels, suspects, deadline) if asked else ([], ())
        seconds = time.perf_counter() - start
        timeout = too_late("judging", deadline)
        failed = GroupResult.failed
        remaining = iter([failed(one, timeout) for one in examples] if judged is None else judged)
        results = [failed(task.example, task.failure) if task.failure else next(remaining) for task in tasks]
        with self._lock:
            self.summary.add(results, seconds)
        rows = {
            row_id: row_result(result, index, task.example)
            for task, result in zip(tasks, results, strict=True)
            for index, row_id in enumerate(task.rows)
        }
        verdicts = [verdict for result in results for verdict in result.verdicts]
        outcomes = tuple(outcome for verdict in verdicts for outcome in verdict.outcomes)
        tokens = {"tokens": sum(verdict.tokens for verdict in verdicts)}
        spent = usage(verdict for result in judged or () for verdict in result.verdicts)  # for probes, too
        counters = add_counters(tokens, spent, *(verdict.counters for verdict in verdicts))
        return RankResults((), rows, counters, outcomes, seconds, probed)

    def count(self, error: Exception) -> None:
        """Counts an error of a row, which an adapter does not raise. Raises JudgementFailed past the limit."""
        with self._lock, self._stopping():
            self.watch.add([Failure("engine", f"{type(error).__name__}: {error}")])

    def _raise_if_stopped(self) -> None:
        if self.stopped is not None:
            raise self.stopped.with_traceback(None)  # or each call would add its frames, and these hold rows

    @cached_property
    def watch(self) -> FailureWatch:
        """What stops the run after too many failures; a reward server sets another."""
        return FailureWatch(self.config.max_failure_rate)

    @cached_property
    def _costs(self) -> CostWatch:
        return CostWatch(self.config)

    @cached_property
    def monitor(self) -> Monitor:
        """What is judged beside the rows."""
        return Monitor(self.config, self.judge.format)

    @cached_property
    def _alarms(self) -> Alarms:
        return Alarms(self.config.max_failure_rate)

    def _scored(
        self, ranks: Sequence[RankResults], groups: Sequence[Any], on_failure: OnFailure, step: int | None
    ) -> Scored:
        """The rows of all ranks. Raises on all ranks alike, because all see the same."""
        by_id = {row_id: row for results in ranks for row_id, row in results.rows.items()}
        rows = [by_id[row_id] for row_id in sorted(by_id)]
        outcomes = [row.outcome for row in rows]
        with self._lock:
            with self._stopping():
                self.watch.add([outcome for results in ranks for outcome in results.outcomes])
            given = shrunk(outcomes, [row.spread for row in rows], groups) if self.config.shrink else outcomes
            numbers = rewards(given, groups, on_failure, self.config.on_candidate_failure)
            counters = add_counters(*(results.counters for results in ranks))
            begun = self._alarms.look(outcomes, groups, [one for results in ranks for one in results.probes], counters)
            values = metrics(ranks, rows, groups)
            if (failed := self._alarms.probes_failed) is not None:
                values["probes_failed"] = failed
            with self._stopping():
                values |= self._costs.add(counters)
            self.summary.add_metrics(values)
            self.summary.cost = self._costs.cost
            self.recent.extend(one for one in outcomes if not isinstance(one, Failure))
            with self._stopping():
                self._warn(begun, step)
        return Scored(numbers, outcomes, given, [row.reasoning for row in rows], values)

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """What is raised inside ends the session."""
        try:
            yield
        except FlexJudgeError as error:
            self.stopped = error
            raise

    def _warn(self, begun: Mapping[str, str], step: int | None) -> None:
        """Says what troubles begin; raises JudgementFailed where they stop the run, on all ranks alike."""
        for trouble, said in begun.items():
            self.summary.alarms[trouble] = self.summary.alarms.get(trouble, 0) + 1
            if rank() == 0:
                _log.warning("%s", said)
                if self.judge.record is not None:
                    self.judge.record.note({"alarm": trouble, "said": said, "step": step})
        if begun and self.config.on_alarm == "stop":
            raise JudgementFailed(f"{next(iter(begun.values()))} (on_alarm='stop')")


def next_name() -> str:
    """A distinct name per reward. Counted, not random: every rank builds its rewards in the same order."""
    number = next(_unnamed)
    return "flexjudge_reward" if number == 1 else f"flexjudge_reward_{number}"
