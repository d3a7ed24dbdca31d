"""Which judge to use: one frozen, picklable value, found from arguments, environment, file and machine (`settings.py`).

With neither a model nor a server given, the machine decides: a CUDA device and vLLM run Flex-VL-7B in process, any
other machine the embedded judge. A server's key is no setting: FLEXJUDGE_API_KEY holds it, or the variable that
`api_key_env` names.

`resolve` only reads; `build` makes the judge, whose model still loads at its first use. In a distributed run every rank
would load its own copy of an in-process judge, so `build` refuses that for a large model and prints the `vllm serve`
command to run instead.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flexjudge_reward.data.completion import Completion
from flexjudge_reward.engines import server, transformers, vendor, vllm
from flexjudge_reward.engines.base import Engine
from flexjudge_reward.engines.cache.engine import MAX_BYTES, CachedEngine
from flexjudge_reward.engines.colocated import ColocatedEngine
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.base import Format
from flexjudge_reward.formats.budget import BudgetForcing
from flexjudge_reward.formats.builtin import FORMATS
from flexjudge_reward.formats.checklist import Checklist
from flexjudge_reward.formats.commit import CommitFirst
from flexjudge_reward.formats.confident import MinConfidence
from flexjudge_reward.formats.expected import ExpectedScore
from flexjudge_reward.formats.groups import for_group_size
from flexjudge_reward.formats.onecall import OneCall
from flexjudge_reward.formats.pairings import Schedule
from flexjudge_reward.formats.swap import PositionSwap
from flexjudge_reward.formats.votes import MajorityVote
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.machine import has_gpu_engine, is_small, training_processes
from flexjudge_reward.judge.plugins import imported
from flexjudge_reward.judge.record import Record, RecordMedia
from flexjudge_reward.judge.rewards import OnCandidateFailure, OnFailure
from flexjudge_reward.judge.settings import PREFIX, Given, Setting, as_object, checked, collect, setting, settings_of
from flexjudge_reward.judge.trainer_settings import TrainerConfig
from flexjudge_reward.media.image import ImageFormat
from flexjudge_reward.nano import JUDGES
from flexjudge_reward.prompts.template import own_prompt_set
from flexjudge_reward.rubric import Rubric
from flexjudge_reward.types import Sampling

NANO, LARGE, OFF = "nano", "jongwooko/Flex-VL-7B", "off"
_OTHER_WORDS = (
    "the judge %s is asked in other words (format %s, prompt_set %s) than those that it was trained with, which are in"
    " %s: leave out prompt_set to use these"
)
_log = logging.getLogger("flexjudge_reward")


@dataclass(frozen=True)
class JudgeConfig:
    """Every setting of a judge. `resolve` fills in what the machine decides."""

    model: str | None = setting(None, "a Hub id, a folder, nano or nano-omni (embedded); a server's model by default")
    engine: Literal["vllm", "server", "transformers", "vendor"] | None = setting(None, "what runs the model")
    base_url: str | None = setting(None, "an OpenAI-compatible server, such as http://localhost:8000/v1")
    api_key_env: str | None = setting(None, "the NAME of the variable with the server's key, not the key")
    headers: str | Mapping | None = setting(  # type: ignore[type-arg]
        None, 'of every request, as JSON such as {"api-key": "$NAME"}, where $NAME is an environment variable'
    )
    extra_body: str | Mapping | None = setting(None, "further fields of every request, as JSON")  # type: ignore[type-arg]
    concurrency: int = setting(64, "the most requests to a server at once, of all processes of this machine", low=1)
    timeout: float = setting(300.0, "seconds for one attempt of one request to a server", low=0.001)
    max_attempts: int = setting(8, "how often a request is sent where the trouble may pass", low=1)
    image_format: ImageFormat = setting("auto", "how images are sent: auto keeps JPEG and is lossless for all others")
    max_pixels: int | None = setting(None, "larger images are made smaller for the judge", low=1)
    tokenizer: str | None = setting(None, "folder or Hub id of a served judge's tokenizer, for its control tokens")
    revision: str | None = setting(None, "branch, tag or commit of a Hub model")
    format: str | Format = setting("pointwise", f"how to ask: {', '.join(FORMATS)}, or module:Class or file.py:Class")
    rubric: str | Rubric = setting("helpfulness", "criteria and scale: a built-in name or a TOML file")
    prompt_set: str | None = setting(None, "the texts to ask in: flex, nano, a folder, a file; else the judge's own")
    criteria_per_call: int | None = setting(None, "of a checklist, how many one call answers; by default all", low=1)
    commit_first: bool = setting(False, "the judge answers the question itself before it sees the candidates")
    temperature: float = setting(0.0, "of sampling, 0 to 2", 0, 2)
    max_tokens: int | None = setting(None, "longest reply, reasoning included; 4096, for nano 256", low=1)
    seed: int = setting(0, "of sampling, of ties, and of the pairs and orders within a group")
    answer_tokens: int = setting(64, "budget forcing: tokens to answer after cut reasoning; 0 lets it fail", low=0)
    expected_score: bool = setting(False, "probability-weighted scores; needs log probabilities")
    position_swap: bool = setting(False, "judge in both orders; a winner counts only if both name it")
    swap_margin: float | None = setting(None, "swap only where the two best scores differ by at most this", low=0)
    votes: int = setting(1, "samples per judgement; needs a temperature above 0", low=1)
    min_confidence: float = setting(0.0, "a judgement less sure than this, 0 to 1, fails; needs several answers", 0, 1)
    schedule: Schedule = setting("all", "which pairs of a group a format for two compares")
    budget: int | None = setting(None, "the most comparisons per group", low=1)
    chunk: int = setting(8, "the most candidates in one list, 2 to 8", 2, 8)
    cache: str | None = setting(None, "the file of judge replies, or off; by default one per user")
    cache_bytes: int = setting(MAX_BYTES, "the most bytes of that file; then the oldest replies go", low=1 << 20)
    record: str | None = setting(None, "a JSONL file that notes every judgement")
    record_media: RecordMedia = setting("thumbnails", "beside the record; rejudge needs whole ones, of every frame")
    device: str | None = setting(None, "of the transformers engine: cpu, cuda, ...")
    gpu_memory_utilization: float = setting(0.3, "of in-process vLLM, up to 1; modest: a trainer is beside it", 0.01, 1)
    colocate: bool = setting(False, "the judge on the trainer's GPU, in a process that sleeps while the policy works")
    plugins: str | None = setting(None, "modules or .py files to import first, separated by commas, such as a modality")
    why: str = field(default="", compare=False)
    """How the model and the engine were chosen, for the log."""

    @classmethod
    def resolve(
        cls,
        given: Mapping[str, object] | None = None,
        environ: Mapping[str, str] | None = None,
        gpu: Callable[[], bool] | None = None,
        name: str = "",
    ) -> JudgeConfig:
        """The judge to use here. Loads nothing but `plugins`.

        Args:
            given: explicit arguments: the fields of this class. None means "not given".
            environ: by default the process's environment.
            gpu: whether in-process vLLM can run on a CUDA device; by default it looks, which imports torch.
            name: of a judge with settings of its own (`settings.py`).

        Raises:
            ConfigError: an unknown name, a wrong value or a contradiction; the message says where it came from.
        """
        found = _merged(_layers(cls, given, environ, name))
        values: dict[str, Any] = {name: one.value for name, one in found.items()}
        values |= _chosen(found, gpu or has_gpu_engine)
        embedded = values["model"] in JUDGES
        values.setdefault("prompt_set", NANO if embedded else str(own_prompt_set(values["model"]) or "flex"))
        values.setdefault("max_tokens", 256 if embedded else 4096)
        config = cls(**values)
        for name in filter(None, (config.plugins or "").split(",")):
            imported(name.strip())
        for first, second, why in config._contradictions(found):
            raise ConfigError(f"{why} ({_places(found, first, second)})")
        return config

    def build(self, processes: int | None = None) -> Judge:
        """The judge, for groups of any size, behind its cache. The model loads at the first use.

        Args:
            processes: how many training processes there are; by default it asks the environment and torch.

        Raises:
            ConfigError: one large judge per training process, a wrong cache, rubric, prompt set or key variable.
        """
        count = training_processes() if processes is None else processes
        apart = self.engine in ("server", "vendor") or self.colocate  # that one plans the memory of all ranks itself
        if count > 1 and not apart and self.model not in JUDGES and not is_small(self.model):
            revision = f" --revision {self.revision}" if self.revision else ""
            raise ConfigError(
                f"there are {count} training processes and no judge server, so each would load its own copy of"
                f" {self.model}. Start one server instead, on a device of its own:\n\n"
                f"    vllm serve {self.model}{revision} --port 8001\n\n"
                f"and give every process its address: base_url='http://HOST:8001/v1' or {PREFIX}BASE_URL"
            )
        format = for_group_size(self._format(), self.schedule, self.budget, self.chunk, self.seed)
        sampling = Sampling(temperature=self.temperature, max_tokens=self.max_tokens or 4096, seed=self.seed)
        if self.cache not in (None, OFF) and os.path.isdir(os.path.expanduser(self.cache or "")):
            raise ConfigError(f"the cache {self.cache!r} is a folder: give a file in it, such as judge.sqlite, or off")
        engine = self._engine() if self.cache == OFF else CachedEngine(self._engine(), self.cache, self.cache_bytes)
        record = None if self.record is None else Record(self.record, self.record_media)
        return Judge(format, engine, sampling, record)

    def describe(self) -> str:
        """One line for the log: what judges, why, and how to change it."""
        where = f" at {self.base_url}" if self.base_url else ""
        return (
            f"The judge is {self.model or 'the served model'} on {self.engine}{where} ({self.why}). To change it: the"
            f" arguments model=, engine= or base_url=, or {PREFIX}MODEL, {PREFIX}BASE_URL, {PREFIX}CONFIG"
        )

    def announce(self) -> None:
        """Logs `describe`: INFO, or WARNING where the embedded judge is only a stopgap."""
        _log.log(logging.WARNING if self.why == _FALLBACK else logging.INFO, self.describe())

    def _plain_format(self) -> Format | type[Format]:
        if isinstance(self.format, Format):
            return self.format
        if self.format in FORMATS:
            return FORMATS[self.format]
        module, colon, name = self.format.rpartition(":")
        custom = getattr(imported(module), name, None) if colon else None
        if isinstance(custom, Format) or (isinstance(custom, type) and issubclass(custom, Format)):
            return custom
        known = ", ".join(FORMATS)
        raise ConfigError(
            f"format must be one of {known}, or module:Class or file.py:Class of a Format, found {self.format!r}"
        )

    def _format(self) -> Format:
        plain = self._plain_format()
        if isinstance(plain, type):
            criteria = {"per_call": self.criteria_per_call} if issubclass(plain, Checklist) else {}
            words = self.prompt_set or "flex"
            plain = plain(self.rubric, words, **criteria) if issubclass(plain, OneCall) else plain()
        own = None if self.model in JUDGES else own_prompt_set(self.model)
        if isinstance(plain, OneCall) and own and not plain.template.is_of(own, plain.name):
            _log.warning(_OTHER_WORDS, self.model, plain.name, self.prompt_set, own)
        format: Format = ExpectedScore(plain) if self.expected_score else plain  # type: ignore[arg-type]
        if self.commit_first:
            format = CommitFirst(format, self.prompt_set or "flex")
        if self.answer_tokens:
            format = BudgetForcing(format, self.answer_tokens)
        if self.position_swap:
            format = PositionSwap(format, self.swap_margin)
        if self.votes != 1:
            listwise = plain.max_candidates > 2 and plain.answers == "numbers"
            format = MajorityVote(format, self.votes, "mean" if self.expected_score or listwise else "majority")
        return MinConfidence(format, self.min_confidence) if self.min_confidence else format

    def _contradictions(self, given: Collection[str]) -> Iterator[tuple[str, str, str]]:
        """Pairs of settings that exclude each other, or where one makes the other useless; and why."""
        for option, engines in _ENGINES_OF.items():
            if option in given and self.engine not in engines and getattr(self, option) is not False:
                chosen = "base_url" if self.engine == "server" else "engine"
                yield option, chosen, f"{option} is for the engine {' or '.join(engines)}, and this is {self.engine}"
        format = self._plain_format()
        name = self.format if isinstance(self.format, str) else format.name
        found, numbers, most = f"and format is {name!r}", format.answers == "numbers", format.max_candidates
        if self.position_swap and most == 1:
            yield "position_swap", "format", f"position_swap needs two or more candidates, {found}"
        if self.expected_score and format.answers == "option":
            yield "expected_score", "format", f"expected_score needs numbers or a letter as answer, {found}"
        if self.swap_margin is not None and not self.position_swap:
            why = "swap_margin says where to swap, and nothing is swapped: set position_swap=True with it"
            yield "swap_margin", "position_swap", why
        if self.swap_margin is not None and not numbers and not self.expected_score:
            yield "swap_margin", "format", f"swap_margin needs scores, {found}: every margin would be the same"
        if self.criteria_per_call is not None and format.name != Checklist.name:
            yield "criteria_per_call", "format", f"criteria_per_call is for checklists, {found}: set format='checklist'"
        if self.votes > 1 and self.temperature == 0:
            why = f"{self.votes} votes at temperature 0 are one vote: set temperature, such as 1.0"
            yield "votes", "temperature", why
        if self.min_confidence and not (self.votes > 1 or self.expected_score or self.position_swap):
            why = "min_confidence needs to know how sure the judge is: set votes, expected_score or position_swap"
            yield "min_confidence", "votes", why
        if self.chunk != 8 and not (numbers and 2 < most < float("inf")):
            yield "chunk", "format", f"chunk is for lists, {found}: set format='listwise'"
        for option, is_set in (("schedule", self.schedule != "all"), ("budget", self.budget is not None)):
            if is_set and most != 2:
                yield option, "format", f"{option} is for pairs, {found}: set format='pairwise'"

    def _engine(self) -> Engine:
        if self.engine == "server":
            key = os.environ.get(self.api_key_env) if self.api_key_env else None
            if self.api_key_env and not key:
                raise ConfigError(f"api_key_env names the environment variable {self.api_key_env!r}, which is not set")
            return server.ServerEngine(
                str(self.base_url),
                self.model,
                key,
                concurrency=self.concurrency,
                timeout=self.timeout,
                stall_timeout=1.1 * self.timeout,
                max_attempts=self.max_attempts,
                tokenizer=self.tokenizer,
                extra_body=as_object("extra_body", self.extra_body),
                headers=as_object("headers", self.headers),
                max_pixels=self.max_pixels,
                image_format=self.image_format,
            )
        if self.engine == "vendor":
            limits: dict[str, Any] = {"timeout": self.timeout, "max_attempts": self.max_attempts}
            return vendor.VendorEngine(str(self.model), api_base=self.base_url, concurrency=self.concurrency, **limits)
        local: dict[str, Any] = {"revision": self.revision, "max_pixels": self.max_pixels}
        if self.engine == "vllm":
            engine = ColocatedEngine if self.colocate else vllm.VLLMEngine
            return engine(str(self.model), gpu_memory_utilization=self.gpu_memory_utilization, **local)
        device = self.device or ("cpu" if self.model in JUDGES else None)
        return transformers.TransformersEngine(str(self.model), device=device, **local)


@dataclass(frozen=True)
class RewardConfig:
    """Every setting of a reward: what a trainer gets, and which columns of its rows the judge sees."""

    on_failure: OnFailure = setting("group_mean", "what a failed judgement gives: its siblings' mean, None, error")
    on_candidate_failure: OnCandidateFailure = setting("lowest", "if the candidate caused it: lowest, mean, None")
    max_failure_rate: float = setting(0.05, "share of failed judgements above which the run stops, 0 to 1", 0, 1)
    prompt_price: float = setting(0.0, "per million tokens that the judge reads, in any currency", low=0)
    completion_price: float = setting(0.0, "per million tokens that the judge writes", low=0)
    max_cost: float | None = setting(None, "what judging may cost, by these prices; then the run stops", low=0)
    max_judge_tokens: int | None = setting(None, "how many tokens judging may take; then the run stops", low=1)
    probes: float = setting(0.02, "the share of the judge's tokens that go to answers of known worth; 0 for none", 0, 1)
    ignored_probes: str | None = setting(
        None, "kinds of probes that are not made, such as run_on,half; for all probes=0"
    )
    second_judge: str | None = setting(None, "the name of a judge that orders some rows, too, to see the first drift")
    on_alarm: Literal["warn", "stop"] = setting("warn", "what a trouble without an error does; of probes, at the judge")
    shrink: bool = setting(False, "scores that the judge is unsure of move toward their group's mean; needs groups")
    question_column: str | None = setting(None, "a column shown as the question instead of the prompt's text")
    reference_column: str | None = setting(None, "a column with a reference answer")
    rubric_column: str | None = setting(None, "a column with a row's own criteria")
    ignored_columns: str | None = setting(None, "columns with media that are not for the judge, separated by commas")
    media_root: str | None = setting(None, "the folder below which media files may be read; without one, none is")
    completion: Completion = setting("answer", "what is judged: the answer after the policy's own reasoning, or all")
    num_generations: int | None = setting(None, "the trainer's group size; by default what the rows show", low=1)
    deadline: float = setting(
        1200.0, "seconds after which a rank gives up; below the trainer's ddp_timeout", 0.001, math.inf
    )
    reward_server: str | None = setting(None, "a `flexjudge serve` that judges instead of this process")

    def __post_init__(self) -> None:
        checked(KNOWN_SETTINGS, vars(self))
        if self.max_cost is not None and not self.prompt_price + self.completion_price:
            raise ConfigError("max_cost needs a price: set prompt_price and completion_price, per million tokens")

    @classmethod
    def resolve(
        cls, given: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None, name: str = ""
    ) -> RewardConfig:
        """The reward's settings. Takes its arguments and raises ConfigError as `JudgeConfig.resolve`."""
        layers = _layers(cls, given, environ, name)
        return cls(**{setting: one.value for layer in layers for setting, one in layer.items()})


