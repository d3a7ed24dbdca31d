"""The judge as the reward of slime; settings from FLEXJUDGE_*.

    --custom-rm-path flexjudge_reward.trainers.slime.group_rm --group-rm        # whole groups
    --custom-rm-path flexjudge_reward.trainers.slime.rm                         # single samples, and evaluation
    --rm-type remote_rm --rm-url http://any:TOKEN@HOST:8900/rm                  # a server, no code of ours in slime

slime has no reward of None: a failed row gets its group's mean, a group in which nothing was judged `NEUTRAL`, and a
row that comes alone the mean of the latest scores (`rows.py: neutral`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from flexjudge_reward.trainers.rows import meeting, neutral, numbers_only, row, with_numbers
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
    return with_numbers([one.reward for one in found])


async def rm(args: Any, sample: Any) -> float:
    """One number. Raises as `group_rm`."""
    session = meeting().session
    numbers_only(session.config, "slime")
    found = await meeting().score(await asyncio.to_thread(_row, sample))
    return with_numbers([found.reward], neutral(session))[0]


def _row(sample: Any) -> Example:
    media = getattr(sample, "multimodal_inputs", None) or {}
    columns = {**(getattr(sample, "metadata", None) or {}), "label": sample.label}
    columns |= {name: media[name] for name in ("images", "videos") if media.get(name)}
    return row(meeting().session.config, sample.prompt, sample.response, columns)
