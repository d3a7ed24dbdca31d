"""Preference pairs for DPO from the policy's own samples. Every file is a finished step, which a resumed run keeps.

_work/candidates.jsonl    the different molecules of each row, for the judge
_work/invalid.jsonl       pairs of a molecule and a sample of its row that is none: a fact, without a judge call
_work/pairs/              pairs of molecules as the judge prefers them (`annotate_file`); README.md counts the rest
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flexjudge_recipes.common import counted, pairs_of
from flexjudge_recipes.molecules.measure import canonical
from flexjudge_recipes.molecules.sampling import Sampler

from flexjudge_reward import ConfigError, Judge, annotate_file

TEMPERATURES = (0.7, 1.0)  # of the samples; at the lower one, more of them are molecules
INVALID_PER_ROW = 3  # the most pairs of a row in invalid.jsonl, so that they do not outnumber the judged ones


def preference_pairs(
    work: Path, load_policy: Callable[[], Any], tokenizer: Any, sampler: Sampler, judge: Judge, options: Any
) -> list[dict[str, str]]:
    """All pairs, as {"chosen", "rejected"}.

    Args:
        work: the folder of the files.
        load_policy: called only if there are no candidates yet.
        options: `rows`, `answers`, `question`, `margin` and `min_pairs` of the recipe.

    Raises:
        ConfigError: hardly a sample is a molecule, or there are fewer judged pairs than `min_pairs`.
    """
    candidates, pairs = work / "candidates.jsonl", work / "pairs"
    if not candidates.exists():
        print(f"sampling       {options.rows} rows of {options.answers} samples", flush=True)
        policy, each = load_policy(), options.rows * options.answers // len(TEMPERATURES)
        drawn = [sampler(policy, tokenizer, each, temperature) for temperature in TEMPERATURES]
        rows = [[text for part in drawn for text in part[number :: options.rows]] for number in range(options.rows)]
        _write_candidates(rows, work, sampler.seed, options.question)
    if not Path(pairs, "pairs.jsonl").exists():
        print(f"judging        {candidates}", flush=True)
        counts = annotate_file(candidates, judge, pairs, which="all", margin=options.margin)
        print(f"judge          {counted(counts)}", flush=True)
    judged = pairs_of(pairs, options.min_pairs)
    preferred = [{side: row[side][0]["content"] for side in ("chosen", "rejected")} for row in judged]
    valid_invalid = _read(work / "invalid.jsonl")
    print(f"pairs          {len(preferred)} judged, {len(valid_invalid)} of a molecule and what is none", flush=True)
    return preferred + valid_invalid


def _write_candidates(rows: Sequence[Sequence[str]], work: Path, seed: int, question: str) -> None:
    rng, candidates, invalid = random.Random(f"pairs {seed}"), list[dict[str, Any]](), list[dict[str, Any]]()
    for number, samples in enumerate(rows):
        molecules = list(dict.fromkeys(text for text in map(canonical, samples) if text is not None))
        rejected = [text for text in samples if canonical(text) is None][:INVALID_PER_ROW]
        if len(molecules) > 1:
            row = {"id": number, "question": question, "candidates": [{"molecule": text} for text in molecules]}
            candidates.append(row)
        if molecules:
            invalid += [{"chosen": rng.choice(molecules), "rejected": text} for text in rejected]
    if not candidates:
        raise ConfigError("no row of samples has two different molecules: the policy needs more pretraining")
    work.mkdir(parents=True, exist_ok=True)
    _write(work / "invalid.jsonl", invalid)
    _write(work / "candidates.jsonl", candidates)  # the last: it says that the step is finished


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    new = file.with_name(file.name + ".new")
    new.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    new.replace(file)


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]
