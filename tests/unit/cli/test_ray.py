"""`--ray` with wrong input: one line that says what is wrong, before Ray or a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flexjudge_reward.cli.main import main

NANO = ("--model", "nano", "--cache", "off")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param("score - --ray -o out", "give a file or a folder instead of -", id="standard-input"),
        pytest.param("score in.jsonl --ray", "say where the rows go", id="no-output"),
        pytest.param("rerank in.jsonl --ray -o out.jsonl", "output is a folder", id="a-file-as-output"),
        pytest.param("annotate in.jsonl --ray -o out --push-to-hub a/b", "--push-to-hub is not for --ray", id="push"),
        pytest.param("annotate in.jsonl --ray -o out --license mit", "leave it out", id="license"),
        pytest.param("score in.jsonl -o s3://bucket/out", "only a job on Ray writes to an address", id="address"),
        pytest.param("score in.jsonl -o out --ray-judges 2", "--ray-judges needs --ray", id="judges-alone"),
        pytest.param("score in.jsonl -o out --ray-keep-order", "--ray-keep-order needs --ray", id="order-alone"),
        pytest.param("score in.jsonl -o out --ray --ray-judges 0", "whole number from 1 on", id="no-judges"),
        pytest.param("score in.jsonl -o out --ray --ray-rows x", "whole number from 1 on", id="rows"),
    ],
)
def test_flags_that_do_not_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text(json.dumps({"id": 1, "question": "q", "candidates": ["a", "b"]}) + "\n")
    try:
        code: object = main([*words.split(), *NANO])
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and says in err.splitlines()[-1], err
