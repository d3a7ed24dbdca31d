"""A modality of one's own in one file: `register` makes it known everywhere, and it needs no engine of its own."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from flexjudge_reward import (
    ConfigError,
    FlexJudgeReward,
    Judge,
    Loaded,
    Media,
    MediaError,
    Message,
    Modality,
    Pairwise,
    Pointwise,
    Prompt,
    ScriptedEngine,
    annotate_file,
    register,
    score_file,
)
from flexjudge_reward.media.base import KINDS
from flexjudge_reward.prompts.quoting import flatten


class Waveform(Modality):
    """Numbers, shown as a text, and if wanted as an image per channel or a video of the whole."""

    name, options = "waveform", {"images": 0, "rate": 0.0, "unit": "mV"}

    def load(self, source: object, options: Mapping[str, Any], roots: Any, limits: Any) -> Loaded:
        if not isinstance(source, list) or not source:
            raise MediaError(f"a waveform is a list of numbers, found {type(source).__name__}")
        frame = PIL.Image.fromarray(np.full((8, 8, 3), int(max(source)), np.uint8))
        text = f"peak {max(source)} {options['unit']}"
        return Loaded((frame,) * options["images"], options["rate"], text)


@pytest.fixture(autouse=True)
def waveform() -> Iterator[None]:
    register(Waveform())
    yield
    del KINDS["waveform"]


def shown(media: Media) -> list[Any]:
    """What a judge is shown: texts, and the kind and rate of images and videos."""
    return [part if isinstance(part, str) else (part.kind, part.fps) for part in media.as_judge_input()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({}, ["peak 9 mV"], id="text"),
        pytest.param({"unit": "dB"}, ["peak 9 dB"], id="option"),
        pytest.param({"images": 2}, [("image", 0.0), ("image", 0.0), "peak 9 mV"], id="images_then_text"),
        pytest.param({"images": 3, "rate": 2.0}, [("video", 2.0), "peak 9 mV"], id="frames_and_a_rate_are_a_video"),
    ],
)
def test_it_is_shown_as_its_frames_and_then_its_text(options: dict[str, Any], expected: list[Any]) -> None:
    media = Media.of("waveform", [3, 9], **options)
    assert shown(media) == expected
    flat = flatten(Message("user", ("See ", media)))
    assert flat[0] == "See " + expected[0] if len(expected) == 1 else flat[0] == "See "
    assert len(Prompt((Message("user", (media,)),)).shown) == sum(not isinstance(e, str) for e in expected)


def test_it_is_a_value_of_its_content_and_options() -> None:
    media = Media.of("waveform", [3, 9])
    assert Media.of("waveform", [9], rate=2) == Media.of("waveform", [9], rate=2.0)
    assert media == Media.of("waveform", [9, 1]) and media != Media.of("waveform", [9], images=1)
    assert len({media.digest, Media.of("waveform", [9], unit="dB").digest, Media.image(np.zeros((4, 4))).digest}) == 3
    with pytest.raises(ConfigError, match="waveform has no option 'drawn'; its options are: images, rate, unit"):
        Media.of("waveform", [3], drawn=True)


def peak(request: Any) -> str:
    """A judge that gives each candidate the peak it is shown."""
    text = "".join(map(str, flatten(request.prompt.messages[1])))
    peaks = [part.split()[0] for part in text.split("peak ")[1:]]
    return "<think></think>" + "".join(f"<answer>{number}</answer>" for number in peaks)


def test_rows_of_files_have_it_with_its_options_and_a_bad_one_fails_its_row_alone(tmp_path: Path) -> None:
    answers = [
        {"waveform": [3, 9]},
        [{"type": "waveform", "waveform": [4], "unit": "dB", "rate": None}],
        {"waveform": 7},
    ]
    rows = [{"id": n, "question": "Which peak?", "answer": answer} for n, answer in enumerate(answers)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    engine = ScriptedEngine(peak)
    score_file(tmp_path / "in.jsonl", Judge(Pointwise(), engine), tmp_path / "out.jsonl")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["scores"] for row in found] == [[9], [4], [None]]
    assert found[2]["failures"][0]["kind"] == "media" and "found int" in found[2]["failures"][0]["detail"]
    assert engine.prompts[1].media == (Media.of("waveform", [4], unit="dB"),)


def test_pairs_of_it_are_texts_of_its_source(tmp_path: Path) -> None:
    row = {"id": 1, "question": "Which peak?", "candidates": [{"waveform": [3, 2]}, [{"waveform": [9]}]]}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    annotate_file(tmp_path / "in.jsonl", Judge(Pairwise(), ScriptedEngine(peak)), tmp_path / "pairs.jsonl")
    pair = json.loads((tmp_path / "pairs.jsonl").read_text())
    assert [pair[side][0]["content"] for side in ("chosen", "rejected")] == ["[9]", "[3, 2]"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        pytest.param({"waveform": [3], "images": True}, "'images' of a waveform is a int, found True", id="whole"),
        pytest.param({"waveform": [3], "rate": "2"}, "'rate' of a waveform is a float, found '2'", id="number"),
        pytest.param({"waveform": [3], "unit": 2}, "'unit' of a waveform is a str, found 2", id="text"),
    ],
)
def test_an_option_of_the_wrong_type_is_an_error_in_files_and_trainers(
    tmp_path: Path, part: dict[str, Any], message: str
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"question": "q", "answer": part}) + "\n")
    judge = Judge(Pointwise(), ScriptedEngine(peak))
    with pytest.raises(ConfigError, match=f"line 1: {message}"):
        score_file(tmp_path / "in.jsonl", judge, tmp_path / "out.jsonl")
    with pytest.raises(ConfigError, match=f"row 0: {message}"):
        FlexJudgeReward(judge)(["q"], [[{"role": "assistant", "content": [{"type": "waveform", **part}]}]])


def test_messages_of_trainers_have_it_with_its_options() -> None:
    engine = ScriptedEngine(peak)
    said = [{"type": "waveform", "waveform": [10], "rate": 2, "images": 1}]
    reward = FlexJudgeReward(Judge(Pointwise(), engine))
    assert reward(["q"], [[{"role": "assistant", "content": said}]]) == [1.0]
    assert engine.prompts[0].media == (Media.of("waveform", [10], rate=2.0, images=1),)


# ---------------------------------------------------------------- names


def named(name: str, **options: Any) -> Modality:
    return type("Other", (Waveform,), {"name": name, "options": options})()


@pytest.mark.parametrize(
    ("modality", "message"),
    [
        pytest.param(named("image"), "the name 'image' of a modality has another meaning", id="a_built_in_one"),
        pytest.param(named("waveform"), "the name 'waveform' of a modality has another meaning", id="one_of_your_own"),
        *(
            pytest.param(named(key), f"the name '{key}' of a modality has another meaning", id=key)
            for key in ("text", "type", "path", "url", "role", "content")
        ),
        pytest.param(named("table", text=""), "the option 'text' of table has another meaning", id="option_text"),
        pytest.param(named("table", image=True), "the option 'image' of table has another", id="option_of_a_kind"),
        pytest.param(named("table", roots=()), "the option 'roots' of table has another", id="option_of_Media"),
        pytest.param(Waveform, "takes an instance of a Modality, found <class", id="the_class"),
    ],
)
def test_a_name_that_has_another_meaning_is_refused(modality: Any, message: str) -> None:
    known = dict(KINDS)
    with pytest.raises(ConfigError, match=message):
        register(modality)
    assert known == KINDS


def test_a_class_that_is_defined_twice_replaces_the_first() -> None:
    again = type("Waveform", (Waveform,), {"options": {**Waveform.options, "unit": "dB"}, "__module__": __name__})
    register(again())
    assert shown(Media.of("waveform", [9])) == ["peak 9 dB"]


# ---------------------------------------------------------------- pickles

ARRIVED = """
import pickle, sys
media, bad = pickle.load(sys.stdin.buffer)
again = pickle.loads(pickle.dumps(media))
assert media == again and media.digest == again.digest
try:
    bad.load()
except ValueError as error:
    print(error)
print(media, [getattr(part, "kind", part) for part in media.as_judge_input()], media.digest)
"""


def test_it_pickles_without_its_source_for_a_process_that_does_not_know_it() -> None:
    class Secret(list):  # type: ignore[type-arg]
        def __reduce__(self) -> Any:
            raise TypeError("it cannot be pickled")

    media, bad = Media.of("waveform", Secret([9]), images=2, rate=4.0), Media.of("waveform", Secret())
    shipped = pickle.dumps((media, bad))
    assert pickle.loads(shipped)[0] == media
    child = subprocess.run([sys.executable, "-c", ARRIVED], input=shipped, capture_output=True, check=True)
    assert child.stdout.decode().splitlines() == [
        "waveform (0 frames): a waveform is a list of numbers, found Secret",
        f"<Media waveform (1 frames)> ['video', 'peak 9 mV'] {media.digest}",
    ]
