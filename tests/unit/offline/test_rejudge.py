"""`flexjudge rejudge`: what a record holds is judged again, exactly as it was shown, by another judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flexjudge_reward import (
    ConfigError,
    Example,
    FlexJudgeReward,
    Format,
    Generation,
    Judge,
    Listwise,
    Media,
    Pairwise,
    Pointwise,
    Record,
    Request,
    Rubric,
    Scale,
    ScriptedEngine,
    annotate_file,
    rejudge_file,
    rerank_file,
    score_file,
)
from flexjudge_reward.cli.main import main
from flexjudge_reward.offline.evaluate.doctor import doctor
from flexjudge_reward.offline.recorded import recorded
from flexjudge_reward.report.render import report
from support.judging import candidates, scores, tags

NANO = ("--model", "nano", "--cache", "off")


def judge(record: Path | None = None, format: Format | None = None, replies: Any = scores, **more: Any) -> Judge:
    return Judge(
        format or Pointwise(), ScriptedEngine(replies), record=None if record is None else Record(record, **more)
    )


def again(record: Path, *args: Any, **options: Any) -> list[dict[str, Any]]:
    output = record.with_name("again.jsonl")
    rejudge_file(record, judge(None, *args), output, **options)
    return [json.loads(line) for line in output.read_text().splitlines()]


def trained(record: Path, format: Format, *steps: list[str], replies: Any = scores) -> None:
    """A trainer's reward, with two prompts whose completions come in turns."""
    reward = FlexJudgeReward(judge(record, format, replies), max_failure_rate=1)
    for step, completions in enumerate(steps):
        state = type("State", (), {"global_step": step})()
        reward(["p", "q"] * (len(completions) // 2), completions, trainer_state=state)


@pytest.mark.parametrize("format", [Pointwise(), Listwise(), Pairwise()], ids=lambda format: format.name)
@pytest.mark.parametrize("other", [Pointwise(), Listwise()], ids=lambda format: f"again-{format.name}")
def test_completions_of_a_training_run_are_groups_again(format: Format, other: Format, tmp_path: Path) -> None:
    record = tmp_path / "r.jsonl"
    trained(record, format, ["3 a", "9 b", "4 c", "2 d"], ["5 e", "6 f", "7 g", "8 h"])
    rows = again(record, other)
    assert [row["scores"] for row in rows] == [[3, 4], [9, 2], [5, 7], [6, 8]]
    assert rows[0]["candidates"] == [["3 a"], ["4 c"]] and rows[0]["question"] == ["p"]
    assert rows[2]["id"].startswith("step 1, group ") and len({row["id"] for row in rows}) == 4
    assert set(rows[0]) >= {"row", "id", "question", "candidates", "scores", "failures", "scale", "reasoning", "cached"}


def test_probes_and_alarms_of_a_training_are_no_rows(tmp_path: Path) -> None:
    record = tmp_path / "r.jsonl"

    def used(request: Request) -> Generation:
        (text,) = candidates(request)
        return Generation(tags(int(text[0]) if text[:1].isdigit() else 1), prompt_tokens=9, completion_tokens=9)

    reward = FlexJudgeReward(judge(record, replies=used), probes=1.0)
    for _ in range(3):  # what probes may cost is known after the first
        reward(["p"] * 4, ["3 a", "9 b", "4 c", "2 d"])
    Record(record).note({"alarm": "probes", "said": "the judge can be fooled"})
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert any("probe" in line for line in lines) and any("alarm" in line for line in lines)
    assert [row["scores"] for row in again(record)] == [[3, 9, 4, 2]] * 3


def test_a_step_that_was_judged_again_counts_once(tmp_path: Path) -> None:
    record = tmp_path / "r.jsonl"
    trained(record, Pointwise(), ["3 a", "9 b", "4 c", "2 d"])
    trained(record, Pointwise(), ["1 a", "1 b", "1 c", "1 d"])
    assert [row["scores"] for row in again(record)] == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        pytest.param({"group": "g", "step": 1}, {"group": "g", "step": 1}, [["c"]], id="a smaller group replaces"),
        pytest.param({"id": 1}, {"id": 1}, [["c"]], id="a row of fewer candidates replaces"),
        pytest.param({"id": 1}, {"id": 1, "question": ["r"]}, [["a", "b"], ["c"]], id="two jobs, one id"),
        pytest.param({"id": 1}, {"id": 1, "reference": ["x"]}, [["a", "b"], ["c"]], id="another reference"),
    ],
)
def test_runs_of_one_record_are_not_mixed(first: Any, second: Any, found: list[list[str]], tmp_path: Path) -> None:
    shared = {"replies": [], "question": ["q"]}
    lines = [{**shared, "run": "x", "candidates": [[text]], "rows": [[0, n]], **first} for n, text in enumerate("ab")]
    lines.append({**shared, "run": "y", "candidates": [["c"]], "rows": [[0, 0]], **second})
    record = tmp_path / "r.jsonl"
    record.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [[text for (text,) in row.candidates.values()] for _, row in recorded(record)] == found


