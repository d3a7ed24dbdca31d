"""Judging groups: layouts over ranks, position swap, schedules, lists, votes, budget forcing, best-of-8.

    python benchmarks/groups.py layouts     gloo processes, every layout; ranks that raise, hang or are slow
    python benchmarks/groups.py swap        scripted judges with 0 to 40 % position bias, 10,000 pairs; two minutes
    python benchmarks/groups.py schedules   a scripted judge with noise and ties, tournaments of eight; a minute
    python benchmarks/groups.py nano        the embedded judge on held-out images, groups of eight; about ten minutes
    python benchmarks/groups.py grpo        the demo's training with listwise and with pointwise scores, six seeds, and
                                            three seeds without the cache (groups_grpo.py); 30 minutes

Everything is seeded. Tokens are those the judge wrote; nothing is cached between measurements.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from flexjudge_recipes.nano import shapes

from figures import record
from groups_grpo import grpo

from flexjudge_reward import (
    AnchoredChunks,
    Ask,
    BudgetForcing,
    Example,
    ExpectedScore,
    Failure,
    Format,
    GroupResult,
    Judge,
    Listwise,
    MajorityVote,
    Media,
    Message,
    Pairwise,
    Pointwise,
    PositionSwap,
    Prompt,
    Request,
    Sampling,
    ScriptedEngine,
    Tournament,
    TransformersEngine,
    Untrusted,
    Verdict,
    gather,
    judge_groups,
    rerank,
)
from flexjudge_reward.nano import path

GREEDY = Sampling(max_tokens=256)
G = 8  # candidates per group
VOTES = 7
KINDS: tuple[shapes.Kind, ...] = ("what", "count", "exists")


def main() -> None:
    """Runs the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("layouts", "swap", "schedules", "nano", "grpo"))
    parser.add_argument("--groups", type=int, default=60, help="groups of eight (nano)")
    options = parser.parse_args()
    parts = {"layouts": layouts, "swap": swap, "schedules": schedules, "grpo": grpo}
    parts.get(options.part, lambda: nano(options.groups))()


# --------------------------------------------------------------------------------------------------------- layouts


def layouts() -> None:
    """Rows whose reward depends on how the batch was split, and how long the others wait for a rank that misbehaves."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from support.layouts import mismatches, waits
    from support.layouts import run as spawned

    with tempfile.TemporaryDirectory() as folder:
        counts = [mismatches(world_size, Path(folder)) for world_size in (2, 4)]
        wrong, rows = (sum(column) for column in zip(*counts, strict=True))
        note = f"{rows} rows; 2 and 4 processes against 1, per-device 1 to 4, G 2, 4, 8"
        note += "; listwise, pairwise, multiple_choice, pointwise"
        record("groups.layout_mismatches", wrong, unit="rows", target="<= 0", note=note)
        deadline = 5.0
        cases = {"raises": 0.0, "hangs": 120.0, "is slow": 3.0, "computes": 0.0}
        jobs = [waits(how, seconds, deadline) for how, seconds in cases.items()]
        longest = max(waiting for ranks in spawned(2, jobs, Path(folder)) for waiting, _ in ranks)
        note = f"deadline {deadline:g} s; rank 0 raises, hangs for 120 s, takes 3 s, or computes without end"
        record("groups.wait_over_deadline_s", max(0.0, longest - deadline), unit="s", target="<= 10", note=note)


# ------------------------------------------------------------------------------------------------------------ swap


def swap(pairs: int = 10_000, rounds: int = 5) -> None:
    """How far the first place's share among the labels that both orders agree on is from its share in the truth.

    Besides its bias the judge errs in one case of ten, so that both orders also agree on wrong labels. One round of
    10,000 pairs has a standard error of a third of a percent, so there are five.
    """
    worst, one_order = 0.0, 0.0
    for bias in (0.0, 0.1, 0.2, 0.3, 0.4):
        rng = random.Random(f"swap {bias}")
        values = [rng.sample(range(1, 11), 2) for _ in range(pairs * rounds)]
        examples = [Example("q", [f"{a} a{i}", f"{b} b{i}"]) for i, (a, b) in enumerate(values)]
        engine = ScriptedEngine(partial(biased_judge, rng, bias))
        skews = []
        for format in (PositionSwap(Pairwise()), Pairwise()):
            verdicts = Judge(format, engine)(examples)
            labels = [
                ((verdict.scores[0] > verdict.scores[1]) - (a > b))
                for (a, b), verdict in zip(values, verdicts, strict=True)
                if verdict.scores and verdict.scores[0] != verdict.scores[1]
            ]
            skews.append(100 * statistics.mean(labels))
        shown = f"{skews[0]:+.3f} % where both orders agree, {skews[1]:+.1f} % in one order"
        print(f"bias {bias:.0%}: skew {shown}", flush=True)
        worst, one_order = max(worst, abs(skews[0])), max(one_order, abs(skews[1]))
    note = f"worst of 0 to 40 % bias, {rounds} x {pairs:,} pairs each, 10 % errors; one order: {one_order:.1f} %"
    record("swap.residual_skew_percent", worst, unit="%", target="< 0.5", note=note)


def biased_judge(rng: random.Random, bias: float, request: Request) -> str:
    """Prefers the first answer with probability `bias`; otherwise the better one, except in one case of ten."""
    scores = first_words(request)
    if rng.random() < bias:
        scores = ["9", "2"]
    elif rng.random() < 0.1:
        scores.reverse()
    return reply(*scores)


def first_words(request: Request) -> list[str]:
    """The first word of each candidate in a request."""
    texts = [part.text for part in request.prompt.messages[1].parts if isinstance(part, Untrusted)]
    return [text.split()[0] for text in texts[1:]]


def reply(*scores: object) -> str:
    """A judge's reply with these scores."""
    return "<think></think>" + "".join(f"<answer>{score}</answer>" for score in scores)


