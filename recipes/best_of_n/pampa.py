"""Best of N on PAMPA, as in Flex-Judge: does a molecule pass an artificial membrane? A judge picks one of N analyses.

    python recipes/best_of_n/pampa.py answers.jsonl --judge '{"engine": "transformers", "model": "flex-mol-llama"}' \\
        --as_ tokens --reading code

A row of the file has a molecule, the truth (1 is high permeability) and N sampled analyses of a policy:

    {"smiles": "CCO", "label": 1, "answers": ["A small alcohol ... Final answer: High permeability", ...]}

With --sample the analyses come first: `--sample mol-llama --data pampa.json` lets a folder of `convert` (with Llama
itself as its judge) write N of them for each test molecule of Mol-LLaMA's file, at --temperature; one that never says
"Final answer:" is continued once behind these words.

Prints the accuracy of the judge's choice among 1, 2, 4 and so on of them: for each of ten repeats, that many of the N
are drawn, the same for every molecule, and of each molecule the highest score wins, ties by lot; an analysis without a
prediction counts as wrong, one without a score is left out, and so is a molecule without any. There are two readings:

    paper   the judge sees the whole analysis, and only a whole, well-formed reply has a score
    code    as the released code does: the analysis ends before "Final answer:", and the score is the first number in
            answer tags anywhere in the reply

Differences to the released code remain: the judge's prompt is the rubric `permeability` in this package's words, and
the places of the atoms are ours, not those of its file. Run here on fixtures only: the weights are out of this
project's reach.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from flexjudge_recipes.common import mapping
from flexjudge_recipes.program import run

from flexjudge_reward import (
    ConfigError,
    EngineError,
    Example,
    Judge,
    Media,
    Message,
    Prompt,
    Request,
    Sampling,
    TransformersEngine,
    Verdict,
)

QUESTION = (
    "Does this molecule pass an artificial membrane (PAMPA) passively: is its permeability high or low-to-moderate?"
)
REPEATS = 10
Reading = Literal["paper", "code"]
Form = Literal["text", "tokens"]
FINAL = re.compile("[Ff]inal [Aa]nswer:")
HIGH = re.compile("[Hh]igh [Pp]ermeability")
LOW = re.compile("[Ll]ow-to-[Mm]oderate [Pp]ermeability|[Mm]oderate [Pp]ermeability")
SCORE = re.compile(r"<answer>(\d+(?:\.\d+)?)</answer>")
PROMPTS = ("default", "rationale", "task_info")

# ------------------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Row:
    """A molecule with analyses of it."""

    smiles: str
    high: bool
    answers: tuple[str, ...]

    def is_right(self, answer: int) -> bool:
        """Whether the prediction of that analysis is the truth."""
        return prediction(self.answers[answer]) == self.high

    def examples(self, reading: Reading, as_: Form) -> list[Example]:
        """What the judge sees, one analysis each."""
        question = [Media.molecule(self.smiles, as_), QUESTION]
        return [Example(question, [cut(text) if reading == "code" else text]) for text in self.answers]


def prediction(answer: str) -> bool | None:
    """Whether an analysis ends with high permeability; None for neither. Without a final answer all of it counts."""
    end = answer.split("Final answer: ")[-1]
    return True if HIGH.search(end) else False if LOW.search(end) else None


def cut(answer: str) -> str:
    """The analysis before its first "Final answer:"."""
    found = FINAL.search(answer)
    return answer[: found.start()].strip() if found else answer


def read(source: Path) -> list[Row]:
    """The rows of the file.

    Raises:
        ConfigError: there is none, or one is wrong; the message has its line.
    """
    lines = _text(source).splitlines()
    if not lines:
        raise ConfigError(f"{source} has no rows")
    return [_row(line, f"{source}, line {number}") for number, line in enumerate(lines, start=1)]


def _text(source: Path) -> str:
    try:
        return source.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _row(line: str, place: str) -> Row:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{place} is not JSON: {error}") from None
    answers = row.get("answers") if isinstance(row, dict) else None
    if not isinstance(answers, list) or not isinstance(row.get("smiles"), str) or row.get("label") not in (0, 1):
        raise ConfigError(f"{place}: a row has 'smiles', 'label' (0 or 1) and a list of 'answers'")
    if len(answers) < 2 or not all(isinstance(text, str) for text in answers):
        raise ConfigError(f"{place}: 'answers' are two or more texts")
    return Row(row["smiles"], row["label"] == 1, tuple(answers))


# ------------------------------------------------------------------------------------------------------ the analyses


def sample(engine: TransformersEngine, data: Path, prompt: str, n: int, temperature: float) -> list[Row]:
    """`n` analyses of each test molecule of Mol-LLaMA's pampa.json. Raises ConfigError: the file has another form."""
    try:
        held = json.loads(_text(data))
        system, user = held["prompts"][prompt]["system"], held["prompts"][prompt]["user"].split("<mol>")
        rows = [held["data_list"][index] for index in held["split"]["test"]]
        truths = [(str(row["smiles"]), row["answer"] == "High permeability") for row in rows]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConfigError(f"{data} is not Mol-LLaMA's pampa.json: {type(error).__name__}: {error}") from None
    found = []
    for smiles, high in truths:
        parts = [part for text in user for part in (text, Media.molecule(smiles, "tokens"))][:-1]
        asked = (Message("system", (system,)), Message("user", tuple(parts)))
        found.append(Row(smiles, high, tuple(_answers(engine, asked, n, temperature))))
    return found


