"""The recipe `judge_training/sft`: its rows are what an engine sends, its output a judge that knows its own words."""

from __future__ import annotations

import json
import logging
import random
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import flexjudge_recipes
from flexjudge_recipes.nano import judge_traces

import pytest
from PIL import Image

from flexjudge_reward import ConfigError, EngineError, Example, Judge, Prompt, Rubric, Scale, ScriptedEngine
from flexjudge_reward.engines.model import Chat
from flexjudge_reward.formats.builtin import FORMATS
from flexjudge_reward.nano import path
from flexjudge_reward.prompts import template
from flexjudge_reward.prompts.template import own_prompt_set
from support import omni
from support.late import late, needs

needs("trl")
models = late("flexjudge_recipes.judge_training.sft.models")
train = late("flexjudge_recipes.judge_training.sft.train")
sft_data = late("flexjudge_recipes.judge_training.sft.data")
datasets = late("datasets")
torch = late("torch")
transformers = late("transformers")
peft = late("peft")
safe = late("safetensors.torch")
trl = late("trl")

ROOT = Path(flexjudge_recipes.__file__).parent
FOLDER = ROOT / "judge_training" / "sft"
BASE = str(path("base"))
CONFIGS = sorted(file.stem for file in FOLDER.glob("*.yaml"))
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 1, "vocab_size": 32}
VISION = {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2, "out_hidden_size": 16}
AUDIO = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "output_dim": 16}
OMNI = {"text_config": TEXT, "vision_config": VISION, "audio_config": AUDIO}
QWEN = {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"]}
QWEN |= {"text_config": TEXT, "vision_config": VISION}
# What the configuration of each model on the Hub says, in miniature, and what the recipe should make of it.
MODELS: dict[str, tuple[dict[str, Any], str, set[str], str]] = {
    **{
        f"qwen2.5_vl_{size}": (QWEN, "Qwen2_5_VLForConditionalGeneration", {"model.visual"}, "model.language_model.")
        for size in ("3b", "7b", "32b")
    },
    "qwen3_vl_8b": (
        {"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"], "text_config": TEXT}
        | {"vision_config": VISION | {"deepstack_visual_indexes": [0]}},
        "Qwen3VLForConditionalGeneration",
        {"model.visual"},
        "model.language_model.",
    ),
    "qwen2.5_omni_7b": (
        {"model_type": "qwen2_5_omni", "architectures": ["Qwen2_5OmniModel"], "thinker_config": OMNI},
        "Qwen2_5OmniThinkerForConditionalGeneration",
        {"audio_tower", "visual"},
        "model.layers.",
    ),
    "llama3.1_8b": (
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **TEXT},
        "LlamaForCausalLM",
        set(),
        "model.layers.",
    ),
}


def some_traces(count: int, seed: int = 1) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [judge_traces.trace(rng) for _ in range(count)]


def renderer(**options: Any) -> sft_data.Renderer:
    return sft_data.Renderer.of(BASE, None, **{"prompt_set": "nano", "max_length": 1024, **options})


# ------------------------------------------------------------------------------------------------- configurations


