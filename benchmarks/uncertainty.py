"""Uncertainty of a judge: what shrinking, a least confidence and a cascade do.

    python benchmarks/uncertainty.py cascade    the embedded judge and a stronger one, three seeds; ten minutes
    python benchmarks/uncertainty.py bandit     a simulated policy by noisy judges, 20 seeds; two minutes
    python benchmarks/uncertainty.py grpo       the demo's training by four votes: plain, with shrinking, with a least
                                                confidence, with a cascade (`cascade_grpo.py`), three seeds each; an
                                                hour, and what is done is kept

The small judge of the cascade is the embedded one on what it is worst at, descriptions, by four votes. The stronger one
is the truth of the nano world with a wrong score in one case of 50: better everywhere, as a large model would be.

The bandit is a softmax policy over ten kinds of answer of known quality, trained with the advantages of GRPO. Its judge
has a noise whose size differs from answer to answer; its spread is the standard deviation of four votes, as a user has
it, not the noise itself. Without noise that differs there is nothing to shrink by.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from criteria import descriptions
from demo import ROOT, run
from figures import record
from groups import GREEDY, Group

from flexjudge_reward import (
    Cascade,
    Example,
    Failure,
    Generation,
    Judge,
    MajorityVote,
    Pointwise,
    Request,
    Sampling,
    ScriptedEngine,
    TransformersEngine,
    Untrusted,
    Verdict,
)
from flexjudge_reward.judge.rewards import Outcome, rewards, shrunk

SEEDS = (1, 2, 3)
UNSURE = 0.95


def main() -> None:
    """Runs the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("cascade", "bandit", "grpo"))
    {"cascade": cascade, "bandit": bandit, "grpo": grpo}[parser.parse_args().part]()


# --------------------------------------------------------------------------------------------------------- cascade


def cascade(count: int = 15) -> None:
    """Scores that are right, and how often the stronger judge is asked."""
    shares: dict[str, list[float]] = {"one answer": [], "votes": [], "cascade": [], "random": []}
    asked, spent = [], [0, 0]
    with TransformersEngine("nano") as engine:
        greedy = Judge(Pointwise(prompt_set="nano"), engine, GREEDY)
        small = Judge(MajorityVote(Pointwise(prompt_set="nano"), 4), engine, Sampling(temperature=1.0, max_tokens=256))
        for seed in SEEDS:
            groups = descriptions(seed, count, junk=0.1)
            examples, truth = rows_of(groups)
            large = Judge(Pointwise(prompt_set="nano"), ScriptedEngine(strong(groups, seed)))
            once, alone, both = greedy(examples), small(examples), Cascade(small, large, UNSURE)(examples)
            went = sum("asked_large" in one.counters for one in both)
            mixed = [*alone]  # as many asked, but any ones
            drawn = random.Random(seed).sample(range(len(examples)), went)
            for index, verdict in zip(drawn, large([examples[i] for i in drawn]) if drawn else [], strict=True):
                mixed[index] = verdict
            for name, verdicts in zip(shares, (once, alone, both, mixed), strict=True):
                shares[name].append(right(verdicts, truth))
            asked.append(went / len(examples))
            spent = [spent[0] + sum(one.tokens for one in once), spent[1] + sum(one.tokens for one in alone)]
            print(
                f"seed {seed}: {asked[-1]:.0%} asked",
                {name: f"{own[-1]:.1f}" for name, own in shares.items()},
                flush=True,
            )
    means = {name: statistics.mean(own) for name, own in shares.items()}
    note = f"confidence of four votes below {UNSURE}; {count * 8} descriptions, {len(SEEDS)} seeds"
    record("cascade.share_asked", statistics.mean(asked), unit="share", target="<= 0.42", note=note)
    note = ", ".join(f"{name} {value:.1f} %" for name, value in means.items())
    note = (
        f"right scores: {note} (as many asked as in the cascade); votes take {spent[1] / spent[0]:.1f} times the tokens"
    )
    gain = means["cascade"] - means["votes"]
    record("cascade.points", gain, unit="points", target="> 0", note=f"over the small judge's votes; {note}")


