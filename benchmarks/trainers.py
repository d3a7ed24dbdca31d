"""Real trainers with the judge as their reward: whose own code ran, and what their rewards and advantages are.

    python benchmarks/trainers.py             # runs tests/trainers, a quarter of an hour on two cores
    python benchmarks/trainers.py --read      # takes the newest results as they are

`make test-trainers` makes the environments; TRAINER_VENVS names another folder with them. Every test writes a line into
results/trainers.jsonl. From those that passed:

    trainers.count                      trainers whose own code ran with our adapter
    trainers.reward_mismatches          rewards unlike those of `FlexJudgeReward` on the same completions, in 32 bits
    trainers.failed_row_advantage_max   of rows of a group whose judgement failed, by the trainer's own code; the worst
                                        trainer

`swift.py` has the training in ms-swift, `trl_failure.py` TRL beside a second reward.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from figures import record

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "trainers.jsonl"


def main() -> None:
    """Runs the trainers, records the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--read", action="store_true", help="run nothing")
    if not parser.parse_args().read:
        command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "tests/trainers"]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "TRAINER_RESULTS": str(RESULTS)}, check=True)
    passed = [line for line in newest().values() if line["outcome"] == "passed"]
    command = "python benchmarks/trainers.py"
    by_trainer = {name: [line for line in passed if trainer_of(line) == name] for name in map(trainer_of, passed)}
    note = ", ".join(f"{name} {max(line['date'] for line in lines)}" for name, lines in sorted(by_trainer.items()))
    record("trainers.count", len(by_trainer), unit="trainers", target=">= 6", note=note, command=command)
    rewarded = {name: total(lines, "rewards") for name, lines in by_trainer.items()}
    wrong = sum(total(lines, "reward_mismatches") for lines in by_trainer.values())
    note = "of rewards: " + ", ".join(f"{name} {count}" for name, count in sorted(rewarded.items()) if count)
    record("trainers.reward_mismatches", wrong, unit="rewards", target="<= 0", note=note, command=command)
    worst = {
        name: max(found)
        for name, lines in by_trainer.items()
        if (found := [line["failed_row_advantage"] for line in lines if "failed_row_advantage" in line])
    }
    note = ", ".join(f"{name} {one:.1g}" for name, one in sorted(worst.items()))
    note += "; verl's v1 trainer and verifiers leave such a row out; not for rows that a trainer hands over alone"
    value = max(worst.values())
    record("trainers.failed_row_advantage_max", value, unit="advantage", target="<= 1e-06", note=note, command=command)


def newest() -> dict[str, dict[str, Any]]:
    """The newest line of each test that is there still."""
    lines = map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())
    return {line["test"]: line for line in lines if (ROOT / line["test"].partition("::")[0]).exists()}


def trainer_of(line: dict[str, Any]) -> str:
    """The name of the trainer that a test runs."""
    test = str(line["test"])
    return "axolotl" if "[axolotl]" in test else test.partition("::")[0].rpartition("test_")[2].removesuffix(".py")


def total(lines: list[dict[str, Any]], name: str) -> int:
    """A count over the tests of a trainer."""
    return sum(int(line.get(name, 0)) for line in lines)


if __name__ == "__main__":
    main()
