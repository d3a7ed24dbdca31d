"""The worth of a policy's samples: by RDKit, whose QED and SA score no judge is shown, and by the judge.

    validity      share of the samples that RDKit accepts
    uniqueness    share of different molecules among the valid samples
    novelty       share of the different molecules that the policy was not pretrained on; only where those are known
    diversity     1 less the mean Tanimoto similarity of the different molecules
    qed           mean drug-likeness of the valid samples, 0 to 1
    qed_all       the same over all samples, with 0 for one that is no molecule
    sa            mean SA score of the valid samples: 1 is easy to make, 10 is hard
    judge         mean score of the judge in [0, 1]; failed judgements are left out

QED and SA are formulas with blind spots of their own. They are the truth here because the judge is shown neither.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from flexjudge_recipes.molecules.properties import properties, similarities
from flexjudge_recipes.molecules.sampling import Sampler

from transformers import PrinterCallback, TrainerCallback

from flexjudge_reward import Example, Failure, Judge, Media, MediaError, judge_groups

NAMES = ("validity", "uniqueness", "novelty", "diversity", "qed", "sa", "judge")  # of the table and the plot
CAUTION = "Not for choosing substances: a molecule that scores well may be impossible to make, or dangerous"
_LOG = "measured/"  # before the names in the trainer's log history, which is in every checkpoint


# ------------------------------------------------------------------------------------------------------------ RDKit


def canonical(smiles: str) -> str | None:
    """RDKit's canonical SMILES; None for what is no molecule, by the limits that hold for a judge's media."""
    try:
        (text,) = Media.molecule(smiles).as_judge_input()
    except MediaError:
        return None
    return str(text).split("\n")[0].removeprefix("SMILES: ")


def qed(smiles: str) -> float:
    """Drug-likeness, 0 to 1; 0 for what is no molecule."""
    molecule = canonical(smiles)
    found = None if molecule is None else properties(molecule)
    return 0.0 if found is None else found.qed


def figures(samples: Sequence[str], pretrained_on: Collection[str] = ()) -> dict[str, float]:
    """All figures but the judge's; `pretrained_on` are canonical SMILES."""
    read = [molecule for molecule in map(canonical, samples) if molecule is not None]
    known = {molecule: found for molecule in read if (found := properties(molecule)) is not None}
    valid = [molecule for molecule in read if molecule in known]
    different = sorted(known)
    similar = similarities(different) if len(different) > 1 else [1.0]
    drug_likeness = [known[molecule].qed for molecule in valid]
    novel = sum(molecule not in pretrained_on for molecule in different)
    return {
        "validity": len(valid) / len(samples),
        "uniqueness": len(different) / max(1, len(valid)),
        **({"novelty": novel / max(1, len(different))} if pretrained_on else {}),
        "diversity": 1 - statistics.mean(similar),
        "qed": statistics.mean(drug_likeness) if valid else 0.0,
        "qed_all": sum(drug_likeness) / len(samples),
        "sa": statistics.mean(known[molecule].sa for molecule in valid) if valid else 10.0,
    }


DRAWN = 24  # molecules of a drawing


