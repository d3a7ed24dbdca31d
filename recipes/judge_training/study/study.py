"""The transfer study: what a judge of texts can do with images and videos, and what its training data change.

    python recipes/judge_training/study/study.py                          # three seeds of sixteen cells
    python recipes/judge_training/study/study.py --seeds 1 --cells text answer_first
    python recipes/judge_training/study/study.py --table                  # trains nothing

The same command continues. Beside the results, a line per finished cell, are the table (.md) and the plots (.png).

`cells.py` says what a cell is, `measure.py` what is measured. A seed is worked off cell by cell, then the next one. A
finished cell is a line of the results and is not run again; one that was cut off starts again. Lines of other steps,
batches or counts stay in the file and do not count. Trainings are those of `sft` and `rl`, in this process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flexjudge_recipes.judge_training.study import table
from flexjudge_recipes.judge_training.study.cells import CELLS, START, Cell, items, rows
from flexjudge_recipes.program import run

from flexjudge_reward import ConfigError, FlexJudgeError
from flexjudge_reward.nano import path

FOLDER = Path(__file__).parent


class Study:
    """Works off cells and keeps their results."""

    def __init__(self, out: Path, results: Path, steps: int, batch: int, count: int) -> None:
        """
        Args:
            out: the folder of the trainings.
            results: the file with a line per finished cell.
            steps, batch: the length of every training.
            count: held-out examples in a figure; of some measurements half as many.

        Raises ConfigError: one of the numbers is too small.
        """
        if min(steps, batch) < 1 or count < 2:
            raise ConfigError(f"steps and batch are at least 1, count at least 2: found {steps}, {batch}, {count}")
        self.out, self.results = out, results
        self.settings = {"steps": steps, "batch": batch, "count": count}
        self.trainings = out / f"{steps}x{batch}"  # a judge of another length is none of this study

    def __call__(self, cells: Sequence[str], seeds: Sequence[int]) -> None:
        """Runs what is missing. Raises ConfigError: there is no such cell, or some failed; the others are finished."""
        if unknown := sorted(set(cells) - set(CELLS)):
            raise ConfigError(f"there is no cell {unknown[0]!r}; there are {', '.join(CELLS)}")
        self.results.parent.mkdir(parents=True, exist_ok=True)
        failed: list[str] = []
        for seed in seeds:
            for name in cells:
                number = 0 if CELLS[name].work == "none" else seed  # nothing is trained: one is enough
                if (name, number) in table.read(self.results, self.settings):
                    continue
                try:
                    self.finish(name, number)
                except FlexJudgeError as error:  # such as RL on a judge that gets nothing right
                    failed.append(f"{name} of seed {seed}: {error}")
                    print(f"== {failed[-1]}", flush=True)
                table.write(self.results, self.settings)
        if failed:
            raise ConfigError(f"{len(failed)} cells failed: {'; '.join(failed)}")

    def finish(self, name: str, seed: int) -> None:
        """Trains and measures a cell; appends its line."""
        cell, wall, cpu = CELLS[name], time.monotonic(), time.process_time()
        judge = self.judge(name, seed)
        trained = time.process_time() - cpu
        figures = self.measured(cell, judge)
        line = {
            "cell": name,
            "seed": seed,
            **self.settings,
            "figures": figures,
            "cpu_seconds": {"training": round(trained), "measuring": round(time.process_time() - cpu - trained)},
            "seconds": round(time.monotonic() - wall),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        }
        text = self.results.read_text("utf-8") if self.results.exists() else ""
        with self.results.open("a", encoding="utf-8") as file:
            file.write(("\n" if text and not text.endswith("\n") else "") + json.dumps(line) + "\n")
        print(f"== {name}, seed {seed}: {line['seconds']} s {json.dumps(figures)}", flush=True)

    def measured(self, cell: Cell, judge: Path) -> dict[str, float]:
        """The figures of a cell."""
        from flexjudge_recipes.judge_training.study import measure

        count = int(self.settings["count"])
        if cell.work == "votes":
            return measure.of_votes(judge, count, self.out / "votes.sqlite")
        if cell.work == "wait":
            return measure.of_waiting(judge, count)
        return measure.of_judge(judge, count, cell.answer_first)

    def judge(self, name: str, seed: int) -> Path:
        """The folder of a cell's judge, trained if need be."""
        cell, folder = CELLS[name], self.trainings / f"seed_{seed}" / name
        if cell.work == "none":
            return path("base")
        if cell.work in ("votes", "wait"):
            return self.judge(START, seed)
        if not (folder / "report.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            (self.rl if cell.work == "rl" else self.sft)(cell, folder, seed)
        return folder

    def sft(self, cell: Cell, folder: Path, seed: int) -> None:
        """One training by `sft`."""
        from flexjudge_recipes.judge_training.sft import train

        from datasets import Dataset

        steps, batch = self.settings["steps"], self.settings["batch"]
        file = folder.with_suffix(".parquet")
        Dataset.from_list(list(rows(cell, seed, steps, batch))).to_parquet(file)
        words = ["--config", FOLDER / "sft.yaml", "--dataset_name", file, "--output_dir", folder, "--seed", seed]
        words += ["--max_steps", steps, "--per_device_train_batch_size", batch]
        called(train.main, "sft/train.py", *words, "--answer_first", cell.answer_first)
        file.unlink()

    def rl(self, cell: Cell, folder: Path, seed: int) -> None:
        """GRPO on the judge of the shared setting."""
        from flexjudge_recipes.judge_training.rl import train

        start, file = self.judge(START, seed), folder.parent / "rl_items.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in items(seed)), "utf-8")
        words = ["--config", FOLDER / "rl.yaml", "--model_name_or_path", start, "--dataset_name", file]
        called(train.main, "rl/train.py", *words, "--output_dir", folder, "--seed", seed)


def called(main: Callable[[], None], program: str, *words: Any) -> None:
    """A recipe's program with these words on its command line, in this process."""
    before, sys.argv = sys.argv, [program, *map(str, words)]
    try:
        main()
    finally:
        sys.argv = before


def main(given: Sequence[str] | None = None, out: Path = Path("runs/study"), results: Path | None = None) -> Study:
    """Reads the arguments, runs what is missing, writes the table and the plots."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--cells", nargs="+", default=list(CELLS), metavar="CELL", help=", ".join(CELLS))
    args.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="SEED")
    args.add_argument("--steps", type=int, default=400, help="of every SFT, to try things")
    args.add_argument("--batch", type=int, default=25)
    args.add_argument("--count", type=int, default=200, help="held-out examples in a figure")
    args.add_argument("--threads", type=int, default=1, help="of torch; the weights depend on it in the last digits")
    args.add_argument("--out", type=Path, default=out, help="the folder of the trainings")
    args.add_argument("--table", action="store_true", help="train nothing: write the table and the plots")
    options = args.parse_args(given)
    made = Study(options.out, results or options.out / "results.jsonl", options.steps, options.batch, options.count)
    if not options.table:
        import torch

        torch.set_num_threads(options.threads)
        made(options.cells, options.seeds)
    table.write(made.results, made.settings)
    return made


if __name__ == "__main__":
    run("judge_training/study", main)
