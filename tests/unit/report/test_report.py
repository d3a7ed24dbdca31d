"""`flexjudge report`: what the page holds of a record and of the outputs of the other commands, and odd files."""

from __future__ import annotations

import http.client
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flexjudge_reward import (
    Example,
    Generation,
    Judge,
    Media,
    Pairwise,
    Pointwise,
    Record,
    Request,
    ScriptedEngine,
    annotate_file,
    for_group_size,
    judge_groups,
    read_record,
    rerank_file,
    score_file,
)
from flexjudge_reward.cli.main import main
from flexjudge_reward.report import charts, render
from flexjudge_reward.report.lines import files_of, groups_of
from flexjudge_reward.report.page import Page
from flexjudge_reward.report.render import report
from flexjudge_reward.report.serve import Server
from support import sounds
from support.judging import scores
from support.pages import Structure, failed, line, training, write

GROUP = {"id": 7, "question": "which?", "candidates": ["3 a", "9 b", "5 c"]}


def rows(source: Path, **options: Any) -> list[dict[str, Any]]:
    """The rows of the page of `source`."""
    return list(json.loads(Structure(report(source, **options).html).data)["rows"])


def read(source: Path) -> Page:
    return Page(group for kind, file in files_of(source) for group in groups_of(kind, file))


def picture(colour: int = 0, size: tuple[int, int] = (400, 300)) -> Media:
    return Media.image(Image.new("RGB", size, (colour, 90, 40)))


def inputs(path: Path, *given: Any) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in given))
    return path


def words(path: Path) -> str:
    """All that the page says beside its rows."""
    return " ".join(" ".join(Structure(report(path).html).texts).split())


# ---- a record of a training


def test_a_group_of_a_training_is_one_row_with_all_its_ranks(tmp_path: Path) -> None:
    path = write(tmp_path / "judgements.jsonl", [line("q", "g", 0, 3, scores=[4.0]), line("q", "g", 1, 4)])
    write(tmp_path / "judgements.rank2.jsonl", [line("q", "g", 0, 3, rows=[[2, 0]], scores=[8.0])], pictures=False)
    for source in (path, tmp_path):
        first, second = rows(source)
        assert (first["step"], [one["score"] for one in first["candidates"]]) == (3, [4.0, 8.0])
        assert (second["step"], len(second["candidates"])) == (4, 1)
        assert first["question"][0]["picture"] == second["question"][0]["picture"] == 0


def test_groups_without_a_step_are_those_of_one_call(tmp_path: Path) -> None:
    lines = [line("q", "0", place, None, time=f"{call}") for call in range(2) for place in range(2)]
    assert [len(row["candidates"]) for row in rows(write(tmp_path / "r.jsonl", lines))] == [2, 2]


def test_steps_that_a_resumed_run_did_again_count_once(tmp_path: Path) -> None:
    first = [line("q", "g", 0, step, run="a", scores=[2.0]) for step in (0, 4, 8, 12)]
    again = [line("q", "g", 0, step, run="b", scores=[9.0]) for step in (8, 12, 16)]
    page = read(write(tmp_path / "r.jsonl", [*first, *again]))
    assert {step: one.judged for step, one in page.steps.items()} == {0: 1, 4: 1, 8: 1, 12: 1, 16: 1}
    assert page.repeated == 2 and "2 earlier judgements of these steps are left out" in words(tmp_path)
    both = [one for pair in zip(first, again, strict=False) for one in pair]  # two that write at once keep theirs
    assert read(write(tmp_path / "r.jsonl", both)).judged == 6


