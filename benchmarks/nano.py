"""How well the embedded judge judges: held-out scenes of its world, in words and as pictures, greedy.

    python benchmarks/nano.py                              # about two minutes on one core, all figures recorded
    python benchmarks/nano.py --count 50 --dry             # a quick look, nothing recorded
    python benchmarks/nano.py --trainings runs/sft_nano_second OTHER OTHER --count 2000     # the mean, and the lowest
    python benchmarks/nano.py --trainings A B C --name wide         # the same of another kind, under names of its own
    python benchmarks/nano.py --answer-first runs/answer_first     # the ablation of recipes/judge_training/sft

Every example goes through the public `Judge` on `TransformersEngine`, so a figure counts the whole way from example to
verdict; a failed verdict counts as wrong. True scores come from `recipes/nano/shapes.py`. The judge was trained on
judgements of scenes in words only.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flexjudge_recipes.nano import shapes, sounds, traces
from flexjudge_recipes.nano.world import SHAPES, SOUNDS

from figures import record

from flexjudge_reward import (
    Example,
    Judge,
    Listwise,
    Media,
    Message,
    MultipleChoice,
    Pairwise,
    Pointwise,
    Prompt,
    Request,
    Rubric,
    Sampling,
    Scale,
    TransformersEngine,
    Verdict,
)
from flexjudge_reward.nano import path

FORMATS = {"pointwise": Pointwise, "pairwise": Pairwise, "listwise": Listwise, "multiple_choice": MultipleChoice}
MEDIA = {"words": SHAPES, "image": SHAPES, "video": SHAPES, "words of sounds": SOUNDS, "sound": SOUNDS}
SAMPLING = Sampling(temperature=0.0, max_tokens=160)


@dataclass(frozen=True)
class Case:
    """One example with everything that is known about it."""

    asked: shapes.Question
    replies: list[str]
    example: Example
    high: int

    @property
    def truth(self) -> tuple[int, ...]:
        """The score each reply deserves."""
        return tuple(shapes.score(self.asked, reply, self.high) for reply in self.replies)


def cases(form: traces.Form, medium: str, count: int, candidates: int, seed: int) -> list[Case]:
    """`count` held-out examples; `medium` is a key of MEDIA. Of lists and choices one reply alone is best."""
    rng = random.Random(f"benchmark {form} {medium} {seed}")
    made = []
    for index in range(count):
        asked = shapes.question(rng, MEDIA[medium].scene(rng, held_out=True), shapes.judged(candidates))
        replies = shapes.candidates(rng, asked, candidates, single_best=form in ("listwise", "multiple_choice"))
        high = 5 if form != "multiple_choice" and index % 3 == 0 else 10
        rubric = Rubric("Is the answer right?", Scale(1, high))
        made.append(Case(asked, replies, Example(shown(asked, medium, rng), replies, rubric=rubric), high))
    return made


def shown(asked: shapes.Question, medium: str, rng: random.Random) -> tuple[str | Media, ...]:
    """The scene and the question."""
    if medium.startswith("words"):
        return (asked.scene.in_words(rng) + "\n", asked.text)
    if medium == "video":
        return (Media.video(shapes.clip(asked.scene, rng)), asked.text)
    if medium == "sound":
        return (Media.audio((sounds.play(asked.scene, rng), sounds.RATE)), asked.text)
    return (Media.image(shapes.draw(asked.scene, rng)), asked.text)


def exact(case: Case, verdict: Verdict) -> bool:
    """Every score as it should be."""
    return verdict.scores == tuple(float(score) for score in case.truth)


def top(case: Case, verdict: Verdict) -> bool:
    """The best reply alone has the highest score."""
    best = case.truth.index(max(case.truth))
    return verdict.scores is not None and all(
        verdict.scores[best] > score for index, score in enumerate(verdict.scores) if index != best
    )


def share(right: Callable[[Case, Verdict], bool], cases: Sequence[Case], verdicts: Sequence[Verdict]) -> float:
    """The share of cases for which `right` holds."""
    return sum(right(case, verdict) for case, verdict in zip(cases, verdicts, strict=True)) / len(cases)


class Bench:
    """Judges groups of cases and keeps count of replies that could not be read."""

    def __init__(self, model: Path, batch: int) -> None:
        self.engine = TransformersEngine(str(model), dtype="float32", batch_size=batch)
        self.read = self.failed = 0

    def __call__(self, form: traces.Form, medium: str, count: int, candidates: int) -> tuple[list[Case], list[Verdict]]:
        """Cases and their verdicts."""
        group = cases(form, medium, count, candidates, seed=1)
        verdicts = Judge(FORMATS[form](prompt_set="nano"), self.engine, SAMPLING)([case.example for case in group])
        self.read += len(verdicts)
        self.failed += sum(verdict.failure is not None for verdict in verdicts)
        print(
            f"{form:9s} {medium:8s} exact {share(exact, group, verdicts):.3f}" if form != "multiple_choice" else form,
            flush=True,
        )
        return group, verdicts


def uneven(group: Sequence[Case], verdicts: Sequence[Verdict]) -> tuple[list[Case], list[Verdict]]:
    """The pairs with one better answer."""
    kept = [(c, v) for c, v in zip(group, verdicts, strict=True) if c.truth[0] != c.truth[1]]
    return [c for c, _ in kept], [v for _, v in kept]


def run_on_found(bench: Bench, count: int) -> float:
    """The share of right answers with words behind their end that get the lowest score, in words and as images."""
    found = []
    for medium in ("words", "image"):
        rng = random.Random(f"run on {medium}")
        asked = [shapes.question(rng, shapes.scene(rng, held_out=True)) for _ in range(count)]
        examples = [
            Example(
                shown(one, medium, rng), [shapes.run_on(rng, one, one.truth)], rubric=Rubric("Is the answer right?")
            )
            for one in asked
        ]
        found += Judge(Pointwise(prompt_set="nano"), bench.engine, SAMPLING)(examples)
    return sum(verdict.scores == (1.0,) for verdict in found) / len(found)


def measure(bench: Bench, count: int) -> list[tuple[str, float, str, str]]:
    """(name, value, target, note) of every figure of the judge."""
    words, pictures = bench("pairwise", "words", count, 2), bench("pairwise", "image", count, 2)
    single = [bench("pointwise", medium, count // 2, 1) for medium in ("words", "image")]
    listed, chosen = bench("listwise", "image", count // 2, 4), bench("multiple_choice", "image", count // 2, 4)
    held = f"held-out scenes, greedy, {count} examples"
    singles = (share(exact, *single[0]) + share(exact, *single[1])) / 2
    return [
        ("nano.text_pair_exact", share(exact, *words), ">= 0.95", f"both scores; {held}"),
        ("nano.image_pair_better", share(top, *uneven(*pictures)), ">= 0.9", f"pairs with a better answer; {held}"),
        ("nano.image_pair_exact", share(exact, *pictures), ">= 0.8", f"both scores; {held}"),
        ("nano.single_exact", singles, ">= 0.9", f"half in words, half as pictures; {held}"),
        ("nano.image_listwise_top1", share(top, *listed), ">= 0.85", "four answers, one best; held-out scenes, greedy"),
        ("nano.image_choice_top1", share(top, *chosen), ">= 0.85", "four answers, one best; held-out scenes, greedy"),
        (
            "nano.run_on_found",
            run_on_found(bench, count // 5),
            "",
            "right answers with one to three words behind their end",
        ),
        ("nano.well_formed", 1 - bench.failed / bench.read, ">= 0.99", f"of {bench.read} replies"),
    ]


def policy(count: int, batch: int) -> list[tuple[str, float, str, str]]:
    """How often the shipped base answers a held-out picture question rightly, asked directly: the demo's start."""
    rows = list(shapes.rows(seed=2, count=count, held_out=True))
    prompts = [Prompt((Message("user", (Media.image(row["image"]), str(row["question"]))),)) for row in rows]
    engine, lines = TransformersEngine(str(path("base")), dtype="float32", batch_size=batch), []
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        # A seed per row: each draw has its own.
        replies = engine.generate(
            [Request(prompt, Sampling(temperature, max_tokens=16, seed=n)) for n, prompt in enumerate(prompts)]
        )
        right = sum(
            shapes.is_correct(row["asked"], reply.text)  # type: ignore[arg-type]
            for row, reply in zip(rows, replies, strict=True)
        )
        lines.append((f"nano.base_accuracy_{name}", right / count, "", "what, count and exists; habits included"))
    engine.close()
    return lines


