"""Clips in the cells of data sets: read as clips, and written beside the pairs. Each is decoded in a process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import Judge, Pointwise, ScriptedEngine, annotate_file, score_file
from support.images import clip
from support.judging import scores, tags
from support.late import late

datasets = late("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "TORCH_AVAILABLE", False)  # else a stream imports it
    datasets.disable_progress_bars()


CLIP_ROWS: dict[str, tuple[Any, dict[str, list[str]]]] = {
    "videos": (lambda data: {"answer": "a", "clip": data}, {"videos": ["clip"]}),
    "own_name": (lambda data: {"answer": "a", "video": data}, {}),
    "list": (lambda data: {"answer": "a", "videos": [data]}, {}),
    "answer": (lambda data: {"clip": data}, {"answer": ["clip"]}),
    "candidate": (lambda data: {"clip": data}, {"candidates": ["clip", "clip"]}),
    "part": (lambda data: {"answer": [{"text": "see", "video": None}, {"text": None, "video": data}]}, {}),
    "place": (
        lambda data: {"answer": "a", "videos": [data], "ask": [{"type": "video"}]},
        {"question": ["ask"]},
    ),
}


@pytest.mark.parametrize("bare", [True, False], ids=["bytes", "struct"])
@pytest.mark.parametrize(("row", "columns"), CLIP_ROWS.values(), ids=CLIP_ROWS)
def test_a_clip_in_a_data_set_is_shown_as_a_clip(tmp_path: Path, row: Any, columns: Any, bare: bool) -> None:
    data = clip(frames=12)
    given = {"question": "q", **row(data if bare else {"bytes": data, "path": None})}
    datasets.Dataset.from_list([given]).to_parquet(tmp_path / "in.parquet")
    engine = ScriptedEngine(lambda request: tags(7))
    score_file(tmp_path / "in.parquet", Judge(Pointwise(), engine), tmp_path / "out.jsonl", columns=columns)
    found = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert found["scores"][0] == 7 and [media.kind for media in engine.prompts[0].media] == ["video"]


def test_a_clip_of_a_data_set_is_written_beside_the_pairs(tmp_path: Path) -> None:
    data = clip(frames=12)
    row = {"question": "0 q", "candidates": ["9 a", "3 b"], "videos": [{"bytes": data, "path": "x/c.MP4"}]}
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "in.parquet")
    annotate_file(tmp_path / "in.parquet", Judge(Pointwise(), ScriptedEngine(scores)), tmp_path / "out.jsonl")
    (name,) = json.loads((tmp_path / "out.jsonl").read_text())["videos"]
    assert name.endswith(".mp4") and (tmp_path / name).read_bytes() == data
