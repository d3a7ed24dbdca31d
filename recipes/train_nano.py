"""Train the embedded judge from nothing: tokenizer, base vision-language model, text-only judge, and the ablation.

    python recipes/train_nano.py                         # everything that is shipped, about 80 minutes on two cores
    python recipes/train_nano.py --stages base judge answer_first --out build/nano

Stages (each starts where the last one of its inputs ended; a stopped run goes on from its last checkpoint):

    base          tokenizer + a Qwen2.5-VL from scratch: it reads scenes aloud and answers questions, from pictures and words
    judge         from base: scores and comparisons, with reasoning, on scenes told in words only; it never judges a picture
    answer_first  the same data and budget with the answer before the reasoning, to see what the reasoning is worth

Every completion is text of the world (`flexjudge_reward/nano/world.py`); loss is on completions only. Prompts of the judge
come from the package's own formats, so training and use are the same token for token. Everything is seeded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from flexjudge_reward import Choice, Example, Listwise, Pair, Rubric, Score
from flexjudge_reward.nano import world
from flexjudge_reward.rubric import Scale
from flexjudge_reward.types import Quoted

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
SPECIAL += ("<|image_pad|>", "<|video_pad|>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SCENE = "<scene>"  # where the picture or the words go in a rendered prompt
FORMATS = {"score": Score, "pair": Pair, "listwise": Listwise, "choice": Choice}
ASKED = {
    (form, high): kind(Rubric("right or wrong", Scale(1, high)), "nano")
    for form, kind in FORMATS.items()
    for high in (5, 10)
}
PLANS = {  # steps, sequences per step, peak learning rate
    "base": (2000, 32, 1.5e-3),
    "judge": (2400, 32, 1.2e-3),
    "answer_first": (2400, 32, 1.2e-3),
}

# ---------------------------------------------------------------------------------------------------- tokenizer


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE in which every word of the world, with and without a space before it, is one token."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"\n?`{3,}\n?| ?\p{L}+(?:-\p{L}+)*| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}`]| ?`+|\n|\s+")
    split = pre_tokenizers.Split(words, "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    texts = ["system user assistant Score Choose the best of from to A B C D E F G H 1 2 3 4 5 6 7 8 9 10 0 Reference"] * 9
    texts += ["\n```\n", "```\n", "\n```", " far near same other unclear a is in and the shape answer Think first Read it"] * 9
    texts += ["List Name Look at Restate steps"] * 9
    for _ in range(3000):
        asked = world.question(rng, world.scene(rng))
        texts += [asked.text, asked.truth, world.reasoning(asked, [asked.truth, asked.truth, ""], "choice")]
    texts += [text.replace(" ", "\n") for text in texts]  # words at the start of a line have no space before them
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1400, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    return tokenizer


CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'video' or 'video' in part -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}{{ part['text'] }}{%- endif -%}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""


def save_processor(folder: Path, tokenizer: Tokenizer) -> None:
    """The tokenizer, chat template and picture settings that `AutoProcessor` and vLLM read."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(SPECIAL[1:]),
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "processor_class": "Qwen2_5_VLProcessor",
    }
    picture = {
        "processor_class": "Qwen2_5_VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 56 * 56, "longest_edge": 56 * 56},
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": MEAN,
        "image_std": STD,
        "rescale_factor": 1 / 255,
    }
    clip = {**picture, "video_processor_type": "Qwen2VLVideoProcessor", "min_frames": 2, "max_frames": 8, "cap_pixels_per_frame": False}
    clip["size"] = {"shortest_edge": 56 * 56, "longest_edge": 8 * 56 * 56}
    del clip["image_processor_type"]
    for name, value in (("tokenizer_config", settings), ("preprocessor_config", picture), ("video_preprocessor_config", clip)):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


# -------------------------------------------------------------------------------------------------------- model


def make_model(tokenizer: Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """About two million parameters; heads of 32, which every attention kernel of the engines knows."""
    token = tokenizer.token_to_id
    width = 160
    text = {
        "vocab_size": 64 * math.ceil(tokenizer.get_vocab_size() / 64),
        "hidden_size": width,
        "intermediate_size": 448,
        "num_hidden_layers": 5,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 32,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]},
        "bos_token_id": None,
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }
    vision = {"depth": 2, "hidden_size": 96, "intermediate_size": 256, "num_heads": 3, "out_hidden_size": width}
    vision |= {"fullatt_block_indexes": [0, 1], "tokens_per_second": 1}
    ids = {"image": "<|image_pad|>", "video": "<|video_pad|>", "vision_start": "<|vision_start|>"}
    ids |= {"vision_end": "<|vision_end|>"}
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, **{f"{name}_token_id": token(value) for name, value in ids.items()}
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    start_weights(model)
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    return model