def _answers(engine: TransformersEngine, asked: tuple[Message, ...], n: int, temperature: float) -> list[str]:
    """The analyses of one molecule; one that fails is empty, which has no prediction."""
    sampling = [Sampling(temperature, max_tokens=1024, seed=seed) for seed in range(n)]
    texts = [one.text for one in engine.generate([Request(Prompt(asked), each) for each in sampling])]
    open_ = [index for index, text in enumerate(texts) if text and not FINAL.search(text)]
    begun = {index: f"{texts[index]}\n\nFinal answer: " for index in open_}
    more = [Request(Prompt((*asked, Message("assistant", (begun[index],)))), sampling[index]) for index in open_]
    for index, one in zip(open_, engine.generate(more), strict=True):
        texts[index] = begun[index] + one.text
    return texts


# ------------------------------------------------------------------------------------------------- judge and report


def scores(rows: Sequence[Row], judge: Judge, reading: Reading, as_: Form) -> list[list[float | None]]:
    """The score of each analysis of each row; None for one without.

    Raises:
        ConfigError: the judge cannot be shown the molecules.
        EngineError: the judge scored nothing.
    """
    examples = [example for row in rows for example in row.examples(reading, as_)]
    judge.check_media(examples[0])
    verdicts = judge(examples)
    failed = Counter(verdict.failure.kind for verdict in verdicts if verdict.failure is not None)
    found = [_score(verdict, reading) for verdict in verdicts]
    if failed:
        print(f"without a score: {found.count(None)}; replies that are not well-formed: {dict(failed)}")
    if all(score is None for score in found):
        raise EngineError("the judge scored no analysis at all")
    left = iter(found)
    return [[next(left) for _ in row.answers] for row in rows]


def _score(verdict: Verdict, reading: Reading) -> float | None:
    if reading == "paper":
        return None if verdict.scores is None else verdict.scores[0]
    match = SCORE.search(verdict.generations[0].text) if verdict.generations else None
    return float(match[1]) if match else None


def best_of_n(rows: Sequence[Row], scored: Sequence[Sequence[float | None]], seed: int) -> dict[int, float]:
    """Accuracy by N, up to the number of analyses that every row has."""
    most = min(len(row.answers) for row in rows)
    sizes = [2**power for power in range(most.bit_length())]
    return {n: accuracy(rows, scored, n, seed) for n in dict.fromkeys([*sizes, most])}


def accuracy(rows: Sequence[Row], scored: Sequence[Sequence[float | None]], n: int, seed: int) -> float:
    """The share of right choices among `n` analyses each, mean of ten repeats."""
    rng, most = random.Random(f"pampa {seed} {n}"), min(len(row.answers) for row in rows)
    return statistics.fmean(repeat(rows, scored, rng.sample(range(most), n), rng) for _ in range(REPEATS))


def repeat(
    rows: Sequence[Row], scored: Sequence[Sequence[float | None]], drawn: Sequence[int], rng: random.Random
) -> float:
    """The share of right choices among the analyses of these places, of the molecules with a score; 0 without any."""
    right = []
    for row, own in zip(rows, scored, strict=True):
        known = {index: score for index in drawn if (score := own[index]) is not None}
        if known:
            best = max(known.values())
            right.append(row.is_right(rng.choice([index for index, score in known.items() if score == best])))
    return sum(right) / len(right) if right else 0.0


def main() -> None:
    """Samples if wanted, judges the file and prints the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--judge", type=mapping, default={}, help="settings of the judge, as JSON")
    parser.add_argument("--as_", choices=get_args(Form), default="text", help="how the judge reads the molecule")
    parser.add_argument("--reading", choices=get_args(Reading), default="paper")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", help="a folder of a model that writes the analyses into the file first")
    parser.add_argument("--data", type=Path, help="Mol-LLaMA's pampa.json, for --sample")
    parser.add_argument("--prompt", choices=PROMPTS, default="default")
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=1.0, help="the paper does not say it")
    options = parser.parse_args()
    if options.sample:
        _write(options)
    rows = read(options.answers)
    with Judge.load(**{"rubric": "permeability", **options.judge}) as judge:
        scored = scores(rows, judge, options.reading, options.as_)
    for n, share in best_of_n(rows, scored, options.seed).items():
        print(f"best of {n:<4} {share:.1%} right")


def _write(options: argparse.Namespace) -> None:
    if options.answers.exists() or options.data is None:
        raise ConfigError(f"--sample writes a new file, {options.answers}, from --data: give both")
    with TransformersEngine(options.sample, batch_size=16) as engine:
        rows = sample(engine, options.data, options.prompt, options.n, options.temperature)
    lines = [{"smiles": row.smiles, "label": int(row.high), "answers": row.answers} for row in rows]
    options.answers.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


if __name__ == "__main__":
    run("pampa", main)
