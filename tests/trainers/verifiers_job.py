"""Scores rollouts as verifiers does, with the judge as a plugged reward; run with verifiers' environment.

    python verifiers_job.py RESULT.json

The rollouts are given: what a harness records of its agent needs a model of its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import verifiers.v1 as vf
from PIL import Image
from verifiers.v1.configs.task import TaskConfig
from verifiers.v1.graph import MessageNode
from verifiers.v1.trace import AgentInfo, TraceTask
from verifiers.v1.types import AssistantMessage, SystemMessage, ToolCall, ToolMessage, UserMessage

from flexjudge_reward.media.base import Media

REWARD = "flexjudge_reward.trainers.rollouts:verifiers_reward"


def rollout(task: Any, answer: str) -> Any:
    """A trace with a tool call and an image that came of it."""
    image = {"type": "image_url", "image_url": {"url": Media.of("image", Image.new("RGB", (56, 56))).data_uri()}}
    call = ToolCall(id="1", name="look", arguments='{"place": "left"}')
    messages = [
        SystemMessage(content="Be brief."),
        UserMessage(content=task.data.prompt),
        AssistantMessage(content=None, tool_calls=[call]),
        ToolMessage(tool_call_id="1", content=[{"type": "text", "text": "the left"}, image]),
        AssistantMessage(content=answer),
    ]
    nodes = [MessageNode(parent=at - 1 if at else None, message=one) for at, one in enumerate(messages)]
    agent = AgentInfo(config=vf.AgentConfig())
    return vf.Trace(task=TraceTask(type="Task", data=task.data), agent=agent, nodes=nodes)


async def main() -> None:
    """Scores four rollouts at the same time; one cannot be judged."""
    config = TaskConfig(rewards={"flexjudge": {"fn": REWARD, "weight": 2.0}})
    task = vf.Task(vf.TaskData(prompt="What is top left?", image="a/container:image"), config)
    traces = [rollout(task, f"red star {number}") for number in range(1, 5)]
    errors = await asyncio.gather(*(task.score(trace) for trace in traces), return_exceptions=True)
    scores = [one.rewards["flexjudge"] and one.rewards["flexjudge"].score for one in traces]
    found = {"scores": scores, "rewards": [one.reward for one in traces], "errors": [repr(one) for one in errors]}
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
