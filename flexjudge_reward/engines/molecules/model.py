"""The model type `flexjudge_mol`: a Llama that reads a molecule as eight vectors in its prompt.

Importing this module makes the type known to `AutoConfig` and `AutoModelForCausalLM`. Promised: a prompt whose places
for molecules are not whole, or not exactly the queries times the molecules of its batch, raises a ValueError.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Blip2QFormerConfig,
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

from flexjudge_reward.engines.model import MOLECULES
from flexjudge_reward.engines.molecules.encoders import Flat, Space
from flexjudge_reward.engines.molecules.graphs import Graphs

SIZES = {
    "flat_width": 300,
    "flat_layers": 5,
    "space_width": 512,
    "space_layers": 15,
    "space_heads": 64,
    "space_inner": 2048,
    "gaussians": 128,
    "blend_layers": 4,
    "blend_heads": 8,
    "queries": 8,
    "query_width": 768,
    "query_layers": 12,
    "query_heads": 12,
    "query_inner": 3072,
}
"""The sizes of Mol-LLaMA, by their names in the config."""


class MolConfig(PreTrainedConfig):  # type: ignore[misc]
    """The sizes of `SIZES`, the config of the language model, and the token that a molecule's vectors replace."""

    model_type = MOLECULES
    sub_configs = {"llm_config": LlamaConfig}  # noqa: RUF012

    def __init__(self, llm_config: Any = None, mol_token_id: int = 0, **given: Any) -> None:
        self.llm_config = llm_config if isinstance(llm_config, LlamaConfig) else LlamaConfig(**(llm_config or {}))
        self.mol_token_id = mol_token_id
        for name, size in SIZES.items():
            setattr(self, name, given.pop(name, size))
        given.setdefault("tie_word_embeddings", self.llm_config.tie_word_embeddings)
        super().__init__(**given)

    def get_text_config(self, *args: Any, **kwargs: Any) -> LlamaConfig:
        """That of the language model."""
        return self.llm_config


class Attention(nn.Module):  # type: ignore[misc]
    """Attention of one list to another, and a feed-forward, each with what went in added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.ln_q, self.ln_k, self.ln_v, self.ln = (nn.LayerNorm(width) for _ in range(4))

    def forward(self, own: torch.Tensor, other: torch.Tensor, there: torch.Tensor, own_there: torch.Tensor) -> Any:
        """`own` as it looks at those of `other` that are there; zero where `own` has none."""
        query, key, value = self.ln_q(own), self.ln_k(other), self.ln_v(other)
        own = own + self.attn(query, key, value, key_padding_mask=~there, need_weights=False)[0]
        return (own + self.mlp(self.ln(own))) * own_there[..., None]


class BlendLayer(nn.Module):  # type: ignore[misc]
    """Each view looks at itself, then at the other; 3D sees 2D as it is by then."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.flat, self.space, self.flat_to_space, self.space_to_flat = (Attention(width, heads) for _ in range(4))

    def forward(self, flat: Any, flat_there: Any, space: Any, space_there: Any) -> tuple[Any, Any]:
        """The two views, changed."""
        flat = self.flat(flat, flat, flat_there, flat_there)
        space = self.space(space, space, space_there, space_there)
        flat = self.space_to_flat(flat, space, space_there, flat_there)
        return flat, self.flat_to_space(space, flat, flat_there, space_there)


class Encoder(nn.Module):  # type: ignore[misc]
    """Molecules as a few vectors each."""

    def __init__(self, config: MolConfig) -> None:
        super().__init__()
        c, width = config, max(config.flat_width, config.space_width)
        self.flat = Flat(c.flat_width, c.flat_layers)
        self.space = Space(c.space_width, c.space_layers, c.space_heads, c.space_inner, c.gaussians)
        self.flat_norm, self.space_norm = nn.LayerNorm(c.flat_width), nn.LayerNorm(c.space_width)
        self.flat_in, self.space_in = nn.Linear(c.flat_width, width), nn.Linear(c.space_width, width)
        self.blend = nn.ModuleList([BlendLayer(width, c.blend_heads) for _ in range(c.blend_layers)])
        self.queries = nn.Parameter(torch.zeros(1, c.queries, c.query_width))
        former = Blip2QFormerConfig(
            vocab_size=1,  # its text half is not used
            hidden_size=c.query_width,
            num_hidden_layers=c.query_layers,
            num_attention_heads=c.query_heads,
            intermediate_size=c.query_inner,
            encoder_hidden_size=width,
            cross_attention_frequency=2,
        )
        former._attn_implementation = "eager"
        self.former = Blip2QFormerModel(former)

    def forward(self, graphs: Graphs) -> torch.Tensor:
        """(molecules, queries, query width)."""
        (flat, flat_there), (space, space_there) = self.flat(graphs), self.space(graphs)
        flat = self.flat_in(self.flat_norm(flat)) * flat_there[..., None]
        space = self.space_in(self.space_norm(space)) * space_there[..., None]
        for layer in self.blend:
            flat, space = layer(flat, flat_there, space, space_there)
        return self.former(
            query_embeds=self.queries.expand(len(flat), -1, -1),
            encoder_hidden_states=torch.cat([flat, space], 1),
            encoder_attention_mask=torch.cat([flat_there, space_there], 1).long(),
        ).last_hidden_state


class MolForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Text and molecules in, text out: `generate(input_ids=, attention_mask=, graphs=)`."""

    config_class, base_model_prefix, main_input_name = MolConfig, "", "input_ids"
    # As Mol-LLaMA runs them beside a language model of 16 bits.
    _keep_in_fp32_modules_strict = ("encoder", "projection")
    _tied_weights_keys = {"llm.lm_head.weight": "llm.model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MolConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.projection = nn.Linear(config.query_width, config.llm_config.hidden_size)
        self.llm = LlamaForCausalLM(config.llm_config)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.llm.get_output_embeddings()

    # `generate` refuses an argument that is not named here, unless what takes the others is called `kwargs`.
    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        inputs_embeds: Any = None,
        graphs: Graphs | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `LlamaForCausalLM`, with the molecules of the batch in order. Raises ValueError: see the module."""
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
            if graphs is not None:
                inputs_embeds = self._with_molecules(input_ids, inputs_embeds, graphs.to(input_ids.device))
        return self.llm(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)

    def _with_molecules(self, input_ids: Any, embedded: Any, graphs: Graphs) -> Any:
        places = input_ids == self.config.mol_token_id
        vectors = self.projection(self.encoder(graphs))
        whole = not (places.sum(-1) % self.config.queries).any()  # or a row would read a part of another's molecule
        if int(places.sum()) != len(vectors) * self.config.queries or not whole:
            raise ValueError(
                f"a prompt has {self.config.queries} tokens for each molecule, found {int(places.sum())} for"
                f" {len(vectors)} molecules"
            )
        return embedded.masked_scatter(places[..., None], vectors.to(embedded.dtype))

    def prepare_inputs_for_generation(self, input_ids: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        """The molecules are read once, with the prompt."""
        inputs = super().prepare_inputs_for_generation(input_ids, past_key_values=past_key_values, **kwargs)
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            inputs["graphs"] = None
        return inputs


AutoConfig.register(MOLECULES, MolConfig)
AutoModelForCausalLM.register(MolConfig, MolForConditionalGeneration)
