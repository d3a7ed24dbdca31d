"""A Hub that notes which files are pushed to it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.late import late

hub = late("huggingface_hub")


def fake_hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Replaces the Hub. Returns the paths that are pushed, by repository, those of all pushes together."""
    pushed: dict[str, set[str]] = {}

    def create_repo(self: hub.HfApi, repo_id: str, **_: Any) -> Any:
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"someone/{repo_id}")

    def upload_folder(
        self: hub.HfApi,
        *,
        repo_id: str,
        folder_path: str | Path,
        path_in_repo: str = "",
        allow_patterns: Sequence[str] | None = None,
        ignore_patterns: Sequence[str] | None = None,
        **_: Any,
    ) -> Future[None]:
        names = [str(file.relative_to(folder_path)) for file in Path(folder_path).rglob("*") if file.is_file()]
        kept = hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        pushed.setdefault(repo_id, set()).update(str(Path(path_in_repo, name)) for name in kept)
        return _done()

    def upload_file(self: hub.HfApi, *, repo_id: str, path_in_repo: str, **_: Any) -> Future[None]:
        pushed.setdefault(repo_id, set()).add(path_in_repo)
        return _done()

    for function in (create_repo, upload_folder, upload_file):
        monkeypatch.setattr(hub.HfApi, function.__name__, function)
    return pushed


def _done() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future
