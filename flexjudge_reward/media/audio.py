"""Audio: a row may hold it, and no engine can show it to a judge yet, so it fails its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flexjudge_reward.errors import MediaError
from flexjudge_reward.media.modality import Limits, Loaded, Modality, Roots


class AudioModality(Modality):
    """An audio clip."""

    name, channel, is_file = "audio", True, True

    def load(self, source: object, options: Mapping[str, Any], roots: Roots, limits: Limits) -> Loaded:
        """Always raises MediaError."""
        raise MediaError("audio cannot be judged yet; images, videos and molecules can")
