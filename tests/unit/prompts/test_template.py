"""Prompt sets as files: what a template may hold, and which errors a wrong one gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexjudge_reward import ConfigError, Example, Pairwise, PairwiseVerdict, Pointwise, Rubric, Untrusted
from flexjudge_reward.formats.builtin import FORMATS
from flexjudge_reward.prompts.template import (
    _FOLDER,
    KEYS,
    Template,
    copy_prompt_set,
    fill,
    own_prompt_set,
    prompt_sets,
)

TEXTS = {
    "system": "Score it from {low} to {high}. {criteria}",
    "question": "Q {question}",
    "reference": "R {reference}",
    "candidate": "{number}{letter} {candidate}",
    "closing": "{count} {letters}",
}


def toml(**changes: str | None) -> str:
    entries = {**TEXTS, **changes}
    return "\n".join(f"{key} = {text!r}" for key, text in entries.items() if text is not None)


def test_a_prompt_set_is_a_folder_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "pairwise.toml").write_text(toml(), "utf-8")
    of_folder, of_file = Pairwise(prompt_set=tmp_path), Pointwise(prompt_set=tmp_path / "pairwise.toml")
    assert of_folder.template == of_file.template == Template(**TEXTS)
    (prompt,) = of_folder.render(Example("q", ["x", "y"], "r"))
    assert prompt.messages[0].parts == (f"Score it from 1 to 10. {Rubric.load('helpfulness').criteria}",)
    first, question, *_, last = prompt.messages[1].parts  # texts that meet are one
    assert first == "Q ```\n" and question == Untrusted("q")
    assert isinstance(last, str) and last.startswith("\n```") and last.endswith("2 A, B")


def test_built_in_prompt_sets_are_listed_and_differ() -> None:
    assert prompt_sets() == ("flex", "nano")
    assert set(KEYS) == {*TEXTS, "media"}  # which is optional
    templates = {Template.load("flex", name) for name in FORMATS}
    templates |= {Template.load("nano", name) for name in FORMATS if name not in ("pairwise_verdict", "checklist")}
    assert len(templates) == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("system = ", "not valid TOML", id="no_toml"),
        pytest.param(toml(closing=None), "'closing' is missing", id="missing"),
        pytest.param(toml(closing=None) + "\nclosing = 3", "'closing' is missing or not a text", id="not_a_text"),
        pytest.param(toml(extra="x"), "unknown entry 'extra'", id="unknown"),
        pytest.param(toml(system="{question}"), r"'system' has the placeholder \{question\}", id="wrong_place"),
        pytest.param(toml(candidate="x"), r"'candidate' needs the placeholder \{candidate\}", id="no_place_for_it"),
    ],
)
def test_a_wrong_template_is_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pointwise.toml").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=message):
        Pointwise(prompt_set=tmp_path)


def test_a_missing_template_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pointwise\.toml, a file or one of flex, nano"):
        Pointwise(prompt_set=tmp_path)
    with pytest.raises(ConfigError, match="'nano' has no text for the format 'pairwise_verdict'"):
        PairwiseVerdict(prompt_set="nano")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param("other", {"pairwise.toml"}, id="another_folder"),
        pytest.param("judge/prompts", "flex", id="its_own"),
        pytest.param(".", {"pairwise.toml"}, id="the_folder_above"),
        pytest.param("nano", "nano", id="built_in"),
    ],
)
def test_the_texts_of_a_judge_are_replaced_whole(
    given: str, expected: set[str] | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    judge = Path("judge")
    copy_prompt_set("flex", judge)
    for folder in (Path("other"), Path()):
        (folder / "deeper").mkdir(parents=True)
        (folder / "notes.txt").write_text("no text of a format")
        (folder / "pairwise.toml").write_text(toml())
    copy_prompt_set(given, judge)
    names = {path.name for path in (judge / "prompts").iterdir()}
    whole = {path.name for path in (_FOLDER / str(expected)).glob("*.toml")}
    assert names == (whole if isinstance(expected, str) else expected)
    assert own_prompt_set("judge") == judge / "prompts"


def test_what_fills_a_placeholder_is_not_filled_again() -> None:
    assert fill("a{x}b", {"x": "{x}"}) == ("a{x}b",)
    assert fill("{x}{x}", {"x": ("1", Untrusted("2"))}) == ("1", Untrusted("2"), "1", Untrusted("2"))
    assert fill("", {}) == ()
