"""The configurations of the recipes with a TRL trainer: their commands parse, their models and data sets fit."""

from __future__ import annotations

import importlib
import json
import shlex
from pathlib import Path
from typing import Any

import flexjudge_recipes

import pytest

from flexjudge_reward import JudgeConfig, RewardSession
from support.late import needs

needs("trl")

ROOT = Path(flexjudge_recipes.__file__).parent
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

# Public names in the configurations, in miniature: the type of the model, and the columns of the data set.
QWEN: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "text_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"num_key_value_heads": 1, "vocab_size": 32},
    "vision_config": {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2, "out_hidden_size": 16},
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32},
    "num_key_value_heads": 1,
}
MODELS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-VL-7B-Instruct": QWEN,
    "Qwen/Qwen2.5-VL-3B-Instruct": QWEN,
    "THGLab/Llama-3.1-8B-SmileyLlama-1.1": LLAMA,
    "HKUSTAudio/Llasa-1B": LLAMA,
    "entropy/gpt2_zinc_87m": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 16, "n_head": 2},
}
COLUMNS = {"lmms-lab/multimodal-open-r1-8k-verified": ("image", "problem", "solution")}
CONFIGS = sorted(
    str(path.relative_to(ROOT))
    for recipe in ("grpo_vlm", "dpo_vlm", "molecules", "sounds")
    for path in (ROOT / recipe).glob("*.yaml")
    if not path.stem.startswith("best_of_n")  # trains nothing
)
REAL = [name for name in CONFIGS if any(model in name for model in ("qwen", "zinc", "llama", "llasa"))]


def commands(config: str) -> list[tuple[str, list[str]]]:
    """The commands in a configuration's header that start a recipe: its module, and the words after it."""
    lines = (ROOT / config).read_text("utf-8").splitlines()
    shown = "\n".join(line[1:].strip() for line in lines if line.startswith("#    "))
    found = [shlex.split(command) for command in shown.replace("\\\n", " ").splitlines()]
    programs = [(words, at) for words in found for at, word in enumerate(words) if word.endswith(".py")]
    assert all(words[at].startswith("recipes/") for words, at in programs)
    return [(words[at][len("recipes/") : -len(".py")].replace("/", "."), words[at + 1 :]) for words, at in programs]


def parsed(program: str, words: list[str]) -> Any:
    """Options, trainer's arguments and model arguments, by the recipe's parser; as on a machine without a GPU."""
    from trl import DPOConfig, GRPOConfig, ModelConfig, TrlParser

    if program.startswith("molecules"):
        pytest.importorskip("rdkit")
    module = importlib.import_module(f"flexjudge_recipes.{program}")
    if words[0].startswith("--"):
        kind: Any = DPOConfig if program == "dpo_vlm.train" else GRPOConfig
    else:
        kind, words = {"grpo": GRPOConfig, "dpo": DPOConfig}[words[0]], words[1:]
    here = ["--bf16", "false", "--use_cpu", "true", "--report_to", "none"]
    parser = TrlParser((module.RecipeArguments, kind, ModelConfig))
    return parser.parse_args_and_config([*words, *here], fail_with_unknown_args=True)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_commands_of_a_configuration_parse_with_every_setting(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT.resolve().parent)
    assert commands(config)
    for program, words in commands(config):
        assert words[words.index("--config") + 1] == f"recipes/{config}"
        options, args, model_args = parsed(program, words)
        assert args.output_dir.startswith("runs/")
        assert model_args.model_name_or_path.startswith("nano") or model_args.model_name_or_path in MODELS
        if program == "dpo_vlm.train":
            JudgeConfig.resolve(options.judge)
            assert args.loss_type == ["sigmoid", "sft"] and args.max_length is None
        elif program in ("grpo_vlm.train", "sounds.train"):
            assert not args.log_completions  # its table has no images
            RewardSession(settings=options.judge)


@pytest.mark.parametrize("config", REAL)
def test_the_model_of_a_configuration_can_be_built_and_adapted(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import transformers
    from peft import get_peft_model
    from trl import get_peft_config

    monkeypatch.chdir(ROOT.resolve().parent)
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
def test_the_data_set_of_a_configuration_has_what_the_recipe_reads(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    from PIL import Image

    monkeypatch.chdir(ROOT.resolve().parent)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    program, words = commands(config)[-1]
    options, args, _ = parsed(program, words)
    row = dict.fromkeys(COLUMNS[options.dataset_name], "text") | {"image": Image.new("RGB", (8, 8)), "problem": "What?"}
    (tmp_path / "rows").mkdir()
    datasets.Dataset.from_list([row] * 3).to_parquet(tmp_path / "rows" / "train.parquet")
    options.dataset_name = str(tmp_path / "rows")
    module: Any = importlib.import_module(f"flexjudge_recipes.{program}")
    if program == "dpo_vlm.train":
        questions = list(module.questions(options, args.seed))
        assert [text for text, _ in questions] == ["What?"] * 3 and questions[0][1].size == (8, 8)
    else:
        rows = module.training_data(options, args.seed)
        assert rows[0]["prompt"][-1] == {"role": "user", "content": "What?"}
        assert rows[0]["image"].size == (8, 8) and rows[0][options.judge["reference_column"]] == "text"
