"""The command line as programs and shells use it: pipes, exit codes, configuration files, comparisons."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flexjudge_reward import ScriptedEngine
from flexjudge_reward.cli.main import main
from flexjudge_reward.nano import path as nano_path
from support.jsonl import write
from support.judging import scores

NANO = ("--model", "nano", "--cache", "off")
ROWS = [{"id": n, "question": "q", "candidates": ["3 a", "9 b"]} for n in range(10)]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """What the commands get for the engine of the embedded judge; a candidate with a "?" has no score."""
    scripted = ScriptedEngine(
        lambda request: "no answer" if "?" in str(request.prompt.messages[-1]) else scores(request)
    )
    monkeypatch.setattr("flexjudge_reward.engines.transformers.TransformersEngine", lambda *_, **__: scripted)
    return scripted


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("flexjudge ")


def test_standard_input_is_a_source(
    engine: ScriptedEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    assert main(["score", "-", "--limit", "3", *NANO]) == 0
    assert [json.loads(line)["scores"] for line in capsys.readouterr().out.splitlines()] == [[3, 9]] * 3


def test_vllm_writes_its_log_to_standard_error(
    engine: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default it is on standard output, among the rows."""
    monkeypatch.setenv("VLLM_LOGGING_STREAM", "")
    monkeypatch.delenv("VLLM_LOGGING_STREAM")
    assert main(["score", str(write(tmp_path / "in.jsonl", ROWS)), *NANO]) == 0
    assert os.environ["VLLM_LOGGING_STREAM"] == "ext://sys.stderr"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("", "standard input has no rows", id="empty"),
        pytest.param("[]\n", "standard input, line 1: ", id="no-row"),
        pytest.param(None, "standard input has no rows", id="closed"),
    ],
)
def test_errors_name_standard_input(
    text: str | None, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = None if text is None else SimpleNamespace(buffer=io.BytesIO(text.encode()))
    monkeypatch.setattr(sys, "stdin", given)
    assert main(["score", "-", *NANO]) == 2
    assert f"flexjudge: error: {said}" in capsys.readouterr().err
    if text is None:
        sys.stdin.close()


def test_a_card_names_standard_input(engine: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(json.dumps(ROWS[0]).encode())))
    assert main(["annotate", "-", "-o", str(tmp_path / "pairs.jsonl"), *NANO]) == 0
    assert "Preference pairs of standard-input.jsonl" in (tmp_path / "pairs.md").read_text()


def test_what_is_for_a_closed_stderr_is_not_among_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = verdicts(tmp_path / "a.jsonl", [1.0])
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["compare", str(one), str(tmp_path / "none.jsonl")]) == 2
    sys.stderr.close()
    assert capsys.readouterr().out == ""


