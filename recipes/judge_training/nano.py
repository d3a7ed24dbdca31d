"""Train the embedded judge from nothing: tokenizer, base vision-language model, text-only judge, and the ablation.

    python recipes/judge_training/nano.py                            # base and judge, about an hour on two cores
    python recipes/judge_training/nano.py --stages answer_first      # the ablation alone, from the shipped base
    python recipes/judge_training/nano.py --install                  # also copies the weights into the package

Expect the figures of `flexjudge_reward/nano/README.md`. The stages; a run that was cut off continues from its last
checkpoint:

    base          a Qwen2.5-VL from scratch: transcribes scenes, quotes answers, answers questions; images and text
    judge         from base: scores and comparisons with reasoning, on scenes in text only; it never judges an image,
                  but one sample in five is an image to transcribe, so that it does not forget how
    answer_first  from base: the same data and budget, the answer before the reasoning: what the reasoning is worth

All text is that of the embedded world (`recipes/nano/shapes.py`, `traces.py`); the loss is on completions only. The
judge's prompts come from the package's own formats, so training and use are equal token for token. Everything is
seeded. The model itself is in `nano_model.py`.
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
from flexjudge_recipes.nano import shapes, traces

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLForConditionalGeneration

from flexjudge_reward import Example, Listwise, MultipleChoice, Pairwise, Pointwise, Rubric, Scale, Untrusted
from flexjudge_reward.nano import path

SCENE = "<scene>"  # where the image or the text of the scene goes in a rendered prompt
FORMATS = {"score": Pointwise, "pair": Pairwise, "listwise": Listwise, "choice": MultipleChoice}
COUNTS = {"score": (1,), "pair": (2,), "listwise": (2, 3, 4, 5, 6, 7, 8, 8), "choice": (2, 3, 4, 4)}  # candidates
JUDGES = {
    (form, high): kind(Rubric("right or wrong", Scale(1, high)), "nano")
    for form, kind in FORMATS.items()
    for high in (5, 10)
}
SIZE = 24  # sequences per step
PLANS = {  # cycles of steps and peak learning rate
    "base": ((2000, 1.5e-3),),
    "judge": ((2600, 1e-3), (400, 3e-4)),
    "answer_first": ((2600, 1e-3), (400, 3e-4)),
}
JUNK = (0.1, 0.2)  # of the judge's candidates, in each cycle: answers just outside the required form are learned last

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
        """`user` holds SCENE where the scene goes: an image, a video, or a line of text."""
        patches, seconds, shown = None, 0, question.scene.in_words(rng) + "\n"
        if medium != "text":
            frames = shapes.clip(question.scene, rng, 1 if medium == "image" else 4)
            patches, seconds = to_patches(frames), rng.choice((0, 1, 2))
            pad = "<|image_pad|>" if medium == "image" else "<|video_pad|>"
            shown = f"<|vision_start|>{pad * 4 * len(patches)}<|vision_end|>"
        chat = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
        chat += f"<|im_start|>user\n{user.replace(SCENE, shown)}<|im_end|>\n<|im_start|>assistant\n"
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


def prompt_of(question: shapes.Question, replies: list[str], form: traces.Form, high: int) -> tuple[str, str]:
    """System and user text of the package's own judge prompt, with SCENE in the place of the scene."""
    (prompt,) = JUDGES[form, high].render(Example(SCENE + question.text, replies))
    return tuple("".join(p.text if isinstance(p, Untrusted) else str(p) for p in m.parts) for m in prompt.messages)  # type: ignore[return-value]


def judge_sample(
    make: Maker,
    rng: random.Random,
    held_out: bool = False,
    medium: str = "text",
    first: str = "think",
    junk: float = JUNK[0],
) -> Sample:
    """One judgement with its reasoning. Training calls this with text only."""
    form: traces.Form = rng.choices(("score", "pair", "listwise", "choice"), (0.15, 0.3, 0.35, 0.2))[0]  # type: ignore[assignment]
    high = 5 if form != "choice" and rng.random() < 0.3 else 10
    count = rng.choice(COUNTS[form])
    question = shapes.question(rng, shapes.scene(rng, held_out), shapes.judged(count))
    single_best = form == "choice" and rng.random() < 0.9
    replies = shapes.candidates(rng, question, count, single_best, junk)
    thought = f"<think>{traces.reasoning(question, replies, form, high)}</think>"
    answer = traces.verdict(question, replies, form, high)
    system, user = prompt_of(question, replies, form, high)
    reply = (thought + answer if first == "think" else answer + thought) + "<|im_end|>"
    sample = make.sample(rng, system, user, reply, question, medium)
    sample.label = f"{medium} {form}"
    return sample


