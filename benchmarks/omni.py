"""How well the embedded judge that hears judges: held-out sounds, images and scenes in words, greedy.

    python benchmarks/omni.py                                # the shipped one, all figures recorded
    python benchmarks/omni.py build/omni/omni OTHER OTHER    # several trainings: the mean, and the lowest
    python benchmarks/omni.py --count 50 --dry               # a quick look, nothing recorded
    python benchmarks/omni.py --from-nothing build/omni/omni # one that grew out of a base of its own, and what it cost

Every example goes through the public `Judge` on `TransformersEngine`; a failed verdict counts as wrong. No sound and
no image was judged in training. `nano.image_pair_exact` in the notes is the other embedded judge on the same images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

from figures import record
from nano import Bench, exact, share, size, top, uneven

from flexjudge_reward.nano import path

TARGETS = {
    "sound_pair_better": (">= 0.92", "pairs of answers about a sound, with a better one"),
    "sound_pair_better_min": (">= 0.88", "the lowest of the trainings"),
    "sound_pair_exact": (">= 0.88", "both scores"),
    "sound_pair_exact_min": (">= 0.82", "the lowest of the trainings"),
    "sound_listwise_top1": ("", "four answers, one best"),
    "sound_choice_top1": ("", "four answers, one best"),
    "sound_single_exact": ("", "one answer"),
    "text_pair_exact": (">= 0.95", "both scores, half the scenes of sounds"),
    "image_pair_exact": ("within 0.02 of nano's", "both scores"),
    "image_pair_better": ("within 0.02 of nano's", "pairs with a better answer"),
    "image_listwise_top1": ("", "four answers, one best"),
    "clip_pair_exact": ("", "both scores, clips of four frames"),
    "well_formed": (">= 0.99", "of all replies"),
}


def measure(folder: Path, count: int, batch: int) -> dict[str, float]:
    """The figures of one training, by name."""
    bench = Bench(folder, batch)
    sound, image = bench("pairwise", "sound", count, 2), bench("pairwise", "image", count, 2)
    words = [bench("pairwise", medium, count // 2, 2) for medium in ("words", "words of sounds")]
    found = {
        "sound_pair_better": share(top, *uneven(*sound)),
        "sound_pair_exact": share(exact, *sound),
        "sound_listwise_top1": share(top, *bench("listwise", "sound", count // 2, 4)),
        "sound_choice_top1": share(top, *bench("multiple_choice", "sound", count // 2, 4)),
        "sound_single_exact": share(exact, *bench("pointwise", "sound", count // 2, 1)),
        "text_pair_exact": statistics.mean(share(exact, *one) for one in words),
        "image_pair_exact": share(exact, *image),
        "image_pair_better": share(top, *uneven(*image)),
        "image_listwise_top1": share(top, *bench("listwise", "image", count // 2, 4)),
        "clip_pair_exact": share(exact, *bench("pairwise", "video", count // 2, 2)),
        "well_formed": 1 - bench.failed / bench.read,
    }
    bench.engine.close()
    return found


def of_nano(count: int, batch: int) -> tuple[float, float]:
    """What the judge without an ear reaches on the same pairs of images: exact, and the better answer found."""
    bench = Bench(path("judge"), batch)
    image = bench("pairwise", "image", count, 2)
    bench.engine.close()
    return share(exact, *image), share(top, *uneven(*image))


def cpu_minutes(folder: Path) -> float:
    """The CPU time of the stages of a training and of the base that it grew out of, as their checkpoints say."""
    import torch

    base = Path(json.loads((folder.parent / "run.json").read_text())["base"])
    stages = [stage for of in (folder.parent, base.parent) for stage in of.glob("*.pt")]
    return sum(float(torch.load(stage, weights_only=True)["seconds"]) for stage in stages) / 60


def main() -> None:
    """Measure, print, record."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("folders", type=Path, nargs="*", default=[path("omni")])
    args.add_argument("--count", type=int, default=300)
    args.add_argument("--batch", type=int, default=64)
    args.add_argument("--from-nothing", action="store_true", help="as omni_from_nothing, with the CPU minutes")
    args.add_argument("--dry", action="store_true", help="print, record nothing")
    options = args.parse_args()
    began, found = time.monotonic(), defaultdict[str, list[float]](list)
    for folder in options.folders:
        for name, value in measure(folder, options.count, options.batch).items():
            found[name].append(value)
    beside = "nano exact {:.3f}, better {:.3f} on the same pairs".format(*of_nano(options.count, options.batch))
    of = "omni_from_nothing" if options.from_nothing else "omni"
    for name, (target, note) in TARGETS.items():
        values = found[name.removesuffix("_min")]
        value = min(values) if name.endswith("_min") else statistics.mean(values)
        each = ", ".join(f"{one:.3f}" for one in values)
        note += f"; held-out scenes, greedy, {options.count} examples (half of it but for pairs)"
        note += f"; {len(values)} trainings: {each}"
        note += f"; {beside}" * name.startswith("image_pair")
        write(options.dry, f"{of}.{name}", value, "fraction", target, note)
    parameters, megabytes = size(options.folders[0])
    write(options.dry, f"{of}.parameters", parameters, "count", "<= 3000000", "")
    write(options.dry, f"{of}.checkpoint_mb", megabytes, "MB", "<= 12", "")
    if options.from_nothing:
        minutes = cpu_minutes(options.folders[0])
        write(options.dry, f"{of}.cpu_minutes", minutes, "minutes", "<= 120", "the base, and the stages after it")
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")


def write(dry: bool, name: str, value: float, unit: str, target: str, note: str) -> None:
    """Prints or records one figure."""
    if dry:
        print(f"{name} = {value:.4f} {unit} (target {target or 'none'}) {note}")
    else:
        record(name, value, unit=unit, target=target, note=note)


if __name__ == "__main__":
    main()
