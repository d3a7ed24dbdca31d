"""How the program of a recipe ends. Imports nothing heavy: some programs need no trainer."""

from __future__ import annotations

import sys
from collections.abc import Callable

from flexjudge_reward import FlexJudgeError
from flexjudge_reward.errors import printable


def run(name: str, main: Callable[[], None]) -> None:
    """Runs a recipe's program; an error that the user can mend is one line on stderr and exit code 2."""
    try:
        main()
    except (FlexJudgeError, OSError) as error:  # OSError: no such model, a full disk
        print(f"{name}: error: {' '.join(printable(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
