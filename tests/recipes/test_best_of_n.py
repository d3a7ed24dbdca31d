"""recipes/best_of_n/images.py: what is counted, what is left out, what bad input gives."""

from __future__ import annotations

import json
import random
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from flexjudge_recipes.nano import shapes

import pytest

from flexjudge_reward import ConfigError, EngineError, Example, Judge, Media, Pointwise, Request, ScriptedEngine, rerank
from flexjudge_reward.cli.main import main
from support.late import late, needs

needs("torch", "transformers")
images = late("flexjudge_recipes.best_of_n.images")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["images.py", *map(str, words)])
    images.main()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run, and what it said."""
    folder = tmp_path_factory.mktemp("ended")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as said:
        patch.chdir(folder)
        run(patch, "--n", 2, "--questions", 8)
    return folder, said.getvalue()


def test_the_judge_is_between_the_first_answer_and_the_oracle(
    ended: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said = ended
    line = next(line for line in said.splitlines() if line.startswith("first answer"))
    first, judge, oracle = (float(part.split()[-1].rstrip("%")) for part in line.split("   "))
    assert first <= judge <= oracle
    rows = [json.loads(line) for line in (folder / "runs/best_of_n/ranked.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and "`flexjudge report runs/best_of_n` shows them" in said
    assert f"{sum(row['right'][row['best']] for row in rows) / 8:.1%}" == f"{judge:.1f}%"
    assert all(row["scores"][row["order"][0]] >= row["scores"][row["order"][1]] for row in rows)
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match="holds an earlier run"):
        run(monkeypatch)


@pytest.mark.parametrize("source", ["runs/best_of_n", "runs/best_of_n/ranked.jsonl"])
def test_the_report_shows_what_was_judged(
    source: str, ended: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(ended[0] / source), "-o", "page.html"]) == 0
    assert "page.html: 16 judgements, 0 failed" in capsys.readouterr().err
    assert ("data:image/" in Path("page.html").read_text()) == (source == "runs/best_of_n")


def test_a_file_of_questions_with_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(1)
    question = shapes.question(rng, shapes.scene(rng), ("what",))
    shapes.draw(question.scene, rng).save(tmp_path / "0.png")
    row = {"question": question.text, "images": ["0.png"], "answer": question.truth}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    judge = '{"model": "nano", "format": "multiple_choice", "cache": "off"}'
    run(monkeypatch, "--n", 2, "--data", tmp_path / "rows.jsonl", "--media_root", tmp_path, "--judge", judge)
    assert "best of 2 closes" in capsys.readouterr().out


def test_questions_without_a_score_are_in_no_share() -> None:
    questions = [images.Question((f"question {n}",), lambda reply: "right" in reply) for n in range(3)]
    answers = [["right", "wrong"], ["wrong", "right"], ["wrong", "right"]]
    examples = [Example(question.content, texts) for question, texts in zip(questions, answers, strict=True)]

    def reply(request: Request) -> str:
        return "?" if "question 2" in str(request) else "<think></think><answer>7</answer>"

    shares = images.accuracies(questions, answers, rerank(examples, Judge(Pointwise(), ScriptedEngine(reply))))
    assert (shares["first"], shares["oracle"]) == (0.5, 1.0)
    silent = Judge(Pointwise(), ScriptedEngine(lambda request: "?"))
    with pytest.raises(EngineError, match=r"scored no answer at all: {'malformed': 6}"):
        images.accuracies(questions, answers, rerank(examples, silent))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": "q", "images": []}\n', "line 1: expected 'question', 'images' and 'answer'"),
        (b'{"question": "q", "images": [], "answer": "a"}\n7\n', "line 2: expected"),
        (b"\xff\n", "line 1: expected"),
        (None, "cannot be read: No such file"),
    ],
    ids=["no_answer", "no_object", "no_text", "no_file"],
)
def test_a_wrong_row_is_named_by_its_line(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        images.file_questions(tmp_path / "rows.jsonl", tmp_path, 10)


def test_images_outside_the_media_root_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "images": ["../0.png"], "answer": "a"}\n')
    (question,) = images.file_questions(tmp_path / "rows.jsonl", tmp_path, 1)
    image = question.content[0]
    assert isinstance(image, Media)
    with pytest.raises(ValueError, match="outside the allowed folders"):
        image.load()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n", "1"], "--n must be at least 2"),
        (["--questions", "0"], "found 8, 0"),
        (["--judge", '{"format": "rank"}'], "format must be one of"),
    ],
    ids=["n", "questions", "format"],
)
def test_bad_input_is_an_error_before_any_sampling(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "sample", lambda *_: pytest.fail("sampled"))
    with pytest.raises(ConfigError, match=message):
        run(monkeypatch, *words)
