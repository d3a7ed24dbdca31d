"""The recipes of sounds, run short: a generator that was hardly trained, and in the judge's place one that knows."""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flexjudge_recipes
from flexjudge_recipes.nano import images

import pytest

from flexjudge_reward import (
    ConfigError,
    Example,
    FlexJudgeReward,
    Generation,
    Judge,
    JudgeConfig,
    Media,
    Pointwise,
    Prompt,
    Ranking,
    Rubric,
    ScriptedEngine,
)
from support.late import late, needs

needs("trl")
np = late("numpy")
common = late("flexjudge_recipes.common")
sound_generator = late("flexjudge_recipes.nano.sound_generator")
best_of_n = late("flexjudge_recipes.sounds.best_of_n")
codecs = late("flexjudge_recipes.sounds.codecs")
train = late("flexjudge_recipes.sounds.train")
trl = late("trl")

FOLDER = Path(flexjudge_recipes.__file__).parent / "sounds"
RIGHT = "p13 t0 p- t0 p9 t1 p2 t2"  # a middle hum, silence, a middle rattle, a deep rustle
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def text_of(prompt: Prompt) -> str:
    """The words of a prompt."""
    parts = [part for message in prompt.messages for part in message.parts if not isinstance(part, Media)]
    return "".join(part if isinstance(part, str) else part.text for part in parts)


# ---------------------------------------------------------------------------------------------------- the generator


@pytest.mark.parametrize(
    ("request_", "text", "right"),
    [
        pytest.param("middle hum first", RIGHT, True, id="right"),
        pytest.param("high hum first", RIGHT, False, id="another_pitch"),
        pytest.param("middle rattle first", RIGHT, False, id="another_timbre"),
        pytest.param("middle hum second", RIGHT, False, id="silence"),
        pytest.param("high hum first", "p16 t0", False, id="no_recording"),
        pytest.param("high hum first", "", False, id="nothing"),
    ],
)
def test_the_truth_is_read_from_the_settings(request_: str, text: str, right: bool) -> None:
    assert sound_generator.is_right(request_, text) is right


@pytest.mark.parametrize("text", ["", "p1", "p1 t1 " * 5, "t1 p1 " * 4, "p1 t9 " * 4, "high hum first p1 t1 p1 t1 p1"])
def test_what_is_no_recording_has_no_sound(text: str) -> None:
    assert sound_generator.recording(text) is None and codecs.codec("nano").sound(text) is None


def test_a_recording_sounds_the_same_every_time() -> None:
    one, again = sound_generator.recording(RIGHT), sound_generator.recording(RIGHT)
    assert one is not None and again is not None and np.array_equal(one, again) and one.shape == (20480,)


def test_the_pretraining_has_faults_on_purpose() -> None:
    rng = random.Random(0)
    asked = sound_generator.requests(0, 2000)
    texts = [sound_generator.written(rng, request) for request in asked]
    assert all(sound_generator.settings(text) is not None for text in texts)
    share = sum(map(sound_generator.is_right, asked, texts)) / len(texts)
    assert 0.4 < share < 0.6 and len(set(asked)) == 80


def test_the_request_becomes_the_answer_to_a_question_about_the_recording() -> None:
    sound = codecs.codec("nano").sound(RIGHT)
    assert sound is not None
    (prompt,) = images.PromptAsAnswer(prompt_set="nano").render(Example("high hum first", [sound]))
    assert "What is first?" in text_of(prompt) and "\nhigh hum\n" in text_of(prompt) and prompt.media == (sound,)


def test_speech_tokens_are_read_and_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    xcodec2 = codecs.codec("xcodec2")
    assert xcodec2.sound("no speech at all") is None
    assert xcodec2.prompt("Good day.")[-1] == {"role": "assistant", "content": "<|SPEECH_GENERATION_START|>"}
    monkeypatch.setitem(sys.modules, "xcodec2", None)
    with pytest.raises(ConfigError, match="pip install xcodec2"):
        xcodec2.sound("<|s_12|><|s_65535|>")
    with pytest.raises(ConfigError, match="nano, xcodec2, found 'mp3'"):
        codecs.codec("mp3")


