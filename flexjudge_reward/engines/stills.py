"""Videos as their frames: for a model whose engine cannot give it a video, or not a video's own frame rate."""

from __future__ import annotations

from dataclasses import replace

from flexjudge_reward.media.base import Media
from flexjudge_reward.types import Part, Prompt, Untrusted

STILLS = "frames as images"
"""What a record says of them."""


def with_stills(prompt: Prompt) -> Prompt:
    """The same prompt with a line about each video and its frames as images in its place. Raises MediaError."""
    if all(media.kind != "video" for media in prompt.shown):
        return prompt
    messages = []
    for message in prompt.messages:
        parts: list[Part] = []
        for part in message.parts:
            shown = part.as_judge_input() if isinstance(part, Media) else (part,)
            videos = any(isinstance(one, Media) and one.kind == "video" for one in shown)
            # A text of a modality's own is as untrusted as its source.
            safe = [Untrusted(one) if isinstance(one, str) and isinstance(part, Media) else one for one in shown]
            parts += [still for one in safe for still in _stills(one)] if videos else [part]
        messages.append(replace(message, parts=tuple(parts)))
    return Prompt(tuple(messages))


def _stills(part: Part) -> list[Part]:
    if not isinstance(part, Media) or part.kind != "video":
        return [part]
    frames = part.images()
    said = f"A video of {len(frames)} frames, {part.fps:g} per second:"
    return [said, *(Media.image(frame) for frame in frames), "\n"]
