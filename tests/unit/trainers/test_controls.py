"""Controls: what each finds, what they cost, and that none reaches a reward."""

from __future__ import annotations

import logging
import pickle
import random
from collections.abc import Callable
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
    Listwise,
    Pairwise,
    Pointwise,
    PositionSwap,
    Record,
    Request,
    Sampling,
    ScriptedEngine,
    read_record,
)
from flexjudge_reward.trainers.alarms import Alarms
from flexjudge_reward.trainers.controls import Controls
from flexjudge_reward.trainers.gather import Deadline
from flexjudge_reward.trainers.session import RewardSession
from support.judging import candidates, grade, tags

Reply = Callable[[Request, int], str]


def good(request: Request, asked: int) -> str:
    return tags(*(grade(text) if text[:1].isdigit() else 1 for text in candidates(request)))


def first_wins(request: Request, asked: int) -> str:
    return tags(*range(9, 9 - len(candidates(request)), -1))


def replaced(request: Request, asked: int) -> str:
    """Another model from a point on: what was good is bad."""
    texts = candidates(request)
    late = asked > 250 * len(texts)
    return tags(*((10 - grade(text) if late else grade(text)) if text[:1].isdigit() else 1 for text in texts))


def noisy(request: Request, asked: int) -> str:
    """As a judge at a temperature: no reply is twice the same, and no drift."""
    noise = random.Random(f"{asked} {request.sampling.seed}")
    texts = [(grade(text) if text[:1].isdigit() else 1) + noise.gauss(0, 2.5) for text in candidates(request)]
    return tags(*(min(10, max(1, round(one))) for one in texts))


def run(reply: Reply, format: Format, steps: int = 80, record: Path | None = None, **settings: Any) -> FlexJudgeReward:
    """Steps of two groups of four answers, "GRADE STEP"; the alarms are in its summary."""
    rng, asked = random.Random(1), [0]

    def own(request: Request) -> Generation:
        asked[0] += 1
        return Generation(reply(request, asked[0]), completion_tokens=20)

    judge = Judge(format, ScriptedEngine(own), Sampling(), None if record is None else Record(record))
    reward = FlexJudgeReward(judge, **{"probes": 0.4, **settings})
    for step in range(steps):
        answers = [f"{one} s{step}" for _ in range(2) for one in rng.sample(range(1, 10), 4)]
        assert None not in reward([f"q{step}"] * 4 + [f"p{step}"] * 4, answers)
    return reward


FOUND: list[Any] = [
    pytest.param(good, Pairwise(), set(), id="a_good_judge_of_pairs"),
    pytest.param(good, Listwise(), set(), id="a_good_judge_of_lists"),
    pytest.param(good, Pointwise(), set(), id="a_good_judge_of_answers"),
    pytest.param(noisy, Pointwise(), set(), id="a_noisy_judge_of_answers"),
    pytest.param(first_wins, Pairwise(), {"probe_swapped"}, id="pairs_decided_by_their_order"),
    pytest.param(first_wins, Listwise(), {"probe_swapped"}, id="lists_decided_by_their_order"),
    pytest.param(first_wins, PositionSwap(Pairwise()), {"swap_flips"}, id="counted_where_it_swaps_anyway"),
    pytest.param(replaced, Pointwise(), {"probe_frozen"}, id="another_model_of_answers"),
    pytest.param(replaced, Pairwise(), {"probe_frozen"}, id="another_model_of_pairs"),
]


@pytest.mark.parametrize(("reply", "format", "expected"), FOUND)
def test_what_is_found(reply: Reply, format: Format, expected: set[str]) -> None:
    steps = 160 if isinstance(format, Listwise) else 80  # a list is one reply, so it earns less
    reward = run(reply, format, steps)
    known = {"probe_swapped", "probe_frozen", "probe_second_judge", "swap_flips"}
    assert set(reward.summary.alarms) & known == expected
    assert reward.summary.judged == steps * 8
    engine = reward.session.judge.engine
    controls, probes = reward.session.monitor.controls, reward.session.monitor.probes
    assert (
        0 <= controls.tokens <= controls.share * controls.judged_tokens
        and controls.share + probes.share == pytest.approx(0.4)
    )
    assert len(engine.requests) * 20 >= controls.judged_tokens + controls.tokens + probes.tokens  # type: ignore[attr-defined]


def test_they_are_in_the_record_beside_the_rows(tmp_path: Path) -> None:
    reward = run(first_wins, Pairwise(), steps=30, record=tmp_path / "r.jsonl")
    lines = list(read_record(tmp_path / "r.jsonl"))
    assert {"swapped", "frozen"} <= {line["probe"] for line in lines if "probe" in line}
    assert {line["alarm"] for line in lines if "alarm" in line} == set(reward.summary.alarms)
    assert sum("rows" in line for line in lines) == 60


# ---------------------------------------------------------------- the second judge


