"""A nano of Mol-LLaMA's released parts: their names of tensors, small random ones, a tokenizer, and a Llama judge."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.late import late

tokenizers = late("tokenizers")
torch = late("torch")
safe = late("safetensors.torch")
transformers = late("transformers")
convert = late("flexjudge_reward.engines.molecules.convert")


FLAT, SPACE, HEADS, GAUSSIANS, INNER, QUERY, QUERIES, LAYERS = 24, 32, 4, 16, 48, 64, 8, 2
WIDE = SPACE  # of blending
HIDDEN, KEYS, MIDDLE, LLM_LAYERS = 64, 32, 96, 2
RANK, ALPHA = 4, 8
ATOMS, BONDS, SYMBOLS = (119, 4, 12, 12, 10, 6, 6, 2, 2), (5, 6, 2), 31
SPECIAL = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def linear(name: str, out: int, into: int) -> Shapes:
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def norm(name: str, width: int, batch: bool = False) -> Shapes:
    for part in ("weight", "bias", *(("running_mean", "running_var") if batch else ())):
        yield f"{name}.{part}", (width,)
    if batch:
        yield f"{name}.num_batches_tracked", ()


def flat() -> Shapes:
    """MoleculeSTM's molecule_model.pth."""
    node = "molecule_node_model"
    for place, size in enumerate(ATOMS):
        yield f"{node}.atom_encoder.atom_embedding_list.{place}.weight", (size, FLAT)
    for layer in range(LAYERS):
        own = f"{node}.gnns.{layer}"
        yield f"{own}.eps", (1,)
        yield from linear(f"{own}.mlp.0", 2 * FLAT, FLAT)
        yield from norm(f"{own}.mlp.1", 2 * FLAT, batch=True)
        yield from linear(f"{own}.mlp.3", FLAT, 2 * FLAT)
        for place, size in enumerate(BONDS):
            yield f"{own}.bond_encoder.bond_embedding_list.{place}.weight", (size, FLAT)
        yield from norm(f"{node}.batch_norms.{layer}", FLAT, batch=True)
    yield from linear("graph_pred_linear", 1, FLAT)


def space() -> Shapes:
    """Uni-Mol's mol_pre_no_h_220816.pt, without what else its training kept."""
    yield "embed_tokens.weight", (SYMBOLS, SPACE)
    for name, shape in {"means": (1, GAUSSIANS), "stds": (1, GAUSSIANS)}.items():
        yield f"gbf.{name}.weight", shape
    for name in ("mul", "bias"):
        yield f"gbf.{name}.weight", (SYMBOLS**2, 1)
    yield from linear("gbf_proj.linear1", GAUSSIANS, GAUSSIANS)
    yield from linear("gbf_proj.linear2", HEADS, GAUSSIANS)
    for name in ("emb_layer_norm", "final_layer_norm"):
        yield from norm(f"encoder.{name}", SPACE)
    for layer in range(LAYERS):
        own = f"encoder.layers.{layer}"
        yield from linear(f"{own}.self_attn.in_proj", 3 * SPACE, SPACE)
        yield from linear(f"{own}.self_attn.out_proj", SPACE, SPACE)
        yield from norm(f"{own}.self_attn_layer_norm", SPACE)
        yield from linear(f"{own}.fc1", INNER, SPACE)
        yield from linear(f"{own}.fc2", SPACE, INNER)
        yield from norm(f"{own}.final_layer_norm", SPACE)
    yield from linear("lm_head.dense", SPACE, SPACE)
    yield from linear("pair2coord_proj.linear1", HEADS, HEADS)


def mol_llama() -> Shapes:
    """The release but for the LoRA."""
    yield from norm("encoder.ln_graph.moleculestm", FLAT)
    yield from norm("encoder.ln_graph.unimol", SPACE)
    yield from linear("encoder.blending_module.mlp.moleculestm.0", WIDE, FLAT)
    yield from linear("encoder.blending_module.mlp.unimol.0", WIDE, SPACE)
    blocks = ("self_attn_block_2D", "self_attn_block_3D", "cross_attn_block_2Dto3D", "cross_attn_block_3Dto2D")
    for layer in range(LAYERS):
        for block in blocks:
            own = f"encoder.blending_module.cross_attn_blocks.{layer}.{block}"
            yield f"{own}.attn.in_proj_weight", (3 * WIDE, WIDE)
            yield f"{own}.attn.in_proj_bias", (3 * WIDE,)
            yield from linear(f"{own}.attn.out_proj", WIDE, WIDE)
            yield from linear(f"{own}.mlp.0", 4 * WIDE, WIDE)
            yield from linear(f"{own}.mlp.2", WIDE, 4 * WIDE)
            for name in ("ln_q", "ln_k", "ln_v", "ln"):
                yield from norm(f"{own}.{name}", WIDE)
    yield "encoder.query_tokens", (1, QUERIES, QUERY)
    bert = "encoder.Qformer.bert"
    yield f"{bert}.embeddings.position_ids", (1, 512)
    yield from norm(f"{bert}.embeddings.LayerNorm", QUERY)
    for layer in range(LAYERS):
        own = f"{bert}.encoder.layer.{layer}"
        for kind, width in {"attention": QUERY, "crossattention": WIDE}.items():
            if kind == "crossattention" and layer % 2:
                continue
            yield from linear(f"{own}.{kind}.self.query", QUERY, QUERY)
            yield from linear(f"{own}.{kind}.self.key", QUERY, width)
            yield from linear(f"{own}.{kind}.self.value", QUERY, width)
            yield from linear(f"{own}.{kind}.output.dense", QUERY, QUERY)
            yield from norm(f"{own}.{kind}.output.LayerNorm", QUERY)
        yield from linear(f"{own}.intermediate_query.dense", INNER, QUERY)
        yield from linear(f"{own}.output_query.dense", QUERY, INNER)
        yield from norm(f"{own}.output_query.LayerNorm", QUERY)
    yield from linear("llm_proj", HIDDEN, QUERY)


