"""Judging groups: layouts over processes; what lists, expectations, votes, forcing and best-of-8 give.

    python benchmarks/groups.py layouts     gloo processes, every layout; ranks that raise, hang or are slow
    python benchmarks/groups.py swap        scripted judges with 0 to 40 % position bias, 10,000 pairs
    python benchmarks/groups.py nano        the embedded judge on held-out pictures, groups of eight; about ten minutes
    python benchmarks/groups.py grpo        the demo's training with lists and with single scores, six seeds, and three
                                            without the cache of replies; 30 minutes

Everything is seeded. Tokens are those the judge wrote; nothing is cached between measurements.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from demo import run
from figures import record

from flexjudge_reward import (
    Example,
    Judge,
    Listwise,
    Media,
    Message,
    Pair,
    Prompt,
    Quoted,
    Sampling,
    Score,
    TransformersEngine,
    Verdict,
)
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.formats.adaptive import Forced, Swapped, Votes
from flexjudge_reward.formats.expected import Expected
from flexjudge_reward.formats.groups import Chunked
from flexjudge_reward.judge.groups import judge_groups
from flexjudge_reward.judge.rewards import Outcome
from flexjudge_reward.nano import path, world
from flexjudge_reward.offline.rerank import rerank
from flexjudge_reward.types import AnyFormat, Failure

GREEDY = Sampling(max_tokens=256)
G = 8


def main() -> None:
    """Runs the part named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("layouts", "swap", "nano", "grpo"))
    parser.add_argument("--groups", type=int, default=60, help="groups of eight (nano)")
    options = parser.parse_args()
    parts = {"layouts": layouts, "swap": swap, "grpo": grpo}
    parts.get(options.part, lambda: nano(options.groups))()


# --------------------------------------------------------------------------------------------------------- layouts


