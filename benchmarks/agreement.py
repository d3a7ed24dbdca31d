"""The same judge behind three engines: how often do they give the same verdict?

    python benchmarks/agreement.py               # about ten minutes on two cores
    python benchmarks/agreement.py --count 50 --dry
    python benchmarks/agreement.py --hears --count 300     # the embedded judge that hears: sounds, too

500 held-out examples of the embedded judge's world, greedy, float32: all four formats, scenes in words, as images and
as videos. They go through VLLMEngine, through ServerEngine on a real `vllm serve`, and through TransformersEngine. Two
verdicts are the same if their scores are, or their kind of failure. The figure is the smallest share of same verdicts
over the three pairs of engines. On a CPU this needs vLLM's CPU build.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from figures import record
from nano import FORMATS, SAMPLING, Case, cases

from flexjudge_reward import Engine, Judge, ServerEngine, TransformersEngine, Verdict, VLLMEngine
from flexjudge_reward.nano import path
from support import real

SHARES = (  # form, medium, candidates, share of the examples
    ("pointwise", "words", 1, 0.10),
    ("pointwise", "image", 1, 0.20),
    ("pointwise", "video", 1, 0.05),
    ("pairwise", "words", 2, 0.10),
    ("pairwise", "image", 2, 0.20),
    ("pairwise", "video", 2, 0.05),
    ("listwise", "image", 4, 0.15),
    ("multiple_choice", "image", 4, 0.15),
)

HEARD = (
    *(("pointwise", "sound", 1, 0.20), ("pairwise", "sound", 2, 0.30), ("listwise", "sound", 4, 0.10)),
    *(("multiple_choice", "sound", 4, 0.15), ("pairwise", "words", 2, 0.05), ("pairwise", "image", 2, 0.10)),
    ("pairwise", "video", 2, 0.10),
)


def judged(engine: Engine, groups: dict[str, list[Case]]) -> list[Verdict]:
    """The verdicts of all groups, in order."""
    start = perf_counter()
    verdicts: list[Verdict] = []
    for form, group in groups.items():
        judge = Judge(FORMATS[form.split()[0]](prompt_set="nano"), engine, SAMPLING)
        verdicts += judge([case.example for case in group])
    print(f"{type(engine).__name__}: {perf_counter() - start:.0f} s, start included", flush=True)
    engine.close()
    return verdicts


def said(verdict: Verdict) -> object:
    """What two engines must agree on."""
    return verdict.scores if verdict.failure is None else verdict.failure.kind


def agreement(verdicts: dict[str, list[Verdict]], kinds: Sequence[str]) -> float:
    """The smallest share of same verdicts over the pairs of engines; prints each, and what differs."""
    shares = []
    for one, other in combinations(verdicts, 2):
        same = [said(a) == said(b) for a, b in zip(verdicts[one], verdicts[other], strict=True)]
        texts = [
            a.generations[0].text == b.generations[0].text for a, b in zip(verdicts[one], verdicts[other], strict=True)
        ]
        shares.append(sum(same) / len(same))
        differ = [kind for kind, equal in zip(kinds, same, strict=True) if not equal]
        exact = sum(texts) / len(texts)
        print(f"{one} and {other}: same verdict {shares[-1]:.4f}, same text {exact:.4f}; differ: {differ}", flush=True)
    return min(shares)


def _clip_size(model: str) -> tuple[str, ...]:
    """Options of a server: that it may be told the rate of a clip, and the model's own size of clips."""
    processor = json.loads(Path(model, "processor_config.json").read_text("utf-8"))
    own = {"videos_kwargs": {"size": processor["video_processor"]["size"]}}
    return "--trust-request-mm-kwargs", "--mm-processor-kwargs", json.dumps(own)


def main() -> None:
    """Runs the three engines one after the other and records the figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--hears", action="store_true", help="the embedded judge that hears")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    asked = parser.parse_args()
    real.prepare()
    groups = {
        f"{form} {medium}": cases(form, medium, round(asked.count * share), candidates, seed=3)
        for form, medium, candidates, share in (HEARD if asked.hears else SHARES)
    }
    model = str(path("omni" if asked.hears else "judge"))
    name, options = ("nano-omni", _clip_size(model)) if asked.hears else ("nano", ())
    kinds = [name for name, group in groups.items() for _ in group]
    verdicts = {
        "transformers": judged(TransformersEngine(model, dtype="float32"), groups),
        "vllm": judged(VLLMEngine(model, dtype="float32", enforce_eager=True), groups),
    }
    with real.serve(model, "--dtype", "float32", "--enforce-eager", "--served-model-name", name, *options) as url:
        verdicts["server"] = judged(ServerEngine(url), groups)
    least = agreement(verdicts, kinds)
    if not asked.dry:
        failed = max(sum(v.failure is not None for v in each) for each in verdicts.values())
        note = f"{len(kinds)} examples, float32, greedy; at most {failed} verdicts of an engine are failures"
        figure = "audio.engine_agreement_min" if asked.hears else "engines.verdict_agreement_min"
        record(figure, least, unit="share of verdicts", target=">= 0.99", note=note)


if __name__ == "__main__":
    main()