def command(config: str) -> list[str]:
    """The words after train.py in the command of a configuration."""
    lines = (FOLDER / f"{config}.yaml").read_text("utf-8").splitlines()
    shown = " ".join(line[1:].strip().removesuffix("\\") for line in lines if line.startswith("#     "))
    words = shlex.split(shown)
    assert words[-2:] == ["--config", f"recipes/judge_training/sft/{config}.yaml"]
    return words


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_parses_and_its_model_is_resolved_without_weights(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT.resolve().parent)
    words = command(config)
    if "--config_file" in words:
        from accelerate.commands.config.config_args import load_config_from_file

        launch = words[words.index("--config_file") + 1]
        assert load_config_from_file(launch).num_machines == 1
    here = ["--bf16", "false", "--use_cpu", "true"]
    parser = trl.TrlParser((train.RecipeArguments, trl.SFTConfig, trl.ModelConfig))
    options, args, model_args = parser.parse_args_and_config([*words[-2:], *here], fail_with_unknown_args=True)
    train.check(options, args)
    assert args.output_dir.startswith("runs/sft_") and options.prompt_set in ("flex", "nano")
    if config in ("nano", "nano_second"):
        return
    text, expected, frozen, learns = MODELS[config]
    (tmp_path / "config.json").write_text(json.dumps(text))
    found = models.read_config(str(tmp_path), None)
    kind = models.model_class(found)
    assert kind.__name__ == expected
    with torch.device("meta"):
        model = kind(getattr(found, "thinker_config", found))
    assert set(models.freeze_encoders(model)) == frozen
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained and not any(name.startswith(tuple(frozen)) for name in trained if frozen)
    if model_args.use_peft:
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=models.lora_targets(model)))
        names = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
        assert names and all(learns in name and "visual" not in name for name in names)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param({"model_type": "qwen9_vl"}, "cannot be used: .*qwen9_vl", id="family"),
        pytest.param(QWEN | {"architectures": ["Qwen9ForJudging"]}, "wants Qwen9ForJudging, which", id="class"),
        pytest.param(QWEN | {"architectures": None}, "wants a class that it names", id="no_class"),
    ],
)
def test_a_model_that_transformers_lacks_is_an_error_before_it_loads(
    text: dict[str, Any], why: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(text))
    with pytest.raises(ConfigError, match=why):
        models.model_class(models.read_config(str(tmp_path), None))


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        pytest.param({"packing": True}, "see each other", id="packing"),
        pytest.param({"prompt_set": "mine"}, "is one of flex, nano, or a folder", id="no_prompt_set"),
        pytest.param({"max_length": None}, "max_length is needed", id="no_length"),
        pytest.param({"completion_only_loss": False}, "loss is on the completion", id="loss_on_the_prompt"),
        pytest.param({"rows": -1}, "rows is at least 1", id="no_rows"),
        pytest.param({"measure": -3}, "measure at least 0", id="less_than_none"),
    ],
)
def test_arguments_that_train_something_else(flags: dict[str, Any], why: str, tmp_path: Path) -> None:
    options = train.RecipeArguments(**{n: flags.pop(n) for n in ("prompt_set", "rows", "measure") if n in flags})
    with pytest.raises(ConfigError, match=why):
        train.check(
            options, trl.SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", **flags)
        )


# ------------------------------------------------------------------------------------------------------------ rows


def test_a_prompt_is_what_an_engine_sends_and_the_loss_is_on_the_reply_with_its_end() -> None:
    rows, made = some_traces(6), renderer()
    data, skipped = made.dataset(rows)
    assert not skipped and data.column_names == ["input_ids", "labels", "length"]
    arguments: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none", "max_length": 1024}
    trainer = trl.SFTTrainer(
        model=models.load(BASE, None, {"dtype": torch.float32}),
        processing_class=models.load_processor(BASE, None),
        args=trl.SFTConfig("unused", per_device_train_batch_size=6, train_sampling_strategy="sequential", **arguments),
        train_dataset=data,
    )
    batch, tokenizer = next(iter(trainer.get_train_dataloader())), made.chat.tokenizer
    for row, ids, labels in zip(rows, batch["input_ids"], batch["labels"], strict=True):
        learned = labels != -100
        assert tokenizer.decode(ids[: int(learned.nonzero()[0])]) == made.chat.render(asked(row))
        assert tokenizer.decode(labels[learned]) == row["reply"] + "<|im_end|>"


def asked(row: dict[str, Any], prompt_set: str = "nano") -> Prompt:
    """What a judge sends to its engine."""
    engine = ScriptedEngine(lambda request: "")
    rubric = Rubric(row["criteria"], Scale(row["low"], row["high"]))
    Judge(FORMATS[row["format"]](rubric, prompt_set), engine)([Example(row["question"], row["candidates"])])
    return engine.prompts[0]


LEFT_OUT: list[Any] = [
    pytest.param({"reply": "It is right: 10."}, {}, "malformed", id="no_tags"),
    pytest.param({"reply": "<answer>10</answer>"}, {}, "malformed", id="no_reasoning"),
    pytest.param({"reply": "<think>so</think><answer>11</answer>"}, {}, "out_of_range", id="off_the_scale"),
    pytest.param({"format": "essay"}, {}, "format", id="unknown_format"),
    pytest.param({}, {"max_length": 20}, "too long", id="too_long"),
    pytest.param({"reply": "<think>so<|im_end|></think><answer>10</answer>"}, {}, "control", id="end_of_turn"),
    pytest.param({"reply": "<think>a</think><answer>1</answer>b</think><answer>10</answer>"}, {}, "control", id="tags"),
    pytest.param({"images": ["pics/1.png"]}, {}, "media", id="image_by_path"),
    pytest.param({"images": [{"bytes": b"no image", "path": None}]}, {}, "media", id="damaged_image"),
    pytest.param({"video": {"bytes": b"x", "path": "a.mp4"}}, {}, "media", id="video"),
    pytest.param({"format": []}, {}, "column", id="format_of_a_list"),
    pytest.param({"criteria": None}, {}, "column", id="no_criteria"),
    pytest.param({"low": None}, {}, "column", id="no_low"),
    pytest.param({"high": "10"}, {}, "column", id="high_in_words"),
    pytest.param({"candidates": 3}, {}, "column", id="no_candidates"),
    pytest.param({"reply": None}, {}, "column", id="no_reply"),
]


