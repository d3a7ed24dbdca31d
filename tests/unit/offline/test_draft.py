"""`rubric draft`: what is kept, what is reported, the file, and what stops it before a model loads."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import (
    CachedEngine,
    Checklist,
    EngineError,
    Judge,
    Request,
    Rubric,
    ScriptedEngine,
    Untrusted,
)
from flexjudge_reward.cli.main import main
from flexjudge_reward.offline.evaluate.draft import Met, chosen, draft
from flexjudge_reward.offline.evaluate.labels import user_rows
from flexjudge_reward.offline.evaluate.proposals import halves, plain, preferences
from support.jsonl import write
from support.judging import candidates, tags

PROPOSED = """Here is the checklist:
- names a colour.
- Names a colour
* is long
1. says that it is sure
2) is true <|im_end|> of it
- short
- invents something"""
TRUE = {"names a colour": "red", "is long": "word word", "says that it is sure": "sure", "invents something": "ghost"}


def labelled(count: int = 60, **more: Any) -> list[dict[str, Any]]:
    """The better answer names a colour, the worse one often invents something; being sure says nothing."""
    rng = random.Random(3)
    rows = []
    for number in range(count):
        better = ["red", *["sure"] * rng.randint(0, 1), *["word word"] * rng.randint(0, 1)]
        worse = [*["ghost"] * (rng.random() < 0.7), *["sure"] * rng.randint(0, 1), *["word word"] * rng.randint(0, 1)]
        texts = [f"{' '.join(words)} {number}" for words in (better, worse)]
        right = rng.randint(0, 1)
        row = {"id": number, "question": f"q{number}", "candidates": texts[::-1] if right else texts, **more}
        rows.append({**row, "label": "AB"[right]})
    return rows


def is_proposal(request: Request) -> bool:
    return "You write the checklist" in str(request.prompt.messages[0].parts[0])


def reply(request: Request) -> str:
    """Proposes, or says which statements are true of the answer."""
    if is_proposal(request):
        return f"<think>- a thought</think>\n{PROPOSED}"
    answer, listed = candidates(request)
    said = [TRUE[line.partition(". ")[2].lower()] in answer for line in listed.splitlines()]
    return tags(*("yes" if one else "no" for one in said))


def judge(engine: Any = None) -> Judge:
    return Judge(Checklist(), engine or ScriptedEngine(reply))


def test_what_reproduces_the_labels_is_kept_and_the_rest_of_the_rows_says_what_it_is_worth(tmp_path: Path) -> None:
    source, output = write(tmp_path / "rows.jsonl", labelled()), tmp_path / "rubric.toml"
    own = ScriptedEngine(reply)
    found = draft(source, judge(own), output, task="name the colour")
    assert found.proposed == 4 and [one.criterion.text for one in found.kept] == ["names a colour", "invents something"]
    assert [one.criterion.need for one in found.kept] == ["should", "must not"] and found.kept[0].criterion.weight == 10
    assert found.agreement is not None and found.agreement.value == 1 and found.agreement.rows == 30 and found.useful
    assert Rubric.load(output).items == tuple(one.criterion for one in found.kept)
    assert "[[criteria]]\n# true of 100% of the better and 0% of the worse answers\n" in output.read_text()
    asked = [request for request in own.requests if is_proposal(request)]
    parts = [part for request in asked for part in request.prompt.messages[1].parts]
    seen = {part.text for part in parts if isinstance(part, Untrusted)}
    held = halves(preferences(user_rows(source)[1]), 0)[1]
    assert len(asked) == 8 and not seen & {row.example.question[0] for row in held}
    assert all("name the colour" in str(request.prompt.messages[1].parts[-1]) for request in asked)


def test_a_cut_off_run_continues_from_the_cache(tmp_path: Path) -> None:
    source, counted = write(tmp_path / "rows.jsonl", labelled()), []

    def dies(request: Request) -> str:
        counted.append(request)
        if len(counted) > 200:
            raise EngineError("the machine is gone")
        return reply(request)

    engine = ScriptedEngine(dies)
    engine.identity = lambda: {"engine": "scripted", "name": "one"}  # type: ignore[method-assign]
    with pytest.raises(EngineError):
        draft(source, judge(CachedEngine(engine, tmp_path / "c.sqlite")), tmp_path / "rubric.toml")
    again = ScriptedEngine(reply)
    again.identity = engine.identity  # type: ignore[method-assign]
    found = draft(source, judge(CachedEngine(again, tmp_path / "c.sqlite")), tmp_path / "rubric.toml")
    assert found.useful and not any(map(is_proposal, again.requests)) and len(again.requests) < 8 + 4 * 60 + 60


WRITES = [
    pytest.param("no list at all", EngineError, "wrote no statement", id="no_statement"),
    pytest.param("- invents something", EngineError, "only faults", id="only_faults"),
]


@pytest.mark.parametrize(("said", "error", "says"), WRITES)
def test_nothing_is_written_without_something_to_meet(
    said: str, error: type[Exception], says: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "rows.jsonl", labelled())
    own = ScriptedEngine(lambda request: said if is_proposal(request) else reply(request))
    with pytest.raises(error, match=says):
        draft(source, judge(own), tmp_path / "rubric.toml")
    assert not (tmp_path / "rubric.toml").exists()


def test_statements_that_say_nothing_of_the_label_are_not_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", labelled())
    own = ScriptedEngine(lambda request: "- is long" if is_proposal(request) else reply(request))
    found = draft(source, judge(own), tmp_path / "rubric.toml")
    assert not found.kept and not found.useful and "nothing was written" in str(found)
    assert not (tmp_path / "rubric.toml").exists() and found.as_dict()["output"] is None


def test_a_limit_draws_rows_at_random(tmp_path: Path) -> None:
    source, seen = write(tmp_path / "rows.jsonl", labelled(120)), []
    for seed in (1, 2):
        own = ScriptedEngine(reply)
        draft(source, judge(own), tmp_path / f"{seed}.toml", seed=seed, limit=45)
        parts = [part for request in own.requests for part in request.prompt.messages[1].parts]
        seen.append({part.text for part in parts if isinstance(part, Untrusted) and part.text[0] == "q"})
    assert seen[0] != seen[1] and not seen[0] <= {f"q{number}" for number in range(46)}


def test_another_model_may_propose(tmp_path: Path) -> None:
    source, proposer = write(tmp_path / "rows.jsonl", labelled()), judge()
    own = judge()
    draft(source, own, tmp_path / "rubric.toml", proposer=proposer)
    assert all(map(is_proposal, proposer.engine.requests)) and not any(map(is_proposal, own.engine.requests))  # type: ignore[attr-defined]


YES, NO, EITHER = (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)
KEPT: list[Any] = [
    pytest.param({"a": [YES] * 20}, ["should a"], id="better_ones_meet_it"),
    pytest.param({"a": [NO] * 20}, ["must not a"], id="worse_ones_meet_it"),
    pytest.param({"a": [EITHER] * 20}, [], id="all_meet_it"),
    pytest.param({"a": [YES, NO] * 10}, [], id="as_often_one_as_the_other"),
    pytest.param({"a": [YES] * 3 + [EITHER] * 17}, [], id="too_few_to_tell"),
    pytest.param({"a": [YES] * 20, "b": [YES] * 20}, ["should a"], id="two_that_are_one"),
    pytest.param({"a": [YES] * 20, "b": [NO] * 20}, ["should a"], id="one_and_its_opposite"),
    pytest.param({"a": [None] * 5 + [YES] * 15}, [], id="a_quarter_without_an_answer"),
    pytest.param({"a": [EITHER] * 8 + [YES] * 12, "b": [YES] * 20}, ["should b", "should a"], id="the_clearest_first"),
]


@pytest.mark.parametrize(("answers", "expected"), KEPT)
def test_what_is_kept(answers: dict[str, list[Met]], expected: list[str], tmp_path: Path) -> None:
    rows = preferences(user_rows(write(tmp_path / "rows.jsonl", labelled(20)))[1])
    kept = chosen(list(answers), rows, list(answers.values()), 8, 0)
    assert [f"{one.criterion.need} {one.criterion.text}" for one in kept] == expected


PLAIN = [
    pytest.param('  - "names  a\tcolour" ', "names a colour", id="marks_and_blanks"),
    pytest.param("is short", "is short", id="short"),
    pytest.param("so", "", id="too_short"),
    pytest.param("x" * 201, "", id="too_long"),
    pytest.param("is true <|im_end|>", "", id="a_control_token"),
    pytest.param("says [INST] first", "", id="an_instruction_token"),
    pytest.param("says </think> early", "", id="a_tag"),
    pytest.param("has {criteria} in it", "", id="a_placeholder"),
    pytest.param("hides \u202e in it", "", id="not_printable"),
]


@pytest.mark.parametrize(("text", "expected"), PLAIN)
def test_a_proposal_is_plain_words_or_nothing(text: str, expected: str) -> None:
    assert plain(text, 200) == expected


@pytest.mark.parametrize("reference", [False, True], ids=["alone", "each_with_a_reference"])
def test_equal_questions_are_in_one_half(reference: bool, tmp_path: Path) -> None:
    rows = [{**row, "question": f"q{number % 10}"} for number, row in enumerate(labelled(40))]
    rows = [{**row, "reference": f"r{row['id']}"} if reference else row for row in rows]
    one, other = halves(preferences(user_rows(write(tmp_path / "rows.jsonl", rows))[1]), 0)
    assert len(one) == len(other) == 20
    assert not {row.example.question for row in one} & {row.example.question for row in other}


# ---------------------------------------------------------------- the command line

FLAGS = ("--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--cache", "off")
BAD: list[Any] = [
    pytest.param([], {}, "name the labelled file and the rubric", id="no_file"),
    pytest.param(["rows.jsonl"], {}, "name the labelled file and the rubric", id="no_output"),
    pytest.param(["none.jsonl", "-o", "x.toml"], {}, "no file or folder", id="no_such_file"),
    pytest.param(["rows.jsonl", "-o", "rows.jsonl"], {}, "'rows.jsonl' exists", id="an_output_that_exists"),
    pytest.param(["rows.jsonl", "-o", "x.json"], {}, "such as 'x.toml'", id="json"),
    pytest.param(["rows.jsonl", "-o", "no/x.toml"], {}, "no folder 'no'", id="no_such_folder"),
    pytest.param(["rows.jsonl", "-o", "x.toml", "--format", "pairwise"], {}, "leave out --format", id="a_format"),
    pytest.param(["rows.jsonl", "-o", "x.toml", "--rubric", "molecule"], {}, "leave out --rubric", id="a_rubric"),
    pytest.param(["rows.jsonl", "-o", "x.toml", "--most", "0"], {}, "at least 1 criterion", id="no_criteria"),
    pytest.param(["rows.jsonl", "-o", "x.toml", "--proposer", ""], {}, "'model' must be a text", id="no_proposer"),
    pytest.param(["rows.jsonl", "-o", "x.toml", "--limit", "30"], {}, "at least 40", id="few_rows"),
    pytest.param(["rows.jsonl", "-o", "x.toml"], {"rubric": "molecule"}, "a rubric of its own", id="rubrics_of_rows"),
]


@pytest.mark.parametrize(("words", "more", "says"), BAD)
def test_bad_arguments(
    words: list[str],
    more: dict[str, Any],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", labelled(**more))
    assert main(["rubric", "draft", *words, *FLAGS]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.glob("*.toml*"))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("flexjudge_reward.engines.server.ServerEngine", lambda *_, **__: ScriptedEngine(reply))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", labelled())
    assert main(["rubric", "draft", "rows.jsonl", "-o", "x.toml", *FLAGS, "--proposer", "http://127.0.0.1:8/v1"]) == 0
    out = capsys.readouterr().out
    assert "should: names a colour (true of 100% of the better and 0% of the worse" in out and "use it with" in out
    assert main(["rubric", "draft", "rows.jsonl", "-o", "y.toml", *FLAGS, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["useful"] is True
