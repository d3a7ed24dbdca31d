"""TransformersEngine: a judge on plain batched `generate`, on a CPU or an accelerator. Needs no vLLM and no server.

Prompts of similar length share a batch; a batch that does not fit the memory is halved, down to one prompt, which then
fails alone. Text and pictures need no torchvision (clips do: transformers' video processors are made of it).

Decoding is greedy, or drawn with a generator per prompt, so that a prompt's draw depends on its own seed and not on its
batch-mates. Not promised: bitwise equal logits between batches of different size, because matrix kernels do not.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flexjudge_reward.engines import torchvision_mend
from flexjudge_reward.engines.model import Chat, Source, check_trust, takes
from flexjudge_reward.errors import EngineError, MediaError, MissingExtra
from flexjudge_reward.media.base import MediaKind
from flexjudge_reward.types import Generation, Prompt, Sampling

if TYPE_CHECKING:
    from flexjudge_reward.engines.decode import Decoder

_LOG = logging.getLogger(__name__)
_CLOSE_S = 10.0  # how long closing waits for a judgement that is running


class TransformersEngine:
    """`transformers` in this process. Cheap to build: the model loads at the first `generate`."""

    _source: Source | None
    _decoder: Decoder | None

    def __init__(
        self,
        model: str = "nano",
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int = 64,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """
        Args:
            model: "nano" for the embedded judge, a folder, or a Hub id.
            revision: branch, tag or commit of a Hub model; the commit it stands for is part of every cache key.
            dtype: "auto" (as the checkpoint says), "float32", "bfloat16" or "float16".
            device: such as "cpu" or "cuda:1"; None takes the first CUDA device, else the CPU.
            batch_size: the most prompts in one batch.
            min_pixels, max_pixels: pictures are scaled into this range; None takes the model's own.
            trust_remote_code: run code that comes with the model; needs `revision` pinned to a commit.

        Raises:
            ConfigError: trust_remote_code without a pinned revision.
        """
        check_trust(model, revision, trust_remote_code)
        self.model, self.revision, self.dtype, self.device = model, revision, dtype, device
        self.batch_size, self.trust_remote_code = max(1, batch_size), trust_remote_code
        self.pixels = {
            name: value for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)) if value is not None
        }
        self._reset()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """One reply per prompt, in order; a prompt that cannot be served is a failure of its own.

        Raises:
            MissingExtra: torch or transformers is not installed.
            EngineError: the model cannot be loaded.
        """
        if not prompts:
            return []
        with self._lock:
            decoder = self._loaded()
            results: dict[int, Generation] = {}
            texts: dict[int, str] = {}
            for index, prompt in enumerate(prompts):
                rendered = _rendered(decoder.chat, prompt)
                if isinstance(rendered, Generation):
                    results[index] = rendered
                else:
                    texts[index] = rendered
            # Media make a prompt longer than its text: prompts share a batch with those of as many.
            seen = {index: len(prompts[index].seen) for index in texts}
            order = sorted(texts, key=lambda index: (seen[index], len(texts[index])))
            while order:
                alike = [i for i in order[: self._fits] if seen[i] == seen[order[0]]]
                results.update(self._batch(decoder, alike, texts, prompts, sampling))
                order = order[len(alike) :]
            return [results[index] for index in range(len(prompts))]

    def identity(self) -> dict[str, object]:
        """Model and version, dtype, template and limits. Loads no weights.

        Raises:
            EngineError: there is no such model.
        """
        with self._lock:
            return {
                "engine": "transformers",
                "version": _version(),
                **self._find().identity(),
                "dtype": self.dtype,
                "min_pixels": self.pixels.get("min_pixels"),
                "max_pixels": self.pixels.get("max_pixels"),
            }

    def takes(self, kind: MediaKind) -> bool:
        """Whether the model can be shown media of this kind, "image" or "video". Loads no weights.

        Raises:
            EngineError: there is no such model.
        """
        with self._lock:
            return takes(self._find(), kind)

    def close(self) -> None:
        """Frees the model. A later `generate` loads it anew."""
        mine = self._lock.acquire(timeout=_CLOSE_S)  # a judgement that hangs in another thread may hold it for ever
        if not mine:
            return
        try:
            if self._decoder is not None:
                self._decoder = None
                torch = sys.modules["torch"]
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        finally:
            self._lock.release()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._source = self._decoder = None
        self._fits = self.batch_size  # the largest batch that is tried

    def _find(self) -> Source:
        if self._source is None:
            self._source = Source.find(self.model, self.revision, self.trust_remote_code)
        return self._source

    def _loaded(self) -> Decoder:
        if self._decoder is None:
            try:
                import torch  # noqa: F401
            except ImportError:
                raise MissingExtra("torch", "transformers") from None
            torchvision_mend.mend()
            from flexjudge_reward.engines.decode import Decoder

            source = self._find()
            source.require_weights()
            try:
                self._decoder = Decoder.load(source, self.dtype, self.device, self.pixels)
            except (OSError, ValueError, RuntimeError, ImportError) as error:
                raise EngineError(f"{source.model} cannot be loaded: {type(error).__name__}: {error}") from error
        return self._decoder

    def _batch(
        self, decoder: Decoder, batch: list[int], texts: dict[int, str], prompts: Sequence[Prompt], sampling: Sampling
    ) -> dict[int, Generation]:
        """The replies to one batch; halved where it fails, so that a failure stays with its own prompt."""
        try:
            replies = decoder.reply([texts[i] for i in batch], [prompts[i] for i in batch], sampling)
            return dict(zip(batch, replies, strict=True))
        except Exception as error:  # a model's own code may raise anything
            if len(batch) == 1:
                return {batch[0]: Generation.failed("engine", f"{type(error).__name__}: {error}")}
            half = len(batch) // 2
            if _out_of_memory(error):
                self._fits = min(self._fits, half)
            _LOG.info("a batch of %d failed (%s), halving it", len(batch), type(error).__name__)
        return {
            **self._batch(decoder, batch[:half], texts, prompts, sampling),
            **self._batch(decoder, batch[half:], texts, prompts, sampling),
        }

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("transformers")
    except metadata.PackageNotFoundError:
        raise MissingExtra("transformers", "transformers") from None


def _rendered(chat: Chat, prompt: Prompt) -> str | Generation:
    """The prompt as chat text; a failure if it or its media cannot be used."""
    try:
        for media in prompt.media:
            media.load()
        return chat.render(prompt)
    except MediaError as error:
        return Generation.failed("media", str(error))
    except ValueError as error:
        return Generation.failed("engine", str(error))


def _out_of_memory(error: Exception) -> bool:
    torch = sys.modules["torch"]
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return True
    return "can't allocate memory" in str(error)  # how torch says it on a CPU
