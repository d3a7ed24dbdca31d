"""Whether what answers at one address is one judge. A router may have replicas behind it that serve different models.

Three things tell: lists of models that differ from call to call, replies that name another model than the first one
did, and a 404 for the model that other replies came from. Scores of two judges must not meet in one group, so each of
these is an error that names the models. Lists without `root`, as of vendors, say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_NO_MODEL = re.compile(r"model\b.*\b(does not exist|not found)", re.IGNORECASE)


class Replicas:
    """What the replicas behind one address have said of their models since it was last found to be another."""

    def __init__(self, where: str) -> None:
        self._where, self._replied = where, ""

    def listed(self, lists: Sequence[Sequence[Mapping[str, Any]]]) -> str:
        """What is wrong with several lists of the same moment; empty if nothing."""
        self._replied = ""  # it may be another one by now
        found = {tuple(sorted(f"{e['id']} ({e['root']})" for e in entries if e.get("root"))) for entries in lists}
        shown = " and another ".join(", ".join(names) or "none" for names in sorted(found))
        return self._said(f"one has {shown}") if len(found) > 1 else ""

    def replied(self, model: object) -> str:
        """What is wrong with a reply that names this model; empty if nothing."""
        if not isinstance(model, str) or not model:
            return ""
        self._replied = self._replied or model
        return "" if model == self._replied else self._said(f"{self._replied} and {model} have replied")

    def refused(self, status: int, message: str, served: bool) -> str:
        """What a refusal shows, where other requests were `served`; empty if nothing."""
        if status != 404 or not served or not _NO_MODEL.search(message):
            return ""
        return self._said(f"one that serves {self._replied or 'the judge'} has replied, and another says: {message}")

    def _said(self, what: str) -> str:
        return (
            f"the replicas behind {self._where} serve different models: {what}. Start all of them with the same model"
        )
