"""MR. Judge's training data from questions with a good answer: choices, reasoning, and a card that counts what left.

    python recipes/judge_training/mr_judge/make.py nano -o items.parquet                # no model but the embedded ones
    python recipes/judge_training/mr_judge/make.py rows.jsonl -o items.parquet --media_root images \\
        --model Qwen/Qwen2.5-VL-32B-Instruct --base_url http://localhost:8001/v1 \\
        --reasoner '{"model": "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "base_url": "http://localhost:8002/v1"}'

A row is {"id", "question", "answer", "images"}, as for `flexjudge score`. One model does all four parts unless a part
has its own; the reasoner and the editor read text only. Replies are cached: a run that was cut off starts again and
asks nothing twice. The output appears whole, with OUTPUT.md beside it.

A row of the output holds an item for `../rl/train.py` and a trace for SFT: "id", "format", "question", "images",
"candidates", "scores", "description", "faults", "criteria", "low", "high", "reply".
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from flexjudge_recipes.common import mapping
from flexjudge_recipes.judge_training.mr_judge.nano_parts import nano_engines, nano_rows
from flexjudge_recipes.judge_training.mr_judge.synthesis import INSTRUCTIONS, Draft, Engines, Synthesis
from flexjudge_recipes.program import run

from datasets import Dataset, Image, List

from flexjudge_reward import ConfigError, Engine, JudgeConfig, Media, MultipleChoice, Sampling
from flexjudge_reward.data.rows import BadRow, Row, Rows
from flexjudge_reward.offline.output import owned
from flexjudge_reward.prompts.quoting import fence_line

PARTS = ("writer", "describer", "reasoner", "editor")


def entry(draft: Draft, format: MultipleChoice) -> dict[str, Any]:
    """A row of the output."""
    return {
        "id": str(draft.id),
        "format": format.name,
        "question": "".join(draft.text),
        "images": [part.images()[0] for part in draft.question if isinstance(part, Media)],
        "candidates": draft.candidates,
        "scores": [float(not kind) for kind in draft.kinds],
        "description": draft.description,
        "faults": draft.kinds,
        "criteria": format.rubric.criteria,
        "low": 0.0,
        "high": 1.0,
        "reply": draft.reply,
    }


def checked(row: Row) -> None:
    """Raises ConfigError for a row that the steps cannot use."""
    if len(row.example.candidates) != 1 or any(isinstance(part, Media) for part in row.example.candidates[0]):
        raise ConfigError("a row needs one 'answer', a text")
    if any(media.kind != "image" for media in row.example.media):
        raise ConfigError("only images can be described")


def write(drafts: Iterable[Draft], format: MultipleChoice, output: Path) -> list[Draft]:
    """Writes the drafts that are whole, as one file at once; the drafts. Raises ConfigError if there are none."""
    kept = [draft for draft in drafts if not draft.why]
    if not kept:
        raise ConfigError("no row came through all steps")
    fresh = output.with_name(output.name + ".new")
    rows = Dataset.from_list([entry(draft, format) for draft in kept]).cast_column("images", List(Image()))
    rows.to_parquet(str(fresh))
    fresh.replace(output)
    return kept


def card(source: str, kept: list[Draft], counts: Counter[str], models: Mapping[str, object], licence: str) -> str:
    """Counts at every step, letters, faults, an example, licence."""
    letters = Counter(f"{draft.letter} of {len(draft.candidates)}" for draft in kept)
    faults = Counter(kind for draft in kept for kind in draft.kinds if kind)
    lines = [
        f"# Multiple choices with reasoning from {source}",
        "",
        "Made with the steps of MR. Judge (arXiv 2505.13403).",
    ]
    lines += [f"Models: {', '.join(f'{part} {name}' for part, name in models.items())}. Licence: {licence}."]
    for title, table in (("Rows and calls", counts), ("Best letter", letters), ("Planted faults", faults)):
        lines += ["", f"## {title}", "", "| what | count |", "|---|---|"]
        lines += [f"| {_cell(name)} | {count} |" for name, count in sorted(table.items())]
    first = kept[0]
    shown = [f"{letter}: {text}" for letter, text in zip("ABCDEFGH", first.candidates, strict=False)]
    row = ["".join(first.text), *shown, first.reply]
    lines += ["", "## The first row", "", fence_line(row), *row, fence_line(row), ""]
    return "\n".join(lines).replace("\r", " ")


def _cell(text: str) -> str:
    """Text of a row in a table: no Markdown, no HTML."""
    return re.sub(r"[\\`*_\[\]<>|&]", r"\\\g<0>", " ".join(text.split()))


def engines_of(options: argparse.Namespace) -> Engines:
    """An engine for each part, behind the cache of replies. Parts with the same settings share one."""
    common = {name: getattr(options, name) for name in ("model", "base_url", "cache") if getattr(options, name)}
    wanted = {part: common | mapping(getattr(options, part)) for part in PARTS}
    built: list[tuple[dict[str, Any], Engine]] = []
    for settings in wanted.values():
        if all(settings != other for other, _ in built):
            built.append((settings, JudgeConfig.resolve(settings).build().engine))
    return Engines(**{part: next(one for own, one in built if own == wanted[part]) for part in PARTS})


def rows_of(options: argparse.Namespace) -> Iterator[Row | BadRow]:
    """The rows of a file, folder or data set."""
    rows = Rows(options.source, media_root=options.media_root, split=options.split, limit=options.limit)
    rows.check_output_path(options.output)
    rows.verify(checked)
    return rows.read(checked)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a file, folder or Hub data set of rows, or nano")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the parquet file to write")
    parser.add_argument("--media_root", type=Path, help="the folder that image files are read from")
    parser.add_argument("--split", help="of a data set")
    parser.add_argument("--limit", type=int, help="the most rows; of nano 200 by default")
    parser.add_argument("--model", help="of all parts without their own")
    parser.add_argument("--base_url", help="the server of that model")
    parser.add_argument("--cache", help="the file of replies, or off")
    for part in PARTS:
        parser.add_argument(f"--{part}", help="settings of this part's model, as JSON")
    parser.add_argument("--instructions", type=Path, default=INSTRUCTIONS, help="a folder with a file per step")
    parser.add_argument("--prompt_set", default="flex", help="the wording that the judge is trained with")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--max_tokens", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--licence", default="that of the source", help="for the card")
    return parser.parse_args()


def main() -> None:
    """Reads the rows, goes through the steps, writes the file and its card."""
    options = arguments()
    if not options.output.suffix == ".parquet":
        raise ConfigError(f"the output is a .parquet file, found {str(options.output)!r}")
    sampling = Sampling(options.temperature, max_tokens=options.max_tokens, seed=options.seed)
    with owned(options.output), ExitStack() as opened:
        if options.source == "nano":
            rows: Iterator[Row | BadRow] = nano_rows(options.limit or 200, options.seed)
            engines, sampling = nano_engines(), replace(sampling, temperature=0.0, max_tokens=300)
        else:
            rows, engines = rows_of(options), engines_of(options)
        for part in PARTS:
            opened.callback(getattr(engines, part).close)
        format = MultipleChoice(prompt_set=options.prompt_set)
        synthesis = Synthesis(engines, format, options.instructions, sampling)
        kept = write(synthesis(rows), format, options.output)
        models = {part: getattr(engines, part).identity().get("model", "scripted") for part in PARTS}
        text = card(Path(options.source).name, kept, synthesis.counts, models, options.licence)
        options.output.with_suffix(".md").write_text(text, "utf-8")
    print(f"{len(kept)} rows in {options.output}; {options.output.with_suffix('.md')} counts what was left out")


if __name__ == "__main__":
    run("mr_judge", main)
