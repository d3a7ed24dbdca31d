"""Train the embedded models: the base from nothing, or the judge that sees and hears, grown out of the shipped base.

    python recipes/judge_training/nano.py                            # the base
    python recipes/judge_training/sft/train.py --config recipes/judge_training/sft/nano.yaml \\
        --model_name_or_path build/nano/base                         # the judge from it
    python recipes/judge_training/nano.py --model omni               # nano-omni: base, ears, judge
    python recipes/judge_training/nano.py --model omni --base build/nano/base   # the same, out of a base of your own
    python recipes/judge_training/nano.py --width 320 --device cuda  # a base of seven million parameters, on a GPU
    python recipes/judge_training/nano.py --install                  # copies what was made into the package

The base transcribes scenes, quotes answers and answers questions (`recipes/nano/pages.py`), from images, videos and
words. `omni` learns the second world, then to hear, then to judge from judgements of scenes in words only; no image and
no sound is judged in training. A loop of its own, because its features for a batch of images or recordings of one size
halve the time of a step. The loss is on completions only. Everything is seeded; a run that was cut off continues from
its last checkpoint. The models are in `nano_model.py` and `omni_model.py`, the data in `nano_samples.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from flexjudge_recipes.judge_training import omni_model
from flexjudge_recipes.judge_training.nano_model import WIDTH, make_model, make_tokenizer, save, vision_features
from flexjudge_recipes.judge_training.nano_samples import Maker, Sample, Stage, batches
from flexjudge_recipes.judge_training.sft.data import Renderer
from flexjudge_recipes.nano.world import SHAPES, SOUNDS
from flexjudge_recipes.program import run

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from flexjudge_reward import ConfigError
from flexjudge_reward.engines.model import Chat
from flexjudge_reward.nano import path

BASE = Stage("base", 2000, 24, 1.5e-3, {"image": 0.5, "video": 0.1, "text": 0.4})
_ALL = {"image": 0.12, "video": 0.04, "sound": 0.56, "text": 0.08, "text of sounds": 0.2}
_HEARD = {"image": 0.06, "video": 0.03, "sound": 0.83, "text": 0.03, "text of sounds": 0.05}
OMNI = (
    Stage("base", 400, 16, 1.2e-3, _ALL, (0.15, 0.25, 0.25, 0.35)),
    Stage("ears", 800, 16, 1.2e-3, _HEARD, (0.05, 0.3, 0.5, 0.15)),
    Stage(
        *("judge", 1300, 16, 1.0e-3, {"image": 0.4, "video": 0.1, "sound": 0.5}, (0.0, 0.0, 1.0, 0.0)),
        judgements=0.8,
        frozen=("visual.", "audio_tower."),
    ),
)
STAGES = {"base": (BASE,), "omni": OMNI}
FROM_NOTHING = (*OMNI[:2], replace(OMNI[2], steps=3000))
"""Out of a base that no judge is of: `add_judging` has nothing to add, and the judge stage is longer."""
_EVERY = 100  # steps between two checkpoints


def forward(model: Any, make: Maker, samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits and targets of all completion tokens, and the sample each belongs to."""
    language, visual, ear = _parts(model)
    device = model.device
    length = max(len(sample.ids) for sample in samples)
    ids = torch.zeros(len(samples), length, dtype=torch.long)
    at = torch.zeros(3, len(samples), length, dtype=torch.long)
    target = torch.full((len(samples), length), -1)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        at[:, row, : len(sample.ids)] = torch.from_numpy(make.positions(sample))
        target[row, sample.start - 1 : len(sample.ids) - 1] = ids[row, sample.start : len(sample.ids)]
    ids, at, target = ids.to(device), at.to(device), target.to(device)
    embedded = language.embed_tokens(ids)
    if shown := [sample.patches for sample in samples if sample.patches is not None]:
        seen = vision_features(visual, torch.from_numpy(np.concatenate(shown)).to(device))
        here = torch.isin(ids, torch.tensor(sorted(make.vision), device=device))
        embedded = embedded.masked_scatter(here[..., None], seen.to(embedded.dtype))
    if played := [sample.recording for sample in samples if sample.recording is not None]:
        heard = omni_model.audio_features(ear, np.stack(played))
        embedded = embedded.masked_scatter((ids == make.audio)[..., None], heard)
    # Padding is on the right, which a causal model never attends to, so no mask is needed.
    mask = {"full_attention": None}
    hidden = language(inputs_embeds=embedded, position_ids=at, attention_mask=mask, use_cache=False)
    rows, columns = (target >= 0).nonzero(as_tuple=True)
    return model.lm_head(hidden.last_hidden_state[rows, columns]), target[rows, columns], rows


def _parts(model: Any) -> tuple[Any, Any, Any]:
    """Language model, vision tower, ear: a Thinker has them side by side."""
    if hasattr(model, "audio_tower"):
        return model.model, model.visual, model.audio_tower
    return model.model.language_model, model.model.visual, None


@torch.no_grad()
def report(model: Any, make: Maker, stage: Stage, count: int) -> dict[str, float]:
    """Share of held-out samples whose every token greedy decoding would write right, by kind."""
    rng = random.Random("report")
    samples = [
        make.page(rng, stage, True, f"{medium} {mode}")
        for medium in stage.media
        for mode in ("think", "read")
        for _ in range(count)
    ]
    if stage.judgements:
        samples += [make.judgement(rng, 0.1, True, world) for world in (SHAPES, SOUNDS) for _ in range(4 * count)]
    right: dict[str, list[bool]] = {}
    model.eval()
    for i in range(0, len(samples), 32):
        logits, target, rows = forward(model, make, samples[i : i + 32])
        wrong = torch.bincount(rows[logits.argmax(-1) != target], minlength=32)
        for sample, errors in zip(samples[i : i + 32], wrong.tolist(), strict=False):
            right.setdefault(sample.label, []).append(errors == 0)
    model.train()
    return {label: round(sum(values) / len(values), 3) for label, values in sorted(right.items())}


