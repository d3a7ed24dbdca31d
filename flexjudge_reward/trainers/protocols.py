"""The protocols of trainers that a reward server speaks beside its own: how a request is read, how it is answered.

    /get_reward   OpenRLHF       {"query": [..], "prompts": [..], "labels": [..]} -> {"rewards", "scores", "extra_logs"}
    /rm           slime          {"prompt", "response", "label"} -> a number
    /scores       LLaMA-Factory  {"messages": [whole text, ..]} -> {"scores": [..]}

None has groups or failures. Rows of one request with equal prompts are a group, so a failed row gets its group's mean;
without one the mean of the latest scores (`rows.py: neutral`). OpenRLHF gets a log value `judge_failed` of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flexjudge_reward.data.content import content_of
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.judge.config import RewardConfig
from flexjudge_reward.trainers.rows import answer_of, row, split_conversation
from flexjudge_reward.trainers.tasks import key_of
from flexjudge_reward.trainers.wire import media_of
from flexjudge_reward.types import Example


class Protocol(NamedTuple):
    """How one trainer asks."""

    rows: Callable[[Mapping[str, Any], RewardConfig], list[Example]]
    """The rows of a request. Raises ConfigError."""
    answer: Callable[[Sequence[float], Sequence[bool]], Any]
    """The answer, from the numbers of the rows and whether they failed."""


def groups_of(rows: Sequence[Example]) -> list[list[int]]:
    """The rows of each prompt, by their index."""
    groups: dict[str, list[int]] = {}
    for index, one in enumerate(rows):
        groups.setdefault(key_of(one), []).append(index)
    return [*groups.values()]


def _openrlhf_rows(body: Mapping[str, Any], config: RewardConfig) -> list[Example]:
    queries = _texts(body, "query")
    prompts = _texts(body, "prompts", len(queries)) if body.get("prompts") else [""] * len(queries)
    labels = body.get("labels") or [None] * len(queries)
    if not isinstance(labels, list) or len(labels) != len(queries):
        raise ConfigError(f"'labels' must be a list of {len(queries)}, as 'query'")
    return [
        row(config, prompt, answer_of(query, prompt), {"label": label})
        for query, prompt, label in zip(queries, prompts, labels, strict=True)
    ]


def _openrlhf_answer(numbers: Sequence[float], failed: Sequence[bool]) -> dict[str, Any]:
    return {"rewards": numbers, "scores": numbers, "extra_logs": {"judge_failed": [float(one) for one in failed]}}


def _slime_rows(body: Mapping[str, Any], config: RewardConfig) -> list[Example]:
    if not isinstance(body.get("response"), str) or "prompt" not in body:
        raise ConfigError("a request has 'prompt', a text or messages, and 'response', a text")
    prompt = [{"role": "user", "content": list(content_of(body["prompt"], "prompt", media_of))}]
    return [row(config, prompt, answer_of(body["response"], ""), {"label": body.get("label")})]


def _llama_factory_rows(body: Mapping[str, Any], config: RewardConfig) -> list[Example]:
    return [row(config, *split_conversation(text), {}) for text in _texts(body, "messages")]


def _texts(body: Mapping[str, Any], name: str, count: int | None = None) -> list[str]:
    texts = body.get(name)
    right = isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)
    if not right or (count is not None and len(texts or ()) != count):
        raise ConfigError(f"{name!r} must be a list of {count or 'one or more'} texts")
    return list(texts or ())


PROTOCOLS = {
    "/get_reward": Protocol(_openrlhf_rows, _openrlhf_answer),
    "/rm": Protocol(_slime_rows, lambda numbers, _: numbers[0]),
    "/scores": Protocol(_llama_factory_rows, lambda numbers, _: {"scores": numbers}),
}
"""By path."""
