"""Gives the lines that SlipCover saw run to coverage.py, for its reports: `python tests/support/lines.py FOUND.json`.

SlipCover's probes remove themselves from the bytecode. The tracer of coverage.py finds the same lines, but on Python
3.11 the tests take nearly twice as long with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import coverage


def main() -> None:
    """Writes .coverage."""
    found = json.loads(Path(sys.argv[1]).read_text("utf-8"))["files"]
    data = coverage.Coverage().get_data()
    data.erase()
    data.add_lines({str(Path(name).resolve()): lines["executed_lines"] for name, lines in found.items()})
    data.write()


if __name__ == "__main__":
    main()
