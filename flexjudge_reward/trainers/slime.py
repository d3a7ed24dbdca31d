"""The judge as the reward of slime; settings from FLEXJUDGE_*.

    --custom-rm-path flexjudge_reward.trainers.slime.group_rm --group-rm        # whole groups
    --custom-rm-path flexjudge_reward.trainers.slime.rm                         # single samples, and evaluation
    --rm-type remote_rm --rm-url http://any:TOKEN@HOST:8900/rm                  # a server, no code of ours in slime

slime has no reward of None, but `Sample.remove_sample` (`slime/ray/rollout.py`), which takes a sample out of the loss.
A failed row gets its group's mean, so that it has no advantage. Where that is not known, as in a group in which nothing
was judged and for a row that comes alone, its sample is removed; its number, for the mean of its siblings, is `NEUTRAL`
or the mean of the latest scores (`rows.py: neutral`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from flexjudge_reward.trainers.rows import NEUTRAL, answer_of, meeting, neutral, numbers_only, row, with_numbers
from flexjudge_reward.types import Example


async def group_rm(args: Any, samples: Sequence[Any]) -> list[float]:
    """One number per sample of a group. Raises as `Rendezvous.score`; slime then ends the run.

    Args:
        samples: slime's, with `prompt` (a text or messages), `response`, `label`, `metadata`, `multimodal_inputs`.
    """
    judge, group = meeting(), object()
    numbers_only(judge.session.config, "slime")
    rows = await asyncio.to_thread(lambda: [_row(sample) for sample in samples])
    found = await asyncio.gather(*(judge.score(one, group, len(rows)) for one in rows))
    return _numbers(samples, [one.reward for one in found])


async def rm(args: Any, sample: Any) -> float | list[float]:
    """One number. Raises as `group_rm`.

    Args:
        sample: slime's, or a list of those that one rollout gave (`rollout/sglang_rollout.py`: generate_and_rm); each
            is judged alone, and each gets a number.
    """
    judge = meeting()
    numbers_only(judge.session.config, "slime")
    samples = sample if isinstance(sample, list) else [sample]
    rows = await asyncio.to_thread(lambda: [_row(one) for one in samples])
    found = await asyncio.gather(*map(judge.score, rows))
    numbers = _numbers(samples, [one.reward for one in found], neutral(judge.session))
    return numbers if isinstance(sample, list) else numbers[0]


def _numbers(samples: Sequence[Any], rewards: Sequence[float | None], instead: float = NEUTRAL) -> list[float]:
    for sample, number in zip(samples, rewards, strict=True):
        if number is None:
            sample.remove_sample = True
    return with_numbers(rewards, instead)


def _row(sample: Any) -> Example:
    media = getattr(sample, "multimodal_inputs", None) or {}
    columns = {**(getattr(sample, "metadata", None) or {}), "label": sample.label}
    columns |= {name: media[name] for name in ("images", "videos") if media.get(name)}
    answer = answer_of(sample.response, "")  # slime keeps the token that ends it
    return row(meeting().session.config, sample.prompt, answer, columns)
