"""What the stages of `molecules.py` are made of: the judge, best of N, preference pairs, measurement, report."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import molecule_judge
import molecule_policy
import molecule_world as world
from common import card, earlier_curve, judged, keep_curve, model_of, sampled
from transformers import TrainerCallback, TrainingArguments
from trl import ModelConfig

from flexjudge_reward import ConfigError, EngineError, Example, JudgeConfig, Media, Rubric
from flexjudge_reward.offline.annotate import annotate_file
from flexjudge_reward.offline.rerank import Ranking, rerank, unscored
from flexjudge_reward.types import Failure

SMALL = "small"  # the name of the judge that is trained here
HEATS = (0.7, 1.0)  # of the samples that become pairs; colder ones are more often molecules
FACTS = 3  # of the samples of a row that are no molecule become pairs, so that they do not outweigh the judged ones
NAMES = ("validity", "uniqueness", "novelty", "diversity", "qed", "sa", "judge")
_MORE = """validity is the share of samples that RDKit accepts, uniqueness that of different ones among these, novelty
the share of these that the policy was not pretrained on, diversity 1 less their mean Tanimoto similarity, qed and sa
means over the valid ones (sa: 1 easy to make, 10 hard), judge its mean score moved to 0 to 1. Not for choosing
substances: nothing here was checked by a chemist, and a molecule that scores well may be impossible to make, or
dangerous.
"""


@dataclass
class Options:
    """What is asked, who judges, and how much is measured. The judge's other settings can come from FLEXJUDGE_*."""

    prepared: str = field(default="runs/molecules", metadata={"help": "The folder of the pretrained policy and judge."})
    question: str = field(
        default=molecule_judge.QUESTION, metadata={"help": "What the judge is told the policy was asked."}
    )
    policy_prompt: str | None = field(
        default=None, metadata={"help": "What the policy goes on from; the token that begins a text if not said."}
    )
    policy_tokens: int = field(
        default=molecule_policy.LENGTH, metadata={"help": "Longest sample; of grpo max_completion_length."}
    )
    judge_model: str | None = field(
        default=SMALL, metadata={"help": "A model name or folder, or 'small' for the one that is trained here."}
    )
    judge_base_url: str | None = field(default=None, metadata={"help": "The judge server, http://host:8001/v1."})
    judge_rubric: str = field(default="molecule", metadata={"help": "A built-in rubric's name, or a TOML file."})
    judge_cache: str | None = field(default=None, metadata={"help": "The file of judge replies, or 'off'."})
    judge_steps: int | None = field(default=None, metadata={"help": "Steps of training the small judge."})
    pretrain_steps: int | None = field(
        default=None, metadata={"help": "Steps of pretraining the policy; 700 if there is none yet."}
    )
    samples: int = field(default=500, metadata={"help": "How many samples measure a policy."})
    judged: int = field(default=100, metadata={"help": "How many of their molecules the judge scores for the report."})
    most: int = field(default=16, metadata={"help": "best_of_n: the largest N, a power of 2."})
    groups: int = field(default=40, metadata={"help": "best_of_n: how many groups of that size are sampled."})


# ------------------------------------------------------------------------------------------------------------- judge


def prepared_judge(options: Options) -> str:
    """The folder of the small judge, trained if it is not there."""
    return str(molecule_judge.train(Path(options.prepared, "judge"), options.judge_steps))


def judge_options(options: Options) -> dict[str, Any]:
    """The judge, as settings of `JudgeConfig`."""
    found: dict[str, Any] = {"rubric": options.judge_rubric, "cache": options.judge_cache}
    if options.judge_model == SMALL and options.judge_base_url is None:
        return found | {"model": prepared_judge(options), "prompts": "nano", "max_tokens": 128, "force_tokens": 0}
    return found | {"model": options.judge_model, "base_url": options.judge_base_url}


def build_judge(options: Options) -> Any:
    """The same judge, ready."""
    return JudgeConfig.resolve(judge_options(options)).build()


