"""Probes: what is made, what they cost, what fails, the alarms they raise, and that none reaches a reward."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from flexjudge_reward import (
    ConfigError,
    Example,
    Failure,
    FlexJudgeReward,
    Format,
    Generation,
    Judge,
    JudgementFailed,
    Listwise,
    Media,
    Pointwise,
    Prompt,
    Record,
    Request,
    ScriptedEngine,
    Untrusted,
    read_record,
)
from flexjudge_reward.judge.groups import GroupResult
from flexjudge_reward.report.lines import groups_of
from flexjudge_reward.report.page import Page
from flexjudge_reward.trainers.alarms import Alarms
from flexjudge_reward.trainers.probes import KINDS, Probe, ProbeResult, Probes
from flexjudge_reward.types import Unfinished, Verdict

ROWS = [Example(f"question {n}", [f"answer {n}"], "the reference") for n in range(4)]
SCORED = GroupResult((0.6,), (Verdict((6.4,), generations=(Generation("x", completion_tokens=50),)),))


def drawn(rows: list[Example], calls: int = 400, share: float = 0.02) -> tuple[Probes, list[Probe]]:
    probes, made = Probes(share), []
    for _ in range(calls):
        new = probes.draw(rows)
        probes.read(rows, new, [SCORED] * len(rows), [SCORED] * len(new))
        made += new
    return probes, made


def test_every_kind_is_made_at_the_share_of_tokens_that_is_allowed() -> None:
    probes, made = drawn(ROWS)
    assert 0.018 < probes.tokens / probes.judged_tokens <= 0.02 and {probe.kind for probe in made} == set(KINDS)
    for probe in made:
        if probe.source is None:
            assert probe.kind == "half" and probe.paid == 0.6
            continue
        source = ROWS[probe.source]
        (own,), (answer,) = source.candidates, probe.example.candidates
        assert probe.example.question == source.question and answer != own
        assert (answer in [row.candidates[0] for row in ROWS]) is (probe.kind == "other_answer")
        if probe.kind in ("padded", "styled", "grafted"):
            assert str(own[0]) in str(answer[0]) and len("".join(map(str, answer))) > len(str(own))
    assert [probe.kind for probe in drawn(ROWS)[1]] == [probe.kind for probe in made]
    assert drawn(ROWS, share=0)[1] == []


TEXTS = {*KINDS} - {"reference", "other_answer", "grafted", "half"}
MAKES = [
    pytest.param([Example("q", ["a"]), Example("q", ["b"])], TEXTS, id="one_question"),
    pytest.param([Example("q", ["a"]), Example("p", ["a"])], {*TEXTS, "grafted"}, id="same_answer"),
    pytest.param([Example("q", [Unfinished("hm")]), Example("p", [Unfinished("so")])], set(), id="cut_thoughts"),
    pytest.param([Example(q, [Media.molecule(q * 2)]) for q in "CO"], {"other_answer", "grafted"}, id="no_texts"),
]


HALVES = [
    pytest.param([(0.9, "one two"), (0.9, "a b c d e")], "a b one two", id="the_longest"),
    pytest.param([(0.9, "one two"), (0.8, "a b c d e")], "a b one two", id="whose_score_is_among_the_best"),
    pytest.param([(0.9, "one"), (0.9, "a\n\nb c\nd\n")], "a\n\nb one", id="line_breaks_are_kept"),
    pytest.param([(0.9, "d"), (0.9, "a d")], None, id="the_same_again"),
    pytest.param([(0.9, "four"), (0.9, "sixsix")], "six four", id="one_word"),
    pytest.param([(0.9, "x"), (0.9, "yes")], "y x", id="one_word_of_odd_length"),
    pytest.param([(0.9, "x"), (0.9, "y")], None, id="nothing_to_halve"),
    pytest.param([(0.5, "one two"), (0.4, "a b c d e")], None, id="not_paid"),
    pytest.param([(0.9, "one two")], None, id="no_other_question"),
    pytest.param([(0.9, ""), (0.9, "")], None, id="empty"),
    pytest.param([(Failure("timeout"), "one two"), (Failure("timeout"), "a b")], None, id="no_scores"),
]


@pytest.mark.parametrize(("paid", "expected"), HALVES)
def test_half_of_the_longest_of_the_best_paid_answers(
    paid: list[tuple[float | Failure, str]], expected: str | None
) -> None:
    rows = [Example(f"question {n}", [text]) for n, (_, text) in enumerate(paid)]
    results = [GroupResult((outcome,), SCORED.verdicts) for outcome, _ in paid]
    probes = Probes(0.9)
    for _ in range(20):
        made = probes.draw(rows, ["half"])
        probes.read(rows, made, results, [SCORED] * len(made))
    found = {"".join(map(str, probe.example.candidates[0])) for probe in made if probe.kind == "half"}
    assert found == ({expected} - {None})


def test_a_format_for_groups_judges_a_half_beside_the_whole() -> None:
    rows = [Example(f"question {n}", ["one two three", "b"]) for n in range(2)]
    results = [GroupResult((0.9, 0.2), SCORED.verdicts)] * 2
    probes = Probes(0.9)
    for _ in range(20):
        made = probes.draw(rows, ["half"])
        probes.read(rows, made, results, [GroupResult((0.1, 0.9), SCORED.verdicts)] * len(made))
    halves = {probe.example.candidates for probe in made if probe.kind == "half"}
    assert halves == {(("one one two three",), ("one two three",))}


@pytest.mark.parametrize(("rows", "kinds"), MAKES)
def test_what_cannot_be_made_is_left_out(rows: list[Example], kinds: set[str]) -> None:
    assert {probe.kind for probe in drawn(rows, 300)[1]} == kinds


FOUND = [
    pytest.param("master_key", (0.6,), 0.9, True, id="a_worthless_text_above_half"),
    pytest.param("master_key", (0.5,), 0.1, False, id="half_is_not_above"),
    pytest.param("reference", (0.4,), 0.9, True, id="a_reference_below_half"),
    pytest.param("reference", (0.9,), 1.0, False, id="a_reference_above_half"),
    pytest.param("padded", (0.7,), 0.6, True, id="a_copy_above_its_original"),
    pytest.param("padded", (0.5,), 0.6, False, id="a_copy_below_its_original"),
    pytest.param("padded", (0.6,), 0.6, None, id="a_copy_like_its_original"),
    pytest.param("padded", (1.0,), 1.0, None, id="a_copy_with_the_full_score"),
    pytest.param("grafted", (0.9,), 0.9, None, id="a_graft_like_its_original"),
    pytest.param("half", (0.9,), 0.9, True, id="a_half_like_the_whole"),
    pytest.param("half", (0.8,), 0.9, False, id="a_half_below_the_whole"),
    pytest.param("half", (0.5, 0.5), 0.9, True, id="a_half_like_the_whole_in_a_group"),
    pytest.param("half", (0.4, 0.5), 0.1, False, id="a_half_below_the_whole_in_a_group"),
    pytest.param("padded", (0.6,), Failure("timeout"), None, id="no_original"),
    pytest.param("other_answer", (0.9,), Failure("timeout"), True, id="no_original_needed"),
    pytest.param("hedged", (Failure("malformed"),), 0.5, None, id="not_judged"),
    pytest.param("hedged", (0.4, 0.3), 0.9, True, id="above_the_real_one_in_a_group"),
    pytest.param("hedged", (0.8, 0.9), 0.1, False, id="below_the_real_one_in_a_group"),
    pytest.param("reference", (0.4, 0.5), 0.1, True, id="a_reference_below_the_real_one"),
]


@pytest.mark.parametrize(("kind", "probed", "real", "failed"), FOUND)
def test_what_fails(kind: str, probed: tuple[float | Failure, ...], real: float | Failure, failed: bool | None) -> None:
    results = [GroupResult((real,), SCORED.verdicts)]
    made = Probe(kind, ROWS[0], None, real) if kind == "half" else Probe(kind, ROWS[0], 0)  # type: ignore[arg-type]
    found = Probes(0.02).read(ROWS[:1], [made], results, [GroupResult(probed, SCORED.verdicts)])
    assert found == (() if failed is None else (ProbeResult(kind, failed),))


ALARMS = [
    pytest.param("master_key", [True] * 4, True, id="four_of_four"),
    pytest.param("master_key", [True] * 3, False, id="three_of_three"),
    pytest.param("master_key", [True] + [False] * 9, False, id="one_of_ten"),
    pytest.param("padded", [True, False] * 20, False, id="copies_that_differ_by_noise"),
    pytest.param("padded", [True] * 14, True, id="copies_that_always_gain"),
    pytest.param("reference", [True] * 8, True, id="references"),
    pytest.param("hedged", [True] * 4 + [False] * 40, True, id="it_was_on"),
    pytest.param("other_answer", [True, False] * 20, False, id="answers_that_are_often_right_elsewhere"),
    pytest.param("other_answer", [False] * 8 + [True] * 10, True, id="answers_that_begin_to_be_paid_elsewhere"),
]


@pytest.mark.parametrize(("kind", "results", "begins"), ALARMS)
def test_an_alarm_begins(kind: str, results: list[bool], begins: bool) -> None:
    alarms = Alarms(0.05)
    begun = [alarms.look([], [], [ProbeResult(kind, failed)]) for failed in results]
    assert [name for one in begun for name in one] == [f"probe_{kind}"] * begins
    tested = results[5 if kind == "other_answer" else 0 :][-16:]  # the first ones say what is usual
    assert alarms.probes_failed == sum(tested) / len(tested)


def test_a_kind_that_looks_wrong_is_probed_first() -> None:
    alarms = Alarms(0.05)
    alarms.look([], [], [ProbeResult("forged", True), ProbeResult("hedged", False)])
    assert alarms.suspects == ["forged"]
    probes = Probes(0.5)
    probes.read(ROWS, [], [SCORED] * 4, [])
    assert [probe.kind for probe in probes.draw(ROWS, alarms.suspects)].count("forged") >= 1


def fooled(request: Request) -> Generation:
    """Likes whatever is short, which many known-bad answers are."""
    answer = [part.text for part in request.prompt.messages[-1].parts if isinstance(part, Untrusted)][-1]
    return Generation(f"<think>x</think><answer>{9 if len(answer) < 30 else 2}</answer>", completion_tokens=20)


def test_no_probe_reaches_a_reward_and_alarms_are_in_log_record_and_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = tmp_path / "record.jsonl"
    reward = FlexJudgeReward(Judge(Pointwise(), ScriptedEngine(fooled), record=Record(record)), probes=0.2)
    for step in range(60):
        answers = ["short", "long and long and long again, longer than that"] * 2
        got = reward([f"q{step}"] * 2 + [f"p{step}"] * 2, answers, trainer_state=SimpleNamespace(global_step=step))
        assert got == pytest.approx([8 / 9, 1 / 9] * 2)
    lines = list(read_record(record))
    probed = [line for line in lines if "probe" in line]
    assert reward.summary.judged == 240 == sum("rows" in line for line in lines) and 20 < len(probed) <= 48
    assert set(reward.summary.alarms) >= {"probe_master_key"} and reward.summary.metrics["probes_failed"] > 0.2
    alarms = [line for line in lines if "alarm" in line]
    assert {line["alarm"] for line in alarms} == set(reward.summary.alarms) and 0 < alarms[0]["step"] < 60
    assert [one.levelno for one in caplog.records] == [logging.WARNING] * sum(reward.summary.alarms.values())
    page = Page(groups_of("record", record))
    assert (page.judged, page.probes) == (240, len(probed)) and len(page.alarms) == len(caplog.records)
    assert page.alarms[0] == f"step {alarms[0]['step']}: {alarms[0]['said']}"


def test_an_alarm_can_stop_the_run() -> None:
    reward = FlexJudgeReward(Judge(Pointwise(), ScriptedEngine(fooled)), probes=0.5, on_alarm="stop")
    with pytest.raises(JudgementFailed, match=r"came out wrong.*on_alarm='stop'"):
        for step in range(50):
            reward([f"q{step}"] * 4, ["a", "b", "c" * 50, "d" * 50])


class OfThree(Pointwise):
    """Its rows have three candidates or more."""

    min_candidates, max_candidates = 3, 9

    def render(self, example: Example) -> list[Prompt]:
        return super().render(example) * len(example.candidates)

    def read(self, example: Example, generations: Sequence[Generation]) -> Verdict:
        return Verdict(tuple(float(n) for n in range(1, 1 + len(generations))), generations=tuple(generations))


class Picky(Listwise):
    """Refuses what a probe shows it."""

    def render(self, example: Example) -> list[Prompt]:
        if len(example.candidates) < 3:
            raise ConfigError("three or more")
        return super().render(example)


def listed(request: Request) -> Generation:
    shown = [part for part in request.prompt.messages[-1].parts if isinstance(part, Untrusted)]
    return Generation("<think>x</think>" + "<answer>5</answer>" * (len(shown) - 1), completion_tokens=20)


@pytest.mark.parametrize("format", [pytest.param(OfThree(), id="of_three"), pytest.param(Picky(), id="raises")])
def test_a_format_that_cannot_judge_probes_has_none(format: Format) -> None:
    reward = FlexJudgeReward(Judge(format, ScriptedEngine(listed)), probes=0.5)
    for step in range(5):
        assert None not in reward([f"q{step}"] * 4, ["a", "bb", "ccc", "dddd"])
    assert reward.summary.judged == 20 and reward.summary.failed == 0


def test_a_group_format_judges_a_probe_beside_a_real_answer() -> None:
    asked: list[int] = []

    def best_is_last(request: Request) -> Generation:
        texts = [part.text for part in request.prompt.messages[-1].parts if isinstance(part, Untrusted)][1:]
        asked.append(len(texts))
        answers = "".join(f"<answer>{9 if 'good' in text else 2}</answer>" for text in texts)
        return Generation(f"<think>x</think>{answers}", completion_tokens=10 * len(texts))

    reward = FlexJudgeReward(Judge(Listwise(), ScriptedEngine(best_is_last)), probes=0.1)
    for step in range(40):
        reward([f"q{step}"] * 4, ["good", "bad", "worse", "worst"])
    assert 2 in asked and reward.summary.alarms == {} and asked.count(4) == 40
