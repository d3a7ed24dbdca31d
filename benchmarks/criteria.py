"""Judging by criteria: a checklist against one overall score, and committing to an answer first, on the nano world.

    python benchmarks/criteria.py checklist     descriptions of held-out images in groups of eight, three seeds
    python benchmarks/criteria.py commit        pairs of answers about held-out images, three seeds

The embedded judge was trained on neither, so each part asks it in a form that it knows. A description has a criterion
per place, whose call is the question "What is top-left?" with the part of the description about it; `Speaking` says its
scores as yes or no. A `must` with a check, whether the answer is a description at all, stands beside them.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flexjudge_recipes.nano import shapes

from figures import record
from groups import GREEDY, KINDS, Group, judged, taus, tokens

from flexjudge_reward import (
    Checklist,
    CommitFirst,
    Criterion,
    EngineWrapper,
    Example,
    Failure,
    Format,
    Generation,
    GroupResult,
    MajorityVote,
    Media,
    Pairwise,
    Pointwise,
    Request,
    Rubric,
    TransformersEngine,
    Untrusted,
)

SEEDS = (1, 2, 3)
VOTES = 3  # on one overall score: the fewest that take no fewer tokens than the checklist


def main() -> None:
    """Runs the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("checklist", "commit"))
    parser.add_argument("--groups", type=int, default=40, help="per seed")
    options = parser.parse_args()
    {"checklist": checklist, "commit": commit}[options.part](options.groups)


# ------------------------------------------------------------------------------------------------------- checklist


class Speaking(EngineWrapper):
    """The embedded judge as a judge of checklists with one criterion per call: its score of 10 is a yes."""

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        """The replies, with yes or no for the score."""
        replies = super().complete([known_form(request) for request in requests])
        return [replace(one, text=re.sub("<answer>(.*)</answer>$", spoken, one.text)) for one in replies]


def spoken(answer: re.Match[str]) -> str:
    """A score as yes or no."""
    return f"<answer>{'yes' if answer[1] == '10' else 'no'}</answer>"


def known_form(request: Request) -> Request:
    """A criterion about a place as the question that the judge knows, with the words of the description about it."""
    _, user = request.prompt.messages
    candidate = [part.text for part in user.parts if isinstance(part, Untrusted)][-1]
    asked = re.search(r"1\. (What is (\S+)\?)", "".join(part for part in user.parts if isinstance(part, str)))
    if asked is None:
        raise ValueError("the prompt has no criterion about a place")
    part = re.search(rf"{asked[2]} (.*?)(?= top-| bottom-|\.?$)", candidate)
    example = Example([*request.prompt.media, asked[1]], [part[1] if part else ""])
    return Request(Pointwise(prompt_set="nano").render(example)[0], request.sampling)


def is_description(example: Example) -> bool:
    """Whether the candidate names four places with what a shape can be."""
    any_scene = shapes.Question(shapes.Scene(("nothing",) * 4), "describe")
    return shapes.parse(any_scene, str(example.candidates[0][0])) is not None


CRITERIA = Rubric(
    items=(
        Criterion("is a description of four places", 1, "must", check=is_description),
        *(Criterion(f"What is {place}?", 1) for place in shapes.PLACES),
    )
)


def descriptions(seed: int, count: int, junk: float) -> list[Group]:
    """Held-out images with eight descriptions of known quality."""
    rng = random.Random(f"descriptions {seed}")
    groups = []
    for _ in range(count):
        question = shapes.Question(shapes.scene(rng, held_out=True), "describe")
        image = Media.image(shapes.draw(question.scene, rng))
        answers = shapes.candidates(rng, question, 8, junk=junk)
        groups.append(Group(question, Example([image, question.text], answers)))
    return groups


