"""Which judge is used: arguments, then environment, then file, then machine; and what is refused before it loads."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import ConfigError, Rubric
from flexjudge_reward.engines.cache.engine import CachedEngine
from flexjudge_reward.judge.config import LARGE, OFF, JudgeConfig, JudgeOptions, checked, training_processes

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
            {"prompts": "flex", "max_tokens": 9}, {}, False, ("nano", "transformers", "flex", 9), id="own-wording"
        ),
    ],
)  # fmt: skip
def test_the_first_place_that_says_something_decides(
    given: dict[str, Any], environ: dict[str, str], gpu: bool, expected: tuple[object, ...]
) -> None:
    found = resolve(given, environ, gpu)
    assert (found.model, found.engine, found.prompts, found.max_tokens) == expected


def test_a_toml_file_stands_below_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "judge.toml"
    file.write_text('model = "from/file"\ntemperature = 1\nseed = 3\n')
    found = resolve({"seed": 5}, {"FLEXJUDGE_CONFIG": str(file), "FLEXJUDGE_TEMPERATURE": "0.5"})
    assert (found.model, found.temperature, found.seed) == ("from/file", 0.5, 5)


@pytest.mark.parametrize(
    ("given", "environ", "message"),
    [
        pytest.param({"modell": "x"}, {}, "unknown judge setting 'modell'; known are model, engine", id="name"),
        pytest.param({"engine": "sglang"}, {}, "'engine' must be one of vllm, server, transformers", id="engine"),
        pytest.param({"format": "rank"}, {}, "'format' must be one of score, pair, listwise", id="format"),
        pytest.param({"max_tokens": 2.5}, {}, "'max_tokens' must be a whole number, found 2.5", id="not-whole"),
        pytest.param({"temperature": "hot"}, {}, "'temperature' must be a number, found 'hot'", id="not-a-number"),
        pytest.param({"model": 7}, {}, "'model' must be a text, found 7", id="not-a-text"),
        pytest.param({"engine": "server"}, {}, "needs its address: base_url", id="server-without-address"),
        pytest.param({"engine": "vllm", "base_url": SERVER}, {}, "give one of the two", id="server-and-engine"),
        pytest.param({}, {"FLEXJUDGE_MODLE": "x"}, "variable FLEXJUDGE_MODLE: unknown judge setting", id="variable"),
        pytest.param({}, {"FLEXJUDGE_SEED": "x"}, "FLEXJUDGE_SEED: expected a number, found 'x'", id="variable-value"),
        pytest.param({}, {"FLEXJUDGE_CONFIG": "none.toml"}, "names 'none.toml', which cannot be read", id="no-file"),
    ],
)
def test_a_wrong_setting_is_named(given: dict[str, Any], environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(given, environ)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "judge.toml"
    for text, message in (("a = ", "judge.toml: not valid TOML"), ("colour = 1", "judge.toml: unknown judge setting")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            resolve({}, {"FLEXJUDGE_CONFIG": str(file)})


def test_none_and_empty_variables_mean_not_given() -> None:
    assert checked({"model": None, "seed": 0}) == {"seed": 0}
    assert resolve({}, {"FLEXJUDGE_MODEL": ""}).model == "nano"


def test_options_and_fields_are_the_same_names() -> None:
    assert set(JudgeOptions.__annotations__) == set(JudgeConfig.__dataclass_fields__) - {"why"}


def test_it_is_a_value_that_pickles() -> None:
    found = resolve({"rubric": Rubric("True?")})
    assert pickle.loads(pickle.dumps(found)) == found


def test_build_puts_a_cache_around_the_engine_unless_it_is_off(cache_file: Path) -> None:
    judge = resolve({"cache": cache_file}).build()
    assert isinstance(judge.engine, CachedEngine) and judge.sampling.max_tokens == 256
    judge.close()
    assert not isinstance(resolve({"cache": OFF}).build().engine, CachedEngine)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"swap": True}, "two or more candidates", id="swap_of_one"),
        pytest.param({"format": "pair", "swap_margin": 1.0}, "set swap=True", id="margin_without_swap"),
        pytest.param({"format": "choice", "swap": True, "swap_margin": 0.5}, "is for scores", id="margin_of_a_choice"),
        pytest.param({"format": "pair", "swap": True, "swap_margin": -1.0}, "at least 0", id="negative_margin"),
        pytest.param({"votes": 5}, "5 votes at temperature 0 are one vote", id="votes_that_repeat"),
        pytest.param({"format": "listwise", "schedule": "swiss"}, "set format='pair'", id="schedule_of_lists"),
        pytest.param({"format": "pair", "chunk": 4}, "set format='listwise'", id="chunk_of_pairs"),
        pytest.param({"budget": 5}, "set format='pair'", id="budget_of_scores"),
        pytest.param(
            {"format": "relation", "prompts": "flex", "expected": True},
            "Score, Pair, Listwise and Choice",
            id="expected",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_named_before_a_model_loads(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve({"model": "nano", "cache": "off", **given}).build()


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