# ------------------------------------------------------------------------------------------------------- the recipes


@contextlib.contextmanager
def judged_by_the_truth(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedEngine]:
    """A scripted judge that knows from which text each recording was made."""
    made: dict[bytes, str] = {}
    recording = sound_generator.recording

    def remembered(text: str) -> Any:
        samples = recording(text)
        if samples is not None:
            made[samples.tobytes()] = text
        return samples

    def reply(request: Any) -> str | Generation:
        (sound,), text = request.prompt.media, text_of(request.prompt)
        place, answer = text.split("What is ")[1].split("?")[0], text.split("A\n```\n")[1].split("\n")[0]
        right = sound_generator.is_right(f"{answer} {place}", made[sound.samples()])
        return f"<think>heard</think><answer>{10 if right else 1}</answer>"

    engine = ScriptedEngine(reply)
    judge = Judge(images.PromptAsAnswer(prompt_set="nano"), engine)
    known = codecs.Codec(codecs.CODECS["nano"].prompt, remembered)
    monkeypatch.setitem(codecs.CODECS, "nano", known)
    monkeypatch.setattr(JudgeConfig, "build", lambda config: judge)
    yield engine


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    with contextlib.redirect_stdout(io.StringIO()):
        sound_generator.pretrain(folder / "generator-1", 1, steps=60)
    return folder


def words(program: str, **flags: Any) -> list[str]:
    given = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    return ["--config", str(FOLDER / f"{program}.yaml"), *given]


def test_grpo_measures_and_rewards(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"prepared": prepared, "output_dir": tmp_path / "run", "max_steps": 3, "measured": 80, "requests": 64}
    flags |= {"per_device_train_batch_size": 32, "measure_every": 3, "logging_steps": 1}
    monkeypatch.setattr(sys, "argv", ["train.py", *words("grpo", **flags)])
    with judged_by_the_truth(monkeypatch) as engine:
        train.main()
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert list(report["right"]) == ["0", "3"] and len(report["reward"]) == 3
    assert 0 < len(engine.requests) <= 3 * 32
    assert (tmp_path / "run" / "curve.png").exists()
    assert "right, by the truth" in (tmp_path / "run" / "README.md").read_text()


def test_best_of_n_finds_what_the_judge_can_hear(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with judged_by_the_truth(monkeypatch):
        best_of_n.main(words("best_of_n", prepared=prepared, output_dir=tmp_path / "run", requests=12, n=4))
    found = json.loads((tmp_path / "run" / "report.json").read_text())
    assert found["judge"] == found["oracle"] >= found["first"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "ranked.jsonl").read_text().splitlines()]
    assert len(list((tmp_path / "run" / "chosen").glob("*.wav"))) == len(rows) > 0
    with pytest.raises(ConfigError, match="holds an earlier run"):
        best_of_n.main(words("best_of_n", prepared=prepared, output_dir=tmp_path / "run"))


def test_what_is_no_sound_gets_nothing_and_no_call() -> None:
    engine = ScriptedEngine(lambda request: "<think>x</think><answer>10</answer>")
    judge = FlexJudgeReward(Judge(images.PromptAsAnswer(prompt_set="nano"), engine))
    reward = train.SoundReward(judge, codecs.codec("nano"))
    rewards = reward(["high hum first"] * 2, ["p1 t1", RIGHT], text=["high hum first"] * 2)
    assert rewards == [0.0, 1.0] and len(engine.requests) == 1
    assert reward(["x"], ["nothing"], text=["high hum first"]) == [0.0] and len(engine.requests) == 1


