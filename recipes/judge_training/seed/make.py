"""Seed data for a judge (Flex-Judge, section 2.2): traces that agree with a teacher's scores, in many formats.

    python recipes/judge_training/seed/make.py --config recipes/judge_training/seed/nano.yaml

Two CPU cores, nothing to download: the embedded judge compares the answers of 600 rows in the form of
JudgeLM-100K; a tenth of them are damaged. Expect nine in ten rows to agree with the teacher.

    vllm serve nuojohnchen/JudgeLRM-7B --port 8001
    python recipes/judge_training/seed/make.py --config recipes/judge_training/seed/judgelm.yaml

`output_dir` has traces.parquet with its card (`flexjudge traces`: every trace that agrees, the longest of each prompt)
and seed.parquet with its card README.md: what `judge_training/sft` trains on. The same command continues a run that was
cut off, with the replies in the cache.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from flexjudge_recipes.common import mapping, parsed
from flexjudge_recipes.judge_training.seed.diversity import Diversity
from flexjudge_recipes.nano import judge_traces
from flexjudge_recipes.program import run

from datasets import Dataset

from flexjudge_reward import ConfigError, JudgeConfig
from flexjudge_reward.data.tables import Table
from flexjudge_reward.engines.model import Source, load_tokenizer
from flexjudge_reward.offline.traces import traces_file

JUDGELM = {
    "id": ["question_id"],
    "question": ["question_body"],
    "candidates": ["answer1_body", "answer2_body"],
}
"""The columns of JudgeLM-100K by our names; its teacher's scores are in `score`."""

TITLE = "# Seed data of a judge"  # of the card

# ------------------------------------------------------------------------------------------------------- arguments


@dataclass
class RecipeArguments:
    """Where the rows are, who judges them, and what the mix is."""

    output_dir: str = field(metadata={"help": "The folder of the result."})
    teacher_file: str = field(default="nano", metadata={"help": "Rows of JudgeLM-100K's form: a file, org/name, nano."})
    teacher_split: str | None = field(default=None, metadata={"help": "The split, if there are several."})
    columns: dict[str, Any] | str | None = field(default=None, metadata={"help": "Those of another file; see JUDGELM."})
    teacher_scores: str = field(default="score", metadata={"help": "The column with the teacher's two scores."})
    limit: int | None = field(default=None, metadata={"help": "The most rows; for nano how many are made."})
    judge: dict[str, Any] | str | None = field(default=None, metadata={"help": "The settings of Judge, as JSON."})
    seeds: list[int] = field(default_factory=lambda: [13, 79], metadata={"help": "Of sampling, one after the other."})
    mix: dict[str, Any] | str | None = field(default=None, metadata={"help": "Settings of Diversity, as JSON."})
    tokenizer: str = field(default="nano", metadata={"help": "Counts the tokens of cut reasoning: a folder or Hub id."})
    license: str = field(default="", metadata={"help": "Of the rows and the judge's replies, for the cards."})


# ------------------------------------------------------------------------------------------------------------ data


def diversity(settings: dict[str, Any]) -> Diversity:
    """The mix of the settings. Raises ConfigError."""
    known = {one.name for one in fields(Diversity)}
    if unknown := set(settings) - known:
        raise ConfigError(f"mix has no setting {min(unknown)!r}; there are {', '.join(sorted(known))}")
    return Diversity(**settings)


def columns(given: dict[str, Any]) -> dict[str, list[str]]:
    """The columns of the file by our names; one name stands for a list of one. Raises ConfigError."""
    named = {entry: [name] if isinstance(name, str) else name for entry, name in (given or JUDGELM).items()}
    for names in named.values():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"columns are names by entry, such as {JUDGELM}, found {names!r}")
    return named


def check(folder: Path) -> None:
    """Raises ConfigError: the output folder holds files that are not of this recipe."""
    left = (path.name for path in folder.iterdir() if not path.name.startswith((".", "traces.", "seed.")))
    other = sorted(set(left) - {"teacher.jsonl", "README.md"})
    card = folder / "README.md"
    if other or (card.exists() and not card.read_text("utf-8", "replace").startswith(TITLE)):
        named = ", ".join(other[:5]) or card.name
        raise ConfigError(f"{folder} holds files that are not of this recipe ({named}): choose another output_dir")


def counter(tokenizer: str) -> Callable[[str], int]:
    """The length of a text in tokens."""
    read = load_tokenizer(Source.find(tokenizer, None, False))
    return lambda text: len(read(text, add_special_tokens=False)["input_ids"])


# ------------------------------------------------------------------------------------------------------------ main


def main() -> None:
    """Reads the arguments, makes traces, mixes formats, writes the card."""
    (options,) = parsed((RecipeArguments,))
    config = JudgeConfig.resolve({"format": "pairwise", "temperature": 0.1} | mapping(options.judge))
    mixed, folder = diversity(mapping(options.mix)), Path(options.output_dir)
    length = counter(options.tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    check(folder)
    source, limit = options.teacher_file, options.limit
    if source == "nano":
        source, limit = str(folder / "teacher.jsonl"), None
        judge_traces.write_teacher_file(Path(source), options.limit or 600)
    rows: dict[str, Any] = {
        "split": options.teacher_split,
        "limit": limit,
        "columns": columns(mapping(options.columns)),
    }
    with config.build() as judge:
        traced = traces_file(
            source, judge, folder / "traces.parquet", options.seeds, options.teacher_scores, options.license, **rows
        )
    print(f"traces         {traced}", flush=True)
    chosen, counts = mixed(list(Table.open(folder / "traces.parquet").rows()), length)
    if not chosen:
        raise ConfigError(f"none of {traced['traces']} traces fits the mix ({dict(counts)}); {folder}/traces.md counts")
    fresh = folder / "seed.parquet.partial"
    Dataset.from_list(chosen).to_parquet(fresh)
    (folder / "README.md").write_text(card(options, traced, counts, chosen), "utf-8")
    fresh.replace(folder / "seed.parquet")
    print(f"seed           {len(chosen)} in {folder / 'seed.parquet'}: {dict(counts)}")


def card(options: RecipeArguments, traced: Counter[str], counts: Counter[str], chosen: list[dict[str, Any]]) -> str:
    """The card: counts at every filter, settings, an example of each format, licence."""
    examples = {row["format"]: row for row in chosen}
    settings = {"seeds": options.seeds, **mapping(options.mix)}
    return "\n".join(
        [
            TITLE,
            "",
            f"Licence: {' '.join(options.license.split()) or 'not stated; that of the rows and of the judge holds'}",
            "",
            f"{len(chosen)} traces; traces.md has the judge, and why its replies to other rows were left out.",
            "Halved scores are rounded up: 7 of 10 is 4 of 5.",
            "",
            *(f"* {name}: {value}" for name, value in settings.items()),
            "",
            "| filter | count |",
            "|---|---|",
            f"| rows | {traced['rows']} |",
            f"| traces that agree with the teacher in all scores, the longest of each prompt | {traced['traces']} |",
            *(f"| {what} | {count} |" for what, count in counts.items()),
            f"| in all | {len(chosen)} |",
            "",
            *(f"    {json.dumps(row)}\n" for row in examples.values()),
        ]
    )


if __name__ == "__main__":
    run("seed", main)