# --------------------------------------------------------------------------------------------------------- best of N


def best_of_n(options: Options, model: Any, tokenizer: Any, seed: int, folder: Path) -> dict[str, Any]:
    """Mean QED, 0 for what is no molecule, of the judge's choice among 1, 2, 4 and so on; written to report.json.

    Each group of the largest N is cut into parts of every smaller N, so that all sizes are measured on all samples. A
    part whose molecules the judge could not score has no choice and is left out.

    Raises:
        EngineError: the judge scored nothing.
    """
    samples = molecule_policy.sample(
        model, tokenizer, options.most * options.groups, seed, 1.0, options.policy_prompt, options.policy_tokens
    )
    groups = [samples[start : start + options.most] for start in range(0, len(samples), options.most)]
    judge = build_judge(options)
    try:
        asked = [Example(options.question, [Media.molecule(text) for text in group]) for group in groups]
        rankings = rerank(asked, judge, seed)
    finally:
        judge.close()
    if failed := {kind: count for kind, count in unscored(rankings).items() if kind != "media"}:
        print(f"judge          molecules without a score: {failed}")
        if all(ranking.best is None for ranking in rankings):
            raise EngineError("the judge scored no molecule at all")
    values = [[world.qed(text) for text in group] for group in groups]
    sizes = [2**power for power in range(options.most.bit_length())]
    chosen = {size: _chosen(values, rankings, size) for size in sizes}
    picked = {size: _mean([value for value, _ in chosen[size]]) for size in sizes}
    best = {size: _mean([most for _, most in chosen[size]]) for size in sizes}
    print("N      judge's choice   best there was   (mean QED)")
    for size in sizes:
        print(f"{size:<6} {picked[size]:<16.3f} {best[size]:.3f}")
    found = {"judge": picked, "best": best, "samples": len(samples)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(found, indent=2) + "\n")
    draw_best(picked, best, folder / "best_of_n.png")
    print(f"plot           {folder / 'best_of_n.png'}")
    return found


def _chosen(values: list[list[float]], rankings: list[Ranking], size: int) -> list[tuple[float, float]]:
    """Of each part of `size` the value of the best-ranked, which is 0 without a molecule, and the highest value."""
    found = []
    for row, ranking in zip(values, rankings, strict=True):
        place = {candidate: rank for rank, candidate in enumerate(ranking.order)}
        for start in range(0, len(row), size):
            best = min(range(start, start + size), key=place.__getitem__)
            outcomes, most = ranking.outcomes[start : start + size], max(row[start : start + size])
            if not isinstance(ranking.outcomes[best], Failure):
                found.append((row[best], most))
            elif all(isinstance(one, Failure) and one.kind == "media" for one in outcomes):
                found.append((0.0, most))
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def draw_best(picked: dict[int, float], best: dict[int, float], file: Path) -> None:
    """Mean QED of the judge's choice, and of the best there was, by N."""
    with figure_of(file) as axes:
        for values, name in ((best, "best there was"), (picked, "judge's choice")):
            axes.plot(list(values), list(values.values()), "o-", label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(picked), [str(size) for size in picked])
        axes.set(xlabel="samples to choose from", ylabel="mean QED, 0 for what is no molecule", ylim=(0, 1.02))
        axes.legend(loc="lower right")


# ------------------------------------------------------------------------------------------------------------- pairs


