"""Whether a trainer leaves its GPU to a judge while it computes rewards: what `colocate` needs.

TRL puts the policy's vLLM to sleep at the end of `generate` and wakes it at the next weight sync, if
`vllm_enable_sleep_mode` is set (`trl/generation/vllm_generation.py`, 1.16); ms-swift does so by `sleep_level`. In
between they call the rewards, on every rank. Without vLLM in the trainer's process nothing generates meanwhile either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flexjudge_reward.data.messages import Columns
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.trainers.awaiting import loop_is_the_trainers, runs_in_a_loop
from flexjudge_reward.types import Example

if TYPE_CHECKING:
    from flexjudge_reward.trainers.session import RewardSession

NO_WINDOW = (
    "colocate needs a trainer that computes rewards while its policy sleeps, and calls them on every rank: TRL's GRPO"
    " and RLOO, ms-swift. Rewards that arrive here one by one, or while the policy generates, need a judge on a server:"
    " base_url= (verl puts a judge beside the policy itself: reward.reward_model.enable)"
)


def check_window(judge: Judge, arguments: Any) -> None:
    """Raises ConfigError if the judge shares the GPU and the trainer's arguments leave it none. `None` says nothing."""
    if not judge.engine.needs_window:
        return
    if runs_in_a_loop() and loop_is_the_trainers():  # AsyncGRPO: rollouts and rewards at the same time
        raise ConfigError(NO_WINDOW)
    swift = hasattr(arguments, "sleep_level")  # its arguments have TRL's, too, and do not use them
    name, value = ("sleep_level", "1") if swift else ("vllm_enable_sleep_mode", "True")
    beside = getattr(arguments, "use_vllm", False) and getattr(arguments, "vllm_mode", "") == "colocate"
    if beside and not getattr(arguments, name, False):
        raise ConfigError(
            f"colocate: the policy's vLLM stays on the GPU while rewards are computed: set its {name}={value}, or give"
            " the judge a server of its own (base_url=)"
        )


def in_window(
    session: RewardSession, log: Any, read: Callable[[Columns], list[Example]]
) -> Callable[[Columns], list[Example]]:
    """`read`, behind `check_window`, so that its error is raised on all ranks; `log` is a method of TRL's trainer."""

    def checked(columns: Columns) -> list[Example]:
        check_window(session.judge, getattr(getattr(log, "__self__", None), "args", None))
        return read(columns)

    return checked
