"""Formats around formats: orders, votes, forced answers, tournaments and chunks, on scripted judges."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from support.judging import candidates, grade, judged, scores, tags

from flexjudge_reward import (
    Choice,
    ConfigError,
    Example,
    Generation,
    Judge,
    Pair,
    Prompt,
    Relation,
    Sampling,
    Score,
)
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.formats.adaptive import Forced, Swapped, Votes, votes_needed
from flexjudge_reward.types import Format, Verdict

Grade = Callable[[str], int]


def first_is_better(prompt: Prompt) -> str:
    """The judge with nothing but position bias."""
    return tags(9, *(3 for _ in candidates(prompt)[1:]))


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


@pytest.mark.parametrize(
    ("option", "scores"),
    [
        pytest.param("[[A>B]]", (1.0, 0.0), id="one"),
        pytest.param("[[A=B=Good]]", (1.0, 1.0), id="both"),
        pytest.param("[[A=B=Bad]]", (0.0, 0.0), id="neither"),
    ],
)
def test_votes_on_a_relation_say_what_each_of_them_said(option: str, scores: tuple[float, float]) -> None:
    (verdict,) = judged(Votes(Relation(), 3), lambda prompt: tags(option), ["a", "b"])
    assert verdict.scores == scores


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


def test_a_server_that_takes_the_answer_for_reasoning_is_understood() -> None:
    """Such a server saw no closing tag in what the judge went on to say, because it stands in the prompt."""
    replies = [Generation("<think>hm", "length"), Generation("<think><answer>7</answer></think>")]
    (verdict,) = judged(Forced(Score()), replies, ["a"])
    assert verdict.scores == (7.0,)


def test_a_continuation_that_fails_is_that_failure() -> None:
    replies = [Generation("<think>hm", "length"), Generation.failed("timeout", "late")]
    (verdict,) = judged(Forced(Score()), replies, ["a"])
    assert verdict.failure is not None and verdict.failure.kind == "timeout"


def test_without_forcing_a_cut_thought_is_a_failure() -> None:
    (verdict,) = judged(Score(), [Generation("<think>hm", "length")], ["a"])
    assert verdict.failure is not None and verdict.failure.kind == "truncated"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Votes(Score(), 0), "at least 1", id="k_0"),
        pytest.param(lambda: Votes(Score(), True), "at least 1", id="k_bool"),
        pytest.param(lambda: Votes(Score(), 3, by="luck"), "'majority' or 'mean'", id="by"),
        pytest.param(lambda: Swapped(Pair(), margin=-1), "margin", id="margin"),
        pytest.param(lambda: Swapped(Score()), "two or more candidates", id="swapped_score"),
        pytest.param(lambda: Forced(Score(), tokens=0), "tokens", id="tokens"),
    ],
)
def test_wrong_settings(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
