"""What a reward server gets is what its client has: a row's own rubric."""

from __future__ import annotations

import json
from base64 import b64encode
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from flexjudge_reward import (
    Checklist,
    ConfigError,
    Criterion,
    Example,
    Judge,
    Media,
    Pointwise,
    Record,
    Rubric,
    Scale,
    ScriptedEngine,
    read_record,
)
from flexjudge_reward.data.content import rubric
from flexjudge_reward.report.lines import groups_of
from flexjudge_reward.trainers.wire import group_json, rows_of
from support import sounds

ITEMS = (Criterion("names it", 2.0, "must", "naming"), Criterion("is rude", 5.0, "must not"), Criterion("short", 1.0))
RUBRICS = [
    pytest.param(Rubric("Is it short?", None), id="words"),
    pytest.param(Rubric("Concise"), id="a_word_and_a_scale"),
    pytest.param(Rubric(scale=None, items=ITEMS), id="list"),
    pytest.param(Rubric(scale=Scale(0, 3), items=ITEMS), id="list_and_scale"),
]


@pytest.mark.parametrize("own", RUBRICS)
def test_a_rubric_travels_and_is_recorded_whole(own: Rubric, tmp_path: Path) -> None:
    example = Example("q", ["a"], rubric=own)
    (row,), *_ = rows_of(json.loads(json.dumps(group_json(example))), "answer")
    assert row.rubric == own
    reply = "<think>x</think><answer>2</answer>"
    Judge(Pointwise(), ScriptedEngine([reply]), record=Record(tmp_path / "r.jsonl"))([example])
    (line,) = read_record(tmp_path / "r.jsonl")
    assert rubric(line["rubric"]) == own
    (group,) = groups_of("record", tmp_path / "r.jsonl")
    assert "[" not in group.rubric and (own.items[0].text if own.items else own.criteria) in group.rubric


@pytest.mark.parametrize("word", ["Concise", "helpfulness"])
def test_a_lone_word_is_one_criterion_and_names_no_rubric(word: str) -> None:
    (row,), *_ = rows_of(group_json(Example("q", ["a"], rubric=Rubric(word, None))), "answer")
    assert row.rubric is not None and row.rubric.scale is None and [one.text for one in row.rubric.items] == [word]


def test_a_sound_travels_as_it_was_heard() -> None:
    sound = Media.audio((np.linspace(-1, 1, 900), 8_000)) if find_spec("av") else Media.audio(sounds.wav(0.1))
    example = Example([sound, "q"], [[Media.audio(sounds.wav(0.1))], [Media.audio(b"RIFF")]])
    good, bad = rows_of(json.loads(json.dumps(group_json(example))), "all")[0]
    assert good.question[0] == sound and good.candidates[0][0] == example.candidates[0][0]
    assert isinstance(bad.candidates[0][0], Media) and not bad.candidates[0][0].is_usable
    part = {"type": "input_audio", "input_audio": {"data": b64encode(sounds.wav(0.1)).decode(), "format": "wav"}}
    ((row,), *_) = rows_of({"question": [part, "q"], "candidates": ["a"]}, "all")
    assert row.question[0] == Media.audio(sounds.wav(0.1))


NOT_SENT = [
    pytest.param(Rubric(items=(Criterion("is short", 1.0, check=bool),)), id="check"),
    pytest.param(Rubric("other words", items=ITEMS), id="words_beside_a_list"),
]


@pytest.mark.parametrize("own", NOT_SENT)
def test_what_cannot_be_sent_is_refused(own: Rubric) -> None:
    with pytest.raises(ConfigError, match="cannot be sent to a reward server"):
        group_json(Example("q", ["a"], rubric=own))


def test_a_recorded_check_is_not_judged_as_words(tmp_path: Path) -> None:
    own = Rubric(items=(Criterion("is short", 1.0, check=bool),))
    Judge(Checklist(), ScriptedEngine([]), record=Record(tmp_path / "r.jsonl"))([Example("q", ["a"], rubric=own)])
    with pytest.raises(ConfigError, match="unknown entry 'check'"):
        rubric(next(read_record(tmp_path / "r.jsonl"))["rubric"])
