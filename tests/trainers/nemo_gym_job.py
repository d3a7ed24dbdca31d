"""A resources server of NeMo Gym whose `verify` is the judge's; run with NeMo Gym's environment.

python nemo_gym_job.py RESULT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

from fastapi.testclient import TestClient
from nemo_gym.base_resources_server import (
    BaseResourcesServerConfig,
    BaseVerifyRequest,
    BaseVerifyResponse,
    SimpleResourcesServer,
)
from nemo_gym.server_utils import ServerClient
from PIL import Image

from flexjudge_reward.media.base import Media
from flexjudge_reward.trainers.rollouts import nemo_gym_reward


class Judged(SimpleResourcesServer):
    """As recipes/trainers/environments.md has it."""

    async def verify(self, body: BaseVerifyRequest) -> BaseVerifyResponse:
        """The reward."""
        return BaseVerifyResponse(**body.model_dump(), reward=await nemo_gym_reward(body))


def request(answer: str) -> dict[str, object]:
    """What an agent of NeMo Gym asks a resources server at the end of a rollout."""
    image = Media.of("image", Image.new("RGB", (56, 56))).data_uri()
    shown = [
        {"type": "input_image", "image_url": image, "detail": "auto"},
        {"type": "input_text", "text": "What is top left?"},
    ]
    wrote = [
        {"type": "reasoning", "id": "1", "summary": [{"type": "summary_text", "text": "I look."}]},
        {"type": "function_call", "id": "2", "call_id": "2", "name": "look", "arguments": '{"place": "left"}'},
        {"type": "function_call_output", "call_id": "2", "output": "the left"},
        {
            "type": "message",
            "id": "3",
            "role": "assistant",
            "content": [{"type": "output_text", "text": answer, "annotations": []}],
        },
    ]
    made = {"id": "r", "created_at": 0.0, "model": "m", "object": "response", "parallel_tool_calls": False}
    return {
        "responses_create_params": {"input": [{"role": "user", "content": shown}]},
        "response": {**made, "tool_choice": "none", "tools": [], "output": wrote},
    }


def main() -> None:
    """Verifies four rollouts; one cannot be judged."""
    config = BaseResourcesServerConfig(name="judged", host="127.0.0.1", port=1, entrypoint="app.py")
    server = Judged(config=config, server_client=MagicMock(spec=ServerClient))  # the other servers are not asked
    client = TestClient(server.setup_webserver(), raise_server_exceptions=False)
    answers = [client.post("/verify", json=request(f"red star {number}")) for number in range(1, 5)]
    found = [(one.status_code, one.json()["reward"] if one.status_code == 200 else None) for one in answers]
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
