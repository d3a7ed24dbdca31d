"""The judge as the agent file of OpenRLHF 0.9 to 0.11, for groups and images; settings from FLEXJUDGE_*.

    --train.agent_func_path "$(flexjudge path openrlhf-agent)"        # with FLEXJUDGE_NUM_GENERATIONS=8

One turn per sample. All samples of a prompt run in one process, where they meet and are judged together; OpenRLHF does
not say how many there are, so FLEXJUDGE_NUM_GENERATIONS has to be its `--rollout.n_samples_per_prompt`. A failed row
gets its group's mean, a group in which nothing was judged `NEUTRAL`; `judge_failed` in the logs is 1 for these.
"""

from __future__ import annotations

import logging
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor  # type: ignore[import-not-found]

from flexjudge_reward.errors import ConfigError, CostLimitReached, JudgementFailed
from flexjudge_reward.trainers.rows import NEUTRAL, answer_of, check_version, meeting, numbers_only, row
from flexjudge_reward.trainers.tasks import key_of

_log = logging.getLogger("flexjudge_reward")


class AgentExecutor(SingleTurnAgentExecutor):  # type: ignore[misc]
    """OpenRLHF's own single turn, with the reward of the judge."""

    def __init__(self) -> None:
        """Raises ConfigError: a wrong setting, or no group size."""
        super().__init__(None)
        check_version("openrlhf", "0.9", "0.11")
        self._judge = meeting()
        config = self._judge.session.config
        numbers_only(config, "OpenRLHF")
        if config.num_generations is None:
            raise ConfigError("set FLEXJUDGE_NUM_GENERATIONS to OpenRLHF's --rollout.n_samples_per_prompt")
        self._size = config.num_generations

    async def execute(
        self,
        prompt: str,
        label: Any,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> dict[str, Any]:
        """One sample with its reward. Raises as OpenRLHF's own turn, CostLimitReached and JudgementFailed."""
        out: dict[str, Any] = await super().execute(
            prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images
        )
        start, end = out["action_ranges"][0]
        tokenizer = getattr(hf_tokenizer, "tokenizer", hf_tokenizer)
        answer = answer_of(tokenizer.decode(out["observation_tokens"][start:end], skip_special_tokens=False), "")
        number = await self._reward(prompt, answer, {"label": label}, images)
        reward = NEUTRAL if number is None else number
        return {**out, "reward": reward, "scores": reward, "extra_logs": {"judge_failed": float(number is None)}}

    async def _reward(self, prompt: str, answer: str, columns: dict[str, Any], images: Any) -> float | None:
        try:
            shown = images if isinstance(images, list | tuple) else [images] if images is not None else []
            sample = row(self._judge.session.config, prompt, answer, {**columns, "images": list(shown)})
            # Equal prompts share a key: what arrives is cut into groups by its order.
            return (await self._judge.score(sample, key_of(sample), self._size)).reward
        except (CostLimitReached, JudgementFailed):
            raise
        except Exception as error:
            _log.error("no reward, %s instead: %s: %s", NEUTRAL, type(error).__name__, error)
            self._judge.session.count(error)  # a judge that is down ends the run
            return None
