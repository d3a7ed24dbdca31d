"""`flexjudge annotate`: candidates in, preference pairs out; nothing guessed, nothing lost to a kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flexjudge_reward import Choice, ConfigError, EngineError, Generation, Judge, Listwise, Pair, Prompt, Quoted, Score
from flexjudge_reward.cli.main import main
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.offline.annotate import BATCH, Which, annotate_file
from flexjudge_reward.types import AnyFormat

GROUP = ["5 a", "9 b", "1 c", "7 d"]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def qualities(prompt: Prompt) -> list[int]:
    """What the candidates deserve: the number each begins with."""
    return [int(part.text.split()[0]) for part in prompt.messages[1].parts if isinstance(part, Quoted)][1:]


def answered(scores: list[int]) -> str:
    return "<think></think>" + "".join(f"<answer>{score}</answer>" for score in scores)


def fair(prompt: Prompt) -> str:
    return answered(qualities(prompt))


def first_wins(prompt: Prompt) -> str:
    return answered([8, 2])


def late(prompt: Prompt) -> str | Generation:
    return Generation.failed("timeout", "late") if "5 a" in str(prompt) else fair(prompt)


def lettered(prompt: Prompt) -> str:
    scores = qualities(prompt)
    return f"<think></think><answer>{'AB'[scores.index(max(scores))]}</answer>"


def annotated(
    folder: Path,
    rows: list[Any],
    reply: Callable[[Prompt], Any] = fair,
    format: AnyFormat | None = None,
    which: Which = "best",
    margin: float = 0.0,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    judge = Judge(format or Pair(), ScriptedEngine(reply))
    annotate_file(write(folder / "in.jsonl", rows), judge, folder / "out.jsonl", which, margin)
    return read(folder / "out.jsonl"), read(folder / "out.skipped.jsonl")


def row(number: int, *candidates: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "question": "0 q", "candidates": list(candidates), **more}


@pytest.mark.parametrize(
    ("format", "reply"),
    [
        pytest.param(Score(), fair, id="score"),
        pytest.param(Pair(), fair, id="pair"),
        pytest.param(Listwise(), fair, id="listwise"),
        pytest.param(Choice(), lettered, id="choice"),
    ],
)
def test_every_format_finds_the_pairs(tmp_path: Path, format: AnyFormat, reply: Callable[[Prompt], str]) -> None:
    pairs, skipped = annotated(tmp_path, [row(1, *GROUP)], reply, format, "all")
    assert {tuple(pair["pair"]) for pair in pairs} == {(1, 0), (0, 2), (3, 0), (1, 2), (1, 3), (3, 2)} and not skipped
    assert pairs[0] == {
        "id": 1,
        "prompt": [{"role": "user", "content": "0 q"}],
        "chosen": [{"role": "assistant", "content": "9 b"}],
        "rejected": [{"role": "assistant", "content": "5 a"}],
        "scores": pairs[0]["scores"],
        "pair": [1, 0],
    }


def test_the_best_pair_of_a_row_is_the_one_furthest_apart(tmp_path: Path) -> None:
    pairs, skipped = annotated(tmp_path, [row(1, *GROUP)])
    assert [(pair["pair"], pair["scores"]) for pair in pairs] == [([1, 2], [9, 1])]
    assert {one["why"] for one in skipped} == {"other"} and len(skipped) == 5


@pytest.mark.parametrize(
    ("candidates", "reply", "format", "margin", "why"),
    [
        pytest.param(["5 a", "5 b"], fair, Pair(), 0, "tie", id="tie"),
        pytest.param(["5 a", "5 b"], fair, Score(), 0, "tie", id="tie_of_scores"),
        pytest.param(["5 a", "9 b"], first_wins, Pair(), 0, "order", id="order_decides"),
        pytest.param(["5 a", "7 b"], fair, Pair(), 2.5, "margin", id="too_close"),
        pytest.param(["5 a", "5 a"], fair, Pair(), 0, "same", id="same"),
        pytest.param(["5 a", "5 a"], fair, Score(), 0, "same", id="same_of_scores"),
        pytest.param(["5 a", "9 b"], lambda p: "<think></think>both", Pair(), 0, "malformed", id="unreadable"),
        pytest.param(["5 a", "99 b"], fair, Score(), 0, "out_of_range", id="out_of_range"),
        pytest.param(["5 a", "9 b"], lambda p: Generation("<think>", "length"), Pair(), 0, "truncated", id="cut"),
        pytest.param(["5 a", "9 b"], late, Score(), 0, "timeout", id="late"),
    ],
)
def test_a_pair_that_is_not_kept_is_listed_with_its_reason(
    tmp_path: Path,
    candidates: list[str],
    reply: Callable[[Prompt], Any],
    format: AnyFormat,
    margin: float,
    why: str,
) -> None:
    rows = [row(1, *candidates), row(2, "1 low", "9 high")]
    pairs, skipped = annotated(tmp_path, rows, reply, format, margin=margin)
    assert skipped[0]["id"] == 1 and skipped[0]["why"] == why and sorted(skipped[0]["pair"]) == [0, 1]
    assert all(pair["id"] == 2 for pair in pairs)
    card = (tmp_path / "out.md").read_text()
    assert f"| {why} |" in card and f"{len(pairs)} pairs from 2 rows" in card


def test_pictures_and_parts_keep_their_paths(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [
        row(1, "5 a", "9 b", images=["a.png"]),
        row(2, ["9 ", {"text": "b"}, {"image": "a.png"}], ["1 ", {"image": "missing.png"}, {"text": "c"}]),
    ]
    source, output = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    annotate_file(source, Judge(Pair(), ScriptedEngine(fair)), output, media_root=tmp_path)
    (pair,), (skipped,) = read(output), read(tmp_path / "out.skipped.jsonl")
    assert pair["images"] == ["a.png"] and pair["chosen"] == [{"role": "assistant", "content": "9 b"}]
    assert (skipped["id"], skipped["why"]) == (2, "media")


def test_half_a_surrogate_pair_is_kept(tmp_path: Path) -> None:
    (pair,), _ = annotated(tmp_path, [row(1, "5 a \ud83d", "9 世界")])
    assert pair["rejected"][0]["content"] == "5 a \ud83d" and pair["chosen"][0]["content"] == "9 世界"


# ------------------------------------------------------------------------------------------------------ interrupted


ROWS = [row(n, f"{n % 9 + 1} a", f"{n % 5 + 1} b", f"{n % 7 + 1} c") for n in range(BATCH * 4 + 10)]


class Killed(BaseException):
    """As sudden as a signal: nothing handles it."""


class Stopping:
    """A fair judge that is killed after so many replies."""

    def __init__(self, after: float = float("inf")) -> None:
        self.left = after

    def __call__(self, prompt: Prompt) -> str:
        if self.left < 1:
            raise Killed
        self.left -= 1
        return fair(prompt)


@pytest.fixture
def unbroken(tmp_path: Path) -> dict[str, bytes]:
    (tmp_path / "whole").mkdir()
    annotated(tmp_path / "whole", ROWS, Stopping())
    return files(tmp_path / "whole")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("after", [0, 1, 300, 500, 1500])
def test_a_killed_run_goes_on_and_ends_as_an_unbroken_one(
    tmp_path: Path, unbroken: dict[str, bytes], after: int
) -> None:
    calls = []
    for limit in (after, float("inf")):
        engine = ScriptedEngine(Stopping(limit))
        try:
            annotate_file(write(tmp_path / "in.jsonl", ROWS), Judge(Pair(), engine), tmp_path / "out.jsonl")
        except Killed:
            assert not (tmp_path / "out.jsonl").exists()
        calls.append(len(engine.prompts))
    assert files(tmp_path) == unbroken
    # Three candidates are three pairs in two orders, a few of equal candidates less.
    assert calls[1] <= 6 * (len(ROWS) - after // 6 + BATCH)


@pytest.mark.parametrize("name", ["out.jsonl", "out.skipped.jsonl"])
def test_a_kill_between_the_last_steps_costs_nothing(
    tmp_path: Path, unbroken: dict[str, bytes], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target.name == name:
            raise Killed
        return replace(self, target)

    source, folder = write(tmp_path / "in.jsonl", ROWS), tmp_path
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", killed)
        annotate_file(source, Judge(Pair(), ScriptedEngine(Stopping())), folder / "out.jsonl")
    engine = ScriptedEngine(Stopping())
    annotate_file(source, Judge(Pair(), engine), folder / "out.jsonl")
    assert not engine.prompts
    assert files(folder) == unbroken


def test_what_was_written_after_the_last_sound_batch_is_written_again(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    source = write(tmp_path / "in.jsonl", ROWS)
    with pytest.raises(Killed):
        annotate_file(source, Judge(Pair(), ScriptedEngine(Stopping(900))), tmp_path / "out.jsonl")
    with (tmp_path / "out.jsonl.partial").open("ab") as torn:
        torn.write(b'{"id": 99, "prom')
    annotate_file(source, Judge(Pair(), ScriptedEngine(Stopping())), tmp_path / "out.jsonl")
    assert files(tmp_path) == unbroken


@pytest.mark.parametrize("batch", [0, 1, 2], ids=["first", "middle", "last"])
@pytest.mark.parametrize("back", [True, False], ids=["comes_back", "stays_away"])
def test_a_judge_that_goes_away_costs_no_row(tmp_path: Path, batch: int, back: bool) -> None:
    rows = [row(number, f"{number % 7} a", f"{number % 5} b", "3 c") for number in range(2 * BATCH + 20)]
    annotated(tmp_path, rows)
    unbroken = (tmp_path / "out.jsonl").read_bytes(), (tmp_path / "out.skipped.jsonl").read_bytes()
    (tmp_path / "out.jsonl").unlink()
    asked, end = 0, 6 * min(BATCH * (batch + 1), len(rows))  # two orders of three pairs

    def reply(prompt: Prompt) -> Any:
        nonlocal asked
        asked += 1
        if asked < 6 * BATCH * batch + 30:
            return fair(prompt)
        if asked <= end:
            return Generation.failed("transport" if asked % 2 else "timeout", "the server went away")
        if not back and asked == end + 1:
            raise EngineError("no server answers")
        return fair(prompt)

    if back:
        annotated(tmp_path, rows, reply)
    else:
        with pytest.raises(EngineError, match="no server answers"):
            annotated(tmp_path, rows, reply)
        assert not (tmp_path / "out.jsonl").exists()
        annotated(tmp_path, rows, reply)
    assert ((tmp_path / "out.jsonl").read_bytes(), (tmp_path / "out.skipped.jsonl").read_bytes()) == unbroken


@pytest.mark.parametrize("batch", [0, 1], ids=["first", "middle"])
def test_a_judge_that_falls_silent_costs_no_row(tmp_path: Path, batch: int) -> None:
    """As a server behind a proxy does: every request fails, and nothing says that nobody is there."""
    rows = [row(number, f"{number % 7} a", f"{number % 5} b", "3 c") for number in range(3 * BATCH + 20)]
    annotated(tmp_path, rows)
    unbroken = (tmp_path / "out.jsonl").read_bytes(), (tmp_path / "out.skipped.jsonl").read_bytes()
    (tmp_path / "out.jsonl").unlink()
    asked, silent = 0, True

    def reply(prompt: Prompt) -> Any:
        nonlocal asked
        asked += 1
        dead = silent and asked > 6 * BATCH * batch + 30
        return Generation.failed("transport", "502: bad gateway") if dead else fair(prompt)

    with pytest.raises(EngineError, match="answered nothing of 64 rows: 502: bad gateway"):
        annotated(tmp_path, rows, reply)
    silent = False
    annotated(tmp_path, rows, reply)
    assert ((tmp_path / "out.jsonl").read_bytes(), (tmp_path / "out.skipped.jsonl").read_bytes()) == unbroken


def test_rows_that_are_never_answered_hold_up_no_other(tmp_path: Path) -> None:
    rows = [row(number, f"{number % 7} a", f"{number % 5} b") for number in range(2 * BATCH)]
    rows[3] = rows[-2] = row(3, "5 a", "6 b")
    rows[-2] = {**rows[-2], "id": 999}
    pairs, skipped = annotated(tmp_path, rows, lambda p: late(p) if "5 a" in str(p) and "6 b" in str(p) else fair(p))
    assert [one["id"] for one in skipped if one["why"] == "timeout"] == [3, 999]
    assert len(pairs) + len(skipped) == 2 * BATCH


@pytest.mark.parametrize("change", ["rows", "margin", "judge", "damage"])
def test_an_unfinished_run_of_other_settings_is_not_mixed_in(tmp_path: Path, change: str) -> None:
    source, output = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    with pytest.raises(Killed):
        annotate_file(source, Judge(Pair(), ScriptedEngine(Stopping(900))), output)
    if change == "rows":
        write(source, [*ROWS, row(999, "5 a", "6 b")])
    if change == "damage":
        (tmp_path / "out.jsonl.progress").write_text("{")
    judge = Judge(Pair() if change != "judge" else Listwise(), ScriptedEngine(fair))
    with pytest.raises(ConfigError, match="damaged; remove" if change == "damage" else "other rows or settings"):
        annotate_file(source, judge, output, margin=1.0 if change == "margin" else 0.0)


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        pytest.param(row(2, "5 a"), "line 2: a pair needs at least two candidates, found 1", id="one"),
        pytest.param(
            row(2, "5 a", {"image": "b"}),
            "line 2: the candidates are of unequal kind: image and text",
            id="unequal",
        ),
        pytest.param(row(1, "5 a", "6 b"), "line 2: the id 1 stands in line 1 already", id="same_id"),
        pytest.param({"question": "q", "candidates": ["a", "b"]}, "line 2: the entry 'id' is missing", id="no_id"),
        pytest.param({"id": 2, "candidates": ["a", "b"]}, "line 2: the entry 'question' is missing", id="no_question"),
    ],
)
def test_a_wrong_row_is_named_before_anything_is_judged(tmp_path: Path, bad: Any, message: str) -> None:
    source = write(tmp_path / "in.jsonl", [row(1, "5 a", "9 b"), bad])
    with pytest.raises(ConfigError, match=message):
        annotate_file(source, Judge(Pair(), ScriptedEngine([])), tmp_path / "out.jsonl", media_root=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("output", "settings", "message"),
    [
        pytest.param("out.jsonl", {"margin": float("nan")}, "margin must be at least 0, found nan", id="margin"),
        pytest.param("out.jsonl", {"which": "worst"}, "pairs are 'best' or 'all', found 'worst'", id="which"),
        pytest.param("out.md", {}, "go to a .jsonl file", id="the_card"),
        pytest.param("in.jsonl", {}, "would change the input", id="the_input"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, output: str, settings: dict[str, Any], message: str) -> None:
    source = write(tmp_path / "in.jsonl", [row(1, "5 a", "9 b")])
    with pytest.raises(ConfigError, match=message):
        annotate_file(source, Judge(Pair(), ScriptedEngine([])), tmp_path / output, **settings)


def test_a_format_for_three_makes_no_pairs(tmp_path: Path) -> None:
    class Three(Listwise):
        fewest, most = 3, 3

    with pytest.raises(ConfigError, match="one or two candidates, this one judges 3 to 3"):
        annotated(tmp_path, [row(1, "5 a", "9 b")], format=Three())


def test_the_command_asks_for_an_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["annotate", str(write(tmp_path / "in.jsonl", [row(1, "5 a", "9 b")]))]) == 2
    assert "give the file of the pairs: -o pairs.jsonl" in capsys.readouterr().err


def test_the_command_with_the_embedded_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = "top-left red circle top-right nothing bottom-left blue square bottom-right red star\nWhat is top-left?"
    source = write(tmp_path / "in.jsonl", [{"id": 1, "question": told, "candidates": ["red circle", "blue square"]}])
    arguments = ["--model", "nano", "--engine", "transformers", "--format", "pair", "--cache", "off", "--margin", "2"]
    assert main(["annotate", str(source), "-o", str(tmp_path / "out.jsonl"), *arguments]) == 0
    assert "1 pairs from 1 rows; skipped: none" in capsys.readouterr().err
    assert read(tmp_path / "out.jsonl")[0]["chosen"] == [{"role": "assistant", "content": "red circle"}]