def test_pairs_that_doctor_asked_are_rows_of_their_own(tmp_path: Path) -> None:
    rows = [{"id": n, "question": "q", "candidates": [f"{n % 9} a", "9 b"], "label": "B"} for n in range(20)]
    source, record = tmp_path / "in.jsonl", tmp_path / "r.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    doctor(str(source), lambda format, budget: judge(record, Pairwise()), formats=["pairwise"])
    assert [row["id"] for row in again(record)] == [[n, 0, 1] for n in range(20)]


def test_a_group_that_was_judged_without_those_that_break_the_judge_is_whole(tmp_path: Path) -> None:
    def replies(request: Any) -> str:
        return "?" if "7 bad" in candidates(request) else scores(request)

    record = tmp_path / "r.jsonl"
    trained(record, Listwise(), ["3 a", "9 b", "7 bad", "2 d", "5 e", "6 f"], replies=replies)
    assert len(record.read_text().splitlines()) > 2  # probes, and the group without it
    rows = again(record, Listwise())
    assert sorted(row["scores"] for row in rows) == [[3, 7, 5], [9, 2, 6]]
    assert main(["compare", str(record), str(record.with_name("again.jsonl")), "--json"]) == 0


def test_a_thought_without_an_end_is_no_answer_again(tmp_path: Path) -> None:
    record = tmp_path / "r.jsonl"
    trained(record, Pointwise(), ["3 a", "9 b", "<think>hm", "2 d"])
    (first, second) = again(record)
    assert first["scores"] == [3, None] and first["failures"][1]["kind"] == "unfinished"
    assert second["scores"] == [9, 2]