def preference_pairs(
    options: Any, policy: str, model_args: ModelConfig, args: TrainingArguments, folder: Path
) -> list[dict[str, str]]:
    """Pairs for DPO, as {"chosen", "rejected"}: molecules as the judge prefers them, and molecules above what is none.

    Leaves candidates.jsonl, pairs.jsonl (`flexjudge annotate`) and facts.jsonl in `folder`. What is there is kept:
    samples of other settings are an error, pairs of another judge or margin are judged again.
    """
    file, facts, pairs = (folder / f"{name}.jsonl" for name in ("candidates", "facts", "pairs"))
    settings = {
        name: getattr(options, name) for name in ("question", "rows", "answers", "policy_prompt", "policy_tokens")
    }
    settings |= {"model_name_or_path": model_of(policy, model_args.model_revision), "seed": args.seed}
    judged_by = JudgeConfig.resolve(judge_options(options))  # first: a judge that cannot be is found at once
    if not sampled(file, settings):
        _sample_rows(options, molecule_policy.load(policy, model_args, args.device), args.seed, file, facts)
    if not judged(pairs, judged_by, options.margin, file):
        judge = judged_by.build()
        try:
            counts = annotate_file(file, judge, pairs, which="all", margin=options.margin)
            print(f"judge          {dict(counts)}", flush=True)
        finally:
            judge.close()
    lines = [json.loads(line) for line in pairs.read_text("utf-8").splitlines()]
    preferred = [{side: line[side][0]["content"] for side in ("chosen", "rejected")} for line in lines]
    if len(preferred) < options.fewest_pairs:
        raise ConfigError(
            f"{len(preferred)} judged pairs are too few to train on (fewest_pairs={options.fewest_pairs}):"
            f" {pairs.with_suffix('.md')} counts why the others were skipped."
            " Lower the margin, or ask for more rows or answers in another output_dir"
        )
    known = [json.loads(line) for line in facts.read_text("utf-8").splitlines()]
    print(f"pairs          {len(preferred)} judged, {len(known)} of a molecule and what is none", flush=True)
    return preferred + known


def _sample_rows(options: Any, policy: tuple[Any, Any], seed: int, file: Path, facts: Path) -> None:
    each = options.rows * options.answers // len(HEATS)
    how = options.policy_prompt, options.policy_tokens
    drawn = [molecule_policy.sample(*policy, each, seed, heat, *how) for heat in HEATS]
    rng, rows, pairs = random.Random(f"pairs {seed}"), [], []
    for number in range(options.rows):
        texts = [text for part in drawn for text in part[number :: options.rows]]
        valid = list(dict.fromkeys(one for one in map(world.canonical, texts) if one is not None))
        broken = [text for text in texts if world.canonical(text) is None]
        if len(valid) > 1:
            candidates = [{"molecule": one} for one in valid]
            rows.append({"id": number, "question": options.question, "candidates": candidates})
        if valid:
            pairs += [{"chosen": rng.choice(valid), "rejected": one} for one in broken[:FACTS]]
    if not rows:
        raise ConfigError(
            f"no row of {options.answers} samples has two molecules: the policy must be pretrained longer"
        )
    # The candidates last: they say that this step is done.
    for path, lines in ((facts, pairs), (file, rows)):
        fresh = path.with_suffix(".new")
        fresh.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        fresh.replace(path)


# ----------------------------------------------------------------------------------------------------------- measure


