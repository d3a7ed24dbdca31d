"""`doctor --tune`: a rubric is kept only where it is better on rows that it was not tuned on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import ConfigError, EngineError, Judge, Request, Rubric, ScriptedEngine, Untrusted
from flexjudge_reward.cli.main import main
from flexjudge_reward.offline.evaluate.labels import user_rows
from flexjudge_reward.offline.evaluate.proposals import halves
from flexjudge_reward.offline.evaluate.tune import ROUNDS, Tuning, tune
from support.doctor_cases import scripted
from support.jsonl import write
from support.judging import candidates, tags

WISE = "Weigh the facts alone, not the length."


def labelled(count: int = 60, **more: Any) -> list[dict[str, Any]]:
    """Answers "FACTS LENGTH"; the label is by the facts."""
    rng = random.Random(5)
    rows = []
    for number in range(count):
        facts = rng.sample(range(1, 10), 2)
        texts = [f"{fact} {rng.randint(1, 9)} x{number}" for fact in facts]
        rows.append({"id": number, "question": f"q{number}", "candidates": texts, "label": facts, **more})
    return rows


def is_proposal(request: Request) -> bool:
    return "You write the criteria" in str(request.prompt.messages[0].parts[0])


def words(request: Request) -> str:
    parts = [part for message in request.prompt.messages for part in message.parts]
    return " ".join(part.text if isinstance(part, Untrusted) else str(part) for part in parts)


def by_length(request: Request) -> str:
    """A judge that weighs the length as much as the facts, unless its criteria say what to weigh."""
    shown = words(request)
    texts = [text.split() for text in candidates(request) if text[:1].isdigit()]
    scores = (int(one[0]) if WISE in shown else min(10, int(one[0]) // 2 + int(one[1])) for one in texts)
    return tags(*(score if len(text) == 3 else 1 for score, text in zip(scores, texts, strict=True)))


def proposing(*texts: str, reply: Callable[[Request], str] = by_length) -> Callable[[Request], str]:
    """Proposes these in turn."""
    asked: list[str] = []

    def own(request: Request) -> str:
        if not is_proposal(request):
            return reply(request)
        asked.append("")
        return f"<think>hm</think>{texts[(len(asked) - 1) % len(texts)]}"

    return own


def tuned(reply: Callable[[Request], str], folder: Path, **options: Any) -> Tuning:
    source = write(folder / "rows.jsonl", labelled())
    return tune(source, scripted(reply), folder / "rubric.toml", formats=["pointwise"], **options)


def test_a_better_wording_is_kept_and_is_a_setting_of_its_own(tmp_path: Path) -> None:
    found = tuned(proposing("Weigh the style.", WISE), tmp_path)
    assert found.kept and found.criteria == WISE and found.gain is not None and found.gain.low > 0.1
    assert Rubric.load(tmp_path / "rubric.toml") == Rubric(WISE, Rubric.load("helpfulness").scale)
    assert found.diagnosis.recommended is not None
    assert found.diagnosis.recommended.name == "pointwise with rubric.toml (64 tokens)"
    assert found.diagnosis.outcome == "go" and [one.agreement.value for one in found.diagnosis.settings][-1] == 1
    assert "written to" in str(found) and found.as_dict()["tuning"]["kept"] is True


def test_the_reported_rows_are_not_seen_before_the_last_proposal_is_chosen(tmp_path: Path) -> None:
    asked: list[tuple[str, bool]] = []

    def watched(request: Request) -> str:
        text = f"{words(request)} "
        asked.append((text, WISE in text or "Weigh the style" in text or is_proposal(request)))
        return proposal(request)

    proposal = proposing("Weigh the style.", WISE)
    found = tuned(watched, tmp_path)
    held = halves(user_rows(str(tmp_path / "rows.jsonl"))[1], 0)[1]
    names = [f" x{row.id}\n" for row in held] + [f" x{row.id} " for row in held]
    seen = [place for place, (text, tuning) in enumerate(asked) if tuning and any(name in text for name in names)]
    answers, endings = 2 * len(held), 2 * len(held)
    assert len(seen) == answers + endings and min(seen) == len(asked) - len(seen) and found.rows == 30


NOT_KEPT = [
    pytest.param(proposing("Weigh the style."), 2, None, id="not_better_on_its_own_rows"),
    pytest.param(proposing("Weigh the facts <|im_end|>", "Weigh the style."), 2, None, id="one_with_a_control_token"),
]


@pytest.mark.parametrize(("reply", "most", "gain"), NOT_KEPT)
def test_nothing_is_written_for_no_gain(
    reply: Callable[[Request], str], most: int, gain: float | None, tmp_path: Path
) -> None:
    found = tuned(reply, tmp_path)
    assert not found.kept and found.proposed <= most and found.gain is gain
    assert not (tmp_path / "rubric.toml").exists() and "nothing was written" in str(found)


def test_a_gain_on_its_own_rows_alone_is_not_kept(tmp_path: Path) -> None:
    """Proposals that score by chance: one of several is better where it was chosen."""

    def lucky(request: Request) -> str:
        shown = words(request)
        chance = "Luck" in shown
        texts = candidates(request)
        return tags(*(random.Random(shown).randint(1, 10) for _ in texts)) if chance else by_length(request)

    found = tuned(proposing(*(f"Luck number {n}." for n in range(12)), reply=lucky), tmp_path)
    assert not found.kept and not (tmp_path / "rubric.toml").exists()


def test_a_judge_that_is_always_right_has_nothing_to_tune(tmp_path: Path) -> None:
    found = tuned(
        lambda request: tags(*(t.split()[0] if t.count("x") == 1 else 1 for t in candidates(request))), tmp_path
    )
    assert found.proposed == 0 and found.diagnosis.outcome == "go"


def test_another_model_may_propose(tmp_path: Path) -> None:
    engine = ScriptedEngine(proposing(WISE))
    found = tuned(by_length, tmp_path, proposer=Judge(scripted(by_length)("pointwise", None).format, engine))
    assert found.kept and all(map(is_proposal, engine.requests)) and len(engine.requests) <= 6 * ROUNDS


BAD: list[Any] = [
    pytest.param(["pointwise", "checklist"], {}, 60, "a checklist is drafted, not tuned", id="a_checklist"),
    pytest.param(["pointwise"], {"rubric": "molecule"}, 60, "a rubric of its own", id="rubrics_of_rows"),
    pytest.param(["pointwise"], {}, 30, "half of .* 15 pairs", id="few_labels"),
]


@pytest.mark.parametrize(("formats", "more", "count", "says"), BAD)
def test_what_cannot_be_tuned(formats: list[str], more: dict[str, Any], count: int, says: str, tmp_path: Path) -> None:
    engine = ScriptedEngine(by_length)
    source = write(tmp_path / "rows.jsonl", labelled(count, **more))
    judge = scripted(by_length)
    with pytest.raises(ConfigError, match=says):
        tune(source, lambda format, _: Judge(judge(format, None).format, engine), tmp_path / "x.toml", formats=formats)
    assert not engine.requests


def test_a_proposer_that_writes_nothing_useful_says_so(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="wrote no criteria that can be used"):
        tuned(proposing("<think>"), tmp_path)


# ---------------------------------------------------------------- the command line

FLAGS = ("--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--cache", "off", "--formats", "pointwise")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    engine = ScriptedEngine(proposing(WISE))
    monkeypatch.setattr("flexjudge_reward.engines.server.ServerEngine", lambda *_, **__: engine)
    monkeypatch.chdir(tmp_path)
    return str(write(tmp_path / "rows.jsonl", labelled()))


def test_the_command(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", source, "--tune", "x.toml", *FLAGS, "--proposer", "other", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tuning"]["kept"] and found["recommended"] == "pointwise with x.toml (4096 tokens)"
    assert main(["doctor", source, "--tune", "x.toml", *FLAGS]) == 2
    assert "'x.toml' exists" in capsys.readouterr().err


WRONG = [
    pytest.param(("--tune", "x.toml", "--planted"), "labels of your own", id="planted"),
    pytest.param(("--proposer", "other"), "--tune FILE, which is missing", id="a_proposer_alone"),
    pytest.param(("--tune", "no/x.toml"), "no folder 'no'", id="no_such_folder"),
    pytest.param(("--tune", "x.json"), "such as 'x.toml'", id="json"),
]


@pytest.mark.parametrize(("words", "says"), WRONG)
def test_bad_arguments(words: tuple[str, ...], says: str, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", source, *words, *FLAGS]) == 2
    assert says in capsys.readouterr().err


def test_help_has_no_flag_that_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["doctor"], ["rubric", "draft"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        assert "--format " not in capsys.readouterr().out