def size(model: Path) -> tuple[int, float]:
    """Parameters, and megabytes of the whole folder."""
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", "np") as weights:
        parameters = sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118
    return parameters, sum(file.stat().st_size for file in model.iterdir()) / 1e6


def answer_first(model: Path, count: int, batch: int) -> float:
    """Share of uneven picture pairs in which the ablation finds the better answer; read loosely, in its favour.

    The answer tag is opened for it: left alone it reads pictures aloud, as both judges do in training, and stops there.
    """
    group = cases("pairwise", "image", count, 2, seed=1)
    engine, form = TransformersEngine(str(model), dtype="float32", batch_size=batch), Pairwise(prompt_set="nano")
    opened = Message("assistant", ("<answer>",))
    prompts = [form.render(case.example)[0] for case in group]
    replies = engine.generate([Request(replace(one, messages=(*one.messages, opened)), SAMPLING) for one in prompts])
    engine.close()
    right = total = 0
    for case, reply in zip(group, replies, strict=True):
        scores = [int(number) for number in re.findall(r"<answer>([0-9]+)</answer>", "<answer>" + reply.text)[:2]]
        if case.truth[0] != case.truth[1]:
            total += 1
            right += (
                len(scores) == 2
                and (scores[0] > scores[1]) == (case.truth[0] > case.truth[1])
                and scores[0] != scores[1]
            )
    return right / total


