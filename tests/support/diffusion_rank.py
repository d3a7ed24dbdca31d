"""One process of a distributed diffusion-DPO that notes which pairs it trains on and the noise that they get.

python -m torch.distributed.run --standalone --nproc_per_node 2 tests/support/diffusion_rank.py NOTES RECIPE_FLAGS..
"""

from __future__ import annotations

import json
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

import diffusion_dpo
import torch
from accelerate import PartialState

from flexjudge_reward import Judge, Score
from flexjudge_reward.engines.scripted import ScriptedEngine


def main() -> None:
    """The recipe with a judge that sees a difference between any two pictures, at once."""
    notes = Path(sys.argv.pop(1))
    errors = diffusion_dpo.DiffusionTrainer.errors

    def noted(self: Any, network: Any, rows: dict[str, list[str]], generator: Any) -> Any:
        if generator is None:
            with torch.random.fork_rng(), (notes / f"{PartialState().process_index}.jsonl").open("a") as file:
                row = {"pairs": [*zip(rows["chosen"], rows["rejected"], strict=True)], "noise": torch.rand(1).item()}
                file.write(json.dumps(row) + "\n")
        return errors(self, network, rows, generator)

    diffusion_dpo.DiffusionTrainer.errors = noted
    scores = cycle((3, 8))
    engine = ScriptedEngine(lambda prompt: f"<think></think><answer>{next(scores)}</answer>")
    diffusion_dpo.diffusion_pairs.judge_of = lambda options: Judge(Score(), engine)
    diffusion_dpo.main()


if __name__ == "__main__":
    main()
