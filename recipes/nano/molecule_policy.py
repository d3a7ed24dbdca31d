"""The tiny SMILES policy of the CPU run: GPT-2's architecture, one token per atom or bond, pretrained from nothing.

    python recipes/nano/molecule_policy.py runs/molecules/policy-1 --seed 1      # the recipes do this themselves

Pretraining takes about three minutes on one CPU thread. It stops early on purpose: fewer than one sample in three is a
molecule, so that there is something to learn.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flexjudge_recipes.nano.molecules import molecules

import torch
from accelerate import PartialState
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
TOKENS = (
    *("Br", "Cl", "[nH]", "[N+]", "[O-]", "[n+]", "[C@H]", "[C@@H]", "[NH+]", "[S-]"),
    *"BCFHINOPSbcnops#=-+()[]@/\\.%0123456789",
)
MOLECULES, STEPS, BATCH = 6000, 700, 64
LONGEST = 80  # tokens of a molecule
LIST = "_molecules.smi"  # beside the weights: the molecules of the pretraining; a trainer's push leaves "_*" out


def folder_of(name: str, prepared: Path, seed: int) -> str:
    """The policy that a recipe's `model_name_or_path` names; "nano" is pretrained in `prepared`, one for each seed."""
    if name != "nano":
        return name
    folder = prepared / f"policy-{seed}"
    with PartialState().main_process_first():
        if not folder.exists():
            pretrain(folder, seed, molecules(MOLECULES, f"policy {seed}"))
    return str(folder)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A fixed vocabulary; what is not in it is unknown."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *TOKENS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"Br|Cl|\[nH\]|\[[A-Za-z@]+H?[+-]?\]|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    pad, bos, eos, unk = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        model_max_length=2 * LONGEST,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """Six hundred thousand parameters."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=2 * LONGEST,
        n_embd=128,
        n_layer=3,
        n_head=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        activation_function="gelu",  # the usual "gelu_new" costs a third of a step on a CPU
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    )
    return GPT2LMHeadModel(config)


def pretrain(folder: Path, seed: int, texts: Sequence[str], steps: int = STEPS, batch: int = BATCH) -> None:
    """Trains a policy on canonical SMILES and leaves it in `folder`."""
    torch.manual_seed(seed)
    tokenizer, start = make_tokenizer(), time.monotonic()
    model = make_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps + 1, pct_start=0.1)
    for step, group in zip(range(steps), _batches(texts, seed, batch), strict=False):
        rows = tokenizer(group, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
        loss = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - start
            print(f"policy         {step + 1}/{steps}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)
    with appears_whole(folder) as unfinished:
        save(unfinished, model, tokenizer)
        (unfinished / LIST).write_text("".join(f"{text}\n" for text in texts), "utf-8")


def pretrained_on(policy: str) -> frozenset[str]:
    """The canonical SMILES that a policy was pretrained on; none where they are not known."""
    file = Path(policy, LIST)
    return frozenset(file.read_text("utf-8").split()) if file.exists() else frozenset()


def keep_list(policy: str, trained: Path) -> None:
    """Copies the list of a policy's molecules beside the policy that was trained from it."""
    if Path(policy, LIST).exists():
        shutil.copyfile(Path(policy, LIST), trained / LIST)


def _batches(texts: Sequence[str], seed: int, batch: int) -> Iterator[list[str]]:
    """Endless batches of about equal length."""
    rng = random.Random(seed)
    while True:
        pool = sorted((f"<bos>{text}<eos>" for text in rng.choices(texts, k=16 * batch)), key=len)
        groups = [pool[start : start + batch] for start in range(0, len(pool), batch)]
        rng.shuffle(groups)
        yield from groups


# ---------------------------------------------------------------------------------- saving, for the tiny judge as well


@contextmanager
def appears_whole(folder: Path) -> Iterator[Path]:
    """An empty folder to write to, which becomes `folder` at the end. If another process was faster, its own stays."""
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.new")
    unfinished.mkdir(parents=True)
    yield unfinished
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        shutil.rmtree(unfinished)


def save(folder: Path, model: Any, tokenizer: Any) -> None:
    """Saves both, so that AutoTokenizer loads this tokenizer and not the architecture's usual one."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text("utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    file.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    pretrain(options.folder, options.seed, molecules(MOLECULES, f"policy {options.seed}"))