def figures(options: argparse.Namespace) -> list[tuple[str, float, str, str, str]]:
    """(name, value, unit, target, note) of the shipped judge and its base."""
    bench = Bench(options.model, options.batch)
    measured = measure(bench, options.count)
    if options.clips:
        clips = share(exact, *bench("pairwise", "video", options.count // 4, 2))
        measured.append(("nano.clip_pair_exact", clips, "", "clips of four frames, never judged on in training"))
    bench.engine.close()
    parameters, megabytes = size(options.model)
    return [(*line[:2], "fraction", *line[2:]) for line in measured + policy(options.count, options.batch)] + [
        ("nano.parameters", parameters, "count", "<= 8000000", ""),
        ("nano.checkpoint_mb", megabytes, "MB", "<= 16", ""),
    ]


def trainings(options: argparse.Namespace) -> list[tuple[str, float, str, str, str]]:
    """The mean and the lowest of several trainings."""
    found: dict[str, list[float]] = {}
    targets: dict[str, str] = {}
    for folder in options.trainings:
        bench = Bench(folder, options.batch)
        for name, value, target, _ in measure(bench, options.count):
            found.setdefault(name, []).append(value)
            targets[name] = target
        bench.engine.close()
    targets["nano.image_pair_better"] = ">= 0.93"  # in each training
    return [
        (
            name.replace("nano.", f"nano.{options.name}_") + end,
            value,
            "fraction",
            targets[name],
            f"{len(values)} trainings: {', '.join(f'{v:.3f}' for v in values)}; pairs of {options.count} examples",
        )
        for name, values in found.items()
        for end, value in (("", sum(values) / len(values)), ("_min", min(values)))
    ]


def ablation(options: argparse.Namespace) -> list[tuple[str, float, str, str, str]]:
    """The same of the judge that answers first."""
    value = answer_first(options.answer_first, options.count, options.batch)
    note = "ablation: the same data and budget, answer before reasoning"
    return [("nano.answer_first_image_pair_better", value, "fraction", "", note)]


def main() -> None:
    """Measure, print, record."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--count", type=int, default=500)
    args.add_argument("--batch", type=int, default=64)
    args.add_argument("--model", type=Path, default=path("judge"))
    args.add_argument("--trainings", type=Path, nargs="+", help="measure these judges instead")
    args.add_argument("--name", default="trained", help="of the figures of --trainings: nano.NAME_...")
    args.add_argument("--answer-first", type=Path, help="measure this ablation instead")
    args.add_argument("--clips", action="store_true", help="clips too; transformers reads these with torchvision")
    args.add_argument("--dry", action="store_true", help="print, record nothing")
    options = args.parse_args()
    began = time.monotonic()
    lines = (trainings if options.trainings else ablation if options.answer_first else figures)(options)
    for name, value, unit, target, note in lines:
        if options.dry:
            print(f"{name} = {value:.4f} {unit} (target {target or 'none'})")
        else:
            record(name, value, unit=unit, target=target, note=note)
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
