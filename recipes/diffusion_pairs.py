"""Pairs of pictures for diffusion-DPO: which prompts, what the model draws for them, and what a judge prefers.

Everything lies in the run's folder: pictures/ with pictures.settings.json, what they were drawn with, and pairs.jsonl
(`flexjudge annotate`) with pairs.jsonl.settings.json, who judged. What is there is taken up, so that a run that was cut
off goes on, but only under the settings that it was made with: other pictures are refused, because drawing is what
costs the time, and pairs of another judge or margin are judged again. The processes share the drawing; the first one
alone judges, writes and removes.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import diffusion_nano
import torch
from accelerate import PartialState
from common import changed, data_of, judged, model_of
from datasets import Dataset, load_dataset
from diffusion_families import Family

from flexjudge_reward import ConfigError, Judge, JudgeConfig, Sampling, TransformersEngine
from flexjudge_reward.engines.cache.engine import CachedEngine
from flexjudge_reward.offline.annotate import annotate_file

DRAWN_WITH = (
    *("model_name_or_path", "dataset_name", "dataset_train_split", "prompt_column", "prompts", "pictures"),
    *("held_out_prompts", "denoising_steps", "guidance", "height", "width"),
)


@dataclass
class PairArguments:
    """What is drawn, and who judges. The judge's other settings can come from FLEXJUDGE_*."""

    model_name_or_path: str = field(
        default="nano-unet", metadata={"help": "A diffusers pipeline, or nano-unet or nano-flow."}
    )
    dataset_name: str = field(default="nano", metadata={"help": "A data set's name or folder, or 'nano'."})
    dataset_train_split: str = field(default="train", metadata={"help": "The split whose prompts are drawn."})
    prompt_column: str = field(default="prompt", metadata={"help": "Holds the prompt."})
    prompts: int = field(default=256, metadata={"help": "How many prompts are drawn for training."})
    pictures: int = field(default=2, metadata={"help": "How many pictures of each."})
    held_out_prompts: int = field(default=64, metadata={"help": "Drawn before and after, for the win rates."})
    denoising_steps: int = field(default=30, metadata={"help": "Of the pipeline, per picture."})
    guidance: float = field(default=5.0, metadata={"help": "Guidance scale of the pipeline."})
    height: int | None = field(default=None, metadata={"help": "In pixels; by default the pipeline's own."})
    width: int | None = field(default=None, metadata={"help": "In pixels; by default the pipeline's own."})
    judge_model: str | None = field(default=None, metadata={"help": "A model name or folder, or 'nano'."})
    judge_base_url: str | None = field(default=None, metadata={"help": "The judge server, http://host:8001/v1."})
    judge_format: str = field(default="pair", metadata={"help": "score, or pair, choice, relation in both orders."})
    judge_rubric: str = field(default="image-quality", metadata={"help": "A built-in rubric's name, or a TOML file."})
    judge_cache: str | None = field(default=None, metadata={"help": "The file of judge replies, or 'off'."})
    margin: float = field(default=1.0, metadata={"help": "Least difference of the scores of a pair."})
    fewest_pairs: int = field(default=50, metadata={"help": "With fewer pairs nothing is trained."})


# ------------------------------------------------------------------------------------------------------- the pictures


def asked(options: PairArguments, seed: int) -> tuple[list[str], list[str]]:
    """Prompts to train on, and others that are held out."""
    if options.dataset_name == "nano":
        held_out = diffusion_nano.prompts(seed, options.held_out_prompts, held_out=True)
        return diffusion_nano.prompts(seed, options.prompts), held_out
    rows = load_dataset(options.dataset_name, split=options.dataset_train_split)
    if options.prompt_column not in rows.column_names:
        known = ", ".join(rows.column_names)
        raise ConfigError(f"{options.dataset_name} has no column {options.prompt_column!r}; it has {known}")
    # A prompt that stands twice in the data could else be trained on and held out.
    texts = list(dict.fromkeys(str(text).strip() for text in rows[options.prompt_column]))
    count = options.prompts + options.held_out_prompts
    if len(texts) < count:
        raise ConfigError(f"{options.dataset_name} has {len(texts)} different prompts, {count} are wanted")
    found = random.Random(f"prompts {seed}").sample(texts, count)
    return found[: options.prompts], found[options.prompts :]


def check_pictures(options: PairArguments, folder: Path, seed: int) -> None:
    """Notes what the pictures of `folder` are drawn with, before there are any.

    Raises:
        ConfigError: those that are there were drawn otherwise.
    """
    settings = {name: getattr(options, name) for name in DRAWN_WITH} | {"seed": seed}
    settings |= {
        "model_name_or_path": model_of(options.model_name_or_path),
        "dataset_name": data_of(options.dataset_name),
    }
    state = PartialState()
    with state.main_process_first():  # it writes the note, the others read it
        if state.is_main_process and not any((folder / "pictures").glob("*.png")):
            (folder / "pictures.settings.json").unlink(missing_ok=True)  # of a run that could draw nothing
        other = changed(folder / "pictures", settings)
    if other:
        raise ConfigError(
            f"the pictures in {folder} were drawn otherwise: {other}."
            " Set it back, give another output_dir, or remove this one"
        )


