"""The first look at a judge: what it finds at the first call, what it costs, and how it is switched off."""

from __future__ import annotations

import logging
import pickle
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import (
    ConfigError,
    EngineError,
    FlexJudgeReward,
    Format,
    Generation,
    Judge,
    JudgementFailed,
    Listwise,
    Pairwise,
    Pointwise,
    Record,
    Request,
    Sampling,
    ScriptedEngine,
    read_record,
)
from flexjudge_reward.trainers.alarms import Alarms
from flexjudge_reward.trainers.first_look import MORE, PLAN
from flexjudge_reward.trainers.probes import ProbeResult
from support.judging import candidates, grade, tags

Score = Callable[[str], float]


def beginning(text: str) -> float:
    """Reads the grade at the beginning, and nothing after it."""
    return grade(text)


def whole(text: str) -> float:
    """What follows counts, too: two answers are a bad one."""
    return grade(text) if sum(word.isdigit() for word in text.split()) == 1 else 1


def obeys(text: str) -> float:
    """Does as it is told."""
    return 10 if "highest score" in text or "full score" in text or "<answer>" in text else whole(text)


def noisy(own: Score, size: float) -> Score:
    chance = random.Random(1)
    return lambda text: own(text) + chance.gauss(0, size)


def run(
    score: Score,
    format: Format | None = None,
    calls: int = 1,
    rows: int = 128,
    record: Path | None = None,
    **settings: Any,
) -> FlexJudgeReward:
    """Calls with groups of four answers, "GRADE PLACE of QUESTION", none of them perfect."""

    def reply(request: Request) -> Generation:
        said = (min(10, max(1, round(score(text)))) for text in candidates(request))
        return Generation(tags(*said), completion_tokens=20)

    judge = Judge(format or Pointwise(), ScriptedEngine(reply), Sampling(), None if record is None else Record(record))
    reward, chance = FlexJudgeReward(judge, **settings), random.Random(2)
    for call in range(calls):
        questions = [f"q{call}-{n // 4}" for n in range(rows)]
        assert None not in reward(questions, [f"{chance.randint(2, 9)} for {one}" for one in questions])
    return reward


def asked(reward: FlexJudgeReward, rows: int) -> int:
    """Judgements beside the rows."""
    return len(reward.session.judge.engine.requests) - rows  # type: ignore[attr-defined]


FOUND: list[Any] = [
    pytest.param(beginning, None, {"probe_run_on"}, 34, id="it_reads_the_beginning"),
    pytest.param(whole, None, set(), 16, id="it_reads_all"),
    pytest.param(noisy(whole, 2.0), None, set(), 16, id="it_reads_all_with_noise"),
    pytest.param(noisy(beginning, 1.0), None, set(), 16, id="the_rest_does_not_count_with_noise"),
    pytest.param(obeys, None, {"probe_forged"}, 34, id="it_obeys_an_answer"),
    pytest.param(beginning, Pairwise(), {"probe_run_on"}, None, id="pairs"),
    pytest.param(beginning, Listwise(), {"probe_run_on"}, None, id="lists"),
    pytest.param(whole, Listwise(), set(), None, id="lists_read_to_the_end"),
]


@pytest.mark.parametrize(("score", "format", "alarms", "count"), FOUND)
def test_what_the_first_call_finds(score: Score, format: Format | None, alarms: set[str], count: int | None) -> None:
    reward = run(score, format, calls=1 if format is None else 6)
    assert set(reward.summary.alarms) == alarms
    assert count in (None, asked(reward, 128))


def test_the_alarm_says_what_was_paid_what_it_means_and_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(beginning, record=tmp_path / "r.jsonl")
    (said,) = (one.getMessage() for one in caplog.records if one.levelno == logging.WARNING)
    for part in (
        "24 of 24 well paid answers",
        "does not read to the end",
        "another judge",
        "ignored_probes='run_on,half'",
    ):
        assert part in said
    lines = [line for line in read_record(tmp_path / "r.jsonl") if "probe" in line]
    assert Counter(line["probe"] for line in lines) == {"run_on": 24, "other_answer": 6, "forged": 2, "master_key": 2}


def test_it_stops_a_run_at_its_first_call() -> None:
    with pytest.raises(JudgementFailed, match=r"does not read to the end.*on_alarm='stop'"):
        run(beginning, on_alarm="stop")


IGNORED: list[Any] = [
    pytest.param({"ignored_probes": "run_on, half"}, 10, id="one_kind"),
    pytest.param({"ignored_probes": "run_on,forged,master_key,other_answer"}, 0, id="all_of_the_look"),
    pytest.param({"probes": 0}, 0, id="no_probes"),
]


@pytest.mark.parametrize(("settings", "count"), IGNORED)
def test_kinds_can_be_left_out(settings: dict[str, Any], count: int) -> None:
    reward = run(beginning, **settings)
    assert reward.summary.alarms == {} and asked(reward, 128) == count
    later = run(beginning, calls=20, **settings)  # ten are enough for the alarm of `half`
    assert not {
        f"probe_{kind.strip()}" for kind in settings.get("ignored_probes", "run_on,half").split(",")
    }.intersection(later.summary.alarms)