def draw(file: Path, smiles: Sequence[str]) -> None:
    """A drawing of the first molecules, with their SMILES; no file where there is none."""
    from matplotlib.figure import Figure

    drawn = [Media.molecule(text, as_="drawing") for text in smiles]
    drawn = [(text, one) for text, one in zip(smiles, drawn, strict=True) if one.is_usable][:DRAWN]
    if not drawn:
        return
    rows = -(-len(drawn) // 6)
    figure = Figure(figsize=(12, 2.2 * rows), dpi=100, layout="constrained")
    axes = figure.subplots(rows, 6, squeeze=False).flat
    for axis in axes:
        axis.axis("off")
    for axis, (text, one) in zip(axes, drawn, strict=False):
        axis.imshow(one.images()[0])
        axis.set_title(text if len(text) <= 28 else f"{text[:25]}...", fontsize=7, parse_math=False)
    figure.savefig(file)


# ---------------------------------------------------------------------------------------------------- during training


class Measure(TrainerCallback):  # type: ignore[misc]
    """Measures the policy before, every so many steps, and after. Between that, one short line per log."""

    def __init__(self, sampler: Sampler, judge: Judge, options: Any, pretrained_on: Collection[str]) -> None:
        """
        Args:
            options: `question`, `samples`, `judged` and `measure_every` of the recipe.
            pretrained_on: canonical SMILES; empty where they are not known.
        """
        self.sampler, self.judge, self.options, self.pretrained_on = sampler, judge, options, pretrained_on
        self.samples: dict[int, list[str]] = {}  # by step, of this process

    def attach(self, trainer: Any) -> None:
        """Replaces the trainer's own printing of thirty numbers a line."""
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        names = [name for name in ("loss", "molecule/valid", "judge/score", "rewards/accuracies") if name in logs]
        if state.is_world_process_zero and "loss" in names:
            _print(state, {name: logs[name] for name in names})

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._measure(state, kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        every = self.options.measure_every
        if every and state.global_step % every == 0:
            self._measure(state, kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step not in curve(state):
            self._measure(state, kwargs)

    def _measure(self, state: Any, kwargs: dict[str, Any]) -> None:
        if not state.is_world_process_zero:
            return
        samples = self.sampler(kwargs["model"], kwargs["processing_class"], self.options.samples)
        self.samples[state.global_step] = samples
        measured = figures(samples, self.pretrained_on) | self._judge_scores(samples)
        state.log_history.append({"step": state.global_step} | {_LOG + name: measured[name] for name in measured})
        _print(state, {name: measured[name] for name in NAMES if name in measured})

    def _judge_scores(self, samples: Sequence[str]) -> dict[str, float]:
        """The judge's mean score of the first molecules among the samples."""
        valid = [molecule for molecule in map(canonical, samples) if molecule is not None][: self.options.judged]
        examples = [Example(self.options.question, [Media.molecule(molecule)]) for molecule in valid]
        results = judge_groups(self.judge, examples) if examples else []
        scores = [score for result in results for score in result.outcomes if not isinstance(score, Failure)]
        return {"judge": statistics.fmean(scores)} if scores else {}


def _print(state: Any, values: Mapping[str, float]) -> None:
    line = "   ".join(f"{name} {value:.3f}" for name, value in values.items())
    print(f"step {state.global_step:3}   {line}", flush=True)


def curve(state: Any) -> dict[int, dict[str, float]]:
    """The figures by step, from the trainer's state; those of a resumed run come from its checkpoint."""
    entries = [entry for entry in state.log_history if f"{_LOG}validity" in entry]
    return {
        entry["step"]: {name.removeprefix(_LOG): entry[name] for name in entry if name.startswith(_LOG)}
        for entry in entries
    }


def table(by_step: Mapping[int, Mapping[str, float]]) -> list[tuple[str, str, str]]:
    """Of each figure its name, its value before, and after; "-" for one that could not be measured."""
    ends = by_step[min(by_step)], by_step[max(by_step)]
    names = [name for name in NAMES if any(name in measured for measured in ends)]
    texts = [[f"{measured[name]:.3f}" if name in measured else "-" for measured in ends] for name in names]
    return [(name, before, after) for name, (before, after) in zip(names, texts, strict=True)]


def lines(by_step: Mapping[int, Mapping[str, float]]) -> dict[str, dict[int, float]]:
    """The figures over the steps, by name; the SA score as a tenth, so that all share a scale."""
    found = {}
    for name in NAMES:
        label, factor = ("sa / 10", 0.1) if name == "sa" else (name, 1.0)
        found[label] = {step: factor * measured[name] for step, measured in by_step.items() if name in measured}
    return {label: values for label, values in found.items() if values}