def draw(
    own: Family, prompts: Sequence[str], files: Sequence[Path], options: PairArguments, seed: int, batch: int
) -> None:
    """Draws each prompt to its file, with a seed of its own; files that are there are kept, ranks share the work."""
    state = PartialState()
    height, width = own.size((options.height, options.width))
    own.pipe.set_progress_bar_config(disable=True)
    mine = [i for i in range(len(files)) if i % state.num_processes == state.process_index and not files[i].exists()]
    from tqdm import tqdm

    with tqdm(total=len(mine), desc="drawing", unit="picture", disable=not state.is_main_process) as bar:
        for start in range(0, len(mine), batch):
            part = mine[start : start + batch]
            drawn = own.pipe(
                [prompts[i] for i in part],
                num_inference_steps=options.denoising_steps,
                guidance_scale=options.guidance,
                generator=[torch.Generator().manual_seed(seed * 1_000_003 + i) for i in part],
                height=height,
                width=width,
                **own.drawing,
            ).images
            for index, picture in zip(part, drawn, strict=True):
                fresh = files[index].with_suffix(".new")
                picture.save(fresh, format="PNG")
                fresh.replace(files[index])
            bar.update(len(part))
    state.wait_for_everyone()


# ---------------------------------------------------------------------------------------------------------- the judge


def settings_of(options: PairArguments) -> JudgeConfig:
    """Who judges."""
    names = ("model", "base_url", "format", "rubric", "cache")
    return JudgeConfig.resolve({name: getattr(options, f"judge_{name}") for name in names})


def judge_of(options: PairArguments) -> Judge:
    """The judge of two pictures; the embedded one is asked about each (`diffusion_nano.AskedAbout`)."""
    settings = settings_of(options)
    if options.dataset_name != "nano":
        return settings.build()
    engine = TransformersEngine("nano")
    cached = engine if settings.cache == "off" else CachedEngine(engine, settings.cache)
    return Judge(diffusion_nano.AskedAbout(), cached, Sampling(max_tokens=96))


def candidates(rows: Sequence[tuple[str, Sequence[str]]], file: Path) -> Path:
    """Writes prompts and their pictures as `annotate` reads them, beside `file`."""
    source = file.with_suffix(".candidates.jsonl")
    lines = [
        {"id": number, "question": prompt, "candidates": [{"image": name} for name in names]}
        for number, (prompt, names) in enumerate(rows)
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return source


def preferred(source: Path, file: Path, judge: Judge, margin: float) -> None:
    """Writes every pair of pictures with a winner: prompt, chosen, rejected; `file`.md counts the others."""
    counts = annotate_file(source, judge, file, which="all", margin=margin, media_root=file.parent)
    print(f"judged         {file.name}: {dict(counts)}", flush=True)


def pairs_of(
    options: PairArguments, own: Family, prompts: Sequence[str], folder: Path, seed: int, batch: int
) -> Dataset:
    """Draws the candidates and has them judged, as far as that is not done yet.

    Raises:
        ConfigError: fewer pairs than are to be trained on.
    """
    file = folder / "pairs.jsonl"
    names = [[f"pictures/{n}-{k}.png" for k in range(options.pictures)] for n in range(len(prompts))]
    repeated = [prompt for prompt in prompts for _ in range(options.pictures)]
    draw(own, repeated, [folder / name for row in names for name in row], options, seed, batch)
    if PartialState().is_main_process:
        source = candidates(list(zip(prompts, names, strict=True)), file)
        if not judged(file, settings_of(options), options.margin, source):
            preferred(source, file, judge_of(options), options.margin)
    PartialState().wait_for_everyone()
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    if len(lines) < options.fewest_pairs:
        raise ConfigError(
            f"{len(lines)} pairs are too few to train on (fewest_pairs={options.fewest_pairs}):"
            f" {file.with_suffix('.md')} counts why the others were skipped."
            " Lower the margin, or draw more prompts or more pictures of each in another output_dir"
        )
    return Dataset.from_list([{name: line[name] for name in ("id", "prompt", "chosen", "rejected")} for line in lines])


def split(pairs: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Pairs to train on, and those of other prompts to measure on."""
    texts = sorted(set(pairs["prompt"]))
    kept = set(random.Random(f"held out {seed}").sample(texts, max(1, math.ceil(share * len(texts)))))
    return pairs.filter(lambda row: row["prompt"] not in kept), pairs.filter(lambda row: row["prompt"] in kept)