def test_curves_are_of_the_steps(tmp_path: Path) -> None:
    reply = {"text": "x", "completion_tokens": 20, "cached": True}
    lines = [line("q", "g", 0, 0, scores=[1.0]), line("q", "g", 1, 0, scores=[10.0]), failed("q", group="g", step=0)]
    lines += [line("q", "h", 0, 5, scores=[5.5], replies=[reply])]
    page = read(write(tmp_path / "r.jsonl", lines))
    first, last = page.steps[0], page.steps[5]
    assert (first.mean, first.spread, first.failures) == (0.5, 0.5, {"truncated": 1})
    assert (last.mean, last.spread, last.tokens, last.cached, last.calls) == (0.5, None, 20, 1, 1)
    assert (page.judged, page.groups, sum(page.scores)) == (4, 2, 3)
    titles = words(tmp_path / "r.jsonl")
    for title in ("Mean reward", "Spread", "Failures by kind", "Judge tokens", "cache", "Scores, 0 to 1"):
        assert title in titles


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        pytest.param([[3.0, 3.0], [3.0, 9.0]], "groups with equal scores 1 (50.0 %)", id="one-of-two"),
        pytest.param([[3.0, 4.0], [1.0, 9.0]], "groups with equal scores 0", id="none"),
        pytest.param([[3.0], [9.0]], "", id="groups-of-one"),
    ],
)
def test_groups_that_train_nothing_are_counted(scores: list[list[float]], said: str, tmp_path: Path) -> None:
    lines = [line("q", f"{n}", at, 0, scores=[one]) for n, group in enumerate(scores) for at, one in enumerate(group)]
    text = words(write(tmp_path / "r.jsonl", [*lines, failed("q", group="x")]))
    assert said in text and ("groups with equal scores" in text) == bool(said)
    assert f"failed 1 ({100 / (len(lines) + 1):.1f} %)" in text


def test_a_histogram_of_whole_scores_has_a_bar_for_each(tmp_path: Path) -> None:
    lines = [line("q", f"{n}", scores=[float(n)]) for n in range(1, 11)]
    assert read(write(tmp_path / "r.jsonl", lines)).scores == [1] * 10


@pytest.mark.parametrize(
    ("scale", "shown"),
    [
        pytest.param([0, 1], [0.0, 1.0], id="whole"),
        pytest.param([5, 1], None, id="reversed"),
        pytest.param([1, "x"], None, id="no-number"),
        pytest.param([1, 2, 3], None, id="three"),
        pytest.param(None, None, id="none"),
    ],
)
def test_the_scale_of_a_group_is_shown(scale: Any, shown: Any, tmp_path: Path) -> None:
    (row,) = rows(write(tmp_path / "r.jsonl", [line(scale=scale)]))
    assert row.get("scale") == shown


def test_the_judge_is_named_with_its_settings(tmp_path: Path) -> None:
    lines = [line("q", "g", number, judge={"model": f"m{number}", "temperature": 0.5}) for number in range(2)]
    path = write(tmp_path / "r.jsonl", lines)
    said = words(path)
    assert "judge 1 judge 2" in said and read(path).steps[0].mean_of(1) == pytest.approx(2 / 3)
    assert "The judge 1: m0" in said and "The judge 2: m1" in said and "temperature 0.5" in said


def test_a_group_format_has_its_replies_once(tmp_path: Path) -> None:
    judge = Judge(for_group_size(Pairwise()), ScriptedEngine(scores), record=Record(tmp_path / "r.jsonl"))
    judge_groups(judge, [Example("q", ["3 a", "9 b"])], [{"id": "x"}])
    (row,) = rows(tmp_path / "r.jsonl")
    worse, better = [one["score"] for one in row["candidates"]]
    assert worse < better and row["name"] == "row x"
    assert len(row["replies"]) == 1 and not any("replies" in one for one in row["candidates"])


def test_candidates_of_one_call_are_together_without_labels(tmp_path: Path) -> None:
    for _ in range(2):
        judge_groups(judge(tmp_path / "r.jsonl"), [Example("q", ["3 a", "9 b"]), Example("q", ["4 c", "5 d"])])
    assert [[one["score"] for one in row["candidates"]] for row in rows(tmp_path)] == [[3, 9], [4, 5], [3, 9], [4, 5]]


