"""Best of N on PAMPA, as in Flex-Judge: does a molecule pass an artificial membrane? A judge picks one of N analyses.

    FLEXJUDGE_BASE_URL=http://localhost:8001/v1 python recipes/best_of_n/pampa.py answers.jsonl

A row of the file has a molecule, the truth (1 is high permeability) and N sampled analyses of a policy such as
Mol-LLaMA, which this recipe does not run:

    {"smiles": "CCO", "label": 1, "answers": ["A small alcohol ... Final answer: High permeability", ...]}

Prints the accuracy of the judge's choice among 1, 2, 4 and so on of them, ties drawn at random, mean of ten draws. An
analysis without a final answer counts as wrong; draws in which the judge scored no analysis are left out. The judge
reads the molecule (SMILES and descriptors), the question and the analysis with its final answer. The code released with
Flex-Judge leaves the final answer out, and so does --cut. Run here with a scripted judge only: the weights of Mol-LLaMA
and of its judge are out of this project's reach.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexjudge_recipes.program import run

from flexjudge_reward import (
    ConfigError,
    EngineError,
    Example,
    Failure,
    Judge,
    Media,
    Ranking,
    rerank,
    unscored,
)

QUESTION = "Does this molecule pass an artificial membrane (PAMPA) passively: is its permeability high or low?"
DRAWS = 10
FINAL = re.compile(r"final answer\W{0,8}(high|low)", re.IGNORECASE)

# ------------------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Row:
    """A molecule with analyses of it."""

    smiles: str
    high: bool
    answers: tuple[str, ...]

    def is_right(self, answer: int) -> bool:
        """Whether the last final answer of that analysis is the truth."""
        final = FINAL.findall(self.answers[answer])
        return bool(final) and (final[-1].lower() == "high") == self.high

    def example(self, cut: bool) -> Example:
        """What the judge sees; with `cut` each analysis ends before its final answer."""
        texts = [FINAL.split(text)[0].rstrip() if cut else text for text in self.answers]
        return Example([Media.molecule(self.smiles), QUESTION], texts)


def read(source: Path) -> list[Row]:
    """The rows of the file.

    Raises:
        ConfigError: there is none, or one is wrong; the message has its line.
    """
    try:
        lines = source.read_text("utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}") from None
    if not lines:
        raise ConfigError(f"{source} has no rows")
    return [_row(line, f"{source}, line {number}") for number, line in enumerate(lines, start=1)]


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


# ------------------------------------------------------------------------------------------------- judge and report


def best_of_n(rows: Sequence[Row], judge: Judge, cut: bool, seed: int) -> dict[int, float]:
    """Accuracy by N, up to the number of analyses that every row has.

    Raises:
        EngineError: the judge scored nothing.
    """
    rankings = rerank([row.example(cut) for row in rows], judge, seed)
    if failed := unscored(rankings):
        print(f"without a score: {dict(failed)}")
    if all(ranking.best is None for ranking in rankings):
        raise EngineError("the judge scored no analysis at all")
    most = min(len(row.answers) for row in rows)
    return {n: accuracy(rows, rankings, n, seed) for n in (2**power for power in range(most.bit_length()))}


def accuracy(rows: Sequence[Row], rankings: Sequence[Ranking], n: int, seed: int) -> float:
    """The share of right choices among `n` analyses each, mean of ten draws of these and of the ties."""
    rng, right = random.Random(f"pampa {seed} {n}"), list[bool]()
    for row, ranking in zip(rows, rankings, strict=True):
        scores = {i: score for i, score in enumerate(ranking.outcomes) if not isinstance(score, Failure)}
        for _ in range(DRAWS):
            drawn = rng.sample(range(len(row.answers)), min(n, len(row.answers)))
            if scored := [index for index in drawn if index in scores]:
                right.append(row.is_right(max(scored, key=scores.__getitem__)))  # of equal scores, the first drawn
    return sum(right) / len(right) if right else math.nan


def main() -> None:
    """Judges the file and prints the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--cut", action="store_true", help="hide the final answers from the judge")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = read(options.answers)
    with Judge.load(rubric="permeability") as judge:
        shares = best_of_n(rows, judge, options.cut, options.seed)
    for n, share in shares.items():
        print(f"best of {n:<4} {share:.1%} right")


if __name__ == "__main__":
    run("pampa", main)
