"""A loaded `transformers` model: chat texts in, replies out. The working half of `TransformersEngine`.

This module imports torch; only `transformers.py` imports it, at the first `generate`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from flexjudge_reward.engines import torchvision_mend
from flexjudge_reward.engines.model import MOLECULES, THINKERS, Chat, Source, load_tokenizer, model_type
from flexjudge_reward.engines.replies import plain
from flexjudge_reward.media.audio import floats
from flexjudge_reward.media.base import Media
from flexjudge_reward.types import Generation, Prompt, Request, Sampling, TokenLogprob


class Decoder:
    """Model, processor and chat template of one source, on one device."""

    def __init__(self, source: Source, dtype: str, device: str | None, pixels: Mapping[str, int]) -> None:
        """Loads the model of `source` onto `device`. Raises what transformers raises."""
        torchvision_mend.mend()
        where = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
        if model_type(source) == MOLECULES:
            import flexjudge_reward.engines.molecules.model  # noqa: F401  # makes the type known to transformers
        with _quiet_talker(model_type(source)):
            config = transformers.AutoConfig.from_pretrained(source.model, **where)
            self.thinker = thinker = THINKERS.get(config.model_type)
            sees = thinker is not None or type(config) in transformers.AutoModelForImageTextToText._model_mapping
            family = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
            family = family if thinker is None else getattr(transformers, thinker)
            model = family.from_pretrained(source.model, dtype=dtype, use_safetensors=True, **where)
        self.processor: Any = load_processor(source.model, config, {**where, **pixels}) if sees else None
        self.tokenizer = load_tokenizer(source) if self.processor is None else self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        self.chat = Chat(self.tokenizer, source.template())
        self.model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        ends = self.model.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        self.ends = frozenset([ends] if isinstance(ends, int) else ends)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # Only what ends a reply: penalties and cut-offs of the checkpoint are not part of `Sampling`.
        self.model.generation_config = transformers.GenerationConfig(
            eos_token_id=sorted(self.ends), pad_token_id=self.tokenizer.pad_token_id
        )
        self.limit = int(getattr(self.model.config.get_text_config(), "max_position_embeddings", sys.maxsize))

    def reply(self, texts: list[str], requests: list[Request]) -> list[Generation]:
        """One reply per chat text; a prompt longer than the model can read is a failure of its own.

        All requests share one way of sampling, but for the seed.
        """
        inputs = self._inputs(texts, [request.prompt for request in requests])
        lengths = inputs["attention_mask"].sum(-1).tolist()
        fit = [row for row, length in enumerate(lengths) if length < self.limit]
        if len(fit) == len(texts):
            return self._generate(inputs, lengths, requests)
        replies = iter(self.reply([texts[row] for row in fit], [requests[row] for row in fit]) if fit else [])
        too_long = "the prompt has {} tokens, and the model reads {} with its reply"
        return [
            next(replies) if length < self.limit else Generation.failed("refused", too_long.format(length, self.limit))
            for length in lengths
        ]

    def _inputs(self, texts: list[str], prompts: list[Prompt]) -> Any:
        # The chat template has written the model's opening tokens already.
        options = {"padding": True, "return_tensors": "pt", "add_special_tokens": False}
        images = [[m.images()[0] for m in prompt.shown if m.kind == "image"] for prompt in prompts]
        videos = [media for prompt in prompts for media in prompt.shown if media.kind == "video"]
        sounds = [floats(media.samples()) for prompt in prompts for media in prompt.shown if media.kind == "audio"]
        graphs = [media.graph() for prompt in prompts for media in prompt.shown if media.kind == "molecule"]
        if not any(images) and not videos and not sounds:
            inputs = self.tokenizer(texts, **options)
            return self._with_graphs(inputs, graphs) if graphs else inputs
        if self.processor is None:
            raise ValueError("this model reads text only, and the prompt has media")
        media: dict[str, Any] = {"images": images} if any(images) else {}
        if sounds:
            media["audio"] = sounds
        if videos:
            media |= self._videos(videos)
        inputs = self.processor(text=texts, **media, **options)
        if self.thinker and videos:  # its processor has one frame rate for all clips of a call
            patch = self.processor.video_processor.temporal_patch_size
            inputs["video_second_per_grid"] = torch.tensor([patch / video.fps for video in videos])
        return inputs

    def _with_graphs(self, inputs: Any, graphs: Sequence[bytes]) -> Any:
        from flexjudge_reward.engines.molecules.graphs import collate

        inputs["graphs"] = collate(graphs)
        return inputs

    def _videos(self, videos: Sequence[Media]) -> dict[str, Any]:
        """The arguments of the processor for videos."""
        if getattr(self.processor, "video_processor", None) is None:
            raise ValueError("this model's processor reads no videos here: they need torchvision")
        frames = [list(video.images()) for video in videos]
        metadata = [
            {"fps": video.fps, "total_num_frames": len(shown), "frames_indices": range(len(shown))}
            for video, shown in zip(videos, frames, strict=True)
        ]
        own = {"do_sample_frames": False, "video_metadata": metadata}
        if self.thinker:  # its processor has sizes of its own, which without this replace those of the checkpoint
            own["size"] = {side: value for side, value in dict(self.processor.video_processor.size).items() if value}
        return {"videos": frames, "videos_kwargs": own}

    def _generate(self, inputs: Any, lengths: Sequence[int], requests: Sequence[Request]) -> list[Generation]:
        sampling = requests[0].sampling
        allowed = [min(sampling.max_tokens, self.limit - length) for length in lengths]
        drawn = sampling.temperature > 0 or sampling.logprobs is not None
        draw = _Draw(sampling, [request.sampling.seed for request in requests]) if drawn else None
        with torch.inference_mode():
            output = self.model.generate(
                **inputs.to(self.model.device),
                max_new_tokens=max(allowed),
                do_sample=False,
                logits_processor=[draw] if draw else None,
                stop_strings=list(sampling.stop) or None,
                tokenizer=self.tokenizer if sampling.stop else None,
            )
        replies = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [
            self._generation(reply[: allowed[row]], lengths[row], sampling, row, draw)
            for row, reply in enumerate(replies)
        ]

    def _generation(
        self, token_ids: list[int], prompt_tokens: int, sampling: Sampling, row: int, draw: _Draw | None
    ) -> Generation:
        """One row of generated tokens as a reply, cut at the end token and the stop texts."""
        end = next((place for place, token in enumerate(token_ids) if token in self.ends), None)
        decoded = self.tokenizer.decode(token_ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        text = plain(decoded, self.chat.special)
        stops = [place for place in map(text.find, sampling.stop) if place >= 0]
        count = len(token_ids) if end is None else end + 1
        return Generation(
            text[: min(stops)] if stops else text,
            "length" if end is None and not stops else "stop",
            prompt_tokens=prompt_tokens,
            completion_tokens=count,
            logprobs=draw.logprobs(row, token_ids[:count], self.tokenizer) if draw and draw.recorded else None,
        )


class _Draw:
    """Chooses tokens inside greedy `generate`: at a temperature, each row with a generator of its own.

    The largest of logits with Gumbel noise is a draw from their softmax, so `generate` may go on taking the largest.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        self.sampling = sampling
        self.recorded = sampling.logprobs is not None
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # chosen, top values, top tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores of the next token of every row, so changed that the largest is the choice."""
        chosen = self._noisy(scores) if self.sampling.temperature > 0 else scores
        if self.sampling.logprobs is not None:
            logprobs = scores.float().log_softmax(-1)
            values, tokens = logprobs.topk(self.sampling.logprobs, -1)
            best = logprobs.gather(-1, chosen.argmax(-1, keepdim=True))
            self.steps.append((best[:, 0].cpu(), values.cpu(), tokens.cpu()))
        return chosen

    def _noisy(self, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float() / self.sampling.temperature
        if self.sampling.top_p < 1.0:
            ordered, places = scores.sort(-1, descending=True)
            chances = ordered.softmax(-1)
            before = chances.cumsum(-1) - chances
            cut = torch.zeros_like(before, dtype=torch.bool).scatter(-1, places, before >= self.sampling.top_p)
            scores = scores.masked_fill(cut, float("-inf"))
        noise = torch.stack([torch.empty(scores.shape[-1]).exponential_(generator=g) for g in self.generators])
        return scores - noise.log().to(scores.device)

    def logprobs(self, row: int, token_ids: Sequence[int], tokenizer: Any) -> tuple[TokenLogprob, ...]:
        """What was recorded for the tokens of one row."""
        found = []
        for token_id, (chosen, values, tokens) in zip(token_ids, self.steps, strict=False):
            names = [tokenizer.decode([token]) for token in tokens[row].tolist()]
            top = zip(names, values[row].tolist(), strict=True)
            found.append(TokenLogprob.merged(tokenizer.decode([token_id]), float(chosen[row]), top))
        return tuple(found)


@contextmanager
def _quiet_talker(model_type: str) -> Iterator[None]:
    """Hides what transformers says of the talker's token ids while it loads a Thinker, which has no talker.

    It compares the configuration with one of its own defaults, which its own check of token ids finds wrong.
    """
    logger = logging.getLogger("transformers.configuration_utils")

    def other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Model config: ")

    if model_type not in THINKERS:
        yield
        return
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def load_processor(model: str, config: Any, options: Mapping[str, Any]) -> Any:
    """The processor of a model that sees; without its part for videos where torchvision is missing."""
    try:
        import torchvision  # type: ignore[import-untyped,import-not-found] # noqa: F401
    except ImportError:
        pass
    else:
        return transformers.AutoProcessor.from_pretrained(model, **options)
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    whole = PROCESSOR_MAPPING[type(config)]
    parts = [part for part in whole.get_attributes() if part != "video_processor"]
    still = type(whole.__name__, (whole,), {"get_attributes": classmethod(lambda cls: parts)})
    return still.from_pretrained(model, **options)  # type: ignore[attr-defined]
