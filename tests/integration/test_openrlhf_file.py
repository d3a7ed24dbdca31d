"""The file that OpenRLHF loads gives torch's numbers, a reward for every row; `tests/trainers` has OpenRLHF itself."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from flexjudge_reward import CostLimitReached, JudgementFailed, ScriptedEngine
from support.adapters import Judged, judging, loaded
from support.late import needs

needs("torch")


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judged]:
    with judging(monkeypatch) as judged:
        yield judged


def test_the_file_of_openrlhf_judges_single_rows_of_many_threads_together(judged: Judged) -> None:
    engine = judged(REFERENCE_COLUMN="label")
    reward = loaded("openrlhf.py", "reward_func").reward_func
    queries = [f"prompt {n} {n % 10 + 1}<|im_end|>" for n in range(24)]
    calls: list[int] = []
    complete = engine.complete
    engine.complete = lambda requests: calls.append(len(requests)) or complete(requests)  # type: ignore[method-assign]
    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda n: reward([queries[n]], [f"prompt {n} "], [f"truth {n}"]), range(24)))
    assert [one["rewards"].item() for one in found] == pytest.approx([n % 10 / 9 for n in range(24)])
    assert all(one["scores"] == one["rewards"] and one["extra_logs"]["judge_failed"].item() == 0 for one in found)
    assert len(calls) < 12 and "truth" in str(engine.prompts[0])


@pytest.mark.parametrize("trouble", ["failed", "raises", "no-text"])
def test_a_failure_gives_openrlhf_a_number_and_no_error(trouble: str, judged: Judged) -> None:
    engine = judged()
    reward = loaded("openrlhf.py", "reward_func").reward_func
    if trouble == "raises":
        engine.complete = lambda requests: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    found = reward([7 if trouble == "no-text" else "q broken"], ["q "], [None])
    assert found["rewards"].tolist() == found["scores"].tolist() == [0.5]
    assert found["extra_logs"]["judge_failed"].tolist() == [1]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        pytest.param({"MAX_JUDGE_TOKENS": "200"}, CostLimitReached, id="ceiling"),
        pytest.param({"MAX_FAILURE_RATE": "0"}, JudgementFailed, id="failures"),
    ],
)
def test_the_file_of_openrlhf_ends_the_run_past_a_limit(
    settings: dict[str, str], error: type[Exception], judged: Judged
) -> None:
    engine = judged(PROBES="0", **settings)
    tokens = {"prompt_tokens": 100, "completion_tokens": 50}
    engine.complete = lambda requests: [  # type: ignore[method-assign]
        replace(one, **tokens) for one in ScriptedEngine.complete(engine, requests)
    ]
    reward = loaded("openrlhf.py", "reward_func").reward_func
    reward(["q 1"], ["q "], [None])
    for _ in range(2):
        with pytest.raises(error):
            reward(["q broken" if error is JudgementFailed else "q 2"], ["q "], [None])
    assert len(engine.requests) == 2


def test_a_judge_that_is_down_ends_a_run_of_openrlhf(judged: Judged) -> None:
    engine = judged(MAX_FAILURE_RATE="0.004")  # two of the window
    engine.complete = lambda requests: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    reward = loaded("openrlhf.py", "reward_func").reward_func
    assert [reward(["q 1"], ["q "], [None])["rewards"].item() for _ in range(2)] == [0.5] * 2
    with pytest.raises(JudgementFailed, match="3 of the last 3 judgements failed"):
        reward(["q 1"], ["q "], [None])
