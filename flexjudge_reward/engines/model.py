"""Which model exactly, and what its prompts look like as text: shared by the engines that load a model themselves.

`Source` names the weights so that two different sets never share a name: a Hub model by its commit, a folder by a hash
of its content. `Chat` turns a `Prompt` into the model's own chat text. Nothing here loads weights.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from flexjudge_reward import nano
from flexjudge_reward.engines import torchvision_mend
from flexjudge_reward.engines.replies import THINKS
from flexjudge_reward.errors import EngineError, MissingExtra
from flexjudge_reward.media import audio
from flexjudge_reward.media.base import Media
from flexjudge_reward.prompts.quoting import flatten
from flexjudge_reward.types import Prompt

_PARTS = (".safetensors", ".json", ".jinja", ".txt", ".model", ".py")  # files that can change a reply
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # every model that sees has one
_PROBE = "probe-of-the-template"
_AS_DATA = re.compile(rf"""["']text\\?["']: ?\\?["']{_PROBE}""")  # a list of parts that was shown as it is written
THINKERS = {
    **dict.fromkeys(("qwen2_5_omni", "qwen2_5_omni_thinker"), "Qwen2_5OmniThinkerForConditionalGeneration"),
    **dict.fromkeys(("qwen3_omni_moe", "qwen3_omni_moe_thinker"), "Qwen3OmniMoeThinkerForConditionalGeneration"),
}
"""The half that reads and writes of models that also speak, by their model type: a class of `transformers`."""
MOLECULES = "flexjudge_mol"
"""The model type that reads molecule tokens (`engines/molecules/`)."""
_CUTTING = ("qwen2_5_omni", "qwen2_5_omni_thinker")  # whose processor drops the end of a long sound without a word


@dataclass(frozen=True)
class Source:
    """Where the weights are, and exactly which."""

    model: str
    """A folder, or a Hub id."""
    revision: str | None
    """The Hub commit; None for a folder."""
    trust_remote_code: bool
    name: str
    """In records and cards: the Hub id, the embedded judge's name, or the folder's own."""

    @classmethod
    def find(cls, model: str, revision: str | None, trust_remote_code: bool) -> Source:
        """The source of an embedded judge, a folder or a Hub id. Raises EngineError if there is none."""
        if model in nano.JUDGES:
            return cls(str(nano.path(nano.JUDGES[model])), None, trust_remote_code, model)
        if Path(model).is_dir():
            return cls(model, None, trust_remote_code, Path(model).name)
        config = _hub_file(model, "config.json", revision)
        if config is None:
            raise EngineError(f"no model {model!r}: the repository has no config.json")
        return cls(model, config.parent.name, trust_remote_code, model)  # .../snapshots/<commit>/config.json

    def file(self, name: str) -> Path | None:
        """One file of the model, fetched if need be; None if the model has no such file."""
        if self.revision is None:
            path = Path(self.model) / name
            return path if path.is_file() else None
        return _hub_file(self.model, name, self.revision)

    def identity(self) -> dict[str, object]:
        """Name and exact version, and the hash of the chat template."""
        version = {"revision": self.revision} if self.revision else {"weights": fingerprint(Path(self.model))}
        template = hashlib.sha256(self.template().encode()).hexdigest()
        return {"model": self.name, **version, "chat_template": template}

    def template(self) -> str:
        """The chat template: the processor's own, else the tokenizer's. Raises EngineError if there is none."""
        if jinja := self.file("chat_template.jinja"):
            return jinja.read_text("utf-8")
        for name in ("chat_template.json", "tokenizer_config.json"):
            path = self.file(name)
            try:
                template = json.loads(path.read_text("utf-8")).get("chat_template") if path else None
            except ValueError:
                raise EngineError(f"{path} of {self.name} is not valid JSON") from None
            if isinstance(template, list):  # several named templates
                template = {entry["name"]: entry["template"] for entry in template}.get("default")
            if template:
                return str(template)
        raise EngineError(f"{self.model} has no chat template: a judge must be a chat model")


@lru_cache(maxsize=16)
def supports(source: Source, modality: str) -> bool:
    """Whether the chat template names images, videos or audio, and the model has a processor for them.

    False is certain; whether the template also places them shows in the first prompt.
    """
    has = _ear(source) if modality == "audio" else any(source.file(name) for name in _PROCESSORS)
    return modality in source.template() and bool(has)


@lru_cache(maxsize=16)
def model_type(source: Source) -> str:
    """What `transformers` calls the architecture; empty if the model does not say it."""
    return str(_config(source, "config.json").get("model_type", ""))


def unheard(source: Source, prompt: Prompt) -> str:
    """Why the model does not hear a sound of the prompt whole; empty if it does. Raises MediaError."""
    longest = _ear(source).get("n_samples")
    if not isinstance(longest, int) or model_type(source) not in _CUTTING:
        return ""
    for media in prompt.shown:
        if media.kind == "audio" and (found := audio.seconds(media.samples())) > longest / audio.RATE:
            return f"a sound of {found:.1f} s is longer than the {longest / audio.RATE:g} s that {source.name} hears"
    return ""


@lru_cache(maxsize=16)
def _ear(source: Source) -> dict[str, Any]:
    """The settings of the model's feature extractor for sounds; empty if it has none."""
    for name in _PROCESSORS:
        found = _config(source, name)
        found = found.get("feature_extractor", found)
        if isinstance(found, dict) and found.get("feature_extractor_type"):
            return found
    return {}