def test_comparisons_say_how_they_ended(tmp_path: Path) -> None:
    compared = [{"first": 0, "second": 2, "scores": [3.0, 9.5], "failure": None}]
    compared += [{"first": 1, "second": 2, "scores": None, "failure": {"kind": "timeout", "detail": "late"}}]
    (row,) = rows(write(tmp_path / "r.jsonl", [line(comparisons=compared)]))
    assert row["detail"] == "candidate 1 against 3: 3 to 9.5\ncandidate 2 against 3: timeout late"


# ---- outputs of the commands


def judge(record: Path | None = None, replies: Any = scores) -> Judge:
    return Judge(Pointwise(), ScriptedEngine(replies), record=None if record is None else Record(record))


def cut(request: Request) -> str | Generation:
    return Generation("<think>hm", "length") if "9 b" in str(request) else scores(request)


def test_scores_are_a_row_per_row(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    score_file(inputs(tmp_path / "in.jsonl", GROUP), judge(replies=cut), output)
    (row,) = rows(output)
    assert [one.get("score") for one in row["candidates"]] == [3.0, None, 5.0]
    assert row["candidates"][1]["failure"][0] == "truncated" and row["candidates"][0]["replies"] == ["so"]
    assert report(output).judged == 3 and report(output).failed == 1


def test_a_ranking_marks_the_best(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    rerank_file(inputs(tmp_path / "in.jsonl", GROUP), judge(), output)
    (row,) = rows(output)
    assert [one.get("label") for one in row["candidates"]] == [None, "best", None]


def test_kept_and_dropped_pairs_have_their_margins_and_texts(tmp_path: Path) -> None:
    output = tmp_path / "pairs.jsonl"
    annotate_file(inputs(tmp_path / "in.jsonl", GROUP), judge(tmp_path / "judgements.jsonl"), output)
    kept, *dropped = [row for row in rows(tmp_path) if "pair" in row and row["pair"] == "kept"] + [
        row for row in rows(tmp_path) if row.get("pair") == "not_selected"
    ]
    assert (kept["margin"], [one["label"] for one in kept["candidates"]]) == (6.0, ["chosen", "rejected"])
    assert [one["parts"] for one in kept["candidates"]] == [["9 b"], ["3 a"]] and kept["question"] == ["which?"]
    assert [row["margin"] for row in dropped] == [2.0, 4.0]
    assert [one["parts"] for one in dropped[0]["candidates"]] == [["5 c"], ["3 a"]]
    assert "not selected 2" in words(tmp_path) and "Margins of the pairs that were kept" in words(tmp_path)
    assert "Margins of the pairs that were not kept" in words(tmp_path)
    assert report(output).pairs == 3 and report(output).judged == 0 and report(tmp_path).judged == 3


def test_an_unfinished_annotation_is_shown(tmp_path: Path) -> None:
    output = tmp_path / "out" / "pairs.jsonl"
    output.parent.mkdir()
    annotate_file(inputs(tmp_path / "in.jsonl", GROUP), judge(), output)
    for path in (output, output.with_suffix(".skipped.jsonl")):
        path.rename(path.with_name(path.name + ".partial"))
    assert report(output).pairs == report(output.parent).pairs == 3


def test_a_folder_counts_a_judgement_once(tmp_path: Path) -> None:
    score_file(inputs(tmp_path / "in.jsonl", GROUP), judge(tmp_path / "deep" / "r.jsonl"), tmp_path / "out.jsonl")
    assert report(tmp_path).judged == report(tmp_path / "out.jsonl").judged == 3


# ---- pictures


def test_a_record_keeps_thumbnails_that_the_page_shows(tmp_path: Path) -> None:
    clip = Media.video([Image.new("RGB", (400, 200), (n, 0, 0)) for n in range(9)])
    broken, molecule = Media.image(b"no image"), Media.molecule("CCO")
    judge(tmp_path / "r.jsonl")([Example(["q", picture()], ["3 a"]), Example(["q", clip, molecule], ["4 b"])])
    judge(tmp_path / "r.jsonl")([Example(["q", picture(), broken], ["5 c"])])
    files = sorted(file.name for file in (tmp_path / "r.media").iterdir())
    assert files == sorted(f"{one.digest}.jpg" for one in (picture(), clip))
    sizes = {Media.image((tmp_path / "r.media" / name).read_bytes()).images()[0].size for name in files}
    assert sizes == {(160, 120), (640, 80)}  # of a clip, four frames side by side
    first, second, third = rows(tmp_path)
    assert first["question"][1]["picture"] == third["question"][1]["picture"]
    assert second["question"][2]["text"].startswith("SMILES: CCO\n") and second["question"][2]["picture"] is not None
    assert third["question"][2]["picture"] is None and "no image" not in report(tmp_path).html


def test_a_sound_has_a_waveform_and_a_player(tmp_path: Path) -> None:
    """Ten seconds at most are kept and played; of a file by its path too, below the media root."""
    short, long = Media.audio(sounds.wav(0.2)), Media.audio(sounds.wav(11))
    judge(tmp_path / "r.jsonl")([Example(["q", short, long], ["3 a"])])
    kept = {file.name for file in (tmp_path / "r.media").iterdir()}
    assert kept == {f"{short.digest}.jpg", f"{short.digest}.wav", f"{long.digest}.jpg"}
    (row,) = rows(tmp_path)
    first, second = row["question"][1:]
    assert first["picture"] is not None and second["picture"] not in (None, first["picture"])
    assert first["sound"] == 0 and "sound" not in second
    html = report(tmp_path).html
    assert html.count("data:audio/wav;base64,") == 1 and "media-src data:;" in html
    (line,) = read_record(tmp_path / "r.jsonl")
    assert line["question"][1] == {"audio": short.digest, "seconds": 0.2}
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "a.wav").write_bytes(sounds.wav(0.2))
    scored = {"id": 1, "question": [{"audio": "a.wav"}, "q"], "answer": "x", "scores": [2], "failures": [None]}
    (tmp_path / "new").mkdir()
    path = inputs(tmp_path / "new" / "out.jsonl", scored)
    assert rows(path)[0]["question"][0].get("sound") is None
    assert rows(path, media_root=tmp_path / "sounds")[0]["question"][0]["sound"] == 0


@pytest.mark.parametrize(("off", "files"), [(False, 1), (True, 0)])
def test_thumbnails_can_be_left_out(tmp_path: Path, off: bool, files: int) -> None:
    recorded = Judge(
        Pointwise(), ScriptedEngine(scores), record=Record(tmp_path / "r.jsonl", media="off" if off else "thumbnails")
    )
    recorded([Example(["q", picture()], ["3 a"])])
    assert len(list(tmp_path.glob("r.media/*"))) == files and len(list(read_record(tmp_path / "r.jsonl"))) == 1


def test_thumbnails_that_cannot_be_written_cost_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "r.media").write_text("a file is here")
    with caplog.at_level(logging.WARNING):
        for colour in range(2):
            judge(tmp_path / "r.jsonl")([Example(["q", picture(colour)], ["3 a"])])
    assert len(list(read_record(tmp_path / "r.jsonl"))) == 2
    assert all("r.jsonl" in message for message in caplog.messages) and len(caplog.messages) >= 1


