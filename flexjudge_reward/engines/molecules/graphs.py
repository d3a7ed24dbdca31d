"""Graphs of molecules as tensors: what `Media.graph()` holds, checked and put side by side.

Promised: a graph with a number out of its range, such as one of an edited record, is a ValueError; it never becomes an
index into a table of vectors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

# Uni-Mol's mol.dict.txt and [MASK], in their order.
SYMBOLS = (
    *("[PAD]", "[CLS]", "[SEP]", "[UNK]", "C", "N", "O", "S", "H", "Cl", "F", "Br", "I", "Si", "P", "B", "Na", "K"),
    *("Al", "Ca", "Sn", "As", "Hg", "Fe", "Zn", "Cr", "Se", "Gd", "Au", "Li", "[MASK]"),
)
_PAD, _FIRST, _LAST, _UNKNOWN = range(4)
_INDEX = {symbol: index for index, symbol in enumerate(SYMBOLS)}
ATOM_SIZES = (119, 4, 12, 12, 10, 6, 6, 2, 2)
"""How many values each of OGB's nine features of an atom has."""
BOND_SIZES = (5, 6, 2)
"""The same of a bond."""
_MOST_ATOMS = 512  # of Uni-Mol


@dataclass(frozen=True)
class Graphs:
    """Several molecules: their bonds side by side, their places in space padded to the longest."""

    atoms: torch.Tensor
    """(atoms of all, 9), int64."""
    edges: torch.Tensor
    """(2, twice the bonds of all), int64: each bond in both directions."""
    bonds: torch.Tensor
    """(twice the bonds of all, 3), int64."""
    sizes: torch.Tensor
    """(molecules,), int64: the atoms of each."""
    tokens: torch.Tensor
    """(molecules, longest), int64: places in `SYMBOLS`, 0 behind the end."""
    distances: torch.Tensor
    """(molecules, longest, longest), float32, in angstrom; 0 behind the end."""

    def to(self, device: Any, non_blocking: bool = False) -> Graphs:
        """The same on another device."""
        return Graphs(*(getattr(self, field.name).to(device, non_blocking=non_blocking) for field in fields(self)))

    @property
    def pairs(self) -> torch.Tensor:
        """(molecules, longest, longest): the kind of a pair of atoms, for Uni-Mol."""
        return self.tokens[:, :, None] * len(SYMBOLS) + self.tokens[:, None, :]


def collate(graphs: Sequence[bytes]) -> Graphs:
    """Graphs as `Media.graph()` gives them, at least one. Raises ValueError."""
    read = [_read(graph) for graph in graphs]
    starts = [sum(len(atoms) for atoms, *_ in read[:number]) for number in range(len(read))]
    both = [torch.cat([ends, ends.flip(1)]) + start for (_, ends, *_), start in zip(read, starts, strict=True)]
    longest = max(len(tokens) for *_, tokens, _ in read)
    distances = torch.zeros(len(read), longest, longest)
    for number, (*_, tokens, places) in enumerate(read):
        distances[number, : len(tokens), : len(tokens)] = torch.cdist(places, places).float()
    return Graphs(
        atoms=torch.cat([atoms for atoms, *_ in read]),
        edges=torch.cat(both).T,
        bonds=torch.cat([kinds.repeat(2, 1) for _, _, kinds, *_ in read]),
        sizes=torch.tensor([len(atoms) for atoms, *_ in read]),
        tokens=pad_sequence([tokens for *_, tokens, _ in read], batch_first=True, padding_value=_PAD),
        distances=distances,
    )


_Read = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _read(graph: bytes) -> _Read:
    """Atoms, ends of the bonds, their features, tokens, and places around their centre, with that of both markers."""
    try:
        found = json.loads(graph)
        atoms = torch.tensor(found["atoms"], dtype=torch.long).reshape(-1, len(ATOM_SIZES))
        bonds = torch.tensor(found["bonds"], dtype=torch.long).reshape(-1, 2 + len(BOND_SIZES))
        places = torch.tensor(found["positions"], dtype=torch.float64).reshape(-1, 3)
        tokens = [_FIRST, *(_INDEX.get(symbol, _UNKNOWN) for symbol in found["symbols"]), _LAST]
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"the graph of a molecule cannot be read: {type(error).__name__}") from None
    limits = torch.tensor([len(atoms), len(atoms), *BOND_SIZES])
    within = ((atoms >= 0) & (atoms < torch.tensor(ATOM_SIZES))).all() and ((bonds >= 0) & (bonds < limits)).all()
    counts = 0 < len(places) == len(tokens) - 2 <= min(_MOST_ATOMS, len(atoms))
    if not within or not counts or not places.isfinite().all():
        raise ValueError("the graph of a molecule has a number out of its range")
    centre = torch.zeros(1, 3, dtype=torch.float64)
    around = torch.cat([centre, places - places.mean(0), centre])
    return atoms, bonds[:, :2], bonds[:, 2:], torch.tensor(tokens), around
