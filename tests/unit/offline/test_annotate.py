"""`annotate_file`: candidates in, preference pairs out; nothing is guessed, and a kill loses nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flexjudge_reward import (
    ConfigError,
    EngineError,
    Format,
    Generation,
    Judge,
    Listwise,
    MajorityVote,
    MultipleChoice,
    Pairwise,
    Pointwise,
    PositionSwap,
    Request,
    Sampling,
    ScriptedEngine,
    Tournament,
    annotate_file,
)
from flexjudge_reward.offline.pairs import Which
from support.jsonl import read, write
from support.judging import candidates, grade, scores, tags

GROUP = ["5 a", "9 b", "1 c", "7 d"]


def late(request: Request) -> str | Generation:
    """Never answers about "5 a"."""
    return Generation.failed("timeout", "late") if "5 a" in candidates(request) else scores(request)


def letter(request: Request) -> str:
    grades = [grade(text) for text in candidates(request)]
    return tags("AB"[grades.index(max(grades))])


def annotated(
    folder: Path,
    rows: list[Any],
    reply: Callable[[Request], Any] = scores,
    format: Format | None = None,
    which: Which = "best",
    margin: float = 0.0,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The kept and the skipped pairs; media are read below `folder`."""
    source = write(folder / "in.jsonl", rows)
    judge = Judge(format or Pairwise(), ScriptedEngine(reply))
    annotate_file(source, judge, folder / "out.jsonl", which, margin, media_root=folder)
    return read(folder / "out.jsonl"), read(folder / "out.skipped.jsonl")


def row(number: int, *candidates: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "question": "0 q", "candidates": list(candidates), **more}


# ---------------------------------------------------------------- pairs


@pytest.mark.parametrize(
    ("format", "reply"),
    [
        pytest.param(Pointwise(), scores, id="pointwise"),
        pytest.param(Pairwise(), scores, id="pairwise"),
        pytest.param(Listwise(), scores, id="listwise"),
        pytest.param(MultipleChoice(), letter, id="multiple_choice"),
        pytest.param(Tournament(PositionSwap(Pairwise())), scores, id="tournament"),
    ],
)
def test_every_format_finds_the_pairs(tmp_path: Path, format: Format, reply: Callable[[Request], str]) -> None:
    pairs, skipped = annotated(tmp_path, [row(1, *GROUP)], reply, format, "all")
    assert {tuple(pair["pair"]) for pair in pairs} == {(1, 0), (0, 2), (3, 0), (1, 2), (1, 3), (3, 2)} and not skipped
    assert pairs[0] == {
        "id": 1,
        "prompt": [{"role": "user", "content": "0 q"}],
        "chosen": [{"role": "assistant", "content": "9 b"}],
        "rejected": [{"role": "assistant", "content": "5 a"}],
        "scores": pairs[0]["scores"],
        "pair": [1, 0],
        "reasoning": ["so", "so"] if format.max_candidates == 1 else ["so\n\nso"],
    }


def test_the_best_pair_of_a_row_is_the_one_furthest_apart(tmp_path: Path) -> None:
    pairs, skipped = annotated(tmp_path, [row(1, *GROUP)])
    assert [(pair["pair"], pair["scores"]) for pair in pairs] == [([1, 2], [9, 1])]
    assert {pair["why"] for pair in skipped} == {"not_selected"} and len(skipped) == 5


@pytest.mark.parametrize(
    ("candidates", "reply", "format", "margin", "why"),
    [
        pytest.param(["5 a", "5 b"], scores, Pairwise(), 0, "tie", id="tie"),
        pytest.param(["5 a", "5 b"], scores, Pointwise(), 0, "tie", id="tie_of_scores"),
        pytest.param(["5 a", "9 b"], lambda r: tags(8, 2), Pairwise(), 0, "order_inconsistent", id="order_decides"),
        pytest.param(["5 a", "7 b"], scores, Pairwise(), 2.5, "below_margin", id="too_close"),
        pytest.param(["5 a", "5 a"], scores, Pairwise(), 0, "identical", id="identical"),
        pytest.param(["5 a", "5 a"], scores, Pointwise(), 0, "identical", id="identical_with_scores"),
        pytest.param(["5 a", "9 b"], lambda r: "<think></think>both", Pairwise(), 0, "malformed", id="unreadable"),
        pytest.param(["5 a", "99 b"], scores, Pointwise(), 0, "out_of_range", id="out_of_range"),
        pytest.param(["5 a", "9 b"], lambda r: Generation("<think>", "length"), Pairwise(), 0, "truncated", id="cut"),
        pytest.param(["5 a", "9 b"], late, Pointwise(), 0, "timeout", id="late"),
    ],
)
def test_a_pair_that_is_not_kept_is_listed_with_its_reason(
    tmp_path: Path, candidates: list[str], reply: Callable[[Request], Any], format: Format, margin: float, why: str
) -> None:
    rows = [row(1, *candidates), row(2, "1 low", "9 high")]
    pairs, skipped = annotated(tmp_path, rows, reply, format, margin=margin)
    assert skipped[0]["id"] == 1 and skipped[0]["why"] == why and sorted(skipped[0]["pair"]) == [0, 1]
    assert all(pair["id"] == 2 for pair in pairs)
    card = (tmp_path / "out.md").read_text()
    assert f"| {why} |" in card and f"{len(pairs)} pairs from 2 rows" in card