@pytest.mark.parametrize(("row", "options", "why"), LEFT_OUT)
def test_a_row_that_cannot_be_trained_on_is_left_out_with_its_reason(
    row: dict[str, Any], options: dict[str, Any], why: str
) -> None:
    good = {"format": "pointwise", "question": "q", "candidates": ["a"], "criteria": "c", "low": 1, "high": 10}
    good |= {"reply": "<think>so</think><answer>10</answer>"}
    made = renderer(**options)
    with pytest.raises(ConfigError, match=f"no trace can be trained on; row 0: {why}"):
        made.dataset([good | row])
    if not options:
        data, skipped = made.dataset([good, good | row])
        assert len(data) == 1 and skipped == {why: 1}


def test_a_row_of_a_file_is_shown_its_images(tmp_path: Path) -> None:
    row = some_traces(1)[0] | {"prompt": "a column of a file"}
    rows = [row | {"images": [Image.new("RGB", (56, 56), colour)]} for colour in ("red", "blue")]
    table = datasets.Dataset.from_list([*rows, row | {"images": []}])
    table.cast_column("images", datasets.List(datasets.Image())).to_parquet(tmp_path / "rows.parquet")
    data, skipped = renderer().dataset(sft_data.stored(str(tmp_path / "rows.parquet")))
    assert not skipped and [one["prompt"].count("<|image_pad|>") for one in data] == [1, 1, 0]
    assert [[image.getpixel((0, 0)) for image in one["images"]] for one in data] == [[(255, 0, 0)], [(0, 0, 255)], []]
    assert data[0]["prompt"].index("<|image_pad|>") < data[0]["prompt"].index(row["question"])


def test_reasoning_that_the_template_opens_is_not_opened_twice() -> None:
    template = transformers.AutoTokenizer.from_pretrained(BASE).chat_template
    opened = template.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    assert opened != template
    row = sft_data.Renderer(Chat(renderer().chat.tokenizer, opened), "nano", 1024, "<|im_end|>").row(some_traces(1)[0])
    assert row["prompt"].endswith("<think>\n") and not row["completion"].startswith("<think>")


def test_the_answer_first_is_the_ablation() -> None:
    row = some_traces(1)[0]
    thought, closed, answer = row["reply"].partition("</think>")
    assert renderer(answer_first=True).row(row)["completion"] == answer + thought + closed + "<|im_end|>"


def test_a_base_without_a_chat_template_is_an_error(tmp_path: Path) -> None:
    transformers.AutoTokenizer.from_pretrained(BASE).save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match="has no chat template"):
        sft_data.Renderer.of(str(tmp_path), None, prompt_set="nano", max_length=1024)


def test_a_file_without_traces_is_an_error(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"question": "q", "answer": "a"}]).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ConfigError, match="no column 'format', so it holds no traces; flexjudge traces"):
        sft_data.stored(str(tmp_path / "rows.parquet"))


# ------------------------------------------------------------------------------------------------------ whole runs


def run(monkeypatch: pytest.MonkeyPatch, output: Path, *words: str) -> None:
    """The recipe with the nano configuration and other words."""
    fixed = {"config": FOLDER / "nano.yaml", "output_dir": output, "warmup_steps": 0, "logging_steps": 1, "measure": 0}
    fixed_words = [word for name, value in fixed.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["train.py", *fixed_words, *words])
    train.main()


@pytest.fixture
def wording(tmp_path: Path) -> Path:
    """A prompt set of one's own."""
    folder = tmp_path / "wording"
    shutil.copytree(Path(template.__file__).parent / "nano", folder)
    (folder / "pairwise.toml").write_text((folder / "pairwise.toml").read_text().replace("Score A and B", "Rate A, B"))
    return folder


