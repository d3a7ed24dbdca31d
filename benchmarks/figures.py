"""The project's measured figures: one JSON line each in results/figures.jsonl; the newest line of a name counts.

    python benchmarks/figures.py            the table of figures against their targets
    from figures import record              in a benchmark: append one

`record` notes the command that was run, the commit and the hardware, so that each figure can be made again. On a
machine that has a copy of the files and no repository, FIGURES_FILE says where the lines go and FIGURES_COMMIT which
commit was copied.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "figures.jsonl"


def record(name: str, value: float, *, unit: str, target: str, note: str = "", command: str | None = None) -> None:
    """Appends one figure and prints it.

    Args:
        name: such as "nano.single_exact"; see the table for the names in use.
        value: rates are fractions of 1 unless the name says points or percent.
        target: a comparison such as ">= 0.95" or "<= 12"; "" for a figure without one.
        command: what makes the figure again from a clean clone; by default the running command.
    """
    line = {
        "name": name,
        "value": float(f"{value:.6g}"),
        "unit": unit,
        "target": target,
        "command": command or running_command(),
        "commit": commit(),
        "hardware": hardware(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "note": note,
    }
    results = Path(os.environ.get("FIGURES_FILE") or RESULTS)
    results.parent.mkdir(exist_ok=True)
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(f"{name} = {line['value']} {unit} (target {target or 'none'})", flush=True)


def running_command() -> str:
    """This process's command line, relative to the repository root; of other paths of this machine only the names."""
    root = Path(__file__).resolve().parent.parent
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(root).as_posix() if script.is_relative_to(root) else script.name
    words = [word if not os.path.isabs(word) else Path(word).name for word in sys.argv[1:]]
    return shlex.join(["python", shown, *words])


def commit() -> str:
    """The short id of HEAD, with "+" where the working tree differs from it; FIGURES_COMMIT where that is set."""
    if given := os.environ.get("FIGURES_COMMIT"):
        return given
    if shutil.which("git") is None:
        return ""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def hardware() -> str:
    """The processor's name and the number of cores; the accelerator too, if torch is loaded and sees one."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        cpu = names[0] if names else cpu
    torch = sys.modules.get("torch")
    gpu = f", {torch.cuda.get_device_name()}" if torch and torch.cuda.is_available() else ""
    return f"{os.cpu_count()} x {cpu}{gpu}"


def newest() -> dict[str, dict[str, object]]:
    """The newest line of each name."""
    lines = RESULTS.read_text("utf-8").splitlines() if RESULTS.exists() else []
    return {entry["name"]: entry for entry in map(json.loads, filter(None, lines))}


def holds(value: float, target: str) -> str:
    """ "yes" or "NO" by a target such as ">= 0.9"; "-" without one."""
    sign, _, bound = target.partition(" ")
    compare = {">=": float.__ge__, "<=": float.__le__, "==": float.__eq__, "<": float.__lt__, ">": float.__gt__}
    if sign not in compare:
        return "-"
    return "yes" if compare[sign](float(value), float(bound)) else "NO"


def main() -> None:
    """Prints the table."""
    figures = newest()
    width = max(map(len, figures), default=4)
    print(f"{'name':{width}}  {'value':>12}  {'target':>10}  met  unit")
    for name, entry in sorted(figures.items()):
        value, target = float(str(entry["value"])), str(entry["target"])
        print(f"{name:{width}}  {value:>12g}  {target:>10}  {holds(value, target):3}  {entry['unit']}")


if __name__ == "__main__":
    main()
