"""Molecules made by rule, and the truth that no judge is shown: QED, synthetic accessibility, variety.

The rules join common rings, linkers and end groups at random; RDKit checks what comes out. They teach a policy what
SMILES look like and nothing else; chemists would smile at some of them. No list of molecules is shipped. Those of fewer
than 15 atoms are left out: there are so few that six in ten of them are in any list, and novelty would measure that.

QED (0 to 1, higher is more drug-like) and the SA score (1 easy to 10 hard to make, of RDKit's Contrib folder) are
themselves formulas with blind spots; here they stand for the truth because the judge is never shown them.
"""

from __future__ import annotations

import importlib.util
import random
import statistics
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rdkit import Chem, DataStructs, RDConfig, rdBase
from rdkit.Chem import QED, rdFingerprintGenerator

from flexjudge_reward import Media, MediaError

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
_fingerprints = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)


# ------------------------------------------------------------------------------------------------------------ making


def molecule(rng: random.Random) -> str:
    """One canonical SMILES, 15 to 30 atoms."""
    while True:
        with rdBase.BlockLogs():
            mol = Chem.MolFromSmiles(_ring(rng, 0))
        if mol is not None and 15 <= mol.GetNumHeavyAtoms() <= 30:
            return str(Chem.MolToSmiles(mol))


def molecules(count: int, seed: str) -> list[str]:
    """`count` different ones; always the same for a seed."""
    rng, found = random.Random(f"molecules {seed}"), dict.fromkeys(())
    while len(found) < count:
        found[molecule(rng)] = None
    return list(found)


def _ring(rng: random.Random, depth: int) -> str:
    text = rng.choice(RINGS)
    # A ring inside another one needs numbers of its own.
    text = text.replace("2", str(2 * depth + 2)).replace("1", str(2 * depth + 1)) if depth else text
    parts = text.split("{}")
    filled = parts[0]
    for part in parts[1:]:
        filled += _part(rng, depth) + part
    return filled.replace("()", "")


def _part(rng: random.Random, depth: int) -> str:
    if depth < 3 and rng.random() < 0.6 - 0.12 * depth:
        return rng.choice(LINKERS) + _ring(rng, depth + 1)
    return rng.choice(ENDS) if rng.random() < 0.75 else ""


# ------------------------------------------------------------------------------------------------------------- truth


def canonical(smiles: str) -> str | None:
    """RDKit's canonical SMILES; None if it is no molecule, by the same limits that hold for a judge's media."""
    try:
        (shown,) = Media.molecule(smiles).shown()
    except MediaError:
        return None
    return str(shown).split("\n")[0].removeprefix("SMILES: ")


def qed(smiles: str) -> float:
    """Drug-likeness, 0 to 1; 0 for what is no molecule."""
    known = canonical(smiles)
    return 0.0 if known is None else float(QED.qed(Chem.MolFromSmiles(known)))


def accessibility(smiles: str) -> float:
    """The SA score of a valid molecule: 1 is easy to make, 10 is hard."""
    return float(_sascorer().calculateScore(Chem.MolFromSmiles(smiles)))


def similarities(smiles: Sequence[str]) -> list[float]:
    """Of each valid molecule the mean Tanimoto similarity to the others (Morgan fingerprints, radius 2), 0 to 1."""
    prints = [_fingerprints.GetFingerprint(Chem.MolFromSmiles(one)) for one in smiles]
    others = max(1, len(prints) - 1)
    return [(sum(DataStructs.BulkTanimotoSimilarity(one, prints)) - 1) / others for one in prints]


def truth(samples: Sequence[str], known: Collection[str]) -> dict[str, float]:
    """What a policy's samples are worth; `known` are the molecules it was pretrained on.

    validity is a share of all samples, uniqueness of the valid ones, novelty of the different ones; diversity is 1
    less the mean similarity of the different ones; qed and sa are means over the valid ones, qed_all over all with 0
    for what is no molecule.
    """
    valid = [one for one in map(canonical, samples) if one is not None]
    different = sorted(set(valid))
    likeness = similarities(different) if len(different) > 1 else [1.0]
    drug_likeness = [qed(one) for one in valid]
    return {
        "validity": len(valid) / len(samples),
        "uniqueness": len(different) / max(1, len(valid)),
        "novelty": sum(one not in known for one in different) / max(1, len(different)),
        "diversity": 1 - statistics.mean(likeness),
        "qed": statistics.mean(drug_likeness) if valid else 0.0,
        "qed_all": sum(drug_likeness) / len(samples),
        "sa": statistics.mean(map(accessibility, valid)) if valid else 10.0,
    }


@lru_cache(maxsize=1)
def _sascorer() -> Any:
    file = Path(RDConfig.RDContribDir, "SA_Score", "sascorer.py")
    spec = importlib.util.spec_from_file_location("sascorer", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
