"""Which judge to use: one frozen, picklable value, found from arguments, environment and machine.

Each setting comes from the first place that has it:

    1. an explicit argument                FlexJudgeReward(model="...")
    2. an environment variable             FLEXJUDGE_MODEL=...
    3. a TOML file                         FLEXJUDGE_CONFIG=judge.toml, with a line  model = "..."
    4. the machine                         a CUDA device and vLLM: Flex-VL-7B in process; otherwise the embedded judge

A server's key is no setting: FLEXJUDGE_API_KEY holds it, or the variable that `api_key_env` names.
`resolve` only reads; `build` makes the judge, whose model still loads at its first use. In a distributed run every rank
would load its own copy of an in-process judge, so `build` refuses that for a large model and prints the `vllm serve`
command to run instead. What a model knows is not known here: the embedded judge only knows its small world.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from flexjudge_reward.engines.server import KEY_VARIABLE
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.adaptive import Forced, Swapped, Votes
from flexjudge_reward.formats.builtin import Choice, Listwise, Pair, Relation, Score
from flexjudge_reward.formats.expected import Expected
from flexjudge_reward.formats.pairings import Schedule
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.rubric import Rubric
from flexjudge_reward.types import AnyFormat, Engine, Sampling

EngineName = Literal["vllm", "server", "transformers"]
NANO = "nano"
LARGE = "jongwooko/Flex-VL-7B"
OFF = "off"

FORMATS: dict[str, type[Score | Pair | Listwise | Choice | Relation]] = {
    form.name: form for form in (Score, Pair, Listwise, Choice, Relation)
}
"""The formats by the names that settings use."""
_PREFIX = "FLEXJUDGE_"
_NO_SETTINGS = {_PREFIX + "CONFIG", KEY_VARIABLE}
_NUMBERS: dict[str, type[int] | type[float]] = {
    "temperature": float,
    "max_tokens": int,
    "seed": int,
    "force_tokens": int,
    "votes": int,
    "budget": int,
    "chunk": int,
    "swap_margin": float,
    "gpu_memory_utilization": float,
}
_SWITCHES = {"expected", "swap"}
_SMALL_BYTES = 2**31  # a checkpoint up to 2 GiB may be loaded once per rank
_log = logging.getLogger("flexjudge_reward")


class JudgeOptions(TypedDict, total=False):
    """The settings a caller may give; see `JudgeConfig` for what each means. None means "not given"."""

    model: str | Path | None
    engine: EngineName | None
    revision: str | None
    base_url: str | None
    api_key_env: str | None
    format: str | None
    rubric: Rubric | str | Path | None
    prompts: str | Path | None
    temperature: float | None
    max_tokens: int | None
    seed: int | None
    force_tokens: int | None
    expected: bool | None
    swap: bool | None
    swap_margin: float | None
    votes: int | None
    schedule: str | None
    budget: int | None
    chunk: int | None
    cache: str | Path | None
    device: str | None
    gpu_memory_utilization: float | None


@dataclass(frozen=True)
class JudgeConfig:
    """Everything that says which judge judges, and how."""

    model: str | None
    """A model name or folder; "nano" is the embedded judge; None takes whatever the server serves."""
    engine: EngineName
    prompts: str
    """The wording the model was trained with: "flex", "nano", or a folder or file of your own."""
    max_tokens: int
    """Longest reply, reasoning included, in tokens."""
    revision: str | None = None
    base_url: str | None = None
    """The address of an OpenAI-compatible server, such as http://host:8000/v1."""
    api_key_env: str | None = None
    """The *name* of the environment variable with the server's key, by default FLEXJUDGE_API_KEY; no key is stored."""
    format: str = "score"
    rubric: Rubric | str = "helpfulness"
    temperature: float = 0.0
    seed: int = 0
    force_tokens: int = 64
    """A thought that is cut at `max_tokens` is closed and answered in at most so many tokens; 0 makes it a failure."""
    expected: bool = False
    """Scores are the mean of the judge's distribution over its answer; needs an engine with log probabilities."""
    swap: bool = False
    """Candidates are judged in both orders, and a winner counts only if both name it."""
    swap_margin: float | None = None
    """With swap: only where the two best scores of the first order differ by at most this, on the rubric's scale."""
    votes: int = 1
    """Samples per judgement, at a temperature above 0. The most common outcome; the mean of lists and expectations."""
    schedule: Schedule = "all"
    """Which pairs of a group are compared by a format for two: "all", "ring", "anchor" or "swiss"."""
    budget: int | None = None
    """The most comparisons per group; None for the schedule's own number."""
    chunk: int = 8
    """The most candidates in one list, 2 to 8; larger groups come in chunks that share one candidate."""
    cache: str | None = None
    """The file of judge replies; None is one file per user, "off" is none."""
    device: str | None = None
    """For the transformers engine: "cpu", "cuda", ...; None is the CPU for the embedded judge, else what there is."""
    gpu_memory_utilization: float = 0.3
    """For in-process vLLM: its share of the device's memory, 0 to 1; modest, because a trainer lives beside it."""
    why: str = dataclasses.field(default="", compare=False)
    """How the model and engine were chosen, for the log."""

    @classmethod
    def resolve(
        cls,
        given: Mapping[str, object] | None = None,
        environ: Mapping[str, str] | None = None,
        gpu: Callable[[], bool] | None = None,
    ) -> JudgeConfig:
        """The judge to use here. Loads nothing.

        Args:
            given: explicit arguments, named as in `JudgeOptions`.
            environ: by default the process's environment.
            gpu: whether in-process vLLM can run on a CUDA device; by default it looks, which imports torch.

        Raises:
            ConfigError: an unknown name, a wrong type or a contradiction; the message says where it came from.
        """
        environ = os.environ if environ is None else environ
        settings = _layered(_from_file(environ), _from_environment(environ), checked(given or {}))
        settings |= _chosen(settings, gpu or has_gpu_engine)
        embedded = settings["model"] == NANO
        settings.setdefault("prompts", "nano" if embedded else "flex")
        settings.setdefault("max_tokens", 256 if embedded else 4096)
        config = cls(**settings)
        config._check_extras()
        return config

    def build(self, processes: int | None = None) -> Judge:
        """The judge, behind its cache. The model loads at the first use.

        Args:
            processes: how many training processes there are; by default it asks the environment and torch.

        Raises:
            ConfigError: one large judge per training process, or an unknown rubric, wording or key variable.
        """
        from flexjudge_reward.engines.cache.engine import CachedEngine

        count = training_processes() if processes is None else processes
        if count > 1 and self.engine != "server" and not _is_small(self.model):
            raise ConfigError(self._one_per_rank(count))
        judge_format = self._format()
        sampling = Sampling(temperature=self.temperature, max_tokens=self.max_tokens, seed=self.seed)
        engine = self._engine()
        if self.cache != OFF:
            engine = CachedEngine(engine, self.cache)
        return Judge(judge_format, engine, sampling)

    def _format(self) -> AnyFormat:
        plain = FORMATS[self.format](self.rubric, self.prompts)
        found: AnyFormat = Expected(plain) if self.expected else plain  # type: ignore[arg-type]
        if self.force_tokens:
            found = Forced(found, self.force_tokens)
        if self.swap:
            found = Swapped(found, self.swap_margin)
        if self.votes != 1:
            found = Votes(found, self.votes, "mean" if self.expected or self.format == "listwise" else "majority")
        return found

    def _check_extras(self) -> None:
        """Refuses extras of a judgement that contradict the format or each other."""
        compares = self.format in ("pair", "relation")
        if self.swap_margin is not None and not self.swap:
            raise ConfigError("swap_margin says where to swap, and nothing is swapped: set swap=True with it")
        if self.swap_margin is not None and self.format in ("choice", "relation") and not self.expected:
            raise ConfigError(f"swap_margin is for scores: a {self.format} has none, so every margin would be the same")
        if self.votes > 1 and self.temperature == 0:
            raise ConfigError(
                f"{self.votes} votes at temperature 0 are one vote: set temperature with votes, such as 1.0"
            )
        if self.chunk != 8 and self.format != "listwise":
            raise ConfigError(f"chunk is for lists, and format is {self.format!r}: set format='listwise'")
        if (self.schedule != "all" or self.budget is not None) and not compares:
            raise ConfigError(
                f"schedule and budget are for comparisons, and format is {self.format!r}: set format='pair'"
            )

    def describe(self) -> str:
        """One line for the log: what judges, why, and how to change it."""
        where = f" at {self.base_url}" if self.base_url else ""
        return (
            f"The judge is {self.model or 'the served model'} on {self.engine}{where} ({self.why}). To change it: the"
            f" arguments model=, engine= or base_url=, or {_PREFIX}MODEL, {_PREFIX}BASE_URL, {_PREFIX}CONFIG"
        )

    def announce(self) -> None:
        """Logs `describe` once per call: INFO, or WARNING where the embedded judge is only a stopgap."""
        _log.log(logging.WARNING if self.why == _FALLBACK else logging.INFO, self.describe())

    def _engine(self) -> Engine:
        if self.engine == "server":
            from flexjudge_reward.engines.server import ServerEngine

            return ServerEngine(str(self.base_url), model=self.model, api_key=self._api_key())
        if self.engine == "vllm":
            from flexjudge_reward.engines.vllm import VLLMEngine

            share = self.gpu_memory_utilization
            return VLLMEngine(str(self.model), revision=self.revision, gpu_memory_utilization=share)
        from flexjudge_reward.engines.transformers import TransformersEngine

        device = self.device or ("cpu" if self.model == NANO else None)
        return TransformersEngine(str(self.model), revision=self.revision, device=device)

    def _api_key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env)
        if not key:
            raise ConfigError(f"api_key_env names the environment variable {self.api_key_env!r}, which is not set")
        return key

    def _one_per_rank(self, count: int) -> str:
        revision = f" --revision {self.revision}" if self.revision else ""
        return (
            f"there are {count} training processes and no judge server, so each would load its own copy of"
            f" {self.model}. Start one server instead, on a device of its own:\n\n"
            f"    vllm serve {self.model}{revision} --port 8001\n\n"
            f"and give every process its address: base_url='http://HOST:8001/v1' or {_PREFIX}BASE_URL"
        )


