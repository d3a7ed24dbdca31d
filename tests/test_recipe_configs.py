"""The configs of the recipes for language models: their commands parse, their models and data sets fit."""

from __future__ import annotations

import importlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

RECIPES = Path(__file__).parent.parent / "recipes"
pytestmark = [
    pytest.mark.trainer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """recipes/dpo_vlm.py as a module."""
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module("dpo_vlm")


# Public names in the configs, in miniature: the type of the model, and the columns of the data set.
QWEN: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "text_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"num_key_value_heads": 1, "vocab_size": 32},
    "vision_config": {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2, "out_hidden_size": 16},
}
MODELS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-VL-7B-Instruct": QWEN,
    "Qwen/Qwen2.5-VL-3B-Instruct": QWEN,
    "THGLab/Llama-3.1-8B-SmileyLlama-1.1": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    | {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
    | {"num_key_value_heads": 1},
    "entropy/gpt2_zinc_87m": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 16, "n_head": 2},
}
COLUMNS = {"lmms-lab/multimodal-open-r1-8k-verified": ("image", "problem", "solution")}
REAL = ("qwen", "zinc", "llama")  # in the names of configs whose model is not made here
CONFIGS = sorted(
    path.name for path in (RECIPES / "configs").iterdir() if path.name.startswith(("dpo_", "grpo_", "molecules_"))
)


def commands(config: str) -> list[tuple[str, list[str]]]:
    """The commands in a config's header that start a recipe: its name, and the words after its file."""
    lines = (RECIPES / "configs" / config).read_text().splitlines()
    shown = "\n".join(line[1:].strip() for line in lines if line.startswith("#    "))
    found = [shlex.split(command) for command in shown.replace("\\\n", " ").splitlines()]
    places = [(words, place) for words in found for place, word in enumerate(words) if word.startswith("recipes/")]
    return [(Path(words[at]).stem, words[at + 1 :]) for words, at in places if words[at].endswith(".py")]


def parsed(name: str, words: list[str]) -> Any:
    """Options, trainer's arguments and model arguments, by the parser of a recipe; as on a machine without a GPU."""
    from trl import DPOConfig, GRPOConfig, ModelConfig, TrlParser

    if name == "molecules":
        pytest.importorskip("rdkit")
    module: Any = importlib.import_module(name)
    kind = {"grpo_vlm": GRPOConfig, "dpo_vlm": DPOConfig}.get(name)
    if kind is None:
        (_, kind), words = module.STAGES[words[0]], words[1:]
    parser = TrlParser((module.RecipeArguments, kind, ModelConfig))
    here = ["--bf16", "false", "--use_cpu", "true", "--report_to", "none"]
    return parser.parse_args_and_config([*words, *here], fail_with_unknown_args=True)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_commands_of_a_config_parse_with_every_setting(
    config: str, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(RECIPES.parent)
    assert commands(config)
    for name, words in commands(config):
        assert words[words.index("--config") + 1] == f"recipes/configs/{config}"
        options, args, model_args = parsed(name, words)
        assert options.judge_model and args.output_dir == f"runs/{config.removesuffix('.yaml')}"
        assert model_args.model_name_or_path in ("nano", *MODELS)
        if name == "dpo_vlm":
            assert args.loss_type == ["sigmoid", "sft"] and args.max_length is None


@pytest.mark.parametrize("config", [name for name in CONFIGS if any(model in name for model in REAL)])
def test_the_model_of_a_config_can_be_built_and_adapted(
    config: str, recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import transformers
    from peft import get_peft_model
    from trl import get_peft_config

    monkeypatch.chdir(RECIPES.parent)
    _, _, model_args = parsed(*commands(config)[-1])
    (tmp_path / "config.json").write_text(json.dumps(MODELS[model_args.model_name_or_path]))
    found = transformers.AutoConfig.from_pretrained(tmp_path)
    sees = transformers.AutoModelForImageTextToText if "qwen" in config else transformers.AutoModelForCausalLM
    with torch.device("meta"):  # no weights
        model = sees.from_config(found)
    assert type(model) is getattr(transformers, found.architectures[0])  # which is how TRL finds it
    if peft_config := get_peft_config(model_args):
        names = [name for name, _ in model.named_modules()]
        assert all(any(name.endswith(f".{target}") for name in names) for target in peft_config.target_modules)
        assert get_peft_model(model, peft_config).get_nb_trainable_parameters()[0] > 0


@pytest.mark.parametrize("config", [config for config in CONFIGS if "qwen" in config])
def test_the_data_set_of_a_config_has_what_the_recipe_asks_for(
    config: str, recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    from PIL import Image

    monkeypatch.chdir(RECIPES.parent)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    name, words = commands(config)[-1]
    options, args, _ = parsed(name, words)
    row = dict.fromkeys(COLUMNS[options.dataset_name], "text") | {"image": Image.new("RGB", (8, 8)), "problem": "What?"}
    (tmp_path / "rows").mkdir()
    datasets.Dataset.from_list([row] * 3).to_parquet(tmp_path / "rows" / "train.parquet")
    options.dataset_name = str(tmp_path / "rows")
    if name == "dpo_vlm":
        asked = list(recipe.questions(options, args.seed))
        assert [question for question, _ in asked] == ["What?"] * 3 and asked[0][1].size == (8, 8)
    else:
        rows = importlib.import_module("grpo_vlm").training_data(options, args.seed)
        assert rows[0]["prompt"][-1] == {"role": "user", "content": "What?"}
        assert rows[0]["image"].size == (8, 8) and rows[0][options.reference_column] == "text"
