"""Best of N on molecules: a judge picks among 1, 2, 4 and so on samples of a SMILES policy; QED, unseen by it, decides.

    python recipes/molecules/best_of_n.py --config recipes/molecules/best_of_n.yaml

Two CPU cores, nothing to download: pip install 'flexjudge-reward[trl,molecules]'. The first run trains a tiny policy
and a tiny judge, three to four minutes each, and leaves them in `prepared`. Expect a mean QED (0 for what is no
molecule) of 0.20 for one sample, 0.34 for the judge's choice of 2, 0.56 of 4, 0.72 of 8 and 0.82 of 16 (seed 1).

    python recipes/molecules/best_of_n.py --model_name_or_path entropy/gpt2_zinc_87m --output_dir runs/zinc_best_of_n \\
        --judge '{"base_url": "http://localhost:8001/v1"}'
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexjudge_recipes.common import loading, mapping, parsed, say
from flexjudge_recipes.molecules import measure
from flexjudge_recipes.molecules.measure import qed
from flexjudge_recipes.molecules.sampling import Sampler, load_tokenizer, policy_prompt
from flexjudge_recipes.nano import molecule_judge, molecule_policy
from flexjudge_recipes.program import run

import torch
from transformers import AutoModelForCausalLM
from trl import ModelConfig

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

# ------------------------------------------------------------------------------------------------------- arguments


@dataclass
class RecipeArguments:
    """The question, the judge, and how much is sampled."""

    output_dir: str = field(default="runs/molecules_best_of_n", metadata={"help": "A new or empty folder."})
    prepared: str = field(default="runs/molecules", metadata={"help": "The folder of the tiny policy and judge."})
    question: str = field(default=molecule_judge.QUESTION, metadata={"help": "The task, as the judge sees it."})
    judge: dict[str, Any] | str | None = field(default=None, metadata={"help": "The settings of Judge, as JSON."})
    policy_prompt: str | None = field(default=None, metadata={"help": "The text the policy continues; by default BOS."})
    policy_tokens: int = field(default=80, metadata={"help": "Longest sample."})
    n: int = field(default=16, metadata={"help": "The largest N, a power of 2."})
    groups: int = field(default=40, metadata={"help": "How many groups of that size are sampled."})
    seed: int = field(default=1, metadata={"help": "Of the samples, of ties, and of the tiny policy."})
    device: str = field(default="cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "Of the policy."})


def check(options: RecipeArguments) -> None:
    """Raises ConfigError for a wrong number, or an output folder with files."""
    if options.n < 2 or options.n & (options.n - 1):
        raise ConfigError(f"n must be a power of 2, at least 2, found {options.n}")
    if options.groups < 1:
        raise ConfigError(f"groups must be at least 1, found {options.groups}")
    folder = Path(options.output_dir)
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds an earlier run: remove it, or give another output_dir")


# ----------------------------------------------------------------------------------------------- samples and choices


def sample_groups(options: RecipeArguments, model_args: ModelConfig) -> list[list[str]]:
    """Groups of `n` samples of the policy."""
    policy = molecule_policy.folder_of(model_args.model_name_or_path, Path(options.prepared), options.seed)
    tokenizer = load_tokenizer(policy, model_args.model_revision)
    sampler = Sampler(policy_prompt(options.policy_prompt, tokenizer), options.policy_tokens, options.seed)
    model = AutoModelForCausalLM.from_pretrained(policy, **loading(model_args, {"device_map": options.device}))
    samples = sampler(model, tokenizer, options.n * options.groups)
    return [samples[start : start + options.n] for start in range(0, len(samples), options.n)]


def rank(groups: Sequence[Sequence[str]], question: str, judge: Judge, seed: int) -> list[Ranking]:
    """The judge's ranking of every group.

    Raises:
        EngineError: the judge scored nothing.
    """
    examples = [Example(question, [Media.molecule(text) for text in group]) for group in groups]
    rankings = rerank(examples, judge, seed)
    failed = {kind: count for kind, count in unscored(rankings).items() if kind != "media"}
    if failed:
        print(f"judge          molecules without a score: {failed}")
    if failed and all(ranking.best is None for ranking in rankings):
        raise EngineError("the judge scored no molecule at all")
    return rankings


def choices(values: Sequence[float], ranking: Ranking, size: int) -> list[tuple[float, float]]:
    """Of every part of `size` candidates of a group: the value of the judge's choice, and the highest value.

    A part without a molecule counts as 0. A part in which the judge failed on every molecule is left out.
    """
    position = {candidate: place for place, candidate in enumerate(ranking.order)}
    found = []
    for start in range(0, len(values), size):
        part = range(start, start + size)
        best = min(part, key=position.__getitem__)
        failures = [outcome for i in part if isinstance(outcome := ranking.outcomes[i], Failure)]
        if len(failures) < size:
            found.append((values[best], max(values[i] for i in part)))
        elif all(failure.kind == "media" for failure in failures):
            found.append((0.0, 0.0))
    return found


def main(words: Sequence[str]) -> None:
    """Reads the arguments, samples, judges, reports."""
    options, model_args = parsed((RecipeArguments, ModelConfig), words)
    check(options)
    settings = molecule_judge.settings(mapping(options.judge), Path(options.prepared))
    with Judge.load(**settings) as judge:
        say("sampling", f"{options.groups} groups of {options.n} molecules")
        groups = sample_groups(options, model_args)
        say("judging", f"{options.n * options.groups} molecules")
        rankings = rank(groups, options.question, judge, options.seed)
    values = [[qed(text) for text in group] for group in groups]
    picked, best = dict[int, float](), dict[int, float]()
    for size in (2**power for power in range(options.n.bit_length())):  # every size is measured on all samples
        pairs = [pair for row, ranking in zip(values, rankings, strict=True) for pair in choices(row, ranking, size)]
        picked[size], best[size] = (statistics.fmean(column) for column in zip(*pairs, strict=True))
    report(Path(options.output_dir), picked, best, options.n * options.groups)
    keep(Path(options.output_dir), groups, rankings, values)


# ----------------------------------------------------------------------------------------------------------- report


def report(folder: Path, picked: Mapping[int, float], best: Mapping[int, float], samples: int) -> None:
    """Prints the mean QED by N; writes report.json and best_of_n.png."""
    print("N      judge's choice   best of N   (mean QED)")
    for size in picked:
        print(f"{size:<6} {picked[size]:<16.3f} {best[size]:.3f}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(
        json.dumps({"judge": picked, "best": best, "samples": samples}, indent=2) + "\n"
    )
    draw(folder / "best_of_n.png", {"best of N": best, "judge's choice": picked})
    print(f"plot           {folder / 'best_of_n.png'}")


def keep(
    folder: Path, groups: Sequence[Sequence[str]], rankings: Sequence[Ranking], values: Sequence[Sequence[float]]
) -> None:
    """Writes every sample to molecules.jsonl, with its group, QED, score and rank; draws the judge's choices."""
    with (folder / "molecules.jsonl").open("w", encoding="utf-8") as lines:
        for number, (group, ranking, qeds) in enumerate(zip(groups, rankings, values, strict=True)):
            for rank, place in enumerate(ranking.order):
                outcome = ranking.outcomes[place]
                judged = {"failure": outcome.kind} if isinstance(outcome, Failure) else {"score": outcome}
                row = {"group": number, "rank": rank, "smiles": group[place], "qed": qeds[place], **judged}
                lines.write(json.dumps(row) + "\n")
    chosen = [group[ranking.best] for group, ranking in zip(groups, rankings, strict=True) if ranking.best is not None]
    measure.draw(folder / "choices.png", chosen)
    print(f"molecules      {folder / 'molecules.jsonl'}, {folder / 'choices.png'}")


def draw(file: Path, curves: Mapping[str, Mapping[int, float]]) -> None:
    """Mean QED by N, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), dpi=120, layout="constrained")
    for name, values in curves.items():
        axes.plot(list(values), list(values.values()), "o-", label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(values), [str(size) for size in values])
    axes.set(xlabel="samples to choose from", ylabel="mean QED, 0 for what is no molecule", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(file)
    plt.close(figure)


if __name__ == "__main__":
    run("molecules", lambda: main(sys.argv[1:]))