def lora() -> Shapes:
    """On all seven projections of each layer."""
    shapes = {
        "self_attn": {"q": (HIDDEN, HIDDEN), "k": (KEYS, HIDDEN), "v": (KEYS, HIDDEN), "o": (HIDDEN, HIDDEN)},
        "mlp": {"gate": (MIDDLE, HIDDEN), "up": (MIDDLE, HIDDEN), "down": (HIDDEN, MIDDLE)},
    }
    for layer in range(LLM_LAYERS):
        for part, each in shapes.items():
            for name, (out, into) in each.items():
                own = f"llm.base_model.model.model.layers.{layer}.{part}.{name}_proj"
                yield f"{own}.lora_A.default.weight", (RANK, into)
                yield f"{own}.lora_B.default.weight", (out, RANK)


def drawn(shapes: Shapes, seed: int) -> dict[str, torch.Tensor]:
    """Random tensors of a size at which every part moves the result."""
    random, found = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes:
        value = torch.randn(shape, generator=random)
        if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            value = 1 + 0.2 * value.tanh()
        elif name.endswith(("num_batches_tracked", "position_ids")):
            value = torch.ones(shape, dtype=torch.long)
        elif len(shape) == 2 and "embed" not in name and "gbf." not in name:
            value *= shape[1] ** -0.5
        elif len(shape) == 1:
            value *= 0.1
        found[name] = value
    return found


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A token per character, Llama's markers, the judge's tags, then Mol-LLaMA's two."""
    first = [*SPECIAL, "<think>", "</think>", "<answer>", "</answer>", *map(chr, (10, *range(32, 127)))]
    model = tokenizers.models.WordLevel({token: number for number, token in enumerate(first)}, unk_token=" ")
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    inner.decoder = tokenizers.decoders.Fuse()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[3],
        extra_special_tokens=list(SPECIAL[1:3]),
        clean_up_tokenization_spaces=False,
    )
    made.add_tokens(["<think>", "</think>", "<answer>", "</answer>"])
    made.add_special_tokens({"pad_token": "[PAD]"})
    made.add_special_tokens({"additional_special_tokens": [*SPECIAL[1:3], "<mol>"]})
    return made


def llama(rows: int, end: int) -> transformers.LlamaForCausalLM:
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=rows,
        hidden_size=HIDDEN,
        intermediate_size=MIDDLE,
        num_hidden_layers=LLM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=end,
        pad_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.weight, std=0.05)
    return model


def parts(folder: Path) -> dict[str, Path]:
    """The released parts and a judge, below `folder`, as `convert` takes them."""
    made = tokenizer()
    found = {"judge": folder / "judge", "mol_llama": folder / "mol_llama"}
    found |= {"flat": folder / "molecule_model.pth", "space": folder / "mol_pre_no_h_220816.pt"}
    found["mol_llama"].mkdir(parents=True)
    llama(len(made) - 2, made.eos_token_id).save_pretrained(found["judge"])
    made.save_pretrained(found["mol_llama"])
    settings: dict[str, Any] = {"model_type": "mol_llama", "blending_module_config": {"num_heads": HEADS}}
    settings["llm_config"] = {"lora_config": {"r": RANK, "lora_alpha": ALPHA}}
    (found["mol_llama"] / "config.json").write_text(json.dumps(settings))
    weights = {**drawn(mol_llama(), 1), **drawn(lora(), 2)}
    safe.save_file(weights, found["mol_llama"] / "model.safetensors")
    torch.save(drawn(flat(), 3), found["flat"])
    torch.save({"model": drawn(space(), 4), "optimizer_history": [{"num_updates": 9}]}, found["space"])
    return found


def converted(folder: Path) -> Path:
    """The folder of a converted nano."""
    convert.convert(**parts(folder / "parts"), output=folder / "nano-mol")
    return folder / "nano-mol"
