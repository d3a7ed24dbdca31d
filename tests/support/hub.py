"""A Hub that takes note of what is pushed to it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


def fake_hub(module: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Puts it in the place of `module.HfApi`; the token, repository and files of the last push."""
    from huggingface_hub.utils import filter_repo_objects

    pushed: dict[str, Any] = {}

    class Hub:
        def __init__(self, token: str | None) -> None:
            pushed["token"] = token

        def create_repo(self, name: str, private: bool | None, exist_ok: bool) -> Any:
            return SimpleNamespace(repo_id=f"someone/{name}")

        def upload_folder(self, repo_id: str, folder_path: Path, **patterns: Any) -> None:
            names = [str(file.relative_to(folder_path)) for file in folder_path.rglob("*") if file.is_file()]
            pushed.update(repo=repo_id, files=sorted(filter_repo_objects(names, **patterns)))

    monkeypatch.setattr(module, "HfApi", Hub)
    return pushed