@torch.no_grad()
def start_weights(model: torch.nn.Module) -> None:
    """Random weights in proportion to the width; the fixed 0.02 of the large models leaves so small a model asleep."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv3d):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=0.5)


def see(visual: Any, patches: torch.Tensor) -> torch.Tensor:
    """The vision tower for pictures of one size, all at once: (n, 16, 1176) -> (n, 4, width).

    transformers runs its attention once per picture; that loop alone cost half of a training step. The figures are the
    same (`tests/test_nano.py` compares them).
    """
    n, size, heads = patches.shape[0], patches.shape[1], visual.config.num_heads
    hidden = F.linear(patches, visual.patch_embed.proj.weight.flatten(1))
    y, x = (torch.tensor(list(side)) for side in zip(*_patch_order(), strict=True))
    cos, sin = (part[None, :, None, :] for part in visual.rotary_pos_emb(hidden, torch.stack([y, x], -1)))
    for block in visual.blocks:
        q, k, v = block.attn.qkv(block.norm1(hidden)).view(n, size, 3, heads, -1).unbind(2)
        q, k = (t * cos + torch.cat((-t[..., t.shape[-1] // 2 :], t[..., : t.shape[-1] // 2]), -1) * sin for t in (q, k))
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        hidden = hidden + block.attn.proj(mixed.transpose(1, 2).reshape(n, size, -1))
        hidden = hidden + block.mlp(block.norm2(hidden))
    return visual.merger(hidden.view(n * size, -1)).view(n, size // 4, -1)


def _patch_order() -> list[tuple[int, int]]:
    """(row, column) of the 16 patches, the four of one cell after another, as the processor lays them out."""
    return [(2 * i + k, 2 * j + m) for i, j, k, m in itertools.product(range(2), repeat=4)]


def to_patches(frames: list[Image.Image]) -> np.ndarray:
    """One still picture or an even number of frames -> (frame pairs, 16, 1176), as the processor makes them."""
    frames = frames * 2 if len(frames) == 1 else frames
    pixels = np.stack([np.asarray(frame, dtype=np.float32) for frame in frames]) / 255
    pixels = (pixels - np.float32(MEAN)) / np.float32(STD)
    parts = pixels.reshape(-1, 2, 2, 2, 14, 2, 2, 14, 3)  # pair, frame, cell row, row, y, cell column, column, x, channel
    return parts.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, 16, 1176)


# --------------------------------------------------------------------------------------------------------- data


@dataclass
class Sample:
    """Token ids, where the completion starts, the picture if any, and a label for the report."""

    ids: list[int]
    start: int
    patches: np.ndarray | None
    seconds: int
    label: str


class Maker:
    """Turns scenes and questions into samples of one stage."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.vision = {tokenizer.token_to_id(token) for token in ("<|image_pad|>", "<|video_pad|>")}

    def sample(self, rng: random.Random, system: str, user: str, reply: str, asked: world.Question, medium: str) -> Sample:
        """`user` holds SCENE where the scene goes: a picture, a clip, or words and the end of their line."""
        patches, seconds, shown = None, 0, asked.scene.told(rng) + "\n"
        if medium != "words":
            frames = world.clip(asked.scene, rng, 1 if medium == "picture" else 4)
            patches, seconds = to_patches(frames), rng.choice((0, 1, 2))
            pad = "<|image_pad|>" if medium == "picture" else "<|video_pad|>"
            shown = f"<|vision_start|>{pad * 4 * len(patches)}<|vision_end|>"
        chat = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
        chat += f"<|im_start|>user\n{user.replace(SCENE, shown)}<|im_end|>\n<|im_start|>assistant\n"
        prompt = self.tokenizer.encode(chat).ids
        return Sample(prompt + self.tokenizer.encode(reply).ids, len(prompt), patches, seconds, medium)

    def positions(self, sample: Sample) -> np.ndarray:
        """Rotary positions (3, length): a picture stands at one time, its cells spread over height and width."""
        result = np.empty((3, len(sample.ids)), dtype=np.int64)
        where = [i for i, token in enumerate(sample.ids) if token in self.vision]
        first, cells = (where[0], len(where)) if where else (len(sample.ids), 0)
        result[:, :first] = np.arange(first)
        index = np.arange(cells)
        result[:, first : first + cells] = first + np.stack([index // 4 * sample.seconds, index // 2 % 2, index % 2])
        rest = len(sample.ids) - first - cells
        result[:, first + cells :] = first + (2 if cells else 0) + np.arange(rest)
        return result


def prompt_of(asked: world.Question, replies: list[str], form: world.Form, high: int) -> tuple[str, str]:
    """System and user text of the package's own judge prompt, with SCENE in the place of the scene."""
    (prompt,) = ASKED[form, high].render(Example(SCENE + asked.text, replies))
    return tuple("".join(p.text if isinstance(p, Quoted) else str(p) for p in m.parts) for m in prompt.messages)  # type: ignore[return-value]


def judge_sample(make: Maker, rng: random.Random, held_out: bool = False, medium: str = "words", first: str = "think") -> Sample:
    """One judgement with its reasoning. Training calls this with words only."""
    form: world.Form = rng.choices(("score", "pair", "listwise", "choice"), (0.2, 0.35, 0.2, 0.25))[0]  # type: ignore[assignment]
    high = 5 if form != "choice" and rng.random() < 0.3 else 10
    count = {"score": 1, "pair": 2}.get(form) or rng.choice((2, 3, 4, 4))
    kinds = world.KINDS if count < 4 else (*world.KINDS, "what", "count", "exists")  # a described list of four is long
    asked = world.question(rng, world.scene(rng, held_out), kinds)
    replies = world.candidates(rng, asked, count, single_best=form == "choice" and rng.random() < 0.9)
    thought = f"<think>{world.reasoning(asked, replies, form, high)}</think>"
    answer = world.verdict(asked, replies, form, high)
    system, user = prompt_of(asked, replies, form, high)
    reply = (thought + answer if first == "think" else answer + thought) + "<|im_end|>"
    sample = make.sample(rng, system, user, reply, asked, medium)
    sample.label = f"{medium} {form}"
    return sample


def base_sample(make: Maker, rng: random.Random, held_out: bool = False, medium: str = "", mode: str = "") -> Sample:
    """Reading aloud and answering; no scores, no comparisons.

    direct    no system message: the answer at once, with the habits of `habit`
    think     a system line: the scene, the working, the answer
    read      a page laid out like a judge's, with other instructions: the scene and the working, and there the loss ends
    """
    medium = medium or rng.choices(("picture", "clip", "words"), (0.5, 0.1, 0.4))[0]
    mode = mode or rng.choices(("direct", "think", "read"), (0.2, 0.25, 0.55))[0]
    asked = world.question(rng, world.scene(rng, held_out))
    system, user, reply = "", SCENE + asked.text, habit(rng, asked) + "<|im_end|>"
    if mode == "think":
        system = rng.choice(("Think first.", "Think.", "Think in steps and answer.", f"Think {rng.randint(1, 10)} steps."))
        user = f"```\n{user}\n```\n" if rng.random() < 0.5 else user
        reply = f"<think>{world.derivation(asked)}</think><answer>{asked.truth}</answer><|im_end|>"
    elif mode == "read":
        count = rng.choice((0, 1, 1, 2, 2, 3, 4))
        replies = world.candidates(rng, asked, count) if count else []
        system, user = page(rng, asked, replies)
        reply = f"<think>{world.derivation(asked)}"
    sample = make.sample(rng, system, user, reply, asked, medium)
    sample.label = f"{medium} {mode} {asked.kind}"
    return sample


def page(rng: random.Random, asked: world.Question, replies: list[str]) -> tuple[str, str]:
    """A random instruction and a page with blocks after the question, like a judge's page but asking for no judgement."""
    letters = [world.LETTERS[i] for i in range(len(replies))]
    named = rng.choice((", ".join(letters), " and ".join(letters), "it")) or "it"
    verb = rng.choice(("Read", "List", "Name", "Look at", "Restate", "Think of"))
    system = verb + " " + named + rng.choice(("", f" from {rng.randint(0, 5)} to {rng.randint(5, 10)}", " in steps")) + "."
    blocks = [f"{letter}\n```\n{reply}\n```\n" for letter, reply in zip(letters, replies, strict=True)]
    return system, f"```\n{SCENE}{asked.text}\n```\n" + "".join(blocks)


def habit(rng: random.Random, asked: world.Question) -> str:
    """A direct answer with the base model's documented bad habits, so that a policy has something to learn.

    Asked what is somewhere, it names the mirrored place 65 times in 100; it counts one too many 65 times in 100; it says the
    contrary 20 times in 100 when asked whether something is there. Descriptions are right.
    """
    bad = rng.random() < {"what": 0.65, "count": 0.65, "exists": 0.2, "describe": 0.0}[asked.kind]
    if not bad:
        return asked.truth
    if asked.kind == "what":
        return asked.scene.cells[world.PLACES.index(asked.subject) ^ 1]
    if asked.kind == "count":
        return str(int(asked.truth) + 1)
    return "no" if asked.truth == "yes" else "yes"


# ----------------------------------------------------------------------------------------------------- training


def batches(stage: str, make: Maker, seed: int, size: int, first: int) -> Iterator[list[Sample]]:
    """Endless batches of about equal length, from batch `first` on; the n-th is the same whenever it is made."""
    pool = 16
    for number in itertools.count(first // pool):
        rng = random.Random(f"{seed} {stage} {number}")
        samples = [training_sample(stage, make, rng) for _ in range(pool * size)]
        samples.sort(key=lambda sample: len(sample.ids))
        groups = [samples[i * size : (i + 1) * size] for i in range(pool)]
        rng.shuffle(groups)
        yield from groups[first % pool if number == first // pool else 0 :]


def training_sample(stage: str, make: Maker, rng: random.Random) -> Sample:
    if stage == "base":
        return base_sample(make, rng)
    return judge_sample(make, rng, first="think" if stage == "judge" else "answer")


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
        seen = see(model.model.visual, torch.from_numpy(np.concatenate(shown)))
        where = torch.isin(ids, torch.tensor(sorted(make.vision)))
        embedded = embedded.masked_scatter(where[..., None], seen)
    # Padding stands on the right, where a causal model never looks, so there is no mask to build.
    mask = {"full_attention": None}
    hidden = model.model.language_model(inputs_embeds=embedded, position_ids=at, attention_mask=mask, use_cache=False)
    rows, columns = (target >= 0).nonzero(as_tuple=True)
    return model.lm_head(hidden.last_hidden_state[rows, columns]), target[rows, columns], rows


@torch.no_grad()
def report(model: Any, make: Maker, stage: str, per_label: int) -> dict[str, float]:
    """Share of held-out samples of which greedy decoding would write every token right, by kind."""
    rng = random.Random("report")
    right: dict[str, list[float]] = {}
    model.eval()
    for medium in ("words", "picture") if stage != "base" else ("words", "picture", "clip"):
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


def train(stage: str, model: Any, make: Maker, out: Path, seed: int, plan: tuple[int, int, float]) -> None:
    """One stage: AdamW, warm-up and cosine, a checkpoint every two minutes or so, a report beside it."""
    steps, size, peak = plan
    if stage != "base":
        model.model.visual.requires_grad_(False)  # no picture is judged in training, so the tower stays as it is
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in weights if p.ndim > 1], "weight_decay": 0.05}]
    groups += [{"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
    saved, first, spent = out / f"{stage}.pt", 0, 0.0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent = state["step"], state["seconds"]
    began, shown = time.monotonic() - spent, 0.0
    for step, samples in zip(range(first, steps), batches(stage, make, seed, size, first), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = peak * min((step + 1) / 100, 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))
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


def save(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """A complete checkpoint folder, readable by everybody."""
    save_processor(folder, tokenizer)
    model.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def main() -> None:
    """Run the stages in order."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--stages", nargs="+", choices=list(PLANS), default=["base", "judge"])
    args.add_argument("--out", type=Path, default=Path("build/nano"))
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--steps", type=int, help="fewer steps for every stage, to try things")
    options = args.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    make = Maker(tokenizer)
    for stage in options.stages:
        torch.manual_seed(options.seed)
        model = make_model(tokenizer)
        if stage != "base":
            model.load_state_dict(torch.load(options.out / "base.pt", weights_only=True)["model"])
        steps, size, peak = PLANS[stage]
        train(stage, model, make, options.out, options.seed, (options.steps or steps, size, peak))
        save(model, tokenizer, options.out / stage)


if __name__ == "__main__":
    main()
