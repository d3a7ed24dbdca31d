"""The parts of accelerator.py, which runs them in processes of their own. A figure is recorded once it is known."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

from accelerator_device import GB, GIB, allocated, figure, now, others, peaks

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 1  # steps and rounds
SFT_STEPS, GRPO_STEPS = 4, 3
AFTER = 15  # seconds that `engine` leaves to what follows
STARTED = perf_counter()

TEXT_7B: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
VISION_7B: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}


@dataclass(frozen=True)
class Size:
    """What is asked of a model."""

    side: int
    """Of each image, in pixels; 448 are 256 tokens."""
    batches: dict[str, int]
    """Prompts in one batch, by their kind."""
    words: int
    """Of the long prompt."""
    reply: int
    """Tokens of each reply and completion."""
    rounds: int
    """That count, of the engine."""


SIZES = {
    "7b": Size(448, {"text": 32, "image": 16}, 1000, 64, 5),
    "tiny": Size(56, {"text": 2, "image": 1}, 50, 4, 1),
}

# ----------------------------------------------------------------------------------------------------------- make


def shaped(shape: str) -> Any:
    """The configuration: Qwen2.5-VL-7B's, or the embedded judge's own; token ids are the embedded judge's."""
    from transformers import Qwen2_5_VLConfig

    from flexjudge_reward.nano import path

    given = json.loads((path("judge") / "config.json").read_text("utf-8"))
    if shape == "7b":
        given["text_config"].pop("layer_types")  # one for each layer
        given["text_config"] |= TEXT_7B
        given["vision_config"] |= VISION_7B
    return Qwen2_5_VLConfig.from_dict({**given, "dtype": "bfloat16"})


def make(options: argparse.Namespace) -> None:
    """Writes the folder."""
    import torch
    from transformers import AutoModelForImageTextToText

    folder, device = Path(options.folder), "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    start, config = perf_counter(), shaped(options.shape)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    ends = model.generation_config
    ends.eos_token_id, ends.pad_token_id = config.text_config.eos_token_id, config.text_config.pad_token_id
    with torch.no_grad():
        model.lm_head.weight[ends.eos_token_id] = 0
    count, made = sum(weight.numel() for weight in model.parameters()), perf_counter() - start
    copy_processor(folder, config.text_config.max_position_embeddings, SIZES[options.shape].side ** 2)
    model.save_pretrained(folder, max_shard_size="4GB")
    print(f"accelerator: {count / GB:.3f} B parameters made in {made:.0f} s, written by {perf_counter() - start:.0f} s")


def copy_processor(folder: Path, longest: int, pixels: int) -> None:
    """The embedded judge's tokenizer and template; each image is scaled to that many pixels."""
    from flexjudge_reward.nano import path

    folder.mkdir(parents=True, exist_ok=True)
    changes = {
        "preprocessor_config.json": {"size": {"shortest_edge": pixels, "longest_edge": pixels}},
        "tokenizer_config.json": {"model_max_length": longest},
    }
    for file in path("judge").iterdir():
        if file.name in changes:
            settings = json.loads(file.read_text("utf-8")) | changes[file.name]
            (folder / file.name).write_text(json.dumps(settings, indent=2) + "\n")
        elif file.suffix != ".safetensors" and file.name not in ("config.json", "generation_config.json"):
            shutil.copyfile(file, folder / file.name)


# ------------------------------------------------------------------------------------------------------ trainings


def sft(options: argparse.Namespace) -> None:
    """Seconds, memory and tokens of a step; rows are the embedded judge's traces in the wording of Flex-Judge."""

    def report(clock: Any) -> None:
        tokens = [entry["num_tokens"] for entry in clock.log if "num_tokens" in entry]
        rate = (tokens[-1] - tokens[WARM_UP - 1]) / sum(clock.counted)
        losses = [round(entry["loss"], 2) for entry in clock.log if "loss" in entry]
        report_training("sft", clock, rate, f"8 rows a step, {tokens[-1] / len(tokens):.0f} tokens; losses {losses}")

    train("sft", options, report)