def test_jobs_that_share_a_record_and_an_id_are_two_rows(tmp_path: Path) -> None:
    judge = Judge(Pointwise(), ScriptedEngine(scores), record=Record(tmp_path / "r.jsonl"))
    for question, answer in (("Capital of France?", "3 Paris"), ("2 + 2?", "4 is it")):
        source = write(tmp_path / "in.jsonl", [{"id": 1, "question": question, "answer": answer}])
        score_file(source, judge, tmp_path / f"{answer[0]}.jsonl")
    groups = list(groups_of("record", tmp_path / "r.jsonl"))
    assert len({group.key for group in groups}) == 2


DIGEST = "cd" * 32


@pytest.mark.parametrize(
    "source",
    ["../secret", "../../etc/passwd", "/etc/passwd", f"{DIGEST}/../../secret", "http://127.0.0.1:9/x.png", "\x00", "",
     "data:image/svg+xml;base64,PHN2Zy8+", "judgements.media/../secret.jpg", "secret.jpg", DIGEST, DIGEST.upper()],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["image", "video", "molecule", "audio"])
def test_no_file_outside_the_folder_of_media_is_opened(tmp_path: Path, source: str, kind: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.jpg")
    path = write(tmp_path / "judgements.jsonl", [line(question=[{kind: source}, "q"])])
    (path.with_suffix(".media") / f"{DIGEST}.jpg").symlink_to(tmp_path / "secret.jpg")
    (row,) = rows(path)
    assert row["question"][0]["picture"] is None


def test_media_by_path_are_read_below_the_media_root_only(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    Image.new("RGB", (40, 40)).save(root / "a.png")
    pair = {"id": 1, "prompt": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"text": "q"}]}]}
    path = inputs(tmp_path / "pairs.jsonl", {**pair, "chosen": "x", "rejected": "y", "scores": [2, 1], "pair": [0, 1]})
    assert rows(path)[0]["question"][0]["picture"] is None
    assert rows(path, media_root=root)[0]["question"][0]["picture"] == 0