def trainer_config(given: Mapping[str, object] | None = None) -> TrainerConfig:
    """The settings of one trainer or of the server. Raises ConfigError as `JudgeConfig.resolve`."""
    layers = _layers(TrainerConfig, given, None, "")
    return TrainerConfig(**{name: one.value for layer in layers for name, one in layer.items()})


KNOWN_SETTINGS: dict[str, Setting] = settings_of(JudgeConfig, RewardConfig, TrainerConfig)
"""All settings by name."""

_ENGINES_OF = {
    **dict.fromkeys(("base_url", "concurrency", "timeout", "max_attempts"), ("server", "vendor")),
    **dict.fromkeys(("headers", "extra_body", "image_format", "tokenizer", "api_key_env"), ("server",)),
    "revision": ("vllm", "transformers"),
    "device": ("transformers",),
    **dict.fromkeys(("gpu_memory_utilization", "colocate"), ("vllm",)),
}
"""The engines that a setting is for; those that are not here are for all."""

_FALLBACK = (
    "no model was named and there is no CUDA device with vLLM, so the embedded judge is used;"
    " it knows images of coloured shapes and nothing else"
)


def _layers(
    owner: type, given: Mapping[str, object] | None, environ: Mapping[str, str] | None, name: str
) -> list[dict[str, Given]]:
    """What file, environment and arguments say about the settings of `owner` and the judge `name`, weakest first."""
    layers = collect(KNOWN_SETTINGS, given or {}, os.environ if environ is None else environ, name)
    own = settings_of(owner)
    for argument, one in layers[-1].items():
        if argument not in own:
            other = next(one for one in (JudgeConfig, RewardConfig, TrainerConfig) if argument in settings_of(one))
            raise ConfigError(
                f"{one.where} belongs to {other.__name__}, not to {owner.__name__}: FlexJudgeReward takes both"
            )
    return [{setting: one for setting, one in layer.items() if setting in own} for layer in layers]


