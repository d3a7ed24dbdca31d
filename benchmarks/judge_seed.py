"""Whether the seed recipe keeps exactly the rows it should: 5,000 rows, planted faults of 31 kinds, a scripted judge.

    python benchmarks/judge_seed.py            # about ten seconds

The file and what should become of each row come from `tests/support/teacher_file.py`. A row counts as wrong if it is
kept with another trace than the longest right one, kept though it should not be, or left out for another reason.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from figures import record

from flexjudge_reward import Judge, Pairwise, Sampling, ScriptedEngine
from flexjudge_reward.offline.traces import traces_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support import teacher_file


def main() -> None:
    """Makes the file, traces it, records."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--rows", type=int, default=5000)
    args.add_argument("--dry", action="store_true", help="print, record nothing")
    options = args.parse_args()
    made = teacher_file.rows(options.rows)
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "teacher.jsonl"), Path(folder, "traces.parquet")
        source.write_text("".join(one.line + "\n" for one in made))
        judge = Judge(Pairwise(), ScriptedEngine(teacher_file.Teacher(made)), Sampling(temperature=0.1))
        counts = traces_file(source, judge, output, teacher_file.SEEDS, "score", columns=teacher_file.COLUMNS)
        wrong = teacher_file.wrong(made, output)
    print(f"{counts}", *wrong[:10], sep="\n")
    if not options.dry:
        note = f"of {options.rows} rows, {len(teacher_file.KINDS)} kinds, {counts['traces']} traces"
        record("seed.rows_wrong", len(wrong), unit="rows", target="== 0", note=note)


if __name__ == "__main__":
    main()
