"""The embedded judge on real transformers: the commands from rows to files, molecules, and models that cannot see."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from flexjudge_reward import (
    CachedEngine,
    ConfigError,
    Judge,
    Media,
    Message,
    Pairwise,
    Prompt,
    Request,
    Sampling,
    TransformersEngine,
    Untrusted,
    annotate_file,
)
from flexjudge_reward.cli.main import main
from flexjudge_reward.data.tables import Table
from flexjudge_reward.nano import path as nano_path
from flexjudge_reward.offline.evaluate.doctor import doctor
from flexjudge_reward.offline.evaluate.labels import user_rows
from flexjudge_reward.offline.evaluate.proposals import preferences, replies
from support import doctor_cases
from support.jsonl import read, write
from support.late import needs

needs("transformers")

FLAGS = ("--model", "nano", "--engine", "transformers", "--cache", "off")
QUESTION = "top-left red circle top-right nothing bottom-left blue square bottom-right red star\nWhat is top-left?"


# ---------------------------------------------------------------- commands

CANDIDATES = {"id": 1, "question": QUESTION, "candidates": ["blue square", "red circle"]}


def test_the_commands_find_the_right_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = write(tmp_path / "in.jsonl", [CANDIDATES]), tmp_path / "out.jsonl"
    for command, flags in (
        ("score", ()),
        ("rerank", ("--format", "listwise")),
        ("annotate", ("--format", "pairwise", "--margin", "2")),
    ):
        assert main([command, str(source), "-o", str(output), *FLAGS, *flags]) == 0
        (row,) = read(output)
        if command == "score":
            assert row["failures"] == [None, None] and row["scores"][1] > row["scores"][0]
        elif command == "rerank":
            assert row["best"] == 1
        else:
            assert row["chosen"] == [{"role": "assistant", "content": "red circle"}] and row["pair"] == [1, 0]
    err = capsys.readouterr().err
    assert "The judge is nano on transformers" in err and "1 pairs from 1 rows; skipped: none" in err


def test_a_data_set_is_scored_by_its_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"prompt": QUESTION, "reply": "red circle"}]).to_parquet(tmp_path / "in.parquet")
    command = ["score", str(tmp_path / "in.parquet"), "-o", str(tmp_path / "out.jsonl"), *FLAGS]
    assert main(command) == 2
    assert "--column question=COLUMN" in capsys.readouterr().err
    assert main([*command, "--column", "question=prompt", "--column", "answer=reply"]) == 0
    (row,) = read(tmp_path / "out.jsonl")
    assert row["row"] == row["id"] == 0 and row["failures"] == [None]


# ---------------------------------------------------------------- what is measured and made with it


def test_the_nano_judge_is_refused_outside_its_world(tmp_path: Path) -> None:
    """Really judged, in its world and on sums."""
    judge = doctor_cases.nano()
    inside = doctor(write(tmp_path / "in.jsonl", doctor_cases.inside(20)), judge, formats=["pairwise"])
    outside = doctor(write(tmp_path / "out.jsonl", doctor_cases.outside(20)), judge, formats=["pairwise"])
    assert inside.outcome == "go" and outside.outcome == "no-go", f"{inside}\n{outside}"


def test_the_nano_judge_in_its_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Really judged: some rows of the benchmark that needs no download."""
    out = tmp_path / "out"
    assert main(["evaluate", "nano_world", "-o", str(out), "--model", "nano", "--limit", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["always"]["rows"] == 8 and found["always"]["failed"] == 0
    assert found["metrics"]["agreement"]["value"] > 0.7 and found["judge"]["model"]


def test_a_real_model_is_asked_for_a_rubric(tmp_path: Path) -> None:
    """The embedded judge, really asked, knows nothing of such a request: its reply is cut or holds no statement."""
    row = {"id": 0, "question": "q", "candidates": ["red sure", "ghost"], "label": "A"}
    rows = preferences(user_rows(write(tmp_path / "rows.jsonl", [row]))[1])
    with Judge.load(model="nano", cache="off", max_tokens=4) as nano:
        assert replies("criteria", nano, rows, "name the colour", 1) == []


def test_traces_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datasets")
    rows = [{"n": 1, "q": QUESTION, "a": "red circle", "b": "nothing", "s": [10, 1]}]
    source = write(tmp_path / "in.jsonl", [*rows, {"n": 2, "q": "?", "a": "x"}])
    words = ["traces", str(source), "-o", str(tmp_path / "t.parquet"), "--model", "nano", "--format", "pairwise"]
    words += ["--seeds", "1,2", "--temperature", "0.1", "--teacher", "s", "--cache", "off"]
    for name in ("question=q", "candidates=a", "candidates=b", "id=n"):
        words += ["--column", name]
    assert main(words) == 0
    assert "1 traces from 2 rows and 2 replies; left out: 1 row" in capsys.readouterr().err
    (kept,) = Table.open(tmp_path / "t.parquet").rows()
    assert kept["scores"] == [10, 1]


# ---------------------------------------------------------------- molecules


@pytest.fixture(scope="module")
def nano() -> Iterator[TransformersEngine]:
    with TransformersEngine("nano") as engine:
        yield engine


def test_a_molecule_is_text_and_drawing_and_a_bad_one_fails_alone(nano: TransformersEngine) -> None:
    pytest.importorskip("rdkit")

    def ask(part: Media | Untrusted) -> Request:
        return Request(Prompt((Message("user", (part,)),)), Sampling(max_tokens=2))

    molecule = Media.molecule("OCC")
    parts = [molecule, Media.molecule("OCC", as_="drawing"), Media.molecule("C1"), Media.molecule("C1", as_="drawing")]
    plain, drawn, *bad = nano.generate([ask(part) for part in parts])
    (text,) = molecule.as_judge_input()
    (same,) = nano.generate([ask(Untrusted(str(text)))])
    assert plain.failure is None and (plain.text, plain.prompt_tokens) == (same.text, same.prompt_tokens)
    assert drawn.failure is None and drawn.prompt_tokens > plain.prompt_tokens
    assert [reply.failure.kind for reply in bad if reply.failure] == ["media", "media"]


# ---------------------------------------------------------------- models that cannot see


def without_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def text_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def copied(folder: Path, change: Callable[[Path], None] = lambda folder: None) -> TransformersEngine:
    """The embedded judge in a folder of its own, changed."""
    folder.mkdir()
    for file in nano_path("judge").iterdir():
        (folder / file.name).symlink_to(file)
    for name in ("chat_template.jinja", "preprocessor_config.json"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    change(folder)
    return TransformersEngine(str(folder))


@pytest.mark.parametrize("change", [without_processor, text_template])
@pytest.mark.parametrize("cached", [False, True], ids=["plain", "cached"])
def test_a_judge_that_cannot_see_is_found_before_it_loads(
    tmp_path: Path, change: Callable[[Path], None], cached: bool
) -> None:
    engine = copied(tmp_path / "model", change)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"id": 1, "question": "q", "candidates": ["a", "b"], "images": ["a.png"]}
    with Judge(Pairwise(), CachedEngine(engine, tmp_path / "c.sqlite") if cached else engine) as judge:
        with pytest.raises(ConfigError, match="line 1: the judge model reads text only and cannot be shown images"):
            annotate_file(write(tmp_path / "in.jsonl", [row]), judge, tmp_path / "out.jsonl", media_root=tmp_path)
        assert engine._decoder is None


def test_a_judge_that_can_see_is_not_refused(tmp_path: Path) -> None:
    engine = copied(tmp_path / "model")
    assert engine.supports("image") and engine.supports("video")
