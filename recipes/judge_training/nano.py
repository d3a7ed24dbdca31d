"""Train the embedded base model from nothing: tokenizer and vision-language model. The judge is made by `sft/train.py`.

    python recipes/judge_training/nano.py                            # the base
    python recipes/judge_training/sft/train.py --config recipes/judge_training/sft/nano.yaml \\
        --model_name_or_path build/nano/base                         # the judge from it
    python recipes/judge_training/nano.py --install                  # copies the base into the package

The base transcribes scenes, quotes answers and answers questions (`recipes/nano/pages.py`), from images, videos and
words. A loop of its own, because its vision features for a batch of images of one size halve the time of a step. The
loss is on completions only. Everything is seeded; a run that was cut off continues from its last checkpoint. The model
is in `nano_model.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexjudge_recipes.judge_training.nano_model import make_model, make_tokenizer, save, to_patches, vision_features
from flexjudge_recipes.nano import pages, shapes

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from flexjudge_reward.nano import path

SIZE = 24  # sequences per step
STEPS, PEAK = 2000, 1.5e-3  # and the highest learning rate

# --------------------------------------------------------------------------------------------------------- data


@dataclass
class Sample:
    """Token ids, where the completion starts, the image if any, and a label for the report."""

    ids: list[int]
    start: int
    patches: np.ndarray | None
    seconds: int
    label: str


class Maker:
    """Makes samples of scenes and questions."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.vision = {tokenizer.token_to_id(token) for token in ("<|image_pad|>", "<|video_pad|>")}

    def sample(
        self, rng: random.Random, system: str, user: str, reply: str, question: shapes.Question, medium: str
    ) -> Sample:
        """`user` holds `pages.SCENE` where the scene goes: an image, a video, or a line of text."""
        patches, seconds, shown = None, 0, question.scene.in_words(rng) + "\n"
        if medium != "text":
            frames = shapes.clip(question.scene, rng, 1 if medium == "image" else 4)
            patches, seconds = to_patches(frames), rng.choice((0, 1, 2))
            pad = "<|image_pad|>" if medium == "image" else "<|video_pad|>"
            shown = f"<|vision_start|>{pad * 4 * len(patches)}<|vision_end|>"
        chat = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
        chat += f"<|im_start|>user\n{user.replace(pages.SCENE, shown)}<|im_end|>\n<|im_start|>assistant\n"
        prompt = self.tokenizer.encode(chat).ids
        return Sample(prompt + self.tokenizer.encode(reply).ids, len(prompt), patches, seconds, medium)

    def positions(self, sample: Sample) -> np.ndarray:
        """Rotary positions (3, length): an image is at one time, its cells spread over height and width."""
        result = np.empty((3, len(sample.ids)), dtype=np.int64)
        where = [i for i, token in enumerate(sample.ids) if token in self.vision]
        first, cells = (where[0], len(where)) if where else (len(sample.ids), 0)
        result[:, :first] = np.arange(first)
        index = np.arange(cells)
        result[:, first : first + cells] = first + np.stack([index // 4 * sample.seconds, index // 2 % 2, index % 2])
        rest = len(sample.ids) - first - cells
        result[:, first + cells :] = first + (2 if cells else 0) + np.arange(rest)
        return result


def base_sample(
    make: Maker, rng: random.Random, held_out: bool = False, medium: str = "", mode: pages.Mode | None = None
) -> Sample:
    """Transcribing and answering (`recipes/nano/pages.py`); no scores, no comparisons."""
    medium = medium or rng.choices(("image", "video", "text"), (0.5, 0.1, 0.4))[0]
    mode = mode or rng.choices(pages.MODES, (0.2, 0.25, 0.2, 0.35))[0]
    kinds = (*shapes.KINDS, "describe") if mode == "quote" else shapes.KINDS
    question = shapes.question(rng, shapes.scene(rng, held_out), kinds)
    system, user, reply = pages.page(rng, question, mode)
    reply += "<|im_end|>" if mode in ("direct", "think") else ""
    sample = make.sample(rng, system, user, reply, question, medium)
    sample.label = f"{medium} {mode} {question.kind}"
    return sample


# ----------------------------------------------------------------------------------------------------- training


def batches(make: Maker, seed: int, first: int) -> Iterator[list[Sample]]:
    """Endless batches of about equal length, from batch `first` on; the n-th is the same whenever it is made."""
    pool = 16
    for number in itertools.count(first // pool):
        rng = random.Random(f"{seed} base {number}")
        samples = [base_sample(make, rng) for _ in range(pool * SIZE)]
        samples.sort(key=lambda sample: len(sample.ids))
        groups = [samples[i * SIZE : (i + 1) * SIZE] for i in range(pool)]
        rng.shuffle(groups)
        yield from groups[first % pool if number == first // pool else 0 :]


def forward(model: Any, make: Maker, samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits and targets of all completion tokens, and the sample each belongs to."""
    length = max(len(sample.ids) for sample in samples)
    ids = torch.zeros(len(samples), length, dtype=torch.long)
    at = torch.zeros(3, len(samples), length, dtype=torch.long)
    target = torch.full((len(samples), length), -1)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        at[:, row, : len(sample.ids)] = torch.from_numpy(make.positions(sample))
        target[row, sample.start - 1 : len(sample.ids) - 1] = ids[row, sample.start : len(sample.ids)]
    embedded = model.model.language_model.embed_tokens(ids)
    shown = [sample.patches for sample in samples if sample.patches is not None]
    if shown:
        seen = vision_features(model.model.visual, torch.from_numpy(np.concatenate(shown)))
        where = torch.isin(ids, torch.tensor(sorted(make.vision)))
        embedded = embedded.masked_scatter(where[..., None], seen)
    # Padding is on the right, which a causal model never attends to, so no mask is needed.
    mask = {"full_attention": None}
    hidden = model.model.language_model(inputs_embeds=embedded, position_ids=at, attention_mask=mask, use_cache=False)
    rows, columns = (target >= 0).nonzero(as_tuple=True)
    return model.lm_head(hidden.last_hidden_state[rows, columns]), target[rows, columns], rows


@torch.no_grad()
def report(model: Any, make: Maker, per_label: int) -> dict[str, float]:
    """Share of held-out samples whose every token greedy decoding would write right, by kind."""
    rng = random.Random("report")
    right: dict[str, list[float]] = {}
    model.eval()
    for medium in ("text", "image", "video"):
        samples = [base_sample(make, rng, True, medium, ("think", "read")[i % 2]) for i in range(per_label * 2)]
        for i in range(0, len(samples), 32):
            logits, target, rows = forward(model, make, samples[i : i + 32])
            wrong = torch.bincount(rows[logits.argmax(-1) != target], minlength=32)
            for sample, errors in zip(samples[i : i + 32], wrong.tolist(), strict=False):
                right.setdefault(sample.label, []).append(float(errors == 0))
    model.train()
    return {label: round(sum(values) / len(values), 3) for label, values in sorted(right.items())}


def rate(step: int) -> float:
    """The learning rate: a warm-up over 100 steps, then a cosine down to a fiftieth."""
    return PEAK * min((step + 1) / 100, 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / STEPS)))


def train(model: Any, make: Maker, out: Path, seed: int, steps: int) -> None:
    """AdamW, a checkpoint and a report every few minutes; continues from the last checkpoint."""
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in weights if p.ndim > 1], "weight_decay": 0.05}]
    groups += [{"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    saved, first, spent = out / "base.pt", 0, 0.0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent = state["step"], state["seconds"]
    began, shown = time.monotonic() - spent, 0.0
    for step, samples in zip(range(first, steps), batches(make, seed, first), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        logits, target, _ = forward(model, make, samples)
        loss = F.cross_entropy(logits, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        shown = loss.item() if step == first else 0.95 * shown + 0.05 * loss.item()
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - began
            left = seconds / (step + 1) * (steps - step - 1) / 60
            print(f"base {step + 1}/{steps}  loss {shown:.4f}  {seconds / 60:.1f} min, {left:.1f} left", flush=True)
        if (step + 1) % 300 == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state | {"seconds": time.monotonic() - began}, saved)
            print(json.dumps({"step": step + 1, **report(model, make, 48)}), flush=True)


def main() -> None:
    """Makes the tokenizer, trains, saves."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, default=Path("build/nano"))
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--install", action="store_true", help="copy the base into flexjudge_reward/nano")
    args.add_argument("--steps", type=int, default=STEPS, help="stop there, to try things")
    options = args.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    saved = options.out / "tokenizer.json"
    if not saved.exists():  # a run that continues keeps the ids that it has learned
        make_tokenizer().save(str(saved))
    tokenizer = Tokenizer.from_file(str(saved))
    torch.manual_seed(options.seed)
    model = make_model(tokenizer)
    train(model, Maker(tokenizer), options.out, options.seed, min(options.steps, STEPS))
    save(model, tokenizer, options.out / "base")
    if options.install:
        shutil.copytree(options.out / "base", path("base"), dirs_exist_ok=True)


if __name__ == "__main__":
    main()