def _config(source: Source, name: str) -> dict[str, Any]:
    path = source.file(name)
    try:
        found = json.loads(path.read_text("utf-8")) if path else {}
    except ValueError:
        raise EngineError(f"{path} of {source.name} is not valid JSON") from None
    return found if isinstance(found, dict) else {}


def fingerprint(folder: Path) -> str:
    """A hash over names, sizes and content of the files of `folder` that can change a reply, in hex."""
    files = sorted(path for path in folder.iterdir() if path.suffix in _PARTS and path.is_file())
    return _hashed(tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=16)
def _hashed(files: tuple[tuple[str, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for path, size, _ in files:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{Path(path).name}\n{size}\n{content}\n".encode())
    return whole.hexdigest()


@lru_cache(maxsize=64)  # the Hub's client would ask again for each file that is missing
def _hub_file(model: str, name: str, revision: str | None) -> Path | None:
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError:
        raise MissingExtra("transformers", "transformers") from None
    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except errors.LocalEntryNotFoundError:
        # Offline, the Hub's client cannot tell a missing file from one that was not downloaded.
        if name != "config.json":
            return None
        problem = "it is not in the local cache, and the Hub cannot be reached"
    except errors.EntryNotFoundError:
        return None
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        problem = str(error).strip().splitlines()[0]
    at = f" at revision {revision!r}" if revision else ""
    raise EngineError(
        f"no model {model!r}{at}: it is not a folder here, and {problem}. Give 'nano', a folder or a Hub id"
    ) from None


def load_tokenizer(source: Source) -> Any:
    """The model's tokenizer, of `transformers`. Raises MissingExtra or EngineError."""
    torchvision_mend.mend()
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtra("transformers", "transformers") from None
    try:
        return AutoTokenizer.from_pretrained(
            source.model, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise EngineError(f"the tokenizer of {source.model} cannot be loaded: {error}") from error


def added_tokens(tokenizer: Any) -> frozenset[str]:
    """Every added token, special or not: what text from outside must not hold."""
    return frozenset(tokenizer.get_added_vocab()) | frozenset(tokenizer.all_special_tokens)


class Chat:
    """Prompts as the model's own chat text, with the model's own media markers."""

    def __init__(self, tokenizer: Any, template: str) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.tokens = added_tokens(tokenizer)
        # Whether the template marks the first, and the second, media item of a kind.
        self._marked: dict[tuple[str, int], bool] = {}
        self._in_parts: dict[str, bool] = {}  # by role: whether a turn can be a list of parts

    def messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        """The turns as the template takes them: a system turn only where it shows one, parts only where it reads them.

        Raises ValueError if the prompt has media and the template takes text only.
        """
        prompt = prompt if self.keeps_system_turn else prompt.without_system_turn()
        turns = [(message.role, flatten(message, self.tokens)) for message in prompt.messages]
        return [{"role": role, "content": self._content(role, parts)} for role, parts in turns]

    def render(self, prompt: Prompt) -> str:
        """The whole prompt up to where the judge begins to write, or continues if the last message is its own.

        Raises ValueError if the prompt has media and the template takes text only, or the template refuses the prompt
        or leaves some of it out.
        """
        # Put behind the template, not through it: some templates drop the reasoning of an assistant's turn.
        own = prompt.messages[-1] if prompt.messages[-1].role == "assistant" else None
        asked = Prompt(prompt.messages[:-1]) if own else prompt
        begun = "".join(map(str, flatten(own, self.tokens))) if own else ""
        text = self._apply(self.messages(asked))
        # Some templates show one text of several, or one or none of the images: a score would not be of what was asked.
        flat = [part for message in asked.messages for part in flatten(message, self.tokens)]
        kinds = [part.kind for part in flat if isinstance(part, Media)]
        for part in flat:
            if part.strip() not in text if isinstance(part, str) else not self._shows(part.kind, kinds):
                left_out = f"the text {part.strip()[:40]!r}" if isinstance(part, str) else f"{part.kind}s"
                raise ValueError(f"the chat template of this model leaves out {left_out}")
        return text + begun

    def _shows(self, kind: str, kinds: Sequence[str]) -> bool:
        """Whether the template marks where media of a kind are, beside others of `kinds`."""
        count = min(kinds.count(kind), 2)
        if (kind, count) not in self._marked:
            text = {"type": "text", "text": _PROBE}
            parts = ([{"type": kind}] * number + [text] for number in (count - 1, count))
            fewer, shown = (self._apply([{"role": "user", "content": one}]) for one in parts)
            self._marked[kind, count] = fewer != shown
        return self._marked[kind, count]

    def takes_parts(self, role: str) -> bool:
        """Templates take the content of a turn as one text, as a list of parts, or both; only the list has media.

        Some differ by role, and show what they do not take as data: the list as Python or JSON writes it.
        """
        if role not in self._in_parts:
            own = {"role": role, "content": [{"type": "text", "text": _PROBE}]}
            user = {"role": "user", "content": self._content("user", ["user"])} if role != "user" else None
            try:
                shown = self._apply([own, user] if user else [own])
                self._in_parts[role] = _PROBE in shown and _AS_DATA.search(shown) is None
            except ValueError:
                self._in_parts[role] = False
        return self._in_parts[role]

    @cached_property
    def keeps_system_turn(self) -> bool:
        """Some templates refuse a system turn, and some drop it without a word."""
        try:
            turns = [{"role": role, "content": self._content(role, [role + _PROBE])} for role in ("system", "user")]
            return "system" + _PROBE in self._apply(turns)
        except ValueError:
            return False

    def findings(self) -> dict[str, object]:
        """What was found out about the template, for records."""
        return {"system_turn": self.keeps_system_turn, "content_parts": self.takes_parts("user")}

    @cached_property
    def special(self) -> frozenset[str]:
        """The tokens that decoding would skip."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return frozenset(token.content for token in added.values() if token.special)

    def _content(self, role: str, parts: Sequence[str | Media]) -> str | list[dict[str, str]]:
        if self.takes_parts(role):
            return [{"type": "text", "text": p} if isinstance(p, str) else {"type": p.kind} for p in parts]
        if any(isinstance(part, Media) for part in parts):
            raise ValueError("the chat template of this model takes text only, and the prompt has media")
        return "".join(str(part) for part in parts)

    def _apply(self, messages: list[dict[str, Any]]) -> str:
        from jinja2 import TemplateError

        options = {"chat_template": self.template, "tokenize": False, "add_generation_prompt": True}
        try:
            return str(self.tokenizer.apply_chat_template(messages, **options, **THINKS))
        # A template is a program.
        except (TemplateError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"the chat template of the model refuses the prompt: {error}") from error
