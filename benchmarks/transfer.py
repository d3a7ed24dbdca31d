"""What text-only traces teach the embedded judge: the transfer study of recipes/judge_training/study.

    python benchmarks/transfer.py                        # three seeds; continues; transfer.* recorded at the end
    python benchmarks/transfer.py --seeds 1 2 --dry      # any flag of study.py; nothing recorded
    python benchmarks/transfer.py --table                # records what is there

The results are results/transfer.jsonl, a line per finished cell; transfer.md has the tables, transfer.png the plots.
Trainings are in build/transfer. An estimated hour of CPU time a seed, one core; two seeds fit on two cores, in two
processes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean

from flexjudge_recipes.judge_training.study import study, table

from figures import RESULTS, record

NOTES = {
    "video_pair_better": "pairs about clips, better found, after 1,000 text traces",
    "image_minus_text_points": "better found after 1,000 text traces: pairs about images less pairs in words",
    "reason_first_minus_answer_first_points": "better found, image pairs, 1,000 text traces",
    "image_text_minus_text_only_points": "better found, image pairs, 1,000 traces each",
    "forgetting_points_at_1k": "picture questions that the base answers, lost by 1,000 text traces without replay",
    "forgetting_points_at_10k": "the same, 10,000 traces in as many steps",
    "forgetting_points_at_1k_of_seeing": "the same questions: scene read and answer derived without a slip",
    "forgetting_points_at_10k_of_seeing": "the same, 10,000 traces",
    "rl_minus_sft_points": "better found, image pairs; RL on pairs in words",
}


def main() -> None:
    """Runs what is missing, records."""
    words = [word for word in sys.argv[1:] if word != "--dry"]
    root = Path(__file__).resolve().parent.parent
    made = study.main(words, root / "build" / "transfer", RESULTS.with_name("transfer.jsonl"))
    for name, by_seed in table.differences(table.read(made.results, made.settings)).items():
        if not by_seed:
            continue
        unit = "points" if "points" in name else "percent"
        seeds = ", ".join(f"{seed}: {value:.1f}" for seed, value in by_seed.items())
        count = made.settings["count"]
        note = f"{NOTES[name]}; by seed {seeds}; {count} held-out examples a figure, of picture questions half"
        if "--dry" in sys.argv:
            print(f"transfer.{name} = {fmean(by_seed.values()):.2f} {unit}; {note}")
        else:
            record(f"transfer.{name}", fmean(by_seed.values()), unit=unit, target="", note=note)


if __name__ == "__main__":
    main()
