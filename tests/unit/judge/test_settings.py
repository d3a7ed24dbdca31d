"""Settings: types and places, wrong ones named before a model loads, formats and plugins of the user's own."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flexjudge_reward
from flexjudge_reward import ConfigError, Judge, JudgeConfig, Pairwise, RewardConfig, Rubric, ServerEngine
from flexjudge_reward.judge.config import KNOWN_SETTINGS
from flexjudge_reward.judge.settings import add_flags, checked, declared_names, settings_of
from flexjudge_reward.judge.trainer_settings import TrainerConfig

SERVER = "http://localhost:8001/v1"
FORMAT = """
from flexjudge_reward import Pointwise
class Terse(Pointwise):
    "One candidate, tersely."
ready = Terse("helpfulness", "nano")
other = 7
"""


def resolve(given: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> JudgeConfig:
    return JudgeConfig.resolve(given, environ or {}, gpu=lambda: False)


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of modules to import; they are gone afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def environment(settings: dict[str, Any]) -> dict[str, str]:
    return {f"FLEXJUDGE_{name.upper()}": str(value) for name, value in settings.items()}


# ---- places


def test_the_nearest_place_decides(tmp_path: Path) -> None:
    file = tmp_path / "judge.toml"
    file.write_text('model = "from/file"\ntemperature = 1\nseed = 3\nposition_swap = true\nformat = "pairwise"\n')
    found = resolve({"seed": 5}, {"FLEXJUDGE_CONFIG": str(file), "FLEXJUDGE_TEMPERATURE": "0.5"})
    assert (found.model, found.temperature, found.seed, found.position_swap) == ("from/file", 0.5, 5, True)
    assert resolve({}, {"FLEXJUDGE_CONFIG": str(file), "FLEXJUDGE_POSITION_SWAP": "0"}).position_swap is False


def test_none_and_empty_variables_mean_not_given() -> None:
    assert {name: one.value for name, one in checked(KNOWN_SETTINGS, {"model": None, "seed": 0}).items()} == {"seed": 0}
    assert resolve({}, {"FLEXJUDGE_MODEL": "", "FLEXJUDGE_CONFIG": ""}).model == "nano"


def test_judge_and_reward_share_one_file_and_one_environment(tmp_path: Path) -> None:
    file = tmp_path / "both.toml"
    file.write_text('votes = 3\non_failure = "abstain"\n')
    environ = {"FLEXJUDGE_CONFIG": str(file), "FLEXJUDGE_DEADLINE": "60", "FLEXJUDGE_TEMPERATURE": "1"}
    judge, reward = resolve({}, environ), RewardConfig.resolve({"num_generations": 4}, environ)
    assert (judge.votes, judge.temperature) == (3, 1.0)
    assert (reward.on_failure, reward.deadline, reward.num_generations) == ("abstain", 60.0, 4)


@pytest.mark.parametrize(
    ("name", "texts", "value"),
    [
        pytest.param("position_swap", ["1", "true", "True"], True, id="true"),
        pytest.param("position_swap", ["0", "false", "FALSE"], False, id="false"),
        pytest.param("seed", ["7", " 7 "], 7, id="whole"),
        pytest.param("temperature", ["1", "1.0", "1e0"], 1.0, id="fraction"),
        pytest.param("cache", ["off"], "off", id="text"),
    ],
)
def test_variables_are_read_by_type(name: str, texts: list[str], value: object) -> None:
    for text in texts:
        found = getattr(resolve({"format": "pairwise"}, {f"FLEXJUDGE_{name.upper()}": text}), name)
        assert found == value and type(found) is type(value)


def test_arguments_of_their_own_types_are_kept() -> None:
    rubric, format = Rubric("True?"), Pairwise()
    found = resolve({"rubric": rubric, "format": format, "cache": Path("here"), "temperature": 1})
    assert (found.rubric, found.format) == (rubric, format) and found.cache == "here"
    assert isinstance(found.temperature, float)


def test_every_setting_is_a_flag_with_a_help_and_the_same_type() -> None:
    parser = argparse.ArgumentParser()
    declared = settings_of(JudgeConfig, RewardConfig, TrainerConfig)
    add_flags(parser.add_argument_group("all"), declared.values(), {"votes": 1})
    fields = [field for owner in (JudgeConfig, RewardConfig, TrainerConfig) for field in dataclasses.fields(owner)]
    assert set(declared) == {field.name for field in fields} - {"why"} and all(one.help for one in declared.values())
    assert set(vars(parser.parse_args([])).values()) == {None}  # a flag that is not given says nothing
    words = "--votes 3 --temperature 0.5 --no-position-swap --swap-margin 1 --format pairwise --deadline 9".split()
    given = {name: value for name, value in vars(parser.parse_args(words)).items() if value is not None}
    numbers = {"votes": 3, "temperature": 0.5, "swap_margin": 1.0, "deadline": 9.0}
    assert given == {**numbers, "position_swap": False, "format": "pairwise"}
    text = " ".join(parser.format_help().split())
    assert "samples per judgement; needs a temperature above 0 (default: 1)" in text
    assert "--schedule all|swiss" in text and "--position-swap, --no-position-swap" in text


# ---- wrong settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"modell": "x"}, "unknown setting 'modell'; known are model, engine", id="name"),
        pytest.param({"engine": "sglang"}, "'engine' must be one of vllm, server, transformers", id="engine"),
        pytest.param({"schedule": "ring"}, "'schedule' must be one of all, swiss, found 'ring'", id="schedule"),
        pytest.param({"max_tokens": 2.5}, "'max_tokens' must be a whole number, found 2.5", id="not-whole"),
        pytest.param({"votes": True}, "'votes' must be a whole number, found True", id="a-switch-is-no-number"),
        pytest.param({"temperature": "hot"}, "'temperature' must be a number, found 'hot'", id="not-a-number"),
        pytest.param({"temperature": "1"}, "'temperature' must be a number, found '1'", id="a-number-as-text"),
        pytest.param({"position_swap": 1}, "'position_swap' must be true or false, found 1", id="not-a-switch"),
        pytest.param({"model": 7}, "'model' must be a text, found 7", id="not-a-text"),
        pytest.param({"model": ""}, "'model' must be a text, found ''", id="no-text"),
        pytest.param({"cache": "a\0b"}, r"'cache' must be a text, found 'a\\x00b'", id="no-path"),
        pytest.param({"votes": "y" * 9_000}, "'votes' must be a whole number, found '" + "y" * 99, id="long"),
        pytest.param({"rubric": 7}, "'rubric' must be a text, found 7", id="not-a-rubric"),
        pytest.param({"on_failure": "zero"}, "'on_failure' must be one of group_mean, abstain, raise", id="policy"),
    ],
)
def test_a_wrong_argument_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(given)
    assert str(caught.value).startswith("the argument")


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        pytest.param("MODLE", "x", "unknown setting 'modle'; known are model", id="name"),
        pytest.param("SEED", "x", "'seed' must be a whole number, found 'x'", id="not-a-number"),
        pytest.param("VOTES", "2.5", "'votes' must be a whole number, found '2.5'", id="not-whole"),
        pytest.param("DEADLINE", "soon", "'deadline' must be a number, found 'soon'", id="of-the-reward"),
        pytest.param("POSITION_SWAP", "yes", "'position_swap' must be true or false, found 'yes'", id="not-a-switch"),
        pytest.param("ENGINE", "sglang", "'engine' must be one of vllm, server, transformers", id="choice"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^the environment variable FLEXJUDGE_{variable}: {message}"):
        resolve({}, {f"FLEXJUDGE_{variable}": text})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("a = ", "judge.toml: not valid TOML", id="not-toml"),
        pytest.param("colour = 1", "the file .*judge.toml: unknown setting 'colour'", id="name"),
        pytest.param('votes = "5"', "the file .*judge.toml: 'votes' must be a whole number, found '5'", id="type"),
        pytest.param(None, "FLEXJUDGE_CONFIG names '.*judge.toml', which cannot be read: No such file", id="no-file"),
    ],
)
def test_a_wrong_file_is_named(text: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "judge.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        resolve({}, {"FLEXJUDGE_CONFIG": str(file)})


@pytest.mark.parametrize(
    ("given", "message", "places"),
    [
        pytest.param({"engine": "server"}, "needs its address: base_url", ["engine"], id="server-without-address"),
        pytest.param(
            {"swap_margin": 1.0, "format": "pairwise"}, "set position_swap=True", ["swap_margin"], id="margin-alone"
        ),
        pytest.param(
            {"format": "multiple_choice", "position_swap": True, "swap_margin": 0.5},
            "swap_margin needs scores, and format is 'multiple_choice'", ["swap_margin", "format"],
            id="margin-of-a-choice",
        ),
        pytest.param(
            {"position_swap": True, "format": "pointwise"}, "needs two or more candidates, and format is 'pointwise'",
            ["position_swap", "format"], id="swap-of-one",
        ),
        pytest.param(
            {"expected_score": True, "format": "pairwise_verdict"}, "expected_score needs numbers or a letter",
            ["expected_score", "format"], id="expected-options",
        ),
        pytest.param({"votes": 5}, "5 votes at temperature 0 are one vote", ["votes"], id="votes-that-repeat"),
        pytest.param(
            {"format": "listwise", "schedule": "swiss"}, "set format='pairwise'", ["schedule", "format"],
            id="schedule-of-lists",
        ),
        pytest.param({"budget": 5}, "set format='pairwise'", ["budget"], id="budget-of-scores"),
        pytest.param({"format": "pairwise", "chunk": 4}, "format='listwise'", ["chunk", "format"], id="chunk-of-pairs"),
    ],
)  # fmt: skip
def test_a_contradiction_names_both_places(
    given: dict[str, Any], message: str, places: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(given)
    assert all(f"the argument {name}" in str(caught.value) for name in places)
    # The same from an environment variable and a file.
    variable = f"FLEXJUDGE_{places[0].upper()}"
    file = tmp_path / "judge.toml"
    rest = {name: value for name, value in given.items() if name != places[0]}
    lines = [
        f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for name, value in rest.items()
    ]
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=message) as caught:
        resolve({}, {"FLEXJUDGE_CONFIG": str(file), variable: str(given[places[0]])})
    assert f"the environment variable {variable}" in str(caught.value)
    assert all(f"{name} in the file {file}" in str(caught.value) for name in places[1:])


def test_a_server_beside_another_engine_is_a_contradiction_within_one_place() -> None:
    environ = {"FLEXJUDGE_ENGINE": "vllm", "FLEXJUDGE_BASE_URL": SERVER}
    with pytest.raises(ConfigError, match=r"the environment variable FLEXJUDGE_BASE_URL and .* FLEXJUDGE_ENGINE"):
        resolve({}, environ)
    with pytest.raises(ConfigError, match="the argument base_url and the argument engine"):
        resolve({"engine": "vllm", "base_url": SERVER})
    assert resolve({"engine": "vllm"}, environ).engine == "vllm"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        pytest.param("temperature", 2.5, "from 0 to 2, found 2.5", id="temperature"),
        pytest.param("temperature", float("nan"), "from 0 to 2, found nan", id="no-number"),
        pytest.param("max_tokens", 0, "at least 1, found 0", id="max-tokens"),
        pytest.param("answer_tokens", -1, "at least 0, found -1", id="answer-tokens"),
        pytest.param("swap_margin", -1.5, "at least 0, found -1.5", id="margin"),
        pytest.param("votes", 0, "at least 1, found 0", id="votes"),
        pytest.param("budget", 0, "at least 1, found 0", id="budget"),
        pytest.param("chunk", 1, "from 2 to 8, found 1", id="short-chunk"),
        pytest.param("chunk", 9, "from 2 to 8, found 9", id="long-chunk"),
        pytest.param("gpu_memory_utilization", 0.0, "from 0.01 to 1, found 0.0", id="no-memory"),
        pytest.param("gpu_memory_utilization", 1.5, "from 0.01 to 1, found 1.5", id="memory"),
        pytest.param("max_failure_rate", 1.5, "from 0 to 1, found 1.5", id="share"),
        pytest.param("deadline", 0.0, "at least 0.001, found 0.0", id="deadline"),
        pytest.param("num_generations", 0, "at least 1, found 0", id="group-size"),
        pytest.param("num_generations", 10**26, f"at most 1e+20, found {10**26}", id="no-such-group"),
        pytest.param("prompt_price", float("inf"), "at most 1e+20, found inf", id="price"),
    ],
)
def test_a_value_out_of_range_names_its_place(name: str, value: float, message: str, tmp_path: Path) -> None:
    """Before a model loads, whichever place and whichever configuration reads it."""
    file, variable = tmp_path / "judge.toml", f"FLEXJUDGE_{name.upper()}"
    file.write_text(f"{name} = {value}")
    places: list[tuple[str, dict[str, Any], dict[str, str]]] = [
        (f"the argument {name}", {name: value}, {}),
        (f"the environment variable {variable}", {}, {variable: str(value)}),
        (f"{name} in the file {file}", {}, {"FLEXJUDGE_CONFIG": str(file)}),
    ]
    for config in (JudgeConfig, RewardConfig):
        for place, given, environ in places:
            with pytest.raises(ConfigError) as caught:
                config.resolve(given, environ)
            assert str(caught.value) == f"{place}: {name!r} must be {message}"


def test_the_ends_of_a_range_are_in_it() -> None:
    ends = {"temperature": 2, "max_tokens": 1, "answer_tokens": 0, "gpu_memory_utilization": 1, "engine": "vllm"}
    ends |= {"seed": 2**63}
    assert resolve({**ends, "format": "listwise", "chunk": 2}).gpu_memory_utilization == 1.0
    assert RewardConfig.resolve({"max_failure_rate": 1, "deadline": float("inf")}, {}).max_failure_rate == 1.0


def test_a_value_out_of_range_is_named_without_resolving() -> None:
    with pytest.raises(ConfigError, match="the argument deadline: 'deadline' must be at least"):
        RewardConfig(deadline=-1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"rubric": "kindness"}, "no rubric 'kindness'", id="rubric"),
        pytest.param({"prompt_set": "mine"}, "no prompt file 'mine': give a folder", id="prompt-set"),
    ],
)
def test_a_text_that_names_nothing_is_named_before_a_model_loads(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve({"model": "nano", "cache": "off", **given}).build()


# ---- settings that do nothing


@pytest.mark.parametrize(
    ("option", "value", "chosen", "message"),
    [
        pytest.param(
            "device", "cpu", {"engine": "vllm"}, "device is for the engine transformers, and this is vllm",
            id="device-vllm",
        ),
        pytest.param(
            "device", "cpu", {"base_url": SERVER}, "device is for the engine transformers, and this is server",
            id="device-server",
        ),
        pytest.param(
            "revision", "main", {"base_url": SERVER}, "revision is for the engine vllm or transformers, and",
            id="revision-server",
        ),
        pytest.param(
            "gpu_memory_utilization", 0.3, {"base_url": SERVER}, "for the engine vllm, and this is server",
            id="memory-server",
        ),
        pytest.param(
            "gpu_memory_utilization", 0.3, {"engine": "transformers"}, "for the engine vllm, and this is transformers",
            id="memory-transformers",
        ),
        pytest.param(
            "api_key_env", "KEY", {"engine": "transformers"}, "api_key_env is for the engine server, and", id="key"
        ),
    ],
)  # fmt: skip
def test_a_setting_that_the_engine_ignores_is_refused(
    option: str, value: object, chosen: dict[str, str], message: str
) -> None:
    """Also one that is given as its default. The message names both places."""
    (choice,) = chosen
    argument, variable = f"the argument {option}", f"the environment variable FLEXJUDGE_{option.upper()}"
    both = {option: value, **chosen}
    cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        (f"({argument} and the argument {choice})", both, {}),
        (f"({argument} and the environment variable FLEXJUDGE_{choice.upper()})", {option: value}, chosen),
        (f"({variable} and the environment variable FLEXJUDGE_{choice.upper()})", {}, both),
    ]
    for places, given, environ in cases:
        with pytest.raises(ConfigError, match=message) as caught:
            resolve(given, environment(environ))
        assert places in str(caught.value)


def test_the_machine_may_choose_the_engine_that_ignores_a_setting() -> None:
    with pytest.raises(ConfigError, match=r"this is transformers \(the argument .*utilization and engine by default\)"):
        resolve({"gpu_memory_utilization": 0.5})
    found = JudgeConfig.resolve({"gpu_memory_utilization": 0.5}, {}, gpu=lambda: True)
    assert (found.engine, found.gpu_memory_utilization) == ("vllm", 0.5)


@pytest.mark.parametrize(
    ("given", "environ", "dropped"),
    [
        pytest.param(
            {"base_url": SERVER}, {"engine": "vllm", "gpu_memory_utilization": "0.5"}, "gpu_memory_utilization",
            id="server",
        ),
        pytest.param({"model": "nano"}, {"base_url": SERVER, "api_key_env": "KEY"}, "api_key_env", id="nano"),
        pytest.param({"engine": "vllm"}, {"engine": "transformers", "device": "cpu"}, "device", id="engine"),
    ],
)  # fmt: skip
def test_an_engine_from_a_nearer_place_drops_what_is_for_another(
    given: dict[str, Any], environ: dict[str, str], dropped: str
) -> None:
    assert getattr(resolve(given, environment(environ)), dropped) == getattr(JudgeConfig(), dropped)


@pytest.mark.parametrize(
    ("resolve", "given", "message"),
    [
        pytest.param(
            lambda **given: Judge.load(**given), {"reference_column": "truth"},
            "the argument reference_column belongs to RewardConfig, not to JudgeConfig: FlexJudgeReward takes both",
            id="judge",
        ),
        pytest.param(
            lambda **given: RewardConfig.resolve(given, {}), {"model": "nano"},
            "the argument model belongs to JudgeConfig, not to RewardConfig", id="reward",
        ),
        pytest.param(
            lambda **given: Judge.load(**given), {"serve_port": 8900},
            "the argument serve_port belongs to TrainerConfig, not to JudgeConfig", id="trainer",
        ),
    ],
)  # fmt: skip
def test_an_argument_of_the_other_configuration_is_refused(resolve: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(**given)


# ---- judges by name


@pytest.mark.parametrize("form", ["toml", "yaml"])
def test_judges_by_name_have_settings_of_their_own(form: str, tmp_path: Path) -> None:
    """What is said of one judge goes before what is said of all, wherever it is said."""
    file = tmp_path / f"judges.{form}"
    short_table = '[short]\nseed = 2\nformat = "pairwise"\n'
    texts = {
        "toml": f"seed = 1\nvotes = 1\ndeadline = 9\n{short_table}[long_one]\ntemperature = 1\n",
        "yaml": "{seed: 1, votes: 1, deadline: 9, short: {seed: 2, format: pairwise}, long_one: {temperature: 1}}",
    }
    file.write_text(texts[form])
    environ = {"FLEXJUDGE_CONFIG": str(file), "FLEXJUDGE_SEED": "3", "FLEXJUDGE_LONG_ONE__VOTES": "5"}
    environ["FLEXJUDGE_SHORT__DEADLINE"] = "8"
    one, short, long = (JudgeConfig.resolve({}, environ, lambda: False, name) for name in ("", "short", "long_one"))
    assert (one.seed, one.format, one.votes) == (3, "pointwise", 1)
    assert (short.seed, short.format, short.votes) == (2, "pairwise", 1)
    assert (long.seed, long.votes, long.temperature) == (3, 5, 1.0)
    assert [RewardConfig.resolve({}, environ, name).deadline for name in ("", "short", "long_one")] == [9, 8, 9]
    assert declared_names(KNOWN_SETTINGS, environ) == ["long_one", "short"]
    assert JudgeConfig.resolve({"seed": 4}, environ, lambda: False, "short").seed == 4


def test_wrong_settings_are_no_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXJUDGE_TYPO", "1")
    assert not hasattr(flexjudge_reward, "no_such_judge")
    with pytest.raises(AttributeError, match="FLEXJUDGE_TYPO"):
        _ = flexjudge_reward.no_such_judge


@pytest.mark.parametrize(
    ("text", "environ", "message"),
    [
        pytest.param("[short]\nmodle = 'x'", {}, "modle in .short. of the file .*unknown setting 'modle'", id="file"),
        pytest.param("", {"SHORT__MODLE": "x"}, "FLEXJUDGE_SHORT__MODLE: unknown setting 'modle'", id="variable"),
        pytest.param("", {"SHORT__VOTES": "x"}, "FLEXJUDGE_SHORT__VOTES: 'votes' must be a whole number", id="value"),
        pytest.param("[judge]\nseed = 1", {}, "'judge' is a name of the package already", id="folder"),
        pytest.param("", {"RERANK__SEED": "1"}, "'rerank' is a name of the package already", id="function"),
        pytest.param("[Short]\nseed = 1", {}, "lower-case letters, digits and single _, found 'Short'", id="letters"),
        pytest.param("", {"__SEED": "1"}, "unknown setting|lower-case", id="no-name"),
        pytest.param("short = 7", {}, "unknown setting 'short'", id="no-table"),
    ],
)
def test_a_wrong_setting_of_a_named_judge_is_named(
    text: str, environ: dict[str, str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "judges.toml").write_text(text)
    given = {"FLEXJUDGE_CONFIG": str(tmp_path / "judges.toml")}
    given |= {f"FLEXJUDGE_{name}": value for name, value in environ.items()}
    for name in ("", "short"):
        with pytest.raises(ConfigError, match=message):
            JudgeConfig.resolve({}, given, lambda: False, name)


def test_a_judge_by_name_is_an_attribute_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXJUDGE_KIND_ONE__MAX_FAILURE_RATE", "0.5")
    one = flexjudge_reward.kind_one
    assert one is flexjudge_reward.kind_one and one.__name__ == "kind_one"
    assert one.session.config.max_failure_rate == 0.5
    assert RewardConfig.resolve().max_failure_rate == 0.05
    with pytest.raises(AttributeError, match="'kind_two'; to name a judge, set FLEXJUDGE_KIND_TWO__RUBRIC"):
        flexjudge_reward.kind_two  # noqa: B018
    with pytest.raises(AttributeError):
        flexjudge_reward._private  # noqa: B018


# ---- formats and plugins of one's own


def test_a_format_is_named_by_file_by_module_or_given(plugins: Path) -> None:
    (plugins / "terse.py").write_text(FORMAT)
    for format in (f"{plugins}/terse.py:Terse", "terse:Terse", "terse:ready"):
        built = resolve({"format": format, "prompt_set": "nano", "cache": "off", "answer_tokens": 0}).build()
        assert built.format.described() == "Terse"
        assert resolve({}, {"FLEXJUDGE_FORMAT": format}).format == format
    assert sys.modules["terse"].__file__ == str(plugins / "terse.py")
    own = sys.modules["terse"].ready
    assert resolve({"format": own, "cache": "off", "answer_tokens": 0}).build().format is own


@pytest.mark.parametrize(
    ("format", "message"),
    [
        pytest.param("rank", "format must be one of pointwise, .* found 'rank'", id="name"),
        pytest.param("terse:Missing", "format must be one of .* found 'terse:Missing'", id="no-such-class"),
        pytest.param("terse:other", "format must be one of .* found 'terse:other'", id="no-format"),
        pytest.param("nowhere:Terse", "'nowhere' cannot be imported: No module named 'nowhere'", id="no-module"),
        pytest.param("nowhere.py:Terse", "no file 'nowhere.py' to import", id="no-file"),
        pytest.param("{0}/needy.py:Terse", "needy.py' cannot be imported: No module named 'absent'", id="needs-more"),
        pytest.param("{0}/pathlib.py:Terse", "another module 'pathlib' .*rename", id="name-is-taken"),
    ],
)
def test_a_format_that_cannot_be_found_is_named(format: str, message: str, plugins: Path) -> None:
    (plugins / "terse.py").write_text(FORMAT)
    (plugins / "needy.py").write_text("import absent\n" + FORMAT)
    (plugins / "pathlib.py").write_text(FORMAT)
    for _ in range(2):  # the second time too: a module that failed is not half there
        with pytest.raises(ConfigError, match=message):
            resolve({"format": format.format(plugins)})


def test_plugins_are_imported_once_and_in_order(plugins: Path) -> None:
    (plugins / "first.py").write_text("loads = []\n")
    (plugins / "second.py").write_text("import first\nfirst.loads.append(__name__)\n")
    for _ in range(2):
        resolve({"plugins": f"first, {plugins}/second.py"})
    assert sys.modules["first"].loads == ["second"]
    with pytest.raises(ConfigError, match="'absent' cannot be imported"):
        resolve({}, {"FLEXJUDGE_PLUGINS": "first,absent"})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        pytest.param("headers", '{"api-key": "x"}', {"api-key": "x"}, id="headers"),
        pytest.param("extra_body", '{"provider": {"order": ["a"]}}', {"provider": {"order": ["a"]}}, id="extra-body"),
        pytest.param("concurrency", "8", 8, id="concurrency"),
        pytest.param("timeout", "30", 30.0, id="timeout"),
        pytest.param("max_attempts", "3", 3, id="attempts"),
        pytest.param("max_pixels", "100000", 100_000, id="pixels"),
        pytest.param("image_format", "jpeg", "jpeg", id="image-format"),
    ],
)
def test_a_servers_settings_reach_it_from_every_place(name: str, text: str, value: object, tmp_path: Path) -> None:
    file = tmp_path / "judge.toml"
    file.write_text(f"{name} = {text if text.isdigit() else json.dumps(text)}")
    places: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({name: value}, {}),
        ({}, {f"FLEXJUDGE_{name.upper()}": text}),
        ({}, {"FLEXJUDGE_CONFIG": str(file)}),
    ]
    for given, environ in places:
        config = JudgeConfig.resolve({"base_url": "http://127.0.0.1:9/v1", "cache": "off", **given}, environ)
        with config.build() as judge:
            assert isinstance(judge.engine, ServerEngine) and getattr(judge.engine, name) == value


@pytest.mark.parametrize("wrong", ["no json", "[1]", "7"])
def test_an_object_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="headers is a JSON object"):
        resolve({"base_url": "http://127.0.0.1:9/v1", "headers": wrong}).build()
