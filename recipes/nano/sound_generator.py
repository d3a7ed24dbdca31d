"""The tiny generator of sounds of the CPU run: a language model that writes the settings of a synthesiser.

    python recipes/nano/sound_generator.py runs/sounds/generator-1 --seed 1      # the recipe does this itself

A request such as "shrill chirp third" asks for one sound at one place. The model writes a recording: for each of the
four places a pitch, one of 24 steps of a quarter octave, and a timbre, or silence. Pretraining takes half a minute. Its
recordings have faults on purpose (`written`), so that a reward has something to teach. The truth about a recording is
read from its settings; no judge sees them.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from pathlib import Path

from flexjudge_recipes.nano.molecule_policy import appears_whole, save
from flexjudge_recipes.nano.sounds import HERTZ, synthesised
from flexjudge_recipes.nano.world import SOUNDS

import numpy as np
import torch
from accelerate import PartialState
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

PITCHES = [150 * 2 ** (step / 4.4) for step in range(24)]
"""Hertz of the steps, 150 to 5,600."""
_PITCH = {f"p{step}": hertz for step, hertz in enumerate(PITCHES)}
_TIMBRE = {f"t{number}": timbre for number, timbre in enumerate(SOUNDS.seconds)}
_SILENCE = "p-"
LENGTH = 8  # tokens of a recording
STEPS, BATCH = 500, 64
_FAULTY = 0.6  # of the recordings of the pretraining


# -------------------------------------------------------------------------------------------------------- requests


def requests(seed: int | str, count: int) -> list[str]:
    """`count` requests, each of the 80 about equally often."""
    rng = random.Random(f"requests {seed}")
    every = [f"{one} {two} {place}" for one in SOUNDS.firsts for two in SOUNDS.seconds for place in SOUNDS.places]
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += rng.sample(every, len(every))
    return drawn[:count]


def settings(text: str) -> list[tuple[float, str] | None] | None:
    """Pitch in hertz and timbre of each place, None for silence; None for what is not the text of a recording."""
    words = text.split()
    if len(words) != LENGTH or any(word not in _PITCH and word != _SILENCE for word in words[::2]):
        return None
    if any(word not in _TIMBRE for word in words[1::2]):
        return None
    pairs = zip(words[::2], words[1::2], strict=True)
    return [None if pitch == _SILENCE else (_PITCH[pitch], _TIMBRE[timbre]) for pitch, timbre in pairs]


def recording(text: str) -> np.ndarray | None:
    """What a text sounds like; the same text always sounds the same. None for what is no recording."""
    contents = settings(text)
    return None if contents is None else synthesised(contents, random.Random(text))


def is_right(request: str, text: str) -> bool:
    """The truth: whether the sound at the place that the request names has its pitch and its timbre."""
    pitch, timbre, place = request.split()
    contents = settings(text)
    found = None if contents is None else contents[SOUNDS.places.index(place)]
    return found is not None and (nearest(found[0]), found[1]) == (pitch, timbre)


def nearest(hertz: float) -> str:
    """The pitch that is nearest in octaves."""
    return min(HERTZ, key=lambda pitch: abs(math.log2(HERTZ[pitch] / hertz)))


# ----------------------------------------------------------------------------------------------------- pretraining


def written(rng: random.Random, request: str) -> str:
    """A recording for a request; six in ten have one fault at the place: the timbre, the pitch, or the place itself."""
    pitch, timbre, place = request.split()
    wanted, index = (pitch, timbre), SOUNDS.places.index(place)
    fault = rng.choice(("timbre", "pitch", "place")) if rng.random() < _FAULTY else ""
    if fault == "timbre":
        wanted = (pitch, rng.choice(SOUNDS.seconds))
    elif fault == "pitch":
        wanted = (rng.choice(SOUNDS.firsts), timbre)
    elif fault == "place":
        index = (index + 1) % 4
    words = []
    for number in range(4):
        one, two = wanted if number == index else SOUNDS.content(rng)
        silent = number != index and rng.random() < 0.3
        steps = [step for step, hertz in enumerate(PITCHES) if abs(math.log2(hertz / HERTZ[one])) < 0.25]
        words += [_SILENCE if silent else f"p{rng.choice(steps)}", f"t{SOUNDS.seconds.index(two)}"]
    return " ".join(words)


def folder_of(name: str, prepared: Path, seed: int) -> str:
    """The generator that a recipe's `model_name_or_path` names; "nano" is pretrained in `prepared`, one for a seed."""
    if name != "nano":
        return name
    folder = prepared / f"generator-{seed}"
    with PartialState().main_process_first():
        if not folder.exists():
            pretrain(folder, seed)
    return str(folder)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every word of a request and every setting."""
    tokens = ("<pad>", "<eos>", "<unk>", *SOUNDS.words, *_PITCH, _SILENCE, *_TIMBRE)
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, clean_up_tokenization_spaces=False)


def make_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """Four hundred thousand parameters."""
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    size = {"n_positions": 16, "n_embd": 128, "n_layer": 2, "n_head": 4, "activation_function": "gelu"}
    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **size, **ends, **still))


def pretrain(folder: Path, seed: int, steps: int = STEPS, batch: int = BATCH) -> None:
    """Trains a generator on requests and their recordings, and leaves it in `folder`."""
    torch.manual_seed(seed)
    tokenizer, rng = make_tokenizer(), random.Random(f"pretraining {seed}")
    model = make_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1, pct_start=0.1)
    for step in range(steps):
        asked = requests(f"{seed} {step}", batch)
        rows: Sequence[str] = [f"{request} {written(rng, request)} <eos>" for request in asked]
        ids = tokenizer(rows, return_tensors="pt")["input_ids"]
        labels = ids.clone()
        labels[:, :3] = -100  # the request is given
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"generator      {step + 1}/{steps}  loss {loss.item():.3f}", flush=True)
    with appears_whole(folder) as unfinished:
        save(unfinished, model, tokenizer)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    pretrain(options.folder, options.seed)