def test_a_judge_is_asked_in_the_words_that_it_was_trained_with(
    tmp_path: Path, wording: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    traces, judge = tmp_path / "traces.parquet", tmp_path / "judge"
    datasets.Dataset.from_list(some_traces(8)).to_parquet(traces)
    words = ("--dataset_name", str(traces), "--prompt_set", str(wording), "--max_steps", "2")
    run(monkeypatch, judge, *words, "--per_device_train_batch_size", "4")
    before, after = (safe.load_file(folder / "model.safetensors") for folder in (path("base"), judge))
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed and not any("visual" in name for name in changed)
    assert json.loads((judge / "report.json").read_text())["traces"] == 8 and (judge / "README.md").exists()
    pair = {"model": str(judge), "format": "pairwise", "cache": "off"}
    shutil.rmtree(wording)
    with caplog.at_level(logging.WARNING, "flexjudge_reward"):
        assert Judge.load(**pair).format.innermost().template.system.startswith("Rate A, B")  # type: ignore[attr-defined]
        with Judge.load(**pair, max_tokens=8) as loaded:
            assert loaded([Example("What?", ["a", "b"])])[0].generations
        assert not caplog.messages
        Judge.load(**pair, prompt_set="flex")
    assert "is asked in other words (format pairwise, prompt_set flex)" in caplog.text


def test_adapters_are_merged_into_a_whole_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, tmp_path / "judge", "--max_steps", "1", "--per_device_train_batch_size", "8", "--use_peft", "true")
    before, after = (safe.load_file(folder / "model.safetensors") for folder in (path("base"), tmp_path / "judge"))
    assert before.keys() == after.keys()
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed and all("_proj" in name and "visual" not in name for name in changed)
    assert (tmp_path / "judge" / "adapter" / "adapter_config.json").exists()
    assert own_prompt_set(str(tmp_path / "judge")) is not None


def test_a_finished_run_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "model.safetensors").touch()
    with pytest.raises(ConfigError, match="holds an earlier run"):
        run(monkeypatch, tmp_path / "judge")


def test_a_thinker_is_trained_and_put_back_into_the_files_of_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, judge = tmp_path / "whole", tmp_path / "judge"
    omni.write(whole)
    traces = tmp_path / "traces.parquet"
    datasets.Dataset.from_list(some_traces(4)).to_parquet(traces)
    words = ("--dataset_name", str(traces), "--max_steps", "1", "--per_device_train_batch_size", "4")
    run(monkeypatch, judge, *words, "--model_name_or_path", str(whole))
    before, after = safe.load_file(whole / "model.safetensors"), safe.load_file(judge / "model.safetensors")
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert before.keys() == after.keys()
    assert changed and all(name.startswith(("thinker.model.", "thinker.lm_head")) for name in changed)
    assert (judge / "spk_dict.pt").read_bytes() == (whole / "spk_dict.pt").read_bytes()
    loaded = transformers.Qwen2_5OmniForConditionalGeneration.from_pretrained(judge)
    trained = safe.load_file(judge / "thinker" / "model.safetensors")
    assert all(torch.equal(weight, trained[name]) for name, weight in loaded.thinker.state_dict().items())


def test_a_thinker_is_put_back_where_a_run_was_cut_off(tmp_path: Path) -> None:
    base, thinker, out = (tmp_path / name for name in ("base", "thinker", "out"))
    for folder in (base / "assets", thinker, out):
        folder.mkdir(parents=True)
    (base / "assets" / "voice.pt").write_text("voice")
    safe.save_file({"thinker.a": torch.zeros(2), "talker.a": torch.ones(1)}, base / "model.safetensors")
    safe.save_file({"a": torch.ones(2)}, thinker / "model.safetensors")
    for _ in range(2):
        models.put_back(thinker, base, out)
    assert torch.equal(safe.load_file(out / "model.safetensors")["thinker.a"], torch.ones(2))
    assert (out / "assets" / "voice.pt").read_text() == "voice"


def test_a_thinker_of_another_model_is_not_put_back(tmp_path: Path) -> None:
    for name, weights in (
        ("thinker", {"a": torch.ones(2), "b": torch.ones(1)}),
        ("base", {"thinker.a": torch.ones(2)}),
    ):
        (tmp_path / name).mkdir()
        safe.save_file(weights, tmp_path / name / "model.safetensors")
    with pytest.raises(ConfigError, match="1 weights of the Thinker are not in"):
        models.put_back(tmp_path / "thinker", tmp_path / "base", tmp_path)
