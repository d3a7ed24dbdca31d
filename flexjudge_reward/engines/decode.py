"""A loaded `transformers` model: chat texts in, replies out. The working half of `TransformersEngine`.

This module imports torch; only `transformers.py` imports it, at the first `generate`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

from flexjudge_reward.engines import torchvision_mend
from flexjudge_reward.engines.model import Chat, Source, load_tokenizer
from flexjudge_reward.types import Generation, Prompt, Sampling, TokenLogprob


class Decoder:
    """Model, processor and chat template of one source, on one device."""

    def __init__(self, chat: Chat, processor: Any | None, model: Any) -> None:
        self.chat, self.processor, self.model = chat, processor, model
        self.tokenizer = chat.tokenizer
        self.tokenizer.padding_side = "left"
        settings = model.generation_config
        ends = settings.eos_token_id if settings.eos_token_id is not None else self.tokenizer.eos_token_id
        self.ends = frozenset([ends] if isinstance(ends, int) else ends)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # Only what ends a reply: penalties and cut-offs of the checkpoint are not part of `Sampling`.
        model.generation_config = transformers.GenerationConfig(
            eos_token_id=sorted(self.ends), pad_token_id=self.tokenizer.pad_token_id
        )
        self.limit = int(getattr(model.config.get_text_config(), "max_position_embeddings", sys.maxsize))

    @classmethod
    def load(cls, source: Source, dtype: str, device: str | None, pixels: Mapping[str, int]) -> Decoder:
        """The model of `source` on `device`. Raises what transformers raises."""
        where = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
        config = transformers.AutoConfig.from_pretrained(source.model, **where)
        sees = type(config) in transformers.AutoModelForImageTextToText._model_mapping
        family = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
        processor = _processor(source.model, config, {**where, **pixels}) if sees else None
        tokenizer = processor.tokenizer if processor is not None else load_tokenizer(source)
        model = family.from_pretrained(source.model, dtype=dtype, use_safetensors=True, **where)
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        return cls(Chat(tokenizer, source.template()), processor, model)

    def reply(self, texts: list[str], prompts: list[Prompt], sampling: Sampling) -> list[Generation]:
        """One reply per chat text; a prompt longer than the model can read is a failure of its own."""
        inputs = self._inputs(texts, prompts)
        lengths = inputs["attention_mask"].sum(-1).tolist()
        if max(lengths) < self.limit:
            return self._generate(inputs, lengths, prompts, sampling)
        fit = [row for row, length in enumerate(lengths) if length < self.limit]
        rest = self.reply([texts[row] for row in fit], [prompts[row] for row in fit], sampling) if fit else []
        too_long = "the prompt has {} tokens, and the model reads {} with its reply"
        results = [Generation.failed("engine", too_long.format(length, self.limit)) for length in lengths]
        for row, generation in zip(fit, rest, strict=True):
            results[row] = generation
        return results

    def _inputs(self, texts: list[str], prompts: list[Prompt]) -> Any:
        # The chat template has written the model's opening tokens already.
        options = {"padding": True, "return_tensors": "pt", "add_special_tokens": False}
        images = [[m.images()[0] for m in prompt.seen if m.kind == "image"] for prompt in prompts]
        clips = [media for prompt in prompts for media in prompt.seen if media.kind == "video"]
        if not any(images) and not clips:
            return self.tokenizer(texts, **options)
        if self.processor is None:
            raise ValueError("this model reads text only, and the prompt has media")
        media: dict[str, Any] = {"images": images} if any(images) else {}
        if clips and not hasattr(self.processor, "video_processor"):
            raise ValueError("this model's processor reads no clips here: they need a torchvision that imports")
        if clips:
            media |= {"videos": [list(clip.images()) for clip in clips], "do_sample_frames": False}
            media["video_metadata"] = [
                {"fps": clip.fps, "total_num_frames": len(clip.images()), "frames_indices": range(len(clip.images()))}
                for clip in clips
            ]
        return self.processor(text=texts, **media, **options)

    def _generate(
        self, inputs: Any, lengths: Sequence[int], prompts: Sequence[Prompt], sampling: Sampling
    ) -> list[Generation]:
        allowed = [min(sampling.max_tokens, self.limit - length) for length in lengths]
        drawn = sampling.temperature > 0 or sampling.logprobs is not None
        draw = _Draw(sampling, [sampling.seed + prompt.sample for prompt in prompts]) if drawn else None
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
        text = self.tokenizer.decode(token_ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
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
            names = tokenizer.batch_decode([[token] for token in tokens[row].tolist()])
            top = zip(names, values[row].tolist(), strict=True)
            found.append(TokenLogprob.among(tokenizer.decode([token_id]), float(chosen[row]), top))
        return tuple(found)


def _processor(model: str, config: Any, options: Mapping[str, Any]) -> Any:
    """The processor of a model that sees; without its part for clips where torchvision is missing."""
    if _torchvision_works():
        return transformers.AutoProcessor.from_pretrained(model, **options)
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    whole = PROCESSOR_MAPPING[type(config)]
    parts = [part for part in whole.get_attributes() if part != "video_processor"]
    still = type(whole.__name__, (whole,), {"get_attributes": classmethod(lambda cls: parts)})
    return still.from_pretrained(model, **options)  # type: ignore[attr-defined]


def _torchvision_works() -> bool:
    """Whether torchvision imports; one whose operators do not load is mended (`torchvision_mend.py`)."""
    torchvision_mend.mend()
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return False
    return True
