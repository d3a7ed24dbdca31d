"""Samples of a SMILES policy: one that continues from its BOS token, or a language model that continues a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoTokenizer

from flexjudge_reward import ConfigError


def load_tokenizer(policy: str, revision: str | None) -> Any:
    """The tokenizer of a policy; the EOS token pads where there is no token for that."""
    tokenizer = AutoTokenizer.from_pretrained(policy, revision=revision)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def policy_prompt(given: str | None, tokenizer: Any) -> str:
    """The text that the policy continues: `given`, else the BOS token, or "" where the tokenizer adds that itself.

    Raises:
        ConfigError: there is neither, the tokenizer would add a second BOS token, or it ends every text.
    """
    name, bos = tokenizer.name_or_path, tokenizer.bos_token
    prompt = str(given or bos or "")
    if not prompt:
        raise ConfigError(f"the tokenizer of {name} has no BOS token: set policy_prompt to the prompt of its training")
    plain, tokens = tokenizer(prompt, add_special_tokens=False)["input_ids"], tokenizer(prompt)["input_ids"]
    added = tokens[: len(tokens) - len(plain)]
    if tokens != added + plain:
        raise ConfigError(f"the tokenizer of {name} ends every text, so that no prompt can be continued: use another")
    if tokenizer.bos_token_id not in added or plain[0] != tokenizer.bos_token_id:
        return prompt
    if given:
        raise ConfigError(f"policy_prompt begins with {bos}, which the tokenizer of {name} adds itself: leave it out")
    return ""


def smiles(completion: str) -> str:
    """A completion as a SMILES: tokenizers of one token per atom put spaces in between, chat models end lines."""
    return completion.replace(" ", "").strip()


@dataclass(frozen=True)
class Sampler:
    """Draws samples without top-k and top-p; the same ones for a seed. The trainer's random state stays as it was."""

    prompt: str
    """See `policy_prompt`."""
    max_new_tokens: int
    seed: int

    @torch.no_grad()
    def __call__(self, model: Any, tokenizer: Any, count: int, temperature: float = 1.0) -> list[str]:
        """`count` samples, in batches of 256."""
        samples: list[str] = []
        with _evaluating(model, self.seed):
            while len(samples) < count:
                rows = [self.prompt] * min(256, count - len(samples))
                inputs = tokenizer(rows, return_tensors="pt").to(model.device)
                tokens = model.generate(
                    **inputs,
                    do_sample=True,
                    top_k=0,
                    top_p=1.0,
                    temperature=temperature,
                    max_new_tokens=self.max_new_tokens,
                    pad_token_id=tokenizer.pad_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                )
                completions = tokens[:, inputs["input_ids"].shape[1] :]
                samples += map(smiles, tokenizer.batch_decode(completions, skip_special_tokens=True))
        return samples


@contextmanager
def _evaluating(model: Any, seed: int) -> Iterator[None]:
    training, device = model.training, model.device
    model.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
    model.train(training)
