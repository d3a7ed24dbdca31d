"""The program that reads molecules with RDKit, run in a process of its own so that it can be killed.

    python molecule_worker.py MOST_ATOMS < questions > answers

It writes an empty line once RDKit is there, and ends with 3 if it is not. A question is one line of JSON, {"smiles",
"as_", "cpu"}; its answer is one line, {"smiles", "facts", "drawing", "graph"} or {"error"}.
RDKit takes minutes for some
SMILES of 200 characters, in one call that nothing interrupts: the kernel ends this process after `cpu` seconds of
processor time for one question. This file imports nothing of the package, so that it starts fast.

A graph is {"atoms", "bonds", "symbols", "positions"}: OGB's nine numbers of each atom, the two ends and OGB's three
numbers of each bond, and of each atom but hydrogen its element and its place in angstrom, of one conformer by ETKDG and
MMFF with a fixed seed, to a thousandth. OGB's are https://github.com/snap-stanford/ogb, utils/features.py of 1.3.5.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import signal
import sys
import zlib
from typing import Any

MEMORY = 4 << 30
SIDE = 384  # pixels of a drawing
SEED = 7  # of the conformer: the same molecule has the same one
CHIRALITIES = ("CHI_UNSPECIFIED", "CHI_TETRAHEDRAL_CW", "CHI_TETRAHEDRAL_CCW", "CHI_OTHER")
HYBRIDS = ("SP", "SP2", "SP3", "SP3D", "SP3D2", "other")
BONDS = ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC", "other")
STEREOS = ("STEREONONE", "STEREOZ", "STEREOE", "STEREOCIS", "STEREOTRANS", "STEREOANY")


class Bad(Exception):
    """The molecule cannot be used, and why."""


def main() -> None:
    """Answers questions until there are no more."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere the limit counts address space that is only reserved
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the parent, which ends this process
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # it may be ignored or blocked where this process was started
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    try:
        from rdkit import rdBase
    except ImportError:
        sys.exit(3)
    most_atoms, answers = int(sys.argv[1]), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what RDKit itself prints is no answer
    with rdBase.BlockLogs():
        print(file=answers, flush=True)
        for line in sys.stdin:
            question = json.loads(line)
            # Python runs no handler within a call of RDKit; without one the signal ends the process at once.
            signal.setitimer(signal.ITIMER_PROF, question["cpu"])
            try:
                answer = read(question["smiles"], question["as_"], most_atoms)
            except Bad as error:
                answer = {"error": str(error)}
            except Exception as error:  # RDKit's own errors have no common base
                answer = {"error": f"RDKit cannot use this molecule: {type(error).__name__}"}
            signal.setitimer(signal.ITIMER_PROF, 0)
            print(json.dumps(answer), file=answers, flush=True)


def read(text: str, as_: str, most_atoms: int) -> dict[str, Any]:
    """The canonical SMILES, which gives the same molecule and itself when it is read again, and what else is shown."""
    from rdkit import Chem

    mol = parsed(text, most_atoms)
    for atom in mol.GetAtoms():
        atom.SetAtomMapNum(0)  # a label of up to four free digits
    # Atoms that only these labels distinguished are no stereo centres.
    Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    how: Any = Chem.SmilesWriteParams()
    how.includeDativeBonds = False  # they are written as arrows
    smiles = str(Chem.MolToSmiles(mol, how))
    if smiles != text:
        mol = parsed(smiles, most_atoms)  # a drawing, for one, follows the order of the atoms
    return {
        "smiles": smiles,
        "facts": descriptors(mol),
        "drawing": drawing(mol) if as_ == "drawing" else "",
        "graph": graph(mol) if as_ == "tokens" else None,
    }


def parsed(text: str, most_atoms: int) -> Any:
    """The molecule of a SMILES."""
    from rdkit import Chem

    how: Any = Chem.SmilesParserParams()
    how.allowCXSMILES = how.parseName = False
    try:
        mol = Chem.MolFromSmiles(text, how)
    except Exception as error:  # as above
        raise Bad(f"RDKit does not accept this SMILES: {type(error).__name__}") from None
    if mol is None or not mol.GetNumAtoms():
        raise Bad("RDKit does not accept this SMILES: its syntax, a valence or an aromatic ring is wrong")
    if mol.GetNumHeavyAtoms() > most_atoms:
        raise Bad(f"{mol.GetNumHeavyAtoms()} atoms are more than the {most_atoms} allowed")
    return mol


