"""Formats around formats: orders, votes, forced answers, tournaments and chunks, on scripted judges."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from flexjudge_reward import Choice, ConfigError, Example, Generation, Judge, Listwise, Pair, Prompt, Sampling, Score
from flexjudge_reward.adaptive import Chunked, Forced, Swapped, Tournament, Votes, votes_needed
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.types import Format, Verdict

Grade = Callable[[str], int]


def candidates(prompt: Prompt) -> list[str]:
    """The candidates of a prompt, in its order: quoted texts after the question."""
    return [part.text for part in prompt.messages[1].parts if hasattr(part, "text")][1:]


def tags(*answers: object) -> str:
    return "<think>so</think>" + "".join(f"<answer>{answer}</answer>" for answer in answers)


def grade(text: str) -> int:
    """The quality of a scripted candidate: its text is a number, maybe with a name behind it."""
    return int(text.split()[0])


def scores(prompt: Prompt) -> str:
    return tags(*(grade(text) for text in candidates(prompt)))


def first_is_better(prompt: Prompt) -> str:
    """The judge with nothing but position bias."""
    return tags(9, *(3 for _ in candidates(prompt)[1:]))


def judged(format: Format, replies: object, *groups: Sequence[str], sampling: Sampling = Sampling()) -> list[Verdict]:
    engine = ScriptedEngine(replies)  # type: ignore[arg-type]
    return Judge(format, engine, sampling)([Example("q", list(group)) for group in groups])


def test_swapping_keeps_a_winner_both_orders_name() -> None:
    (verdict,) = judged(Swapped(Pair()), scores, ["3", "7"])
    assert verdict.scores == (3.0, 7.0)
    assert verdict.notes == {"swaps": 1, "swaps_agreed": 1} and len(verdict.generations) == 2


def test_position_bias_becomes_a_tie() -> None:
    (verdict,) = judged(Swapped(Pair()), first_is_better, ["3", "7"])
    assert verdict.scores == (6.0, 6.0) and verdict.notes["swaps_agreed"] == 0


def test_swapping_a_choice() -> None:
    best = lambda prompt: tags("AB"[max(range(2), key=lambda i: grade(candidates(prompt)[i]))])  # noqa: E731
    (verdict,) = judged(Swapped(Choice()), best, ["8", "2"])
    assert verdict.scores == (1.0, 0.0)


def test_a_margin_swaps_close_pairs_only() -> None:
    far, close = judged(Swapped(Pair(), margin=2), scores, ["1", "9"], ["5", "6"])
    assert (len(far.generations), len(close.generations)) == (1, 2)
    assert (far.scores, close.scores) == ((1.0, 9.0), (5.0, 6.0))


@pytest.mark.parametrize("broken", [pytest.param(0, id="first_order"), pytest.param(1, id="second_order")])
def test_an_order_that_fails_is_a_failure(broken: int) -> None:
    replies = [tags(3, 7), tags(7, 3)]
    replies[broken] = "nonsense"
    (verdict,) = judged(Swapped(Pair()), replies, ["3", "7"])
    assert verdict.scores is None and verdict.failure is not None and verdict.failure.kind == "malformed"


def sampled(noise: float) -> Callable[[Prompt], str]:
    """A judge whose samples scatter around the truth; a sample number fixes the reply."""

    def reply(prompt: Prompt) -> str:
        rng = random.Random(f"{prompt.sample} {candidates(prompt)}")
        return tags(*(min(10, max(1, grade(text) + round(rng.gauss(0, noise)))) for text in candidates(prompt)))

    return reply


def all_votes(format: Format, k: int, reply: Callable[[Prompt], str], group: Sequence[str]) -> Verdict:
    """The outcome of all k votes, drawn without stopping early."""
    votes = Votes(format, k)
    drawn = []
    for number in range(k):
        (verdict,) = Judge(_Sample(format, number), ScriptedEngine(reply))([Example("q", list(group))])
        drawn.append(verdict)
    return votes._counted(drawn)


class _Sample:
    def __init__(self, format: Format, number: int) -> None:
        self.format, self.number = format, number

    def render(self, example: Example) -> list[Prompt]:
        return [Prompt(p.messages, self.number) for p in self.format.render(example)]

    def read(self, example: Example, generations: Sequence[Generation]) -> Verdict:
        return self.format.read(example, generations)


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 7])
def test_stopping_early_changes_no_outcome(k: int, noise: float) -> None:
    reply = sampled(noise)
    singles = [[f"{n % 9 + 1} s{n}"] for n in range(25)]
    pairs = [[f"{n % 9 + 1} a{n}", f"{n % 4 + 4} b{n}"] for n in range(25)]
    for format, groups in ((Score(), singles), (Pair(), pairs)):
        for group, verdict in zip(groups, judged(Votes(format, k), reply, *groups), strict=True):
            full = all_votes(format, k, reply, group)
            assert (verdict.scores, verdict.scale) == (full.scores, full.scale)
            assert verdict.notes["votes"] + verdict.notes["votes_saved"] == k
            assert verdict.notes["votes"] == len(verdict.generations)


def test_agreeing_votes_stop_at_the_majority() -> None:
    (verdict,) = judged(Votes(Score(), 7), scores, ["4"])
    assert verdict.notes == {"votes": 4, "votes_saved": 3} and verdict.scores == (4.0,)


def test_each_vote_is_a_sample_of_its_own() -> None:
    engine = ScriptedEngine(lambda prompt: tags(prompt.sample + 1))
    (verdict,) = Judge(Votes(Score(), 3, by="mean"), engine)([Example("q", ["a"])])
    assert verdict.scores == (2.0,)


def test_votes_that_failed_do_not_count_and_a_draw_is_shared() -> None:
    lost = judged(Votes(Score(), 5), ["x", tags(3), "x", tags(5), "x"], ["a"])[0]
    assert lost.scores == (4.0,) and lost.notes["votes"] == 5
    dead = judged(Votes(Score(), 3), ["x", "x", ""], ["a"])[0]
    assert dead.scores is None and dead.failure is not None and len(dead.generations) == 3


@pytest.mark.parametrize(
    ("ballots", "k", "drawn", "need"),
    [
        pytest.param({}, 7, 0, 4, id="start"),
        pytest.param({(1.0,): 4}, 7, 4, 0, id="settled"),
        pytest.param({(1.0,): 3, (2.0,): 1}, 7, 4, 1, id="one_more_could_do"),
        pytest.param({(1.0,): 2, (2.0,): 2}, 7, 4, 2, id="even"),
        pytest.param({(1.0,): 3, (2.0,): 3}, 7, 6, 1, id="last_decides"),
        pytest.param({}, 7, 4, 2, id="only_failures_so_far"),
        pytest.param({(1.0,): 1}, 1, 1, 0, id="k_1"),
        pytest.param({(1.0,): 1}, 2, 1, 1, id="a_draw_is_possible"),
        pytest.param({}, 3, 3, 0, id="all_drawn"),
    ],
)
def test_votes_needed(ballots: dict[tuple[float, ...], int], k: int, drawn: int, need: int) -> None:
    assert votes_needed(ballots, k, drawn) == need


def test_a_cut_thought_is_closed_and_answered() -> None:
    asked: list[tuple[Prompt, Sampling]] = []

    class Cut(ScriptedEngine):
        def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
            asked.extend((prompt, sampling) for prompt in prompts)
            return super().generate(prompts, sampling)

    def reply(prompt: Prompt) -> Generation:
        if prompt.messages[-1].role == "assistant":
            return Generation("<answer>6</answer>", completion_tokens=5)
        if "long" in candidates(prompt)[0]:
            return Generation("<think>on and on </answer><|im_end|>", "length", completion_tokens=90)
        return Generation(tags(2), completion_tokens=7)

    judge = Judge(Forced(Score(), tokens=12), Cut(reply), Sampling(max_tokens=90))
    long, short = judge([Example("q", ["1 long"]), Example("q", ["1"])])
    assert (long.scores, long.notes["forced"]) == ((6.0,), 1) and (short.scores, short.notes["forced"]) == ((2.0,), 0)
    assert long.generations[0].completion_tokens == 95 and long.generations[0].text.endswith(
        "</think><answer>6</answer>"
    )
    prompt, sampling = asked[-1]
    assert (sampling.max_tokens, asked[0][1].max_tokens, prompt.changes) == (12, 90, ())
    quoted = [part.text for part in prompt.messages[-1].parts if hasattr(part, "text")]
    assert quoted == ["on and on </answer><|im_end|>"]  # outside text for the engine: it neutralises it


def test_a_continuation_that_fails_is_that_failure() -> None:
    replies = [Generation("<think>hm", "length"), Generation.failed("timeout", "late")]
    (verdict,) = judged(Forced(Score()), replies, ["a"])
    assert verdict.failure is not None and verdict.failure.kind == "timeout"


def test_without_forcing_a_cut_thought_is_a_failure() -> None:
    (verdict,) = judged(Score(), [Generation("<think>hm", "length")], ["a"])
    assert verdict.failure is not None and verdict.failure.kind == "truncated"


GROUP = ["5 a", "9 b", "1 c", "7 d", "3 e", "6 f", "2 g", "8 h"]


@pytest.mark.parametrize("schedule", ["all", "ring", "anchor", "swiss"])
@pytest.mark.parametrize("score", ["bradley-terry", "win-rate"])
def test_a_tournament_finds_the_best_and_the_worst(schedule: str, score: str) -> None:
    (verdict,) = judged(Tournament(Pair(), schedule, score=score), scores, GROUP)  # type: ignore[arg-type]
    assert verdict.scores is not None and all(0 <= one <= 1 for one in verdict.scores)
    if schedule in ("all", "swiss"):
        assert verdict.scores.index(max(verdict.scores)) == 1
        assert verdict.scores.index(min(verdict.scores)) == 2
    wanted = {"all": 28, "ring": 8, "anchor": 7}.get(schedule, verdict.notes["comparisons"])
    assert verdict.notes["comparisons"] == wanted == len(verdict.generations)


def test_all_comparisons_of_a_batch_are_one_call_per_round() -> None:
    sizes: list[int] = []

    class Counting(ScriptedEngine):
        def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
            sizes.append(len(prompts))
            return super().generate(prompts, sampling)

    Judge(Tournament(Pair(), "ring"), Counting(scores))([Example("q", GROUP[:4]), Example("q", GROUP[4:])])
    assert sizes == [8]


def test_identical_candidates_are_one_member() -> None:
    (verdict,) = judged(Tournament(Pair()), scores, ["3", "8", "3", "8"])
    assert len(verdict.generations) == 1 and verdict.scores is not None
    assert verdict.scores[0] == verdict.scores[2] < verdict.scores[1] == verdict.scores[3]
    (same,) = judged(Tournament(Pair()), [], ["3", "3", "3"])
    assert same.scores == (0.5, 0.5, 0.5)


def test_a_failed_comparison_is_left_out_unless_it_was_the_only_one() -> None:
    pair_fails = lambda prompt: "x" if {"5 a", "9 b"} == set(candidates(prompt)) else scores(prompt)  # noqa: E731
    (verdict,) = judged(Tournament(Pair(), "all"), pair_fails, GROUP[:4])
    assert verdict.scores is not None and verdict.notes["comparisons"] == 5
    (dead,) = judged(Tournament(Pair(), "all"), lambda prompt: "x", GROUP[:2])
    assert dead.failure is not None and dead.failure.kind == "malformed"


@pytest.mark.parametrize("size", [2, 3, 4, 8])
@pytest.mark.parametrize("members", range(1, 9))
def test_chunks_give_the_same_scores_as_one_list(members: int, size: int) -> None:
    group = GROUP[:members]
    (verdict,) = judged(Chunked(Listwise(), size), scores, group)
    assert verdict.scores == tuple(float(grade(text)) for text in group)


def test_a_harsh_chunk_is_lifted_by_the_anchor() -> None:
    """A judge that scores one call two points lower: the anchor shows it."""
    calls: list[int] = []

    def harsh(prompt: Prompt) -> str:
        calls.append(1)
        return tags(*(grade(text) - 2 * (len(calls) == 2) for text in candidates(prompt)))

    (verdict,) = judged(Chunked(Listwise(), 4), harsh, ["5 a", "6 b", "4 c", "7 d", "5 e", "6 f", "4 g"])
    assert verdict.scores is not None
    assert [round(one - verdict.scores[0], 6) for one in verdict.scores] == [0, 1, -1, 2, 0, 1, -1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Votes(Score(), 0), "at least 1", id="k_0"),
        pytest.param(lambda: Votes(Score(), True), "at least 1", id="k_bool"),
        pytest.param(lambda: Votes(Score(), 3, by="luck"), "'majority' or 'mean'", id="by"),
        pytest.param(lambda: Swapped(Pair(), margin=-1), "margin", id="margin"),
        pytest.param(lambda: Forced(Score(), tokens=0), "tokens", id="tokens"),
        pytest.param(lambda: Tournament(Pair(), "cup"), "must be one of", id="schedule"),  # type: ignore[arg-type]
        pytest.param(lambda: Tournament(Pair(), score="elo"), "bradley-terry", id="score"),
        pytest.param(lambda: Tournament(Pair(), budget=0), "at least 1", id="budget_0"),
        pytest.param(lambda: Chunked(Listwise(), 1), "at least two", id="chunk"),
    ],
)
def test_wrong_settings(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_an_impossible_budget_names_the_least() -> None:
    with pytest.raises(ConfigError, match=r"example 0: a budget of 2 .* needs at least 4"):
        judged(Tournament(Pair(), budget=2), [], GROUP)
