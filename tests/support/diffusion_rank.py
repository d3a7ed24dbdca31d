"""One process of a distributed diffusion-DPO that notes the pairs it trains on and the state of its noise.

Run as `diffusion_rank.py NOTES RECIPE_FLAGS..` by `forked.run(.., ranks=2)`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from flexjudge_recipes.diffusion_dpo import train

import torch
from accelerate import PartialState


def main() -> None:
    """The recipe, with a note per training step."""
    notes, compute_loss = Path(sys.argv.pop(1)), train.DiffusionDPOTrainer.compute_loss

    def noted(self: Any, model: Any, inputs: dict[str, list[str]], *args: Any, **kwargs: Any) -> Any:
        with torch.random.fork_rng(), (notes / f"{PartialState().process_index}.jsonl").open("a") as file:
            both = zip(inputs["chosen"], inputs["rejected"], strict=True)
            pairs = [[hashlib.sha256(image.tobytes()).hexdigest() for image in pair] for pair in both]
            file.write(json.dumps({"pairs": pairs, "noise": torch.rand(1).item()}) + "\n")
        return compute_loss(self, model, inputs, *args, **kwargs)

    train.DiffusionDPOTrainer.compute_loss = noted
    train.main()


if __name__ == "__main__":
    main()
