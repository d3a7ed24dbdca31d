"""Every command with wrong input: one line that says what is wrong, exit code 2, never a traceback."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexjudge_reward.cli.main import main

NO_SERVER = "http://127.0.0.1:9/v1"
NANO = ("--model", "nano", "--cache", "off")
GOOD = {"id": 1, "question": "q", "candidates": ["a", "b"]}
SCORED = {"id": 1, "scores": [1.0, 2.0], "failures": [None, None], "candidates": [["a"], ["b"]], "question": ["q"]}
RECORDED = {"id": 1, "question": ["q"], "candidates": [["a"]], "replies": [], "scores": [1.0]}
JUDGING = ("score", "rerank", "annotate", "rejudge")
LABELLED = {"evaluate": "-o check", "doctor": "", "rubric draft": f"-o new.toml --base-url {NO_SERVER}"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one good file of each kind, and bad ones. No command adds to it."""
    tmp_path = tmp_path_factory.mktemp("wrong")
    for name, row in {"good": GOOD, "scored": SCORED, "record": RECORDED}.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "broken.jsonl").write_text('{"id": 1, "question"\n')
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": 1, "question": "caf\xe9", "candidates": ["a", "b"]}\n')
    (tmp_path / "latin.csv").write_bytes(b"question,answer\ncaf\xe9,a\n")
    (tmp_path / "semicolon.csv").write_text("question;answer\r\nq;a\r\n")
    (tmp_path / "list.jsonl").write_text("[1, 2]\n7\nnull\n")
    (tmp_path / "binary.jsonl").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "deep.jsonl").write_text("[" * 50_000 + "\n")
    for name in ("sub", "sub.html"):
        (tmp_path / name).mkdir()
    (tmp_path / "config.toml").write_text('modle = "x"\n')
    (tmp_path / "type.toml").write_text('votes = "x"\n')
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    return tmp_path


