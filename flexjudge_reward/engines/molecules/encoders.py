"""The two views of a molecule, each as vectors: `Flat` reads its bonds, `Space` the places of its atoms.

Both are for inference: dropout is left out. Sources: MoleculeSTM's graph network (GIN, arXiv 1810.00826, with features
of the bonds) and Uni-Mol's encoder (its transformer_encoder_with_pair.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from flexjudge_reward.engines.molecules.graphs import ATOM_SIZES, BOND_SIZES, SYMBOLS, Graphs

_PI = 3.14159  # as Uni-Mol has it in the scale of its Gaussians


class Features(nn.ModuleList):  # type: ignore[misc]
    """The sum of one learned vector per feature."""

    def __init__(self, sizes: tuple[int, ...], width: int) -> None:
        super().__init__([nn.Embedding(size, width) for size in sizes])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(n, features) -> (n, width)."""
        return torch.stack([table(features[:, place]) for place, table in enumerate(self)]).sum(0)


class Convolution(nn.Module):  # type: ignore[misc]
    """Each atom takes the sum of what its neighbours send along their bonds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 2 * width
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.BatchNorm1d(inner), nn.ReLU(), nn.Linear(inner, width))
        self.eps = nn.Parameter(torch.zeros(1))
        self.bond_features = Features(BOND_SIZES, width)

    def forward(self, atoms: torch.Tensor, edges: torch.Tensor, bonds: torch.Tensor) -> torch.Tensor:
        """(atoms, width) -> the same."""
        sent = F.relu(atoms[edges[0]] + self.bond_features(bonds))
        received = torch.zeros_like(atoms).index_add_(0, edges[1], sent)
        return self.mlp((1 + self.eps) * atoms + received)


class Flat(nn.Module):  # type: ignore[misc]
    """The 2D view: one vector of the whole molecule, the mean of its atoms', then one per atom."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.atom_features = Features(ATOM_SIZES, width)
        self.convolutions = nn.ModuleList([Convolution(width) for _ in range(layers)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(width) for _ in range(layers)])

    def forward(self, graphs: Graphs) -> tuple[torch.Tensor, torch.Tensor]:
        """(molecules, 1 + most atoms, width), and which of these are there."""
        atoms = self.atom_features(graphs.atoms)
        for number, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True), 1):
            atoms = norm(convolution(atoms, graphs.edges, graphs.bonds))
            atoms = atoms if number == len(self.norms) else F.relu(atoms)
        there = torch.arange(int(graphs.sizes.max()), device=atoms.device) < graphs.sizes[:, None]
        placed = atoms.new_zeros(*there.shape, atoms.shape[-1])
        placed[there] = atoms
        whole = placed.sum(1, keepdim=True) / graphs.sizes[:, None, None].to(atoms.dtype)
        return torch.cat([whole, placed], 1), F.pad(there, (1, 0), value=True)


class Distances(nn.Module):  # type: ignore[misc]
    """A distance between two atoms as Gaussians, scaled and shifted for their kinds, then as a bias of each head."""

    def __init__(self, gaussians: int, heads: int) -> None:
        super().__init__()
        self.means, self.stds = nn.Embedding(1, gaussians), nn.Embedding(1, gaussians)
        self.scale, self.shift = nn.Embedding(len(SYMBOLS) ** 2, 1), nn.Embedding(len(SYMBOLS) ** 2, 1)
        self.hidden, self.out = nn.Linear(gaussians, gaussians), nn.Linear(gaussians, heads)

    def forward(self, distances: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """(molecules, n, n) in angstrom -> (molecules, heads, n, n)."""
        # In 32 bits: half a percent of a distance is more than a bond's length tells
        placed = self.scale(pairs).float() * distances[..., None] + self.shift(pairs).float()
        width = self.stds.weight[0].float().abs() + 1e-5
        bells = torch.exp(-0.5 * ((placed - self.means.weight[0].float()) / width) ** 2) / ((2 * _PI) ** 0.5 * width)
        return self.out(F.gelu(self.hidden(bells.to(self.hidden.weight.dtype)))).permute(0, 3, 1, 2)


class SpaceLayer(nn.Module):  # type: ignore[misc]
    """Self-attention that starts from a bias per pair of atoms, and hands its scores to the next layer as that."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.attended = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, atoms: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(molecules, n, width) and (molecules, heads, n, n) -> the same."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.attention_norm(atoms)).chunk(3, -1)
        )
        scores = bias + query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        atoms = atoms + self.attended((scores.softmax(-1) @ value).transpose(1, 2).flatten(-2))
        return atoms + self.down(F.gelu(self.up(self.norm(atoms)))), scores


class Space(nn.Module):  # type: ignore[misc]
    """The 3D view: one vector per atom, between those of two markers at their centre."""

    def __init__(self, width: int, layers: int, heads: int, inner: int, gaussians: int) -> None:
        super().__init__()
        self.symbols = nn.Embedding(len(SYMBOLS), width, padding_idx=0)
        self.distances = Distances(gaussians, heads)
        self.first_norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.layers = nn.ModuleList([SpaceLayer(width, heads, inner) for _ in range(layers)])

    def forward(self, graphs: Graphs) -> tuple[torch.Tensor, torch.Tensor]:
        """(molecules, longest, width), and which of these are there."""
        there = graphs.tokens != 0
        atoms = self.first_norm(self.symbols(graphs.tokens)) * there[..., None]
        bias = self.distances(graphs.distances, graphs.pairs)
        bias = bias.masked_fill(~there[:, None, None, :], float("-inf"))
        for layer in self.layers:
            atoms, bias = layer(atoms, bias)
        return self.last_norm(atoms), there