def layouts() -> None:
    """Rows whose reward depends on how the batch was split, and how long others wait for a rank that misbehaves."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from support.layouts import mismatches, waited
    from support.layouts import run as spawned

    with tempfile.TemporaryDirectory() as folder:
        counts = [mismatches(world_size, form, Path(folder)) for world_size in (2, 4) for form in ("listwise", "pair")]
        wrong, rows = (sum(column) for column in zip(*counts, strict=True))
        note = f"{rows} rows; 2 and 4 processes against 1, per-device 1 to 4, G 2, 4, 8, listwise and pair"
        record("groups.layout_mismatches", wrong, unit="rows", target="<= 0", note=note)
        deadline, longest = 5.0, 0.0
        for how, seconds in (("raises", 0.0), ("hangs", 120.0), ("is slow", 3.0)):
            for _, (waiting, _) in enumerate(spawned(2, waited, Path(folder), how, seconds, deadline)):
                longest = max(longest, waiting - deadline)
        note = f"deadline {deadline:g} s; rank 0 raises, hangs for 120 s or takes 3 s"
        record("groups.wait_over_deadline_s", max(0.0, longest), unit="s", target="<= 10", note=note)


# ------------------------------------------------------------------------------------------------------------ swap


def swap(pairs: int = 10_000, rounds: int = 5) -> None:
    """How far the first place's share among the labels that both orders agree on is from its share in the truth.

    Beside its bias the judge errs in one case of ten, so that wrong labels are agreed on too. One round of 10,000 pairs
    is known to a third of a percent only, so five are drawn.
    """
    worst, one_order = 0.0, 0.0
    for bias in (0.0, 0.1, 0.2, 0.3, 0.4):
        rng = random.Random(f"swap {bias}")
        drawn = [rng.sample(range(1, 11), 2) for _ in range(pairs * rounds)]
        examples = [Example("q", [f"{a} a{i}", f"{b} b{i}"]) for i, (a, b) in enumerate(drawn)]
        engine = ScriptedEngine(partial(biased, rng, bias))
        skews = []
        for form in (Swapped(Pair()), Pair()):
            verdicts = Judge(form, engine)(examples)
            labels = [
                ((v.scores[0] > v.scores[1]) - (a > b))
                for (a, b), v in zip(drawn, verdicts, strict=True)
                if v.scores and v.scores[0] != v.scores[1]
            ]
            skews.append(100 * statistics.mean(labels))
        print(
            f"bias {bias:.0%}: skew {skews[0]:+.3f} % where both orders agree, {skews[1]:+.1f} % in one order",
            flush=True,
        )
        worst, one_order = max(worst, abs(skews[0])), max(one_order, abs(skews[1]))
    note = (
        f"worst of 0, 10, 20, 30, 40 % bias, {rounds} x {pairs:,} pairs each, 10 % errors; one order: {one_order:.1f} %"
    )
    record("swap.residual_skew_percent", worst, unit="%", target="< 0.5", note=note)


def biased(rng: random.Random, bias: float, prompt: Prompt) -> str:
    """A judge that names the first answer with chance `bias`; otherwise the better one, but for one case of ten."""
    scores = [part.text.split()[0] for part in prompt.messages[1].parts if isinstance(part, Quoted)][1:]
    if rng.random() < bias:
        scores = ["9", "2"]
    elif rng.random() < 0.1:
        scores.reverse()
    return "<think></think>" + "".join(f"<answer>{score}</answer>" for score in scores)


# ------------------------------------------------------------------------------------------------------------ nano


def nano(count: int) -> None:
    """Lists, expectations, votes, forcing and best-of-8 on the embedded judge."""
    engine = TransformersEngine("nano")
    groups = drawn_groups(count)
    lists(engine, drawn_groups(count * 5))
    votes(engine, groups)
    forcing(engine, groups)
    sampled = sampled_groups(count * 3)
    best(engine, sampled)
    expectations(engine, sampled)


Group = tuple[world.Question, Example]


def drawn_groups(count: int) -> list[Group]:
    """Held-out pictures with eight answers of known quality."""
    rng = random.Random("groups")
    found = []
    for _ in range(count):
        asked = world.question(rng, world.scene(rng, held_out=True), ("what", "count", "exists"))
        found.append(
            (asked, Example([Media.image(world.draw(asked.scene, rng)), asked.text], world.candidates(rng, asked, G)))
        )
    return found


def sampled_groups(count: int) -> list[Group]:
    """Held-out pictures with eight answers of the embedded policy, at temperature 1."""
    rng = random.Random("sampled")
    asked = [world.question(rng, world.scene(rng, held_out=True), ("what", "count", "exists")) for _ in range(count)]
    pictures = [Media.image(world.draw(one.scene, rng)) for one in asked]
    prompts = [
        Prompt((Message("user", (picture, Quoted(one.text))),), sample=number)
        for one, picture in zip(asked, pictures, strict=True)
        for number in range(G)
    ]
    policy = TransformersEngine(str(path("base")))
    replies = iter(policy.generate(prompts, Sampling(temperature=1.0, max_tokens=16)))
    policy.close()
    return [
        (one, Example([picture, one.text], [next(replies).text.strip() for _ in range(G)]))
        for one, picture in zip(asked, pictures, strict=True)
    ]


def judged(
    engine: TransformersEngine, form: AnyFormat, groups: Sequence[Group], sampling: Sampling = GREEDY
) -> tuple[list[tuple[Outcome, ...]], list[Verdict]]:
    found = judge_groups([example for _, example in groups], Judge(form, engine, sampling))
    return [outcomes for outcomes, _ in found], [verdict for _, verdicts in found for verdict in verdicts]


def tokens(verdicts: Sequence[Verdict]) -> int:
    return sum(generation.completion_tokens for verdict in verdicts for generation in verdict.generations)


def lists(engine: TransformersEngine, groups: Sequence[Group]) -> None:
    """Lists for groups of eight answers against eight calls.

    The figures are those of one list per group (`chunk=8`); the note has shorter ones, as the default makes them.
    Pointwise judges equal answers again and again, a list once; the note also says how many tokens it takes where both
    judge them once.
    """
    alone, single = judged(engine, Score(prompts="nano"), groups)
    unique = [
        verdict
        for verdicts, (_, example) in zip(verdicts_by_group(single), groups, strict=True)
        for verdict in dict(zip(example.candidates, verdicts, strict=True)).values()
    ]
    base = taus(alone, groups)
    found = {}
    for length in (3, 4, 8):
        together, listed = judged(engine, Chunked(Listwise(prompts="nano"), length), groups)
        gains = [one - other for one, other in zip(taus(together, groups), base, strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5
        found[length] = (tokens(listed) / tokens(single), statistics.mean(gains), error)
        print(
            f"lists of {length}: tokens {found[length][0]:.3f}, tau {found[length][1]:+.4f} +- {error:.4f}", flush=True
        )
    ratio, gain, error = found[G]
    others = "; ".join(
        f"of {length} {one:.2f} and {tau:+.3f}" for length, (one, tau, _) in found.items() if length != G
    )
    once = ratio * tokens(single) / tokens(unique)
    note = f"{len(groups)} groups of 8, a list each; {once:.2f} where pointwise too judges equal answers once"
    record("groups.listwise_token_ratio", ratio, unit="ratio", target="<= 0.25", note=note)
    note = f"Kendall tau-b against the truth; pointwise {statistics.mean(base):.3f}; standard error {error:.3f}"
    note += f"; lists {others} (token ratio, tau gain)"
    record("groups.listwise_tau_gain", gain, unit="tau", target=">= 0", note=note)


def taus(found: Sequence[tuple[Outcome, ...]], groups: Sequence[Group]) -> list[float]:
    return [tau(outcomes, asked, example) for outcomes, (asked, example) in zip(found, groups, strict=True)]


def tau(outcomes: Sequence[Outcome], asked: world.Question, example: Example) -> float:
    """Kendall's tau-b of the scores against the true ones; a failure ranks below every score."""
    given = [-1.0 if isinstance(one, Failure) else one for one in outcomes]
    true = [world.score(asked, str(candidate[0])) for candidate in example.candidates]
    signs = [
        ((a > b) - (a < b), (c > d) - (c < d)) for (a, c), (b, d) in combinations(zip(given, true, strict=True), 2)
    ]
    spread = sum(abs(one) for one, _ in signs) * sum(abs(other) for _, other in signs)
    return sum(one * other for one, other in signs) / spread**0.5 if spread else 0.0


