"""The judge inside the environments of verifiers (prime-rl) and NeMo Gym; settings from FLEXJUDGE_*.

    verifiers 0.4    --env.taskset.task.rewards.flexjudge.fn flexjudge_reward.trainers.rollouts:verifiers_reward
    NeMo Gym 0.4     class Judged(SimpleResourcesServer):
                         async def verify(self, body: BaseVerifyRequest) -> BaseVerifyResponse:
                             return BaseVerifyResponse(**body.model_dump(), reward=await nemo_gym_reward(body))

Both see one rollout at a time, with its tool calls and images; what runs at the same time is judged together. They know
no group, so a format that compares answers is an error. A rollout that cannot be judged raises: verifiers tries it
again or leaves it out (`verifiers/v1/errors.py: boundary`), NeMo Gym's server answers 500. Neither takes it for a 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flexjudge_reward.errors import ConfigError, JudgementFailed
from flexjudge_reward.trainers.rows import check_version, meeting, row
from flexjudge_reward.types import Failure


async def verifiers_reward(task: Any, trace: Any) -> float:
    """The reward of a rollout, 0 to 1. Raises ConfigError, JudgementFailed, and as `Rendezvous.score`.

    Args:
        task: verifiers' `TaskData`; fields that a setting names, such as `reference_column`, are shown.
        trace: verifiers' `Trace`; the messages of its last branch are judged.
    """
    turns = [_message(one.model_dump(exclude_none=True)) for one in trace.messages]
    wrote = next((number for number, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))
    return await _reward(turns[:wrote], turns[wrote:], task, "verifiers")


async def nemo_gym_reward(body: Any) -> float:
    """The same of NeMo Gym's `BaseVerifyRequest`, whose further fields are the columns that settings name."""
    asked, wrote = body.responses_create_params, body.response.output
    given = [{"role": "user", "content": asked.input}] if isinstance(asked.input, str) else _plain(asked.input)
    system = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    return await _reward(_turns([*system, *given]), _turns(_plain(wrote)), body, "nemo-gym")


async def _reward(prompt: Sequence[Any], completion: Sequence[Any], holder: Any, package: str) -> float:
    check_version(package, "0.4", "0.4")
    judge = meeting()
    config, format = judge.session.config, judge.session.judge.format
    if format.max_candidates > 1:
        raise ConfigError(f"{format.described()} compares answers, and here each rollout is alone: format='pointwise'")
    named = filter(None, (config.question_column, config.reference_column, config.rubric_column))
    columns = {name: getattr(holder, name) for name in named if hasattr(holder, name)}
    sample = await asyncio.to_thread(row, config, [*prompt], [*completion], columns)
    found = await judge.score(sample)
    if found.reward is None:
        assert isinstance(found.outcome, Failure)
        raise JudgementFailed(f"this rollout has no reward: {found.outcome.kind}: {found.outcome.detail}")
    return found.reward


def _plain(items: Iterable[Any]) -> list[dict[str, Any]]:
    return [dict(one) if isinstance(one, Mapping) else one.model_dump(exclude_none=True) for one in items]


def _turns(items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Items of OpenAI's Responses API as messages; reasoning belongs to what follows it."""
    turns: list[dict[str, Any]] = []
    thought: dict[str, Any] = {}
    for item in items:
        match item.get("type", "message"):
            case "reasoning":
                thought = {"reasoning_content": "\n".join(one["text"] for one in item.get("summary", ()))}
                continue
            case "function_call":
                call = {"type": "function", "function": {name: item[name] for name in ("name", "arguments")}}
                turns.append({"role": "assistant", "content": "", "tool_calls": [call], **thought})
            case "function_call_output":
                turns.append(_message({"role": "tool", "content": item["output"]}))
            case "message":
                turns.append({**_message(item), **(thought if item["role"] == "assistant" else {})})
            case other:
                raise ConfigError(f"an item of type {other!r} is not known to this adapter")
        thought = {}
    return [*turns, {"role": "assistant", "content": "", **thought}] if thought else turns


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content") or ""
    parts = content if isinstance(content, str) else [_part(one) for one in content]
    return {**message, "content": parts}


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part of either API as a text or an image; an address is not fetched and fails its rollout."""
    if (image := part.get("image_url")) is not None:
        return {"type": "image", "image": image["url"] if isinstance(image, Mapping) else image}
    return {"type": "text", "text": part.get("text") or part.get("refusal") or ""}
