"""For ms-swift: the template of the embedded policy, and a note of every call of the reward.

ms-swift has Qwen2.5-VL's own ids as constants of its template. Alone in its folder, which ms-swift puts on `sys.path`.
"""

from __future__ import annotations

import json
import os
from typing import Any

from swift.rewards import orms
from swift.template import TEMPLATE_MAPPING
from swift.template.templates.qwen import Qwen2VLTemplate

Qwen2VLTemplate.image_token_id, Qwen2VLTemplate.video_token_id = 512, 513
TEMPLATE_MAPPING["qwen2_5_vl"].default_system = None  # the policy never saw a system turn
_Judge = orms["flexjudge"]


class FlexJudge(_Judge):  # type: ignore[misc, valid-type]
    """The adapter, with what it got and gave in a file per rank."""

    def __call__(self, completions: Any, **rows: Any) -> list[float]:
        """As the adapter."""
        messages, images = list(rows["messages"]), list(rows["images"])
        numbers = super().__call__(completions, **rows)
        with open(f"calls.{os.environ.get('RANK', '0')}.jsonl", "a", encoding="utf-8") as file:
            for row in zip(messages, images, completions, numbers, strict=True):
                file.write(json.dumps(row, default=str) + "\n")
        return numbers


orms["flexjudge"] = FlexJudge