_FALLBACK = (
    "no model was named and there is no CUDA device with vLLM, so the embedded judge stands in;"
    " it knows pictures of coloured shapes and nothing else"
)


def checked(given: Mapping[str, object], where: str = "") -> dict[str, Any]:
    """The settings that are not None, with their names, types and closed lists checked.

    Raises:
        ConfigError: an unknown name or a wrong value; `where` says where it came from.
    """
    known = JudgeOptions.__annotations__
    settings = {}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"{where}unknown judge setting {name!r}; known are {', '.join(known)}")
        if value is not None:
            settings[name] = _typed(name, value, where)
    return settings


def has_gpu_engine() -> bool:
    """Whether vLLM is installed and a CUDA device is here. Imports torch if vLLM is installed."""
    if importlib.util.find_spec("vllm") is None or importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def training_processes() -> int:
    """How many processes train together: WORLD_SIZE, or what torch.distributed knows if it is initialised."""
    size = os.environ.get("WORLD_SIZE", "")
    count = int(size) if size.isdecimal() else 1
    # Without the import: a process that has not imported torch has not initialised it either.
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        count = max(count, torch.distributed.get_world_size())
    return count


def _layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """The layers merged, later ones winning; naming an in-process judge also drops a server address from below."""
    settings: dict[str, Any] = {}
    for layer in layers:
        in_process = layer.get("engine", "server") != "server" or layer.get("model") == NANO
        if in_process and "base_url" not in layer:
            settings.pop("base_url", None)
        if "base_url" in layer and "engine" not in layer:
            settings.pop("engine", None)
        settings |= layer
    return settings