@pytest.fixture(autouse=True)
def folder(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that is half done is left in it."""
    monkeypatch.chdir(files)
    before = sorted(os.listdir())
    yield
    assert sorted(os.listdir()) == before


def inputs(command: str) -> str:
    return "record.jsonl" if command == "rejudge" else "good.jsonl"


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a wrong command says: its exit code is 2, and there is no traceback; argparse adds how it is used."""
    try:
        code: object = main(words)
    except SystemExit as ended:  # argparse
        code = ended.code
    out, err = capsys.readouterr()
    assert code == 2 and "Traceback" not in err and out == "", (code, out, err)
    *before, last = err.rstrip("\n").splitlines()
    assert ": error: " in last and all(line.startswith(("usage: ", " ", "The judge is")) for line in before), err
    return last


def cases() -> Iterator[object]:
    """Words of the command line, and what the message must name."""
    bad = {
        "none.jsonl": "none.jsonl",
        "empty.jsonl": "empty.jsonl",
        "broken.jsonl": "broken.jsonl",
        "list.jsonl": "list.jsonl",
        "binary.jsonl": "binary.jsonl",
        "deep.jsonl": "deep.jsonl",
        "sub": "sub",
        "": "",
    }
    wrong = {
        "--config none.toml": "none.toml",
        "--config config.toml": "unknown setting 'modle'",
        "--config type.toml": "'votes' must be a whole number",
        "--config broken.yaml": "not valid YAML",
        "--config binary.toml": "binary.toml",
        "--config sub": "sub",
        "-o sub": "sub",
        "-o none/out.jsonl": "none",
        "-o /dev/null/out.jsonl": "/dev/null",
        "--votes x": "--votes",
        "--temperature 9": "'temperature' must be from 0 to 2",
        "--modle x": "--modle",
        "--format best": "format must be one of",
        "--rubric none.toml": "none.toml",
        "--rubric sub": "sub",
        "--prompt-set none": "none",
        "--engine vllm --device cpu": "device is for",
        "--base-url http://127.0.0.1:9/v1 --device cpu": "device is for",
        "--plugins none.py": "none.py",
        "--limit 0": "limit",
        "--cache sub": "the cache 'sub' is a folder: give a file",
        "--limit x": "--limit",
        "--max-failure-rate 7": "max_failure_rate",
        "--max-failure-rate nan": "max_failure_rate",
    }
    for command in JUDGING:
        for source, said in bad.items():
            yield pytest.param([command, source, "-o", "out.jsonl", *NANO], said, id=f"{command}-{source or 'blank'}")
        for flags, said in wrong.items():
            if (command, flags) == ("annotate", "-o sub"):
                continue  # an empty folder is where a data set of pairs may go
            output = [] if flags.startswith("-o") else ["-o", "out.jsonl"]
            model = [] if "--base-url" in flags else ["--model", "nano"]
            cache = [] if "--cache" in flags else ["--cache", "off"]
            words = [command, inputs(command), *output, *flags.split(), *model, *cache]
            yield pytest.param(words, said, id=f"{command} {flags}")
        yield pytest.param([command], "required", id=f"{command}-without-a-source")
    for command, flags in LABELLED.items():
        model = [] if "--base-url" in flags else NANO
        for source, said in {**bad, "good.jsonl": "'label'"}.items():
            words = [*command.split(), source, *flags.split(), *model]
            yield pytest.param(words, said, id=f"{command}-{source or 'blank'}")
    for source, said in bad.items():
        words = ["traces", source, "-o", "traces.parquet", *NANO]
        yield pytest.param(words, said, id=f"traces-{source or 'blank'}")
        yield pytest.param(["compare", "scored.jsonl", source], said, id=f"compare-{source or 'blank'}")
        if source:  # the report of "" is that of this folder
            yield pytest.param(["report", source, "-o", "out.html"], said, id=f"report-{source}")
        if source not in ("none.jsonl", ""):
            yield pytest.param(["cache", "stats", "--path", source], said, id=f"cache-{source}")
    others: dict[str, str] = {
        "": "required",
        "judge": "judge",
        "compare scored.jsonl": "required",
        "compare scored.jsonl record.jsonl --most x": "--most",
        "report scored.jsonl -o out.txt": "out.txt",
        "report scored.jsonl -o none/out.html": "none/out.html",
        "report scored.jsonl -o sub.html": "sub.html",
        "report scored.jsonl --serve x": "--serve",
        "report scored.jsonl --serve 99999999": "99999999",
        "report none --serve 0": "none",
        "cache": "required",
        "cache stats --path none.sqlite": "none.sqlite",
        "cache verify --path none.sqlite": "none.sqlite",
        "cache verify --path sub": "sub",
        "cache prune": "--max-size",
        "cache prune --max-size x": "--max-size",
        "cache prune --older-than x": "--older-than",
        "cache prune --older-than 1d --path none.sqlite": "none.sqlite",
        "cache explain zz --path good.jsonl": "hexadecimal",
        "nano --port x": "--port",
        "nano --serve --port 99999": "--port is a number from 1 to 65535",
        "path": "required",
        "path none": "invalid choice",
        "serve --serve-port 99999": "serve_port",
        "serve --serve-host 0.0.0.0": "FLEXJUDGE_SERVE_TOKEN",
        "serve --serve-workers 2 --serve-port 0": "--serve-port",
        "serve --config none.toml": "none.toml",
        "serve --format best": "format must be one of",
        "serve --model none/none": "none/none",
        "score good.jsonl -o rows.csv": "give 'rows.jsonl'",
        "rerank good.jsonl -o rows.parquet": "give 'rows.jsonl'",
        "rejudge record.jsonl -o rows.jsonl.gz": "names another kind of file",
        "annotate good.jsonl -o pairs.csv": "pairs.csv",
        "annotate good.jsonl": "-o pairs",
        "score latin.jsonl": "the text is not UTF-8",
        "score latin.csv": "the text is not UTF-8",
        "score semicolon.csv": "separated by ';'",
        "traces good.jsonl": "-o traces.parquet",
        "traces good.jsonl -o rows.csv": "a .parquet file",
        "traces good.jsonl -o rows.parquet --seeds x": "--seeds",
        "traces good.jsonl -o rows.parquet --seeds 1,2": "several need a temperature",
        "traces good.jsonl -o rows.parquet --teacher none --format pairwise": "'none'",
        "evaluate good.jsonl": "-o runs/check",
        "evaluate none -o check": "none",
        "evaluate good.jsonl -o check --max-failure-rate 7": "max_failure_rate",
        "doctor": "flexjudge doctor labelled.jsonl",
        "doctor good.jsonl --formats best": "formats are",
        "doctor good.jsonl --budgets x": "whole numbers",
        "doctor good.jsonl --min-agreement x": "--min-agreement",
        "doctor good.jsonl --format listwise": "--formats",
        "doctor good.jsonl --proposer x": "--tune",
        "rubric": "required",
        "rubric draft": "-o rubric.toml",
        "rubric draft good.jsonl": "-o rubric.toml",
        "rubric draft good.jsonl -o new.toml --format listwise": "leave out --format",
        "rubric draft good.jsonl -o new.toml --model nano": "it has listwise, multiple_choice",
        "nano extra": "extra",
        "completion": "",  # without its package that is missing, with it the shell
        "completion fish": "",
        "completion bash zsh": "",
        "recipes": "required",
        "recipes list extra": "extra",
        "recipes copy": "required",
        "recipes copy none out": "there is no recipe 'none'",
        "recipes copy best_of_n .": "not an empty folder",
        "recipes copy best_of_n good.jsonl": "good.jsonl",
        "recipes copy best_of_n good.jsonl/x": "good.jsonl",
        "recipes run none": "there is no recipe 'none'",
        "recipes run best_of_n/none": "no program 'none'",
        "recipes run ../best_of_n": "there is no recipe '..'",
    }
    for line, said in others.items():
        yield pytest.param(line.split(), said, id=line or "nothing")


@pytest.mark.parametrize(("words", "said"), [*cases()])
def test_wrong_input_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in error_of(words, capsys)


@pytest.mark.parametrize("command", JUDGING)
@pytest.mark.parametrize("words", ["none.jsonl -o out.jsonl", "none -o out.jsonl", "GOOD -o none/out.jsonl"])
def test_missing_files_are_told_before_the_judge(command: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *words.replace("GOOD", inputs(command)).split(), *NANO]) == 2
    said = capsys.readouterr().err
    assert said.startswith("flexjudge: error: ") and said.count("\n") == 1 and "none" in said


