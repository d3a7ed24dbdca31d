"""Molecules made by rule: what the tiny policy and the tiny judge of the CPU run learn from.

The rules join common rings, linkers and end groups at random, and RDKit checks the result. They teach what SMILES look
like and nothing else; many of the molecules make little chemical sense. No list of molecules is shipped. All have 15 to
30 heavy atoms: there are so few smaller ones that six in ten would be in any list, and novelty would measure that.

How a policy's molecules are measured does not depend on this world: see `recipes/molecules/measure.py`.
"""

from __future__ import annotations

import random

from rdkit import Chem, rdBase

# Each begins with the atom that binds to the left; {} is a place for a further part.
RINGS = (
    *("c1ccc({})cc1", "c1cccc({})c1", "c1ccccc1{}", "c1cc({})c({})cc1", "c1ccc({})nc1", "c1cnc({})nc1", "c1csc({})n1"),
    *("c1cc({})on1", "c1ccc({})o1", "c1ccc({})s1", "c1nnc({})o1", "c1c[nH]c2ccc({})cc12", "c1ccc2ncccc2c1"),
    *("C1CCN({})CC1", "N1CCN({})CC1", "N1CCC({})CC1", "N1CCOCC1", "C1CCCCC1{}", "C1CC1", "C1CCN({})C1", "C1CCOCC1"),
)
LINKERS = ("", "", "C", "O", "N", "CC", "OC", "CO", "NC", "CN", "C(=O)N", "NC(=O)", "C(=O)", "S(=O)(=O)N", "OCC", "CCC")
ENDS = (
    *("C", "C", "CC", "C(C)C", "F", "Cl", "Br", "O", "OC", "OCC", "N", "NC", "N(C)C", "C#N", "C(F)(F)F", "C(=O)O"),
    *("C(=O)N", "C(=O)OC", "C(C)=O", "NC(C)=O", "S(C)(=O)=O", "[N+](=O)[O-]", "CCCCC", "OCCO", "CCN(CC)CC"),
)


def molecules(count: int, seed: str) -> list[str]:
    """`count` different canonical SMILES; always the same for a seed."""
    rng, distinct = random.Random(f"molecules {seed}"), dict.fromkeys(())
    while len(distinct) < count:
        distinct[molecule(rng)] = None
    return list(distinct)


def molecule(rng: random.Random) -> str:
    """One canonical SMILES."""
    while True:
        # In this process, unlike every molecule from outside: the rules make none that costs RDKit more than it should.
        with rdBase.BlockLogs():
            mol = Chem.MolFromSmiles(_ring(rng, depth=0))
        if mol is not None and 15 <= mol.GetNumHeavyAtoms() <= 30:
            return str(Chem.MolToSmiles(mol))


def _ring(rng: random.Random, depth: int) -> str:
    text = rng.choice(RINGS)
    # A ring inside another one needs numbers of its own.
    text = text.replace("2", str(2 * depth + 2)).replace("1", str(2 * depth + 1)) if depth else text
    first, *others = text.split("{}")
    return (first + "".join(_part(rng, depth) + other for other in others)).replace("()", "")


def _part(rng: random.Random, depth: int) -> str:
    if depth < 3 and rng.random() < 0.6 - 0.12 * depth:
        return rng.choice(LINKERS) + _ring(rng, depth + 1)
    return rng.choice(ENDS) if rng.random() < 0.75 else ""