def drawing(mol: Any) -> str:
    """The structure in black and colours on white: the RGB bytes, packed, in base64."""
    from rdkit.Chem import Draw

    drawn = Draw.MolToImage(mol, size=(SIDE, SIDE)).convert("RGB")  # type: ignore[no-untyped-call]
    return base64.b64encode(zlib.compress(drawn.tobytes(), 1)).decode()


def graph(mol: Any) -> dict[str, Any]:
    """What a model of molecules reads. Raises Bad: no place in space was found for the atoms."""
    heavy = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() != 1]
    if not heavy:
        raise Bad("it has no atom but hydrogen, and a model that reads tokens leaves hydrogen out")
    places = positions(mol)
    return {
        "atoms": [atom_numbers(atom) for atom in mol.GetAtoms()],
        "bonds": [bond_numbers(bond) for bond in mol.GetBonds()],
        "symbols": [mol.GetAtomWithIdx(index).GetSymbol() for index in heavy],
        "positions": [[round(float(value), 3) + 0.0 for value in places[index]] for index in heavy],
    }


def positions(mol: Any) -> Any:
    """The places of the atoms in one conformer."""
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    whole = Chem.AddHs(mol)
    # The second start, from random places, helps cages and large rings.
    if all(rdDistGeom.EmbedMolecule(whole, randomSeed=SEED, useRandomCoords=far) for far in (False, True)):
        raise Bad("RDKit finds no place in space for its atoms: show it as text or as a drawing")
    if rdForceFieldHelpers.MMFFHasAllMoleculeParams(whole):
        rdForceFieldHelpers.MMFFOptimizeMolecule(whole)
    return whole.GetConformer().GetPositions()


def atom_numbers(atom: Any) -> list[int]:
    """OGB's features of an atom, each as its place among the values that it may have; the last is any other."""
    return [
        atom.GetAtomicNum() - 1 if 0 < atom.GetAtomicNum() < 119 else 118,
        place(str(atom.GetChiralTag()), CHIRALITIES),
        min(atom.GetTotalDegree(), 11),
        atom.GetFormalCharge() + 5 if abs(atom.GetFormalCharge()) <= 5 else 11,
        min(atom.GetTotalNumHs(), 9),
        min(atom.GetNumRadicalElectrons(), 5),
        place(str(atom.GetHybridization()), HYBRIDS),
        int(atom.GetIsAromatic()),
        int(atom.IsInRing()),
    ]


def bond_numbers(bond: Any) -> list[int]:
    """The ends of a bond, and OGB's features of it."""
    kind, stereo = place(str(bond.GetBondType()), BONDS), place(str(bond.GetStereo()), STEREOS)
    return [bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), kind, stereo, int(bond.GetIsConjugated())]


def place(value: str, known: tuple[str, ...]) -> int:
    """Where the value is; the last place for an unknown one."""
    return known.index(value) if value in known else len(known) - 1


def descriptors(mol: Any) -> dict[str, str]:
    """Counts and sums over the atoms, by their names."""
    from rdkit import Chem
    from rdkit.Chem import rdMolDescriptors

    rings = [len(ring) for ring in mol.GetRingInfo().AtomRings()]
    log_p, _ = rdMolDescriptors.CalcCrippenDescriptors(mol)
    return {
        "molecular weight": f"{rdMolDescriptors._CalcMolWt(mol):.0f}",
        "logP": f"{round(log_p, 1) + 0.0:.1f}",  # adding turns -0.0 into 0.0
        "H-bond donors": str(rdMolDescriptors.CalcNumHBD(mol)),
        "H-bond acceptors": str(rdMolDescriptors.CalcNumHBA(mol)),
        "TPSA": f"{rdMolDescriptors.CalcTPSA(mol):.0f}",
        "rotatable bonds": str(rdMolDescriptors.CalcNumRotatableBonds(mol)),
        "rings": str(len(rings)),
        "aromatic rings": str(rdMolDescriptors.CalcNumAromaticRings(mol)),
        "largest ring": str(max(rings, default=0)),
        "heavy atoms": str(mol.GetNumHeavyAtoms()),
        "charge": f"{Chem.GetFormalCharge(mol):+d}".replace("+0", "0"),
    }


if __name__ == "__main__":
    main()
