"""Several sampled answers of a policy to each question. Knows neither a trainer nor a judge."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flexjudge_reward import (
    Engine,
    EngineError,
    Generation,
    Media,
    Message,
    Prompt,
    Request,
    Sampling,
    TransformersEngine,
    Untrusted,
    VLLMEngine,
)
from flexjudge_reward.judge.machine import has_gpu_engine

Question = Sequence[str | Media]
"""A question's images and its text."""
TEMPERATURES = (0.8, 1.2)  # as in Flex-Judge, appendix B.4.2


def policy_engine(model: str, revision: str | None, memory_share: float) -> Engine:
    """What samples the policy: vLLM with that share of the GPU's memory; transformers without a GPU or without vLLM."""
    if not has_gpu_engine():
        return TransformersEngine(model, revision=revision)
    # Room for one image and no video: what vLLM sets aside for videos is as large as a model.
    limits = {"images_per_prompt": 1, "videos_per_prompt": 0}
    return VLLMEngine(model, revision=revision, gpu_memory_utilization=memory_share, **limits)


def write_candidates(
    file: Path, questions: Iterable[tuple[str, Any]], engine: Engine, answers: int, sampling: Sampling
) -> None:
    """Samples the policy and writes the rows that `flexjudge annotate` reads, with the images in images/ beside them.

    Args:
        questions: texts, each with its image.
        answers: how many answers to a question, over all `TEMPERATURES`. Rows with fewer than two are left out.
        sampling: the longest answer and the first seed.
    """
    images = file.parent.resolve() / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number, (text, image) in enumerate(questions):
        image.convert("RGB").save(images / f"{number}.png")
        rows.append({"id": number, "question": text, "images": [f"images/{number}.png"], "candidates": []})
    prompts = [(Media.image(row["images"][0], roots=[images.parent]), row["question"]) for row in rows]
    for temperature in TEMPERATURES:
        heated = replace(sampling, temperature=temperature)
        for row, texts in zip(rows, sample(engine, prompts, answers // len(TEMPERATURES), heated), strict=True):
            row["candidates"] += texts
    fresh = file.with_suffix(".new")
    fresh.write_text("".join(json.dumps(row) + "\n" for row in rows if len(row["candidates"]) > 1), "utf-8")
    fresh.replace(file)


def sample(engine: Engine, questions: Sequence[Question], count: int, sampling: Sampling) -> list[list[str]]:
    """`count` answers to each question; those that failed are left out, with a line that counts them.

    Raises:
        EngineError: all failed.
    """
    requests = [
        Request(_prompt(question), replace(sampling, seed=sampling.seed + draw))
        for question in questions
        for draw in range(count)
    ]
    replies = engine.generate(requests)
    failed = [reply.failure for reply in replies if reply.failure]
    if failed:
        print(f"samples        {len(failed)} of {len(replies)} failed, the first: {failed[0].detail}", flush=True)
    if failed and len(failed) == len(replies):
        raise EngineError(f"the policy gave no answer at all: {failed[0].detail}")
    return [_texts(replies[start : start + count]) for start in range(0, len(replies), count)]


def _prompt(question: Question) -> Prompt:
    parts = tuple(Untrusted(part) if isinstance(part, str) else part for part in question)
    return Prompt((Message("user", parts),))


def _texts(replies: Sequence[Generation]) -> list[str]:
    return [reply.text.strip() for reply in replies if not reply.failure]
