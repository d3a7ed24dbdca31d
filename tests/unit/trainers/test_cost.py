"""What judging costs, per call and in all, and the ceilings that stop a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import (
    CachedEngine,
    ConfigError,
    CostLimitReached,
    EngineError,
    FlexJudgeReward,
    Generation,
    Judge,
    Pointwise,
    RewardConfig,
    ScriptedEngine,
)
from support.judging import tags

PRICES = {"prompt_price": 2.0, "completion_price": 10.0}


def reward(cache: Path | None = None, **settings: Any) -> FlexJudgeReward:
    """Each reply reads 1,000 tokens and writes 100: a cost of 0.003."""
    engine: Any = ScriptedEngine(lambda request: Generation(tags(7), prompt_tokens=1000, completion_tokens=100))
    return FlexJudgeReward(
        Judge(Pointwise(), engine if cache is None else CachedEngine(engine, cache)), name="r", **settings
    )


def logged(one: FlexJudgeReward, *completions: str) -> dict[str, float]:
    found: dict[str, float] = {}
    one(["q"] * len(completions), list(completions), log_metric=found.__setitem__)
    return {name.removeprefix("r/judge_"): value for name, value in found.items() if name.startswith("r/judge_")}


def test_tokens_and_cost_are_in_the_log() -> None:
    one = reward(**PRICES)
    first, second = logged(one, "a", "b"), logged(one, "c")
    assert (first["prompt_tokens"], first["completion_tokens"]) == (2000, 200)
    assert first["cost"] == first["cost_total"] == pytest.approx(0.006)
    assert second["cost"] == pytest.approx(0.003) and second["cost_total"] == pytest.approx(0.009)
    assert one.summary.cost == pytest.approx(0.009) and str(one.summary).endswith("tokens, cost 0.009")
    free = reward()
    assert "cost" not in logged(free, "a") and "cost" not in str(free.summary)


def test_a_cached_reply_costs_nothing(cache_file: Path) -> None:
    one = reward(cache_file, **PRICES)
    logged(one, "a", "b")
    found = logged(one, "a", "b", "c")
    assert (found["prompt_tokens"], found["cost"]) == (1000, pytest.approx(0.003))
    one.close()


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        pytest.param({"max_cost": 0.008, **PRICES}, r"judging has cost 0.009, more than max_cost=0.008", id="cost"),
        pytest.param(
            {"max_judge_tokens": 3000}, "judging took 3,300 tokens, more than max_judge_tokens=3000", id="tokens"
        ),
    ],
)
def test_past_a_ceiling_the_run_stops(limit: dict[str, float], said: str) -> None:
    one = reward(**limit)
    logged(one, "a", "b")
    with pytest.raises(CostLimitReached, match=said):
        logged(one, "c")
    asked = len(one.session.judge.engine.requests)  # type: ignore[attr-defined]
    with pytest.raises(CostLimitReached, match=said):  # a trainer that caught it comes again
        logged(one, "d")
    assert len(one.session.judge.engine.requests) == asked  # type: ignore[attr-defined]


def test_probes_cost_what_the_judge_takes_for_them() -> None:
    one = reward(probes=0.5)
    counted = [logged(one, "a", "b", "c", "d") for _ in range(4)]
    engine: Any = one.session.judge.engine
    assert sum(call["prompt_tokens"] for call in counted) == 1000 * len(engine.requests) > 16_000
    assert sum(call["tokens"] for call in counted) == 400  # of the rows


def test_a_ceiling_needs_a_price_and_a_server_that_counts() -> None:
    with pytest.raises(ConfigError, match="max_cost needs a price: set prompt_price"):
        RewardConfig(max_cost=1.0)
    one = FlexJudgeReward(Judge(Pointwise(), ScriptedEngine(lambda request: tags(7))), max_judge_tokens=10)
    with pytest.raises(EngineError, match="reports no tokens"):
        one(["q"], ["a"])


def test_prices_and_ceilings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MAX_COST": "0.001", "PROMPT_PRICE": "2", "COMPLETION_PRICE": "10"}.items():
        monkeypatch.setenv(f"FLEXJUDGE_{name}", value)
    with pytest.raises(CostLimitReached):
        reward()(["q"], ["a"])
