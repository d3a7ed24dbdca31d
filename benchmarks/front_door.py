"""What a newcomer waits for: the import, the demo from a clean clone, the test suite; and the size of the house.

    python benchmarks/front_door.py import    package.import_seconds   fresh processes, median of 11
    python benchmarks/front_door.py demo      demo.minutes_cold        git clone + make demo, installation included
    python benchmarks/front_door.py suite     suite.minutes            make test in a clean clone, without installation,
                                              suite.fast_seconds       and make test-fast
    python benchmarks/front_door.py house     house.*                  modules, lines, functions; package.wheel_mb
    python benchmarks/front_door.py findings  door.findings_fixed      findings.toml: the tests of each finding are run,
                                                                       and the wheel and the sdist are looked into

The clone goes to a temporary folder and is removed afterwards. Needs `git`, `make` and Python 3.11 only.
"""

from __future__ import annotations

import ast
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import install
from figures import record

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Runs the measurement named on the command line."""
    measurements = {
        "import": measure_import,
        "demo": measure_demo,
        "suite": measure_suite,
        "house": measure_house,
        "findings": measure_findings,
    }
    if len(sys.argv) != 2 or sys.argv[1] not in measurements:
        sys.exit(f"usage: python benchmarks/front_door.py {'|'.join(measurements)}")
    measurements[sys.argv[1]]()


def measure_import() -> None:
    """Seconds that `import flexjudge_reward` adds to an empty Python process."""
    empty, full = ([seconds(code) for _ in range(11)] for code in ("pass", "import flexjudge_reward"))
    value = statistics.median(full) - statistics.median(empty)
    record("package.import_seconds", value, unit="s", target="<= 0.3", note="median of 11, empty process subtracted")


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def measure_demo() -> None:
    """Minutes from `git clone` to the end of `make demo`, with an empty judge cache."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        clone = cloned(folder)
        run(["make", "demo"], clone, XDG_CACHE_HOME=f"{folder}/cache")
        minutes = (time.perf_counter() - start) / 60
    record("demo.minutes_cold", minutes, unit="min", target="<= 4", note="installation included")


def measure_suite() -> None:
    """Minutes of `make test` once its environment is installed."""
    with tempfile.TemporaryDirectory() as folder:
        clone = cloned(folder)
        run(["make", ".venv/test.ok"], clone)
        start = time.perf_counter()
        run(["make", "test"], clone)
        minutes = (time.perf_counter() - start) / 60
        start = time.perf_counter()
        run(["make", "test-fast"], clone)
        fast = time.perf_counter() - start
    record("suite.minutes", minutes, unit="min", target="", note="real vLLM and trainers included")
    record("suite.fast_seconds", fast, unit="s", target="<= 60", note="tests/unit and tests/contract")


def measure_findings() -> None:
    """The findings of findings.toml whose every check passes."""
    sections = tomllib.loads((ROOT / "benchmarks" / "findings.toml").read_text("utf-8"))
    checks = {(section, was): said[1:] for section, found in sections.items() for was, said in found.items()}
    tests = sorted({one for named in checks.values() for one in named if one.startswith("tests/")})
    wrong = failing(tests) | {one for named in checks.values() for one in named if one not in tests}
    with tempfile.TemporaryDirectory() as folder:
        known = {*shipped(Path(folder)), *(f"install {extra}" for extra in install.EXTRAS)}
    readme = (ROOT / "README.md").read_text("utf-8")
    wrong -= known | {one for one in wrong if one.startswith("readme ") and one.removeprefix("readme ") in readme}
    for (section, was), named in checks.items():
        if bad := [one for one in named if one in wrong]:
            print(f"{section}  {was}: {', '.join(bad)}")
        elif not named:
            print(f"{section}  {was}: {sections[section][was][0]}")
    fixed = sum(bool(named) and not wrong & {*named} for named in checks.values())
    note = f"of {len(checks)}; {len(tests)} tests or files of tests; 'install' lines are what make test-install runs"
    record("door.findings_fixed", fixed, unit="findings", target="", note=note)


def failing(tests: list[str]) -> set[str]:
    """Those with a case that fails, or without one that passes: a test that is skipped shows nothing."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        options = ["-q", "-n", "0", "-o", "junit_family=xunit1", f"--junit-xml={report}"]
        there = filter(exists, tests)  # with a name that does not exist it runs none
        subprocess.run([sys.executable, "-m", "pytest", *options, *there], cwd=ROOT)
        cases = ElementTree.parse(report).getroot().iter("testcase")
        ended = {(f"{case.get('file')}::{str(case.get('name')).partition('[')[0]}", ending(case)) for case in cases}

    def good(test: str) -> bool:
        own = {how for name, how in ended if name == test or name.startswith(f"{test}::")}
        return "passed" in own and "failed" not in own

    return {test for test in tests if not good(test)}


def exists(test: str) -> bool:
    file, _, name = test.partition("::")
    return (ROOT / file).is_file() and (not name or f"def {name}(" in (ROOT / file).read_text("utf-8"))


def ending(case: ElementTree.Element) -> str:
    kinds = {child.tag for child in case}
    return "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"


def shipped(folder: Path) -> Iterator[str]:
    """The files in the wheel and in the source distribution, as findings.toml names them."""
    build = f"from setuptools import build_meta as b; b.build_wheel({str(folder)!r}); b.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    for wheel in folder.glob("*.whl"):
        yield from (f"wheel {name}" for name in zipfile.ZipFile(wheel).namelist())
    for sdist in folder.glob("*.tar.gz"):
        with tarfile.open(sdist) as archive:
            yield from (f"sdist {name.partition('/')[2]}" for name in archive.getnames())


def measure_house() -> None:
    """What a reader has to find a way through."""
    package = ROOT / "flexjudge_reward"
    files = sorted(package.rglob("*.py"))
    lengths = [node.end_lineno - node.lineno + 1 for file in files for node in functions(file)]
    top = [path for path in package.glob("*.py") if path.name != "__init__.py"]
    folders = [path for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"]
    lines = sum(len(file.read_text("utf-8").splitlines()) for file in files)
    adapter = len((package / "trainers" / "trl.py").read_text("utf-8").splitlines())
    note = f"and {len(folders)} folders; {len(files)} files, {len(lengths)} functions"
    record("house.top_modules", len(top), unit="modules", target="<= 4", note=note)
    record("house.package_lines", lines, unit="lines", target="<= 9200")
    record("house.longest_function", max(lengths), unit="lines", target="<= 45")
    record("house.median_function", statistics.median(lengths), unit="lines", target="<= 9")
    record("house.trl_adapter_lines", adapter, unit="lines", target="<= 150")
    with tempfile.TemporaryDirectory() as folder:
        wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT)]
        subprocess.run(wheel, check=True)
        megabytes = sum(path.stat().st_size for path in Path(folder).glob("*.whl")) / 1e6
    record("package.wheel_mb", megabytes, unit="MB", target="")


def functions(file: Path) -> list[Any]:
    """Every function and method of a file."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, kinds)]


def cloned(folder: str) -> Path:
    clone = Path(folder) / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    return clone


def run(command: list[str], where: Path, **environment: str) -> None:
    # The caller's own environment must not leak in: a fresh machine has no active venv and no settings of ours.
    hidden = ("FLEXJUDGE_", "VIRTUAL_ENV", "PYTHONPATH")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    subprocess.run(command, cwd=where, check=True, env={**clean, **environment})


if __name__ == "__main__":
    main()