def test_a_closed_stdout_ends_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = verdicts(tmp_path / "a.jsonl", [1.0])
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["compare", str(one), str(one)]) == 0
    sys.stdout.close()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_that_a_terminal_cannot_show_end_no_command(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (write(tmp_path / name, [{"id": "\u2192", "scores": [n]}]) for n, name in enumerate("ab"))
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding))
    assert main(["compare", str(one), str(other)]) == 1
    sys.stdout.flush()
    assert "\\u2192: [0] against [1], 1 apart" in shown.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_rows_on_any_standard_output_stay_json(
    encoding: str, engine: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`\\xe9` is no JSON."""
    odd, shown = "\u00e9\u2192\U0001f600", io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding))
    assert main(["score", str(write(tmp_path / "in.jsonl", [{**ROWS[0], "id": odd}])), *NANO]) == 0
    sys.stdout.flush()
    assert json.loads(shown.getvalue().decode(encoding))["id"] == odd


@pytest.mark.parametrize(
    ("failed", "limit", "code"),
    [
        pytest.param(0, [], 0, id="none"),
        pytest.param(1, [], 0, id="five-percent"),
        pytest.param(2, [], 3, id="more"),
        pytest.param(2, ["--max-failure-rate", "0.5"], 0, id="allowed"),
        pytest.param(1, ["--max-failure-rate", "0"], 3, id="none-allowed"),
    ],
)
@pytest.mark.parametrize("command", ["score", "rerank"])
def test_too_many_failed_judgements_have_an_exit_code(
    command: str, failed: int, limit: list[str], code: int, engine: ScriptedEngine, tmp_path: Path
) -> None:
    rows = [{**row, "candidates": ["3 a", "?" if n < failed else "9 b"]} for n, row in enumerate(ROWS)]
    source = write(tmp_path / "in.jsonl", rows)
    assert main([command, str(source), "-o", str(tmp_path / "out.jsonl"), *NANO, *limit]) == code
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 10  # written all the same


@pytest.mark.parametrize("command", ["score", "rerank", "annotate"])
def test_too_many_failed_judgements_say_what_to_do(
    command: str, engine: ScriptedEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as with the wording of another judge."""
    source = write(tmp_path / "in.jsonl", [{**row, "candidates": ["? a", "? b"]} for row in ROWS])
    assert main([command, str(source), "-o", str(tmp_path / "out.jsonl"), *NANO]) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert "judgements failed, more than 5.0%: this model does not follow the answer format: is it a judge" in last


def test_help_names_no_file_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    """A user of a wheel has none open."""
    for command in ("", "score", "annotate", "report", "evaluate", "doctor", "serve", "cache"):
        with pytest.raises(SystemExit):
            main([*command.split(), "--help"])
        assert not re.search(r"flexjudge_reward/\S+\.py|\b[a-z_]+/[a-z_]+\.py", capsys.readouterr().out), command


@pytest.mark.parametrize("command", ["score", "rerank", "annotate"])
def test_a_summary_for_programs(
    command: str, engine: ScriptedEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", ROWS)
    assert main([command, str(source), "-o", str(tmp_path / "out.jsonl"), "--json", *NANO]) == 0
    out, err = capsys.readouterr()
    found = json.loads(err.splitlines()[-1])
    assert out == "" and (found.get("judged") == 20 or found.get("pairs") == 10)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("judge.toml", 'format = "listwise"\nseed = 3', id="toml"),
        pytest.param("judge.yaml", "format: listwise\nseed: 3\n", id="yaml"),
        pytest.param("judge.yml", "{format: listwise, seed: 3}", id="yml"),
    ],
)
def test_a_file_of_settings(name: str, text: str, engine: ScriptedEngine, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    source = write(tmp_path / "in.jsonl", ROWS)
    arguments = ["--config", str(tmp_path / name), "-o", str(tmp_path / "out.jsonl"), *NANO]
    assert main(["score", str(source), *arguments]) == 0
    assert len(engine.requests) == 10 and engine.requests[0].sampling.seed == 3  # a list per row


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        pytest.param("judge.yaml", "- a\n", "settings are `name: value` lines, found list", id="list"),
        pytest.param("judge.yaml", "a: [", "not valid YAML", id="broken"),
        pytest.param("judge.yaml", "modle: x\n", "unknown setting 'modle'", id="unknown"),
        pytest.param("judge.toml", "a =", "not valid TOML", id="toml"),
        pytest.param("none.toml", None, "cannot be read", id="missing"),
    ],
)
def test_a_wrong_file_of_settings(
    name: str, text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    source = write(tmp_path / "in.jsonl", ROWS)
    assert main(["score", str(source), "--config", str(tmp_path / name), *NANO]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        pytest.param([], "judge", id="without_a_name"),
        pytest.param(["nano"], "judge", id="nano"),
        pytest.param(["nano-omni"], "omni", id="hears"),
    ],
)
def test_an_embedded_judge_says_where_it_is(words: list[str], folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nano", *words]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(nano_path(folder)) and "--serve" in err


@pytest.mark.parametrize(("name", "clips"), [("nano", False), ("nano-omni", True)])
def test_an_embedded_judge_is_served_under_its_name(name: str, clips: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("importlib.util.find_spec", lambda package: package)
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words))
    main(["nano", name, "--serve", "--port", "8123"])
    (words,) = started
    assert words[words.index("--served-model-name") + 1] == name and words[words.index("--port") + 1] == "8123"
    assert ("--mm-processor-kwargs" in words) is clips


