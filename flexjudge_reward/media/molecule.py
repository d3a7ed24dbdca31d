"""Molecules: one SMILES becomes RDKit's canonical SMILES and a line of plain descriptors, and a drawing if wanted.

Promised: no part of the input text is shown. It is checked for length and alphabet before RDKit reads it (so no name,
CXSMILES extension, reaction or line break gets that far), RDKit writes it anew without atom numbers, and what RDKit
wrote must again be of the alphabet. RDKit's logging is silent meanwhile. The descriptors are counts and sums over the
atoms; they do not say whether a molecule is stable, synthesizable or useful.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flexjudge_reward.errors import MediaError, MissingExtra
from flexjudge_reward.media.modality import Limits, Loaded, Modality, Roots

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST = 500  # characters of the input
MOST_ATOMS = 150  # heavier than hydrogen
_SIDE = 384  # pixels of a drawing
# No wildcards (* ~ ?), no reactions and arrows (< >), no space, bar, brace, quote or backtick.
_ALPHABET = re.compile(r"[A-Za-z0-9\[\]()=#$:/\\@+\-%.]+")
_lock = threading.Lock()  # of RDKit's switch for its logging, which is one for the whole process


class MoleculeModality(Modality):
    """One molecule, as text; with `drawn`, a drawing of the structure goes before the text."""

    name, options = "molecule", {"drawn": False}

    def load(self, source: object, options: Mapping[str, Any], roots: Roots, limits: Limits) -> Loaded:
        """Two lines: the canonical SMILES, and descriptors (weight in g/mol, TPSA in square angstrom).

        Raises MediaError: no text, too long, not a SMILES that RDKit accepts, or too many atoms; and MissingExtra.
        """
        mol, smiles = _read(source)
        facts = ", ".join(f"{name} {value}" for name, value in _descriptors(mol).items())
        return Loaded((_draw(mol),) if options["drawn"] else (), text=f"SMILES: {smiles}\nDescriptors: {facts}")


def _read(source: object) -> tuple[Any, str]:
    """The molecule and its canonical SMILES, which gives the same molecule and itself when it is read again."""
    try:
        from rdkit import Chem, rdBase
    except ImportError:
        raise MissingExtra("rdkit", "molecules") from None
    text = _checked(source)
    with _lock, rdBase.BlockLogs():
        mol = _parsed(Chem, text)
        for atom in mol.GetAtoms():
            atom.SetAtomMapNum(0)  # a label of up to four free digits
        # Atoms that only these labels distinguished are no stereo centres.
        Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
        how: Any = Chem.SmilesWriteParams()
        how.includeDativeBonds = False  # they are written as arrows
        smiles = str(Chem.MolToSmiles(mol, how))
        if _ALPHABET.fullmatch(smiles) is None:
            raise MediaError("the molecule has no plain SMILES: RDKit writes it with a wildcard or an arrow")
        return _parsed(Chem, smiles), smiles


def _checked(source: object) -> str:
    if not isinstance(source, str):
        raise MediaError(f"a molecule is given as a SMILES text, found {type(source).__name__}")
    if len(source) > LONGEST:
        raise MediaError(f"{len(source):,} characters are more than the {LONGEST} allowed")
    text = source.strip(" \t\r\n")
    if _ALPHABET.fullmatch(text) is None:
        raise MediaError("not one SMILES: it is empty or has a character that none has, such as a space or a '>'")
    return text


def _parsed(chem: Any, text: str) -> Any:
    how = chem.SmilesParserParams()
    how.allowCXSMILES = how.parseName = False
    try:
        mol = chem.MolFromSmiles(text, how)
    except Exception as error:  # RDKit's own errors have no common base
        raise MediaError(f"RDKit does not accept this SMILES: {type(error).__name__}") from None
    if mol is None or not mol.GetNumAtoms():
        raise MediaError("RDKit does not accept this SMILES: its syntax, a valence or an aromatic ring is wrong")
    if mol.GetNumHeavyAtoms() > MOST_ATOMS:
        raise MediaError(f"{mol.GetNumHeavyAtoms()} atoms are more than the {MOST_ATOMS} allowed")
    return mol


def _draw(mol: Any) -> Image:
    """The structure in black and colours on white, RGB."""
    from rdkit.Chem import Draw

    drawn: Image = Draw.MolToImage(mol, size=(_SIDE, _SIDE)).convert("RGB")  # type: ignore[no-untyped-call]
    return drawn


def _descriptors(mol: Any) -> dict[str, str]:
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