def test_a_page_has_room_for_so_many_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexjudge_reward.report.pictures.MOST_BYTES", 3_000)
    judge(tmp_path / "r.jsonl")([Example(["q", picture(colour)], ["3 a"]) for colour in range(0, 250, 50)])
    shown = [row["question"][1]["picture"] for row in rows(tmp_path)]
    assert 0 < sum(one is not None for one in shown) < 5 and "pictures or sounds are left out" in words(tmp_path)


# ---- a sample


def test_beyond_a_cap_the_page_holds_whole_groups_and_says_so(tmp_path: Path) -> None:
    lines = training(800)
    path = write(tmp_path / "r.jsonl", lines)
    made = report(path, most=200)
    assert (made.judged, 160 <= made.shown <= 200) == (800, True)
    assert {len(row["candidates"]) for row in rows(path, most=200)} == {8}
    assert f"Below is a sample: {made.shown} of 800 judgements" in " ".join(Structure(made.html).texts)
    assert "sample" not in words(path).split("Judgements")[0]


def test_a_sample_stays_while_the_run_grows(tmp_path: Path) -> None:
    lines = training(800)
    few = {row["question"][1] for row in rows(write(tmp_path / "r.jsonl", lines[:400]), most=200)}
    more = {row["question"][1] for row in rows(write(tmp_path / "r.jsonl", lines), most=200)}
    first_half = {one["question"][1] for one in lines[:400]}
    assert len(few) == len(more) == 25 and more & first_half <= few and 5 <= len(more & few) < 25


def test_long_texts_bound_the_page_too(tmp_path: Path) -> None:
    lines = [line("é" * 3_000, f"{number}") for number in range(40)]
    page = Page(
        (group for kind, file in files_of(write(tmp_path / "r.jsonl", lines)) for group in groups_of(kind, file)),
        most_text=200_000,
    )
    assert page.judged == 40 and 1 <= page.shown < 20


# ---- odd files


ODD: list[Any] = [None, True, -1, 1e308, 10**30, "text", [], [[]], {}, {"kind": 3}, [None], {"model": {"a": []}}, "NaN"]


@pytest.mark.parametrize("name", [*line(), "candidate", "id", "counters"])
def test_a_line_of_wrong_types_is_shown_as_far_as_it_goes(tmp_path: Path, name: str) -> None:
    lines = [{**line(), "group": f"{number}", name: value} for number, value in enumerate(ODD)]
    lines += [{**line(), "group": None, name: value} for value in ODD]
    text = "".join(json.dumps(one) + "\n" for one in lines) + json.dumps({**line(), name: float("nan")}) + "\n"
    path = write(tmp_path / "r.jsonl", [])
    path.write_text(text + '{"cut": \n\n[1]\n\xff\n')
    made = report(path)
    json.loads(Structure(made.html).data, parse_constant=lambda word: pytest.fail(word))
    assert made.judged > 0


