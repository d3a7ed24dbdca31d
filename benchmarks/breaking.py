"""Whether a policy learns to break its judge: a bandit with TRL's advantages.

    python benchmarks/breaking.py           both tables, and the figures
    python benchmarks/breaking.py check     only: are `advantages` those of TRL's GRPOTrainer?
    python benchmarks/breaking.py blame     only: what it costs to blame an answer for a server that loses the longest

A softmax policy over four kinds of answer: good, mediocre, bad, and bad ones that break the judge's reply nine times of
ten. Four groups of 8 a step, 200 steps, 20 seeds, from seven starts; a plain gradient step on advantage times log
probability, small or large: most small runs end before they have learned all. The judge's scores are noisy; one reply
in 50 is malformed by accident, one in 100 lost on the way. "unbreakable" is a judge that reads the breaking answers as
what they are, bad ones: no rule can be expected to do better.

The numbers a trainer gets are those of `judge/rewards.py`. A GRPOTrainer would need hours for these 280,000 steps; so
`advantages` repeats the lines of GRPOTrainer that turn rewards into advantages, and the check drives a real trainer on
random rewards, failed ones included, and compares.

Records `breaking.share_max_before` (a failure gets its siblings' mean, the rule until issue 13), `breaking.share_max`
(the defaults), each the highest share of breaking answers at the end of a run, and `breaking.good_gain_min`: the least
that the mean share of good ones gains by the new rule, over all starts, in large steps. `blame` lets a server lose nine
of ten good answers, as one does that drops the longest, and records `breaking.blame_cost_max`: the most that the mean
share of good ones falls if they are blamed, instead of getting their siblings' mean.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from figures import record

from flexjudge_reward import Failure
from flexjudge_reward.judge.rewards import Outcome, rewards

STEPS, GROUPS, SIZE, SEEDS = 200, 4, 8, 20
SMALL, LARGE = 0.3, 1.0
KINDS = ("good", "mediocre", "bad", "breaking")
QUALITY = np.array([8.0, 5.5, 2.5, 2.5])
BREAKS, MALFORMED, LOST = 0.9, 0.02, 0.01
STARTS = {
    "even": (0.25, 0.25, 0.25, 0.25),
    "good common": (0.60, 0.20, 0.15, 0.05),
    "good rare": (0.02, 0.48, 0.45, 0.05),
    "good rare, bad common": (0.02, 0.08, 0.80, 0.10),
    "mediocre rare": (0.02, 0.02, 0.86, 0.10),
    "breaking common": (0.05, 0.15, 0.20, 0.60),
    "breaking nearly all": (0.02, 0.04, 0.04, 0.90),
}
AGAIN = Failure("malformed", "twice", "candidate")
Rule = Callable[[list[list[Outcome]], list[int]], list[float | None]]
"""The numbers of the rows from what the judge said to each, at first and once more; and their groups."""


def before(said: list[list[Outcome]], groups: list[int]) -> list[float | None]:
    """A failure gets the mean of its siblings."""
    return rewards([first for first, _ in said], groups)


def after(policy: Any) -> Rule:
    """What is unclear is asked once more; what fails again is the candidate's."""
    return lambda said, groups: rewards([_settled(*both) for both in said], groups, "group_mean", policy)


def low_end(said: list[list[Outcome]], groups: list[int]) -> list[float | None]:
    """The same, and a candidate's failure gets the low end of the scale whatever its siblings have."""
    settled = [_settled(*both) for both in said]
    return rewards([0.0 if one is AGAIN else one for one in settled], groups)


RULES: dict[str, Rule] = {
    "before": before,
    "lowest": after("lowest"),
    "low end": low_end,
    "abstain": after("abstain"),
    "unbreakable": after("lowest"),
}


def _settled(first: Outcome, second: Outcome) -> Outcome:
    if not isinstance(first, Failure) or first.kind != "malformed":
        return first
    return AGAIN if isinstance(second, Failure) and second.kind == "malformed" else second


def judge(kind: int, rng: random.Random, breaks: float, failing: str = "breaking") -> Outcome:
    """One judgement of an answer; `breaks` is how often the `failing` kind does."""
    if rng.random() < LOST:
        return Failure("transport")
    if rng.random() < (breaks if KINDS[kind] == failing else MALFORMED):
        return Failure("malformed")
    return (min(10, max(1, round(rng.gauss(QUALITY[kind], 1.0)))) - 1) / 9


def advantages(numbers: Sequence[float | None], mode: str = "sum_then_normalize", scale: str = "group") -> Any:
    """What GRPOTrainer makes of one reward function's numbers; `check` compares."""
    found = torch.tensor([torch.nan if number is None else number for number in numbers])
    groups = found.view(-1, SIZE)
    count = (~groups.isnan()).sum(1, keepdim=True)
    centred = groups - groups.nanmean(1, keepdim=True)
    spread = (centred.square().nansum(1, keepdim=True) / (count - 1)).sqrt()
    if mode == "normalize_then_sum":
        each = (centred / (spread + 1e-4)).flatten()
        all_spread = _spread(each)
        return ((each - each.nanmean()) / (all_spread + 1e-4)).nan_to_num(0.0)
    if scale == "batch":
        spread = _spread(found)
    return (centred if scale == "none" else centred / (spread + 1e-4)).flatten().nan_to_num(0.0)


def _spread(values: Any) -> Any:
    known = values[~values.isnan()]
    return known.std() if len(known) else torch.tensor(torch.nan)