def test_identical_candidates_are_compared_once(tmp_path: Path) -> None:
    requests: list[Request] = []

    def counted(request: Request) -> str:
        requests.append(request)
        return scores(request)

    pairs, skipped = annotated(tmp_path, [row(1, "5 a", "5 a", "9 b")], counted, which="all")
    assert len(requests) == 2  # both orders
    assert [(pair["pair"], pair["scores"]) for pair in pairs] == [([2, 0], [9, 5]), ([2, 1], [9, 5])]
    assert [(pair["pair"], pair["why"]) for pair in skipped] == [([0, 1], "identical")]


@pytest.mark.parametrize(
    ("format", "compared"),
    [
        pytest.param(Tournament(Pairwise(), budget=4), 4, id="budget"),
        pytest.param(Tournament(Pairwise(), "swiss"), 12, id="swiss"),
        pytest.param(Tournament(Pairwise(), "swiss", budget=5), 5, id="swiss_with_a_budget"),
        pytest.param(Tournament(Pairwise()), 15, id="all"),
    ],
)
def test_a_pair_that_the_schedule_leaves_out_is_not_listed(tmp_path: Path, format: Format, compared: int) -> None:
    requests: list[set[str]] = []

    def noted(request: Request) -> str:
        requests.append(set(candidates(request)))
        return scores(request)

    group = ["5 a", "9 b", "1 c", "7 d", "7 e", "3 f"]
    pairs, skipped = annotated(tmp_path, [row(1, *group)], noted, format, "all")
    listed = [{group[index] for index in pair["pair"]} for pair in pairs + skipped]
    assert len(listed) == compared and all(requests.count(pair) == 2 for pair in listed)
    assert {pair["why"] for pair in skipped} <= {"tie"}


def test_a_failed_comparison_of_a_budget_fails_no_pair_that_was_left_out(tmp_path: Path) -> None:
    reply = lambda request: "?" if "1 c" in candidates(request) else scores(request)  # noqa: E731
    pairs, skipped = annotated(tmp_path, [row(1, *GROUP)], reply, Tournament(Pairwise(), budget=2), "all")
    assert len(pairs) == 1 and 2 not in pairs[0]["pair"]
    assert [(2 in pair["pair"], pair["why"]) for pair in skipped] == [(True, "malformed")]


@pytest.mark.parametrize(
    "format", [Pointwise(), Pairwise(), Tournament(Pairwise(), "swiss")], ids=["pointwise", "pairwise", "swiss"]
)
def test_a_broken_candidate_fails_its_pairs_only(tmp_path: Path, format: Format) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    group = [[text, {"image": path}] for text, path in (("5", "a.png"), ("9", "gone.png"), ("1", "a.png"))]
    pairs, skipped = annotated(tmp_path, [row(1, *group)], format=format, which="all")
    assert [pair["pair"] for pair in pairs] == [[0, 2]]
    assert [(pair["pair"], pair["why"]) for pair in skipped] == [([0, 1], "media"), ([1, 2], "media")]
    assert all("no such file" in pair["detail"] for pair in skipped)


def test_votes_in_both_orders_are_pairs_too(tmp_path: Path) -> None:
    source, engine = write(tmp_path / "in.jsonl", [row(1, "5 a", "9 b")]), ScriptedEngine(scores)
    judge = Judge(MajorityVote(Pairwise(), 3, "mean"), engine, Sampling(temperature=1.0))
    assert annotate_file(source, judge, tmp_path / "out.jsonl") == {"rows": 1, "pairs": 1}
    assert len(engine.requests) == 6 and read(tmp_path / "out.jsonl")[0]["pair"] == [1, 0]


# ---------------------------------------------------------------- how rows are written back


