"""From prompts to preference pairs: the model generates images, `annotate_file` writes which ones the judge prefers.

All files are in OUTPUT/_work. Finished files are kept, so a run that was cut off continues. All processes generate
images; only the main process judges.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flexjudge_recipes.common import counted, pairs_of
from flexjudge_recipes.diffusion_dpo.families import Family
from flexjudge_recipes.nano import images as nano

import torch
from accelerate import PartialState
from datasets import Dataset, load_dataset
from PIL.Image import Image
from tqdm import tqdm

from flexjudge_reward import ConfigError, Judge, annotate_file


def load_prompts(name: str, split: str, column: str, counts: tuple[int, int], seed: int) -> tuple[list[str], list[str]]:
    """Prompts to train on, and held-out ones; none is in both.

    Raises:
        ConfigError: the data set lacks the column, or has too few different prompts.
    """
    if name == "nano":
        return nano.prompts(seed, counts[0]), nano.prompts(seed, counts[1], held_out=True)
    rows = load_dataset(name, split=split)
    if column not in rows.column_names:
        raise ConfigError(f"{name} has no column {column!r}; it has {', '.join(rows.column_names)}")
    prompts = list(dict.fromkeys(str(text).strip() for text in rows[column]))
    if len(prompts) < sum(counts):
        raise ConfigError(f"{name} has {len(prompts)} different prompts, {sum(counts)} are needed")
    sampled = random.Random(f"prompts {seed}").sample(prompts, sum(counts))
    return sampled[: counts[0]], sampled[counts[0] :]


@dataclass(frozen=True)
class ImageSampler:
    """How images are generated."""

    inference_steps: int
    guidance_scale: float
    size: tuple[int, int]
    batch_size: int

    def sample(self, family: Family, prompts: Sequence[str], each: int, folder: Path, seed: int) -> list[list[Path]]:
        """The files of `each` images per prompt, in `folder`. Those that exist are kept; processes share the others.

        Batches are those of a whole run, also where only some of their files are missing: an image depends a little on
        how many are generated with it, since a CPU's matrix product of another size rounds otherwise.
        """
        groups = [[folder / f"{number}-{index}.png" for index in range(each)] for number in range(len(prompts))]
        files = [file for group in groups for file in group]
        state = PartialState()
        if state.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
        state.wait_for_everyone()
        own = range(state.process_index, len(files), state.num_processes)
        todo = {index for index in own if not files[index].exists()}
        with tqdm(total=len(todo), desc="generating", unit="image", disable=not state.is_main_process) as bar:
            for start in range(0, len(own), self.batch_size):
                batch = own[start : start + self.batch_size]
                if not (missing := todo.intersection(batch)):
                    continue
                seeds = [seed * 1_000_003 + index for index in batch]
                images = self._generate(family, [prompts[index // each] for index in batch], seeds)
                for index, image in zip(batch, images, strict=True):
                    if index in missing:
                        unfinished = files[index].with_suffix(".new")
                        image.save(unfinished, format="PNG")
                        unfinished.replace(files[index])
                bar.update(len(missing))
        state.wait_for_everyone()
        return groups

    def _generate(self, family: Family, prompts: list[str], seeds: list[int]) -> list[Image]:
        family.pipe.set_progress_bar_config(disable=True)
        images: list[Image] = family.pipe(
            prompts,
            num_inference_steps=self.inference_steps,
            guidance_scale=self.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            height=self.size[0],
            width=self.size[1],
            **family.call_arguments,
        ).images
        return images


def compare(
    judge: Judge, prompts: Sequence[str], groups: Sequence[Sequence[Path]], output: Path, margin: float
) -> None:
    """Writes to `output`, a file of lines or a data set, every pair of a prompt's images that has a winner.

    The card beside or in it counts the others. What is finished is kept.

    Args:
        groups: the images of each prompt, all below the folder of `output`.
        margin: the least difference of the scores.
    """
    state, root = PartialState(), output.parent
    if state.is_main_process and not (output if output.suffix else output / "pairs.jsonl").exists():
        candidates = output.with_suffix(".candidates.jsonl")
        lines = [
            {"id": number, "question": prompt, "candidates": [{"image": str(file.relative_to(root))} for file in files]}
            for number, (prompt, files) in enumerate(zip(prompts, groups, strict=True))
        ]
        candidates.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        counts = annotate_file(candidates, judge, output, which="all", margin=margin, media_root=root)
        print(f"judge          {output.stem}: {counted(counts)}", flush=True)
    state.wait_for_everyone()


def load_pairs(folder: Path, eval_share: float, seed: int, min_pairs: int) -> tuple[Dataset, Dataset]:
    """The pairs of `folder` to train on, and those to evaluate on; no prompt is in both.

    Raises:
        ConfigError: fewer than `min_pairs` pairs.
    """
    pairs = pairs_of(folder, min_pairs).select_columns(["prompt", "chosen", "rejected"])
    prompts = sorted(set(pairs["prompt"]))
    count = max(1, math.ceil(eval_share * len(prompts)))
    kept = set(random.Random(f"held out {seed}").sample(prompts, count))
    numbered = list(enumerate(pairs["prompt"]))
    training, evaluation = ([n for n, text in numbered if (text in kept) == held_out] for held_out in (False, True))
    return pairs.select(training), pairs.select(evaluation)
