"""Which judge is used: arguments, then environment, then machine; what is refused before a model loads."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import CachedEngine, ConfigError, JudgeConfig, OneCall, Rubric
from flexjudge_reward.judge.config import LARGE, OFF
from flexjudge_reward.judge.machine import training_processes
from flexjudge_reward.prompts.template import Template, copy_prompt_set

SERVER = "http://localhost:8001/v1"


def resolve(
    given: dict[str, Any] | None = None, environ: dict[str, str] | None = None, gpu: bool = False
) -> JudgeConfig:
    return JudgeConfig.resolve(given, environ or {}, gpu=lambda: gpu)


@pytest.mark.parametrize(
    ("given", "environ", "gpu", "expected"),
    [
        pytest.param({}, {}, False, ("nano", "transformers", "nano", 256), id="nothing-on-a-cpu"),
        pytest.param({}, {}, True, (LARGE, "vllm", "flex", 4096), id="nothing-on-a-gpu"),
        pytest.param({"base_url": SERVER}, {}, True, (None, "server", "flex", 4096), id="a-server"),
        pytest.param({"model": "nano"}, {}, True, ("nano", "transformers", "nano", 256), id="nano-by-name"),
        pytest.param({"model": "a/b"}, {}, True, ("a/b", "vllm", "flex", 4096), id="a-model-on-a-gpu"),
        pytest.param({"model": "a/b"}, {}, False, ("a/b", "transformers", "flex", 4096), id="a-model-on-a-cpu"),
        pytest.param({"engine": "vllm"}, {}, False, (LARGE, "vllm", "flex", 4096), id="vllm-by-name"),
        pytest.param({"engine": "transformers"}, {}, True, ("nano", "transformers", "nano", 256), id="transformers"),
        pytest.param({}, {"FLEXJUDGE_MODEL": "a/b"}, False, ("a/b", "transformers", "flex", 4096), id="environment"),
        pytest.param(
            {"model": "c/d"}, {"FLEXJUDGE_MODEL": "a/b"}, False, ("c/d", "transformers", "flex", 4096),
            id="an-argument-goes-before-the-environment",
        ),
        pytest.param(
            {"model": "nano"}, {"FLEXJUDGE_BASE_URL": SERVER}, False, ("nano", "transformers", "nano", 256),
            id="nano-by-argument-drops-the-server-of-the-environment",
        ),
        pytest.param(
            {"engine": "transformers"}, {"FLEXJUDGE_BASE_URL": SERVER}, False, ("nano", "transformers", "nano", 256),
            id="an-engine-by-argument-drops-the-server-of-the-environment",
        ),
        pytest.param(
            {"base_url": SERVER}, {"FLEXJUDGE_ENGINE": "vllm"}, False, (None, "server", "flex", 4096),
            id="a-server-by-argument-drops-the-engine-of-the-environment",
        ),
        pytest.param(
            {"prompt_set": "flex", "max_tokens": 9}, {}, False, ("nano", "transformers", "flex", 9), id="own-prompt-set"
        ),
    ],
)  # fmt: skip
def test_the_first_place_that_says_something_decides(
    given: dict[str, Any], environ: dict[str, str], gpu: bool, expected: tuple[object, ...]
) -> None:
    found = resolve(given, environ, gpu)
    assert (found.model, found.engine, found.prompt_set, found.max_tokens) == expected


def test_it_is_a_value_that_pickles() -> None:
    found = resolve({"rubric": Rubric("True?")})
    assert pickle.loads(pickle.dumps(found)) == found


def test_build_puts_a_cache_around_the_engine_unless_it_is_off(cache_file: Path) -> None:
    judge = resolve({"cache": cache_file}).build()
    assert isinstance(judge.engine, CachedEngine) and judge.sampling.max_tokens == 256
    judge.close()
    assert not isinstance(resolve({"cache": OFF}).build().engine, CachedEngine)


def test_several_processes_share_one_server_or_have_small_judges(tmp_path: Path) -> None:
    large = resolve({"model": LARGE, "revision": "abc"})
    with pytest.raises(ConfigError) as caught:
        large.build(processes=4)
    message = str(caught.value)
    assert "4 training processes" in message and "FLEXJUDGE_BASE_URL" in message
    assert f"vllm serve {LARGE} --revision abc --port 8001" in message
    (tmp_path / "model.safetensors").write_bytes(b"small")
    for small in ({"base_url": SERVER}, {"model": "nano"}, {"model": str(tmp_path)}):
        resolve({**small, "cache": OFF}).build(processes=4).close()
    large.build(processes=1).close()


@pytest.mark.parametrize(("size", "expected"), [("", 1), ("4", 4), ("many", 1)])
def test_the_number_of_processes(size: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    assert training_processes() == expected


def test_a_key_is_given_by_the_name_of_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve({"base_url": SERVER, "api_key_env": "JUDGE_KEY", "cache": OFF})
    with pytest.raises(ConfigError, match="environment variable 'JUDGE_KEY', which is not set"):
        config.build()
    monkeypatch.setenv("JUDGE_KEY", "canary-key")
    config.build().close()
    assert "canary-key" not in repr(config)


def test_the_variable_of_the_key_is_no_setting() -> None:
    config = resolve({}, {"FLEXJUDGE_API_KEY": "canary-key", "FLEXJUDGE_BASE_URL": SERVER})
    assert config.base_url == SERVER and "canary-key" not in repr(config)


def test_one_line_says_which_judge_and_how_to_change_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flexjudge_reward"):
        resolve({"base_url": SERVER}).announce()
        resolve().announce()
    named, stopgap = caplog.records
    assert (named.levelname, stopgap.levelname) == ("INFO", "WARNING")
    assert SERVER in named.message and "FLEXJUDGE_MODEL" in named.message
    assert "nano" in stopgap.message and "coloured shapes" in stopgap.message


@pytest.mark.parametrize(
    ("settings", "described"),
    [
        pytest.param({}, "BudgetForcing(Pointwise)", id="default"),
        pytest.param({"answer_tokens": 0}, "Pointwise", id="no-budget-forcing"),
        pytest.param({"format": "pairwise"}, "Tournament(BudgetForcing(Pairwise))", id="pairs"),
        pytest.param({"format": "pairwise_verdict"}, "Tournament(BudgetForcing(PairwiseVerdict))", id="options"),
        pytest.param({"format": "listwise"}, "AnchoredChunks(BudgetForcing(Listwise))", id="lists"),
        pytest.param({"format": "multiple_choice"}, "Knockout(BudgetForcing(MultipleChoice))", id="choices"),
        pytest.param(
            {"format": "pairwise", "position_swap": True, "expected_score": True},
            "Tournament(PositionSwap(BudgetForcing(ExpectedScore(Pairwise))))",
            id="swapped-expected-pairs",
        ),
        pytest.param({"votes": 3, "temperature": 1}, "MajorityVote(BudgetForcing(Pointwise))", id="votes"),
    ],
)
def test_settings_make_the_format(settings: dict[str, Any], described: str) -> None:
    # PairwiseVerdict has no file in the prompt set of the embedded judge.
    judge = resolve({"model": "nano", "prompt_set": "flex", "cache": OFF, **settings}).build()
    assert judge.format.described() == described


def test_numbers_reach_the_formats() -> None:
    given = {"format": "pairwise", "schedule": "swiss", "budget": 9, "seed": 4, "position_swap": True}
    pairs: Any = resolve({**given, "swap_margin": 1.5, "cache": OFF}).build()
    assert (pairs.format.schedule, pairs.format.budget, pairs.format.seed, pairs.sampling.seed) == ("swiss", 9, 4, 4)
    assert pairs.format.inner.margin == 1.5
    lists: Any = resolve({"format": "listwise", "chunk": 4, "answer_tokens": 9, "cache": OFF}).build()
    assert (lists.format.size, lists.format.inner.answer_tokens) == (4, 9)
    votes: Any = resolve({"votes": 3, "temperature": 0.7, "expected_score": True, "cache": OFF}).build()
    assert (votes.format.k, votes.format.by, votes.sampling.temperature) == (3, "mean", 0.7)


# ---------------------------------------------------------------- the words of a judge


@pytest.fixture
def judge(tmp_path: Path) -> str:
    """The folder of a judge that was trained with the texts of `nano`; there are no weights in it."""
    copy_prompt_set("nano", tmp_path)
    return str(tmp_path)


def test_a_judge_is_asked_in_its_own_words(judge: str, caplog: pytest.LogCaptureFixture) -> None:
    config = JudgeConfig.resolve({"model": judge, "cache": OFF}, {}, gpu=lambda: False)
    assert config.prompt_set == str(Path(judge) / "prompts")
    built = config.build().format.innermost()
    assert isinstance(built, OneCall) and built.template == Template.load("nano", "pointwise")
    assert JudgeConfig.resolve({"model": judge, "prompt_set": "nano"}, {}).build() and not caplog.messages
    assert JudgeConfig.resolve({"model": LARGE}, {}).prompt_set == "flex"


def test_other_words_than_its_own_are_a_warning(judge: str, caplog: pytest.LogCaptureFixture) -> None:
    for settings in ({"prompt_set": "flex"}, {"prompt_set": "flex", "format": "pairwise_verdict"}):
        caplog.clear()
        JudgeConfig.resolve({"model": judge, "cache": OFF} | settings, {}).build()
        assert "is asked in other words" in caplog.text and "leave out prompt_set" in caplog.text