def test_images_and_parts_keep_their_paths(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [
        row(1, "5 a", "9 b", images=["a.png"]),
        row(2, [{"text": "9 b"}, {"image": "a.png"}], ["1 c", {"type": "image", "path": "a.png"}, {"text": ""}]),
        row(3, ["9 d", {"image": "a.png"}], ["1 e", {"image": "gone.png"}]),
    ]
    reply = lambda request: tags(*(grade(text) for text in candidates(request) if text))  # noqa: E731
    (first, second), (skipped,) = annotated(tmp_path, rows, reply)
    assert first["images"] == ["a.png"] and first["chosen"] == [{"role": "assistant", "content": "9 b"}]
    image, empty = {"type": "image", "image": "a.png"}, {"type": "text", "text": ""}
    assert second["chosen"][0]["content"] == [{"type": "text", "text": "9 b"}, image]
    assert second["rejected"][0]["content"] == [{"type": "text", "text": "1 c"}, image, empty]
    assert (skipped["id"], skipped["why"]) == (3, "media")


def test_conversations_are_written_back_as_conversations(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    call = [{"name": "look", "arguments": {"at": "a.png"}}]
    question = [
        {"role": "system", "content": "0 s"},
        {"role": "user", "content": ["0 q ", {"type": "image"}]},
        {"role": "assistant", "content": None, "tool_calls": call},
        {"role": "tool", "content": [{"animal": "cat"}], "name": "look"},
        {"role": "user", "content": [{"text": "0 r"}]},
    ]
    answers = [[{"role": "assistant", "content": f"{n} a"}, {"role": "user", "content": "0 why?"}] for n in (9, 1)]

    def reply(request: Request) -> str:
        text = str(request.prompt)
        return tags(9, 1) if text.index("9 a") < text.index("1 a") else tags(1, 9)

    (pair,), _ = annotated(tmp_path, [row(1, *answers, question=question, images=["a.png"])], reply)
    assert pair["prompt"] == [
        {"role": "system", "content": "0 s"},
        {"role": "user", "content": [{"type": "text", "text": "0 q "}, {"type": "image"}]},
        {"role": "assistant", "content": "", "tool_calls": call},
        {"role": "tool", "content": [{"animal": "cat"}], "name": "look"},
        {"role": "user", "content": "0 r"},
    ]
    assert pair["chosen"] == answers[0] and pair["rejected"] == answers[1] and pair["images"] == ["a.png"]


def test_image_candidates_of_a_conversation_are_paths_and_the_prompt_stays_one(tmp_path: Path) -> None:
    for name, shade in (("dark", 50), ("bright", 200)):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / f"{name}.png")
    question = [{"role": "system", "content": "draw"}, {"role": "user", "content": "a red square"}]

    def red(request: Request) -> str:
        return tags(*(media.images()[0].getpixel((0, 0))[0] // 25 for media in request.prompt.media))  # type: ignore[index]

    rows = [row(1, {"image": "dark.png"}, [{"image": "bright.png"}], question=question)]
    (pair,), _ = annotated(tmp_path, rows, red)
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (question, "bright.png", "dark.png")


def test_half_a_surrogate_pair_is_kept(tmp_path: Path) -> None:
    (pair,), _ = annotated(tmp_path, [row(1, "5 a \ud83d", "9 世界")])
    assert pair["rejected"][0]["content"] == "5 a \ud83d" and pair["chosen"][0]["content"] == "9 世界"


# ---------------------------------------------------------------- interrupted

BATCH = 8
ROWS = [row(n, f"{n % 9 + 1} a", f"{n % 5 + 1} b", f"{n % 7 + 1} c") for n in range(BATCH * 4 + 3)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexjudge_reward.offline.annotate.BATCH", BATCH)


class Killed(BaseException):
    """As sudden as a signal: nothing handles it."""


class Stopping:
    """A fair judge that is killed after so many replies."""

    def __init__(self, after: float = float("inf")) -> None:
        self.left = after

    def __call__(self, request: Request) -> str:
        if self.left < 1:
            raise Killed
        self.left -= 1
        return scores(request)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    annotated(folder, ROWS, Stopping())
    return files(folder)


@pytest.mark.parametrize("after", [0, 1, 40, 65, 200])
def test_a_killed_run_continues_and_ends_as_an_unbroken_one(
    tmp_path: Path, unbroken: dict[str, bytes], after: int
) -> None:
    with pytest.raises(Killed):
        annotated(tmp_path, ROWS, Stopping(after))
    assert not (tmp_path / "out.jsonl").exists()
    engine = ScriptedEngine(Stopping())
    annotate_file(tmp_path / "in.jsonl", Judge(Pairwise(), engine), tmp_path / "out.jsonl", media_root=tmp_path)
    assert files(tmp_path) == unbroken
    # Three candidates are three pairs in two orders, a few of identical candidates less.
    assert len(engine.requests) <= 6 * (len(ROWS) - after // 6 + BATCH)


@pytest.mark.parametrize("name", ["out.jsonl", "out.skipped.jsonl"])
def test_a_kill_between_the_last_steps_costs_nothing(
    tmp_path: Path, unbroken: dict[str, bytes], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target.name == name:
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", killed)
        annotated(tmp_path, ROWS, Stopping())
    engine = ScriptedEngine(Stopping())
    annotate_file(tmp_path / "in.jsonl", Judge(Pairwise(), engine), tmp_path / "out.jsonl", media_root=tmp_path)
    assert not engine.requests and files(tmp_path) == unbroken


def test_rows_written_after_the_last_complete_batch_are_written_again(
    tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    with pytest.raises(Killed):
        annotated(tmp_path, ROWS, Stopping(120))
    with (tmp_path / "out.jsonl.partial").open("ab") as torn:
        torn.write(b'{"id": 99, "prom')
    annotated(tmp_path, ROWS, Stopping())
    assert files(tmp_path) == unbroken


def outcome(folder: Path) -> tuple[bytes, bytes]:
    """The files of pairs; a later run at the same place begins anew."""
    found = (folder / "out.jsonl").read_bytes(), (folder / "out.skipped.jsonl").read_bytes()
    (folder / "out.jsonl").unlink()
    return found


@pytest.mark.parametrize("batch", [0, 1, 2], ids=["first", "middle", "last"])
@pytest.mark.parametrize("back", [True, False], ids=["comes_back", "stays_away"])
def test_a_judge_that_goes_away_costs_no_row(tmp_path: Path, batch: int, back: bool) -> None:
    rows = [row(number, f"{number % 7} a", f"{number % 5} b", "3 c") for number in range(2 * BATCH + 3)]
    annotated(tmp_path, rows)
    whole = outcome(tmp_path)
    count, end = 0, 6 * min(BATCH * (batch + 1), len(rows))  # two orders of three pairs

    def reply(request: Request) -> Any:
        nonlocal count
        count += 1
        if 6 * BATCH * batch + 10 <= count <= end:
            return Generation.failed("transport" if count % 2 else "timeout", "the server went away")
        if not back and count == end + 1:
            raise EngineError("no server answers")
        return scores(request)

    if not back:
        with pytest.raises(EngineError, match="no server answers"):
            annotated(tmp_path, rows, reply)
        assert not (tmp_path / "out.jsonl").exists()
    annotated(tmp_path, rows, reply)
    assert outcome(tmp_path) == whole


@pytest.mark.parametrize("batch", [0, 1], ids=["first", "middle"])
def test_a_judge_that_falls_silent_costs_no_row(tmp_path: Path, batch: int) -> None:
    """As a server behind a proxy does: every request fails, and no error says that there is no server."""
    rows = [row(number, f"{number % 7} a", f"{number % 5} b", "3 c") for number in range(3 * BATCH + 3)]
    annotated(tmp_path, rows)
    whole = outcome(tmp_path)
    count, silent = 0, True

    def reply(request: Request) -> Any:
        nonlocal count
        count += 1
        dead = silent and count > 6 * BATCH * batch + 10
        return Generation.failed("transport", "502: bad gateway") if dead else scores(request)

    with pytest.raises(EngineError, match="answered nothing of 8 rows: 502: bad gateway"):
        annotated(tmp_path, rows, reply)
    silent = False
    annotated(tmp_path, rows, reply)
    assert outcome(tmp_path) == whole


def test_rows_that_are_never_answered_hold_up_no_other(tmp_path: Path) -> None:
    rows = [row(number, f"{number % 7} a", f"{number % 5} b") for number in range(2 * BATCH)]
    rows[3], rows[-2] = row(3, "5 a", "6 b"), row(999, "5 a", "6 b")
    never = {"5 a", "6 b"}
    pairs, skipped = annotated(tmp_path, rows, lambda r: late(r) if never == set(candidates(r)) else scores(r))
    assert [pair["id"] for pair in skipped if pair["why"] == "timeout"] == [3, 999]
    assert len(pairs) + len(skipped) == 2 * BATCH


@pytest.mark.parametrize(
    ("format", "other"),
    [
        pytest.param(Pairwise(), Listwise(), id="format"),
        pytest.param(Pairwise(), MultipleChoice(), id="other_prompts"),
        pytest.param(Tournament(Pairwise()), Tournament(Pairwise(), budget=3), id="budget"),
        pytest.param(Tournament(Pairwise()), Tournament(Pairwise(), "swiss"), id="schedule"),
        pytest.param(PositionSwap(Pairwise(), 1.0), PositionSwap(Pairwise(), 2.0), id="swap_margin"),
    ],
)
def test_an_unfinished_run_of_another_format_is_not_mixed_in(tmp_path: Path, format: Format, other: Format) -> None:
    with pytest.raises(Killed):
        annotated(tmp_path, ROWS, Stopping(120), format)
    with pytest.raises(ConfigError, match="other rows or settings"):
        annotated(tmp_path, ROWS, Stopping(), other)
    annotated(tmp_path, ROWS, Stopping(), format)


@pytest.mark.parametrize("change", ["rows", "margin", "which", "sampling", "engine"])
def test_an_unfinished_run_of_other_settings_is_not_mixed_in(tmp_path: Path, change: str) -> None:
    with pytest.raises(Killed):
        annotated(tmp_path, ROWS, Stopping(120))
    rows = [*ROWS, row(999, "5 a", "6 b")] if change == "rows" else ROWS
    source, engine = write(tmp_path / "in.jsonl", rows), ScriptedEngine([] if change == "engine" else Stopping())
    judge = Judge(Pairwise(), engine, Sampling(seed=1) if change == "sampling" else Sampling())
    which: Which = "all" if change == "which" else "best"
    with pytest.raises(ConfigError, match="other rows or settings"):
        annotate_file(source, judge, tmp_path / "out.jsonl", which, 1.0 if change == "margin" else 0.0)
    assert not engine.requests


@pytest.mark.parametrize("damage", ["{", "[]", "{}"])
def test_a_damaged_progress_file_is_named(tmp_path: Path, damage: str) -> None:
    with pytest.raises(Killed):
        annotated(tmp_path, ROWS, Stopping(120))
    (tmp_path / "out.jsonl.progress").write_text(damage)
    with pytest.raises(ConfigError, match=r"out\.jsonl\.progress is damaged; remove it to begin again"):
        annotated(tmp_path, ROWS, Stopping())


@pytest.mark.parametrize("left", [None, 0, 1, 400, -1], ids=["gone", "empty", "one_byte", "rows_less", "a_byte_less"])
def test_a_partial_file_that_lost_rows_is_not_filled_up(
    tmp_path: Path, unbroken: dict[str, bytes], left: int | None
) -> None:
    with pytest.raises(Killed):
        annotated(tmp_path, ROWS, Stopping(120))
    partial = tmp_path / "out.jsonl.partial"
    recorded = json.loads((tmp_path / "out.jsonl.progress").read_text())["sizes"][0]
    os.truncate(partial, recorded - 1 if left == -1 else left or 0)
    if left is None:
        partial.unlink()
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"out\.jsonl\.partial is damaged; remove .*\.progress to begin again"):
            annotated(tmp_path, ROWS, Stopping())
    (tmp_path / "out.jsonl.progress").unlink()
    annotated(tmp_path, ROWS, Stopping())
    assert files(tmp_path) == unbroken


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        pytest.param(row(2, "5 a"), "line 2: a pair needs at least two candidates .* found 1", id="one"),
        pytest.param(
            row(2, "5 a", {"image": "b"}),
            "line 2: the candidates are of unequal kind: image and text",
            id="unequal",
        ),
        pytest.param(row(1, "5 a", "6 b"), "line 2: the id 1 is that of line 1, too", id="same_id"),
        pytest.param({"question": "q", "candidates": ["a", "b"]}, "line 2: the entry 'id' is missing", id="no_id"),
        pytest.param({"id": 2, "candidates": ["a", "b"]}, "line 2: the entry 'question' is missing", id="no_question"),
    ],
)
def test_under_strict_a_wrong_row_is_named_before_anything_is_judged(tmp_path: Path, bad: Any, message: str) -> None:
    source, engine = write(tmp_path / "in.jsonl", [row(1, "5 a", "9 b"), bad]), ScriptedEngine([])
    with pytest.raises(ConfigError, match=message):
        annotate_file(source, Judge(Pairwise(), engine), tmp_path / "out.jsonl", media_root=tmp_path, strict=True)
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
        annotate_file(source, Judge(Pairwise(), ScriptedEngine([])), tmp_path / output, **settings)


def test_a_format_for_three_makes_no_pairs(tmp_path: Path) -> None:
    class Three(Listwise):
        min_candidates, max_candidates = 3, 3

    with pytest.raises(ConfigError, match="one or two candidates, this one judges 3 to 3"):
        annotated(tmp_path, [row(1, "5 a", "9 b")], format=Three())