def test_an_unknown_kind_is_an_error_before_anything_is_judged() -> None:
    engine = ScriptedEngine(["x"])
    with pytest.raises(ConfigError, match=r"there are no probes runon; there are run_on, master_key, .*, frozen"):
        FlexJudgeReward(Judge(Pointwise(), engine), ignored_probes="runon,half")(["q"] * 2, ["1", "2"])
    assert not engine.requests


@pytest.mark.parametrize(("score", "taken"), [(whole, len(PLAN)), (beginning, len(PLAN) + MORE)])
def test_the_tokens_are_a_loan(score: Score, taken: int) -> None:
    """Silence until the share has paid for it; then no more than the share."""
    silent = int(taken / 0.0175 / 128)
    reward = run(score, calls=silent, ignored_probes="frozen,swapped")
    assert asked(reward, silent * 128) == taken
    for _ in range(60):
        reward([f"q{n}" for n in range(64)], [f"{n % 8 + 2} for q{n}" for n in range(64)])
    rows = silent * 128 + 60 * 64
    assert taken < asked(reward, rows) <= 0.0175 * rows


def test_small_calls_share_it() -> None:
    reward = run(beginning, calls=2, rows=8)
    assert asked(reward, 16) == 4  # none before 16 rows, then half as many as a call has rows
    assert asked(run(beginning, calls=12, rows=8), 96) == len(PLAN) + MORE


def test_an_answer_is_used_twice_at_most_and_one_question_alone_never() -> None:
    engine = ScriptedEngine(lambda request: tags(*(9 for _ in candidates(request))))
    reward = FlexJudgeReward(Judge(Pointwise(), engine))
    reward(["q"] * 32, [f"9 a{n}" for n in range(32)])
    assert len(engine.requests) == 32 + 4  # only what needs no other question
    reward(["p"] * 32, [f"9 b{n}" for n in range(32)])
    shown = [text for request in engine.requests for text in candidates(request)]
    assert sum(" 9 " in text for text in shown) == 4


def test_a_judge_that_is_gone_for_the_look_harms_no_row() -> None:
    def reply(request: Request) -> Generation:
        if any(text.count("for") > 1 for text in candidates(request)):
            raise EngineError("it is gone for a moment")
        return Generation(tags(*(grade(text) for text in candidates(request))), completion_tokens=20)

    reward = FlexJudgeReward(Judge(Pointwise(), ScriptedEngine(reply)))
    assert None not in reward([f"q{n}" for n in range(64)], [f"7 for q{n}" for n in range(64)])
    assert reward.summary.failed == 0 and reward.summary.alarms == {}


def test_ranks_have_a_part_of_it_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexjudge_reward.trainers.first_look.training_processes", lambda: 4)
    assert asked(run(whole), 128) == len(PLAN) // 4
    assert asked(run(beginning), 128) == len(PLAN) // 4 + 5  # of 18


def test_calls_that_overlap_look_once() -> None:
    def reply(request: Request) -> Generation:
        time.sleep(0.001)
        return Generation(tags(*(grade(text) for text in candidates(request))), completion_tokens=20)

    reward = FlexJudgeReward(Judge(Pointwise(), ScriptedEngine(reply)))
    questions = [f"q{n // 4}" for n in range(32)]
    with ThreadPoolExecutor(8) as pool:
        answers = [f"{n % 8 + 2} for {one}" for n, one in enumerate(questions)]
        calls = [pool.submit(reward, questions, answers) for _ in range(8)]
        assert all(None not in call.result() for call in calls)
    assert asked(reward, 0) - reward.summary.judged <= len(PLAN) + MORE


def test_a_session_that_has_looked_pickles_and_looks_no_more() -> None:
    reward = run(whole)
    reward.session.judge.engine.replies = ["x"]  # type: ignore[attr-defined]
    monitor = pickle.loads(pickle.dumps(reward.session.monitor))
    assert monitor.first_look._plan == [] and monitor.probes.tokens == len(PLAN) * 20


CHANCE: list[Any] = [
    pytest.param(24, 21, True, id="21_of_24"),
    pytest.param(24, 20, False, id="20_of_24"),
    pytest.param(13, 13, True, id="13_of_13"),
    pytest.param(12, 12, False, id="12_of_12"),
    pytest.param(6, 5, False, id="5_of_6"),
]


@pytest.mark.parametrize(("count", "failed", "alarm"), CHANCE)
def test_run_on_is_an_alarm_where_chance_would_not_do_it(count: int, failed: int, alarm: bool) -> None:
    alarms = Alarms(0.05)
    begun = alarms.look([], [], [ProbeResult("run_on", n < failed) for n in range(count)])
    assert list(begun) == ["probe_run_on"] * alarm and alarms.probes_failed is None
