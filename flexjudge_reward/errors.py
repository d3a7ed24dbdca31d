"""What this package raises, in one tree.

    FlexJudgeError
    ├── ConfigError (ValueError)      an argument, file or setting is wrong; nothing was loaded yet
    │   └── MissingExtra (ImportError)  an optional package is not installed; the message has the pip command
    ├── MediaError (ValueError)       one image, video, audio clip or molecule cannot be used
    ├── EngineError (RuntimeError)    the judge model or its server cannot work at all
    │   └── SeveralModels               several of them reply behind one address
    ├── JudgementFailed (RuntimeError)  failures passed the limit, or the policy is "raise"
    └── CostLimitReached (RuntimeError)  judging cost more than a run may spend

One judgement that fails is not an exception: it is a `Failure` value inside a `Verdict` (see `types.py`), so that it
never fails the rest of its batch. Every class here pickles, because trainers send errors between processes.
"""

from __future__ import annotations

import importlib.util


class FlexJudgeError(Exception):
    """Base of everything this package raises deliberately."""


class ConfigError(FlexJudgeError, ValueError):
    """An argument, file or setting is wrong."""


class MissingExtra(ConfigError, ImportError):
    """An optional package is missing."""

    def __init__(self, package: str, extra: str) -> None:
        command = f"pip install 'flexjudge-reward[{extra}]'"
        super().__init__(f"{package!r} is not installed, and this needs it. Run: {command}")
        self.package, self.extra = package, extra

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        return MissingExtra, (self.package, self.extra)


def need(package: str, extra: str) -> None:
    """Raises MissingExtra if a package of an extra is not installed; imports nothing."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtra(package, extra)


class MediaError(FlexJudgeError, ValueError):
    """One media item is missing, corrupt, too large or not allowed."""


class EngineError(FlexJudgeError, RuntimeError):
    """The engine cannot answer anything: no model, no server, dead process."""


class SeveralModels(EngineError):
    """Different models reply behind one address, so that no reply counts."""


class JudgementFailed(FlexJudgeError, RuntimeError):
    """Judgements failed and the caller wants to stop on that."""


class CostLimitReached(FlexJudgeError, RuntimeError):
    """Judging cost more than `max_cost` or `max_judge_tokens` allow."""


def printable(text: object) -> str:
    """Text for a terminal or a log: whatever is not printable, such as an escape sequence or a new line, is a blank."""
    return "".join(char if char.isprintable() else " " for char in str(text))
