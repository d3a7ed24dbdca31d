"""The judge as a TRL reward function: `GRPOTrainer(reward_funcs=[FlexJudgeReward()])`.

Works in GRPOTrainer and RLOOTrainer of TRL 1.6 to 1.16, and pickles into AsyncGRPOTrainer's worker. It loads nothing
until its first call and never imports trl: the contract is a call signature.

    trl grpo --reward_funcs flexjudge_reward.trainers.trl.flexjudge        # settings from FLEXJUDGE_*
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flexjudge_reward.data.messages import examples
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.summary import RunSummary
from flexjudge_reward.trainers.session import RewardSession, next_name


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
            name: of the reward in the trainer's logs; by default each instance has its own.
            settings: fields of `JudgeConfig` (model, engine, base_url, format, rubric, record, ...) and `RewardConfig`
                (on_failure, on_candidate_failure, max_failure_rate, question_column, reference_column, rubric_column,
                media_root, completion, num_generations, deadline).

        Raises:
            ConfigError: a wrong setting, or a judge together with settings of a judge.
        """
        self.__name__ = name or next_name()
        self.session = RewardSession(judge, settings)

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
        step = getattr(columns.get("trainer_state"), "global_step", None)
        scored = self.session.score(lambda names: examples(prompts, completions, columns, names), step)
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


flexjudge = FlexJudgeReward(name="flexjudge")
"""A ready instance for command lines and YAML files, configured by FLEXJUDGE_*."""
