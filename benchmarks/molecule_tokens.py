"""A judge that reads molecule tokens: a converted nano of the released parts, and PAMPA's steps against counts by hand.

    python benchmarks/molecule_tokens.py        # some seconds

`mol.batch_difference` is the largest difference of a logit between a batch of ten molecules, with prompts of other
lengths, and each alone. Checked beside it, or the program ends with an error: a molecule has eight tokens, any other
number is refused, and a reply is the same after saving and loading. `mol.pampa_fixture_mismatches` counts the
predictions and accuracies of tests/support/pampa_cases.py that the recipe works out otherwise.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import torch
from figures import record
from transformers import AutoModelForCausalLM

from flexjudge_reward import Media
from flexjudge_reward.engines.molecules import model  # noqa: F401  # makes the type known
from flexjudge_reward.engines.molecules.graphs import Graphs, collate
from support import mol_parts, pampa_cases

SMILES = (
    *("C", "CCO", "[Na+].[Cl-]", "CC(=O)Oc1ccccc1C(=O)O", "C/C=C/[C@H](N)F", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C"),
    *("OC(=O)c1ccccc1Nc1cccc(c1)C(F)(F)F", "F[B-](F)(F)F", "c1ccc2c(c1)ccc1ccccc12", "NCCc1ccc(O)c(O)c1"),
)


def prompts(loaded: Any) -> list[torch.Tensor]:
    """One per molecule, of different lengths."""
    place = [loaded.config.mol_token_id] * loaded.config.queries
    return [torch.tensor([0, *range(8, 9 + number), *place, 20, 21]) for number in range(len(SMILES))]


def batched(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Padded at the left."""
    longest = max(map(len, rows))
    pad = [longest - len(row) for row in rows]
    ids = torch.stack([torch.nn.functional.pad(row, (left, 0)) for row, left in zip(rows, pad, strict=True)])
    mask = torch.tensor([[0] * left + [1] * (longest - left) for left in pad])
    return {"input_ids": ids, "attention_mask": mask}


def difference(loaded: Any, rows: list[torch.Tensor], graphs: list[bytes]) -> float:
    """The largest of a logit, between the batch and each alone."""
    positions = lambda mask: (mask.cumsum(-1) - 1).clamp(min=0)  # noqa: E731
    inputs, largest = batched(rows), 0.0
    together = loaded(**inputs, position_ids=positions(inputs["attention_mask"]), graphs=collate(graphs)).logits
    for number, row in enumerate(rows):
        alone = loaded(**batched([row]), graphs=collate([graphs[number]])).logits[0]
        largest = max(largest, float((together[number, -len(row) :] - alone).abs().max()))
    return largest


def refuses(loaded: Any, row: torch.Tensor, graphs: Graphs) -> bool:
    """Whether a prompt with one token too many is an error."""
    try:
        loaded(input_ids=torch.cat([row, row[-3:-2]])[None], graphs=graphs)
    except ValueError:
        return True
    return False


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = mol_parts.converted(Path(folder))
        loaded = AutoModelForCausalLM.from_pretrained(made).eval()
        rows, graphs = prompts(loaded), [Media.molecule(smiles, "tokens").graph() for smiles in SMILES]
        worst = difference(loaded, rows, graphs)
        if not refuses(loaded, rows[0], collate(graphs[:1])):
            sys.exit("nine tokens for one molecule were accepted")
        options = {"max_new_tokens": 24, "do_sample": False, "graphs": collate(graphs)}
        loaded.save_pretrained(Path(folder, "again"))
        again = AutoModelForCausalLM.from_pretrained(Path(folder, "again")).eval()
        if not torch.equal(loaded.generate(**batched(rows), **options), again.generate(**batched(rows), **options)):
            sys.exit("a reply differs after saving and loading")
        size = sum(parameter.numel() for parameter in loaded.parameters())
    note = f"{len(SMILES)} molecules, a converted fixture of {size:,} parameters, float32; 8 tokens each, reload equal"
    record("mol.batch_difference", worst, unit="logits", target="<= 1e-5", note=note)
    wrong = pampa_cases.mismatches()
    print(*wrong, sep="\n", end="\n" if wrong else "")
    note = "20 molecules, both readings: 40 predictions, 6 accuracies by hand"
    record("mol.pampa_fixture_mismatches", len(wrong), unit="figures", target="<= 0", note=note)


if __name__ == "__main__":
    main()
