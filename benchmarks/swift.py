"""What a real training in ms-swift teaches, on one rank and on two: `swift.gain_points` and the rewards beside TRL's.

    TRAINER_VENVS=.venv/trainers python benchmarks/swift.py           # two trainings, about ten minutes on two cores
    python benchmarks/swift.py --ranks 2 --seeds 1 2 3

`make test-trainers` makes the environment. `swift rlhf --rlhf_type grpo` trains all weights of the embedded policy with
one list per group of four, from a reward server, groups split over the ranks. The truth is that of held-out images.
Every completion of the trainings is then rewarded again by `FlexJudgeReward` as in TRL: what differs is counted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import record

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from flexjudge_recipes.nano import vlm_task

from flexjudge_reward import RewardSession
from support.serving import Serving
from support.swift_runs import batches, train, trl_rewards

SIZE, STEPS = 4, 96  # as recipes/grpo_vlm/nano.yaml
FLAGS = f"""--tuner_type full --freeze_vit false --freeze_aligner false --num_generations {SIZE} --max_steps {STEPS}
    --gradient_accumulation_steps 1 --learning_rate 2e-4 --lr_scheduler_type linear --warmup_ratio 0
    --weight_decay 0 --adam_beta2 0.999 --beta 0 --temperature 1.0 --top_p 1.0 --top_k -1
    --gradient_checkpointing false --save_strategy steps --save_steps {STEPS} --save_only_model true"""
BATCH = {1: (16, 8), 2: (9, 6)}  # rows per rank and step, steps per generation; on two ranks a group is split


def main() -> None:
    """Records the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], choices=BATCH)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    runs = [(ranks, seed) for ranks in options.ranks for seed in options.seeds]
    found = [trained(ranks, seed) for ranks, seed in runs]
    before = 100 * right(Path(vlm_task.policy()))
    gains = [100 * share - before for share, _, _ in found]
    each = ", ".join(
        f"{ranks} {'rank' if ranks == 1 else 'ranks'}, seed {seed}: {before:.1f}% to {before + gain:.1f}%"
        for (ranks, seed), gain in zip(runs, gains, strict=True)
    )
    note = f"the lowest; {each} of 400 held-out images, listwise, groups of {SIZE}, all weights"
    record("swift.gain_points", min(gains), unit="points", target=">= 10", note=note)
    rows = sum(count for _, _, count in found)
    note = f"{rows} completions of these trainings, rewarded again as in TRL"
    record("swift.reward_mismatches", sum(wrong for _, wrong, _ in found), unit="rewards", target="<= 0", note=note)


def trained(ranks: int, seed: int) -> tuple[float, int, int]:
    """The share of right answers after a training; how many of its rewards are not TRL's, of how many."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        settings = {"model": "nano", "format": "listwise", "cache": str(folder / "cache.sqlite")}
        batch, steps = BATCH[ranks]
        flags = f"{FLAGS} --per_device_train_batch_size {batch} --steps_per_generation {steps} --seed {seed}".split()
        with Serving(RewardSession(settings=settings)) as serving:
            train(folder, serving.url, ranks, 800, *flags, timeout=3000)
            wrong, rows = 0, 0
            for rewarded in batches(folder, ranks, STEPS // steps):
                again = trl_rewards(rewarded, serving.session, SIZE)
                wrong += sum(given != number for (*_, given), number in zip(rewarded, again, strict=True))
                rows += len(rewarded)
        share = right(next(folder.glob(f"out/*/checkpoint-{STEPS}")))
    print(f"{ranks} ranks, seed {seed}: {share:.1%} right, {wrong} of {rows} rewards differ,", end=" ")
    print(f"{time.monotonic() - began:.0f} s", flush=True)
    return share, wrong, rows


def right(model: Path) -> float:
    """The share of greedy answers to held-out questions that are right."""
    from transformers import AutoModelForImageTextToText

    policy: Any = AutoModelForImageTextToText.from_pretrained(model)
    return vlm_task.HeldOut.draw().shares(policy.eval(), vlm_task.processor())[0]


if __name__ == "__main__":
    main()