def rows_of(groups: Sequence[Group]) -> tuple[list[Example], list[int]]:
    """One example per answer, and what each deserves."""
    examples = [group.example.with_candidates([one]) for group in groups for one in group.example.candidates]
    return examples, [score for group in groups for score in group.truth]


def right(verdicts: Sequence[Verdict], truth: Sequence[int]) -> float:
    """Percent of the scores within half a point of the truth."""
    hits = [
        one.scores is not None and abs(one.scores[0] - true) <= 0.5 for one, true in zip(verdicts, truth, strict=True)
    ]
    return 100 * statistics.mean(hits)


def strong(groups: Sequence[Group], seed: int) -> Callable[[Request], Generation]:
    """A judge that says the truth but for one case of 50."""
    rng = random.Random(f"strong {seed}")
    known: dict[tuple[Any, ...], int] = {}
    for group in groups:
        for answer, score in zip(group.answers, group.truth, strict=True):
            known[group.example.question[0].digest, group.question.text, answer] = score  # type: ignore[union-attr]

    def reply(request: Request) -> Generation:
        question, answer = [part.text for part in request.prompt.messages[1].parts if isinstance(part, Untrusted)]
        score = known[request.prompt.media[0].digest, question, answer]
        said = rng.choice((1, 5, 10)) if rng.random() < 0.02 else score
        return Generation(f"<think></think><answer>{said}</answer>", completion_tokens=30)

    return reply


# ---------------------------------------------------------------------------------------------------------- bandit

Rule = Callable[[list[Outcome], list[float], list[int]], list[float | None]]


def plain(scores: list[Outcome], spreads: list[float], groups: list[int]) -> list[float | None]:
    """The scores as they are."""
    return rewards(scores, groups)


def shrinking(scores: list[Outcome], spreads: list[float], groups: list[int]) -> list[float | None]:
    """The setting `shrink`."""
    return rewards(shrunk(scores, spreads, groups), groups)


def confident(scores: list[Outcome], spreads: list[float], groups: list[int]) -> list[float | None]:
    """The setting `min_confidence`, at 0.7."""
    kept = [Failure("uncertain") if 1 - 2 * spread < 0.7 else one for one, spread in zip(scores, spreads, strict=True)]
    return rewards(kept, groups)


def bandit(seeds: int = 20, steps: int = 150) -> None:
    """The quality that a policy reaches."""
    for noisy, what in ((0.5, "half of the answers are judged with noise"), (0.0, "none is")):
        found = {rule.__name__: [policy(rule, seed, steps, noisy) for seed in range(seeds)] for rule in RULES}
        means = {name: 100 * statistics.mean(values) for name, values in found.items()}
        print(what, {name: f"{value:.1f}" for name, value in means.items()}, flush=True)
        if noisy:
            gains = [100 * (a - b) for a, b in zip(found["shrinking"], found["plain"], strict=True)]
            error = statistics.stdev(gains) / len(gains) ** 0.5
            note = f"quality after {steps} steps, of 100: plain {means['plain']:.1f}, shrink {means['shrinking']:.1f}"
            note += (
                f", min_confidence 0.7 {means['confident']:.1f}; standard error {error:.1f}; {seeds} seeds; a bandit"
            )
            note += " whose judge is noisy about half of the answers, with the spread of four votes"
            record("shrink.points", statistics.mean(gains), unit="points", target="> 0", note=note)


RULES: tuple[Rule, ...] = (plain, shrinking, confident)


