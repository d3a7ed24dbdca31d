"""The tiny judge of molecules of the CPU run: compares descriptors with ranges, counts points, answers 1 to 10.

    python recipes/nano/molecule_judge.py runs/molecules/judge      # the recipes do this themselves

Training takes three to four minutes on one CPU thread. The judge is trained from nothing on text-only traces. Their
teacher is `points` below, applied to what RDKit says of molecules made by rule. The prompts are the package's own
(format pointwise, prompt set nano, a molecule as the candidate): training and use show the same tokens. Half of the
training molecules get random descriptors, so that the judge learns to read them and not to guess them from the SMILES.

The judge knows this table and nothing else: the README.md beside its weights says so.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flexjudge_recipes.nano.molecule_policy import appears_whole, save
from flexjudge_recipes.nano.molecules import molecules

import torch
import torch.nn.functional as F
from accelerate import PartialState
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flexjudge_reward import (
    Example,
    Judge,
    JudgeConfig,
    Media,
    Pointwise,
    RewardConfig,
    Sampling,
    TransformersEngine,
    Untrusted,
)

QUESTION = "Write a drug-like molecule."
SETTINGS = {"rubric": "molecule", "prompt_set": "nano", "max_tokens": 128, "answer_tokens": 0}
RULES = {  # descriptor: fair from, good from, good to, fair to; the ranges of prompts/rubrics/molecule.toml
    "molecular weight": (200, 250, 420, 500),
    "logP": (0, 1, 4, 5),
    "H-bond donors": (0, 1, 2, 4),
    "H-bond acceptors": (1, 2, 6, 9),
    "TPSA": (15, 30, 100, 130),
    "rotatable bonds": (0, 2, 6, 9),
    "rings": (1, 2, 3, 4),
    "aromatic rings": (0, 1, 2, 3),
}
GRADES = (" poor ", " fair ", " good ")
HIGHEST_RANDOM = {"molecular weight": 700, "TPSA": 180, "H-bond acceptors": 14}  # of others a little above their range
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<answer>", "</answer>")
STEPS, BATCH, RATE = 500, 24, 3e-3
MOLECULES, HELD_OUT = 3000, 300
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""


def settings(given: Mapping[str, Any], prepared: Path) -> dict[str, Any]:
    """A recipe's `judge` settings; the model "nano" is the judge of this file, trained in `prepared` at the first use.

    Raises:
        ConfigError: a wrong setting, before anything is trained.
    """
    if given.get("model") != "nano" or "base_url" in given:
        return {"rubric": "molecule", **given}
    JudgeConfig.resolve({name: value for name, value in given.items() if name not in vars(RewardConfig())})
    folder = prepared / "judge"
    with PartialState().main_process_first():
        if not folder.exists():
            train(folder)
    return SETTINGS | dict(given) | {"model": str(folder)}


# ----------------------------------------------------------------------------------------------------------- teacher


def read(text: str) -> dict[str, str]:
    """The descriptors in a molecule's text, as they are written there."""
    descriptors = text.split("Descriptors: ")[1].split("\n")[0]
    return {name: value for name, _, value in (entry.rpartition(" ") for entry in descriptors.split(", "))}


def points(name: str, value: float) -> int:
    """2 in the good range, 1 in the fair one, else 0; both ends belong to a range."""
    fair_from, good_from, good_to, fair_to = RULES[name]
    return int(fair_from <= value <= fair_to) + int(good_from <= value <= good_to)


def trace(text: str) -> str:
    """The teacher's reply to a molecule's text: per rule a line with the sum so far, then the score."""
    values, total, lines = read(text), 0, ""
    for name in RULES:
        earned = points(name, float(values[name]))
        total += earned
        lines += f"{name} {values[name]}{GRADES[earned]}{total}\n"
    return f"<think>{lines}</think><answer>{1 + 9 * total // (2 * len(RULES))}</answer>"


def score(text: str) -> int:
    """The teacher's score."""
    return int(trace(text).split("<answer>")[1].split("<")[0])


# -------------------------------------------------------------------------------------------------------------- data


def shown(smiles: str) -> str:
    """A molecule's text, as every judge sees it."""
    (text,) = Media.molecule(smiles).as_judge_input()
    return str(text)


def randomised(text: str, rng: random.Random) -> str:
    """The same text with random values of the descriptors that have a rule."""
    for name, (*_, highest) in RULES.items():
        top = HIGHEST_RANDOM.get(name, highest + 3)
        value = f"{rng.uniform(-2, 8):.1f}".replace("-0.0", "0.0") if name == "logP" else str(rng.randint(0, top))
        text = re.sub(rf"((?:: |, ){name}) -?[0-9.]+", rf"\1 {value}", text)
    return text