def run(start: Sequence[float], name: str, rate: float, seed: int, failing: str = "breaking") -> Any:
    """The shares of the kinds after the training by a rule."""
    rule, breaks = RULES[name], MALFORMED if name == "unbreakable" else BREAKS
    rng, logits = random.Random(seed), np.log(np.array(start))
    groups = [row // SIZE for row in range(GROUPS * SIZE)]
    for _ in range(STEPS):
        shares = _softmax(logits)
        kinds = rng.choices(range(len(KINDS)), shares, k=len(groups))
        numbers = rule([[judge(kind, rng, breaks, failing) for _ in range(2)] for kind in kinds], groups)
        weights = advantages(numbers).numpy()
        pull = np.bincount(kinds, weights, len(KINDS)) - weights.sum() * shares
        logits = logits + rate * pull / len(groups)
    return _softmax(logits)


def _softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def check(steps: int = 6) -> float:
    """The largest difference between `advantages` and a real trainer's, over all its ways; failed rows included."""
    from datasets import Dataset
    from trl import GRPOConfig
    from trl_failure import Advantages, policy

    rng, worst = random.Random(0), 0.0
    for mode, scale in (
        *(("sum_then_normalize", s) for s in ("group", "batch", "none")),
        ("normalize_then_sum", "group"),
    ):
        given: list[float | None] = []

        def reward(completions: list[Any], _given: list[float | None] = given, **_: Any) -> list[float | None]:
            new = [None if rng.random() < 0.2 else rng.choice((rng.random(), 0.5)) for _ in completions]
            new[:SIZE] = rng.choice(([None] * SIZE, [0.0] * SIZE, new[:SIZE]))
            _given += new
            return new

        model, tokenizer = policy()
        with tempfile.TemporaryDirectory() as folder:
            args = GRPOConfig(
                folder, multi_objective_aggregation=mode, scale_rewards=scale, max_steps=steps, num_generations=SIZE,
                per_device_train_batch_size=GROUPS * SIZE, max_completion_length=2, use_cpu=True, bf16=False,
                gradient_checkpointing=False, report_to="none", save_strategy="no", disable_tqdm=True,
            )  # fmt: skip
            rows = Dataset.from_list([{"prompt": f"Question {n}?"} for n in range(64)])
            trainer = Advantages(model, [reward], args=args, train_dataset=rows, processing_class=tokenizer)
            trainer.train()
        batch = GROUPS * SIZE
        mine = torch.cat([advantages(given[at : at + batch], mode, scale) for at in range(0, len(given), batch)])
        worst = max(worst, (mine - torch.tensor(trainer.seen)).abs().max().item())
    return worst


def blame() -> None:
    """The table of what blame costs, and its figure."""
    print("| start | good: neutral | good: blamed |\n|---|---|---|")
    costs = []
    for name, start in STARTS.items():
        rules = {
            rule: [run(start, rule, LARGE, seed, "good")[0] for seed in range(SEEDS)] for rule in ("before", "lowest")
        }
        neutral, blamed = (float(np.mean(shares)) for shares in rules.values())
        costs.append(neutral - blamed)
        print(f"| {name} | {100 * neutral:.1f} | {100 * blamed:.1f} |", flush=True)
    note = f"{len(STARTS)} starts x {SEEDS} seeds, large steps, {STEPS} steps; nine of ten good answers are lost"
    record("breaking.blame_cost_max", max(costs), unit="share", target="", note=note)


def main() -> None:
    """Both tables and the figures."""
    if sys.argv[1:] == ["blame"]:
        return blame()
    difference = check()
    print(f"largest difference from GRPOTrainer's advantages: {difference:.1e}", flush=True)
    assert difference < 1e-4
    if sys.argv[1:] == ["check"]:
        return
    ends = {rate: {name: table(name, rate) for name in STARTS} for rate in (SMALL, LARGE)}
    worst = {
        rule: max(shares[rule][:, -1].max() for starts in ends.values() for shares in starts.values())
        for rule in ("before", "lowest")
    }
    gains = [shares["lowest"][:, 0].mean() - shares["before"][:, 0].mean() for shares in ends[LARGE].values()]
    note = f"{len(STARTS)} starts x {SEEDS} seeds x 2 step sizes, {STEPS} steps"
    record("breaking.share_max_before", worst["before"], unit="share", target="", note=note)
    record("breaking.share_max", worst["lowest"], unit="share", target="<= 0.02", note=note)
    record("breaking.good_gain_min", min(gains), unit="share", target=">= 0", note=f"large steps; {note}")


def table(name: str, rate: float) -> dict[str, Any]:
    """The shares at the end of all seeds by each rule, which it prints: of one start, and one step size."""
    start = STARTS[name]
    print(f"\n{name} {tuple(round(100 * share) for share in start)}, steps of {rate:g}\n")
    print("| rule | breaking: mean, worst | good: mean, worst | mediocre | bad |\n|---|---|---|---|---|")
    ends = {rule: np.array([run(start, rule, rate, seed) for seed in range(SEEDS)]) for rule in RULES}
    for rule, shares in ends.items():
        good, mediocre, bad, breaking = 100 * shares.T
        print(
            f"| {rule} | {breaking.mean():.2f}, {breaking.max():.2f} | {good.mean():.1f}, {good.min():.1f}"
            f" | {mediocre.mean():.1f} | {bad.mean():.2f} |",
            flush=True,
        )
    return ends


if __name__ == "__main__":
    main()