class Measure(TrainerCallback):  # type: ignore[misc]
    """What a policy's samples are worth: before, every so many steps, and after."""

    def __init__(self, options: Any, seed: int, policy: str, begun: str | None) -> None:
        """
        Args:
            seed: of the samples.
            policy: what is trained; novelty is measured if it is known what that was pretrained on.
            begun: the checkpoint that the run goes on from.
        """
        self.options, self.seed, self.judge = options, seed, build_judge(options)
        self.known = molecule_policy.pretrained_on(policy)
        self.curve: dict[int, dict[str, float]] = earlier_curve(begun)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One short line per log."""
        if state.is_world_process_zero and logs and "loss" in logs:
            names = ("loss", "molecule/valid", "molecule/judge", "rewards/accuracies")
            shown = "   ".join(f"{name} {logs[name]:.3f}" for name in names if name in logs)
            print(f"step {state.global_step:3}   {shown}", flush=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before; a run that is resumed has it from the run that it resumes."""
        if state.global_step == 0:
            self._measure(args, state, kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """In between."""
        every = self.options.measure_every
        if every and state.global_step % every == 0:
            self._measure(args, state, kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After."""
        if state.global_step not in self.curve:
            self._measure(args, state, kwargs)

    def _measure(self, args: Any, state: Any, kwargs: dict[str, Any]) -> None:
        if not state.is_world_process_zero:
            return
        model, tokenizer, given = kwargs["model"], kwargs["processing_class"], self.options
        how = given.policy_prompt, given.policy_tokens
        samples = molecule_policy.sample(model, tokenizer, given.samples, self.seed, 1.0, *how)
        found = world.truth(samples, self.known)
        if not self.known:
            del found["novelty"]
        self.curve[state.global_step] = found | self._judged(samples)
        keep_curve(args.output_dir, self.curve)
        print(f"step {state.global_step:3}   {_line(self.curve[state.global_step])}", flush=True)

    def _judged(self, samples: list[str]) -> dict[str, float]:
        """The mean score in [0, 1] of the first molecules among the samples; failed judgements are left out."""
        valid = [one for one in map(world.canonical, samples) if one is not None][: self.options.judged]
        verdicts = self.judge([Example(self.options.question, [Media.molecule(one)]) for one in valid]) if valid else []
        scores = [verdict.scale.unit(verdict.scores[0]) for verdict in verdicts if verdict.scores is not None]
        return {"judge": _mean(scores)} if scores else {}

    def report(self, folder: Path, log: list[dict[str, Any]], about: dict[str, Any]) -> None:
        """Prints the table; writes report.json, curve.png and the model card."""
        before, after = self.curve.get(0, {}), self.curve[max(self.curve)]
        found = {"before": before, "after": after, "curve": self.curve, "about": about, "log": log}
        rows = [
            (name, f"{before[name]:.3f}" if name in before else "-", f"{after[name]:.3f}")
            for name in NAMES
            if name in after
        ]
        print("\n" + "\n".join(f"{name:12} {was:>8} {now:>8}" for name, was, now in (("", "before", "after"), *rows)))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(found, indent=2, default=str) + "\n")
        how = f"recipes/molecules.py on its own samples; measured on {about['samples']} samples at temperature 1"
        (folder / "README.md").write_text(
            card(str(about["policy"]), how, _judge_named(about), rows, more=_MORE), "utf-8"
        )
        draw(self.curve, folder / "curve.png")
        print(f"curve          {folder / 'curve.png'}")

    def close(self) -> None:
        """Closes the judge."""
        self.judge.close()


def _line(found: dict[str, float]) -> str:
    return "   ".join(f"{name} {found[name]:.3f}" for name in NAMES if name in found)


def _judge_named(about: dict[str, Any]) -> str:
    """Who judged and by what, with the rubric's own words."""
    where = f" at {about['judge_base_url']}" if about["judge_base_url"] else ""
    rubric = f"rubric {about['judge_rubric']}: {Rubric.load(about['judge_rubric']).criteria.rstrip('.')}"
    return f"{about['judge_model']}{where}, which saw canonical SMILES and descriptors, {rubric}"


def draw(curve: dict[int, dict[str, float]], file: Path) -> None:
    """The figures over the steps; the SA score as a tenth, so that all share a scale."""
    with figure_of(file) as axes:
        for name in NAMES:
            rows = {step: found[name] for step, found in sorted(curve.items()) if name in found}
            share, label = (0.1, "sa / 10") if name == "sa" else (1.0, name)
            axes.plot(list(rows), [share * value for value in rows.values()], "o-", label=label)
        axes.set(xlabel="step", ylim=(0, 1.02))
        axes.legend(loc="lower right", ncols=2)


@contextmanager
def figure_of(file: Path) -> Iterator[Any]:
    """The axes of a plot that is written to `file` at the end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), dpi=120)
    yield axes
    axes.grid(alpha=0.3)
    figure.savefig(file, bbox_inches="tight")
    plt.close(figure)
