"""TransformersEngine: a judge on plain batched `generate`, on a CPU or an accelerator. Needs no vLLM and no server.

Prompts of similar length share a batch. A batch that does not fit the memory is halved, down to one prompt, which then
fails alone. Text, images and sounds need no torchvision; videos do, because transformers' video processors need it.

Decoding is greedy, or sampled with a generator per request, so that a reply depends on its own seed and not on its
batch. Not promised: bitwise equal logits between batches of different size, because matrix kernels do not promise it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flexjudge_reward.engines.local import LocalEngine, fails_one
from flexjudge_reward.engines.model import MOLECULES, THINKERS, model_type, unheard
from flexjudge_reward.errors import EngineError, MissingExtra
from flexjudge_reward.media.molecule import TOKENS
from flexjudge_reward.types import Generation, Request

if TYPE_CHECKING:
    from flexjudge_reward.engines.decode import Decoder

_LOG = logging.getLogger(__name__)


class TransformersEngine(LocalEngine):
    """`transformers` in this process. Cheap to build: the model loads at the first `generate`."""

    packages = ("transformers",)
    _decoder: Decoder | None = None
    _fits = sys.maxsize  # prompts in one batch, as far as the memory has shown

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
            model: "nano" or "nano-omni" for an embedded judge, a folder, or a Hub id.
            revision: branch, tag or commit of a Hub model; its commit is part of every cache key.
            dtype: "auto" (as the checkpoint says), "float32", "bfloat16" or "float16".
            device: such as "cpu" or "cuda:1"; None takes the first CUDA device, else the CPU.
            batch_size: the most prompts in one batch.
            min_pixels, max_pixels: images are scaled into this range; None takes the model's own.
            trust_remote_code: run code that comes with the model; needs `revision` pinned to a commit.

        Raises:
            ConfigError: trust_remote_code without a pinned revision.
        """
        self.device, self.batch_size = device, max(1, batch_size)
        super().__init__(model, revision, dtype, min_pixels, max_pixels, trust_remote_code)

    def supports(self, modality: str) -> bool:
        """As `LocalEngine.supports`; of models that hear, the Thinkers of Qwen2.5-Omni and Qwen3-Omni are loaded."""
        if modality == TOKENS:
            return model_type(self._source) == MOLECULES
        return super().supports(modality) and (modality != "audio" or model_type(self._source) in THINKERS)

    def findings(self) -> dict[str, object]:
        """As `Engine.findings`; empty before the first `generate`."""
        return {} if self._decoder is None else self._decoder.chat.findings()

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        """As `Engine.complete`. Raises MissingExtra, and EngineError if the model cannot be loaded."""
        with self._lock:
            decoder = self._loaded()
            results: dict[int, Generation] = {}
            texts: dict[int, str] = {}
            for index, request in enumerate(requests):
                if why := unheard(self._source, request.prompt):
                    results[index] = Generation.failed("media", why)
                    continue
                try:
                    texts[index] = decoder.chat.render(request.prompt)
                except ValueError as error:
                    results[index] = Generation.failed("refused", str(error))
            for batch in self._batches(texts, requests):
                results.update(self._run(decoder, batch, texts, requests))
            return [results[index] for index in range(len(requests))]

    def _batches(self, texts: dict[int, str], requests: Sequence[Request]) -> Iterator[list[int]]:
        """Requests of equal sampling and equally many media, of similar length."""
        # All but the seed of Sampling holds for a whole batch, and media make a prompt longer than its text.
        kinds = {i: (repr(requests[i].changed(seed=0).sampling), len(requests[i].prompt.media)) for i in texts}
        order = sorted(texts, key=lambda index: (kinds[index], len(texts[index])))
        while order:
            batch = [index for index in order[: min(self.batch_size, self._fits)] if kinds[index] == kinds[order[0]]]
            yield batch
            order = order[len(batch) :]

    def _release(self) -> None:
        if self._decoder is not None:
            self._decoder = None
            torch = sys.modules["torch"]
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _loaded(self) -> Decoder:
        if self._decoder is None:
            try:
                import torch  # noqa: F401
            except ImportError:
                raise MissingExtra("torch", "transformers") from None
            from flexjudge_reward.engines.decode import Decoder

            source = self._source
            try:
                self._decoder = Decoder(source, self.dtype, self.device, self.pixels)
            except (OSError, ValueError, RuntimeError, ImportError) as error:
                raise EngineError(f"{source.model} cannot be loaded: {type(error).__name__}: {error}") from error
        return self._decoder

    def _run(
        self, decoder: Decoder, batch: list[int], texts: dict[int, str], requests: Sequence[Request]
    ) -> dict[int, Generation]:
        """The replies to one batch; halved where it fails, so that a failure stays with its own request."""
        try:
            replies = decoder.reply([texts[i] for i in batch], [requests[i] for i in batch])
            return dict(zip(batch, replies, strict=True))
        except BaseException as error:  # a model's own code may raise anything
            if not fails_one(error):
                raise
            if len(batch) == 1:
                return {batch[0]: Generation.failed("engine", f"{type(error).__name__}: {error}")}
            half = len(batch) // 2
            if _out_of_memory(error):
                self._fits = min(self._fits, half)
            _LOG.info("a batch of %d failed (%s), halving it", len(batch), type(error).__name__)
        first, second = batch[:half], batch[half:]
        return {**self._run(decoder, first, texts, requests), **self._run(decoder, second, texts, requests)}


def _out_of_memory(error: BaseException) -> bool:
    torch = sys.modules["torch"]
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return True
    return "can't allocate memory" in str(error)  # how torch says it on a CPU