@pytest.mark.parametrize("depth", [50, 400, 900, 5_000, 200_000])
@pytest.mark.parametrize("name", ["judge", "question", "scores", "id", "failure", "rows"])
def test_values_inside_values_do_no_harm(tmp_path: Path, name: str, depth: int) -> None:
    path = write(tmp_path / "r.jsonl", [line()])
    opened, closed = ('{"role": 1, "content": ', "}") if name == "question" else ("[", "]")
    value = opened * depth + "1" + closed * depth
    odd = json.dumps({**line(), name: "HERE", "group": None}).replace('"HERE"', value)
    path.write_text(path.read_text() + odd + "\n")
    assert report(path).judged >= 1


def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("flexjudge_reward.report.render.files_of", refuse)
    assert main(["report", str(write(tmp_path / "r.jsonl", [line()]))]) == 2
    assert capsys.readouterr().err.endswith("r.jsonl: Permission denied\n")


def test_a_sample_of_pairs_says_so(tmp_path: Path) -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "scores": [2, 1], "pair": [0, 1]}
    path = inputs(tmp_path / "pairs.jsonl", *({"id": number, **pair} for number in range(50)))
    made = report(path, most=20)
    assert "and 10 of 50 pairs" in " ".join(" ".join(Structure(made.html).texts).split())


