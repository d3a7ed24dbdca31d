"""`flexjudge cache`: what it shows of the cache file, and its errors."""

from __future__ import annotations

import argparse
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from flexjudge_reward import CachedEngine, ScriptedEngine
from flexjudge_reward.cli.cache import age, size
from flexjudge_reward.cli.main import main
from flexjudge_reward.engines.cache.keys import request_key
from support.cache_files import ask


class Judge(ScriptedEngine):
    def __init__(self, model: str) -> None:
        super().__init__(lambda request: "<think>fine</think><answer>7</answer>")
        self.model = model

    def identity(self) -> dict[str, object]:
        return {"engine": "scripted", "model": self.model}


@pytest.fixture
def filled(cache_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache at the default place: two requests to one judge, then one of them to another."""
    monkeypatch.setenv("FLEXJUDGE_CACHE", str(cache_file))
    for model, texts in (("old", "ab"), ("old", "a"), ("new", "a")):
        with CachedEngine(Judge(model)) as engine:
            engine.generate([ask(text) for text in texts])
    return cache_file


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["cache", *arguments])
    out, err = capsys.readouterr()
    assert not (out and err)
    return code, out + err


def test_stats(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = run(capsys, "stats")
    assert code == 0
    assert f"file      {filled}\n" in shown and "replies   3\n" in shown
    assert "2 by old\n" in shown and "1 by new\n" in shown
    assert time.strftime("stored    %Y-") in shown


def test_stats_of_an_empty_cache(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "prune", "--max-size", "0")[1].startswith("3 replies removed, 0 left in 0.0 MiB")
    code, shown = run(capsys, "stats", "--path", str(filled))
    assert code == 0 and shown.endswith("replies   0\n")


def test_verify(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "verify") == (0, "3 replies checked, 0 removed as damaged\n")
    filled.write_bytes(filled.read_bytes().replace(b"fine", b"fime", 1))
    assert run(capsys, "verify") == (1, "3 replies checked, 1 removed as damaged\n")
    assert run(capsys, "verify") == (0, "2 replies checked, 0 removed as damaged\n")


def test_verify_of_a_broken_file(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with filled.open("r+b") as file:
        file.seek(100)
        file.write(b"x" * 9000)
    code, shown = run(capsys, "verify")
    (aside,) = filled.parent.glob("*.damaged-*")
    assert code == 1 and shown.startswith(f"the file was damaged and is now {aside}\n0 replies checked")


def test_prune_by_age(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(filled)) as db:
        db.execute("UPDATE replies SET used = used - 50 WHERE rowid = 1")
        db.commit()
    assert run(capsys, "prune", "--older-than", "3d") == (0, "0 replies removed, 3 left in 0.0 MiB\n")
    assert run(capsys, "prune", "--older-than", "2d") == (0, "1 replies removed, 2 left in 0.0 MiB\n")


def test_prune_by_size_gives_the_space_back(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with CachedEngine(Judge("new")) as engine:
        for i in range(3):
            engine.generate([ask(f"{i} {j}") for j in range(400)])
    before = filled.stat().st_size
    code, _ = run(capsys, "prune", "--max-size", "200K", "--older-than", "1w")
    assert code == 0 and before > 400_000 and 100_000 < filled.stat().st_size <= 200 << 10
    assert CachedEngine(Judge("new")).generate([ask("2 399")])[0].cached, "the newest stay"


@pytest.mark.parametrize("command", [["stats"], ["verify"], ["explain"], ["prune", "--max-size", "0"]])
@pytest.mark.parametrize("content", [b'{"question": "q"}\n', b"", b"SQLite format 3\0" + bytes(99)])
def test_a_file_that_is_no_cache_stays_as_it_is(
    tmp_path: Path, command: list[str], content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(content)
    code, shown = run(capsys, *command, "--path", str(file))
    assert code == 2 and str(file) in shown and shown.startswith("flexjudge: error: ")
    assert file.read_bytes() == content and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        pytest.param(10**14, "100000000000000 s after 1970", id="far_ahead"),
        pytest.param(2**62, f"{2**62} s after 1970", id="farther"),
        pytest.param(-(2**62), f"{-(2**62)} s after 1970", id="far_back"),
        pytest.param(253402300800 + 10**6, "s after 1970", id="after_the_year_9999"),
        pytest.param(-1, "19", id="before_1970"),
        pytest.param(0, "19", id="no_clock"),
    ],
)
def test_a_wrong_clock_is_no_error(filled: Path, seconds: int, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(filled)) as db:
        db.execute("UPDATE replies SET stored = ?", (seconds,))
        db.commit()
    for command in ("stats", "explain"):
        code, text = run(capsys, command)
        assert code == 0 and shown in text


def test_names_reach_the_terminal_without_escape_sequences(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("\x1b[2Jold", "a\rb", "a\u202eb", "\x9b31m", "a\0b", "a\nb"):
        with CachedEngine(Judge(model)) as engine:
            engine.generate([ask("a")])
    assert all(line.isprintable() for line in run(capsys, "stats")[1].splitlines())
    assert all(line.isprintable() for line in run(capsys, "explain")[1].splitlines())


def test_explain_compares_two_requests(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new, old, newest_old = (request_key(Judge(m), ask(text)) for m, text in (("new", "a"), ("old", "a"), ("old", "b")))
    code, shown = run(capsys, "explain", new[:8].upper(), old)
    assert code == 0
    one, other, *fields = shown.splitlines()
    assert one.split()[:2] == ["one", new] and other.split()[:2] == ["other", old] and one.endswith("  new")
    assert fields == ["engine.model", '  one    "new"', '  other  "old"']
    for keys, expected in (([], [new, newest_old]), ([new[:9]], [new, newest_old]), ([old[:9]], [old, new])):
        shown = run(capsys, "explain", *keys)[1]
        assert [line.split()[1] for line in shown.splitlines()[:2]] == expected, "the newest where a key is missing"


def test_explain_names_the_part_of_a_message(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [request_key(Judge("old"), ask(text)) for text in "ab"]
    shown = run(capsys, "explain", *keys)[1]
    assert 'messages[0].parts[1].untrusted\n  one    "ca978112ca1b' in shown


MISSING = "0" * 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["stats", "--path", "none.sqlite"], "no cache at", id="no file"),
        pytest.param(["stats", "--path", "."], "no cache at", id="a folder"),
        pytest.param(["prune"], "give --max-size, --older-than or both", id="prune by nothing"),
        pytest.param(["explain", MISSING], f"no stored request begins with '{MISSING}'", id="unknown key"),
        pytest.param(["explain", "abc"], "8 to 64 hexadecimal digits, found 'abc'", id="short key"),
        pytest.param(["explain", "g" * 10], "8 to 64 hexadecimal digits", id="not hex"),
        pytest.param(["explain", MISSING, MISSING, MISSING], "found 3 keys", id="three keys"),
    ],
)
def test_an_error_is_one_line(
    filled: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = run(capsys, *arguments)
    assert code == 2 and shown.startswith("flexjudge: error: ") and shown.count("\n") == 1
    assert message in shown


def test_explain_needs_two_requests(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for left in (1, 0):
        with closing(sqlite3.connect(filled)) as db:
            db.execute("DELETE FROM replies WHERE rowid > ?", (left,))
            db.commit()
        code, shown = run(capsys, "explain")
        assert code == 2 and "holds fewer than two requests to compare" in shown


def test_two_keys_that_begin_alike(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(filled)) as db:
        for number in (1, 2):
            db.execute("UPDATE replies SET key = ? WHERE rowid = ?", (b"\xab" * 31 + bytes([number]), number))
        db.commit()
    code, shown = run(capsys, "explain", "ab" * 10)
    assert code == 2 and "several stored requests begin with" in shown


def test_a_cache_that_cannot_be_read(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled.unlink()
    with closing(sqlite3.connect(filled)) as db:
        db.execute("CREATE TABLE theirs (a)")
        db.commit()
    for command in ("stats", "verify", "explain"):
        code, shown = run(capsys, command)
        assert code == 2 and "database of another application" in shown and filled.exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("17", 17), ("2k", 2048), ("1.5M", 3 << 19), ("2G", 2 << 30), ("2GB", 2 << 30), ("2GiB", 2 << 30)],
)
def test_sizes(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("90m", 5400), ("12h", 43200), ("1.5d", 129600), ("2w", 1209600)])
def test_ages(text: str, expected: float) -> None:
    assert age(text) == expected


@pytest.mark.parametrize("text", ["", "G", "-1G", "1X", "1e9", "nan", "٣M", "1..5M"])
def test_wrong_sizes_and_ages(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for parse in (size, age):
        with pytest.raises(argparse.ArgumentTypeError, match="such as"):
            parse(text)
    with pytest.raises(SystemExit, match="2"):
        main(["cache", "prune", f"--max-size={text}"])
    assert "such as 500M or 2G" in capsys.readouterr().err


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["cache"], ["cache", "burn"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
    assert "usage: flexjudge" in capsys.readouterr().err
