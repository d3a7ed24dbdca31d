"""`judge_training/sft` and `rl` on bases of other families: their ends of a turn, templates, tokenizers, layers."""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import flexjudge_recipes
from flexjudge_recipes.nano import judge_traces

import pytest
from PIL import Image

from flexjudge_reward import ConfigError, Example, Judge, Rubric, Scale
from flexjudge_reward.engines.model import Chat
from flexjudge_reward.formats.builtin import FORMATS
from flexjudge_reward.nano import path
from flexjudge_reward.prompts.template import own_prompt_set
from support.late import late, needs

needs("trl")
rl = late("flexjudge_recipes.judge_training.rl.train")
models = late("flexjudge_recipes.judge_training.sft.models")
train = late("flexjudge_recipes.judge_training.sft.train")
sft_data = late("flexjudge_recipes.judge_training.sft.data")
datasets = late("datasets")
torch = late("torch")
processors = late("tokenizers.processors")
transformers = late("transformers")
peft = late("peft")

BASE = str(path("base"))
NANO = Path(flexjudge_recipes.__file__).parent / "judge_training" / "sft" / "nano.yaml"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def some_traces(count: int) -> list[dict[str, Any]]:
    rng = random.Random(1)
    return [judge_traces.trace(rng) for _ in range(count)]


@pytest.mark.parametrize("written", ["<|vision_pad|> $A", "<|vision_pad|> $A <|im_end|>", "$A"])
@pytest.mark.parametrize("in_template", [True, False])
def test_what_a_tokenizer_writes_around_texts_is_not_trained_on(written: str, in_template: bool) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<|vision_pad|>", "<|im_end|>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=written, special_tokens=special)
    chat = Chat(tokenizer, "<|vision_pad|>" * in_template + tokenizer.chat_template)
    (row,) = some_traces(1)
    data, _ = sft_data.Renderer(chat, "nano", 1024, "<|im_end|>").dataset([row])
    format = FORMATS[row["format"]](Rubric(row["criteria"], Scale(row["low"], row["high"])), "nano")
    (prompt,) = format.render(Example(row["question"], row["candidates"]))
    assert tokenizer.decode(data[0]["input_ids"]) == chat.render(prompt) + row["reply"] + "<|im_end|>"
    learned = [token for token in data[0]["labels"] if token != -100]
    assert tokenizer.decode(learned) == row["reply"] + "<|im_end|>"
    pictured = row | {"images": [{"bytes": png(), "path": None}]}
    data, _ = sft_data.Renderer(chat, "nano", 1024, "<|im_end|>").dataset([pictured])
    assert data[0]["prompt"].startswith("<|vision_pad|>") is in_template  # a processor of images writes nothing


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (56, 56), "red").save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("own", "given", "found"),
    [
        pytest.param("<|im_end|>", None, "<|im_end|>", id="own"),
        pytest.param("<|im_end|>", "<|endoftext|>", "<|endoftext|>", id="given"),
        pytest.param(None, "<|im_end|>", "<|im_end|>", id="given_to_a_tokenizer_without"),
        pytest.param(None, None, "has no eos_token: give", id="none"),
        pytest.param("<|im_end|>", "<end_of_turn>", "has no token '<end_of_turn>': give", id="unknown"),
    ],
)
def test_a_reply_ends_with_a_token_of_the_tokenizer(
    own: str | None, given: str | None, found: str, tmp_path: Path
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    tokenizer.eos_token = own
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    if not found.startswith("<"):
        with pytest.raises(ConfigError, match=found):
            sft_data.Renderer.of(str(tmp_path), None, given, prompt_set="nano", max_length=1024)
        return
    made = sft_data.Renderer.of(str(tmp_path), None, given, prompt_set="nano", max_length=1024)
    assert made.row(some_traces(1)[0])["completion"].endswith(f"</answer>{found}")


TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 1}
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
TURNS = "{% for one in messages %}<|im_start|>{{ one.role }}\n{{ one.content }}<|im_end|>\n{% endfor %}"


