"""Twenty molecules with two analyses each, what a judge replies to them, and the accuracies counted by hand."""

from __future__ import annotations

import random

from flexjudge_reward import Judge, Pointwise, Request, ScriptedEngine
from flexjudge_reward.prompts.quoting import flatten
from support.late import late, needs

needs("rdkit")
pampa = late("flexjudge_recipes.best_of_n.pampa")

HIGH, LOW, NEITHER = "Final answer: High permeability", "Final answer: Low-to-moderate permeability", "It depends"
# No "Final answer: " with a space to split at, so all of it counts, and the first pattern found in it is high.
MISLED = "A high permeability is unlikely.\nFinal Answer:Moderate permeability"
RIGHT, WRONG = {1: HIGH, 0: LOW}, {1: LOW, 0: HIGH}
_SMILES = (
    *("CCO", "c1ccccc1", "CC(=O)O", "CCN", "CCCCCC", "Oc1ccccc1", "CC(C)=O", "OCC(O)CO", "c1ccncc1", "CCCl"),
    *("NCC(=O)O", "CCOCC", "Cc1ccccc1", "CC(N)=O", "CCS", "OC1CCCCC1", "C1CCNCC1", "CC#N", "Nc1ccccc1", "CBr"),
)
# Of each molecule: its truth, and of both analyses whether the prediction is right, and the score. One with "!" is in a
# reply that ends inside its reasoning, so that only the reading "code" finds it; "" is a reply without any.
TABLE = (
    *[(1, (True, "8.0"), (False, "6.0")), (0, (True, "8.0"), (False, "6.0"))] * 4,  # 1 to 8: right
    *[(1, (False, "9.0"), (True, "3.5")), (0, (False, "9.0"), (True, "3.5"))] * 2,  # 9 to 12: wrong
    *[(0, (False, "2.0"), (True, "7.5"))] * 3,  # 13 to 15: right
    (1, (True, "5.0"), (True, "5.0")),  # 16: a tie of two that are right
    (0, (None, "9.0"), (True, "4.0")),  # 17: the best has no prediction: wrong
    (1, (True, ""), (False, "1.0")),  # 18: the right one has no score: wrong
    (1, (True, "!9.5"), (False, "4.0")),  # 19: right for "code", wrong for "paper"
    (1, (True, ""), (False, "")),  # 20: left out
)
# By the reading and the places drawn: right choices and molecules with one, counted in the table above.
EXPECTED = {
    ("code", (0, 1)): (13, 19),  # 1-8, 13-16, 19; all but 20
    ("code", (0,)): (10, 18),  # 1-8, 16, 19; all but 18 and 20
    ("code", (1,)): (9, 19),  # 9-17; all but 20
    ("paper", (0, 1)): (12, 19),  # 1-8, 13-16; all but 20
    ("paper", (0,)): (9, 17),  # 1-8, 16; all but 18, 19 and 20
    ("paper", (1,)): (9, 19),  # 9-17; all but 20
}


def rows() -> list[pampa.Row]:
    """The table with its texts."""
    found = []
    for number, (smiles, (truth, *analyses)) in enumerate(zip(_SMILES, TABLE, strict=True)):
        texts = []
        for place, (right, _) in enumerate(analyses):
            final = NEITHER if right is None else RIGHT[truth] if right else WRONG[truth]
            final = MISLED if number == 9 and not right else final  # the truth is low
            texts.append(f"Analysis {number}.{place}\n{final}")
        found.append(pampa.Row(smiles, truth == 1, tuple(texts)))
    return found


def replying(reading: str) -> ScriptedEngine:
    """A judge that replies as the table says; an analysis that it should not see so has no reply with a score."""

    def reply(request: Request) -> str:
        shown = "".join(part for part in flatten(request.prompt.messages[-1]) if isinstance(part, str))
        number, place = shown.split("Analysis ")[1].split()[0].split(".")
        score = TABLE[int(number)][1 + int(place)][1]
        whole = "inal" in shown.split("Analysis ")[1]
        if whole != (reading == "paper") and NEITHER not in shown:
            return "wrong analysis"
        tags = f"<answer>{score.removeprefix('!')}</answer>" if score else ""
        return f"<think>first {tags}" if score.startswith("!") else f"<think>x</think>{tags}"

    return ScriptedEngine(reply)


def mismatches() -> list[str]:
    """What the recipe works out otherwise than by hand: predictions, and accuracies of both readings."""
    found, table = [], rows()
    for number, row in enumerate(table):
        for place, (right, _) in enumerate(TABLE[number][1:]):
            if row.is_right(place) != bool(right):
                found.append(f"prediction {number}.{place}")
    for reading in ("code", "paper"):
        judge = Judge(Pointwise("permeability"), replying(reading))
        scored = pampa.scores(table, judge, reading, "tokens")  # type: ignore[arg-type]
        for (own, places), (right, of) in EXPECTED.items():
            if own == reading and pampa.repeat(table, scored, places, random.Random(0)) != right / of:
                found.append(f"accuracy of {reading} {places}")
    return found
