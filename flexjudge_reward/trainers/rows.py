"""What the adapters of trainers share that hand over one sample at a time, as text.

A trainer without an "I do not know" needs a number for every sample. A failed row gets its group's mean where the group
is known; `NEUTRAL`, the middle of the scale, where nothing of its group was judged. Where rows come alone it gets the
mean of the latest scores (`neutral`): on average that is its siblings' mean, which is not known.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from typing import Any

from flexjudge_reward.data.messages import examples
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.base import mean
from flexjudge_reward.judge.config import RewardConfig
from flexjudge_reward.trainers.rendezvous import Rendezvous
from flexjudge_reward.trainers.session import RewardSession
from flexjudge_reward.trainers.tasks import read_columns
from flexjudge_reward.types import Example

NEUTRAL = 0.5
_log = logging.getLogger("flexjudge_reward")
_meeting = threading.Lock()
_END = re.compile(r"\s*(<\|im_end\|>|<\|endoftext\|>|<\|eot_id\|>|<end_of_turn>|<eos>|</s>)\s*\Z")
_BEGIN = re.compile(r"(<[\w|]{1,40}>|\s)*")
_ASSISTANT = re.compile(
    r"<\|im_start\|>assistant\n|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n|<start_of_turn>model\n|\[/INST\]"
)


def row(config: RewardConfig, prompt: Any, completion: Any, columns: Mapping[str, Any]) -> Example:
    """One sample as a row, with the columns that `config` names. Raises ConfigError."""
    return examples([prompt], [completion], {name: [value] for name, value in columns.items()}, read_columns(config))[0]


def answer_of(query: str, prompt: str) -> str:
    """What the policy wrote: a decoded sequence without its prompt and without the tokens that end it.

    Special tokens may go before the prompt, such as <s>. Raises ConfigError: the sequence does not begin with the
    prompt, so a judge would take both for the answer.
    """
    before, there, answer = query.partition(prompt) if prompt else ("", "", query)
    if prompt and not (there and _BEGIN.fullmatch(before)):
        raise ConfigError(f"a query does not begin with its prompt {prompt[:80]!r}; it begins {query[:80]!r}")
    while found := _END.search(answer):
        answer = answer[: found.start()]
    return answer


def split_conversation(text: str) -> tuple[str, str]:
    """The prompt and the answer of a whole decoded conversation, at the beginning of the last assistant turn."""
    found = list(_ASSISTANT.finditer(text))
    at = found[-1].end() if found else 0
    return text[:at], answer_of(text[at:], "")


@cache
def _shared(**settings: Any) -> Rendezvous:
    return Rendezvous(RewardSession(settings=settings))


def meeting(**settings: Any) -> Rendezvous:
    """The judge of this process, where single rows meet: one for equal settings, made at the first call."""
    with _meeting:
        return _shared(**settings)


def numbers_only(config: RewardConfig, trainer: str) -> None:
    """Raises ConfigError where a policy gives None, which `trainer` counts as a number."""
    for name in ("on_failure", "on_candidate_failure"):
        if getattr(config, name) == "abstain":
            other = "group_mean" if name == "on_failure" else "lowest or mean"
            raise ConfigError(
                f"{name}='abstain' does not work in {trainer}, which has no reward of None: use {other}"
                f" (FLEXJUDGE_{name.upper()})"
            )


def with_numbers(rewards: Sequence[float | None], instead: float = NEUTRAL) -> list[float]:
    """`instead` for None. In a group None is left where nothing was judged: all its rows get it, so none gains."""
    return [instead if number is None else number for number in rewards]


def neutral(session: RewardSession) -> float:
    """What a failed row that came alone gets: the mean of the session's latest scores, `NEUTRAL` before the first."""
    return mean([*session.recent]) if session.recent else NEUTRAL


@cache
def check_version(package: str, low: str, high: str) -> None:
    """Warns once if the installed `package` is none of the releases from `low` to `high`, as far as both ends say."""
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        return
    if not _release(low) <= _release(found)[: len(_release(high))] <= _release(high):
        _log.warning("%s %s is not tested with this adapter, which knows %s to %s", package, found, low, high)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