def write_base(folder: Path, kind: str, template: str, ends: str | None = "<|im_end|>") -> Any:
    """Writes a tiny model of texts with random weights; its tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    tokenizer.chat_template, tokenizer.pad_token = template, None
    config = getattr(transformers, f"{kind}Config")(
        **TINY | {"vocab_size": len(tokenizer), "pad_token_id": None},
        eos_token_id=None if ends is None else tokenizer.convert_tokens_to_ids(ends),
    )
    for made in (tokenizer, getattr(transformers, f"{kind}ForCausalLM")(config)):
        made.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize(
    ("kind", "template", "ends", "flags"),
    [
        pytest.param("Llama", TURNS, "<|im_end|>", [], id="text"),
        pytest.param("Gemma2", REFUSES + TURNS, "<|endoftext|>", [], id="no_system_turn_and_another_end"),
        pytest.param("Phi3", TURNS, None, ["--use_peft", "true"], id="no_end_and_adapters"),
        pytest.param("Qwen3", TURNS, "<|endoftext|>", ["--use_peft", "true"], id="another_end_and_adapters"),
        pytest.param("GPTNeoX", TURNS, "<|im_end|>", ["--use_peft", "true"], id="layers_with_other_names"),
    ],
)
def test_a_base_of_another_family_becomes_a_judge(
    kind: str, template: str, ends: str | None, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, judge, traces = tmp_path / "base", tmp_path / "judge", tmp_path / "traces.parquet"
    tokenizer = write_base(base, kind, template, ends)
    datasets.Dataset.from_list(some_traces(4)).to_parquet(traces)
    words = ["--model_name_or_path", base, "--dataset_name", traces, "--output_dir", judge, *flags]
    words += ["--max_steps", 1, "--per_device_train_batch_size", 4, "--warmup_steps", 0, "--logging_steps", 1]
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", *map(str, (NANO, *words, "--measure", 0))])
    train.main()
    written = json.loads((judge / "generation_config.json").read_text())["eos_token_id"]
    learned = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert learned in (written if isinstance(written, list) else [written])
    with Judge.load(model=str(judge), format="pairwise", cache="off", max_tokens=4, answer_tokens=0) as loaded:
        (verdict,) = loaded([Example("What?", ["a", "b"])])
    assert verdict.generations[0].completion_tokens > 0


@pytest.mark.parametrize(
    ("kind", "template"),
    [
        pytest.param("Llama", TURNS, id="text"),
        pytest.param("Gemma2", REFUSES + TURNS, id="no_system_turn"),
        pytest.param("Qwen3", TURNS + "<|im_start|>assistant\n<think>\n", id="a_thought_that_is_open"),
    ],
)
def test_a_judge_of_texts_learns_from_both_orders(
    kind: str, template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_base(tmp_path / "base", kind, template)
    row = {"candidates": ["a", "b"], "scores": [8, 3]}
    lines = [json.dumps(row | {"question": f"What is {number}?"}) + "\n" for number in range(2)]
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    words = ["--model_name_or_path", tmp_path / "base", "--dataset_name", tmp_path / "pairs.jsonl", "--stage", "text"]
    words += ["--format", "pairwise", "--reward", "both_orders", "--pass_draws", 0, "--output_dir", tmp_path / "judge"]
    words += ["--per_device_train_batch_size", 8, "--num_generations", 2, "--max_steps", 1]
    words += ["--max_completion_length", 4]
    config = NANO.parent.parent / "rl" / "nano.yaml"
    monkeypatch.setattr(
        sys, "argv", ["train.py", "--config", *map(str, (config, *words, "--max_completion_length", 4))]
    )
    rl.main()
    assert (tmp_path / "judge" / "model.safetensors").exists() and own_prompt_set(str(tmp_path / "judge"))


@pytest.mark.parametrize(
    ("kind", "frozen"),
    [
        ("Llama4ForConditionalGeneration", {"vision_model", "multi_modal_projector"}),
        ("Gemma3ForConditionalGeneration", {"model.vision_tower", "model.multi_modal_projector"}),
        ("LlavaForConditionalGeneration", {"model.vision_tower", "model.multi_modal_projector"}),
        ("GPTNeoXForCausalLM", set()),
    ],
)
def test_what_is_not_the_language_model_is_frozen_in_every_family(kind: str, frozen: set[str]) -> None:
    whole = getattr(transformers, kind)
    config = whole.config_class()
    config.get_text_config().num_hidden_layers = 1
    with torch.device("meta"):
        model = whole(config)
    assert set(models.freeze_encoders(model)) == frozen
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=models.lora_targets(model)))
    models.freeze_encoders(adapted)
    names = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert names and all("lora_" in name and "vision" not in name for name in names)
