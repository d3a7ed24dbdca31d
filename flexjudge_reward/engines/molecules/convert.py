"""Makes a judge that reads molecule tokens: the released parts of Mol-LLaMA and a Llama judge as one folder.

    python -m flexjudge_reward.engines.molecules.convert --judge my-judge --mol_llama Mol-Llama-3.1-8B-Instruct \\
        --flat molecule_model.pth --space mol_pre_no_h_220816.pt --output flex-mol-llama

    mol_llama   a folder of DongkiKim/Mol-Llama-3.1-8B-Instruct: blending, Q-Former, LoRA, projection, tokenizer
    flat        chao1224/MoleculeSTM, demo/demo_checkpoints_Graph/molecule_model.pth
    space       dptech/Uni-Mol-Models, mol_pre_no_h_220816.pt
    judge       a folder of a judge trained from Llama-3.1-8B-Instruct; Llama itself gives Mol-LLaMA, the policy

The merge is Flex-Judge's `import_judge` (its example/models/mol_llama.py): the language model is the judge's, but for
the last two rows of its input embeddings, the padding and molecule tokens, and Mol-LLaMA's LoRA, which here is added to
the weights. Where the release has no rows of embeddings, as it need not, and in the output head the two are the mean of
all: they are masked or replaced, and never written.

Promised: no pickle is executed (`torch.load` with `weights_only`), a tensor of an unknown name or another shape and a
LoRA that is not merged whole are errors that name it, and the folder appears whole. Checked on fixtures of the released
names and shapes only: the release itself is out of this project's reach.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from flexjudge_reward.engines.molecules.model import SIZES, MolConfig, MolForConditionalGeneration
from flexjudge_reward.errors import ConfigError, FlexJudgeError

Tensors = dict[str, torch.Tensor]
Table = Sequence[tuple[str, str | None]]

FLAT: Table = (  # of MoleculeSTM; None is left out
    (r"molecule_node_model\.atom_encoder\.atom_embedding_list\.(\d+\.weight)", r"encoder.flat.atom_features.\1"),
    (r"molecule_node_model\.gnns\.(\d+\.(?:mlp\..+|eps))", r"encoder.flat.convolutions.\1"),
    (
        r"molecule_node_model\.gnns\.(\d+)\.bond_encoder\.bond_embedding_list\.(\d+\.weight)",
        r"encoder.flat.convolutions.\1.bond_features.\2",
    ),
    (r"molecule_node_model\.batch_norms\.(.+)", r"encoder.flat.norms.\1"),
    (r"graph_pred_linear\..+", None),
)
SPACE: Table = (  # of Uni-Mol
    (r"embed_tokens\.weight", "encoder.space.symbols.weight"),
    (r"gbf\.(means|stds)\.weight", r"encoder.space.distances.\1.weight"),
    (r"gbf\.mul\.weight", "encoder.space.distances.scale.weight"),
    (r"gbf\.bias\.weight", "encoder.space.distances.shift.weight"),
    (r"gbf_proj\.linear1\.(.+)", r"encoder.space.distances.hidden.\1"),
    (r"gbf_proj\.linear2\.(.+)", r"encoder.space.distances.out.\1"),
    (r"encoder\.emb_layer_norm\.(.+)", r"encoder.space.first_norm.\1"),
    (r"encoder\.final_layer_norm\.(.+)", r"encoder.space.last_norm.\1"),
    (r"encoder\.layers\.(\d+)\.self_attn\.in_proj\.(.+)", r"encoder.space.layers.\1.qkv.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.+)", r"encoder.space.layers.\1.attended.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.(.+)", r"encoder.space.layers.\1.attention_norm.\2"),
    (r"encoder\.layers\.(\d+)\.fc1\.(.+)", r"encoder.space.layers.\1.up.\2"),
    (r"encoder\.layers\.(\d+)\.fc2\.(.+)", r"encoder.space.layers.\1.down.\2"),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.(.+)", r"encoder.space.layers.\1.norm.\2"),
    (r"(?:lm_head|pair2coord_proj|dist_head|classification_heads|encoder\.final_head_layer_norm)\..+", None),
)
_BLOCKS = {
    "self_attn_block_2D": "flat",
    "self_attn_block_3D": "space",
    "cross_attn_block_2Dto3D": "flat_to_space",
    "cross_attn_block_3Dto2D": "space_to_flat",
}
_FORMER = r"encoder\.Qformer\.bert\."
_LAYER = _FORMER + r"encoder\.layer\.(\d+)\."
REST: Table = (  # of Mol-LLaMA
    (r"encoder\.ln_graph\.moleculestm\.(.+)", r"encoder.flat_norm.\1"),
    (r"encoder\.ln_graph\.unimol\.(.+)", r"encoder.space_norm.\1"),
    (r"encoder\.blending_module\.mlp\.moleculestm\.0\.(.+)", r"encoder.flat_in.\1"),
    (r"encoder\.blending_module\.mlp\.unimol\.0\.(.+)", r"encoder.space_in.\1"),
    *(
        (rf"encoder\.blending_module\.cross_attn_blocks\.(\d+)\.{theirs}\.(.+)", rf"encoder.blend.\1.{ours}.\2")
        for theirs, ours in _BLOCKS.items()
    ),
    (r"encoder\.query_tokens", "encoder.queries"),
    (_FORMER + r"embeddings\.LayerNorm\.(.+)", r"encoder.former.layernorm.\1"),
    (_LAYER + r"(attention|crossattention)\.self\.(.+)", r"encoder.former.encoder.layer.\1.\2.attention.\3"),
    (_LAYER + r"((?:attention|crossattention)\.output\..+)", r"encoder.former.encoder.layer.\1.\2"),
    (_LAYER + r"((?:intermediate|output)_query\..+)", r"encoder.former.encoder.layer.\1.\2"),
    (r"llm_proj\.(.+)", r"projection.\1"),
    # Its half for text and its heads are dropped after the first stage; the encoders come from their own files, which
    # Mol-LLaMA does not train.
    (_FORMER + r"embeddings\.(?:position_ids|(?:word|position)_embeddings\..+)", None),
    (_LAYER + r"(?:intermediate|output)\..+", None),
    (r"encoder\.(?:Qformer\.cls|graph_proj|text_proj|gtm_head|graph_encoder)\..+", None),
    (r"llm\..+", None),  # read apart
)
_LORA = re.compile(r"llm\.base_model\.model\.(.+)\.lora_(?:A|B)\.(?:default\.)?weight")
_EMBEDDINGS = "llm.base_model.model.model.embed_tokens.weight"
_IN, _OUT = "model.embed_tokens.weight", "lm_head.weight"
_NEW = 2  # tokens that Mol-LLaMA adds: padding and the place of a molecule
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TOKEN = "<mol>"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TEMPLATE = """\
<|begin_of_text|>
{%- for message in messages -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{{- '<mol>' * QUERIES if part['type'] == 'molecule' else part['text'] -}}
{%- endfor -%}
{%- endif -%}
{{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}"""
"""As both repositories write a conversation (their data_provider/tokenization_utils.py), without Llama's dates."""


def convert(judge: Path, mol_llama: Path, flat: Path, space: Path, output: Path) -> None:
    """Writes the folder `output`, which must not exist; see the module for the parts. Raises ConfigError."""
    if output.exists():
        raise ConfigError(f"{output} exists already: give the name of a new folder")
    released, settings = tensors(mol_llama), _json(mol_llama / "config.json")
    tokenizer = _json(mol_llama / "tokenizer_config.json")
    state = renamed(released, REST, mol_llama)
    state |= renamed(tensors(flat), FLAT, flat) | renamed(tensors(space), SPACE, space)
    tokens, alpha = _token_count(mol_llama), _number(settings, ("llm_config", "lora_config", "lora_alpha"), 32)
    language = merged(tensors(judge), released, tokens, alpha)
    state = {name: value.float() if value.dtype in _FLOATS else value for name, value in state.items()}
    state |= {f"llm.{name}": value for name, value in language.items()}
    config = MolConfig(_language_config(judge, tokens), tokens - 1, dtype=language[_IN].dtype, **sizes(state, settings))
    with torch.device("meta"):  # an 8B model is in memory once
        model = MolForConditionalGeneration(config)
    _check(model.state_dict(), state, {"llm.lm_head.weight"} if config.tie_word_embeddings else set())
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    _write_rest(partial, judge, mol_llama, tokenizer, config.queries)
    _note_type(partial / "config.json", language[_IN].dtype)
    partial.rename(output)


def tensors(source: Path) -> Tensors:
    """The tensors of a file, or of all files of weights of a folder, by their names.

    Raises ConfigError: there are none, a file is damaged, or two have a tensor of one name, as an old and a new one.
    """
    files = [source]
    if source.is_dir():
        files = sorted(source.glob("*.safetensors")) or sorted(source.glob("pytorch_model*.bin"))
    if not files or not all(file.is_file() for file in files):
        raise ConfigError(f"there are no weights at {source}: a file, or a folder with .safetensors files")
    found: Tensors = {}
    for file in files:
        own = _tensors_of(file)
        if twice := sorted(found.keys() & own.keys()):
            raise ConfigError(f"{file.name} of {source} has {twice[0]!r}, as another file there: leave one of them")
        found |= own
    return found


def _tensors_of(file: Path) -> Tensors:
    try:
        is_plain = file.suffix == ".safetensors"
        with torch.serialization.safe_globals([argparse.Namespace]):  # Uni-Core keeps the options of its command so
            held: Any = load_file(file) if is_plain else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of a pickle that wants to run something, or of a damaged file
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"{file} is not a file of plain tensors, and nothing else is loaded: {reason}") from None
    held = held.get("model", held) if isinstance(held, dict) and not is_plain else held
    if not isinstance(held, dict) or not all(isinstance(value, torch.Tensor) for value in held.values()):
        raise ConfigError(f"{file} holds no tensors by their names")
    return dict(held)


def renamed(theirs: Tensors, table: Table, source: Path) -> Tensors:
    """The tensors under our names. Raises ConfigError: the table does not have one."""
    ours: Tensors = {}
    for name, value in theirs.items():
        found = [(match, new) for pattern, new in table if (match := re.fullmatch(pattern, name))]
        if not found:
            raise ConfigError(f"{source} has a tensor of an unknown name, {name!r}: it is not the released checkpoint")
        match, new = found[0]
        if new is not None:
            ours[match.expand(new)] = value
    return ours


def merged(judge: Tensors, released: Tensors, tokens: int, alpha: float) -> Tensors:
    """The language model: Flex-Judge's merge, with Mol-LLaMA's LoRA added. Raises ConfigError.

    Args:
        tokens: of Mol-LLaMA's tokenizer.
        alpha: of the LoRA, whose rank is that of its tensors.
    """
    language = {name: value for name, value in judge.items() if not name.endswith("rotary_emb.inv_freq")}
    for name in (_IN, _OUT):
        if name in language:
            language[name] = _with_rows(language[name], tokens)
    if _IN not in language:
        raise ConfigError(f"the judge has no tensor {_IN!r}: it is no Llama")
    if _EMBEDDINGS in released:
        language[_IN][-_NEW:] = released[_EMBEDDINGS][-_NEW:].to(language[_IN].dtype)
    for layer, (down, up) in _lora(released).items():
        target = f"{layer}.weight"
        if target not in language or language[target].shape != (up.shape[0], down.shape[1]):
            raise ConfigError(f"the LoRA of {layer!r} does not fit the judge: it has another base model")
        added = up @ down * (alpha / down.shape[0])
        language[target] = (language[target].float() + added).to(language[target].dtype)
    return language


def _lora(released: Tensors) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mol-LLaMA's LoRA, down and up, per layer. Raises ConfigError: a tensor of it would be left out, or be twice."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name in (name for name in released if name.startswith("llm.") and "lora_" in name):
        match, side = _LORA.fullmatch(name), "lora_A" if ".lora_A." in name else "lora_B"
        if match is None or side in found.setdefault(match[1], {}):
            raise ConfigError(f"the LoRA has a tensor {name!r} of an unknown name: it is not the released checkpoint")
        found[match[1]][side] = released[name].float()
    if lacking := next((layer for layer, own in found.items() if len(own) < 2), "" if found else "any layer"):
        raise ConfigError(f"the release lacks the LoRA of {lacking!r}, or a half of it: it is not whole")
    pairs = {layer: (own["lora_A"], own["lora_B"]) for layer, own in found.items()}
    if odd := next((layer for layer, (down, up) in pairs.items() if down.shape[:1] != up.shape[1:]), ""):
        raise ConfigError(f"the two halves of the LoRA of {odd!r} have different ranks")
    return pairs


def _with_rows(table: torch.Tensor, rows: int) -> torch.Tensor:
    """The first rows of a table; new ones are the mean of all, as transformers makes them on average."""
    mean = table.float().mean(0, keepdim=True).to(table.dtype)
    return torch.cat([table[:rows], mean.repeat(max(0, rows - len(table)), 1)])


def sizes(state: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, int]:
    """The sizes in `SIZES`, as the tensors have them; the numbers of heads that these do not tell are the released.

    Raises ConfigError: a tensor is missing.
    """

    def count(prefix: str) -> int:
        places = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
        return len(places)

    try:
        width = state["encoder.queries"].shape[2]
        found = {
            "flat_width": state["encoder.flat_norm.weight"].shape[0],
            "flat_layers": count("encoder.flat.convolutions."),
            "space_width": state["encoder.space_norm.weight"].shape[0],
            "space_layers": count("encoder.space.layers."),
            "space_heads": state["encoder.space.distances.out.weight"].shape[0],
            "space_inner": state["encoder.space.layers.0.up.weight"].shape[0],
            "gaussians": state["encoder.space.distances.means.weight"].shape[1],
            "blend_layers": count("encoder.blend."),
            "blend_heads": int(_number(settings, ("blending_module_config", "num_heads"), SIZES["blend_heads"])),
            "queries": state["encoder.queries"].shape[1],
            "query_width": width,
            "query_layers": count("encoder.former.encoder.layer."),
            "query_heads": max(1, width // 64),  # as BERT has them
            "query_inner": state["encoder.former.encoder.layer.0.intermediate_query.dense.weight"].shape[0],
        }
    except (KeyError, IndexError) as error:
        raise ConfigError(f"the released parts lack a tensor, or one has fewer dimensions: {error}") from None
    assert found.keys() == SIZES.keys()
    return found


def _check(expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], tied: set[str]) -> None:
    """Raises ConfigError: a tensor is missing, not of the model, of another shape or type, or has what is no number."""
    for name in sorted(expected.keys() - given.keys() - tied):
        raise ConfigError(f"the parts lack the tensor {name!r}, by our name for it")
    for name, value in given.items():
        wanted = expected[name].shape if name in expected else "none"
        if wanted != value.shape:
            raise ConfigError(f"the tensor {name!r} has the shape {tuple(value.shape)}; the model has {wanted}")
        if expected[name].is_floating_point() and value.dtype not in _FLOATS:
            raise ConfigError(f"the tensor {name!r} is of {value.dtype}: give weights that are not quantised")
        if not value.isfinite().all():
            raise ConfigError(f"the tensor {name!r} has values that are no finite numbers: its file is damaged")


def _language_config(judge: Path, tokens: int) -> dict[str, Any]:
    config = _json(judge / "config.json")
    if config.get("model_type") != "llama":
        raise ConfigError(f"the judge {judge} is a {config.get('model_type')}, and Mol-LLaMA needs a llama")
    return config | {"vocab_size": tokens}


def _token_count(mol_llama: Path) -> int:
    """How many tokens the tokenizer has. Raises ConfigError: the place of a molecule is not the last one."""
    try:
        held = json.loads((mol_llama / "tokenizer.json").read_text("utf-8"))
        places = dict(held["model"]["vocab"]) | {entry["content"]: entry["id"] for entry in held["added_tokens"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"the tokenizer.json of {mol_llama} cannot be read: {type(error).__name__}") from None
    last = max(places.values(), default=-1)
    if places.get(TOKEN) != last:
        raise ConfigError(f"the tokenizer of {mol_llama} does not end with {TOKEN}: it is not Mol-LLaMA's")
    return int(last) + 1


def _write_rest(folder: Path, judge: Path, mol_llama: Path, settings: dict[str, Any], queries: int) -> None:
    """Tokenizer with its `settings`, chat template and what ends a reply."""
    for name in _TOKENIZER:
        if (mol_llama / name).is_file():
            shutil.copyfile(mol_llama / name, folder / name)
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False), "utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("QUERIES", str(queries)), "utf-8")
    if (judge / "generation_config.json").is_file():
        shutil.copyfile(judge / "generation_config.json", folder / "generation_config.json")


def _note_type(file: Path, dtype: torch.dtype) -> None:
    """Writes the type of the language model into the config: what was saved is that of the encoder, always float32."""
    config, name = _json(file), str(dtype).removeprefix("torch.")
    config |= {"dtype": name, "llm_config": config["llm_config"] | {"dtype": name}}
    file.write_text(json.dumps(config, indent=2), "utf-8")


def _number(settings: Mapping[str, Any], names: Sequence[str], released: float) -> float:
    """A number of the release's config; `released` where that leaves it out. Raises ConfigError."""
    held: Any = settings
    for name in names:
        held = held.get(name) if isinstance(held, Mapping) else None
    if held is not None and (isinstance(held, bool) or not isinstance(held, int | float)):
        raise ConfigError(f"the config of Mol-LLaMA has {'.'.join(names)}={held!r:.80}: it is no number")
    return float(released if held is None else held)


def _json(file: Path) -> dict[str, Any]:
    try:
        held = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {type(error).__name__}") from None
    return held if isinstance(held, dict) else {}


def main() -> None:
    """Converts, as the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("judge", "mol_llama", "flat", "space", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    try:
        convert(**vars(parser.parse_args()))
    except FlexJudgeError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
