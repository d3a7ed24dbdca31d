"""The figures of `flexjudge report`: how long it takes, how large its page is, whether hostile texts change it.

    python benchmarks/report.py [RUN]

RUN is the folder of a GRPO run with 1,536 judgements; without one, the recipe makes it (two minutes). The run with
20,000 judgements is made up: 2,500 groups of 8, each about a picture of its own. Screenshots of the first go to
results/report_*.png. Needs Chromium.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from figures import record

from support.browser import Browser
from support.pages import BENIGN, PAYLOADS, changes, hostile, photos, training, write

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
SCREENS = {"desktop": (1280, 1500, False, False), "phone": (390, 844, False, True), "dark": (1280, 900, True, False)}
COMMAND = "python benchmarks/report.py"


def trained() -> Path:
    """The folder of a run that the recipe makes."""
    run = ROOT / "runs" / "report_benchmark"
    if not (run / "judgements.jsonl").exists():
        recipe = ROOT / "recipes" / "grpo_vlm"
        words = [recipe / "train.py", "--config", recipe / "nano.yaml", "--output_dir", run]
        subprocess.run([sys.executable, *map(str, words)], check=True, cwd=ROOT)
    return run


def made(source: Path, page: Path) -> float:
    """Runs the command; its seconds, the start of Python included."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "flexjudge_reward", "report", str(source), "-o", str(page)], check=True)
    return time.perf_counter() - start


def screenshots(browser: Browser, page: Path) -> None:
    """The list with an open group; on the phone, the curves."""
    for name, (width, height, dark, phone) in SCREENS.items():
        browser.screen(width, height, dark, phone)
        browser.open(page.as_uri())
        if name == "dark":
            browser.evaluate("document.getElementById('filters').scrollIntoView()")
        browser.screenshot(RESULTS / f"report_{name}.png")


def main() -> None:
    """Measures, prints, records."""
    run = Path(sys.argv[1]) if sys.argv[1:] else trained()
    with tempfile.TemporaryDirectory() as temporary, Browser() as browser:
        folder = Path(temporary)
        page, large = folder / "report.html", folder / "large.html"
        seconds = median(made(run, page) for _ in range(3))
        size = page.stat().st_size / 1e6
        record("report.seconds_1536", seconds, unit="s", target="<= 5", note=f"{size:.1f} MB", command=COMMAND)
        record("report.mb_1536", size, unit="MB", target="<= 5", command=COMMAND)
        browser.screen(1280, 900)
        opened = median(browser.open(page.as_uri()) for _ in range(5))
        record("report.open_ms", 1000 * opened, unit="ms", target="<= 1000", command=COMMAND)
        screenshots(browser, page)

        lines = training(20_000)
        photos(write(folder / "large" / "judgements.jsonl", lines), lines)
        took, size = made(folder / "large", large), large.stat().st_size / 1e6
        browser.screen(1280, 900)
        note = f"written in {took:.1f} s (<= 60), opens in {1000 * browser.open(large.as_uri()):.0f} ms"
        record("report.mb_20000", size, unit="MB", target="<= 40", note=note, command=COMMAND)

        pages = []
        for name, texts in (("hostile", PAYLOADS), ("plain", [f"{BENIGN} {n}" for n in range(len(PAYLOADS))])):
            pages.append(folder / name / "report.html")
            made(write(folder / name / "judgements.jsonl", hostile(texts)), pages[-1])
        changed = changes(browser, *pages, len(PAYLOADS))
        note = f"{len(PAYLOADS)} payloads in 8 fields of a record"
        record("report.payload_changes", len(changed), unit="payloads", target="<= 0", note=note, command=COMMAND)


if __name__ == "__main__":
    main()