def base_sample(
    make: Maker,
    rng: random.Random,
    held_out: bool = False,
    medium: str = "",
    mode: str = "",
    kinds: tuple[shapes.Kind, ...] = shapes.KINDS,
) -> Sample:
    """Transcribing and answering; no scores, no comparisons.

    direct    no system message: the answer at once, with the bad habits of `direct_answer`
    think     a system line: the scene, the derivation, the answer
    read      a prompt laid out like a judge's, with other instructions: the scene and the derivation, no answer
    quote     such a prompt again: the scene and the derivation, then the answers in the prompt in their own words
    """
    medium = medium or rng.choices(("image", "video", "text"), (0.5, 0.1, 0.4))[0]
    mode = mode or rng.choices(("direct", "think", "read", "quote"), (0.2, 0.25, 0.2, 0.35))[0]
    question = shapes.question(rng, shapes.scene(rng, held_out), (*kinds, "describe") if mode == "quote" else kinds)
    system, user, reply = "", SCENE + question.text, direct_answer(rng, question) + "<|im_end|>"
    if mode == "think":
        system = rng.choice(
            ("Think first.", "Think.", "Think in steps and answer.", f"Think {rng.randint(1, 10)} steps.")
        )
        user = f"```\n{user}\n```\n" if rng.random() < 0.5 else user
        reply = f"<think>{traces.derivation(question)}</think><answer>{question.truth}</answer><|im_end|>"
    elif mode in ("read", "quote"):
        count = rng.choice((0, 1, 1, 2, 2, 3, 4) if mode == "read" else (1, 2, 2, 3, 4))
        replies = shapes.candidates(rng, question, count) if count else []
        verbs = ("Look at", "Name", "Think of") if mode == "read" else ("Read", "List", "Restate")
        system, user = layout(rng, question, replies, rng.choice(verbs))
        reply = f"<think>{traces.derivation(question)}"
        reply += traces.quotes(rng, question, replies) if mode == "quote" else ""
    sample = make.sample(rng, system, user, reply, question, medium)
    sample.label = f"{medium} {mode} {question.kind}"
    return sample


def layout(rng: random.Random, question: shapes.Question, replies: list[str], verb: str) -> tuple[str, str]:
    """A random instruction, and blocks after the question: the layout of a judge's prompt, without a judgement."""
    letters = [shapes.LETTERS[i] for i in range(len(replies))]
    named = rng.choice((", ".join(letters), " and ".join(letters), "it")) or "it"
    system = (
        verb + " " + named + rng.choice(("", f" from {rng.randint(0, 5)} to {rng.randint(5, 10)}", " in steps")) + "."
    )
    blocks = [f"{letter}\n```\n{reply}\n```\n" for letter, reply in zip(letters, replies, strict=True)]
    return system, f"```\n{SCENE}{question.text}\n```\n" + "".join(blocks)


def direct_answer(rng: random.Random, question: shapes.Question) -> str:
    """A direct answer with the base model's documented bad habits, so that a policy has something to learn.

    To "what is" it names the content of the mirrored place 65 times in 100; it counts one too many 65 times in 100; to
    "is there" it gives the wrong answer 20 times in 100. Descriptions are right.
    """
    bad = rng.random() < {"what": 0.65, "count": 0.65, "exists": 0.2, "describe": 0.0}[question.kind]
    if not bad:
        return question.truth
    if question.kind == "what":
        return question.scene.cells[shapes.PLACES.index(question.subject) ^ 1]
    if question.kind == "count":
        return str(int(question.truth) + 1)
    return "no" if question.truth == "yes" else "yes"


# ----------------------------------------------------------------------------------------------------- training


