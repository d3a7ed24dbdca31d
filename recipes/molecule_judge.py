"""A small judge of molecules: reads the descriptors it is shown, holds each to a range, counts, and answers 1 to 10.

    python recipes/molecules.py judge --prepared runs/molecules       (three to four minutes on one CPU thread)

Trained from nothing on text-only traces whose teacher is `points` below, applied to what RDKit says of molecules made
by rule. The prompts are the package's own (format Score, wording nano, a `Media.molecule` as the candidate), so it sees
in training, token for token, what it sees in use. Half of the training molecules get descriptors drawn at random in
place of their own, so that it learns to read them and not to guess them from the SMILES.

What it knows is this table and nothing else: `card` says so in the README.md beside its weights.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import molecule_world as world
import torch
import torch.nn.functional as F
from molecule_policy import whole
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flexjudge_reward import Example, Judge, Media, Sampling, Score, TransformersEngine
from flexjudge_reward.prompts.quoting import flatten
from flexjudge_reward.types import Message

QUESTION = "Write a drug-like molecule."
RULES = {  # descriptor: fair from, good from, good to, fair to; the ranges of rubrics/molecule.toml
    "molecular weight": (200, 250, 420, 500),
    "logP": (0, 1, 4, 5),
    "H-bond donors": (0, 1, 2, 4),
    "H-bond acceptors": (1, 2, 6, 9),
    "TPSA": (15, 30, 100, 130),
    "rotatable bonds": (0, 2, 6, 9),
    "rings": (1, 2, 3, 4),
    "aromatic rings": (0, 1, 2, 3),
}
_WORDS = (" poor ", " fair ", " good ")
_RANDOM = {"molecular weight": 700, "TPSA": 180, "H-bond acceptors": 14}  # up to; others to a little over their range
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<answer>", "</answer>")
PLAN = {"steps": 500, "batch": 24, "rate": 3e-3}
POOL, HELD_OUT = 3000, 300

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""


# ----------------------------------------------------------------------------------------------------------- teacher


def read(shown: str) -> dict[str, str]:
    """The descriptors of a molecule's text, as they are written there."""
    facts = shown.split("Descriptors: ")[1].split("\n")[0]
    return {name: value for name, _, value in (fact.rpartition(" ") for fact in facts.split(", "))}


def points(name: str, value: float) -> int:
    """2 in the good range, 1 in the fair one, else 0; both ends belong to a range."""
    fair_from, good_from, good_to, fair_to = RULES[name]
    return int(fair_from <= value <= fair_to) + int(good_from <= value <= good_to)


def trace(shown: str) -> str:
    """What the teacher writes about a molecule's text: a line for each rule with the sum so far, then the score."""
    facts, total, lines = read(shown), 0, ""
    for name in RULES:
        earned = points(name, float(facts[name]))
        total += earned
        lines += f"{name} {facts[name]}{_WORDS[earned]}{total}\n"
    return f"<think>{lines}</think><answer>{1 + 9 * total // (2 * len(RULES))}</answer>"


def score(shown: str) -> int:
    """The teacher's score."""
    return int(trace(shown).split("<answer>")[1].split("<")[0])


# -------------------------------------------------------------------------------------------------------------- data


def shuffled(shown: str, rng: random.Random) -> str:
    """The same text with the descriptors that have a rule drawn anew."""
    for name, (*_, most) in RULES.items():
        top = _RANDOM.get(name, most + 3)
        drawn = f"{rng.uniform(-2, 8):.1f}".replace("-0.0", "0.0") if name == "logP" else str(rng.randint(0, top))
        shown = re.sub(rf"((?:: |, ){name}) -?[0-9.]+", rf"\1 {drawn}", shown)
    return shown


def prompt(shown: str | Media, tokenizer: PreTrainedTokenizerFast, format: Score) -> str:
    """The judge's prompt as the engines write it."""
    (asked,) = format.render(Example(QUESTION, [shown]))
    return str(
        tokenizer.apply_chat_template(
            [{"role": message.role, "content": _text(message)} for message in asked.messages],
            tokenize=False,
            add_generation_prompt=True,
        )
    )


