"""The judge as a reward of ms-swift 4.4 to 4.6, on any number of ranks; settings from FLEXJUDGE_*.

    swift rlhf --rlhf_type grpo ... --external_plugins "$(flexjudge path ms-swift)" --reward_funcs flexjudge

ms-swift puts the folder of this file first on `sys.path`, so nothing else is in it. It counts None as 0 beside another
reward: a failed row gets the mean of its group, a group in which nothing was judged `NEUTRAL`, so neither has an
advantage. Files need FLEXJUDGE_MEDIA_ROOT. System turns, which templates add, are not shown to the judge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from swift.rewards import ORM, orms  # type: ignore[import-not-found]

from flexjudge_reward.trainers.rows import check_version, numbers_only, with_numbers
from flexjudge_reward.trainers.trl import FlexJudgeReward
from flexjudge_reward.trainers.window import check_window

_PLACE = re.compile(r"<(image|video|audio)>")


def question(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The turns before the completion, with `<image>` in their texts as places for the images of the row."""
    turns = [turn for turn in messages[:-1] if turn["role"] != "system"]
    return [{**turn, "content": _parts(turn["content"])} for turn in turns]


def _parts(content: Any) -> Any:
    if not isinstance(content, str):
        return content
    pieces = _PLACE.split(content)  # texts, and between them the names of places
    texts, kinds = pieces[::2], pieces[1::2]
    parts: list[Any] = [texts[0]]
    for kind, text in zip(kinds, texts[1:], strict=True):
        parts += [{"type": kind}, text]
    return [part for part in parts if part] if kinds else content


class FlexJudge(ORM):  # type: ignore[misc]
    """One judge per name; ms-swift names it after this class in its logs."""

    def __init__(self, args: Any = None, **kwargs: Any) -> None:
        """Raises ConfigError: a wrong setting, before the first sample."""
        super().__init__(args, **kwargs)
        check_version("ms-swift", "4.4", "4.6")
        self.reward = FlexJudgeReward(name="flexjudge", num_generations=getattr(args, "num_generations", None))
        numbers_only(self.reward.session.config, "ms-swift")
        check_window(self.reward.session.judge, args)

    def __call__(self, completions: Sequence[Any], **rows: Any) -> list[float]:
        """One number per completion, as `FlexJudgeReward`."""
        prompts = [question(messages) for messages in rows.pop("messages")]
        return with_numbers(self.reward(prompts, completions, **rows))


orms["flexjudge"] = FlexJudge
