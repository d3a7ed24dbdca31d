"""The judge as the reward file of OpenRLHF 0.9 to 0.11, for single text answers; settings from FLEXJUDGE_*.

    --reward.remote_url "$(flexjudge path openrlhf)"

OpenRLHF calls it with lists of one, in up to 32 threads per rollout actor; what arrives together is judged together. It
breaks later at None, so what has no reward gets the mean of the latest scores (`rows.py: neutral`), and `judge_failed`
in the logs is 1. Past a ceiling or too many failures it raises, and OpenRLHF ends the run. Groups and images need
`openrlhf_agent.py`; a format that compares answers is an error when the file is loaded. A judge elsewhere:
FLEXJUDGE_REWARD_SERVER, or the server itself as `--reward.remote_url http://any:TOKEN@HOST:8900/get_reward`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from flexjudge_reward.errors import ConfigError, CostLimitReached, JudgementFailed
from flexjudge_reward.trainers.rows import answer_of, check_version, meeting, neutral, numbers_only, row

_log = logging.getLogger("flexjudge_reward")
_judge = meeting()
check_version("openrlhf", "0.9", "0.11")
numbers_only(_judge.session.config, "OpenRLHF")
if _judge.session.judge.format.max_candidates > 1:
    raise ConfigError(
        f"{_judge.session.judge.format.described()} compares answers, and --reward.remote_url sees one at a time:"
        ' use --train.agent_func_path "$(flexjudge path openrlhf-agent)", or FLEXJUDGE_FORMAT=pointwise'
    )


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]) -> dict[str, Any]:
    """One reward per query, from 0 to 1. Raises CostLimitReached and JudgementFailed only.

    Args:
        queries: prompts with their answers, decoded with special tokens.
        labels: by `--data.label_key`; the reference, with FLEXJUDGE_REFERENCE_COLUMN=label.
    """
    import torch

    found = [_reward(*sample) for sample in zip(queries, prompts, labels, strict=False)]
    numbers = torch.tensor([neutral(_judge.session) if one is None else one for one in found])
    failed = torch.tensor([float(one is None) for one in found])
    return {"rewards": numbers, "scores": numbers.clone(), "extra_logs": {"judge_failed": failed}}


def _reward(query: str, prompt: str, label: Any) -> float | None:
    try:
        config = _judge.session.config
        return _judge.submit(row(config, prompt, answer_of(query, prompt), {"label": label})).result().reward
    except (CostLimitReached, JudgementFailed):
        raise
    except Exception as error:
        _log.error("no reward, the mean of the latest instead: %s: %s", type(error).__name__, error)
        _judge.session.count(error)  # a judge that is down ends the run
        return None