def checklist(count: int) -> None:
    """Kendall's tau-b with the truth, and tokens, of a checklist relative to one overall score, and to votes on it."""
    gains, over_votes, spent, notes = [], [], [0, 0, 0], []
    votes = MajorityVote(Pointwise(prompt_set="nano"), VOTES, "mean")
    with TransformersEngine("nano") as engine:
        for seed in SEEDS:
            groups = descriptions(seed, count, junk=0.1)
            whole = judged(engine, Pointwise(prompt_set="nano"), groups)
            format: Format = Checklist(CRITERIA, per_call=1)
            listed = judged(Speaking(engine), format, groups, GREEDY)  # type: ignore[arg-type]
            voted = judged(engine, votes, groups, replace(GREEDY, temperature=1.0))
            before, after, by_votes = (statistics.mean(taus(results, groups)) for results in (whole, listed, voted))
            gains.append(after - before)
            over_votes.append(after - by_votes)
            spent = [total + tokens(results) for total, results in zip(spent, (whole, listed, voted), strict=True)]
            notes.append(f"{before:.3f} to {after:.3f}")
            print(f"seed {seed}: tau {notes[-1]}, votes {by_votes:.3f}; tokens {spent} so far", flush=True)
    error = statistics.stdev(gains) / len(gains) ** 0.5
    note = f"{len(SEEDS)} seeds of {count} groups of 8 descriptions: {', '.join(notes)}; standard error {error:.3f}"
    note += "; five criteria, one a check; the embedded judge answers one per call, in the form that it knows"
    record("checklist.tau_gain", statistics.mean(gains), unit="tau", target="> 0", note=note)
    note = "tokens written, one call per criterion against one call; equal calls are counted each time"
    record("checklist.token_ratio", spent[1] / spent[0], unit="ratio", target="<= 1", note=note)
    note = f"over {VOTES} votes on one overall score, for {spent[1] / spent[2]:.2f} of their tokens"
    note += f"; by seed {', '.join(f'{gain:+.3f}' for gain in over_votes)}"
    record("checklist.tau_gain_over_votes", statistics.mean(over_votes), unit="tau", target="> 0", note=note)


# ---------------------------------------------------------------------------------------------------------- commit


class NanoCommit(CommitFirst):
    """The embedded judge's own answer is in its reasoning, which begins with it: "... So blue star. A unclear"."""

    def answer_of(self, reply: Generation) -> str | Failure:
        """What follows "So"."""
        found = re.search(r" So (.*?)\.", reply.text)
        return found[1] if found else Failure("malformed", "the reasoning has no answer")


def commit(count: int) -> None:
    """Pairs in which the better answer is found, and tokens, with an own answer first relative to without."""
    system = 'system = "Score A from {low} to {high}."'
    rest = 'question = "{question}\\n"\nreference = "{reference}"\ncandidate = "{candidate}"\nclosing = ""\n'
    gains, with_truth, spent, notes = [], [], [0, 0], []
    with TransformersEngine("nano") as engine, tempfile.TemporaryDirectory() as folder:
        Path(folder, "answer.toml").write_text(f"{system}\n{rest}")
        plain = Pairwise(prompt_set="nano")
        for seed in SEEDS:
            rng = random.Random(f"commit {seed}")
            groups = [asked_pair(rng) for _ in range(5 * count)]
            without, with_it = (judged(engine, one, groups) for one in (plain, NanoCommit(plain, Path(folder))))
            before, after = (100 * statistics.mean(map(is_right, found, groups)) for found in (without, with_it))
            gains.append(after - before)
            knowing = [Group(one.question, with_truth(one)) for one in groups]
            with_truth.append(100 * statistics.mean(map(is_right, judged(engine, plain, knowing), groups)))
            spent = [spent[0] + tokens(without), spent[1] + tokens(with_it)]
            notes.append(f"{before:.1f} to {after:.1f} %")
            print(f"seed {seed}: {notes[-1]}, tokens {tokens(without)} to {tokens(with_it)}", flush=True)
    error = statistics.stdev(gains) / len(gains) ** 0.5
    note = f"{len(SEEDS)} seeds of {5 * count} pairs: {', '.join(notes)} find the better answer"
    note += f"; standard error {error:.1f}; tokens {spent[1] / spent[0]:.2f} times"
    note += "; the embedded judge was never trained with a reference, and works the answer out in its reasoning anyway"
    note += f": with the true answer as the reference it finds {statistics.mean(with_truth):.1f} %"
    record("commit.points", statistics.mean(gains), unit="points", target="", note=note)


def asked_pair(rng: random.Random) -> Group:
    """A question about a held-out image and two answers, one of them better."""
    question = shapes.question(rng, shapes.scene(rng, held_out=True), KINDS)
    image = Media.image(shapes.draw(question.scene, rng))
    return Group(question, Example([image, question.text], shapes.candidates(rng, question, 2, single_best=True)))


def with_truth(group: Group) -> Example:
    """The example with the right answer as its reference."""
    return Example(group.example.question, group.example.candidates, group.question.truth)


def is_right(result: GroupResult, group: Group) -> bool:
    """Whether the better answer has the higher score."""
    first, second = (-1.0 if isinstance(one, Failure) else one for one in result.outcomes)
    return first != second and (first > second) == (group.truth[0] > group.truth[1])


if __name__ == "__main__":
    main()
