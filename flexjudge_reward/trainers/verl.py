"""The judge as a reward of verl 0.8 to 0.9, v1 trainer and the older one; settings from FLEXJUDGE_* or verl's config.

    reward.reward_manager.source=importlib reward.reward_manager.name=FlexJudgeRewardManager \\
        reward.reward_manager.module.path=pkg://flexjudge_reward.trainers.verl           # images and groups
    reward.custom_reward_function.path=pkg://flexjudge_reward.trainers.verl \\
        reward.custom_reward_function.name=compute_score                                 # single answers, text only

Settings beside the environment: `+reward.flexjudge.format=listwise` for the manager, `+reward.custom_reward_function.
reward_kwargs.rubric=...` for the function. verl spreads samples over `reward.num_workers` processes; all ask one named
Ray actor, where rows are batched and groups meet by `uid`. A group counts as whole after FLEXJUDGE_VERL_IDLE seconds
without a further row, because a validation has other sizes than the training, and nothing says which it is.

A failed row gets what the policies make of it among its siblings. Where that is nothing, the sample is left out: in the
v1 trainer an error does just that. With FLEXJUDGE_VERL_ABSTAIN=false, and in the older trainer, which an error ends, it
gets 0.5, as its whole group does; from the function, which knows no group, the mean of the latest scores.

The judge may be one that verl hosts (`reward.reward_model`), if no other is configured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from flexjudge_reward.errors import ConfigError, JudgementFailed
from flexjudge_reward.judge.config import trainer_config
from flexjudge_reward.trainers.rows import check_version, numbers_only, row
from flexjudge_reward.trainers.session import RewardSession
from flexjudge_reward.trainers.verl_actor import ask
from flexjudge_reward.types import Example

try:
    from verl.experimental.reward_loop.reward_manager.base import (  # type: ignore[import-not-found]
        RewardManagerBase,
    )
except ImportError:  # the function needs none
    RewardManagerBase = object


class _Client:
    """Asks the actor with one set of settings."""

    def __init__(self, settings: Mapping[str, Any], router: str | None, abstains: bool = True) -> None:
        check_version("verl", "0.8", "0.9")
        given = dict(settings)
        session = RewardSession(settings=given)
        if router and not session.config.reward_server and "base_url" not in given:
            given["base_url"] = f"http://{router}/v1"  # verl names neither the scheme nor the path
        self.config, self._settings = session.config, tuple(sorted(given.items()))
        self._abstains = abstains and trainer_config().verl_abstain
        if not self._abstains:
            numbers_only(self.config, "verl's older trainer")

    async def reward(self, sample: Example, uid: str | None, size: int) -> tuple[float, dict[str, float]]:
        """The reward and its notes, with the same names for every row. Raises JudgementFailed to leave a sample out."""
        number, failed, instead = await ask(self._settings, sample, uid, size)
        if number is None and self._abstains:
            raise JudgementFailed(f"no reward, and verl leaves this sample out: {failed}")
        reward = instead if number is None else number
        # They become columns of the batch, where a name of verl's own would replace verl's.
        return reward, {"flexjudge_score": reward, "flexjudge_failed": float(bool(failed))}


_client = cache(lambda settings, router: _Client(dict(settings), router))


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
    **settings: Any,
) -> dict[str, float]:
    """The reward of one answer, to the question in `extra_info`.

    Raises ConfigError if there is no question, JudgementFailed to leave the sample out.
    """
    client = _client(tuple(sorted(settings.items())), reward_router_address)
    name, known = client.config.question_column or "question", dict(extra_info or {})
    if not isinstance(known.get(name), str):
        raise ConfigError(
            f"verl's function sees no prompt, and extra_info has no text {name!r}: add it to the data set, or use the"
            " reward manager (reward.reward_manager.name=FlexJudgeRewardManager)"
        )
    sample = row(client.config, known[name], solution_str, {**known, "ground_truth": ground_truth})
    number, notes = await client.reward(sample, None, 1)
    return {"score": number, **notes}


class FlexJudgeRewardManager(RewardManagerBase):  # type: ignore[misc]
    """Rewards with images, and of whole groups."""

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        """Raises ConfigError: a wrong setting."""
        super().__init__(config, tokenizer, compute_score)
        self._size = int(config.actor_rollout_ref.rollout.n)
        given = {str(name): value for name, value in (config.reward.get("flexjudge") or {}).items()}
        self._client = _Client(given, reward_router_address, bool(config.trainer.get("use_v1", False)))

    async def run_single(self, data: Any) -> dict[str, Any]:
        """The reward of one sample, of several outputs the last. Raises JudgementFailed to leave it out."""
        item = data[-1:][0]
        ids, known = item.batch["responses"], item.non_tensor_batch
        valid = int(item.batch["attention_mask"][-ids.shape[-1] :].sum())
        text = await asyncio.to_thread(self.tokenizer.decode, ids[:valid], skip_special_tokens=True)
        truth = (known.get("reward_model") or {}).get("ground_truth")
        columns = {**dict(known.get("extra_info") or {}), "ground_truth": truth}
        sample = await asyncio.to_thread(row, self._client.config, _turns(known["raw_prompt"]), text, columns)
        number, notes = await self._client.reward(sample, str(known["uid"]), self._size)
        return {"reward_score": number, "reward_extra_info": notes}


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """verl's `raw_prompt` as plain lists: it comes as a list or as an array, of parts too."""
    contents = [one["content"] for one in messages]
    plain = [str(content) if isinstance(content, str) else list(content) for content in contents]
    return [{"role": str(one["role"]), "content": content} for one, content in zip(messages, plain, strict=True)]