@pytest.mark.parametrize("job", [score_file, rerank_file, annotate_file], ids=lambda job: job.__name__)
@pytest.mark.parametrize("format", [Pointwise(), Listwise(), Pairwise()], ids=lambda format: format.name)
def test_rows_of_a_job_keep_their_ids(job: Any, format: Format, tmp_path: Path) -> None:
    source, record = tmp_path / "in.jsonl", tmp_path / "r.jsonl"
    rows = [{"id": n, "question": f"q{n}", "candidates": [f"{n} a", "3 b", "9 c"]} for n in (1, 2)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job(source, judge(record, format).for_group_size(), tmp_path / "out.jsonl")
    assert [(row["id"], row["scores"]) for row in again(record)] == [(1, [1, 3, 9]), (2, [2, 3, 9])]


def test_rows_without_an_id_are_told_apart_by_their_lines(tmp_path: Path) -> None:
    source, record = tmp_path / "in.jsonl", tmp_path / "r.jsonl"
    source.write_text('{"question": "q", "candidates": ["1", "2"]}\n{"question": "q", "candidates": ["1", "2"]}\n')
    score_file(source, judge(record), tmp_path / "out.jsonl")
    assert [(row["id"], row["scores"]) for row in again(record)] == [(None, [1, 2])] * 2


def test_a_judge_sees_again_exactly_what_was_judged(tmp_path: Path) -> None:
    """Media of all kinds, texts, reference and rubric: the example is equal, and so is its cache key."""
    record = tmp_path / "r.jsonl"
    clip = Media.video([Image.new("RGB", (40, 20), (n, 0, 0)) for n in range(3)], fps=2.0)
    shown = [Media.image(Image.new("RGB", (300, 20), "red")), clip, Media.molecule("CCO", as_="drawing")]
    shown += [Media.molecule("CCN"), Media.audio((np.zeros(900), 16_000)), Media.audio((np.zeros(200_000), 16_000))]
    rubric = Rubric("Is it short?", Scale(0, 4, True))
    example = Example(["look", "here ", *shown], [["3 a"]], ["x", "y"], rubric)
    first = judge(record, replies=lambda request: tags(3), media="whole")
    first([example], [{"id": 1}])
    other = judge(replies=lambda request: tags(3))
    rejudge_file(record, other, tmp_path / "again.jsonl")
    assert first.engine.requests == other.engine.requests  # type: ignore[attr-defined]


def test_another_rubric_is_for_all_rows(tmp_path: Path) -> None:
    record = tmp_path / "r.jsonl"
    judge(record)([Example("q", ["3 a"], rubric=Rubric("Is it short?", None))], [{"id": 1}])
    for own, found in ((True, True), (False, False)):
        other = judge()
        rejudge_file(record, other, tmp_path / "again.jsonl", own_rubrics=own)
        assert ("Is it short?" in str(other.engine.requests)) is found  # type: ignore[attr-defined]


def test_an_image_that_was_not_kept_whole_is_no_score(tmp_path: Path) -> None:
    record, red = tmp_path / "r.jsonl", Media.image(Image.new("RGB", (300, 20), "red"))
    judge(record)([Example(["q", red], ["3 a"]), Example("q", ["4 b"])], [{"id": 1}, {"id": 2}])
    bad, good = again(record)
    assert "the image was not kept whole: record with --record-media whole" in bad["error"] and good["scores"] == [4]
    assert [row["scores"] for row in again(record, thumbnails=True)] == [[3], [4]]
    with pytest.raises(ConfigError, match=r"r.jsonl, row 0: the image was not kept whole.*--thumbnails"):
        again(record, strict=True)
    clip = Media.video([Image.new("RGB", (40, 20), (n, 0, 0)) for n in range(3)])
    judge(tmp_path / "c.jsonl")([Example(["q", clip], ["3 a"])])
    with pytest.raises(ConfigError, match="the video was not kept whole"):
        again(tmp_path / "c.jsonl", thumbnails=True)
    short, long = (Media.audio((np.zeros(seconds * 16_000), 16_000)) for seconds in (1, 11))
    judge(tmp_path / "s.jsonl")([Example([short, "q"], ["3 a"])])
    assert [row["scores"] for row in again(tmp_path / "s.jsonl")] == [[3]]
    judge(tmp_path / "s.jsonl")([Example([long, "q"], ["3 a"])])
    with pytest.raises(ConfigError, match="the audio was not kept whole"):
        again(tmp_path / "s.jsonl", strict=True)


def test_a_file_that_is_not_what_was_judged_is_a_failure(tmp_path: Path) -> None:
    record, red = tmp_path / "r.jsonl", Media.image(Image.new("RGB", (30, 20), "red"))
    judge(record, media="whole")([Example(["q", red], ["3 a"])])
    Image.new("RGB", (30, 20), "blue").save(tmp_path / "r.media" / f"{red.digest}-0.png")
    (row,) = again(record)
    assert row["scores"] == [None] and row["failures"][0]["kind"] == "media"
    assert "not what was judged" in row["failures"][0]["detail"]


@pytest.mark.parametrize(
    "part",
    [
        pytest.param({"image": "../secret"}, id="path"),
        pytest.param({"image": "unusable: no file"}, id="unusable"),
        pytest.param({"image": 7}, id="number"),
        pytest.param({"image": "ab" * 32, "frames": "x"}, id="frames"),
        pytest.param({"image": "ab" * 32, "frames": 10**9}, id="many-frames"),
        pytest.param({"image": "ab" * 32, "frames": 1, "fps": 10**400}, id="fps"),
        pytest.param({"image": "ab" * 32, "content": ["x"]}, id="content"),
        pytest.param({"smell": "ab" * 32, "content": "x"}, id="kind"),
        pytest.param({}, id="empty"),
        pytest.param(None, id="null"),
        pytest.param([["x"]], id="list"),
    ],
)
def test_a_damaged_line_harms_its_row_only(part: Any, tmp_path: Path) -> None:
    (tmp_path / "secret-0.png").write_bytes(b"")
    line = {"replies": [], "candidates": [["3 a"]], "question": ["q", part], "id": 1}
    lines = [
        line,
        {**line, "id": 2, "question": ["q"]},
        {"replies": []},
        {**line, "candidates": ["x"]},
        {**line, "rows": 1},
    ]
    record = tmp_path / "r.jsonl"
    record.write_text("".join(json.dumps(one) + "\n" for one in lines) + '{"replies": [], "cand')
    bad, good = again(record)
    assert good["scores"] == [3] and ("error" in bad or bad["failures"][0]["kind"] == "media")


# ---- the command


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    scripted = ScriptedEngine(lambda request: tags(*(10 - int(text[0]) for text in candidates(request))))
    monkeypatch.setattr("flexjudge_reward.engines.transformers.TransformersEngine", lambda *_, **__: scripted)
    return scripted


def test_the_command_writes_what_compare_and_report_read(
    engine: ScriptedEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, output = tmp_path / "r.jsonl", tmp_path / "again.jsonl"
    trained(record, Pointwise(), ["3 a", "9 b", "4 c", "2 d"])
    assert main(["rejudge", str(record), "-o", str(output), "--json", "--format", "listwise", *NANO]) == 0
    out, err = capsys.readouterr()
    assert out == "" and json.loads(err.splitlines()[-1])["judged"] == 4 and len(engine.requests) == 2
    assert main(["compare", str(record), str(output), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["rows_in_both"], found["compared"], found["equal"], found["same_best"]) == (2, 4, 0, 0)
    assert report(output).judged == 4
    assert main(["rejudge", str(record), "--limit", "1", *NANO]) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == [7, 6]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["none.jsonl"], "there is no record of judgements at none.jsonl", id="missing"),
        pytest.param(["other.jsonl"], "no judgement", id="no-record"),
        pytest.param(["."], "give the file that --record wrote", id="folder"),
        pytest.param(["r.jsonl", "-o", "r.jsonl"], "would overwrite the record", id="itself"),
        pytest.param(["r.jsonl", "--record", "./r.jsonl"], "own record", id="appends-to-it"),
        pytest.param(["r.jsonl", "--limit", "0"], "limit must be at least 1", id="limit"),
    ],
)
def test_a_wrong_record_is_one_line(
    words: list[str], said: str, engine: ScriptedEngine, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    trained(tmp_path / "r.jsonl", Pointwise(), ["3 a", "9 b"])
    (tmp_path / "other.jsonl").write_text('{"id": 1, "scores": [1]}\n')
    assert main(["rejudge", *words, *NANO]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("flexjudge: error: ") and said in line and not engine.requests


def test_too_many_failures_have_an_exit_code(engine: ScriptedEngine, tmp_path: Path) -> None:
    record = tmp_path / "r.jsonl"
    trained(record, Pointwise(), ["3 a", "9 b", "<think>hm", "2 d"])
    words = ["rejudge", str(record), "-o", str(tmp_path / "out.jsonl"), *NANO]
    assert main(words) == 3 and main([*words, "--max-failure-rate", "0.5"]) == 0