def test_completion_needs_its_package_and_a_shell(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "flexjudge-reward[completion]" in capsys.readouterr().err
    shells = SimpleNamespace(SUPPORTED_SHELLS=("bash", "zsh"), FILE={}, complete=lambda parser, shell: f"# of {shell}")
    monkeypatch.setitem(sys.modules, "shtab", shells)
    assert main(["completion", "bash"]) == 0 and capsys.readouterr().out == "# of bash\n"
    assert main(["completion", "fish"]) == 2 and "bash, zsh" in capsys.readouterr().err


def test_a_shell_completes_files_where_one_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A completion that offers nothing takes a shell's own completion of files away."""
    parsers: list[argparse.ArgumentParser] = []
    files = {"bash": "files"}
    shells = SimpleNamespace(SUPPORTED_SHELLS=("bash",), FILE=files, complete=lambda parser, _: parsers.append(parser))
    monkeypatch.setitem(sys.modules, "shtab", shells)
    assert main(["completion", "bash"]) == 0
    (commands,) = [one for one in parsers[0]._actions if isinstance(one.choices, dict)]
    score = {one.dest: getattr(one, "complete", None) for one in commands.choices["score"]._actions}
    assert [score[name] for name in ("source", "output", "media_root", "config", "rubric")] == [files] * 5
    assert [score[name] for name in ("engine", "votes", "limit", "json", "position_swap")] == [None] * 5
    (recipes,) = [one for one in commands.choices["recipes"]._actions if isinstance(one.choices, dict)]
    assert {*recipes.choices} == {"list", "copy", "run"}


# ---- compare


def verdicts(path: Path, *scores: list[float | None], **more: Any) -> Path:
    return write(path, [{"line": n + 1, "id": n, "scores": row, **more} for n, row in enumerate(scores)])


def test_two_files_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = verdicts(tmp_path / "a.jsonl", [1, 9], [5, 4], [3, None])
    other = verdicts(tmp_path / "b.jsonl", [2, 9], [4, 5], [3, 7], [1, 1])
    assert main(["compare", str(one), str(other), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["rows_in_both"], found["rows_in_one_only"], found["compared"], found["equal"]) == (3, 1, 5, 2)
    assert (found["failed_in_one"], found["failed_in_other"], found["same_best"]) == (1, 0, 0.5)
    assert found["mean_distance"] == pytest.approx(3 / 5) and 0 < found["rank_correlation"] < 1
    assert main(["compare", str(one), str(other), "--most", "1"]) == 1
    assert "0: [1, 9] against [2, 9], 1 apart" in capsys.readouterr().out
    assert main(["compare", str(one), str(one)]) == 0


def test_rows_that_share_an_id_are_all_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two jobs wrote one file."""
    files = [
        write(tmp_path / f"{name}.jsonl", [{"id": 7, "scores": [1]}, {"id": 7, "scores": [last]}])
        for name, last in (("a", 5), ("b", 4))
    ]
    assert main(["compare", *map(str, files), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["rows_in_both"], found["compared"], found["equal"]) == (2, 2, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("", "has no rows", id="empty"),
        pytest.param("no json\n", "line 1: no row of", id="no-json"),
        pytest.param('{"id": 1}\n', "line 1: no row of", id="no-scores"),
        pytest.param('{"id": 1, "scores": ["x"]}\n', "line 1: no row of", id="no-number"),
        pytest.param("[]\n", "line 1: no row of", id="list"),
        pytest.param('{"id": "other", "scores": [1]}\n', "no row with a score in both", id="nothing-in-common"),
        pytest.param(None, "there is no file", id="missing"),
    ],
)
def test_what_cannot_be_compared(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "b.jsonl"
    if text is not None:
        other.write_text(text)
    assert main(["compare", str(verdicts(tmp_path / "a.jsonl", [1.0])), str(other)]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