def rate(stage: Stage, step: int) -> float:
    """The learning rate: a warm-up over 100 steps, then a cosine down to a fiftieth."""
    return stage.peak * min((step + 1) / 100, 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / stage.steps)))


def train(model: Any, make: Maker, stage: Stage, saved: Path, seed: int, steps: int) -> float:
    """AdamW, and checkpoints in `saved`, from which a run continues; the CPU seconds that the stage took."""
    named = list(model.named_parameters())
    for name, weight in named:
        weight.requires_grad_(not name.startswith(stage.frozen or ("-",)))
    weights = [weight for _, weight in named if weight.requires_grad]
    groups = [{"params": [p for p in weights if p.ndim > 1], "weight_decay": 0.05}]
    groups += [{"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    first, spent = 0, 0.0
    if saved.exists():
        state = torch.load(saved, weights_only=True, map_location=model.device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent = state["step"], state["seconds"]
    began, shown = time.process_time() - spent, 0.0
    for step, samples in zip(range(first, steps), batches(make, stage, seed, first), strict=False):
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
            minutes = (time.process_time() - began) / 60
            print(f"{stage.name} {step + 1}/{steps}  loss {shown:.4f}  {minutes:.1f} CPU minutes", flush=True)
        if (step + 1) % _EVERY == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state | {"seconds": time.process_time() - began}, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)
    return time.process_time() - began


def claim(out: Path, **settings: object) -> None:
    """Makes the folder that of this run: the checkpoints of another seed or length would count as its own.

    Raises ConfigError: it holds another run.
    """
    out.mkdir(parents=True, exist_ok=True)
    noted = out / "run.json"
    known = json.loads(noted.read_text()) if noted.exists() else None
    if known != settings and (known is not None or any(out.glob("*.pt"))):
        raise ConfigError(f"{out} holds another run ({known or 'of an earlier release'}): give another --out")
    noted.write_text(json.dumps(settings) + "\n")


def build(
    kind: str,
    out: Path,
    seed: int,
    stages: Iterable[Stage],
    steps: int,
    base: Path | None = None,
    width: int = WIDTH,
    device: str = "cpu",
) -> Path:
    """Makes or continues the model `kind` in `out`, omni out of `base` (None: the shipped one); its folder.

    A wider model learns at a lower rate, by the square root of its width.
    """
    omni = kind == "omni"
    saved = out / "tokenizer.json"
    if not saved.exists():  # a run that continues keeps the ids that it has learned
        (omni_model.omni_tokenizer() if omni else make_tokenizer()).save(str(saved))
    tokenizer = Tokenizer.from_file(str(saved))
    torch.manual_seed(seed)
    model = omni_model.make_thinker(tokenizer) if omni else make_model(tokenizer, width)
    renderer = None
    if omni:
        model.load_state_dict(omni_model.grown(model, tokenizer, base or path("base")))
        processor = omni_model.make_processor(tokenizer)
        renderer = Renderer(Chat(processor.tokenizer, processor.chat_template), "nano", 2048, "<|im_end|>")
    model.to(device)
    make, seconds = Maker(tokenizer, renderer), 0.0
    for stage in stages:
        stage = replace(stage, peak=stage.peak * (WIDTH / width) ** 0.5)
        if stage.judgements and base is None:
            omni_model.add_judging(model, tokenizer)
        seconds += train(model, make, stage, out / f"{stage.name}.pt", seed, min(steps, stage.steps))
        print(json.dumps(report(model, make, stage, 48)), flush=True)
    folder = out / kind
    (omni_model.save_omni if omni else save)(model, tokenizer, folder)
    print(f"{folder}  {seconds / 60:.1f} CPU minutes", flush=True)
    return folder


def main() -> None:
    """Makes the tokenizer, trains, saves. Raises ConfigError: a wrong number, or --out holds another run."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", choices=sorted(STAGES), default="base", help="what is made (default: base)")
    args.add_argument("--base", type=Path, help="of omni: the folder of a base (default: the shipped one)")
    args.add_argument("--out", type=Path, help="default: build/nano, or build/omni")
    args.add_argument("--width", type=int, default=WIDTH, help="of the base's language model, in 32s")
    args.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--install", action="store_true", help="copy it into flexjudge_reward/nano")
    args.add_argument("--steps", type=int, default=10**6, help="stop each stage there, to try things")
    options = args.parse_args()
    if min(options.threads, options.steps) < 1:
        raise ConfigError(f"threads and steps are at least 1, found {options.threads}, {options.steps}")
    if options.base and (options.model != "omni" or not (options.base / "model.safetensors").is_file()):
        raise ConfigError(f"--base is a folder with model.safetensors, for --model omni; found {options.base}")
    if options.width < 32 or options.width % 32 or (options.width != WIDTH and options.model != "base"):
        raise ConfigError(f"--width is a multiple of 32, and of the base only; found {options.width}")
    torch.set_num_threads(options.threads)
    out = options.out or Path("build", "omni" if options.model == "omni" else "nano")
    grown = {"base": str(options.base.resolve())} if options.base else {}
    grown |= {} if options.width == WIDTH else {"width": options.width}
    claim(out, model=options.model, seed=options.seed, steps=options.steps, **grown)
    stages = FROM_NOTHING if options.base else STAGES[options.model]
    folder = build(options.model, out, options.seed, stages, options.steps, options.base, options.width, options.device)
    if options.install:
        shutil.copytree(folder, path(options.model), dirs_exist_ok=True)


if __name__ == "__main__":
    run("judge_training/nano", main)