def grpo(options: argparse.Namespace) -> None:
    """The same for GRPO; tokens are those of completions."""

    def report(clock: Any) -> None:
        last = [entry for entry in clock.log if "completions/mean_length" in entry][-1]
        length, total, rows = last["completions/mean_length"], last["num_tokens"], 16  # rows of qwen2.5_vl_7b.yaml
        note = f"{rows} completions of {length:g} tokens a step, {total / GRPO_STEPS:.0f} tokens with prompts"
        report_training("grpo", clock, rows * length / mean(clock.counted), note)

    train("rl", options, report)


def words_of(recipe: str, options: argparse.Namespace, out: str) -> list[str]:
    """The command line of a recipe's program."""
    config = ROOT / "recipes" / "judge_training" / recipe / "qwen2.5_vl_7b.yaml"
    words = ["--config", str(config), "--model_name_or_path", options.folder, "--dataset_name", "nano"]
    words += ["--output_dir", out, "--report_to", "none", "--logging_steps", "1"]
    if recipe == "sft":
        return [*words, "--max_steps", str(SFT_STEPS), "--measure", "0"]
    ids = shaped(options.shape)
    # The policy is random: it would draw the tokens that stand for images.
    never = [ids.image_token_id, ids.video_token_id, ids.text_config.eos_token_id]
    words += ["--items", "16", "--pass_draws", "0", "--measure_every", "0", "--most_without_variance", "1"]
    words += ["--max_steps", str(GRPO_STEPS), "--max_completion_length", str(SIZES[options.shape].reply)]
    words += ["--use_vllm", "false", "--log_completions", "false", "--save_strategy", "no"]
    return [*words, "--generation_kwargs", json.dumps({"suppress_tokens": never})]


