"""What the transfer study measures of a judge: always the same held-out scenes, greedy unless it says otherwise.

Every figure is a share of all that were asked, so a reply that cannot be read counts as wrong. Pairs have one better
answer: `better` is the share in which it alone gets the higher score (a coin: 0.5; always a tie: 0), `exact` the share
with both scores as they should be.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flexjudge_recipes.judge_training.study.cells import KINDS
from flexjudge_recipes.nano import judge_traces, shapes, traces

from flexjudge_reward import (
    BudgetForcing,
    CachedEngine,
    Engine,
    Example,
    Format,
    Generation,
    Judge,
    Listwise,
    MajorityVote,
    Media,
    Message,
    OneCall,
    Pairwise,
    Pointwise,
    Prompt,
    Request,
    Rubric,
    Sampling,
    Scale,
    TransformersEngine,
)
from flexjudge_reward.formats.reply import THINK_CLOSE, continued

Medium = Literal["words", "image", "video"]
Scores = tuple[float, ...] | None
Figures = dict[str, float]
LIMIT = 160  # tokens of a reply
VOTES = (1, 3, 5, 10)
BUDGETS = (20, 40, 60, 80)  # tokens of reasoning
ROUNDS = 4  # of waiting
_ANSWER = re.compile(r"<answer>([^<]+)</answer>")
PAIR, SINGLE, LIST = Pairwise(prompt_set="nano"), Pointwise(prompt_set="nano"), Listwise(prompt_set="nano")


@dataclass(frozen=True)
class Case:
    """One example with the score that each of its answers deserves."""

    example: Example
    truth: tuple[float, ...]

    def better(self, scores: Scores) -> bool:
        """Whether the best answer alone has the highest score."""
        best = self.truth.index(max(self.truth))
        return scores is not None and all(scores[best] > one for index, one in enumerate(scores) if index != best)

    def exact(self, scores: Scores) -> bool:
        """Whether every score is the true one."""
        return scores == self.truth


def cases(candidates: int, medium: Medium, count: int) -> list[Case]:
    """`count` held-out examples with one best answer; every second is asked on the scale 1-5."""
    rng, made = random.Random(f"study {candidates} {medium}"), []
    for index in range(count):
        asked = shapes.question(rng, shapes.scene(rng, held_out=True), KINDS)
        replies = shapes.candidates(rng, asked, candidates, single_best=candidates > 1)
        high = (10, 5)[index % 2]
        truth = tuple(float(shapes.score(asked, one, high)) for one in replies)
        rubric = Rubric(judge_traces.CRITERIA, Scale(1, high))
        made.append(Case(Example((shown(asked, medium, rng), asked.text), replies, rubric=rubric), truth))
    return made


def shown(asked: shapes.Question, medium: Medium, rng: random.Random) -> str | Media:
    """The scene."""
    if medium == "words":
        return asked.scene.in_words(rng) + "\n"
    if medium == "video":
        return Media.video(shapes.clip(asked.scene, rng))
    return Media.image(shapes.draw(asked.scene, rng))


def of_judge(folder: Path, count: int, answer_first: bool) -> Figures:
    """Pairs in words, images and clips; of half as many single scores, lists of three, and picture questions."""
    found: Figures = {}
    with opened(folder) as engine:
        media: tuple[Medium, ...] = ("words", "image", "video")
        for medium in media:
            found |= group(engine, PAIR, cases(2, medium, count), f"{medium}_pair", answer_first)
        for medium in media[:2]:
            found |= group(engine, SINGLE, cases(1, medium, count // 2), f"{medium}_single", answer_first)
        found |= group(engine, LIST, cases(3, "words", count // 2), "words_list", answer_first)
        found |= answers(engine, count // 2)
    return found


def opened(folder: Path) -> TransformersEngine:
    """The judge in a folder."""
    return TransformersEngine(str(folder), dtype="float32")


def group(
    engine: Engine, format: Format, chosen: Sequence[Case], name: str, answer_first: bool = False, **how: float
) -> Figures:
    """The shares of one group of examples. `how` are settings of the sampling."""
    examples = [case.example for case in chosen]
    if answer_first:
        scores = first_answers(engine, format.innermost(), examples)
    else:
        judge = Judge(format, engine, replace(Sampling(max_tokens=LIMIT), **how))
        scores = [verdict.scores for verdict in judge(examples)]
    return shares(chosen, scores, name)


def shares(chosen: Sequence[Case], scores: Sequence[Scores], name: str) -> Figures:
    """Better found (of several answers), exact, and read."""
    both = list(zip(chosen, scores, strict=True))
    found = {"better": sum(case.better(one) for case, one in both)} if len(chosen[0].truth) > 1 else {}
    found |= {"exact": sum(case.exact(one) for case, one in both), "formed": sum(one is not None for _, one in both)}
    return {f"{name}_{what}": round(hits / len(both), 4) for what, hits in found.items()}


def first_answers(engine: Engine, format: Format, examples: Sequence[Example]) -> list[Scores]:
    """The verdicts of a judge that answers before it reasons, read in its favour: the answer tag is opened for it."""
    tag = Message("assistant", ("<answer>",))
    prompts = [prompt for example in examples for prompt in format.render(example)]  # type: ignore[attr-defined]
    sampling = Sampling(max_tokens=8 * max(len(example.candidates) for example in examples))
    replies = engine.generate([Request(replace(one, messages=(*one.messages, tag)), sampling) for one in prompts])
    found: list[Scores] = []
    for example, reply in zip(examples, replies, strict=True):
        tags = _ANSWER.findall("<answer>" + reply.text)[: len(example.candidates)]
        # In the format's own grammar: a score off the scale is none here either.
        whole = "<think>-</think>" + "".join(f"<answer>{one}</answer>" for one in tags)
        found.append(format.read(example, [Generation(whole)]).scores)  # type: ignore[attr-defined]
    return found


def answers(engine: Engine, count: int) -> Figures:
    """Picture questions, not judged: as the base was taught to think, and asked directly, where its habits count.

    Of the thoughts also whether the scene is read aloud and the answer derived without a slip, whatever follows.
    """
    found: Figures = {}
    for mode in ("think", "direct"):
        rng = random.Random(f"study {mode}")
        asked = [shapes.question(rng, shapes.scene(rng, held_out=True)) for _ in range(count)]
        system = (Message("system", ("Think first.",)),) if mode == "think" else ()
        users = [Message("user", (shown(one, "image", rng), one.text)) for one in asked]
        requests = [Request(Prompt((*system, user)), Sampling(max_tokens=LIMIT)) for user in users]
        replies = [reply.text for reply in engine.generate(requests)]
        said = [_ANSWER.findall(reply) if mode == "think" else [reply] for reply in replies]
        right = sum(len(one) == 1 and shapes.is_correct(of, one[0]) for of, one in zip(asked, said, strict=True))
        found[f"questions_{mode}"] = round(right / count, 4)
        if mode == "think":
            seen = sum(traces.derivation(of) in reply for of, reply in zip(asked, replies, strict=True))
            found["questions_seen"] = round(seen / count, 4)
    return found


# ------------------------------------------------------------------------------------------------------ at inference


def of_votes(folder: Path, count: int, cache: Path) -> Figures:
    """Image pairs and single scores by the majority of k replies, sampled as the judge writes them (temperature 1)."""
    found: Figures = {}
    with CachedEngine(opened(folder), cache) as engine:  # k votes are the first of the next larger k
        for k in VOTES:
            for format, name, chosen in on_images(count):
                counted = group(engine, MajorityVote(format, k), chosen, f"{name}_votes_{k}", temperature=1.0)
                if format is PAIR:  # a vote on several answers has shares in place of their scores
                    del counted[f"{name}_votes_{k}_exact"]
                found |= counted
    return found


def of_waiting(folder: Path, count: int) -> Figures:
    """The same with thoughts that are cut and closed, and with thoughts that have to continue after "Wait"."""
    found: Figures = {}
    with opened(folder) as engine:
        for format, name, chosen in on_images(count):
            for budget in BUDGETS:
                found |= group(engine, BudgetForcing(format), chosen, f"{name}_budget_{budget}", max_tokens=budget)
            for rounds, scores in enumerate(waited(engine, format, [case.example for case in chosen])):
                found |= shares(chosen, scores, f"{name}_wait_{rounds}")
    return found


def on_images(count: int) -> list[tuple[OneCall, str, list[Case]]]:
    """Pairs, and half as many single answers, about images."""
    return [(PAIR, "image_pair", cases(2, "image", count)), (SINGLE, "image_single", cases(1, "image", count // 2))]


def waited(engine: Engine, format: OneCall, examples: Sequence[Example]) -> list[list[Scores]]:
    """Scores after 0 to ROUNDS rounds. A round takes the verdict away, appends "Wait", and lets the judge continue.

    A reply without a closed thought stays as it is.
    """
    prompts = [prompt for example in examples for prompt in format.render(example)]
    sampling = Sampling(max_tokens=LIMIT)
    replies = engine.generate([Request(prompt, sampling) for prompt in prompts])
    found = [_read(format, examples, replies)]
    for _ in range(ROUNDS):
        closed = [index for index, reply in enumerate(replies) if THINK_CLOSE in reply.text]
        begun = {index: replies[index].text.rpartition(THINK_CLOSE)[0] + " Wait" for index in closed}
        more = engine.generate([Request(continued(prompts[i], text), sampling) for i, text in begun.items()])
        for index, reply in zip(closed, more, strict=True):
            replies[index] = replace(reply, text=begun[index] + reply.text)
        found.append(_read(format, examples, replies))
    return found


def _read(format: OneCall, examples: Sequence[Example], replies: Sequence[Generation]) -> list[Scores]:
    return [format.read(example, [reply]).scores for example, reply in zip(examples, replies, strict=True)]