# ------------------------------------------------------------------------------------------------------- schedules


def schedules(groups: int = 1500) -> None:
    """What a Swiss tournament of 16 comparisons finds, against 16 of all 28 pairs, and against all of them."""
    found: dict[tuple[str, int, float], list[float]] = {}
    for noise in (0.1, 0.3, 1.0):
        for schedule, budget in (("swiss", 16), ("all", 16), ("all", 28)):
            format = Tournament(Pairwise(), schedule, budget)
            taus, bests = tournaments(format, noise, groups)
            found[schedule, budget, noise] = bests
            shown = f"tau {statistics.mean(taus):.3f}, best member found {statistics.mean(bests):.3f}"
            print(f"noise {noise}, {schedule}, {budget} comparisons: {shown}", flush=True)
    swiss, all_pairs = found["swiss", 16, 0.3], found["all", 16, 0.3]
    gains = [a - b for a, b in zip(swiss, all_pairs, strict=True)]
    error = statistics.stdev(gains) / len(gains) ** 0.5
    note = f"{groups} groups of {G}, 16 comparisons, noise 0.3; swiss {statistics.mean(swiss):.3f}"
    note += f", all with a budget {statistics.mean(all_pairs):.3f}; standard error {error:.3f}"
    record("groups.swiss_best_gain", statistics.mean(gains), unit="share", target="> 0", note=note)


def tournaments(format: Format, noise: float, groups: int) -> tuple[list[float], list[float]]:
    """Per group: Kendall's tau of its scores with the true strengths, and the chance that its top member is the best.

    The groups and their strengths are the same for every format.
    """
    rng = random.Random("strengths")
    strengths = [[rng.gauss(0, 1) for _ in range(G)] for _ in range(groups)]
    engine = ScriptedEngine(partial(noisy_judge, random.Random(f"noise {noise}"), noise))
    verdicts = Judge(format, engine)([Example("q", [repr(value) for value in values]) for values in strengths])
    taus, bests = [], []
    for values, verdict in zip(strengths, verdicts, strict=True):
        scores = verdict.scores or ()
        agreeing, _, _ = concordance(scores, values)
        taus.append(agreeing / math.comb(G, 2))
        top = [index for index, score in enumerate(scores) if score == max(scores)]
        bests.append((values.index(max(values)) in top) / len(top))
    return taus, bests


def noisy_judge(rng: random.Random, noise: float, request: Request) -> str:
    """Prefers the stronger of two candidates as a Bradley-Terry model does; ties half of the close pairs."""
    first, second = map(float, first_words(request))
    if abs(first - second) < 0.2 and rng.random() < 0.5:
        return reply(5, 5)
    return reply(7, 3) if rng.random() < 1 / (1 + math.exp((second - first) / noise)) else reply(3, 7)


def concordance(scores: Sequence[float], truth: Sequence[float]) -> tuple[int, int, int]:
    """Concordant less discordant pairs, pairs with different scores, and pairs with different truths."""
    pairs = list(combinations(zip(scores, truth, strict=True), 2))
    signs = [((a > b) - (a < b), (c > d) - (c < d)) for (a, c), (b, d) in pairs]
    return sum(s * t for s, t in signs), sum(abs(s) for s, _ in signs), sum(abs(t) for _, t in signs)


# ------------------------------------------------------------------------------------------------------------ nano


class Group(NamedTuple):
    """A question about an image, and answers to it."""

    question: shapes.Question
    example: Example

    @property
    def answers(self) -> list[str]:
        """The texts of the candidates."""
        return [str(candidate[0]) for candidate in self.example.candidates]

    @property
    def truth(self) -> list[int]:
        """The score that each answer deserves."""
        return [shapes.score(self.question, answer) for answer in self.answers]