def train(recipe: str, options: argparse.Namespace, report: Callable[[Any], None]) -> None:
    """Runs a recipe's program in this process, all but the save; `report` gets its clock when the steps are done."""
    before = others()
    out = tempfile.mkdtemp(prefix=f"{recipe}_", dir=options.work)
    sys.argv = [f"{recipe}/train.py", *words_of(recipe, options, out)]
    module = importlib.import_module(f"flexjudge_recipes.judge_training.{recipe}.train")
    import torch

    if not torch.cuda.is_available():
        sys.argv += ["--use_cpu", "true"]

    class Clock(module.Restored):  # type: ignore[misc,name-defined]
        """The recipe's own callback; it also takes the time of each step, its data included."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_train_begin(args, state, control, **kwargs)
            self.seconds, self.before, self.last = list[float](), before, now()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seconds.append(now() - self.last)
            self.last = now()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.log, self.counted = state.log_history, self.seconds[WARM_UP:]
            report(self)

    vars(module).update(Restored=Clock, save_judge=lambda *_: None)
    module.main()


def report_training(name: str, clock: Any, rate: float, note: str) -> None:
    """Records the three figures of a training."""
    steps = ", ".join(f"{one:.2f}" for one in clock.seconds)
    note = f"steps of {steps} s, the first not counted; {note}; {clock.before}"
    figure(f"{name}_seconds_per_step", median(clock.counted), "s", note)
    most, reserved = peaks()
    figure(f"{name}_peak_gb", most / GB, "GB", f"torch's peak; reserved {reserved / GB:.1f} GB; {note}")
    figure(f"{name}_tokens_per_s", rate, "tokens/s", note)


# --------------------------------------------------------------------------------------------------------- engine


def examples(kind: str, size: Size, count: int | None = None, words: int = 30) -> list[Any]:
    """Answers to judge, as new objects each time, to questions of about `words` words; a batch if no count is given."""
    from flexjudge_recipes.nano import shapes

    from flexjudge_reward import Example, Media

    made = []
    for number, (image, text) in enumerate(map(shapes.example, range(count or size.batches[kind]))):
        shown = Media.image(image.resize((size.side, size.side)))
        asked = f"{number}. {text} " + "Name each part, say what speaks for it. " * (words // 8)
        made.append(Example([shown, asked] if kind == "image" else asked, [f"red circle {number}"]))
    return made


@cache
def judge_of(folder: str, shape: str) -> tuple[Any, Any, float]:
    """The judge, its loaded model, and the seconds that loading took; once for the parts of a process."""
    from flexjudge_reward import Judge, Pointwise, Sampling, TransformersEngine

    engine = TransformersEngine(folder, dtype="bfloat16")
    sampling = Sampling(max_tokens=SIZES[shape].reply)
    start = perf_counter()
    decoder = engine._loaded()
    return Judge(Pointwise(), engine, sampling), decoder, perf_counter() - start


def engine(options: argparse.Namespace) -> None:
    """Both ratios; fewer rounds, but at least three, where the time is short."""
    before, (judge, decoder, loading), size = others(), judge_of(options.folder, options.shape), SIZES[options.shape]
    begun = perf_counter()
    left = options.seconds - (begun - STARTED) - AFTER
    for share, kind in zip((0.5, 1.0), size.batches, strict=True):
        rounds = list[tuple[float, float]]()
        while len(rounds) < WARM_UP + size.rounds:
            order = [ours, bare] if len(rounds) % 2 else [bare, ours]
            took = {side: side(judge, decoder, examples(kind, size)) for side in order}
            rounds.append((took[ours], took[bare]))
            if len(rounds) > WARM_UP + 2 and perf_counter() - begun > share * left:
                break
        counted, asked = rounds[WARM_UP:], examples(kind, size)
        seconds = [median(side) for side in zip(*counted, strict=True)]
        note = (
            f"{len(asked)} prompts of {lengths(judge, asked)} tokens, {size.reply} greedy tokens each on both sides;"
            f" Judge {seconds[0]:.2f} s, generate {seconds[1]:.2f} s, {len(counted)} rounds, ratios"
            f" {', '.join(f'{a / b:.3f}' for a, b in counted)}; loaded in {loading:.0f} s; {before}"
        )
        ratio = median(a / b for a, b in counted)
        figure(f"engine_ratio_{kind}", ratio, "ratio of seconds", note, "<= 1.02")


def ours(judge: Any, decoder: Any, batch: Sequence[Any]) -> float:
    """Seconds from examples to verdicts."""
    start = now()
    verdicts = judge(batch)
    seconds = now() - start
    check(judge, [verdict.generations[0].completion_tokens for verdict in verdicts], f"{verdicts[0].failure}")
    return seconds


def bare(judge: Any, decoder: Any, batch: Sequence[Any]) -> float:
    """Seconds from finished chat texts and images to reply texts."""
    import torch

    prompts = [judge.format.render(example)[0] for example in batch]
    texts = [decoder.chat.render(prompt) for prompt in prompts]
    images = [[media.images()[0] for media in prompt.shown] for prompt in prompts]
    start = now()
    how = {"padding": True, "return_tensors": "pt", "add_special_tokens": False}
    reader, shown = (decoder.processor, {"images": images}) if any(images) else (decoder.tokenizer, {})
    inputs = reader(text=texts, **shown, **how)
    with torch.inference_mode():
        found = decoder.model.generate(
            **inputs.to(decoder.model.device), max_new_tokens=judge.sampling.max_tokens, do_sample=False
        )
    replies = found[:, inputs["input_ids"].shape[1] :]
    decoder.tokenizer.batch_decode(replies)
    seconds = now() - start
    ended = (replies == next(iter(decoder.ends))).any(-1).tolist()
    check(judge, [0 if end else replies.shape[1] for end in ended], "a reply of generate ended")
    return seconds


def check(judge: Any, counts: Sequence[int], problem: str) -> None:
    """Raises RuntimeError: a reply has another number of tokens than both sides must decode."""
    if set(counts) != {judge.sampling.max_tokens}:
        raise RuntimeError(
            f"every reply must have {judge.sampling.max_tokens} tokens, found {sorted(set(counts))}: {problem}"
        )


def lengths(judge: Any, batch: Sequence[Any]) -> str:
    """The range of the lengths of the prompts, images included."""
    verdicts = judge.with_sampling(type(judge.sampling)(max_tokens=1))(batch)
    found = [verdict.generations[0].prompt_tokens for verdict in verdicts]
    return f"{min(found)} to {max(found)}"


# ----------------------------------------------------------------------------------------------------------- plan


def plan(options: argparse.Namespace) -> None:
    """Weights and workspace as planned, and as taken."""
    before = others()
    import torch  # noqa: F401  # the plan asks it for the accelerator

    from flexjudge_reward.engines.memory import WORKSPACE, MemoryPlan, gpu_memory, weights_of
    from flexjudge_reward.engines.model import Source

    weights, total = weights_of(Source.find(options.folder, None, False)), gpu_memory()[1]
    share = math.ceil(100 * (weights + WORKSPACE) / total) / 100 if total else 0.0  # as its message says
    MemoryPlan.measured(weights, share).check()
    judge, decoder, loading = judge_of(options.folder, options.shape)
    held = allocated() or sum(weight.nbytes for weight in decoder.model.parameters())
    note = f"the plan says {weights / GB:.3f} GB, allocated {held / GB:.3f} GB; loaded in {loading:.0f} s; {before}"
    figure("plan_error_percent", 100 * (held - weights) / weights, "percent", note)
    size = SIZES[options.shape]
    long_ = examples("text", size, 1, size.words)
    batches = {kind: examples(kind, size) for kind in size.batches}
    for name, asked in {"long_prompt": long_, **batches}.items():
        used, reserved, what = taken(judge, asked, held)
        note = f"{what}, replies of {size.reply}; reserved {reserved / GIB:.2f} GiB; planned {WORKSPACE / GIB:.1f} GiB"
        figure(f"plan_{name}_gib", used / GIB, "GiB beside the weights", note)
    if total:
        figure_least_share(judge, long_, weights + WORKSPACE, total)


def identity(options: argparse.Namespace) -> None:
    """The seconds that the hash of the weights takes."""
    from flexjudge_reward import TransformersEngine

    start = perf_counter()
    TransformersEngine(options.folder).identity()
    size = sum(file.stat().st_size for file in Path(options.folder).glob("*.safetensors"))
    note = f"the hash of {size / GB:.1f} GB of weights that is a part of each cache key, once per process"
    figure("identity_seconds", perf_counter() - start, "s", note)


def taken(judge: Any, asked: Sequence[Any], held: int) -> tuple[int, int, str]:
    """Peak bytes beside the weights, allocated and reserved, of one call; its size in words."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    verdicts = judge(asked)
    check(judge, [verdict.generations[0].completion_tokens for verdict in verdicts], f"{verdicts[0].failure}")
    most, reserved = peaks()
    longest = max(verdict.generations[0].prompt_tokens for verdict in verdicts)
    return max(0, most - held), max(0, reserved - held), f"{len(asked)} prompts of at most {longest} tokens"


def figure_least_share(judge: Any, asked: Sequence[Any], least: int, total: int) -> None:
    """Whether the share that the plan calls enough is enough for one long prompt."""
    import torch

    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(least / total)
    try:
        (verdict,) = judge(asked)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    fits = verdict.generations[0].completion_tokens == judge.sampling.max_tokens
    note = f"one long prompt within {least / GIB:.2f} GiB: {'it fits' if fits else verdict.failure}"
    figure("plan_least_share_fits", fits, "1 or 0", note, ">= 1")


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "make": make,
    "sft": sft,
    "grpo": grpo,
    "plan": plan,
    "engine": engine,
    "identity": identity,
}
