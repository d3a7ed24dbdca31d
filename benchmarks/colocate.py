"""What the sleep of a judge beside the policy costs, on a real vLLM server: the control plane and the canary.

    python benchmarks/colocate.py        two minutes; on a CPU the memory stays where it is, so a wake is free there

Ten steps of a trainer with eight judgements each: `colocate.step_overhead_seconds` is the mean time that the wake, the
canary and the sleep add to a step. Then the server is killed: `colocate.wrong_replies` counts replies that differ from
those before the first sleep, over all steps and the new process.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from flexjudge_recipes.nano import shapes

from figures import record

from flexjudge_reward import Example, Judge, Media, Pointwise
from flexjudge_reward.engines.colocated import ColocatedEngine
from support import cpu_vllm, real

STEPS = 10
OPTIONS = ("--dtype", "float32", "--enforce-eager")


def examples() -> list[Example]:
    """Eight answers about pictures."""
    rng, found = random.Random(7), []
    for number in range(8):
        scene = shapes.scene(rng)
        question, image = shapes.question(rng, scene), Media.image(shapes.draw(scene, rng))
        found.append(Example([image, question.text] if number % 2 else question.text, [question.truth]))
    return found


def main() -> None:
    """Measures and records."""
    real.prepare()
    server = (sys.executable, "-W", "ignore", cpu_vllm.__file__)
    with ColocatedEngine("nano", server=server, options=OPTIONS) as engine:
        judge, asked = Judge(Pointwise(prompt_set="nano"), engine), examples()
        start = time.perf_counter()
        before = [verdict.generations[0].text for verdict in judge(asked)]
        started = time.perf_counter() - start
        awake = []
        for _ in range(3):
            start = time.perf_counter()
            judge(asked)
            awake.append(time.perf_counter() - start)
        steps, wrong = [], 0
        for step in range(STEPS + 1):
            if step == STEPS:
                assert engine._process is not None
                os.kill(engine._process._process.pid, signal.SIGTERM)
            start = time.perf_counter()
            with engine.window():
                texts = [verdict.generations[0].text for verdict in judge(asked)]
            steps.append(time.perf_counter() - start)
            wrong += sum(one != other for one, other in zip(before, texts, strict=True))
    cost = statistics.mean(steps[1:STEPS]) - statistics.mean(awake)
    note = (
        f"start {started:.1f} s, awake {statistics.mean(awake):.2f} s, a step {statistics.mean(steps[1:STEPS]):.2f} s"
    )
    note += f", after a kill {steps[STEPS]:.1f} s; {STEPS} steps"
    record("colocate.step_overhead_seconds", cost, unit="s", target="<= 2", note=note)
    record("colocate.wrong_replies", wrong, unit="replies", target="<= 0", note=note)


if __name__ == "__main__":
    main()