def _chosen(settings: Mapping[str, Any], gpu: Callable[[], bool]) -> dict[str, Any]:
    """The model and the engine, and why."""
    model, engine, url = settings.get("model"), settings.get("engine"), settings.get("base_url")
    if url and engine not in (None, "server"):
        raise ConfigError(f"base_url={url!r} asks for a server but engine={engine!r}; give one of the two")
    if engine == "server" and not url:
        raise ConfigError(f"engine='server' needs its address: base_url='http://HOST:8001/v1' or {_PREFIX}BASE_URL")
    if url:
        return {"model": model, "engine": "server", "why": "a server address was given"}
    if model is None and engine is None:
        if gpu():
            return {"model": LARGE, "engine": "vllm", "why": "a CUDA device and vLLM are here"}
        return {"model": NANO, "engine": "transformers", "why": _FALLBACK}
    if model is None:
        return {"model": LARGE if engine == "vllm" else NANO, "engine": engine, "why": "the engine was named"}
    if engine is None:
        engine = "vllm" if model != NANO and gpu() else "transformers"
    return {"model": model, "engine": engine, "why": "the model was named"}


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if variable.startswith(_PREFIX) and variable not in _NO_SETTINGS and text != "":
            name = variable.removeprefix(_PREFIX).lower()
            values |= checked({name: _number(name, text, variable)}, f"environment variable {variable}: ")
    return values


def _number(name: str, text: str, variable: str) -> Any:
    if name in _SWITCHES:
        return {"1": True, "true": True, "0": False, "false": False}.get(text.lower(), text)
    kind = _NUMBERS.get(name, str)
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"environment variable {variable}: expected a number, found {text!r}") from None


def _from_file(environ: Mapping[str, str]) -> dict[str, Any]:
    source = environ.get(_PREFIX + "CONFIG")
    if not source:
        return {}
    try:
        return checked(tomllib.loads(Path(source).read_text("utf-8")), f"{source}: ")
    except OSError as error:
        raise ConfigError(f"{_PREFIX}CONFIG names {source!r}, which cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None


def _typed(name: str, value: Any, where: str) -> Any:
    if name in _NUMBERS:
        whole = _NUMBERS[name] is int
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            kind = "a whole number" if whole else "a number"
            raise ConfigError(f"{where}{name!r} must be {kind}, found {value!r}")
        return value if whole else float(value)
    if name in _SWITCHES:
        if not isinstance(value, bool):
            raise ConfigError(f"{where}{name!r} must be true or false, found {value!r}")
        return value
    if name == "rubric" and isinstance(value, Rubric):
        return value
    if not isinstance(value, str | Path) or not str(value):
        raise ConfigError(f"{where}{name!r} must be a text, found {value!r}")
    allowed = {"engine": get_args(EngineName), "format": tuple(FORMATS), "schedule": get_args(Schedule)}.get(name)
    if allowed and value not in allowed:
        raise ConfigError(f"{where}{name!r} must be one of {', '.join(allowed)}, found {value!r}")
    return str(value)


def _is_small(model: str | None) -> bool:
    """Whether a copy per training process is fine: the embedded judge, or a folder with little weight in it."""
    if model == NANO:
        return True
    folder = Path(model or "")
    weights = [file.stat().st_size for file in folder.glob("*.safetensors")] if model and folder.is_dir() else []
    return bool(weights) and sum(weights) < _SMALL_BYTES
