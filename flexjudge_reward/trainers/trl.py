"""The judge as a TRL reward function: `GRPOTrainer(reward_funcs=[FlexJudgeReward()])`.

Works in GRPOTrainer and RLOOTrainer of TRL 1.6 to 1.16, and pickles into AsyncGRPOTrainer's worker. It loads nothing
until its first call and never imports trl: the contract is a call signature.

A plain call returns the rewards. Rewards whose judges are on servers run side by side where the trainer awaits them:
TRL 1.16 gathers a reward whose `__call__` is a coroutine function (`trainer/utils.py: is_async_callable`), earlier
versions call it.

    trl grpo --reward_funcs flexjudge_reward.trainers.trl.flexjudge        # settings from FLEXJUDGE_*
    trl grpo --reward_funcs flexjudge_reward.helpful flexjudge_reward.short

The second line is two judges by name, which file or environment give settings of their own (`judge/settings.py`), such
as FLEXJUDGE_SHORT__RUBRIC=short.toml. TRL's YAML file takes the variables in its section `env`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

from flexjudge_reward.data.messages import examples
from flexjudge_reward.judge.config import KNOWN_SETTINGS
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.settings import declared_names
from flexjudge_reward.judge.summary import RunSummary
from flexjudge_reward.trainers.awaiting import Ready, loop_is_the_trainers, runs_in_a_loop
from flexjudge_reward.trainers.gather import started
from flexjudge_reward.trainers.session import RewardSession, next_name
from flexjudge_reward.trainers.tasks import Scored
from flexjudge_reward.trainers.window import in_window


class FlexJudgeReward:
    """A reward function for TRL: one float in [0, 1], or None, per completion.

    The number is the judge's score moved linearly from its scale to [0, 1]. What a failed judgement gives
    depends on its cause and two settings (`judge/rewards.py`).
    """

    __name__: str

    def __init__(self, judge: Judge | None = None, *, name: str | None = None, **settings: Any) -> None:
        """
        Args:
            judge: a ready judge; without one, settings, FLEXJUDGE_* and the machine choose it.
            name: of the reward in the trainer's logs, and of its own settings in file and environment, if there are
                any; by default each instance has its own.
            settings: fields of `JudgeConfig` (model, engine, base_url, format, rubric, record, ...) and `RewardConfig`
                (on_failure, on_candidate_failure, max_failure_rate, max_cost, reward_server, probes, ignored_probes,
                on_alarm, question_column, rubric_column, media_root, completion, num_generations, deadline, ...).

        Raises:
            ConfigError: a wrong setting, or a judge together with settings of a judge.
        """
        self.__name__ = name or next_name()
        self.session = RewardSession(judge, settings, self.__name__)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward per completion, in order. Raises as `RewardSession.score`.

        Args:
            prompts: texts or chat messages.
            completions: texts or lists of messages.
            log_extra: TRL's hook for the completions table; gets the judge's reasoning.
            log_metric: TRL's hook for scalars.
            columns: the data set's columns, and whatever else the trainer passes, which is ignored.
        """
        given = {"log_extra": log_extra, "log_metric": log_metric, **columns}
        looped = runs_in_a_loop() and self.session.overlaps
        if looped and loop_is_the_trainers():
            return self._awaited(prompts, completions, **given)  # type: ignore[return-value]
        rewards = self._logged(self._score(prompts, completions, columns, log_metric), log_extra, log_metric)
        return Ready(rewards) if looped else rewards

    def __getattribute__(self, name: str) -> Any:
        # What a trainer looks at. `reward(...)` does not come by here: Python takes the method of the class.
        if name == "__call__" and self.session.overlaps:
            return self._awaited
        return super().__getattribute__(name)

    async def _awaited(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The same for a trainer that awaits it: other rewards run meanwhile."""
        self.session.open_group()  # here, where the rewards begin in the same order on every rank
        result, _ = started(lambda: self._score(prompts, completions, columns))
        return self._logged(await asyncio.wrap_future(result), log_extra, log_metric)

    def _score(self, prompts: Any, completions: Any, columns: dict[str, Any], log: Any = None) -> Scored:
        step = getattr(columns.get("trainer_state"), "global_step", None)
        read = in_window(self.session, log, lambda names: examples(prompts, completions, columns, names))
        return self.session.score(read, step)

    def _logged(
        self,
        scored: Scored,
        log_extra: Callable[[str, list[Any]], None] | None,
        log_metric: Callable[[str, float], None] | None,
    ) -> list[float | None]:
        """The rewards, after they are in the trainer's logs."""
        if log_extra is not None:
            log_extra(f"{self.__name__}/reasoning", scored.reasoning)
        if log_metric is not None:
            for metric, value in scored.metrics.items():
                log_metric(f"{self.__name__}/{metric}", value)
        return scored.rewards

    @property
    def summary(self) -> RunSummary:
        """What this reward has judged so far in this process."""
        return self.session.summary

    def close(self) -> None:
        """Closes the judge; a later call opens it again. May be called twice."""
        self.session.close()

    def __repr__(self) -> str:
        return f"<FlexJudgeReward {self.__name__}>"


_named: dict[str, FlexJudgeReward] = {}


def named(name: str) -> FlexJudgeReward | None:
    """The judge of that name, one in each process; None if neither file nor environment declares it."""
    if name not in _named and name in declared_names(KNOWN_SETTINGS, os.environ):
        _named[name] = FlexJudgeReward(name=name)
    return _named.get(name)


flexjudge = FlexJudgeReward(name="flexjudge")
"""A ready instance for command lines and YAML files, configured by FLEXJUDGE_*."""
