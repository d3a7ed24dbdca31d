"""QED, SA score and fingerprint of molecules, worked out by RDKit in a process of its own with a time limit.

Promised: one that RDKit cannot read, or not within the limits, is None; it holds no thread of this process meanwhile.
The process runs this file as a program, which imports nothing of the package.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

CPU_S, WALL_S = 2, 20  # of one molecule
_BITS = 2048


@dataclass(frozen=True)
class Properties:
    """What RDKit says of one molecule."""

    qed: float
    """Drug-likeness, 0 to 1."""
    sa: float
    """How hard it is to make, 1 to 10."""
    fingerprint: int
    """The bits of Morgan's fingerprint, radius 2, as a number."""


@lru_cache(maxsize=100_000)  # a policy repeats itself, and each figure asks again
def properties(smiles: str) -> Properties | None:
    """Of one SMILES; None where RDKit gives none within the limits."""
    from flexjudge_reward.media.child import Ended

    try:
        answer = json.loads(_children().ask(json.dumps(smiles).encode(), WALL_S))
    except (TimeoutError, Ended):
        return None
    return None if answer is None else Properties(answer["qed"], answer["sa"], int(answer["fingerprint"], 16))


def similarities(smiles: Sequence[str]) -> list[float]:
    """Of each molecule the mean Tanimoto similarity to the others, 0 to 1; to one without properties, 0."""
    prints = [0 if (found := properties(text)) is None else found.fingerprint for text in smiles]
    others = max(1, len(prints) - 1)
    return [(sum(_tanimoto(own, one) for one in prints) - _tanimoto(own, own)) / others for own in prints]


def _tanimoto(first: int, second: int) -> float:
    return (first & second).bit_count() / max(1, (first | second).bit_count())


@lru_cache(maxsize=1)
def _children() -> Any:
    from flexjudge_reward.media.child import Children

    return Children(Path(__file__))


# ------------------------------------------------------------------------------------------------------- the process


def main() -> None:
    """Answers a SMILES per line, as JSON, with its properties or null."""
    from rdkit import RDConfig, rdBase

    spec = importlib.util.spec_from_file_location("sascorer", Path(RDConfig.RDContribDir, "SA_Score", "sascorer.py"))
    assert spec is not None and spec.loader is not None
    scorer = importlib.util.module_from_spec(spec)  # RDKit ships it beside its package
    spec.loader.exec_module(scorer)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    with rdBase.BlockLogs():
        print(flush=True)
        for line in sys.stdin:
            signal.setitimer(signal.ITIMER_PROF, CPU_S)
            try:
                answer = _worked_out(json.loads(line), scorer)
            except Exception:  # RDKit's own errors have no common base
                answer = None
            signal.setitimer(signal.ITIMER_PROF, 0)
            print(json.dumps(answer), flush=True)


def _worked_out(smiles: str, scorer: Any) -> dict[str, Any] | None:
    from rdkit import Chem
    from rdkit.Chem import QED, rdFingerprintGenerator

    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None or not molecule.GetNumAtoms():
        return None
    bits = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=_BITS).GetFingerprint(molecule)
    number = int(bits.ToBitString(), 2)
    return {"qed": QED.qed(molecule), "sa": scorer.calculateScore(molecule), "fingerprint": f"{number:x}"}


if __name__ == "__main__":
    main()