def prompt(text: str, tokenizer: PreTrainedTokenizerFast, format: Pointwise) -> str:
    """The judge's prompt as the engines write it: the text of a molecule in place of the molecule gives the same."""
    (rendered,) = format.render(Example(QUESTION, [text]))
    messages = []
    for message in rendered.messages:
        parts = [part.text if isinstance(part, Untrusted) else str(part) for part in message.parts]
        messages.append({"role": message.role, "content": "".join(parts)})
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word of the traces and of the prompt around a molecule, and for each other character."""
    words = [*(f"{name} " for name in RULES), "largest ring ", "heavy atoms ", "charge ", *GRADES, ", ", "SMILES: "]
    words += ["Descriptors: ", "```", "Score A from ", " to ", QUESTION, "system", "user", "assistant", "1", *SPECIAL]
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    tokens = dict.fromkeys(["<unk>", *SPECIAL, *words, *characters])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    split = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) + r"|[\s\S]"
    model.pre_tokenizer = pre_tokenizers.Split(Regex(split), "isolated")
    model.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        extra_special_tokens=["<|im_start|>"],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens(list(SPECIAL[3:]))
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _batches(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of about equal length: token ids, and the targets of the replies (-100 elsewhere)."""
    rng, format = random.Random(f"judge {seed}"), Pointwise("molecule", "nano")
    while True:
        pool = []
        for text in rng.sample(texts, min(len(texts), 12 * BATCH)):
            text = randomised(text, rng) if rng.random() < 0.5 else text
            ids = tokenizer.encode(prompt(text, tokenizer, format), add_special_tokens=False)
            pool.append((ids, tokenizer.encode(trace(text) + "<|im_end|>", add_special_tokens=False)))
        pool.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        groups = [pool[start : start + BATCH] for start in range(0, len(pool), BATCH)]
        rng.shuffle(groups)
        for group in groups:
            ids = [torch.tensor(asked + reply) for asked, reply in group]
            targets = [torch.tensor([-100] * len(asked) + reply) for asked, reply in group]
            yield (
                torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
                torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100),
            )


# ---------------------------------------------------------------------------------------------------------- training


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A third of a million parameters; Llama's architecture, because Qwen2's always gets Qwen2's own tokenizer."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        attention_bias=True,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # the fixed 0.02 of large models is too small for so small a model to learn
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
            elif isinstance(module, torch.nn.Embedding):
                torch.nn.init.normal_(module.weight, std=0.5)
    return model


def train(folder: Path, steps: int = STEPS, pool: int = MOLECULES, held_out: int = HELD_OUT, seed: int = 0) -> None:
    """Trains the judge and leaves it in `folder`, with measured.json and a model card.

    Args:
        pool: molecules to learn from.
        held_out: molecules to measure with.
    """
    torch.manual_seed(seed)
    tokenizer, start = make_tokenizer(), time.monotonic()
    model = make_model(tokenizer)
    known = molecules(pool, "judge")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1, pct_start=0.1)
    for step, (ids, targets) in zip(range(steps), _batches([*map(shown, known)], tokenizer, seed), strict=False):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        labels = targets[:, 1:]
        loss = F.cross_entropy(model.lm_head(hidden[labels >= 0]), labels[labels >= 0])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - start
            print(f"judge          {step + 1}/{steps}  loss {loss.item():.4f}  {seconds:.0f} s", flush=True)
    with appears_whole(folder) as unfinished:
        save(unfinished, model.eval(), tokenizer)
        trained_on = set(known)
        unseen = [smiles for smiles in molecules(2 * held_out, "held out") if smiles not in trained_on]
        measured = measure(unfinished, unseen[:held_out])
        measured |= {"training_seconds": round(time.monotonic() - start), "steps": steps}
        (unfinished / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")
        (unfinished / "README.md").write_text(card(measured))
    print(f"judge          exact on {measured['exact']:.1%} of held-out molecules", flush=True)


def measure(folder: Path, held_out: Sequence[str]) -> dict[str, float]:
    """Held-out molecules: the shares whose score is the teacher's, and whose whole reasoning is; and of failures."""
    engine = TransformersEngine(str(folder), device="cpu")
    with Judge(Pointwise("molecule", "nano"), engine, Sampling(max_tokens=128)) as judge:
        verdicts = judge([Example(QUESTION, [Media.molecule(smiles)]) for smiles in held_out])
    pairs = [(shown(smiles), verdict) for smiles, verdict in zip(held_out, verdicts, strict=True)]
    return {
        "exact": sum(verdict.scores == (float(score(text)),) for text, verdict in pairs) / len(pairs),
        "trace_exact": sum(verdict.generations[0].text == trace(text) for text, verdict in pairs) / len(pairs),
        "failed": sum(verdict.failure is not None for _, verdict in pairs) / len(pairs),
        "held_out": len(pairs),
    }


def card(measured: Mapping[str, float]) -> str:
    """The model card of the judge."""
    rows = "\n".join(f"| {name} | {a} to {b} | {c} to {d} |" for name, (c, a, b, d) in RULES.items())
    return f"""# A tiny judge of molecules

Trained from nothing by `recipes/nano/molecule_judge.py`, {measured["steps"]} steps, {measured["training_seconds"]}
seconds.

What it can judge: the descriptors in the prompt (those of `Media.molecule`), each against the two ranges below. A value
in the good range earns two points, in the fair one a point; the sum, 0 to {2 * len(RULES)}, becomes a score of 1 to 10.

| descriptor | good | fair |
|---|---|---|
{rows}

What it cannot: anything else. It does not look at the structure, knows no chemistry, follows no other rubric, question,
prompt set or format, and compares nothing. Far from the ranges that it was trained on it may misread a number.

On {measured["held_out"]:g} held-out molecules the score is the rules' own for {measured["exact"]:.1%}, the whole
reasoning for {measured["trace_exact"]:.1%}; {measured["failed"]:.1%} of the replies could not be read.

Use: `FlexJudgeReward(model="...", rubric="molecule", prompt_set="nano")`, with transformers or vLLM.
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder")
    train(parser.parse_args().folder)
