"""`flexjudge score | rerank | annotate`: every setting is a flag, and each command runs from rows to a file."""

from __future__ import annotations

import errno
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import ConfigError, JudgeConfig, Request, ScriptedEngine
from flexjudge_reward.cli.main import main
from flexjudge_reward.judge.settings import settings_of
from support.judging import scores

COMMANDS = ("score", "rerank", "annotate")
NANO = ("--model", "nano", "--cache", "off")
GROUP = {"id": 1, "question": "q", "candidates": ["3 a", "9 b", "5 c"]}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """What the commands get for the engine of the embedded judge."""
    scripted = ScriptedEngine(scores)
    monkeypatch.setattr("flexjudge_reward.engines.transformers.TransformersEngine", lambda *_, **__: scripted)
    return scripted


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "in.jsonl", GROUP, {**GROUP, "id": 2, "candidates": ["4 a", "2 b", "8 c"]})


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(command: str, source: Path, *arguments: str) -> list[dict[str, Any]]:
    """The rows that a command wrote."""
    output = source.parent / "out.jsonl"
    assert main([command, str(source), "-o", str(output), *NANO, *arguments]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


# ---------------------------------------------------------------- runs


def test_score_writes_an_entry_per_candidate_and_a_summary(
    engine: ScriptedEngine, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run("score", source)
    assert [(row["id"], row["scores"]) for row in rows] == [(1, [3, 9, 5]), (2, [4, 2, 8])]
    out, err = capsys.readouterr()
    assert out == "" and "The judge is nano on transformers (the model was named)" in err
    assert "6 judged (0 from the cache, 6 new), 0 failed" in err and engine.closed


def test_score_compares_three_candidates_by_a_format_for_two(engine: ScriptedEngine, source: Path) -> None:
    rows = run("score", source, "--format", "pairwise", "--position-swap", "--budget", "2")
    assert rows[0]["scale"] == [0, 1] and len(rows[0]["scores"]) == 3
    assert len(engine.requests) == 2 * 2 * 2  # rows, comparisons, orders


def test_rerank_puts_the_best_first(engine: ScriptedEngine, source: Path) -> None:
    rows = run("rerank", source, "--format", "listwise", "--seed", "7")
    assert [(row["id"], row["order"], row["best"]) for row in rows] == [(1, [1, 2, 0], 1), (2, [2, 0, 1], 2)]
    assert len(engine.requests) == 2 and {request.sampling.seed for request in engine.requests} == {7}


def test_the_seed_draws_the_ties_of_rerank(engine: ScriptedEngine, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *({**GROUP, "id": n, "candidates": ["3 a", "3 b", "3 c"]} for n in range(9)))
    first, same, other = ([row["order"] for row in run("rerank", source, "--seed", seed)] for seed in ("1", "1", "2"))
    assert first == same != other


def test_annotate_writes_pairs_and_what_it_skipped(
    engine: ScriptedEngine, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run("annotate", source, "--format", "pairwise", "--pairs", "all", "--margin", "3")
    assert [row["pair"] for row in rows] == [[1, 0], [1, 2], [2, 0], [2, 1]]
    assert "4 pairs from 2 rows; skipped: 2 below_margin" in capsys.readouterr().err
    assert [row["pair"] for row in run("annotate", source, "--format", "pairwise")] == [[1, 0], [2, 1]]


def test_columns_are_named_and_ignored_by_flags(engine: ScriptedEngine, tmp_path: Path) -> None:
    row = {"id": "same", "prompt": "q", "one": "3 a", "other": "9 b", "answer": "the truth", "rubric": "R4"}
    source, columns = write(tmp_path / "in.jsonl", row, row), ("question=prompt", "candidates=one", "candidates=other")
    flags = [flag for column in (*columns, "id=", "rubric=") for flag in ("--column", column)]
    assert [(row["id"], row["scores"]) for row in run("score", source, *flags)] == [(None, [3, 9])] * 2


# ---------------------------------------------------------------- flags

VALUES: dict[type, tuple[list[str], Any]] = {int: (["3"], 3), float: (["0.5"], 0.5), str: (["a text"], "a text")}


def flags(known: Any) -> tuple[list[str], dict[str, Any]]:
    """Arguments that set each setting, and the values that they set."""
    arguments, values = [], {}
    for name, setting in known.items():
        flag = "--" + name.replace("_", "-")
        kind = next((kind for kind in VALUES if kind in setting.types), str)
        given, values[name] = VALUES[kind]
        if setting.low > 3:  # of a size in bytes
            given, values[name] = [str(setting.low)], setting.low
        if bool in setting.types:
            flag, given, values[name] = flag.replace("--", "--no-"), [], False
        if setting.choices:
            given, values[name] = [setting.choices[-1]], setting.choices[-1]
        arguments += [flag, *given]
    return arguments, values


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_of_a_judge_is_a_flag(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def resolve(given: dict[str, Any], environ: dict[str, str]) -> JudgeConfig:
        resolved.append(given)
        raise ConfigError("enough")

    resolved: list[dict[str, Any]] = []
    monkeypatch.setattr(JudgeConfig, "resolve", resolve)
    known = settings_of(JudgeConfig)
    arguments, values = flags(known)
    assert main([command, "in.jsonl", "-o", "out.jsonl", *arguments]) == 2
    assert main([command, "in.jsonl", "-o", "out.jsonl", "--position-swap"]) == 2
    assert resolved == [values, dict.fromkeys(known) | {"position_swap": True}]
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"--{name.replace('_', '-')}" in text and setting.help[:20] in text for name, setting in known.items())
    assert "--no-position-swap" in text and "(default: pointwise)" in text


def test_a_flag_wins_over_the_environment(
    engine: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "in.jsonl", {"question": "q", "candidates": ["3 a", "9 b"]})
    monkeypatch.setenv("FLEXJUDGE_POSITION_SWAP", "true")
    monkeypatch.setenv("FLEXJUDGE_FORMAT", "pairwise")
    for arguments, requests in (((), 2), (("--no-position-swap",), 1)):
        engine.requests.clear()
        run("score", source, *arguments)
        assert len(engine.requests) == requests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--votes", "three"], "argument --votes: invalid int value: 'three'", id="type"),
        pytest.param(["--schedule", "ring"], "argument --schedule: invalid choice: 'ring'", id="choice"),
        pytest.param(["--column", "prompt"], "expected NAME=COLUMN such as question=prompt", id="column"),
        pytest.param(["--api-key", "secret"], "unrecognized arguments: --api-key", id="a_key_is_no_flag"),
    ],
)
def test_a_wrong_flag_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["score", "in.jsonl", *arguments])
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["score", "none.jsonl"], "no file or folder 'none.jsonl'", id="no_file"),
        pytest.param(["annotate", "in.jsonl"], "say where the pairs go: -o pairs, a data set", id="no_output"),
        pytest.param(["score", "in.jsonl", "--votes", "3"], "3 votes at temperature 0 are one vote", id="settings"),
        pytest.param(["score", "in.jsonl", "--format", "best"], "format must be one of pointwise,", id="format"),
        pytest.param(["rerank", "in.jsonl", "--split", "train"], "a file of lines, which has no splits", id="split"),
        pytest.param(["annotate", "in.jsonl", "-o", "out.md"], "the pairs go to a .jsonl file", id="output"),
        pytest.param(["score", "in.jsonl", "-o", "in.jsonl"], "would change the input", id="output_is_the_input"),
        pytest.param(["score", "in.jsonl", "-o", "none/out.jsonl"], "there is no folder 'none'", id="no_folder"),
        pytest.param(["rerank", "in.jsonl", "-o", "."], "the output '.' is a folder", id="a_folder"),
        pytest.param(["score", "in.jsonl", "--limit", "0"], "limit must be at least 1, found 0", id="limit"),
        pytest.param(["score", "in.jsonl", "--rubric", "in.jsonl"], "not valid TOML", id="rubric_that_is_no_toml"),
        pytest.param(["score", "in.jsonl", "--rubric", sys.executable], "cannot be read as text", id="binary_rubric"),
        pytest.param(
            ["score", "in.jsonl", "--prompt-set", sys.executable], "cannot be read as text", id="binary_prompt"
        ),
        pytest.param(["score", sys.executable], "line 1: ", id="binary_source"),
    ],
)
def test_an_error_is_one_line(
    engine: ScriptedEngine,
    source: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(source.parent)
    assert main([*arguments, *NANO]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("flexjudge: error: ") and message in line
    assert not engine.requests and [path.name for path in source.parent.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError(errno.ENOSPC, "No space left on device"), id="full_disk"),
        pytest.param(PermissionError(errno.EACCES, "Permission denied", "out.jsonl"), id="no_right"),
        pytest.param(FileNotFoundError(errno.ENOENT, "No such file or directory", "out"), id="folder_removed"),
        pytest.param(OSError(errno.EIO, "Input/output error"), id="broken_disk"),
        pytest.param(OSError(errno.EROFS, "Read-only file system\n\x1b[2J"), id="read_only"),
    ],
)
def test_an_error_of_the_system_is_one_line_and_the_next_run_is_whole(
    engine: ScriptedEngine,
    source: Path,
    command: str,
    error: OSError,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> str:
        raise error

    with monkeypatch.context() as patch:
        for module in ("score", "journal"):
            patch.setattr(f"flexjudge_reward.offline.{module}.json_line", fail)
        assert main([command, str(source), "-o", str(source.with_name("out.jsonl")), *NANO]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("flexjudge: error: ") and str(error.strerror).split("\n")[0] in line and "\x1b" not in line
    assert len(run(command, source)) == 2


def test_parts_of_a_set_and_of_completions_are_flags(engine: ScriptedEngine, tmp_path: Path) -> None:
    rows = [
        {"id": n, "question": "q", "candidates": [f"<think>{n}</think>3 a", f"<think>{n}</think>9 b"]} for n in range(9)
    ]
    source = write(tmp_path / "in.jsonl", *rows)
    assert [row["id"] for row in run("score", source, "--limit", "2")] == [0, 1]
    first, same, other = ([row["id"] for row in run("score", source, "--shuffle-seed", n)] for n in ("1", "1", "2"))
    assert first == same != other and sorted(first) == list(range(9))
    assert "<think>0" not in str(engine.prompts)
    engine.requests.clear()
    run("score", source, "--limit", "1", "--completion", "all")
    assert "<think>0" in str(engine.prompts)


def test_bad_rows_are_counted_and_strict_ends_at_the_first(
    engine: ScriptedEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", GROUP, {"id": 2, "question": "q", "candidates": []})
    run("annotate", source)
    assert "1 pairs from 2 rows; skipped: 2 not_selected, 1 rows that cannot be used" in capsys.readouterr().err
    run("score", source)
    assert "3 judged (0 from the cache, 3 new), 0 failed, 1 rows skipped" in capsys.readouterr().err
    for command in COMMANDS:
        assert main([command, str(source), "-o", str(tmp_path / "out2.jsonl"), *NANO, "--strict"]) == 2
        assert "in.jsonl, line 2: 'candidates' is empty" in capsys.readouterr().err.splitlines()[-1]


def test_without_the_extra_the_error_has_the_pip_command(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert main(["score", str(source), "--model", "nano"]) == 2
    assert "pip install 'flexjudge-reward[transformers]'" in capsys.readouterr().err.splitlines()[-1]


def test_the_engine_is_closed_when_judging_fails(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(request: Request) -> str:
        raise ConfigError("no more")

    engine = ScriptedEngine(fail)
    monkeypatch.setattr("flexjudge_reward.engines.transformers.TransformersEngine", lambda *_, **__: engine)
    assert main(["score", str(source), *NANO]) == 2 and engine.closed
