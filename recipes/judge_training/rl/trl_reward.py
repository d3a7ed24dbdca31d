"""The rewards of `rewards.py` as a reward function of TRL; for another trainer, write this much again.

It logs, per call, what a mean hides: right answers by the letter of the best candidate (`right/B`), how often a letter
is the verdict (`said/B`), right answers by task (`right/old`), and the share of replies that can be read (`formed`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from flexjudge_recipes.judge_training.rl import rewards

from flexjudge_reward import ConfigError, Format, Scale, Verdict
from flexjudge_reward.engines.model import Chat
from flexjudge_reward.engines.replies import plain
from flexjudge_reward.formats.builtin import LETTERS


class TrlReward:
    """One reward per completion, in [0, 1]; None where the judge is not to blame."""

    def __init__(self, reward: str, format: Format, limit: int, chat: Chat | None = None) -> None:
        """
        Args:
            reward: one of `rewards.REWARDS`.
            limit: the trainer's `max_completion_length`; a reply that reaches it earns nothing.
            chat: of the judge, to read replies as its engines do. A trainer leaves out control tokens, which the marks
                of a thought are in some families.
        """
        self.__name__, self.format, self.limit, self.chat = reward, format, limit, chat

    def __call__(
        self,
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        scores: Sequence[Sequence[float]],
        task: Sequence[str],
        twin: Sequence[int],
        scale: Sequence[Sequence[float]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """Raises ConfigError: the two orders of a pair are not in one call."""
        scales = [None] * len(scores) if scale is None else [Scale(low, high, bool(d)) for low, high, d in scale]
        verdicts = [
            rewards.read(self.format, len(true), self._text(completion, ids), len(ids), self.limit, named)
            for completion, ids, true, named in zip(completions, completion_ids, scores, scales, strict=True)
        ]
        if log_metric is not None:
            for name, value in _shares(verdicts, scores, task).items():
                log_metric(name, value)
        if self.__name__ == "both_orders":
            return _both(verdicts, scores, twin)
        return [rewards.earned(self.__name__, verdict, true) for verdict, true in zip(verdicts, scores, strict=True)]

    def _text(self, completion: Any, ids: Sequence[int]) -> str:
        if self.chat is not None:
            whole = self.chat.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            return plain(whole.removesuffix(self.chat.tokenizer.eos_token or ""), self.chat.special)
        return completion if isinstance(completion, str) else str(completion[0]["content"])


def _both(verdicts: Sequence[Verdict], scores: Sequence[Sequence[float]], twin: Sequence[int]) -> list[float | None]:
    """The n-th draw of one order is paired with the n-th of the other; both get what the pair earns."""
    groups: dict[int, list[list[int]]] = defaultdict(lambda: [[], []])
    for index, (number, true) in enumerate(zip(twin, scores, strict=True)):
        groups[number][rewards.best(true)].append(index)
    earned: list[float | None] = [None] * len(verdicts)
    for first, second in groups.values():
        if len(first) != len(second):
            raise ConfigError(
                f"both orders of a pair must be in one call, found {len(first)} and {len(second)} draws of them:"
                " per_device_train_batch_size must be a multiple of twice num_generations"
            )
        for one, other in zip(first, second, strict=True):
            earned[one] = earned[other] = rewards.both_orders(verdicts[one], verdicts[other], scores[one])
    return earned


def _shares(verdicts: Sequence[Verdict], scores: Sequence[Sequence[float]], task: Sequence[str]) -> dict[str, float]:
    values: dict[str, list[bool]] = defaultdict(list)
    for verdict, true, name in zip(verdicts, scores, task, strict=True):
        gold = rewards.picked(true)
        said = None if verdict.scores is None else rewards.picked(verdict.scores)
        values["formed"].append(verdict.scores is not None)
        if gold is not None:
            values[f"right/{LETTERS[gold]}"].append(said == gold)
            values[f"right/{name}"].append(said == gold)
        for letter in range(len(true)):
            values[f"said/{LETTERS[letter]}"].append(said == letter)
    return {name: sum(each) / len(each) for name, each in values.items()}