def votes(engine: TransformersEngine, groups: Sequence[Group]) -> None:
    """Seven votes at temperature 1, with and without stopping early."""
    sampling = Sampling(temperature=1.0, max_tokens=256)
    some = groups[: max(1, len(groups) // 4)]
    early, spent = judged(engine, Votes(Score(prompts="nano"), 7), some, sampling)
    full, all_of = judged(engine, AllVotes(), some, sampling)
    changed = sum(one != other for a, b in zip(early, full, strict=True) for one, other in zip(a, b, strict=True))
    saved = 1 - tokens(spent) / tokens(all_of)
    record(
        "votes.tokens_saved_k7", saved, unit="fraction", target=">= 0.4", note=f"{len(some) * G} judgements, majority"
    )
    record("votes.outcome_changes", changed, unit="count", target="<= 0", note="against all seven votes drawn")


class AllVotes(Votes):
    """All seven votes, counted as `Votes` counts them."""

    def __init__(self) -> None:
        super().__init__(Score(prompts="nano"), 7)

    def steps(self, example: Example) -> object:  # type: ignore[override]
        from flexjudge_reward.formats.adaptive import as_sample
        from flexjudge_reward.formats.builtin import steps, together

        drawn = yield from together([as_sample(steps(self.format, example), number) for number in range(7)])
        return self._counted(drawn)


def forcing(engine: TransformersEngine, groups: Sequence[Group]) -> None:
    """Thoughts of at most 24 tokens, which is too few for most."""
    tiny = Sampling(max_tokens=24)
    before, _ = judged(engine, Score(prompts="nano"), groups, tiny)
    after, verdicts = judged(engine, Forced(Score(prompts="nano"), 16), groups, tiny)
    rates = [statistics.mean(not isinstance(one, Failure) for row in found for one in row) for found in (before, after)]
    pairs = zip(after, verdicts_by_group(verdicts), groups, strict=True)
    right = [
        verdict.scores == (float(world.score(asked, str(candidate[0]))),)
        for _, row, (asked, example) in pairs
        for verdict, candidate in zip(row, example.candidates, strict=True)
        if verdict.scores is not None and verdict.notes.get("forced")
    ]
    note = f"thinking limit 24 tokens; {statistics.mean(right):.1%} of {len(right)} forced scores are right"
    record("forcing.answered_rate_before", rates[0], unit="fraction", target="", note=note)
    record("forcing.answered_rate_after", rates[1], unit="fraction", target="", note=note)


def verdicts_by_group(verdicts: Sequence[Verdict]) -> list[Sequence[Verdict]]:
    return [verdicts[start : start + G] for start in range(0, len(verdicts), G)]


def best(engine: TransformersEngine, groups: Sequence[Group]) -> None:
    """How much of the way from the policy's first answer to its best of eight the judge goes."""
    rankings = rerank([example for _, example in groups], Judge(Score(prompts="nano"), engine, GREEDY))
    right = [
        [world.is_correct(asked, str(candidate[0])) for candidate in example.candidates] for asked, example in groups
    ]
    first = statistics.mean(row[0] for row in right)
    picked = statistics.mean(row[ranking.order[0]] for row, ranking in zip(right, rankings, strict=True))
    oracle = statistics.mean(any(row) for row in right)
    note = f"{len(groups)} pictures: first {first:.1%}, judge's choice {picked:.1%}, oracle {oracle:.1%}"
    record("best_of_n.gap_closed", (picked - first) / (oracle - first), unit="fraction", target=">= 0.5", note=note)


def expectations(engine: TransformersEngine, groups: Sequence[Group]) -> None:
    """Groups that give no gradient because all scores are equal, with whole and with expected scores."""
    mixed = [(asked, example) for asked, example in groups if len(set(example.candidates)) > 1]
    shares = []
    for form in (Score(prompts="nano"), Expected(Score(prompts="nano"))):
        outcomes, _ = judged(engine, form, mixed)
        shares.append(
            statistics.mean(len({one for one in row if not isinstance(one, Failure)}) <= 1 for row in outcomes)
        )
    note = f"{len(mixed)} groups with different answers: {shares[0]:.1%} with whole scores, {shares[1]:.1%} expected"
    ratio = shares[1] / shares[0] if shares[0] else 0.0
    record("groups.expected_zero_variance_ratio", ratio, unit="ratio", target="<= 0.5", note=note)


# ------------------------------------------------------------------------------------------------------------ grpo


def grpo() -> None:
    """Accuracy at the end of the demo's training, one judge call per group against one per answer, and the plot."""
    found = in_turns((1, 2, 3, 4, 5, 6))
    points = {form: [100 * one["accuracy_after"] for one in runs] for form, runs in found.items()}
    differences = [one - other for one, other in zip(points["listwise"], points["score"], strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    means = [statistics.mean(points[form]) for form in ("listwise", "score")]
    note = f"standard error {error:.1f}; {len(differences)} seeds: {means[0]:.1f} % against {means[1]:.1f} % right"
    difference = statistics.mean(differences)
    record("groups.grpo_listwise_minus_pointwise_points", difference, unit="points", target=">= 0", note=note)
    record_time("groups.grpo_judge_time_ratio", found)
    # Where no answer was judged before, as with policies that do not repeat themselves.
    new = in_turns((1, 2, 3), "--judge_cache", "off")
    record_time("groups.grpo_new_judge_time_ratio", new)
    plot(found, new)


def in_turns(seeds: Sequence[int], *flags: str) -> dict[str, list[dict[str, Any]]]:
    """What the demo's training reports with single scores and with lists, for each seed.

    The judge is on a real vLLM server, as the README advises for training. Both ways take turns in being first, so that
    neither a busy minute of the machine nor a cold server falls on one of them alone.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from support import real

    found: dict[str, list[dict[str, Any]]] = {"score": [], "listwise": []}
    model = str(path("judge"))
    with (
        real.serve(model, "--dtype", "float32", "--enforce-eager", "--served-model-name", "nano") as url,
        tempfile.TemporaryDirectory() as folder,
    ):
        for number, seed in enumerate(seeds):
            for form in sorted(found, reverse=number % 2 == 0):
                found[form].append(run(seed, Path(folder) / f"{form}{seed}", form, "--judge_base_url", url, *flags))
    return found


def record_time(name: str, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """The judge's seconds with lists as a ratio of those with single scores."""
    judged = {form: {key: [one["judge"][key] for one in runs] for key in _COUNTS} for form, runs in found.items()}
    lists, scores = judged["listwise"], judged["score"]
    by_seed = [one / other for one, other in zip(lists["seconds"], scores["seconds"], strict=True)]
    cached = 1 - sum(scores["new"]) / sum(scores["judgements"])
    note = f"a vLLM server, {sum(lists['seconds']):.0f} s against {sum(scores['seconds']):.0f} s; by seed"
    note += f" {min(by_seed):.2f} to {max(by_seed):.2f}; {cached:.0%} of the single scores came from the cache"
    note += f"; tokens, cached ones counted, {sum(lists['tokens'])} against {sum(scores['tokens'])}"
    record(name, sum(lists["seconds"]) / sum(scores["seconds"]), unit="ratio", target="< 1", note=note)


_COUNTS = ("seconds", "tokens", "new", "judgements")


def plot(found: Mapping[str, Sequence[Mapping[str, Any]]], new: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Accuracy over the steps, a line per seed, and the seconds that judging took, with and without the cache."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (curves, times) = plt.subplots(1, 2, figsize=(9, 3.6), dpi=120, width_ratios=(1.9, 1))
    for shift, (form, runs) in enumerate(found.items()):
        colour = ("tab:gray", "tab:blue")[shift]
        label = {"score": "pointwise: a call per answer", "listwise": "listwise: a call per group"}[form]
        for number, one in enumerate(runs):
            shares = [100 * share for share in one["accuracy"].values()]
            curves.plot(list(map(int, one["accuracy"])), shares, "o-", color=colour, label=None if number else label)
        seconds = [[one["judge"]["seconds"] for one in part] for part in (runs, new[form])]
        bars = times.bar([shift, shift + 3], list(map(statistics.mean, seconds)), width=0.9, color=colour)
        times.bar_label(bars, fmt="%.0f")
    curves.set(xlabel="step", ylabel="held-out pictures right, %", ylim=(0, 100))
    curves.legend(loc="lower right")
    curves.grid(alpha=0.3)
    times.set_xticks([0.5, 3.5], ["replies cached", "no cache"])
    times.set(ylabel="seconds of judging per training")
    times.margins(y=0.1)
    figure.savefig(Path(__file__).parent / "results" / "grpo_listwise.png", bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()
