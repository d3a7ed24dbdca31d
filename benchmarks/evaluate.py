"""Checking a judge: the metrics against counts by hand, and the rows of the nano world's own benchmark.

    python benchmarks/evaluate.py                    # the figures, in under a minute
    python benchmarks/evaluate.py --make-nano-world  # writes nano_world.jsonl, the rows of that benchmark

`agreement.fixture_mismatches` counts the metrics of tests/support/benchmark_cases.py that differ from what was counted
by hand, over all benchmarks; `agreement.benchmarks` the benchmarks that have such a fixture.
`doctor.right_recommendations` is the share of the judges of tests/support/doctor_cases.py, and of the embedded judge
inside and outside its world: whether `flexjudge doctor` recommends what is right for each. The embedded judge does not
read to the end: inside its world it is right where that is accepted, and refused where not.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from flexjudge_recipes.nano import shapes

from figures import record

from flexjudge_reward.offline.evaluate.doctor import doctor
from support import benchmark_cases, doctor_cases

WORLD = Path(__file__).resolve().parent.parent / "flexjudge_reward/offline/evaluate/benchmarks/nano_world.jsonl"


def make_nano_world(count: int = 120) -> None:
    """Held-out scenes, half in words and half as images, with two answers and the score that each deserves."""
    rng = random.Random("nano world 1")
    with WORLD.open("w", encoding="utf-8") as file:
        for number in range(count):
            asked = shapes.question(rng, shapes.scene(rng, held_out=True), shapes.judged(2))
            answers = shapes.candidates(rng, asked, 2)
            words = number % 2 == 0
            row = {
                "id": number,
                "medium": "words" if words else "image",
                "kind": asked.kind,
                "scene": asked.scene.in_words(rng) + "\n" if words else None,
                "image": None if words else png(shapes.draw(asked.scene, rng)),
                "question": asked.text,
                "answers": answers,
                "scores": [shapes.score(asked, answer) for answer in answers],
            }
            file.write(json.dumps(row) + "\n")


def png(image: object) -> str:
    """A data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)  # type: ignore[attr-defined]
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def right_recommendations(count: int = 60) -> float:
    """The share of judges with the right recommendation; prints that for the embedded judge."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        right = {
            name: doctor_cases.is_right(case, doctor_cases.examined(case, path))
            for name, case in doctor_cases.CASES.items()
        }
        nano = doctor_cases.nano()
        for name, rows, outcome in (
            ("nano inside", doctor_cases.inside(count), "go"),
            ("nano outside", doctor_cases.outside(count), "no-go"),
        ):
            source = doctor_cases.write(path / "rows.jsonl", rows)
            found = doctor(source, nano, formats=("pointwise", "pairwise"))
            print(name, found, sep="\n", end="\n\n", flush=True)
            right[name] = found.outcome == outcome
    print(right)
    return sum(right.values()) / len(right)


def main() -> None:
    """Counts mismatches, or makes the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--make-nano-world", action="store_true")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    asked = parser.parse_args()
    if asked.make_nano_world:
        make_nano_world()
        return
    wrong = {name: benchmark_cases.mismatches(name) for name in benchmark_cases.CASES}
    for name, found in wrong.items():
        print(name, *(found or ["as counted by hand"]), sep="\n    ")
    right = right_recommendations()
    if not asked.dry:
        note = "scripted judges, and the embedded one inside and outside its world"
        record("doctor.right_recommendations", right, unit="share of judges", target="== 1", note=note)
        checked = sum(len(case.metrics) for case in benchmark_cases.CASES.values())
        record("agreement.fixture_mismatches", sum(map(len, wrong.values())), unit="metrics", target="== 0",
               note=f"of {checked} metrics counted by hand")  # fmt: skip
        record("agreement.benchmarks", len(wrong), unit="benchmarks", target=">= 14", note=", ".join(wrong))


if __name__ == "__main__":
    main()