def _text(message: Message) -> str:
    return "".join(map(str, flatten(message, frozenset(_SPECIAL))))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word of the traces and of the prompt around a molecule, and for each other character."""
    words = [*(f"{name} " for name in RULES), "largest ring ", "heavy atoms ", "charge ", *_WORDS, ", ", "SMILES: "]
    words += ["Descriptors: ", "```", "Score A from ", " to ", QUESTION, "system", "user", "assistant", "1", *_SPECIAL]
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    tokens = dict.fromkeys(["<unk>", *_SPECIAL, *words, *characters])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    split = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) + r"|[\s\S]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(split), "isolated")
    tokenizer.decoder = decoders.Fuse()
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        extra_special_tokens=["<|im_start|>"],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    found.add_tokens(list(_SPECIAL[3:]))
    found.chat_template = CHAT_TEMPLATE
    return found


def _batches(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of about equal length: token ids, and the targets of the replies (-100 elsewhere)."""
    rng, format = random.Random(f"judge {seed}"), Score("molecule", "nano")
    # The text of a molecule stands in for the molecule: the prompt is the same.
    size = PLAN["batch"]
    while True:
        pool = []
        for shown in rng.sample(texts, min(len(texts), int(12 * size))):
            seen = shuffled(shown, rng) if rng.random() < 0.5 else shown
            ids = tokenizer.encode(prompt(seen, tokenizer, format), add_special_tokens=False)
            pool.append((ids, tokenizer.encode(trace(seen) + "<|im_end|>", add_special_tokens=False)))
        pool.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        groups = [pool[start : start + int(size)] for start in range(0, len(pool), int(size))]
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
    """A third of a million parameters; Llama's architecture, because with Qwen2's comes Qwen2's tokenizer."""
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
    with torch.no_grad():  # the fixed 0.02 of the large models leaves so small a model asleep
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
            elif isinstance(module, torch.nn.Embedding):
                torch.nn.init.normal_(module.weight, std=0.5)
    return model


def train(folder: Path, steps: int | None = None, seed: int = 0) -> Path:
    """The judge in `folder`: trained if it is not there. Writes the weights, and README.md with what was measured."""
    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(seed)
    tokenizer, began, steps = make_tokenizer(), time.monotonic(), steps or int(PLAN["steps"])
    model = make_model(tokenizer)
    texts = [_shown(one) for one in world.molecules(POOL, "judge")]
    optimizer = torch.optim.AdamW(model.parameters(), lr=PLAN["rate"], betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PLAN["rate"], total_steps=steps + 1, pct_start=0.1)
    for step, (ids, targets) in zip(range(steps), _batches(texts, tokenizer, seed), strict=False):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        wanted = targets[:, 1:]
        loss = F.cross_entropy(model.lm_head(hidden[wanted >= 0]), wanted[wanted >= 0])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"judge {step + 1}/{steps}  loss {loss.item():.4f}  {time.monotonic() - began:.0f} s", flush=True)
    whole(folder, model.eval(), tokenizer, {})
    found = measure(folder) | {"training_seconds": round(time.monotonic() - began), "steps": steps}
    (folder / "measured.json").write_text(json.dumps(found, indent=2) + "\n")
    (folder / "README.md").write_text(card(found))
    print(f"judge exact on {found['exact']:.1%} of held-out molecules", flush=True)
    return folder


def _shown(smiles: str) -> str:
    (text,) = Media.molecule(smiles).shown()
    return str(text)


def measure(folder: Path) -> dict[str, float]:
    """Held-out molecules: the shares whose score is the teacher's, and whose whole reasoning is; and of failures."""
    unseen = set(world.molecules(POOL, "judge"))
    fresh = (one for one in world.molecules(2 * HELD_OUT, "held out") if one not in unseen)
    media = [Media.molecule(one) for one in itertools.islice(fresh, HELD_OUT)]
    judge = Judge(Score("molecule", "nano"), TransformersEngine(str(folder), device="cpu"), Sampling(max_tokens=128))
    verdicts = judge([Example(QUESTION, [one]) for one in media])
    judge.close()
    pairs = [(str(one.shown()[0]), verdict) for one, verdict in zip(media, verdicts, strict=True)]
    return {
        "exact": sum(verdict.scores == (float(score(text)),) for text, verdict in pairs) / len(pairs),
        "trace_exact": sum(verdict.generations[0].text == trace(text) for text, verdict in pairs) / len(pairs),
        "failed": sum(verdict.failure is not None for _, verdict in pairs) / len(pairs),
        "held_out": len(pairs),
    }


def card(found: dict[str, float]) -> str:
    """The model card of the judge."""
    rows = "\n".join(f"| {name} | {a} to {b} | {c} to {d} |" for name, (c, a, b, d) in RULES.items())
    return f"""# A small judge of molecules

Trained from nothing by `recipes/molecule_judge.py`, {found["steps"]} steps, {found["training_seconds"]} seconds.

What it can judge: the descriptors in the prompt (what `Media.molecule` shows), each against the two ranges below, two
points in the good one and one in the fair one; the points, 0 to {2 * len(RULES)}, become a score of 1 to 10.

| descriptor | good | fair |
|---|---|---|
{rows}

What it cannot: anything else. It does not look at the structure, knows no chemistry, follows no other rubric, question,
wording or format, and compares nothing. Far from the ranges it was trained on it may misread a number.

On {found["held_out"]:g} held-out molecules the score is the rules' own for {found["exact"]:.1%}, the reasoning
for {found["trace_exact"]:.1%}; {found["failed"]:.1%} of the replies could not be read.

Use: `FlexJudgeReward(model="...", rubric="molecule", prompts="nano")`, with transformers or vLLM.
"""