def policy(rule: Rule, seed: int, steps: int, noisy: float, size: int = 8, groups: int = 4, rate: float = 0.5) -> float:
    """The mean quality of a policy's answers after training, 0 to 1."""
    import numpy as np

    rng = np.random.default_rng(seed)
    kinds = 10
    quality, noise = rng.uniform(0, 1, kinds), np.where(rng.random(kinds) < noisy, 0.45, 0.05)
    logits = np.zeros(kinds)
    for _ in range(steps):
        chances = np.exp(logits - logits.max())
        chances /= chances.sum()
        drawn = rng.choice(kinds, (groups, size), p=chances)
        votes = np.clip(quality[drawn] + rng.normal(size=(4, groups, size)) * noise[drawn], 0, 1)
        scores, spreads = votes.mean(0).ravel().tolist(), votes.std(0).ravel().tolist()
        given = rule(scores, spreads, [index // size for index in range(groups * size)])
        values = np.array([0.0 if one is None else one for one in given]).reshape(groups, size)
        advantages = (values - values.mean(1, keepdims=True)) / (values.std(1, ddof=1, keepdims=True) + 1e-4)
        gradient = np.zeros(kinds)
        np.add.at(gradient, drawn.ravel(), advantages.ravel())
        logits += rate * (gradient - chances * advantages.sum()) / drawn.size
    return float((np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum() * quality).sum())


# ------------------------------------------------------------------------------------------------------------ grpo


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shrink": {"shrink": True},
    "min_confidence": {"min_confidence": 0.7},
    "cascade": {},
}
RESULTS = ROOT / "benchmarks" / "results" / "uncertainty.jsonl"  # a line per training


def grpo() -> None:
    """Accuracy of the demo's training by four votes: plain, and what each arm changes in it and in the tokens."""
    cells = {(seed, name): cell(name, seed) for name in SETTINGS for seed in SEEDS}
    found = {name: [100 * cells[seed, name]["accuracy_after"] for seed in SEEDS] for name in SETTINGS}
    spent = {name: sum(cells[seed, name]["tokens"] for seed in SEEDS) for name in SETTINGS}
    each = "; ".join(f"{name} {', '.join(f'{one:.1f}' for one in own)}" for name, own in found.items())
    for name in list(SETTINGS)[1:]:
        gains = [one - plain for one, plain in zip(found[name], found["plain"], strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5
        note = f"right after the demo's training by four votes, percent by seed {SEEDS}: {each}"
        note += f"; standard error of the difference {error:.1f}; {spent[name] / spent['plain']:.3f} of plain's tokens"
        own = [cells[seed, name] for seed in SEEDS]
        if name == "cascade":
            asked = sum(one["asked_large"] for one in own) / sum(one["judged"] for one in own)
            note += f"; the large judge is asked about {asked:.1%} of the answers (confidence below {UNSURE})"
        if name == "min_confidence":
            unsure = sum(one["failures"].get("uncertain", 0) for one in own) / sum(one["judged"] for one in own)
            note += f"; {unsure:.1%} of the answers are uncertain failures"
        record(f"{name}.grpo_points", statistics.mean(gains), unit="points", target=">= 0", note=note)


def cell(name: str, seed: int) -> dict[str, Any]:
    """What one training reported; one that is in the results is not made again."""
    done = [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()] if RESULTS.exists() else []
    for one in done:
        if (one["name"], one["seed"]) == (name, seed):
            return dict(one)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "run")
        report = (
            by_cascade(seed, folder)
            if name == "cascade"
            else run(seed, folder, {"votes": 4, "temperature": 1.0, **SETTINGS[name]})
        )
    judged = {what: report["judge"][what] for what in ("judged", "failures", "tokens")}
    counters = report["judge"]["counters"]
    # Three equal votes of four save the last one: what saves none, the judge is not sure of.
    judged["unsure"] = judged["judged"] - counters.get("votes_saved", 0)
    judged |= {"asked_large": counters.get("asked_large", 0)} if name == "cascade" else {}
    shares = {what: report[what] for what in ("accuracy_before", "accuracy_after")}
    made = {"name": name, "seed": seed, **shares, **judged}
    with RESULTS.open("a") as lines:
        lines.write(json.dumps(made) + "\n")
    return made


def by_cascade(seed: int, folder: Path) -> dict[str, Any]:
    """One training by the small judge and a stronger one; what it reported."""
    command = [sys.executable, "benchmarks/cascade_grpo.py", "--seed", str(seed), "--output_dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return dict(json.loads((folder / "report.json").read_text("utf-8")))


if __name__ == "__main__":
    main()