def _merged(layers: list[dict[str, Given]]) -> dict[str, Given]:
    """The layers merged, later ones winning. One that names an engine drops what those below say of other engines."""
    merged: dict[str, Given] = {}
    for layer in layers:
        values = {name: one.value for name, one in layer.items()}
        engine = values.get("engine", "server" if "base_url" in values else None)
        for name, engines in _ENGINES_OF.items():
            in_process = engine is None and values.get("model") in JUDGES  # by either engine
            if (engine and engine not in engines) or (in_process and "server" in engines):
                merged.pop(name, None)
        if engine == "server" and "engine" not in layer:
            merged.pop("engine", None)
        merged |= layer
    return merged


def _chosen(given: Mapping[str, Given], gpu: Callable[[], bool]) -> dict[str, Any]:
    """The model and the engine, and why."""
    names = ("model", "engine", "base_url", "colocate")
    model, engine, url, colocate = (given[name].value if name in given else None for name in names)
    engine = engine or ("vllm" if colocate else None)
    if engine == "server" and not url:
        address = f"base_url='http://HOST:8001/v1' or {PREFIX}BASE_URL"
        raise ConfigError(f"engine='server' ({_places(given, 'engine')}) needs its address: {address}")
    if url and engine in (None, "server"):
        return {"model": model, "engine": "server", "why": "a server address was given"}
    if model is not None or engine is not None:
        why = f"the {'engine' if model is None else 'model'} was named"
        model = model or (LARGE if engine == "vllm" else NANO)
        engine = engine or ("vllm" if model not in JUDGES and gpu() else "transformers")
        return {"model": model, "engine": engine, "why": why}
    if gpu():
        return {"model": LARGE, "engine": "vllm", "why": "a CUDA device and vLLM are here"}
    return {"model": NANO, "engine": "transformers", "why": _FALLBACK}


def _places(given: Mapping[str, Given], *names: str) -> str:
    """Where settings come from, such as "the argument votes and temperature by default"."""
    return " and ".join(given[name].where if name in given else f"{name} by default" for name in names)