def nano(count: int) -> None:
    """Lists, votes, budget forcing, best-of-8 and expected scores with the embedded judge."""
    with TransformersEngine("nano") as engine:
        groups = made_groups(count)
        lists(engine, made_groups(count * 5))
        votes(engine, groups)
        forcing(engine, groups)
        sampled = sampled_groups(count * 3)
        best(engine, sampled)
        expectations(engine, sampled)


def made_groups(count: int) -> list[Group]:
    """Held-out images with eight answers of known quality."""
    rng = random.Random("groups")
    groups = []
    for _ in range(count):
        question = shapes.question(rng, shapes.scene(rng, held_out=True), KINDS)
        image = Media.image(shapes.draw(question.scene, rng))
        groups.append(Group(question, Example([image, question.text], shapes.candidates(rng, question, G))))
    return groups


def sampled_groups(count: int) -> list[Group]:
    """Held-out images with eight answers of the embedded policy, at temperature 1."""
    rng = random.Random("sampled")
    questions = [shapes.question(rng, shapes.scene(rng, held_out=True), KINDS) for _ in range(count)]
    asked = [(Media.image(shapes.draw(question.scene, rng)), question.text) for question in questions]
    requests = [
        Request(Prompt((Message("user", (image, Untrusted(text))),)), Sampling(1.0, max_tokens=16, seed=seed))
        for image, text in asked
        for seed in range(G)
    ]
    with TransformersEngine(str(path("base"))) as policy:
        replies = iter(policy.generate(requests))
    return [
        Group(question, Example(content, [next(replies).text.strip() for _ in range(G)]))
        for question, content in zip(questions, asked, strict=True)
    ]


def judged(
    engine: TransformersEngine, format: Format, groups: Sequence[Group], sampling: Sampling = GREEDY
) -> list[GroupResult]:
    """What the embedded judge gives for each group."""
    return judge_groups(Judge(format, engine, sampling), [group.example for group in groups])


def tokens(results: Sequence[GroupResult]) -> int:
    """Tokens that the judge wrote."""
    return sum(verdict.tokens for result in results for verdict in result.verdicts)


def lists(engine: TransformersEngine, groups: Sequence[Group]) -> None:
    """Lists for groups of eight answers against eight calls.

    The recorded values are those of one list per group; a note has those of shorter lists. Pointwise judges equal
    answers repeatedly, a list once; in groups.listwise_token_ratio_like_for_like both judge them once.
    """
    pointwise = judged(engine, Pointwise(prompt_set="nano"), groups)
    unique = sum(
        verdict.tokens
        for result, group in zip(pointwise, groups, strict=True)
        for verdict in dict(zip(group.example.candidates, result.verdicts, strict=True)).values()
    )
    base = taus(pointwise, groups)
    measured = {}
    for size in (3, 4, G):
        listwise = judged(engine, AnchoredChunks(Listwise(prompt_set="nano"), size), groups)
        gains = [after - before for after, before in zip(taus(listwise, groups), base, strict=True)]
        ratio, gain = tokens(listwise) / tokens(pointwise), statistics.mean(gains)
        error = statistics.stdev(gains) / len(gains) ** 0.5
        measured[size] = ratio, gain, error
        print(f"lists of {size}: tokens {ratio:.3f}, tau {gain:+.4f} +- {error:.4f}", flush=True)
    (ratio, gain, error), note = measured.pop(G), f"{len(groups)} groups of 8, a list each; pointwise judges"
    record("groups.listwise_token_ratio", ratio, unit="ratio", target="<= 0.25", note=f"{note} all answers")
    note, alike = f"{note} equal answers once, too", ratio * tokens(pointwise) / unique
    record("groups.listwise_token_ratio_like_for_like", alike, unit="ratio", target="", note=note)
    others = "; ".join(f"of {size} {ratio:.2f} and {gain:+.3f}" for size, (ratio, gain, _) in measured.items())
    note = f"Kendall tau-b against the truth; pointwise {statistics.mean(base):.3f}; standard error {error:.3f}"
    note += f"; lists {others} (token ratio, tau gain)"
    record("groups.listwise_tau_gain", gain, unit="tau", target=">= 0", note=note)


def taus(results: Sequence[GroupResult], groups: Sequence[Group]) -> list[float]:
    """Per group, Kendall's tau-b of the scores with the true ones; a failure ranks below every score."""
    values = []
    for result, group in zip(results, groups, strict=True):
        scores = [-1.0 if isinstance(outcome, Failure) else outcome for outcome in result.outcomes]
        agreeing, untied_scores, untied_truths = concordance(scores, group.truth)
        untied = untied_scores * untied_truths
        values.append(agreeing / untied**0.5 if untied else 0.0)
    return values