@pytest.mark.parametrize(
    "lines",
    [
        [{"scores": [1, "x", None], "failures": []}],
        [{"scores": [], "failures": [None, {"kind": "timeout"}], "scale": 3, "reasoning": "one"}],
        [{"scores": [1], "failures": [None], "answer": {"text": "a"}, "best": 9, "question": [{"role": 1}]}],
        [{"scores": [1], "failures": [None], "candidates": [["a", {"image": "x"}]], "images": "x", "scale": [5, 1]}],
        [{"pair": None, "why": None}, {"pair": [0], "why": "tie", "detail": {"a": 1}}],
        [{"pair": [0, 1], "chosen": 1, "rejected": None, "scores": "x", "prompt": {"role": "user"}}],
    ],
    ids=str,
)
def test_odd_outputs_are_shown_as_far_as_they_go(tmp_path: Path, lines: list[Any]) -> None:
    assert len(rows(inputs(tmp_path / "out.jsonl", *lines))) == len(lines)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["none.jsonl"], "there is no file or folder none.jsonl"),
        (["empty.jsonl"], "empty.jsonl has no line of a record"),
        (["other.jsonl"], "other.jsonl has no line of a record"),
        (["r.jsonl", "-o", "r.jsonl"], "the page goes to an .html file, found 'r.jsonl'"),
        (["r.jsonl", "-o", "no/such/r.html"], "cannot write no/such/r.html: No such file"),
        (["r.jsonl", "--serve", "99999"], "cannot serve on port 99999"),
        (["r.jsonl", "--serve", "-1"], "cannot serve on port -1"),
    ],
)
def test_wrong_input_is_one_line(
    tmp_path: Path, given: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "r.jsonl", [line()])
    inputs(tmp_path / "empty.jsonl")
    inputs(tmp_path / "other.jsonl", {"a": 1})
    assert main(["report", *given]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("flexjudge: error: ") and err.count("\n") == 1 and said in err


def test_the_page_goes_beside_the_files_by_default(tmp_path: Path) -> None:
    write(tmp_path / "r.jsonl", [line()])
    assert main(["report", str(tmp_path)]) == main(["report", str(tmp_path / "r.jsonl")]) == 0
    assert (tmp_path / "report.html").exists() and (tmp_path / "r.html").exists()


def test_without_jinja_the_command_for_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    render._template.cache_clear()
    assert main(["report", str(write(tmp_path / "r.jsonl", [line()]))]) == 2
    assert "pip install 'flexjudge-reward[report]'" in capsys.readouterr().err


# ---- charts


def test_long_lines_are_thinned_by_means() -> None:
    chart = charts.lines("t", {"a": {step: float(step % 2) for step in range(4_000)}})
    assert chart is not None and chart.lines[0].path.count("L") == 499 and not chart.lines[0].dots
    assert chart.across == [(charts.LEFT, "step 7"), (charts.WIDTH - 8, "3999")]


@pytest.mark.parametrize("values", [{}, {"a": {}}, {"a": {3: None}}])
def test_nothing_is_drawn_of_nothing(values: dict[str, dict[int, float | None]]) -> None:
    assert charts.lines("t", values) is None


@pytest.mark.parametrize(
    ("values", "top"), [([0.0], 1.0), ([0.03], 0.05), ([7.0], 10.0), ([10.0], 10.0), ([11.0], 20.0)]
)
def test_axes_end_at_round_numbers(values: list[float], top: float) -> None:
    chart = charts.lines("t", {"a": dict(enumerate(values))})
    assert chart is not None and float(chart.up[-1][1]) == top


@pytest.mark.parametrize("values", [[0.0], [2.0, 2.0], [-3.0, 5.0], [0.1, 0.2, 9.9]])
def test_a_histogram_counts_every_value(values: list[float]) -> None:
    counts, low, high = charts.histogram(values, 5)
    assert sum(counts) == len(values) and low <= min(values) and high >= max(values)


# ---- a served report


@contextmanager
def serving(source: Path) -> Iterator[int]:
    with Server(source, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def ask(port: int, path: str = "/", host: str | None = None, method: str = "GET") -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
    reply = connection.getresponse()
    answer = reply.status, reply.read().decode(), dict(reply.getheaders())
    connection.close()
    return answer


def test_a_server_waits_for_a_run_and_follows_it(tmp_path: Path) -> None:
    source = tmp_path / "run"
    with serving(source) as port:
        status, text, headers = ask(port)
        assert status == 200 and "nothing to show yet" in text and headers["Refresh"] == "2"
        write(source / "judgements.jsonl", training(8))
        _, text, headers = ask(port)
        page = Structure(text)
        assert len(json.loads(page.data)["rows"]) == 1 and "connect-src &#39;self&#39;" in text
        assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"
        (live,) = [
            dict(one[1])["data-live"] for one in page.elements if one[0] == "script" and "data-live" in dict(one[1])
        ]
        assert ask(port, "/state")[1] == live == ask(port, "/state", f"localhost:{port}")[1]
        write(source / "judgements.jsonl", training(16))
        assert _until(lambda: ask(port, "/state")[1] != live)
        assert len(json.loads(Structure(ask(port)[1]).data)["rows"]) == 2


def _until(true: Any, seconds: float = 30) -> bool:
    import time

    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(true())


@pytest.mark.parametrize(
    ("path", "host", "method", "status"),
    [
        ("/", "evil.example", "GET", 403),
        ("/", "evil.example:80", "GET", 403),
        ("/state", "127.0.0.1.evil.example:80", "GET", 403),
        ("/../judgements.jsonl", None, "GET", 404),
        ("/judgements.jsonl", None, "GET", 404),
        ("//127.0.0.1/", None, "GET", 404),
        ("/", None, "POST", 501),
    ],
)
def test_a_server_answers_its_own_page_only(
    tmp_path: Path, path: str, host: str | None, method: str, status: int
) -> None:
    write(tmp_path / "judgements.jsonl", [line()])
    with serving(tmp_path) as port:
        assert ask(port, path, host, method)[0] == status


def test_a_taken_port_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path) as port:
        assert main(["report", str(tmp_path), "--serve", str(port)]) == 2
    assert f"cannot serve on port {port}" in capsys.readouterr().err


def test_a_name_that_is_no_text_is_shown(tmp_path: Path) -> None:
    """Of a file from a system with another encoding."""
    path = write(tmp_path / os.fsdecode(b"caf\xe9.jsonl"), [line()])
    assert main(["report", str(path), "-o", str(tmp_path / "page.html")]) == 0
    assert "<bdi>caf?.jsonl</bdi>" in (tmp_path / "page.html").read_text()