def test_the_lowest_score_counts_and_the_first_recording_may_be_none() -> None:
    sounds = [sound for sound in map(codecs.codec("nano").sound, (RIGHT, RIGHT)) if sound is not None]
    group = best_of_n.Group("middle hum first", "no recording", [RIGHT, RIGHT], sounds)
    rankings = [Ranking((0, 1), scores, ()) for scores in ((0.0, 0.0), (1.0, 0.5))]
    found = best_of_n.measured([group] * 2, rankings, nano=True)
    assert found == {"score_first": 0.5, "score_choice": 0.5, "first": 0.0, "judge": 1.0, "oracle": 1.0}


def test_a_request_with_one_sound_ends_nothing(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["x", RIGHT, "x", RIGHT, RIGHT, "x"]  # three recordings of two requests
    monkeypatch.setattr(best_of_n, "written", lambda *_: texts)
    flags = words("best_of_n", prepared=prepared, output_dir=tmp_path / "run", requests=2, n=3)
    with judged_by_the_truth(monkeypatch):
        best_of_n.main(flags)
        assert "1 of 2 requests have two sounds or more" in capsys.readouterr().out
        texts[3:] = ["x"] * 3
        with pytest.raises(ConfigError, match="no request has two sounds of 3 samples"):
            best_of_n.main([*flags, "--output_dir", str(tmp_path / "other")])


@pytest.mark.parametrize(
    ("rows", "flags", "why"),
    [
        pytest.param([{"said": "a"}], {}, "has no column 'text'; it has said", id="no_column"),
        pytest.param([{"text": "a"}, {"text": None}], {}, "'text' of row 1 is no text", id="no_text"),
        pytest.param([{"text": "a"}], {"dataset_train_split": "none"}, "none", id="no_split"),
        pytest.param([], {}, "cannot be read", id="empty"),
    ],
)
def test_wrong_requests_are_an_error(rows: list[Any], flags: dict[str, str], why: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = train.RecipeArguments(dataset_name=str(tmp_path), **flags)
    with pytest.raises(ConfigError, match=why):
        train.training_data(options, codecs.codec("nano"), 1)


def test_as_many_requests_as_there_are(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    options = train.RecipeArguments(dataset_name=str(tmp_path))
    for most, count in ((None, 2), (1, 1), (100, 2)):
        assert len(train.training_data(options, codecs.codec("nano"), 1, most)) == count


@pytest.mark.parametrize("flags", [{"measure_every": 0}, {"measured": 0}, {"requests": 0}], ids=str)
def test_wrong_numbers_of_the_training_are_an_error_before_a_sample(flags: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(flags))} is at least 1, found 0"):
        train.RecipeArguments(**flags)


@pytest.mark.parametrize("flags", [{"n": 1}, {"requests": 0}, {"longest": 0}], ids=str)
def test_wrong_numbers_of_best_of_n_are_an_error_before_a_sample(flags: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(flags))} is at least"):
        best_of_n.check(best_of_n.RecipeArguments(**flags))


@pytest.mark.parametrize("config", sorted(FOLDER.glob("best_of_n*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_of_best_of_n_parse(config: Path) -> None:
    options, model_args = common.parsed((best_of_n.RecipeArguments, trl.ModelConfig), ["--config", str(config)])
    best_of_n.check(options)
    assert codecs.codec(options.codec) and model_args.model_name_or_path in ("nano", "HKUSTAudio/Llasa-1B")
    JudgeConfig.resolve(options.judge)


@pytest.mark.parametrize("name", ["naturalness", "speaker-similarity"])
def test_the_rubrics_of_speech_have_one_decimal(name: str) -> None:
    scale = Rubric.load(name).scale
    assert scale is not None and (scale.low, scale.high, scale.decimals) == (1, 5, True)
    engine = ScriptedEngine(["<think>clear</think><answer>4.3</answer>"])
    sound = Media.audio(([0.0] * 1600, 16_000))
    (verdict,) = Judge(Pointwise(name), engine)([Example("Say good day.", [sound])])
    assert verdict.scores == (4.3,)