@pytest.fixture
def second_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A record that both judges write, as FLEXJUDGE_RECORD says for all."""
    monkeypatch.setenv("FLEXJUDGE_RECORD", str(tmp_path / "r.jsonl"))
    return tmp_path / "r.jsonl"


def controlled(monkeypatch: pytest.MonkeyPatch, reply: Any, first: Reply = good, **settings: Any) -> FlexJudgeReward:
    """A run whose second judge is scripted, too."""
    monkeypatch.setenv("FLEXJUDGE_STRONG__BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("FLEXJUDGE_STRONG__CACHE", "off")
    monkeypatch.setattr("flexjudge_reward.engines.server.ServerEngine", lambda *_, **__: ScriptedEngine(reply))
    return run(first, Pointwise(), **{"second_judge": "strong", **settings})


def sound(request: Request) -> str:
    return good(request, 0)


@pytest.mark.parametrize(
    ("reply", "alarm"),
    [pytest.param(good, False, id="they_agree"), pytest.param(replaced, True, id="the_first_one_drifts")],
)
def test_the_second_judge(reply: Reply, alarm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = controlled(monkeypatch, sound, reply, steps=120)
    assert ("probe_second_judge" in reward.summary.alarms) is alarm


@pytest.mark.parametrize("hangs", [False, True], ids=["down", "hangs"])
def test_a_second_judge_that_does_not_answer_ends_nothing(
    hangs: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Request] = []

    def down(request: Request) -> Generation:
        asked.append(request)
        if hangs:
            return Generation.failed("timeout", "it hangs")
        raise EngineError("it is gone")

    reward = controlled(monkeypatch, down, steps=60)
    assert reward.summary.judged == 480 and 0 < len(asked) <= 2
    said = [record for record in caplog.records if "second judge" in record.message]
    assert len(said) == 1 and said[0].levelno == logging.WARNING


def test_a_second_judge_is_recorded_as_a_control(second_record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    controlled(monkeypatch, sound, steps=40, record=second_record)
    # An alarm: the judge reads the grade at the beginning and nothing after it (`half`).
    lines = [line for line in read_record(second_record) if "alarm" not in line]
    assert "second_judge" in {line.get("probe") for line in lines}
    assert all("rows" in line or "probe" in line for line in lines) and sum("rows" in line for line in lines) == 320


def test_a_costly_second_judge_waits_until_the_share_pays_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def long(request: Request) -> Generation:
        return Generation(sound(request), completion_tokens=400)

    controls = controlled(monkeypatch, long, steps=120).session.monitor.controls
    assert controls._made["second_judge"] > 1 and controls.tokens <= controls.share * controls.judged_tokens


class Sudden(Deadline):
    """Passes once it is asked for the controls of a second judge."""

    def run(self, work: Callable[[], Any]) -> Any:
        found = work()
        controls = found[1] if isinstance(found, tuple) else ()
        return None if "second_judge" in [getattr(one, "kind", "") for one in controls] else found


def test_controls_that_pass_the_deadline_harm_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexjudge_reward.trainers.session.Deadline", Sudden)
    reward = controlled(monkeypatch, sound, replaced, steps=120)
    assert reward.summary.judged == 960 and not reward.summary.failed
    assert "probe_second_judge" not in reward.summary.alarms


@pytest.mark.parametrize("asks_second", [True, False], ids=["the_second_judges", "others"])
def test_a_second_judge_that_makes_a_deadline_pass_is_left(
    asks_second: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    controls = controlled(monkeypatch, sound, steps=1).session.monitor.controls
    controls._asks_second = asks_second
    controls.late()
    assert (controls.second is None) is asks_second is ("within the deadline" in caplog.text)


def test_controls_that_cannot_be_judged_harm_no_row() -> None:
    def gone_for_controls(request: Request, asked: int) -> str:
        if request.sampling.seed > 2_000_000:
            raise EngineError("it is gone for a moment")
        return good(request, asked)

    reward = run(gone_for_controls, Pointwise())
    assert reward.summary.judged == 640 and not reward.summary.failed and not reward.session.monitor.controls.tokens


def test_a_second_judge_without_settings_is_refused_before_anything_is_judged() -> None:
    engine = ScriptedEngine(sound)
    reward = FlexJudgeReward(Judge(Pointwise(), engine), second_judge="strong")
    with pytest.raises(ConfigError, match=r"second_judge='strong' names no judge: .*FLEXJUDGE_STRONG__MODEL"):
        reward(["q"] * 2, ["1 a", "2 b"])
    assert not engine.requests


def test_without_probes_there_are_no_controls() -> None:
    reward = run(first_wins, Pairwise(), steps=20, probes=0)
    assert len(reward.session.judge.engine.requests) == 20 * 2 * 6 and not reward.summary.alarms  # type: ignore[attr-defined]


def test_a_session_with_controls_pickles() -> None:
    session = RewardSession(Judge(Pointwise(), ScriptedEngine(["x"])))
    assert isinstance(session.monitor.controls, Controls)
    assert (
        pickle.loads(pickle.dumps(session)).monitor.controls.share
        == session.monitor.controls.share
        == pytest.approx(0.0025)
    )


SWAPS: list[Any] = [
    pytest.param([(100, 10)] * 30, [], id="few_flips"),
    pytest.param([(100, 60)] * 2, ["swap_flips"], id="more_than_half_at_once"),
    pytest.param([(100, 60)], [], id="too_few_pairs_to_tell"),
    pytest.param([(100, 10)] * 5 + [(100, 35)] * 5, ["swap_flips"], id="many_more_than_at_first"),
    pytest.param([(100, 10)] * 5 + [(100, 28)] * 5, [], id="some_more"),
    pytest.param([(100, 10)] * 5 + [(100, 60)] * 5 + [(100, 10)] * 5 + [(100, 60)] * 5, ["swap_flips"] * 2, id="twice"),
    pytest.param([(1000, 10), (1000, 900)], ["swap_flips"], id="a_call_is_more_than_a_window"),
]


@pytest.mark.parametrize(("calls", "expected"), SWAPS)
def test_flips_are_counted_in_windows(calls: list[tuple[int, int]], expected: list[str]) -> None:
    alarms = Alarms(0.05)
    counted = [{"swaps": float(count), "swaps_agreed": float(count - flipped)} for count, flipped in calls]
    assert [name for one in counted for name in alarms.look([], [], counters=one)] == expected