def batches(stage: str, make: Maker, seed: int, first: int) -> Iterator[list[Sample]]:
    """Endless batches of about equal length, from batch `first` on; the n-th is the same whenever it is made."""
    pool = 16
    for number in itertools.count(first // pool):
        rng = random.Random(f"{seed} {stage} {number}")
        late = number * pool >= PLANS[stage][0][0]
        samples = [training_sample(stage, make, rng, JUNK[late]) for _ in range(pool * SIZE)]
        samples.sort(key=lambda sample: len(sample.ids))
        groups = [samples[i * SIZE : (i + 1) * SIZE] for i in range(pool)]
        rng.shuffle(groups)
        yield from groups[first % pool if number == first // pool else 0 :]


def training_sample(stage: str, make: Maker, rng: random.Random, junk: float) -> Sample:
    if stage == "base":
        return base_sample(make, rng)
    if rng.random() < 0.2:  # images and videos to transcribe, nothing to judge; see base_sample
        medium = rng.choices(("image", "video"), (0.8, 0.2))[0]
        return base_sample(make, rng, medium=medium, mode="read", kinds=shapes.judged(1))
    return judge_sample(make, rng, first="think" if stage == "judge" else "answer", junk=junk)


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
def report(model: Any, make: Maker, stage: str, per_label: int) -> dict[str, float]:
    """Share of held-out samples whose every token greedy decoding would write right, by kind."""
    rng = random.Random("report")
    right: dict[str, list[float]] = {}
    model.eval()
    for medium in ("text", "image") if stage != "base" else ("text", "image", "video"):
        if stage == "base":
            samples = [base_sample(make, rng, True, medium, ("think", "read")[i % 2]) for i in range(per_label * 2)]
        else:
            first = "think" if stage == "judge" else "answer"
            samples = [judge_sample(make, rng, True, medium, first) for _ in range(per_label * 4)]
        for i in range(0, len(samples), 32):
            logits, target, rows = forward(model, make, samples[i : i + 32])
            wrong = torch.bincount(rows[logits.argmax(-1) != target], minlength=32)
            for sample, errors in zip(samples[i : i + 32], wrong.tolist(), strict=False):
                right.setdefault(sample.label, []).append(float(errors == 0))
    model.train()
    return {label: round(sum(values) / len(values), 3) for label, values in sorted(right.items())}


def rate(stage: str, step: int) -> float:
    """The learning rate: in each cycle a warm-up over 100 steps, then a cosine down to a fiftieth."""
    for steps, peak in PLANS[stage]:
        if step < steps:
            return peak * min((step + 1) / 100, 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))
        step -= steps
    return 0.0


def train(stage: str, model: Any, make: Maker, out: Path, seed: int, limit: int | None) -> None:
    """One stage: AdamW, a checkpoint and a report every few minutes; continues from the last checkpoint."""
    steps = min(limit or 10**9, sum(cycle[0] for cycle in PLANS[stage]))
    if stage != "base":
        model.model.visual.requires_grad_(False)  # what it sees does not change
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in weights if p.ndim > 1], "weight_decay": 0.05}]
    groups += [{"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    saved, first, spent = out / f"{stage}.pt", 0, 0.0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent = state["step"], state["seconds"]
    began, shown = time.monotonic() - spent, 0.0
    for step, samples in zip(range(first, steps), batches(stage, make, seed, first), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate(stage, step)
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
            print(f"{stage} {step + 1}/{steps}  loss {shown:.4f}  {seconds / 60:.1f} min, {left:.1f} left", flush=True)
        if (step + 1) % 300 == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state | {"seconds": time.monotonic() - began}, saved)
            print(json.dumps({"step": step + 1, **report(model, make, stage, 48)}), flush=True)


def tokenizer_of(out: Path, new: bool) -> Tokenizer:
    """The tokenizer whose ids the base in `out` has learned; else a new one, or that of the shipped base."""
    saved = out / "tokenizer.json"
    if not saved.exists():
        tokenizer = make_tokenizer() if new else Tokenizer.from_file(str(path("base") / "tokenizer.json"))
        tokenizer.save(str(saved))
    return Tokenizer.from_file(str(saved))


def base_weights(out: Path) -> dict[str, torch.Tensor]:
    """The base trained in `out`; where there is none, the shipped one."""
    if (out / "base.pt").exists():
        return torch.load(out / "base.pt", weights_only=True)["model"]
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(path("base"), dtype=torch.float32).state_dict()


def main() -> None:
    """Run the stages in order."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--stages", nargs="+", choices=list(PLANS), default=["base", "judge"])
    args.add_argument("--out", type=Path, default=Path("build/nano"))
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--install", action="store_true", help="copy base and judge into flexjudge_reward/nano")
    args.add_argument("--steps", type=int, help="stop every stage there, to try things")
    options = args.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(options.out, new="base" in options.stages)
    make = Maker(tokenizer)
    for stage in options.stages:
        torch.manual_seed(options.seed)
        model = make_model(tokenizer)
        if stage != "base":
            model.load_state_dict(base_weights(options.out))
        train(stage, model, make, options.out, options.seed, options.steps)
        save(model, tokenizer, options.out / stage)
        if options.install and stage in ("base", "judge"):
            shutil.copytree(options.out / stage, path(stage), dirs_exist_ok=True)


if __name__ == "__main__":
    main()
