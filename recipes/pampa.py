"""Best of N on PAMPA, as in Flex-Judge: does a molecule pass an artificial membrane? A judge picks one of N analyses.

    FLEXJUDGE_BASE_URL=http://localhost:8001/v1 python recipes/pampa.py answers.jsonl

A row of the file has a molecule, the truth (1 is high permeability) and N sampled analyses of a policy such as
Mol-LLaMA, which this recipe does not run:

    {"smiles": "CCO", "label": 1, "answers": ["A small alcohol ... Final answer: High permeability", ...]}

Prints the accuracy of the judge's choice among 1, 2, 4 and so on of them, ties drawn at random, mean of ten draws. An
analysis without a final answer counts as wrong; draws of which the judge scored none are left out. The judge reads the
molecule (SMILES and descriptors), the question and the analysis with its final answer; the code released with
Flex-Judge leaves that out, and so does --cut. Run here with a scripted judge only: the weights of Mol-LLaMA and of its
judge are out of this project's reach.
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

from flexjudge_reward import ConfigError, EngineError, Example, FlexJudgeError, Judge, JudgeConfig, Media
from flexjudge_reward.judge.rewards import Outcome
from flexjudge_reward.offline.rerank import rerank, unscored
from flexjudge_reward.types import Failure

QUESTION = "Does this molecule pass an artificial membrane (PAMPA) passively: is its permeability high or low?"
DRAWS = 10
_FINAL = re.compile(r"final answer\W{0,8}(high|low)", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """A molecule with analyses of it."""

    smiles: str
    high: bool
    answers: tuple[str, ...]

    def is_right(self, answer: int) -> bool:
        """Whether the last final answer of that analysis is the truth."""
        found = _FINAL.findall(self.answers[answer])
        return bool(found) and (found[-1].lower() == "high") == self.high

    def example(self, cut: bool) -> Example:
        """What the judge sees; with `cut` only what stands before the final answer."""
        shown = [_FINAL.split(text)[0].rstrip() if cut else text for text in self.answers]
        return Example([Media.molecule(self.smiles), QUESTION], shown)


def read(source: Path) -> list[Asked]:
    """The rows of the file. Raises ConfigError for one that is wrong, by its line."""
    found = []
    for number, line in enumerate(source.read_text("utf-8").splitlines(), start=1):
        row: Any = json.loads(line)
        answers = row.get("answers")
        if not isinstance(row.get("smiles"), str) or row.get("label") not in (0, 1) or not isinstance(answers, list):
            raise ConfigError(f"{source}, line {number}: a row has 'smiles', 'label' (0 or 1) and a list of 'answers'")
        if len(answers) < 2 or not all(isinstance(text, str) for text in answers):
            raise ConfigError(f"{source}, line {number}: 'answers' are two or more texts")
        found.append(Asked(row["smiles"], row["label"] == 1, tuple(answers)))
    return found


def accuracy(asked: Sequence[Asked], outcomes: Sequence[Sequence[Outcome]], n: int, seed: int) -> float:
    """The share of right choices among `n` analyses each, mean of ten draws of these and of the ties."""
    rng, right = random.Random(f"pampa {seed} {n}"), list[bool]()
    for one, found in zip(asked, outcomes, strict=True):
        scores = {index: score for index, score in enumerate(found) if not isinstance(score, Failure)}
        for _ in range(DRAWS):
            drawn = rng.sample(range(len(found)), min(n, len(found)))  # in random order, so max draws ties at random
            if scored := [index for index in drawn if index in scores]:
                right.append(one.is_right(max(scored, key=scores.__getitem__)))
    return sum(right) / len(right) if right else math.nan


def best_of_n(asked: Sequence[Asked], judge: Judge, cut: bool, seed: int) -> dict[int, float]:
    """Accuracy by N, up to the most analyses that every row has.

    Raises:
        EngineError: the judge scored nothing.
    """
    rankings = rerank([one.example(cut) for one in asked], judge, seed)
    outcomes = [ranking.outcomes for ranking in rankings]
    if failed := unscored(rankings):
        print(f"without a score: {dict(failed)}")
    if all(ranking.best is None for ranking in rankings):
        raise EngineError("the judge scored no analysis at all")
    most = min(len(one.answers) for one in asked)
    return {n: accuracy(asked, outcomes, n, seed) for n in (2**power for power in range(most.bit_length()))}


def main() -> None:
    """Judges the file and prints the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--cut", action="store_true", help="hide the final answers from the judge")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    judge = JudgeConfig.resolve({"rubric": "permeability"}).build()
    try:
        found = best_of_n(read(options.answers), judge, options.cut, options.seed)
    finally:
        judge.close()
    for n, share in found.items():
        print(f"best of {n:<4} {share:.1%} right")


if __name__ == "__main__":
    try:
        main()
    except FlexJudgeError as error:
        raise SystemExit(f"pampa: {error}") from None
