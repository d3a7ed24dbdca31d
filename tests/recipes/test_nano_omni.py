"""The world of sounds, and the embedded judge that sees and hears: its parts, its training, and how it judges."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from typing import Any

from flexjudge_recipes.nano import shapes, sounds, traces, world

import pytest

from flexjudge_reward import ConfigError, Example, Judge, Media
from flexjudge_reward.engines.model import Chat
from flexjudge_reward.nano import path
from support.late import late, needs

needs("transformers", "datasets")
nano = late("flexjudge_recipes.judge_training.nano")
nano_model = late("flexjudge_recipes.judge_training.nano_model")
omni_model = late("flexjudge_recipes.judge_training.omni_model")
nano_samples = late("flexjudge_recipes.judge_training.nano_samples")
sft_data = late("flexjudge_recipes.judge_training.sft.data")
np, tokenizers, torch = late("numpy"), late("tokenizers"), late("torch")

SCENE = world.Scene(("deep hum", "silence", "high rattle", "deep chirp"), world.SOUNDS)
TEXT = "first deep hum second silence third high rattle fourth deep chirp"
BASE, EARS, JUDGE = range(3)  # the stages of nano.OMNI

# ------------------------------------------------------------------------------------------------------- the world


@pytest.mark.parametrize(
    ("kind", "subject", "text", "truth"),
    [
        pytest.param("what", "third", "What is third?", "high rattle", id="what"),
        pytest.param("what", "second", "What is second?", "silence", id="silence"),
        pytest.param("count", "deep", "How many deep sounds?", "2", id="count_a_pitch"),
        pytest.param("count", "hum", "How many hums?", "1", id="count_a_timbre"),
        pytest.param("count", "sound", "How many sounds?", "3", id="count_all"),
        pytest.param("exists", "deep rattle", "Is there a deep rattle?", "no", id="exists"),
        pytest.param("describe", "", "Describe the recording.", TEXT, id="describe"),
    ],
)
def test_questions_about_sounds(kind: world.Kind, subject: str, text: str, truth: str) -> None:
    asked = world.Question(SCENE, kind, subject)
    assert (asked.text, asked.truth) == (text, truth)


def test_a_trace_of_sounds_compares_word_by_word() -> None:
    asked = world.Question(SCENE, "count", "deep")
    thought = traces.reasoning(asked, ["3"], "score")
    assert thought.startswith("first deep hum deep deep yes 1 second silence 1 third high rattle high deep no 1")
    assert thought.endswith("So 2. A 3 2 near score 5.")


def test_no_word_belongs_to_both_worlds() -> None:
    assert not set(world.SHAPES.words) & set(world.SOUNDS.words)


def test_a_recording_is_a_second_and_a_quarter_of_int16_and_a_seed_decides_it() -> None:
    one, again, other = (sounds.play(SCENE, random.Random(seed)) for seed in (1, 1, 2))
    assert one.dtype == np.int16 and one.shape == (4 * sounds.PLACE,)
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    loud = [np.abs(part).max() for part in one.reshape(4, sounds.PLACE).astype(int)]
    assert loud[1] < 1000 < min(loud[0], loud[2], loud[3])


@pytest.mark.parametrize("pitch", world.SOUNDS.firsts)
def test_the_pitch_of_a_hum_is_heard_in_its_spectrum(pitch: str) -> None:
    scene = world.Scene((f"{pitch} hum", "silence", "silence", "silence"), world.SOUNDS)
    spectrum = np.abs(np.fft.rfft(sounds.play(scene, random.Random(3))[: sounds.PLACE]))
    loudest = float(np.fft.rfftfreq(sounds.PLACE, 1 / sounds.RATE)[spectrum.argmax()])
    assert min(sounds.HERTZ, key=lambda name: abs(np.log2(sounds.HERTZ[name] / loudest))) == pitch


# ------------------------------------------------------------------------------------------------------- the model


@pytest.fixture(scope="module")
def make() -> nano_samples.Maker:
    tokenizer = tokenizers.Tokenizer.from_file(str(path("omni") / "tokenizer.json"))
    processor = omni_model.make_processor(tokenizer)
    return nano_samples.Maker(
        tokenizer, sft_data.Renderer(Chat(processor.tokenizer, processor.chat_template), "nano", 2048, "<|im_end|>")
    )


@pytest.fixture(scope="module")
def thinker(make: nano_samples.Maker) -> Any:
    """With the weights of the embedded base, and an ear that has learned nothing."""
    torch.manual_seed(0)
    model = omni_model.make_thinker(make.tokenizer)
    model.load_state_dict(omni_model.grown(model, make.tokenizer, path("base")))
    return model.eval()


def test_every_word_of_both_worlds_is_one_token(make: nano_samples.Maker) -> None:
    for word in (*world.SHAPES.words, *world.SOUNDS.words):
        assert len(make.tokenizer.encode(word).ids) == len(make.tokenizer.encode(f" {word}").ids) == 1


def test_the_grown_model_sees_and_answers_as_the_base_does(make: nano_samples.Maker, thinker: Any) -> None:
    rng = random.Random(5)
    samples = [
        make.page(rng, nano.OMNI[BASE], True, f"{medium} read") for medium in ("image", "text") for _ in range(12)
    ]
    with torch.no_grad():
        logits, target, rows = nano.forward(thinker, make, samples)
    wrong = torch.bincount(rows[logits.argmax(-1) != target], minlength=len(samples))
    assert int((wrong == 0).sum()) >= 20


def test_the_training_computes_what_the_plain_model_computes(thinker: Any) -> None:
    recordings = np.stack([sounds.play(SCENE, random.Random(seed)) for seed in (1, 2)])
    ear = omni_model.feature_extractor()
    heard = ear(list(recordings / 32768), sampling_rate=sounds.RATE, return_tensors="pt", return_attention_mask=True)
    patches = torch.from_numpy(nano_model.to_patches([shapes.draw(shapes.scene(random.Random(1)), random.Random(1))]))
    with torch.no_grad():
        plain = thinker.get_audio_features(heard["input_features"], heard["attention_mask"])
        plain = getattr(plain, "last_hidden_state", plain)
        fast = omni_model.audio_features(thinker.audio_tower, recordings)
        seen = thinker.visual(patches[0], grid_thw=torch.tensor([[1, 4, 4]])).pooler_output
        assert torch.allclose(nano_model.vision_features(thinker.visual, patches)[0], seen, atol=1e-4)
    assert fast.shape == (2, 32, omni_model.WIDTH)
    assert torch.allclose(fast.flatten(0, 1), plain.reshape(-1, omni_model.WIDTH), atol=1e-4)


@pytest.mark.parametrize("medium", ["image", "video", "sound", "text", "text of sounds"])
def test_the_positions_are_the_models_own(make: nano_samples.Maker, thinker: Any, medium: str) -> None:
    for seed in range(4):
        sample = make.page(random.Random(seed), nano.OMNI[EARS], what=f"{medium} read")
        ids = torch.tensor([sample.ids])
        if sample.patches is not None:
            grid = torch.tensor([[len(sample.patches), 4, 4]])
            shown: dict[str, Any] = {f"{medium}_grid_thw": grid}
            shown |= {"second_per_grids": torch.tensor([float(sample.seconds)])} if medium == "video" else {}
            positions, _ = thinker.get_rope_index(ids, attention_mask=torch.ones_like(ids), **shown)
        else:  # without anything to see, every position is the token's own
            positions = torch.arange(len(sample.ids)).expand(3, 1, -1)
        assert np.array_equal(positions[:, 0].numpy(), make.positions(sample))


def test_a_prompt_is_what_the_chat_template_writes(make: nano_samples.Maker) -> None:
    assert make.renderer is not None
    sample = make.page(random.Random(2), nano.OMNI[EARS], what="sound think")
    shown = make.tokenizer.decode(sample.ids[: sample.start], skip_special_tokens=False)
    system, user = shown.split("<|im_end|>\n")[:2]
    before, after = user.split("<|audio_bos|>")[0], user.split("<|audio_eos|>")[1]
    content = [{"type": "text", "text": before.split("user\n")[1]}, {"type": "audio"}, {"type": "text", "text": after}]
    turns = [{"role": "system", "content": system.split("system\n")[1]}, {"role": "user", "content": content}]
    chat = make.renderer.chat
    text = chat.tokenizer.apply_chat_template(
        turns, chat_template=chat.template, tokenize=False, add_generation_prompt=True
    )
    assert text.replace("<|AUDIO|>", "<|AUDIO|>" * 32) == shown


def test_judging_is_text_only_and_what_is_shown_is_only_read(make: nano_samples.Maker) -> None:
    batch = [sample for group in itertools.islice(nano.batches(make, nano.OMNI[JUDGE], 0, 0), 16) for sample in group]
    judged = [sample for sample in batch if sample.label.startswith("judged")]
    assert 0.7 < len(judged) / len(batch) < 0.9 and len({sample.label for sample in judged}) == 8
    assert all(sample.patches is None and sample.recording is None for sample in judged)
    read = {sample.label for sample in batch} - {sample.label for sample in judged}
    assert read == {"image read", "video read", "sound read"}


def test_the_judge_stage_leaves_eye_and_ear_as_they_are(make: nano_samples.Maker, thinker: Any, tmp_path: Any) -> None:
    before = {name: value.clone() for name, value in thinker.state_dict().items()}
    few = replace(nano.OMNI[JUDGE], size=2)
    nano.train(thinker, make, few, tmp_path / "judge.pt", 0, 2)
    changed = {name for name, value in thinker.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(("model.", "lm_head.")) for name in changed)
    thinker.load_state_dict(before)


def test_a_resumed_training_has_the_batches_of_a_whole_one(make: nano_samples.Maker) -> None:
    whole = list(itertools.islice(nano.batches(make, nano.OMNI[EARS], 0, 0), 4))
    resumed: list[nano_samples.Sample] = next(nano.batches(make, nano.OMNI[EARS], 0, 3))
    assert [sample.ids for sample in resumed] == [sample.ids for sample in whole[3]]


def test_the_saved_model_is_one_folder_of_a_whole_omni(make: nano_samples.Maker, thinker: Any, tmp_path: Any) -> None:
    from transformers import AutoProcessor, Qwen2_5OmniThinkerForConditionalGeneration

    omni_model.save_omni(thinker, make.tokenizer, tmp_path / "omni")
    loaded, found = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        tmp_path / "omni", output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert all(torch.equal(value, thinker.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert AutoProcessor.from_pretrained(tmp_path / "omni").feature_extractor.feature_size == 64
    assert sum(file.stat().st_size for file in (tmp_path / "omni").iterdir()) < 12e6
    words = tokenizers.Tokenizer.from_file(str(tmp_path / "omni" / "tokenizer.json"))
    assert words.get_vocab() == make.tokenizer.get_vocab()


# ---------------------------------------------------------------------------------------------- the shipped weights


def test_the_checkpoint_is_complete_and_small() -> None:
    folder = path("omni")
    present = {file.name for file in folder.iterdir()}
    needed = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert needed | {"processor_config.json", "chat_template.jinja"} <= present
    assert sum(file.stat().st_size for file in folder.iterdir()) < 12e6
    whole = json.loads((folder / "config.json").read_text())
    assert whole["architectures"] == ["Qwen2_5OmniForConditionalGeneration"] and not whole["enable_audio_output"]


def held_out(medium: str, candidates: int, count: int) -> tuple[list[Example], list[tuple[float, ...]]]:
    rng = random.Random(f"{medium} {candidates}")
    examples, truths = [], []
    for _ in range(count):
        scene = (world.SOUNDS if medium == "sound" else world.SHAPES).scene(rng, held_out=True)
        asked = world.question(rng, scene, world.judged(candidates))
        replies = world.candidates(rng, asked, candidates, single_best=candidates > 2)
        played = medium == "sound"
        shown = Media.audio((sounds.play(scene, rng), sounds.RATE)) if played else Media.image(shapes.draw(scene, rng))
        examples.append(Example((shown, asked.text), replies))
        truths.append(tuple(float(world.score(asked, reply)) for reply in replies))
    return examples, truths


def test_it_judges_sounds_and_images_by_its_name() -> None:
    with Judge.load(model="nano-omni", cache="off") as one, Judge.load(model="nano-omni", format="listwise") as several:
        assert str(one.described()["model"]) == "nano-omni" and one.engine.supports("audio")
        # Well below the measured figures (nano/README.md), because these are few.
        for judge, medium, candidates, least in (
            (one, "sound", 1, 0.8),
            (several, "sound", 3, 0.75),
            (several, "image", 3, 0.75),
        ):
            examples, truths = held_out(medium, candidates, 24)
            found = [verdict.scores for verdict in judge(examples)]
            right = sum(scores == truth for scores, truth in zip(found, truths, strict=True))
            assert right / len(truths) >= least, f"{candidates} answers about a {medium}: {right} of {len(truths)}"


def test_out_of_a_base_of_its_own_it_learns_to_judge_without_the_shipped_judge(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nano, "report", lambda *_: {})
    monkeypatch.setattr(omni_model, "add_judging", lambda *_: pytest.fail("the difference of the shipped judge"))
    short = [replace(stage, size=2) for stage in nano.FROM_NOTHING]
    folder = nano.build("omni", tmp_path, 0, short, 1, path("base"))
    assert (folder / "model.safetensors").is_file()
    assert nano.FROM_NOTHING[JUDGE].steps > nano.OMNI[JUDGE].steps and nano.FROM_NOTHING[:JUDGE] == nano.OMNI[:JUDGE]


@pytest.mark.parametrize("given", [["--base", "missing", "--model", "omni"], ["--base", str(path("base"))]])
def test_a_base_that_cannot_be_grown_is_refused(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["nano.py", *given])
    with pytest.raises(ConfigError, match="--base is a folder with"):
        nano.main()
