"""Molecules: one SMILES becomes RDKit's canonical SMILES and a line of plain descriptors, a drawing, or a graph.

Promised: no part of the input text is shown. It is checked for length and alphabet before RDKit reads it (so no name,
CXSMILES extension, reaction or line break gets that far), RDKit writes it anew without atom numbers, and what RDKit
wrote must again be of the alphabet. RDKit works in a child process (`molecule_worker.py`) that is killed when one
molecule takes longer than its limits, and this process only waits meanwhile: its threads run. The descriptors are
counts and sums over the atoms; they do not say whether a molecule is stable, synthesizable or useful.
"""

from __future__ import annotations

import base64
import json
import re
import signal
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from flexjudge_reward.errors import ConfigError, MediaError, MissingExtra, need
from flexjudge_reward.media.child import Children, Ended
from flexjudge_reward.media.modality import Limits, Loaded, Modality, Roots

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST = 500  # characters of the input
MOST_ATOMS = 150  # heavier than hydrogen
_SIDE = 384  # pixels of a drawing
# No wildcards (* ~ ?), no reactions and arrows (< >), no space, bar, brace, quote or backtick.
_ALPHABET = re.compile(r"[A-Za-z0-9\[\]()=#$:/\\@+\-%.]+")
_ANSWER = ("smiles", "facts", "drawing", "graph")
Form = Literal["text", "drawing", "tokens"]
TOKENS = "molecule tokens"
"""What `Engine.supports` calls the form "tokens"."""
_NO_RDKIT = 3  # exit code of the child
_children = Children(Path(__file__).with_name("molecule_worker.py"), MOST_ATOMS)


class MoleculeModality(Modality):
    """One molecule: as text, as a drawing before the text, or as the graph that a model of molecules reads."""

    name, options = "molecule", {"as_": "text"}

    def check(self, options: Mapping[str, Any]) -> None:
        """Raises ConfigError: no such form."""
        if options["as_"] not in get_args(Form):
            raise ConfigError(f"'as_' of a molecule is {', '.join(get_args(Form))}; found {options['as_']!r:.80}")

    def load(self, source: object, options: Mapping[str, Any], roots: Roots, limits: Limits) -> Loaded:
        """Two lines: the canonical SMILES, and descriptors (weight in g/mol, TPSA in square angstrom).

        Raises MediaError: no text, too long, not a SMILES that RDKit accepts, too many atoms, or not read within the
        limits; and MissingExtra.
        """
        need("rdkit", "molecules")
        answer = _answer(_checked(source), options["as_"], limits.seconds)
        if "error" in answer:
            raise MediaError(str(answer["error"]))
        if _ALPHABET.fullmatch(answer["smiles"]) is None:
            raise MediaError("the molecule has no plain SMILES: RDKit writes it with a wildcard or an arrow")
        facts = ", ".join(f"{name} {value}" for name, value in answer["facts"].items())
        frames = (_drawing(answer["drawing"]),) if answer["drawing"] else ()
        graph = json.dumps(answer["graph"], separators=(",", ":")).encode() if answer["graph"] else b""
        return Loaded(frames, text=f"SMILES: {answer['smiles']}\nDescriptors: {facts}", graph=graph)


@lru_cache(maxsize=1024)  # the rows of a group share a molecule, and one that costs its limit should do so once
def _answer(smiles: str, as_: Form, seconds: float) -> dict[str, Any]:
    cpu = seconds / (2 if as_ == "tokens" else 10)  # a large molecule's place in space takes seconds
    question = json.dumps({"smiles": smiles, "as_": as_, "cpu": cpu})
    try:
        answer = json.loads(_children.ask(question.encode(), seconds))
        return {"error": answer["error"]} if "error" in answer else {name: answer[name] for name in _ANSWER}
    except (ValueError, KeyError, TypeError):
        raise MediaError("the process of RDKit gave an answer that cannot be read") from None
    except TimeoutError:
        raise MediaError(f"RDKit did not read this SMILES within {seconds} s; use a smaller molecule") from None
    except Ended as ended:
        if ended.code == -signal.SIGPROF:
            why = f"RDKit needs more than {cpu:g} s of processor time for this SMILES; use a smaller molecule"
            return {"error": why}
        if ended.code == _NO_RDKIT:
            raise MissingExtra("rdkit", "molecules") from None
        raise MediaError(f"the SMILES crashed RDKit (exit code {ended.code})") from None


def _checked(source: object) -> str:
    if not isinstance(source, str):
        raise MediaError(f"a molecule is given as a SMILES text, found {type(source).__name__}")
    if len(source) > LONGEST:
        raise MediaError(f"{len(source):,} characters are more than the {LONGEST} allowed")
    text = source.strip(" \t\r\n")
    if _ALPHABET.fullmatch(text) is None:
        raise MediaError("not one SMILES: it is empty or has a character that none has, such as a space or a '>'")
    return text


def _drawing(packed: str) -> Image:
    import PIL.Image

    return PIL.Image.frombytes("RGB", (_SIDE, _SIDE), zlib.decompress(base64.b64decode(packed)))