@pytest.mark.parametrize("command", JUDGING)
@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        pytest.param("FLEXJUDGE_MODLE", "x", "unknown setting 'modle'", id="name"),
        pytest.param("FLEXJUDGE_VOTES", "x", "'votes' must be a whole number", id="value"),
        pytest.param("FLEXJUDGE_SHORT__MODLE", "x", "unknown setting 'modle'", id="named"),
        pytest.param("FLEXJUDGE_CONFIG", "sub", "'sub'", id="file"),
    ],
)
def test_a_wrong_variable_is_one_line(
    command: str,
    variable: str,
    value: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, value)
    assert said in error_of([command, inputs(command), "-o", "out.jsonl", *NANO], capsys)


@pytest.mark.parametrize(
    ("package", "words", "extra"),
    [
        pytest.param("torch", ["score", "good.jsonl", *NANO], "transformers", id="score"),
        pytest.param("torch", ["rejudge", "record.jsonl", *NANO], "transformers", id="rejudge"),
        pytest.param("datasets", ["score", "sub", *NANO], "datasets", id="folder"),
        pytest.param("yaml", ["score", "good.jsonl", "--config", "broken.yaml", *NANO], "yaml", id="yaml"),
        pytest.param("shtab", ["completion", "bash"], "completion", id="completion"),
    ],
)
def test_a_missing_extra_is_one_line(
    package: str, words: list[str], extra: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert f"pip install 'flexjudge-reward[{extra}]'" in error_of(words, capsys)
