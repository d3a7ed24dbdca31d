"""A small SMILES policy: GPT-2's architecture, one token per atom or bond, pretrained on molecules made by rule.

Pretrained for three minutes and stopped early on purpose: not one sample in three is a molecule, so there is something
to learn.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import molecule_world as world
import torch
from common import loading
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import ModelConfig

from flexjudge_reward import ConfigError

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
_TOKENS = (
    *("Br", "Cl", "[nH]", "[N+]", "[O-]", "[n+]", "[C@H]", "[C@@H]", "[NH+]", "[S-]"),
    *"BCFHINOPSbcnops#=-+()[]@/\\.%0123456789",
)
POOL, BATCH, LENGTH = 6000, 64, 80  # molecules to learn from, per step, and tokens
STEPS = 700
NOTE = "pretrained.json"  # beside the weights of a policy that is known to come from here: the seed of its molecules


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A fixed vocabulary; what is not in it is unknown."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *_TOKENS))}
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
        model_max_length=2 * LENGTH,
        clean_up_tokenization_spaces=False,
    )


def known(seed: int) -> list[str]:
    """The molecules that the policy of `seed` is pretrained on, canonical."""
    return world.molecules(POOL, f"policy {seed}")


def pretrain(folder: Path, seed: int, steps: int | None = None) -> Path:
    """The pretrained policy in `folder`: made if it is not there, in about three minutes on one thread.

    Args:
        steps: None takes what is there, and makes one of STEPS.

    Raises:
        ConfigError: the one that is there had another number of steps than asked for.
    """
    if (folder / "config.json").exists():
        note = json.loads((folder / NOTE).read_text("utf-8")) if (folder / NOTE).exists() else {}
        made = note.get("steps")
        if steps is not None and made not in (None, steps):
            raise ConfigError(
                f"{folder} was pretrained for {made} steps, and {steps} are asked for:"
                " remove it, or give another folder as `prepared`"
            )
        return folder
    steps = steps or STEPS
    tokenizer, began = make_tokenizer(), time.monotonic()
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=2 * LENGTH,
            n_embd=128,
            n_layer=3,
            n_head=4,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            activation_function="gelu",  # the usual "gelu_new" costs a third of a step on a CPU
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps + 1, pct_start=0.1)
    for step, texts in zip(range(steps), _batches(known(seed), seed), strict=False):
        batch = tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"policy {step + 1}/{steps}  loss {loss.item():.3f}  {time.monotonic() - began:.0f} s", flush=True)
    whole(folder, model, tokenizer, {NOTE: {"seed": seed, "steps": steps}})
    return folder


def pretrained_on(policy: str) -> frozenset[str]:
    """The molecules that a policy was pretrained on, whatever came after; none if it is from elsewhere."""
    note = Path(policy, NOTE)
    return frozenset(known(json.loads(note.read_text("utf-8"))["seed"]) if note.exists() else ())


def carry(policy: str, folder: Path) -> None:
    """Notes in the folder of a trained policy what the one it began as was pretrained on, or that this is not known."""
    before, after = Path(policy, NOTE), folder / NOTE
    if before.exists():
        after.write_bytes(before.read_bytes())
    else:
        after.unlink(missing_ok=True)  # of another policy that was trained here


def _batches(texts: list[str], seed: int) -> Iterator[list[str]]:
    """Endless batches of about equal length."""
    rng = random.Random(seed)
    while True:
        pool = sorted((f"<bos>{text}<eos>" for text in rng.choices(texts, k=16 * BATCH)), key=len)
        groups = [pool[start : start + BATCH] for start in range(0, len(pool), BATCH)]
        rng.shuffle(groups)
        yield from groups


def whole(folder: Path, model: Any, tokenizer: Any, notes: dict[str, Any]) -> None:
    """Saves all of them, notes as files of JSON, so that the folder has all of it or is not there."""
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}.new")
    model.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    # Under its own name transformers takes the tokenizer that is usual for the architecture instead of this one.
    settings = json.loads((fresh / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (fresh / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    for name, note in notes.items():
        (fresh / name).write_text(json.dumps(note) + "\n", "utf-8")
    try:
        fresh.rename(folder)
    except OSError:  # another run, started beside this one, was faster
        if not (folder / "config.json").exists():
            raise
        shutil.rmtree(fresh)


def load(policy: str, model_args: ModelConfig, device: torch.device) -> tuple[Any, Any]:
    """Model and tokenizer of a policy, the pretrained or a trained one, or a Hub id."""
    how = loading(model_args, {"device_map": device})
    return AutoModelForCausalLM.from_pretrained(policy, **how), load_tokenizer(policy, model_args)


def load_tokenizer(policy: str, model_args: ModelConfig) -> Any:
    """The tokenizer of a policy; generators often have no token to fill up with, which the end may do."""
    tokenizer = AutoTokenizer.from_pretrained(policy, revision=model_args.model_revision)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def beginning(given: str | None, tokenizer: Any) -> str:
    """What the policy is given to go on from: `given`, or the token that begins a text, which is "" where the tokenizer
    writes that before every text itself.

    Raises:
        ConfigError: there is neither, the tokenizer would begin twice, or it ends every text.
    """
    name, bos = tokenizer.name_or_path, tokenizer.bos_token
    begun = str(given or bos or "")
    if not begun:
        raise ConfigError(
            f"the tokenizer of {name} has no token that begins a text:"
            " say as policy_prompt what the policy was trained to go on from"
        )
    plain, tokens = tokenizer(begun, add_special_tokens=False)["input_ids"], tokenizer(begun)["input_ids"]
    before = tokens[: len(tokens) - len(plain)]
    if tokens != before + plain:
        raise ConfigError(f"the tokenizer of {name} ends every text, so nothing can go on from a prompt: take another")
    if tokenizer.bos_token_id in before and plain[0] == tokenizer.bos_token_id:
        if given:
            raise ConfigError(
                f"policy_prompt begins with {bos}, which the tokenizer of {name} writes itself: leave it out"
            )
        return ""
    return begun


def smiles(written: str) -> str:
    """What a policy wrote, as a SMILES: tokenizers of a token per atom put spaces in between, chat models line ends."""
    return written.replace(" ", "").strip()


@torch.no_grad()
def sample(
    model: Any,
    tokenizer: Any,
    count: int,
    seed: int,
    temperature: float = 1.0,
    prompt: str | None = None,
    tokens: int = LENGTH,
) -> list[str]:
    """`count` samples, drawn without cut-offs; the trainer's own random numbers are left as they were.

    Args:
        prompt: see `beginning`.
        tokens: of the longest sample.
    """
    found: list[str] = []
    begun = beginning(prompt, tokenizer)
    with _still(model, seed):
        while len(found) < count:
            start = tokenizer([begun] * min(256, count - len(found)), return_tensors="pt").to(model.device)
            written = model.generate(
                **start,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=temperature,
                max_new_tokens=tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            written = written[:, start["input_ids"].shape[1] :]
            found += [smiles(text) for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
    return found


@contextmanager
def _still(model: Any, seed: int) -> Iterator[None]:
    training = model.training
    model.eval()
    device = model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # of every device, so what this one had is put back too
        yield
    model.train(training)