def votes(engine: TransformersEngine, groups: Sequence[Group]) -> None:
    """Seven votes at temperature 1, with and without early stopping."""
    sampling = Sampling(temperature=1.0, max_tokens=256)
    some = groups[: max(1, len(groups) // 4)]
    stopped = judged(engine, MajorityVote(Pointwise(prompt_set="nano"), VOTES), some, sampling)
    full = judged(engine, AllVotes(Pointwise(prompt_set="nano")), some, sampling)
    pairs = zip(stopped, full, strict=True)
    changed = sum(a != b for one, other in pairs for a, b in zip(one.outcomes, other.outcomes, strict=True))
    saved, note = 1 - tokens(stopped) / tokens(full), f"{len(some) * G} judgements, majority"
    record(f"votes.tokens_saved_k{VOTES}", saved, unit="fraction", target=">= 0.4", note=note)
    record("votes.outcome_changes", changed, unit="count", target="<= 0", note="against all seven votes, counted here")


class AllVotes(Format):
    """All seven votes of a pointwise format: the most common score, or the mean of the most common ones."""

    name, max_candidates = "all_votes", 1

    def __init__(self, inner: Format) -> None:
        self.inner = inner

    async def judge(self, example: Example, ask: Ask) -> Verdict:
        """One round, with the seeds that MajorityVote uses."""
        seeds = [ask.sampling.seed + number for number in range(VOTES)]
        ballots = await gather(*(self.inner.judge(example, ask.changed(seed=seed)) for seed in seeds))
        replies = tuple(generation for ballot in ballots for generation in ballot.generations)
        scores = [ballot.scores[0] for ballot in ballots if ballot.scores is not None]
        if not scores:
            return Verdict(None, ballots[0].failure, generations=replies)
        return Verdict((statistics.fmean(statistics.multimode(scores)),), None, ballots[0].scale, generations=replies)


def forcing(engine: TransformersEngine, groups: Sequence[Group]) -> None:
    """Reasoning of at most 24 tokens, which is too few for most questions."""
    short = Sampling(max_tokens=24)
    before = judged(engine, Pointwise(prompt_set="nano"), groups, short)
    after = judged(engine, BudgetForcing(Pointwise(prompt_set="nano"), 16), groups, short)
    right = [
        verdict.scores == (float(score),)
        for result, group in zip(after, groups, strict=True)
        for verdict, score in zip(result.verdicts, group.truth, strict=True)
        if verdict.scores is not None and verdict.counters.get("forced")
    ]
    note = f"reasoning limit 24 tokens; {statistics.mean(right):.1%} of {len(right)} forced scores are right"
    for when, results in (("before", before), ("after", after)):
        rate = statistics.mean(not isinstance(outcome, Failure) for result in results for outcome in result.outcomes)
        record(f"forcing.answered_rate_{when}", rate, unit="fraction", target="", note=note)


def best(engine: TransformersEngine, groups: Sequence[Group]) -> None:
    """How much of the gap between the policy's first answer and its best of eight the judge closes."""
    rankings = rerank([group.example for group in groups], Judge(Pointwise(prompt_set="nano"), engine, GREEDY))
    right = [[shapes.is_correct(group.question, answer) for answer in group.answers] for group in groups]
    first = statistics.mean(row[0] for row in right)
    picked = statistics.mean(row[ranking.order[0]] for row, ranking in zip(right, rankings, strict=True))
    oracle = statistics.mean(any(row) for row in right)
    note = f"{len(groups)} images: first {first:.1%}, judge's choice {picked:.1%}, oracle {oracle:.1%}"
    record("best_of_n.gap_closed", (picked - first) / (oracle - first), unit="fraction", target=">= 0.5", note=note)


def expectations(engine: TransformersEngine, groups: Sequence[Group]) -> None:
    """Groups that give no gradient because all scores are equal, with integer and with expected scores."""
    mixed = [group for group in groups if len(set(group.answers)) > 1]
    shares = []
    for format in (Pointwise(prompt_set="nano"), ExpectedScore(Pointwise(prompt_set="nano"))):
        scores = [
            {outcome for outcome in result.outcomes if not isinstance(outcome, Failure)}
            for result in judged(engine, format, mixed)
        ]
        shares.append(statistics.mean(len(different) <= 1 for different in scores))
    note = f"{len(mixed)} groups with different answers: {shares[0]:.1%} with whole scores, {shares[1]:.1%} expected"
    ratio = shares[1] / shares[0] if shares[0] else 0.0
    record("groups.expected_zero_variance_ratio", ratio, unit="ratio", target="<= 0.5", note=note)


if __name__ == "__main__":
    main()
