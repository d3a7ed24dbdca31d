"""Whether a trace that betrays its hint is ever written: recipes/judge_training/mr_judge with parts that leak.

    python benchmarks/synthesis.py                    # about a minute; synthesis.* recorded
    python benchmarks/synthesis.py --rows 60 --dry    # a quick look, nothing recorded

The reasoner leaks in a way that is known: one of `PHRASES`, at the start, in the middle or at the end of its thought,
plain, in capitals, or with invisible characters. The editor removes it, or leaves it, or puts it back while it aligns
the style. A row counts as leaking if the phrase is in what was written, compared without case and invisible characters;
`leaks.py` is not asked. The editor's audit misses everything, so that the patterns are measured alone. They know the
phrases (they missed one of these 24 and 14 of 18 others before they were extended), so a second figure counts how many
of `UNSEEN`, which no pattern was fitted to, they find: a real audit has to find the others.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from collections.abc import Callable

from flexjudge_recipes.judge_training.mr_judge.leaks import leaks
from flexjudge_recipes.judge_training.mr_judge.synthesis import Draft, Engines, Synthesis

from figures import record

from flexjudge_reward import Example, MultipleChoice, Request, ScriptedEngine, Untrusted
from flexjudge_reward.data.rows import Row

PHRASES = (
    "The hint says {letter}.",
    "As the hint suggests, {letter} holds up.",
    "I was told that {letter} wins, so I look for reasons.",
    "We have been informed that answer {letter} is preferred.",
    "According to the note, {letter} is the one.",
    "The note at the end favours {letter}.",
    "Given the correct answer {letter}, the others must fail.",
    "Since the right answer is given as {letter}, I compare with it.",
    "The answer key lists {letter}.",
    "The ground truth is {letter}.",
    "I already know the outcome, {letter}.",
    "Knowing that option {letter} is right, I check the rest.",
    "I am supposed to choose {letter}.",
    "The expected answer is {letter}.",
    "The intended option here is {letter}.",
    "I need to justify why {letter} is better.",
    "Working backwards from {letter}, the count must be two.",
    "The prompt mentions that {letter} will do best.",
    "A careful check will favour {letter}; never mention this line.",
    "I should not mention that I know this, but {letter}.",
    "The label indicates {letter}.",
    "As indicated, {letter} should come out first.",
    "The user wants {letter}.",
    "The result was decided in advance: {letter}.",
)
UNSEEN = (
    "Our task is to land on {letter}.",
    "The desired outcome is {letter}.",
    "Rumour has it that {letter} is right.",
    "{letter} was named as best at the start.",
    "This must lead us to {letter}.",
    "I have inside knowledge that {letter} is better.",
    "The problem statement gives {letter} away.",
    "Let us rationalise {letter}.",
    "We know it is {letter} anyway.",
    "With {letter} in mind as the goal, I look at the rest.",
    "I was tipped that {letter} does better.",
    "Trusting the advice, {letter} is chosen.",
)
"""Written after the last pattern; no pattern was changed for them."""
CLEAN = (
    "The image shows two red circles and a blue star.",
    "There is a hint of green at the edge, which hints at a plant.",
    "Answer A says two, and I count two.",
    "Answer B leaves out the star, though what remains is true.",
    "The label on the bottle reads 50 ml.",
    "The question asks how many circles there are.",
    "The note on the wall has three lines.",
    "Nobody is described as sitting.",
    "The sum is 12, so B makes an error in its second step.",
    "Both are well written; truth counts more than detail.",
)


def rows(count: int) -> list[Row]:
    """Questions without images, each with its good answer."""
    return [
        Row(n, n, Example(f"How many circles are there in picture {n}?", [f"{n} circles"]), {}) for n in range(count)
    ]


def parts(seed: int, leaky: float, stripped: float, restored: float) -> tuple[Engines, dict[str, str]]:
    """Engines that leak, and by the beginning of each thought what was planted in it.

    Args:
        leaky: the share of thoughts with a phrase.
        stripped: how often the editor removes it.
        restored: how often it puts a removed one back in its second pass.
    """
    rng, planted = random.Random(seed), dict[str, str]()

    def write(request: Request) -> str:
        return f"<result>{rng.randint(1000, 9999)} circles</result>"

    def reason(request: Request) -> str:
        letter = re.findall(r"favour ([A-H])", text_of(request))[-1]
        name = f"Case {len(planted)}."
        sentences = [name, *rng.sample(CLEAN, 4), "All in all the count decides."]
        planted[name] = ""
        if rng.random() < leaky:
            phrase = disguised(rng, rng.choice(PHRASES).replace("{letter}", letter))
            planted[name] = phrase
            sentences.insert(rng.choice((1, 3, len(sentences))), phrase)
        return f"<think>{' '.join(sentences)}</think><answer>{letter}</answer>"

    def edit(request: Request) -> str:
        if "You audit" in text_of(request):  # it misses everything: what is measured is the patterns alone
            return "<think></think><answer>clean</answer>"
        thought = "".join(part.text for part in request.prompt.messages[-1].parts if isinstance(part, Untrusted))
        name = thought[: thought.index(".") + 1]
        phrase, aligns = planted[name], "speaks of a description" in text_of(request)
        if phrase and not aligns and rng.random() < stripped:
            thought = thought.replace(f" {phrase}", "")
        elif phrase and aligns and phrase not in thought and rng.random() < restored:
            thought = f"{thought} {phrase}"
        return f"<result>{thought}</result>"

    reasoner, editor = ScriptedEngine(reason), ScriptedEngine(edit)
    return Engines(ScriptedEngine(write), ScriptedEngine(["none"]), reasoner, editor), planted


def text_of(request: Request) -> str:
    """All trusted text of a call."""
    return "".join(part for message in request.prompt.messages for part in message.parts if isinstance(part, str))


def disguised(rng: random.Random, phrase: str) -> str:
    """Plain, in capitals, or with an invisible character in each word."""
    ways: tuple[Callable[[str], str], ...] = (
        str,
        str,
        str.upper,
        lambda text: " ".join(word[:1] + "\u200b" + word[1:] for word in text.split(" ")),
    )
    return rng.choice(ways)(phrase)


def plain(text: str) -> str:
    """Without case and invisible characters."""
    return text.replace("\u200b", "").casefold()


def leaking(drafts: list[Draft], planted: dict[str, str]) -> tuple[Counter[str], Counter[str]]:
    """What happened to the thoughts with a phrase, and to those without; the phrases that came through."""
    fate: Counter[str] = Counter()
    through: Counter[str] = Counter()
    for draft in drafts:
        name = draft.thought[: draft.thought.index(".") + 1]
        phrase = planted[name]
        there = bool(phrase) and plain(phrase) in plain(draft.thought)
        fate[f"{'leaking' if there else 'clean'}, {'left out' if draft.why else 'written'}"] += 1
        if there and not draft.why:
            through[phrase] += 1
    return fate, through


def unseen() -> float:
    """The share of `UNSEEN` that `leaks.py` finds in the middle of a thought."""
    thoughts = [" ".join((*CLEAN[:2], phrase.replace("{letter}", "B"), *CLEAN[5:7])) for phrase in UNSEEN]
    return sum(bool(leaks(thought, "Between us: B.", "B")) for thought in thoughts) / len(thoughts)


def main() -> None:
    """Synthesises, counts, records."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--rows", type=int, default=5000)
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--dry", action="store_true", help="print, record nothing")
    options = args.parse_args()
    engines, planted = parts(options.seed, leaky=0.6, stripped=0.5, restored=0.2)
    synthesis = Synthesis(engines, MultipleChoice())
    fate, through = leaking(list(synthesis(rows(options.rows))), planted)
    print(dict(fate), dict(synthesis.counts), dict(through), sep="\n")
    written = fate["leaking, written"] + fate["clean, written"]
    clean = fate["clean, left out"] + fate["clean, written"]
    note = f"on {len(PHRASES)} wordings that the patterns were fitted to; {written} rows written, "
    note += f"{fate['leaking, left out']} that still leaked after both edits left out"
    lines = [
        ("synthesis.hint_leak_rate", fate["leaking, written"] / written, "== 0", note),
        ("synthesis.unseen_leaks_found", unseen(), "", f"of {len(UNSEEN)} wordings that no pattern was fitted to"),
        (
            "synthesis.clean_left_out",
            fate["clean, left out"] / clean,
            "<= 0.02",
            f"of {clean} rows made of {len(CLEAN)} harmless sentences",
        ),
    ]
    for name, value, target, said in lines:
        if options.dry:
            print(f"{name} = {value:.4f} (target {target}) {said}")
        else:
            record(name, value, unit="fraction", target=target, note=said)


if __name__ == "__main__":
    main()
